"""Loading an engine, on the fake runtime: no driver is needed for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
import pytest

from deploykit.backends import Compiler
from deploykit.backends.trt.engine import Engine
from deploykit.core.errors import BundleError, EngineIncompatibleError
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
    return Engine(plan, compiler, **{"cuda_graphs": True, "cache": None, **options})


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
    said = f"model.engine: tensorrt 11.4.0.106 {what} on this machine\nit says: the reason\ncompile"
    with pytest.raises(EngineIncompatibleError, match=said):
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
    loaded = engine(small_models.convolution(tmp_path / "e", shape=shape), script)
    assert loaded.inputs == (TensorSpec("x", "float32", ("batch", 8, "height", "width")),)
    assert loaded.outputs == (TensorSpec("y", "float32", ("batch", 10)),)
    assert loaded.output_shapes({0: 3, 2: 20, 3: 24}) == ((3, 10),)


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
