"""Loading an engine, on the fake runtime: no driver is needed for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
import pytest

from deploykit.backends import Compiler
from deploykit.backends.trt.engine import Engine
from deploykit.core.errors import BundleError, EngineIncompatibleError, UsageError
from deploykit.core.sizes import ShapeProfile, SizeRange
from deploykit.core.specs import TensorSpec
from tests.fakes.execution_fake import SCRATCH, DataType
from tests.fakes.runtime_fake import FakeRuntime, Script
from tests.unit.backends.trt import small_models

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return small_models.convolution(tmp_path / "model.engine")


def engine(plan: Path, script: Script, *, rtx: bool = False, **options: Any) -> Engine:
    name = "tensorrt-rtx" if rtx else "tensorrt"
    compiler = Compiler(name, "11.4.0.106", FakeRuntime(script, rtx=rtx), is_portable=rtx)
    given = {"profile": ShapeProfile(), "cuda_graphs": True, "cache": None, **options}
    return Engine(plan, compiler, **given)


def test_what_is_read_from_the_engine(plan: Path, script: Script) -> None:
    opened = engine(plan, script)
    assert opened.name == "model.engine"
    assert opened.inputs == (TensorSpec("x", "float32", ("batch", *small_models.IMAGE)),)
    assert opened.outputs == (TensorSpec("y", "float32", ("batch", 10)),)
    assert opened.scratch_bytes == SCRATCH


def test_a_fixed_batch_is_a_number(tmp_path: Path, script: Script) -> None:
    plan = small_models.convolution(tmp_path / "model.engine", shape=(4, *small_models.IMAGE))
    assert engine(plan, script).inputs[0].shape == (4, *small_models.IMAGE)


@pytest.mark.parametrize("rtx", [False, True])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_who_captures_graphs(plan: Path, script: Script, rtx: bool, cuda_graphs: bool) -> None:
    opened = engine(plan, script, rtx=rtx, cuda_graphs=cuda_graphs)
    assert opened.captures == (cuda_graphs and not rtx)
    chosen = "WHOLE_GRAPH_CAPTURE" if cuda_graphs else "DISABLED"
    assert [strategy.name for strategy in script.strategies] == ([chosen] if rtx else [])


@pytest.mark.parametrize(
    ("method", "what"),
    [
        ("Runtime", "does not start"),
        ("deserialize_cuda_engine", "does not load it"),
        ("create_runtime_config", "cannot configure it"),
    ],
)
def test_an_engine_that_does_not_load(plan: Path, script: Script, method: str, what: str) -> None:
    script.refuses = {method}
    said = f"model.engine: tensorrt 11.4.0.106 {what} on this machine\nit says: the reason\n"
    with pytest.raises(EngineIncompatibleError, match=f"{said}deploykit doctor .*compile it here"):
        engine(plan, script)


def test_a_type_that_numpy_has_not(plan: Path, script: Script) -> None:
    script.dtype = DataType.BF16
    with pytest.raises(EngineIncompatibleError, match=r"'x' has type BF16 and shape \(-1, 8, 16"):
        engine(plan, script)


def test_a_shape_that_is_open_elsewhere(tmp_path: Path, script: Script) -> None:
    plan = small_models.convolution(tmp_path / "e", shape=("batch", "channels", 16, 16))
    with pytest.raises(EngineIncompatibleError, match="open in the batch, and in the height and"):
        engine(plan, script)


def test_an_output_that_is_a_single_number(tmp_path: Path, script: Script) -> None:
    node = onnx.helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)
    plan = small_models.save(tmp_path / "e", [node])
    with pytest.raises(EngineIncompatibleError, match=r"'y' has type FLOAT and shape \(\)\npossib"):
        engine(plan, script)


def test_an_open_height_and_width(tmp_path: Path, script: Script) -> None:
    shape = ("batch", 8, "h", "w")
    plan = small_models.convolution(tmp_path / "e", shape=shape)
    profile = ShapeProfile(1, 2, 3, SizeRange(8, 8, 20), SizeRange(8, 8, 24))
    loaded = engine(plan, script, profile=profile)
    assert loaded.inputs == (TensorSpec("x", "float32", ("batch", 8, "height", "width")),)
    assert loaded.outputs == (TensorSpec("y", "float32", ("batch", 10)),)
    assert loaded.largest_shapes(77) == [(3, 8, 20, 24), (3, 10)]


def test_a_plan_that_cannot_be_read(tmp_path: Path, script: Script) -> None:
    with pytest.raises(BundleError, match=r"cannot read .*gone\.engine: No such file"):
        engine(tmp_path / "gone.engine", script)


def test_the_cache_is_used_where_there_is_one(plan: Path, script: Script, tmp_path: Path) -> None:
    cache = tmp_path / "model.cache"
    engine(plan, script, cache=cache).close(save=True)
    assert not cache.exists()  # TensorRT has none
    engine(plan, script, rtx=True, cache=cache).close(save=False)
    assert not cache.exists()
    engine(plan, script, rtx=True, cache=cache).close(save=True)
    assert cache.read_bytes() == script.cache


# Several profiles

ONE, SOME, MANY = ShapeProfile(1, 1, 1), ShapeProfile(2, 4, 8), ShapeProfile(1, 16, 32)


def compiled(*profiles: ShapeProfile) -> list[dict[str, Any]]:
    """What the engine itself says of them."""
    return [
        {
            "x": tuple(
                (batch, *small_models.IMAGE)
                for batch in (each.min_batch, each.opt_batch, each.max_batch)
            )
        }
        for each in profiles
    ]


@pytest.mark.parametrize(("batch", "place"), [(1, 0), (2, 1), (8, 1), (9, 2), (32, 2)])
def test_the_narrowest_profile_is_taken(plan: Path, script: Script, batch: int, place: int) -> None:
    script.profiles = compiled(ONE, SOME, MANY)
    opened = engine(plan, script, profile=ShapeProfile.of([ONE, SOME, MANY]))
    assert opened.place_of([(batch, *small_models.IMAGE)]) == place


def test_a_shape_that_no_profile_has(plan: Path, script: Script) -> None:
    script.profiles = compiled(ONE, SOME)
    opened = engine(plan, script, profile=ShapeProfile.of([ONE, SOME]))
    words = r"fed \(9, 8, 16, 16\), and none of its profiles has that: batch 1; batch 2,4,8\nsplit"
    with pytest.raises(UsageError, match=words):
        opened.place_of([(9, *small_models.IMAGE)])


def test_one_profile_is_not_spoken_of(plan: Path, script: Script) -> None:
    opened = engine(plan, script)
    assert opened.place_of([(77, *small_models.IMAGE)]) == 0


@pytest.mark.parametrize(
    "own",
    [(SOME, ONE), (ONE, SOME, MANY), (ONE, MANY), ()],
    ids=["another order", "more", "other", "one"],
)
def test_a_manifest_that_names_other_profiles(
    plan: Path, script: Script, own: tuple[ShapeProfile, ...]
) -> None:
    script.profiles = compiled(*own) or [compiled(ONE)[0]]
    words = r"its manifest names the profile batch 1; batch 2,4,8, the engine has \d .*\ncompile"
    with pytest.raises(EngineIncompatibleError, match=words):
        engine(plan, script, profile=ShapeProfile.of([ONE, SOME]))


def test_buffers_hold_the_largest_of_all_profiles(tmp_path: Path, script: Script) -> None:
    plan = small_models.convolution(
        tmp_path / "model.engine", shape=("batch", 8, "height", "width")
    )
    small, large = SizeRange(16, 16, 16), SizeRange(64, 64, 64)
    profile = ShapeProfile.of(
        [ShapeProfile(8, 8, 8, small, small), ShapeProfile(1, 1, 1, large, large)]
    )
    script.profiles = [
        {"x": ((8, 8, 16, 16),) * 3},
        {"x": ((1, 8, 64, 64),) * 3},
    ]
    # 8 x 8 x 16 x 16 values are fewer than 1 x 8 x 64 x 64; of the outputs it is the other way.
    assert engine(plan, script, profile=profile).largest_shapes(77) == [(1, 8, 64, 64), (8, 10)]
