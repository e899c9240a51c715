"""Sums beyond FP16's range and rounding inside fused chains: which arithmetic a GPU really does.

The graph by which bundles are judged rounds to FP16 behind each value, and sums in FP32. An engine
may keep a wider value inside what it fuses, or sum in FP16: each case tells these apart.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

from deploykit.backends import CompileOptions
from deploykit.backends.trt.builder import compile_onnx
from deploykit.backends.trt.compiler import TENSORRT, TENSORRT_RTX, load_compiler
from deploykit.backends.trt.runner import TrtRunner
from deploykit.backends.trt.targets import known_compute_capabilities
from deploykit.core import environment
from deploykit.core.sizes import ShapeProfile
from tests.gpu.proofs.report import CannotRunError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from deploykit.backends import Compiler
    from tests.gpu.proofs.report import Report

LARGE = 60_000.0
ROWS, WIDTH = 16, 64
PROFILE = ShapeProfile(ROWS, ROWS, ROWS)


def _cancelling() -> NDArray[np.float16]:
    """Large values, then as many of their opposites: partial sums pass 65,504, the sum is 0."""
    values = np.full((ROWS, WIDTH), LARGE, np.float16)
    values[:, WIDTH // 2 :] *= -1
    return values


def _constant(value: float, count: int = WIDTH) -> NDArray[np.float16]:
    return np.full((ROWS, count), value, np.float16)


# Input; node types with a constant or none; what each arithmetic gives for the first output.
CASES: dict[str, tuple[NDArray[np.float16], list[tuple[str, float | None]], dict[str, float]]] = {
    "a matrix product that cancels": (
        _cancelling(),
        [("MatMul", 1.0)],
        {"sums in FP32": 0.0, "sums in FP16": float("nan")},
    ),
    "a mean of 4,096 values of 30": (
        _constant(30, 4096),
        [("ReduceMean", None)],
        {"sums in FP32": 30.0, "sums in FP16": float("inf")},
    ),
    "300 * 300 / 300": (
        _constant(300),
        [("Mul", 300.0), ("Div", 300.0)],
        {"rounds behind each value": float("inf"), "keeps wider values inside": 300.0},
    ),
    "0.0001 * 0.0001 * 10,000": (
        _constant(1e-4),
        [("Mul", 1e-4), ("Mul", 1e4)],
        {"rounds behind each value": 0.0, "keeps wider values inside": 1e-4},
    ),
    "1 + 0.0004 - 1": (
        _constant(1),
        [("Add", 4e-4), ("Sub", 1.0)],
        {"rounds behind each value": 0.0, "keeps wider values inside": 4e-4},
    ),
}


def prove(report: Report) -> None:
    with report.piece("torch.half, eager"):
        _by_torch(report, "torch.half, eager", _torch_chain)
    with report.piece("torch.half, compiled"):
        import torch

        _by_torch(report, "torch.half, compiled", lambda nodes: torch.compile(_torch_chain(nodes)))
    with report.piece("torch.half, sums in FP16 allowed"):
        import torch

        torch.backends.cuda.matmul.allow_fp16_accumulation = True
        _by_torch(report, "torch.half, sums in FP16 allowed", _torch_chain)
        torch.backends.cuda.matmul.allow_fp16_accumulation = False
    for name in (TENSORRT, TENSORRT_RTX):
        with report.piece(name), tempfile.TemporaryDirectory() as folder:
            compiler = load_compiler(name)
            _needs_this_gpu(compiler)
            for case, (x, nodes, forms) in CASES.items():
                with report.piece(f"{name}: {case}"):
                    y = _by_engine(compiler, Path(folder), x, nodes)
                    _tell(report, f"{name}: {case}", y, forms)


def _needs_this_gpu(compiler: Compiler) -> None:
    own = environment.gpus()[0].compute_capability
    if compiler.is_portable and own not in known_compute_capabilities(compiler):
        raise CannotRunError(f"{compiler.label} does not compile for compute capability {own}")


def _tell(report: Report, name: str, got: float, forms: dict[str, float]) -> None:
    """The form whose value was computed; none is a finding, not a failure."""
    close = [
        form
        for form, value in forms.items()
        if np.isclose(got, value, rtol=0.02, atol=1e-7, equal_nan=True)
        or (np.isnan(value) and not np.isfinite(got))
    ]
    report.figure(name, got=str(got), form=close[0] if close else "neither")


def _torch_chain(nodes: list[tuple[str, float | None]]) -> Callable[[Any], Any]:
    import torch

    def chain(x: Any) -> Any:
        for kind, constant in nodes:
            if kind == "MatMul":
                x = x @ torch.ones(x.shape[1], 8, device=x.device, dtype=x.dtype)
            elif kind == "ReduceMean":
                x = x.mean(dim=1, keepdim=True)
            else:
                other = torch.full((1,), constant or 0, device=x.device, dtype=x.dtype)
                function: Any = getattr(torch, kind.lower())
                x = function(x, other)
        return x

    return chain


def _by_torch(report: Report, name: str, make: Callable[[Any], Callable[[Any], Any]]) -> None:
    import torch

    for case, (x, nodes, forms) in CASES.items():
        with report.piece(f"{name}: {case}"), torch.inference_mode():
            y = make(nodes)(torch.from_numpy(x).cuda())
            _tell(report, f"{name}: {case}", float(y.flatten()[0]), forms)


def _by_engine(
    compiler: Compiler, folder: Path, x: NDArray[np.float16], nodes: list[tuple[str, float | None]]
) -> float:
    onnx = _onnx(folder / "case.onnx", x.shape[1], nodes)
    plan = folder / "case.engine"
    plan.write_bytes(compile_onnx(compiler, onnx, CompileOptions(PROFILE)).plan)
    with TrtRunner(plan, compiler, PROFILE) as runner:
        return float(runner.run({"x": x})["y"].flatten()[0])


def _onnx(path: Path, width: int, nodes: list[tuple[str, float | None]]) -> Path:
    made, constants, source = [], [], "x"
    for index, (kind, constant) in enumerate(nodes):
        target = "y" if index == len(nodes) - 1 else f"v{index}"
        inputs = [source]
        if constant is not None:
            shape = (width, 8) if kind == "MatMul" else (1,)
            array = np.full(shape, constant, np.float16)
            constants.append(numpy_helper.from_array(array, f"c{index}"))
            inputs.append(f"c{index}")
        if kind == "ReduceMean":
            constants.append(numpy_helper.from_array(np.array([1], np.int64), "axes"))
            inputs.append("axes")
        made.append(helper.make_node(kind, inputs, [target]))
        source = target
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape)
        for name, shape in (("x", ("batch", width)), ("y", None))
    )
    graph = helper.make_graph(made, "case", [x], [y], constants)
    opset = [helper.make_opsetid("", 18)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path
