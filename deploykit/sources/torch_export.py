"""PyTorch module to FP32 ONNX, by either of torch's two exporters."""

from __future__ import annotations

import io
import logging
import re
import tempfile
import traceback
import warnings
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import torch

from deploykit import graph
from deploykit.core.errors import ControlFlowError, ExportError, typed_first_line
from deploykit.core.precision import Precision
from deploykit.core.specs import BATCH

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir
    from torch import nn

    from deploykit.core.specs import ModelSpec

Exporter = Literal["torch.export", "torchscript"]

EXPORTERS: Final[tuple[Exporter, ...]] = ("torch.export", "torchscript")
"""In order of preference: the second is deprecated in torch, and takes what the first cannot."""

_DATA_DEPENDENT: Final = frozenset({"GuardOnDataDependentSymNode", "DataDependentOutputException"})
"""Names of torch's errors, which are of private modules."""

_NOT_THE_USERS: Final = (Path(torch.__file__).parent, Path(graph.__file__).parents[1])
"""Folders of torch and of deploykit."""

_BLAMED: Final = re.compile(r'File "([^"]+)", line (\d+), in (\S+)\n\s*(.+)')

EXAMPLE_BATCH: Final = 2
"""torch.export takes a batch of one for a constant."""


def export_module(
    spec: ModelSpec, module: nn.Module, path: Path, exporter: Exporter
) -> graph.LoadedGraph:
    """Write ``module`` to ``path`` as a folded FP32 graph whose batch is the only open dimension.

    Raises:
        ControlFlowError: the module decides by the values of its input.
        ExportError: the exporter refuses the module; its own words are in the message.
        ModelFileError: what it produced is not valid ONNX.
    """
    example = torch.zeros(spec.inputs[0].with_batch(EXAMPLE_BATCH))
    trace = _trace_program if exporter == "torch.export" else _trace_script
    try:
        with (
            warnings.catch_warnings(),
            _quiet_torch(),
            torch.inference_mode(mode=False),
            torch.no_grad(),
        ):
            # Both exporters warn of their own internals, which no user of deploykit can act on.
            warnings.simplefilter("ignore")
            model = trace(spec, module, example)
    except Exception as exc:  # exporters raise anything, from TypeError to torch._dynamo's own
        raise _refusal(exc, spec.name, exporter) from exc
    graph.tidy(model, rename=True)
    _require_open_batch(model, spec, exporter)
    return graph.write_graph(model, path, Precision.FP32)


def _trace_program(spec: ModelSpec, module: nn.Module, example: torch.Tensor) -> ir.Model:
    program = torch.onnx.export(
        module,
        (example,),
        dynamo=True,
        opset_version=graph.OPSET,
        input_names=[spec.inputs[0].name],
        output_names=[spec.outputs[0].name],
        dynamic_shapes=({0: torch.export.Dim(BATCH)},),
        verbose=False,
    )
    if program is None:
        raise ExportError("the exporter returned nothing")
    return program.model


def _trace_script(spec: ModelSpec, module: nn.Module, example: torch.Tensor) -> ir.Model:
    feed, result = spec.inputs[0].name, spec.outputs[0].name
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "traced.onnx"
        torch.onnx.export(
            module,
            (example,),
            str(path),
            dynamo=False,
            opset_version=graph.OPSET,
            input_names=[feed],
            output_names=[result],
            dynamic_axes={feed: {0: BATCH}, result: {0: BATCH}},
            do_constant_folding=True,
        )
        return graph.read_model(path)


def _require_open_batch(model: ir.Model, spec: ModelSpec, exporter: str) -> None:
    for value in (*model.graph.inputs, *model.graph.outputs):
        shape = value.shape
        if shape is None or not len(shape) or isinstance(shape[0], int):
            raise ExportError(
                f"{exporter} fixed the batch of {value.name!r} of {spec.name} to {shape}\n"
                "the definition must not depend on the size of its batch"
            )


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """Before it raises, torch.export logs and prints graphs; the error says what matters."""
    logger = logging.getLogger("torch")
    handlers, propagate = logger.handlers[:], logger.propagate
    logger.handlers[:], logger.propagate = [logging.NullHandler()], False
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.handlers[:], logger.propagate = handlers, propagate


def _refusal(exc: Exception, name: str, exporter: Exporter) -> ExportError:
    causes = list(_causes(exc))
    where = next((found for cause in causes if (found := _line_of(cause))), None)
    if any(type(cause).__name__ in _DATA_DEPENDENT for cause in causes):
        return ControlFlowError(
            f"{name} decides by the values of its input, which no graph can\n"
            f"{where or typed_first_line(causes[-1])}\n"
            "compute both ways and choose with torch.where, or decide outside the model"
        )
    reason = typed_first_line(causes[-1])
    return ExportError(
        f"{exporter} cannot export {name}\n{reason}" + (f"\n{where}" if where else "")
    )


def _causes(exc: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = exc
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _line_of(exc: BaseException) -> str | None:
    """The innermost line of the definition that the exception passed, or that torch blames."""
    passed = [
        (frame.filename, frame.lineno, frame.name, frame.line)
        for frame in traceback.extract_tb(exc.__traceback__)
        if not any(Path(frame.filename).is_relative_to(folder) for folder in _NOT_THE_USERS)
    ]
    blamed = passed or _BLAMED.findall(str(exc))
    if not blamed:
        return None
    file, line, function, code = blamed[-1]
    return f"line {line} of {Path(file).name}, in {function}: {code}"
