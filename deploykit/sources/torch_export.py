"""PyTorch module to FP32 ONNX, in its inference form, by either of torch's two exporters."""

from __future__ import annotations

import io
import re
import tempfile
import traceback
import warnings
from contextlib import redirect_stderr
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from torch import Tensor, nn

from deploykit import graph
from deploykit.core.environment import require, silenced
from deploykit.core.errors import ControlFlowError, ExportError, typed_first_line
from deploykit.core.precision import Precision
from deploykit.core.specs import BATCH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import onnx_ir as ir

    from deploykit.core.specs import ModelSpec


_CLASSES: Final = frozenset(
    {
        ("timm.layers.std_conv", "ScaledStdConv2d"),
        ("timm.layers.std_conv", "ScaledStdConv2dSame"),
        ("timm.layers.std_conv", "StdConv2d"),
        ("timm.layers.std_conv", "StdConv2dSame"),
        ("transformers.models.bit.modeling_bit", "WeightStandardizedConv2d"),
    }
)
"""Home and name of each; a class derived from one may compute something else."""


class PaddedConv2d(nn.Conv2d):
    """A convolution behind a padding that depends on the size of the image."""

    pad: Callable[[Tensor], Tensor]

    def forward(self, images: Tensor) -> Tensor:
        """Maps (N, C', H', W') of ``images`` (N, C, H, W)."""
        return super().forward(self.pad(images))


class SamePad(nn.Module):
    """TensorFlow's padding "SAME", as timm computes it."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.sizes = layer.kernel_size, layer.stride, layer.dilation

    def forward(self, images: Tensor) -> Tensor:
        """``images`` (N, C, H, W) with zeros around them."""
        padded: Tensor = require("timm.layers").pad_same(images, *self.sizes)
        return padded


def has_standardised(network: nn.Module) -> bool:
    """Whether a convolution in ``network`` standardises its weights as it runs."""
    return any(True for _ in _standardised(network))


def standardise_once(network: nn.Module) -> None:
    """Replace such convolutions of ``network`` by plain ones that compute the same, in place."""
    for parent, name, layer in list(_standardised(network)):
        setattr(parent, name, _plain(layer))


def _standardised(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in network.modules():
        for name, child in parent.named_children():
            if (type(child).__module__, type(child).__name__) in _CLASSES:
                yield parent, name, child


def _plain(layer: Any) -> nn.Conv2d:
    pad = SamePad(layer) if getattr(layer, "same_pad", False) else getattr(layer, "pad", None)
    kind = nn.Conv2d if pad is None else PaddedConv2d
    plain = kind(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        bias=layer.bias is not None,
        device="meta",
    )
    plain.weight, plain.bias = nn.Parameter(_weight(layer)), layer.bias
    if pad is not None:
        plain.pad = pad
    return plain


@torch.no_grad()
def _weight(layer: Any) -> Tensor:
    """The weight (O, I, H, W) as the layer uses it; by the same call, so that the sum rounds alike.

    NFNet's gain for each filter is in it.
    """
    weight = layer.weight
    gain = (layer.gain * layer.scale).view(-1) if hasattr(layer, "gain") else None
    filters = weight.reshape(1, layer.out_channels, -1)
    batch_norm = nn.functional.batch_norm
    return batch_norm(
        filters, None, None, weight=gain, training=True, momentum=0.0, eps=layer.eps
    ).reshape_as(weight)


_METHODS: Final = ("fuse", "reparameterize", "switch_to_deploy")
"""What timm's ``reparameterize_model`` calls, where a module has it."""


@dataclass(frozen=True)
class InferenceForm:
    """A network in another form, and what its user must know of it."""

    module: nn.Module
    notes: tuple[str, ...]


def inference_form(module: nn.Module) -> InferenceForm | None:
    """A copy of ``module``, in evaluation mode, that computes the same with less.

    ``None`` where there is no other form. ``module`` and the caller's random state stay as they
    are. That the copy really computes the same is the caller's to check: fusing is timm's code,
    and another one for each family.

    Raises:
        ExportError: it cannot be copied, or timm cannot fuse what it says can be fused.
    """
    from deploykit.sources.logits import network_of

    standardises = has_standardised(module)
    if not standardises and not _can_be_fused(module):
        return None
    try:
        form = deepcopy(module)
        _fuse(form)
    except Exception as error:  # each family has its own way, and a user may have changed it
        name = type(network_of(module)).__name__
        raise ExportError(
            f"{name} cannot be fused for inference\n{typed_first_line(error)}"
        ) from error
    was_fused = form.state_dict().keys() != module.state_dict().keys()
    if not standardises and not was_fused:
        return None
    notes = (_note(module, form),) if was_fused else ()
    standardise_once(form)
    return InferenceForm(form.eval(), notes)


def _timm_roots(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules whose class is timm's: elsewhere ``fuse`` may mean anything."""
    if type(module).__module__.partition(".")[0] == "timm":
        yield module
        return
    for child in module.children():
        yield from _timm_roots(child)


def _can_be_fused(module: nn.Module) -> bool:
    parts = (part for root in _timm_roots(module) for part in root.modules() if part is not root)
    return any(hasattr(part, method) for part in parts for method in _METHODS)


def _fuse(module: nn.Module) -> None:
    """Let timm fuse its parts of ``module``, in place."""
    if not _can_be_fused(module):
        return
    utils = require("timm.utils")
    import torch

    # The convolutions that timm makes draw values first, which it then replaces.
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for root in _timm_roots(module):
            utils.reparameterize_model(root, inplace=True)


def _note(module: nn.Module, fused: nn.Module) -> str:
    before, after = (
        sum(parameter.numel() for parameter in network.parameters()) for network in (module, fused)
    )
    return f"timm fused it for inference: {before:,} parameters became {after:,}"


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
            # Before it raises, torch.export logs and prints graphs; the error says what matters.
            silenced("torch"),
            redirect_stderr(io.StringIO()),
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
    return graph.write_graph(graph.fuse_written_out(model), path, Precision.FP32)


def _trace_program(spec: ModelSpec, module: nn.Module, example: torch.Tensor) -> ir.Model:
    program = torch.onnx.export(
        module,
        (example,),
        dynamo=True,
        opset_version=graph.OPSET,
        input_names=[spec.inputs[0].name],
        output_names=[spec.outputs[0].name],
        dynamic_shapes=({0: torch.export.Dim(BATCH)},),
        optimize=False,
        verbose=False,
    )
    if program is None:
        raise ExportError("the exporter returned nothing")
    hidden = graph.hide_tiny(program.model)
    program.optimize()
    return graph.show_tiny(program.model, hidden)


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
