"""Where Q/DQ pairs go, as rules: from a graph and a policy to a plan.

The rules follow "Working with Quantized Types" of TensorRT's documentation and its "Q/DQ Placement
Recommendations", https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html.
``docs/qdq-placement.md`` gives the reasons. Here is what is quantized because of its operator;
what follows for its neighbours is in `residual` and `sharing`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from deploykit.errors import ModelFileError
from deploykit.onnx_graph.half import is_float
from deploykit.onnx_graph.qdq.plan import QdqPlan, QdqPolicy, QuantizedWeight, Reader
from deploykit.onnx_graph.qdq.residual import skip_operands
from deploykit.onnx_graph.qdq.sharing import share_scales

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import onnx_ir as ir

    from deploykit.onnx_graph.qdq.sharing import Demand

QUANTIZING_OPS: Final = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})

WEIGHTED_OPS: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that have INT8 kernels with a weight."""

CONVOLUTIONS: Final = frozenset({"Conv", "ConvTranspose"})

AVERAGING_OPS: Final = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean"})

MATRIX_RANK: Final = 2

_NO_POLICY: Final = QdqPolicy()


def plan_qdq(model: ir.Model, policy: QdqPolicy = _NO_POLICY) -> QdqPlan:
    """Decide for each value of a graph that `tidy` has seen whether it becomes INT8.

    Raises:
        ModelFileError: the graph is quantized already, or its nodes share names.
    """
    _require_plannable(model)
    kept: dict[str, str] = {}
    weights = _quantized_weights(model, policy, kept)
    demand: Demand = {}
    for node in model.graph:
        if node.name in weights:
            require(demand, node.inputs[0], Reader(str(node.name), 0))
    convolutions: set[ir.Node | None] = {
        node for node in model.graph if node.name in weights and node.op_type in CONVOLUTIONS
    }
    for add, index in skip_operands(model, convolutions, policy, kept):
        require(demand, add.inputs[index], Reader(str(add.name), index))
    groups = share_scales(model, demand, policy, kept)
    _explain_averages(model, kept)
    return QdqPlan(_in_graph_order(model, demand), tuple(weights.values()), groups, kept)


def require(demand: Demand, value: ir.Value | None, reader: Reader) -> None:
    """Note that ``reader`` is to see the INT8 form of ``value``."""
    if value is not None:
        demand.setdefault(value, []).append(reader)


def weight_of(node: ir.Node, policy: QdqPolicy, *, is_first: bool) -> QuantizedWeight | str:
    """Rules 1, 2 and 7: the weight of a node that is to be INT8, or why it is not.

    Rule 1: a scale for each output channel: axis 0 of a convolution's (M, C, ...) and of Gemm's
    (N, K) with ``transB=1``; axis 1 of ConvTranspose's (C, M, ...), Gemm's (K, N) and MatMul's.

    Rule 2: the inputs and the weight of a layer are quantized, not its output, so that nothing
    stands between it and the activation that the compiler fuses with it. The bias stays as it is.
    """
    weight = node.inputs[1]
    if weight is None or weight.const_value is None:
        constant = node.inputs[0] is not None and node.inputs[0].const_value is not None
        return "its constant is the left operand" if constant else "it has no constant weight"
    if not is_float(weight) or not is_float(node.inputs[0]):
        unknown = node.inputs[0] is not None and node.inputs[0].dtype is None
        return "the type of its input is not known" if unknown else "it does not compute in FP32"
    if node.attributes.get_int("transA", 0) != 0:
        return "its data is transposed"
    shape = weight.const_value.shape.numpy()
    axis = _output_axis(node, len(shape))
    if axis is None:
        return f"its weight has {len(shape)} dimensions"
    small = _too_small(node, shape, policy, is_first=is_first)
    return small or QuantizedWeight(str(node.name), 1, str(weight.name), axis)


def _output_axis(node: ir.Node, rank: int) -> int | None:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        # The weight holds the outputs of one group only: channels of other groups share scales.
        return 1
    if rank != MATRIX_RANK:
        return None
    return 0 if node.attributes.get_int("transB", 0) != 0 else 1


