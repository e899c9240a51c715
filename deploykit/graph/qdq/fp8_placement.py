"""Placement of FP8 pairs: where its kernels are, which is not where INT8's are.

The limits are those of ModelOpt's quantization of ONNX graphs and of TensorRT's notes: tensor
cores take FP8 for deep sums only, and a kernel without them computes in FP16 anyway.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Final

from deploykit.graph.half import is_float
from deploykit.graph.infinities import carried_infinities
from deploykit.graph.qdq.placement import (
    ANY_SIZE,
    INFINITE_OPERAND,
    MOVING_OPS,
    calibration_tensors,
    demanded,
    explain_averages,
    in_graph_order,
    quantized_weights,
    require,
    require_plannable,
    weight_of,
)
from deploykit.graph.qdq.plan import FP8, TENSOR_CORE_DEPTH, QdqPlan, QdqPolicy, Reader

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence, Set

    import onnx_ir as ir

    from deploykit.graph.qdq.plan import QuantizedWeight


LARGEST_FILTER: Final = 32
"""Taps of a filter that FP8 convolutions have at the most: 5x5, not the 7x7 of a first layer."""

SOFTMAX_AMAX: Final = 1.0
"""Probabilities end at 1, whatever the images are."""

_SCORING_OPS: Final = frozenset(
    {"Add", "Cast", "Clip", "Div", "Identity", "Mul", "Sub", "Tanh", "Where"}
)
"""What stands between queries times keys and the softmax over them: scales, masks, a soft cap."""

_NO_POLICY: Final = QdqPolicy()


def plan_fp8(model: ir.Model, policy: QdqPolicy = _NO_POLICY) -> QdqPlan:
    """Decide which values of a graph that `tidy` has seen become FP8.

    Quantized are inputs and weights of convolutions and matrix products, both products of an
    attention, and skip operands of additions that end a quantized convolution. Each pair stands
    right before what reads it: nothing but these has FP8 kernels. The sizes in ``policy`` are
    INT8's and not looked at.

    Raises:
        ModelFileError: the graph is quantized already, or its nodes share names.
    """
    require_plannable(model)
    kept: dict[str, str] = {}
    masked = carried_infinities(model).keys()
    weights = quantized_weights(model, policy, kept, masked, weight_of_fp8)
    demand = demanded(model, weights, policy, kept, masked)
    products, known = [], {}
    for node in _attention_products(model, policy, kept, masked):
        products.append(str(node.name))
        for index, value in enumerate(node.inputs):
            require(demand, value, Reader(str(node.name), index))
            if value is not None and _is_probability(value):
                known[str(value.name)] = SOFTMAX_AMAX
    explain_averages(model, kept, FP8.name)
    return QdqPlan(
        in_graph_order(model, demand),
        tuple(weights.values()),
        kept=kept,
        products=tuple(products),
        known=known,
        format=FP8,
    )


def fp8_calibration_tensors(model: ir.Model) -> tuple[str, ...]:
    """The values that a plan of any policy may need calibrated, for INT8 too, in graph order.

    Raises:
        ModelFileError: the graph is quantized already, or its nodes share names.
    """
    found = {*calibration_tensors(model), *plan_fp8(model).tensors}
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    return tuple(str(value.name) for value in values if value.name in found)


def weight_of_fp8(node: ir.Node, policy: QdqPolicy, *, is_first: bool) -> QuantizedWeight | str:
    """The weight of a node that becomes FP8, a scale for each output channel, or why not."""
    sizeless = replace(policy, min_channels=ANY_SIZE.min_channels, min_features=0)
    found = weight_of(node, sizeless, is_first=is_first)
    if isinstance(found, str):
        return found
    if node.op_type == "ConvTranspose":
        return "transposed convolutions have no FP8 kernels"
    constant = node.inputs[found.index].const_value  # type: ignore[union-attr]  # it was found
    shape = constant.shape.numpy()  # type: ignore[union-attr]
    return _unfit(node, shape) or found


def _unfit(node: ir.Node, shape: Sequence[int]) -> str | None:
    """What a weight of this shape has against FP8."""
    if node.op_type != "Conv":
        if min(shape) < TENSOR_CORE_DEPTH:
            return f"its weight {tuple(shape)} is too small to gain from FP8"
        return None
    groups = node.attributes.get_int("group", 1)
    outputs, inputs, taps = shape[0] // groups, shape[1], prod(shape[2:])
    if min(inputs, outputs) <= TENSOR_CORE_DEPTH:
        each = " in each group" if groups > 1 else ""
        return f"{inputs} to {outputs} channels{each} are too few for FP8"
    if taps > LARGEST_FILTER:
        return f"a filter of {taps} taps is too large for FP8"
    return None


def _attention_products(
    model: ir.Model, policy: QdqPolicy, kept: dict[str, str], masked: Set[ir.Value]
) -> Iterator[ir.Node]:
    for node in model.graph:
        if node.domain or not _is_of_attention(node):
            continue
        reason = policy.reason_against(str(node.name)) or _unfit_product(node)
        if not masked.isdisjoint(node.inputs):
            reason = reason or INFINITE_OPERAND
        if reason is None:
            kept.pop(str(node.name), None)  # that it has no weight
            yield node
        else:
            kept[str(node.name)] = reason


def _is_of_attention(node: ir.Node) -> bool:
    """Whether a product is queries times keys, or probabilities times values."""
    left, right = (*node.inputs, None, None)[:2]
    if node.op_type != "MatMul" or left is None or right is None:
        return False
    if not all(is_float(value) and value.const_value is None for value in (left, right)):
        return False
    return _is_probability(left) or _scores(node.outputs[0])


def _is_probability(value: ir.Value) -> bool:
    """Whether a softmax made it, through operators that only move values."""
    node = value.producer()
    while node is not None and node.op_type in MOVING_OPS and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and node.op_type == "Softmax"


def _scores(value: ir.Value) -> bool:
    """Whether a softmax is taken of it, once it is scaled and masked."""
    waiting = [value]
    seen: set[ir.Value] = set()
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        for reader in (use.node for use in current.uses()):
            if reader.op_type == "Softmax":
                return True
            if reader.op_type in _SCORING_OPS or reader.op_type in MOVING_OPS:
                waiting.append(reader.outputs[0])
    return False


def _unfit_product(node: ir.Node) -> str | None:
    """Sizes that are not known yet are taken to be large enough: they are those of images."""
    shapes = [value.shape if value is not None else None for value in node.inputs]
    sizes = {
        "K": None if shapes[0] is None else shapes[0][-1],
        "N": None if shapes[1] is None else shapes[1][-1],
    }
    for letter, size in sizes.items():
        if isinstance(size, int) and size < TENSOR_CORE_DEPTH:
            return f"its {letter} of {size} is too small to gain from FP8"
    return None
