"""GPUs that an engine is compiled for: what each compiler, version and GPU has of the choices."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit.backends import CompileOptions, Compiler
from deploykit.backends.trt.builder import compile_onnx
from deploykit.backends.trt.targets import known_compute_capabilities, target_capabilities
from deploykit.core import environment
from deploykit.core.environment import Gpu
from deploykit.core.errors import BuildError, UsageError
from tests.fakes.network_fake import DataType, ILayer, INetworkDefinition, ITensor, LayerType
from tests.fakes.tensorrt_fake import FakeTensorrt, HardwareCompatibilityLevel, Script

if TYPE_CHECKING:
    from pathlib import Path


def fake(told: Script | None = None, name: str = "tensorrt", **changes: Any) -> Compiler:
    module = FakeTensorrt(told or Script())
    for attribute, value in changes.items():
        setattr(module, attribute, value)
    return Compiler(name, module.__version__, module, is_portable=name == "tensorrt-rtx")


def gpu(monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    monkeypatch.setattr(environment, "gpus", lambda: (Gpu("a GPU", capability, 1),))


def told(*kinds: DataType) -> Script:
    """A network whose layers give these types."""
    x = ITensor("x", shape=(-1, 3))
    layers = [ILayer(LayerType.CAST, [x], ITensor(kind.name, kind)) for kind in kinds]
    return Script(network=INetworkDefinition([x], layers))


# Hardware compatibility


@pytest.mark.parametrize(
    ("asked", "capability", "level"),
    [
        ("none", "9.0", HardwareCompatibilityLevel.NONE),
        ("same-cc", "7.5", HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY),
        ("same-cc", "12.0", HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY),
        ("ampere+", "8.0", HardwareCompatibilityLevel.AMPERE_PLUS),
        ("ampere+", "10.0", HardwareCompatibilityLevel.AMPERE_PLUS),
    ],
)
def test_the_compiler_is_told_of_the_other_gpus(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    asked: str,
    capability: str,
    level: HardwareCompatibilityLevel,
) -> None:
    gpu(monkeypatch, capability)
    script = told(DataType.HALF)
    options = CompileOptions(hardware_compatibility=asked)
    engine = compile_onnx(fake(script), tmp_path / "m.onnx", options)
    assert script.compatibility is level
    assert engine.compute_capabilities == (capability,)


@pytest.mark.parametrize(
    ("asked", "capability", "oldest"),
    [("ampere+", "7.5", "8.0"), ("ampere+", "7.0", "8.0"), ("same-cc", "7.0", "7.5")],
)
def test_a_gpu_that_is_too_old_for_it(
    monkeypatch: pytest.MonkeyPatch, asked: str, capability: str, oldest: str
) -> None:
    gpu(monkeypatch, capability)
    words = rf"{asked.replace('+', '.')} is for .* {oldest} and later, this one has {capability}\nl"
    with pytest.raises(UsageError, match=words):
        target_capabilities(fake(), CompileOptions(hardware_compatibility=asked))


def test_a_version_that_has_only_some(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, "9.0")
    old = Enum("old", "NONE AMPERE_PLUS")
    older = fake(HardwareCompatibilityLevel=old)
    words = r"tensorrt 11\.4\.0\.106 has no hardware compatibility same-cc\nit knows none, ampere\+"
    with pytest.raises(UsageError, match=words):
        target_capabilities(older, CompileOptions(hardware_compatibility="same-cc"))
    assert target_capabilities(older, CompileOptions(hardware_compatibility="ampere+")) == ("9.0",)
    oldest = fake(HardwareCompatibilityLevel=None)
    with pytest.raises(UsageError, match=r"compatibility ampere\+\nit knows none; a newer"):
        target_capabilities(oldest, CompileOptions(hardware_compatibility="ampere+"))
    assert target_capabilities(oldest, CompileOptions()) == ("9.0",)


@pytest.mark.parametrize("asked", ["same-cc", "ampere+"])
def test_the_compiler_for_rtx_has_none(asked: str) -> None:
    options = CompileOptions(hardware_compatibility=asked)
    words = "tensorrt-rtx has no hardware compatibility .*\nits engines run on each .*\n.*--compute"
    with pytest.raises(UsageError, match=words):
        target_capabilities(fake(name="tensorrt-rtx"), options)


def test_the_real_compiler_for_rtx_says_so_itself(rtx: Compiler, tmp_path: Path) -> None:
    """Were it asked: it only warns, and the engine is as without."""
    from deploykit.backends.trt.compiler import Messages, logger_into

    messages = Messages()
    logger = logger_into(messages, rtx.module)
    config = rtx.module.Builder(logger).create_builder_config()
    config.hardware_compatibility_level = rtx.module.HardwareCompatibilityLevel.AMPERE_PLUS
    assert any("unsupported" in line for line in messages.warnings)


@pytest.mark.parametrize("asked", ["", "ampere", "sm80", "AMPERE+"])
def test_an_unknown_compatibility(asked: str) -> None:
    with pytest.raises(UsageError, match=r"expected one of none, same-cc, ampere\+"):
        CompileOptions(hardware_compatibility=asked)


# Arithmetic that not every GPU has


@pytest.mark.parametrize(
    ("kinds", "asked", "expected"),
    [
        ([DataType.HALF], (), ("8.0", "8.9", "12.0")),
        ([DataType.FP8, DataType.HALF], (), ("8.9", "12.0")),
        ([DataType.BF16], (), ("8.0", "8.9", "12.0")),
        ([DataType.BF16, DataType.FP8], ("8.9",), ("8.9",)),
        ([DataType.FP8], ("12.0",), ("12.0",)),
    ],
)
def test_an_engine_names_gpus_that_have_its_arithmetic(
    tmp_path: Path, kinds: list[DataType], asked: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    options = CompileOptions(compute_capabilities=asked)
    engine = compile_onnx(fake(told(*kinds), "tensorrt-rtx"), tmp_path / "m.onnx", options)
    assert engine.compute_capabilities == expected


def test_gpus_that_lack_the_arithmetic_are_refused_where_they_were_named(tmp_path: Path) -> None:
    options = CompileOptions(compute_capabilities=("8.0", "8.9"))
    words = (
        r"m\.onnx computes in FP8, which .* 8\.0 do not have\nit needs 8\.9 or later: leave it o"
    )
    with pytest.raises(UsageError, match=words):
        compile_onnx(fake(told(DataType.FP8), "tensorrt-rtx"), tmp_path / "m.onnx", options)


@pytest.mark.parametrize(("kind", "own"), [(DataType.FP8, "8.6"), (DataType.BF16, "7.5")])
def test_the_gpu_that_it_is_built_on_lacks_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: DataType, own: str
) -> None:
    gpu(monkeypatch, own)
    with pytest.raises(UsageError, match=rf"in {kind.name}, .* {own} do not .*\n.*build on such a"):
        compile_onnx(fake(told(kind)), tmp_path / "m.onnx", CompileOptions())


def fp8_convolution(path: Path) -> Path:
    """A convolution whose input and weights come from E4M3, the activation cast to FP16."""
    rng = np.random.default_rng(3)
    weights = numpy_helper.from_array(rng.normal(size=(32, 32, 3, 3)).astype(np.float32), "w")
    scale = numpy_helper.from_array(np.array(0.05, np.float32), "s")
    zero = helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, [], [0.0])
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], name="xq"),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], name="xd"),
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["wq"], name="wq"),
        helper.make_node("DequantizeLinear", ["wq", "s", "z"], ["wd"], name="wd"),
        helper.make_node("Conv", ["xd", "wd"], ["y"], name="conv", pads=[1, 1, 1, 1]),
    ]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32, 8, 8])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "fp8", [image], [out], [weights, scale, zero])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path)
    return path


def test_fp8_on_the_real_compiler_for_rtx(rtx: Compiler, tmp_path: Path) -> None:
    path = fp8_convolution(tmp_path / "fp8.onnx")
    engine = compile_onnx(rtx, path, CompileOptions())
    newer = [each for each in known_compute_capabilities(rtx) if each not in {"8.0", "8.6"}]
    assert list(engine.compute_capabilities) == newer
    with pytest.raises(UsageError, match=r"in FP8, which GPUs .* 8\.6 do not have"):
        compile_onnx(rtx, path, CompileOptions(compute_capabilities=("8.6", "8.9")))


# The optimization level


@pytest.mark.parametrize("level", [0, 1, 4, 5])
def test_the_compiler_is_told_the_level(tmp_path: Path, level: int) -> None:
    script = told(DataType.HALF)
    compile_onnx(
        fake(script, "tensorrt-rtx"), tmp_path / "m.onnx", CompileOptions(optimization_level=level)
    )
    assert script.level == level


def test_a_level_that_this_version_has_not(tmp_path: Path) -> None:
    script = replace(told(DataType.HALF), greatest_level=4)
    words = "has no optimization level 5, its greatest is 4\nask for --optimization-level 4"
    with pytest.raises(UsageError, match=words):
        compile_onnx(
            fake(script, "tensorrt-rtx"), tmp_path / "m.onnx", CompileOptions(optimization_level=5)
        )


def test_a_version_without_levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.fakes.tensorrt_fake import IBuilderConfig

    monkeypatch.delattr(IBuilderConfig, "builder_optimization_level")
    with pytest.raises(UsageError, match="has no optimization levels\nleave --optimization-level"):
        compile_onnx(
            fake(told(DataType.HALF), "tensorrt-rtx"),
            tmp_path / "m.onnx",
            CompileOptions(optimization_level=2),
        )


@pytest.mark.parametrize("level", [-1, 6, 30])
def test_a_level_out_of_range(level: int) -> None:
    with pytest.raises(UsageError, match=rf"level of {level}: expected 0 \(the fastest .* to 5"):
        CompileOptions(optimization_level=level)


def test_without_a_gpu_tensorrt_has_no_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "gpus", lambda: ())
    with pytest.raises(BuildError, match="there is none here"):
        target_capabilities(fake(), CompileOptions(hardware_compatibility="same-cc"))