def _too_small(
    node: ir.Node, shape: Sequence[int], policy: QdqPolicy, *, is_first: bool
) -> str | None:
    """Rule 7: small layers cost more as INT8 than they gain, but the first reads whole images."""
    if node.op_type in {"Gemm", "MatMul"}:
        if min(shape) < policy.min_features:
            return f"its weight {shape} is too small to gain from INT8"
        return None
    groups = node.attributes.get_int("group", 1)
    first, second = shape[:2]
    channels = (second * groups, first) if node.op_type == "Conv" else (first, second * groups)
    if min(channels) < policy.min_channels and not (
        is_first and channels[1] >= policy.min_channels
    ):
        return f"{channels[0]} to {channels[1]} channels are too few to gain from INT8"
    return None


def _quantized_weights(
    model: ir.Model, policy: QdqPolicy, kept: dict[str, str]
) -> dict[str, QuantizedWeight]:
    nodes = [node for node in model.graph if node.op_type in WEIGHTED_OPS and not node.domain]
    first, last = _ends(model, nodes)
    found: dict[str, QuantizedWeight] = {}
    for node in nodes:
        name = str(node.name)
        reason = _unwanted(node, policy, is_first=node in first, is_last=node in last)
        weight = reason or weight_of(node, policy, is_first=node in first)
        if isinstance(weight, str):
            kept[name] = weight
        else:
            found[name] = weight
    return found


def _unwanted(node: ir.Node, policy: QdqPolicy, *, is_first: bool, is_last: bool) -> str | None:
    pattern = policy.pattern_of(str(node.name))
    if pattern is not None:
        return f"excluded by {pattern!r}"
    if node.name in policy.sensitive:
        return "by itself it made a large part of the logits' noise"
    if is_first and policy.first_layer == "keep":
        return "the first layer is kept"
    return "the last layer is kept" if is_last and policy.last_layer == "keep" else None


def _ends(model: ir.Model, layers: Iterable[ir.Node]) -> tuple[set[ir.Node], set[ir.Node]]:
    """The layers without another layer before them, and those without one behind them.

    A product of constants and activations that is no layer of its own (irregular pooling, say)
    counts as well; it neither has a weight to quantize nor does it change which layer is last.
    """
    weighted = {
        node for node in layers if weight_of(node, _ANY_SIZE, is_first=True).__class__ is not str
    }
    before: set[ir.Node] = set()  # nodes that a layer leads to
    for node in model.graph:
        makers = [value.producer() for value in node.inputs if value is not None]
        if any(maker in before or maker in weighted for maker in makers):
            before.add(node)
    behind: set[ir.Node] = set()  # nodes that lead to a layer
    for node in reversed(list(model.graph)):
        readers = [use.node for value in node.outputs for use in value.uses()]
        if any(reader in behind or reader in weighted for reader in readers):
            behind.add(node)
    return weighted - before, weighted - behind


_ANY_SIZE: Final = QdqPolicy(min_channels=0, min_features=0)


def _explain_averages(model: ir.Model, kept: dict[str, str]) -> None:
    """Rule 4: an average has more bits than its terms; it stays in high precision."""
    for node in model.graph:
        if node.op_type in AVERAGING_OPS and is_float(node.inputs[0]):
            kept[str(node.name)] = "averages keep the bits that INT8 would drop"


def _require_plannable(model: ir.Model) -> None:
    quantizing = next((n for n in model.graph.all_nodes() if n.op_type in QUANTIZING_OPS), None)
    if quantizing is not None:
        raise ModelFileError(
            f"the graph is already quantized: it has {quantizing.op_type} {quantizing.name!r}\n"
            "give the FP32 graph that it was made from"
        )
    names = [str(node.name) for node in model.graph]
    if len(set(names)) < len(names):
        raise ModelFileError("the graph's nodes have no names of their own; tidy it first")


def _in_graph_order(model: ir.Model, demand: Demand) -> Mapping[str, tuple[Reader, ...]]:
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    return {
        str(value.name): tuple(dict.fromkeys(demand[value])) for value in values if value in demand
    }
