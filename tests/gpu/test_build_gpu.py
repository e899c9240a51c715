"""The general TensorRT on a real GPU: the same scenario as the unit tests run for RTX."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.backends import CompileOptions, Compiler, engine_fits
from deploykit.backends.tensorrt import read_header
from deploykit.backends.trt.compiler import load_compiler
from deploykit.core import environment
from deploykit.core.artifacts import OnnxArtifact, sha256_of
from deploykit.core.errors import MissingDependencyError, PrecisionError
from deploykit.core.precision import Precision
from deploykit.exporting.engines import build_engine
from tests.unit.backends.trt import small_models

if TYPE_CHECKING:
    from pathlib import Path


def load(name: str) -> Compiler:
    if not environment.gpus():
        pytest.skip("no GPU on this machine")
    try:
        return load_compiler(name)
    except MissingDependencyError as error:
        pytest.skip(str(error))


@pytest.fixture
def tensorrt() -> Compiler:
    return load("tensorrt")


def artifact(path: Path, precision: Precision) -> OnnxArtifact:
    return OnnxArtifact(path, sha256_of(path), precision, small_models.OPSET, (), ())


@pytest.mark.parametrize("precision", list(Precision))
def test_each_precision_compiles_and_fits_this_machine(
    tensorrt: Compiler, tmp_path: Path, precision: Precision
) -> None:
    path = tmp_path / "model.onnx"
    if precision is Precision.INT8:
        small_models.quantized(path)
    else:
        small_models.convolution(path, np.float16 if precision is Precision.FP16 else np.float32)
    record = build_engine(artifact(path, precision), tmp_path, tensorrt, CompileOptions())
    gpu = environment.gpus()[0]
    assert record.label == f"{tensorrt.name}-{tensorrt.version}-sm{architecture(gpu)}"
    assert record.file == f"{record.label}-{record.sha256[:8]}.engine"
    assert engine_fits(record, [gpu], {tensorrt.name: tensorrt.version}) == (True, "")
    plan = (tmp_path / record.file).read_bytes()
    assert read_header(plan, "tensorrt").state == "unknown"
    assert deserialises(tensorrt, plan)


def test_a_wrong_precision_is_refused(tensorrt: Compiler, tmp_path: Path) -> None:
    source = artifact(small_models.convolution(tmp_path / "model.onnx"), Precision.FP16)
    with pytest.raises(PrecisionError, match="2 of 2 convolution and matrix layers are FP32"):
        build_engine(source, tmp_path, tensorrt, CompileOptions())


def test_rtx_judges_its_own_engine_with_a_driver(tmp_path: Path) -> None:
    compiler = load("tensorrt-rtx")
    source = artifact(small_models.convolution(tmp_path / "model.onnx"), Precision.FP32)
    record = build_engine(source, tmp_path, compiler, CompileOptions())
    own = environment.gpus()[0].compute_capability
    state = read_header((tmp_path / record.file).read_bytes(), compiler.name).state
    assert state == ("valid" if own in record.compute_capabilities else "invalid")


def architecture(gpu: environment.Gpu) -> str:
    return gpu.compute_capability.replace(".", "")


def deserialises(compiler: Compiler, plan: bytes) -> bool:
    logger = compiler.module.Logger(compiler.module.Logger.ERROR)
    runtime = compiler.module.Runtime(logger)
    return runtime.deserialize_cuda_engine(plan) is not None
