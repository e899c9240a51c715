"""Refusal of graphs that cannot be converted: each kind with its name and what to do."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import onnx_ir as ir

from deploykit.core.errors import ModelFileError
from deploykit.graph.half import HEAVY_OPS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

OLDEST: Final = 7
"""Oldest opset: onnxruntime, which every conversion is compared with, runs no older one."""

_SHOWN: Final = 3
"""Most names of a list in a message; the rest is given as a number."""

_CONTROL_FLOW: Final = frozenset({"If", "Loop", "Scan"})

_RANDOM: Final = frozenset(
    {
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
_QUANTIZED: Final = frozenset(
    {
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
    }
)
"""Operators of a quantized graph without Q/DQ pairs; one with ``QuantizeLinear`` is INT8."""


_LISTS: Final = {
    "Optional": "optional",
    "SequenceConstruct": "sequence",
    "SequenceEmpty": "sequence",
    "SequenceErase": "sequence",
    "SequenceInsert": "sequence",
    "SequenceMap": "sequence",
    "SplitToSequence": "sequence",
}
"""Operators whose result is no tensor, and its kind; not every inference gives it a type."""

_USUAL: Final = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE})
"""Types of initializers that are accepted, whatever the arithmetic runs in."""


def require_usable(model: ir.Model, name: str) -> None:
    """Refuse a graph that no later stage can convert; ``name`` is the file's.

    Raises:
        ModelFileError: an opset that nothing runs, custom or random operators, layers in training
            mode, weights of another type than FP32 or FP16, quantization without Q/DQ pairs.
    """
    _require_opset(model, name)
    _require_known_operators(model, name)
    _require_none(_RANDOM, "draws random numbers", "export it for inference", model, name)
    _require_inference(model, name)
    _require_none(
        _QUANTIZED - _dequantized(model),
        "is quantized already",
        "deploykit quantizes itself, from FP32: give it the FP32 model",
        model,
        name,
    )
    _require_float32(model, name)


def is_straight(model: ir.Model) -> bool:
    """True if there is no control flow, no function and no value but tensors."""
    branches = any(node.op_type in _CONTROL_FLOW for node in model.graph)
    return not branches and not model.functions and not _lists(model)


def require_plain(model: ir.Model, name: str) -> None:
    """Refuse what constant folding could not remove; ``name`` is the file's.

    Raises:
        ModelFileError: control flow, values that are not tensors of numbers, or custom operators
            that a function of the file's own was made of.
    """
    _require_known_operators(model, name)
    _require_none(
        _CONTROL_FLOW,
        "has control flow that depends on the images",
        "TensorRT compiles straight graphs: export the model by tracing it",
        model,
        name,
    )
    found = _lists(model)
    if found:
        raise ModelFileError(
            f"{name} computes what is not a tensor of numbers: {_listed(found)}\n"
            "TensorRT computes tensors only: leave out of the export what makes others"
        )


def _require_opset(model: ir.Model, name: str) -> None:
    opset = model.graph.opset_imports.get("", OLDEST)
    if opset < OLDEST:
        raise ModelFileError(
            f"{name} is of opset {opset}; onnxruntime, which it is compared with, "
            f"runs {OLDEST} and later\nexport the model again with a newer exporter"
        )


def _require_known_operators(model: ir.Model, name: str) -> None:
    own = {(domain, op_type) for domain, op_type, _ in model.functions}
    foreign = Counter(
        f"{node.domain}.{node.op_type}"
        for node in model.graph.all_nodes()
        if node.domain and (node.domain, node.op_type) not in own
    )
    if foreign:
        found = [f"{operator} ({count})" for operator, count in foreign.items()]
        optimised = any(operator.startswith("com.microsoft.") for operator in foreign)
        raise ModelFileError(
            f"{name} has custom operators: {_listed(found)}\n"
            "possible are those of ONNX's own standard, the domain ai.onnx\n"
            + (
                "com.microsoft is onnxruntime's: give the file that it was optimised from"
                if optimised
                else "export the model without them"
            )
        )


def _require_none(
    op_types: frozenset[str], what: str, advice: str, model: ir.Model, name: str
) -> None:
    found = [_called(node) for node in model.graph.all_nodes() if node.op_type in op_types]
    if found:
        raise ModelFileError(f"{name} {what}: {_listed(found)}\n{advice}")


def _require_inference(model: ir.Model, name: str) -> None:
    found = [_called(node) for node in model.graph.all_nodes() if _trains(node)]
    if found:
        raise ModelFileError(
            f"{name} was exported in training mode: {_listed(found)}\n"
            "its answers depend on the other images of the batch, or on chance\n"
            "export it for inference: model.eval()"
        )


def _trains(node: ir.Node) -> bool:
    mode = node.attributes.get("training_mode")
    if node.op_type == "BatchNormalization":
        # Before opset 14 the outputs said it, read or not: runtimes then normalise by the batch.
        beside = any(out.name for out in node.outputs[1:])
        return beside or bool(mode is not None and mode.as_int())
    if node.op_type == "Dropout" and len(node.inputs) > 2:  # noqa: PLR2004 - data, ratio, mode
        given = node.inputs[2]
        switch = None if given is None else ir.convenience.get_const_tensor(given)
        return switch is not None and bool(switch.numpy().any())
    return False


def _dequantized(model: ir.Model) -> frozenset[str]:
    """Operators that are allowed because the file has Q/DQ pairs."""
    has_pairs = any(node.op_type == "QuantizeLinear" for node in model.graph.all_nodes())
    return frozenset({"DequantizeLinear"}) if has_pairs else frozenset()


def _require_float32(model: ir.Model, name: str) -> None:
    found = [(tensor.dtype.numpy().name, tensor.name) for tensor in _other_weights(model)]
    if found:
        kind, what = found[0]
        raise ModelFileError(
            f"{name} has {kind} weights ({len(found)}, as {what!r})\n"
            "deploykit converts from float32: export the model with float32 weights"
        )


def _other_weights(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Weights in another floating-point type than FP32.

    FP16 among the initializers is left out: such a file is FP16 by its own account.
    """
    stored = [value for graph in model.graphs() for value in graph.initializers.values()]
    for value in stored:
        tensor = value.const_value
        if tensor is not None and tensor.dtype.is_floating_point() and tensor.dtype not in _USUAL:
            yield tensor
    # A few numbers in float64 are an exporter's arithmetic on sizes; a layer's weights are not.
    heavy = (node for node in model.graph.all_nodes() if node.op_type in HEAVY_OPS)
    read = dict.fromkeys(value for node in heavy for value in node.inputs if value is not None)
    for value in read:
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None or (tensor.dtype is ir.DataType.FLOAT16 and value.is_initializer()):
            continue
        if tensor.dtype in _USUAL and tensor.dtype is not ir.DataType.FLOAT:
            yield tensor


def _lists(model: ir.Model) -> list[str]:
    """Values that are computed and are no tensors of numbers, with their kind."""
    return [
        f"{value.name} ({kind})"
        for node in model.graph.all_nodes()
        for value in node.outputs
        if (kind := _LISTS.get(node.op_type) or _odd_kind(value))
    ]


def _odd_kind(value: ir.Value) -> str:
    """Kind of a value that is no tensor of numbers; empty for one, or where it is not known.

    A graph comes here after onnxruntime has run it, so that an unknown type does no harm.
    """
    if value.dtype is ir.DataType.STRING:
        return "strings"
    if value.type is None or isinstance(value.type, ir.TensorType):
        return ""
    return type(value.type).__name__.removesuffix("Type").lower()


def _called(node: ir.Node) -> str:
    return f"{node.op_type} {node.name!r}" if node.name else node.op_type


def _listed(found: Iterable[str]) -> str:
    each = list(dict.fromkeys(found))
    more = f" and {len(each) - _SHOWN} more" if len(each) > _SHOWN else ""
    return ", ".join(each[:_SHOWN]) + more
