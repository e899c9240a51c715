"""Profiles of several axes: what was asked, what the network leaves open, what is compiled."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.backends import CompileOptions, Compiler
from deploykit.backends.trt.builder import compile_onnx, fitting_profile, open_inputs
from deploykit.core.errors import BuildError, UsageError
from deploykit.core.sizes import ShapeProfile, SizeRange
from tests.fakes.network_fake import DataType, INetworkDefinition, ITensor
from tests.fakes.tensorrt_fake import FakeTensorrt, Script
from tests.unit.backends.trt import small_models

if TYPE_CHECKING:
    from pathlib import Path

HEIGHT, WIDTH = SizeRange(8, 16, 32), SizeRange(16, 16, 24)
OPEN = {"image": (-1, 3, -1, -1)}
PROFILE = ShapeProfile(1, 2, 4, HEIGHT, WIDTH)
ONE = CompileOptions(PROFILE, compute_capabilities=("8.9",))


def fake(told: Script) -> Compiler:
    module = FakeTensorrt(told)
    return Compiler("tensorrt-rtx", module.__version__, module, is_portable=True)


def script(*shapes: tuple[int, ...]) -> Script:
    inputs = [ITensor(f"x{n}", DataType.HALF, shape) for n, shape in enumerate(shapes)]
    return Script(network=INetworkDefinition(inputs))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_compiler_for_rtx_takes_open_images(rtx: Compiler, tmp_path: Path, dtype: type) -> None:
    path = small_models.convolution(tmp_path / "m.onnx", dtype, ("batch", 8, "height", "width"))
    engine = compile_onnx(rtx, path, ONE)
    assert engine.profile == PROFILE
    assert engine.plan.startswith(b"vtrt")


def test_the_compiler_is_told_of_every_axis(tmp_path: Path) -> None:
    told = script((-1, 3, -1, -1), (-1, 3, 8, -1), (-1, 7), (5, 3, 8, 8))
    compile_onnx(fake(told), tmp_path / "m.onnx", ONE)
    assert told.shapes == {
        "x0": ((1, 3, 8, 16), (2, 3, 16, 16), (4, 3, 32, 24)),
        "x1": ((1, 3, 8, 16), (2, 3, 8, 16), (4, 3, 8, 24)),
        "x2": ((1, 7), (2, 7), (4, 7)),
    }


def test_a_refused_profile_is_said_in_words(tmp_path: Path) -> None:
    told = replace(script((-1, 3, -1, -1)), profile_index=-1)
    with pytest.raises(BuildError, match="refuses the profile batch 1,2,4, height 8,16,32, width"):
        compile_onnx(fake(told), tmp_path / "m.onnx", ONE)


def test_a_fixed_batch_of_open_images() -> None:
    fitting = fitting_profile("m.onnx", {"image": (2, 3, -1, -1)}, PROFILE)
    assert fitting == replace(PROFILE, min_batch=2, opt_batch=2, max_batch=2)


# Several profiles

BATCHES = ShapeProfile.of([ShapeProfile(1, 1, 1), ShapeProfile(1, 8, 32), ShapeProfile(4, 4, 4)])


def test_the_compiler_is_told_of_every_profile(tmp_path: Path) -> None:
    told = script((-1, 3, 8, 8), (-1, 7))
    options = CompileOptions(BATCHES, compute_capabilities=("8.9",))
    engine = compile_onnx(fake(told), tmp_path / "m.onnx", options)
    assert told.profiles == [
        {"x0": ((least, 3, 8, 8), (best, 3, 8, 8), (most, 3, 8, 8)),
         "x1": ((least, 7), (best, 7), (most, 7))}
        for least, best, most in ((1, 1, 1), (1, 8, 32), (4, 4, 4))
    ]  # fmt: skip
    assert engine.profile == BATCHES


def test_heights_and_widths_of_every_profile(tmp_path: Path) -> None:
    told = script((-1, 3, -1, -1))
    large = SizeRange(64, 64, 64)
    both = ShapeProfile.of([PROFILE, ShapeProfile(1, 1, 1, large, large)])
    compile_onnx(fake(told), tmp_path / "m.onnx", replace(ONE, profile=both))
    assert [shapes["x0"][2] for shapes in told.profiles] == [(4, 3, 32, 24), (1, 3, 64, 64)]


def test_the_compiler_for_rtx_takes_several(rtx: Compiler, tmp_path: Path) -> None:
    path = small_models.convolution(tmp_path / "m.onnx")
    options = CompileOptions(BATCHES, compute_capabilities=("8.9",))
    engine = compile_onnx(rtx, path, options)
    assert engine.profile == BATCHES
    one = compile_onnx(rtx, path, replace(options, profile=BATCHES.parts[1]))
    assert len(engine.plan) > len(one.plan)


def test_the_profile_that_is_refused_is_named(tmp_path: Path) -> None:
    told = replace(script((-1, 3, 8, 8)), profile_index=0)
    options = CompileOptions(BATCHES, compute_capabilities=("8.9",))
    with pytest.raises(BuildError, match="refuses the profile batch 1,8,32\n"):
        compile_onnx(fake(told), tmp_path / "m.onnx", options)


def test_of_several_profiles_those_with_the_fixed_batch_stay() -> None:
    four = ShapeProfile(4, 4, 4)
    assert fitting_profile("m.onnx", {"x": (4, 3, 8, 8)}, BATCHES) == four
    with pytest.raises(UsageError, match="at 2, outside the profile 1,1,1 and 4,4,4\nask for"):
        fitting_profile("m.onnx", {"x": (2, 3)}, ShapeProfile.of([ShapeProfile(1, 1, 1), four]))


def test_a_network_without_open_sizes_has_no_profile(tmp_path: Path) -> None:
    told = script((4, 3, 8, 8))
    options = CompileOptions(BATCHES, compute_capabilities=("8.9",))
    assert compile_onnx(fake(told), tmp_path / "m.onnx", options).profile == ShapeProfile(4, 4, 4)
    assert told.profiles == []


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            ShapeProfile(),
            "m.onnx takes images whose height and width may be anything\n.*: --height MIN,OPT",
        ),
        (
            ShapeProfile(width=WIDTH),
            "m.onnx takes images whose height may be anything\n.*: --height MIN,OPT",
        ),
        (
            ShapeProfile(height=HEIGHT),
            "m.onnx takes images whose width may be anything\n.*: --width MIN,OPT",
        ),
    ],
)
def test_an_open_size_must_be_given(asked: ShapeProfile, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        fitting_profile("m.onnx", OPEN, asked)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (
            (-1, 3, 224, -1),
            "--height 8,16,32 for m.onnx: its height is fixed to 224\nleave --heigh",
        ),
        ((-1, 3, -1, 224), "--width 16,16,24 for m.onnx: its width is fixed to 224\nleave --width"),
        ((-1, 3), "--height 8,16,32 for m.onnx: it has no height\nleave --height out"),
    ],
)
def test_a_size_for_what_is_fixed(shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        fitting_profile("m.onnx", {"image": shape}, PROFILE)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((-1, -1, 8, 8), "1"), ((-1, 3, -1), "2"), ((-1, -1, -1, -1, -1), "1, 2, 3")],
)
def test_another_open_dimension_is_refused(shape: tuple[int, ...], axes: str) -> None:
    with pytest.raises(BuildError, match=rf"dimension {axes}.* is open\nonly the batch, and the"):
        open_inputs({"image": shape})
