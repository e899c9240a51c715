"""Channel equalisation: a value and the linear layers that read it, made easy to quantize.

A layer that reads x may read x' = (x - shift) / scale instead, with one number of each for every
channel, if its weight's rows are multiplied by ``scale`` and its bias gains ``shift`` times the
weight. The result is the same, but x' fits a single INT8 scale where the channels of x differ, or
lie to one side of zero as those of a GELU do.

A LayerNorm takes both numbers up in its gain and bias, and what an attention averages the layer
that computes its values. Behind another operator a Mul and an Add compute x', which a compiler
fuses with it and with the rounding that follows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx_ir as ir

from deploykit.graph.activations import CHANGED
from deploykit.graph.editing import Names, add_constant, drop_unused_initializers
from deploykit.graph.qdq.attention_places import LinearSource, bias_place, find_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from deploykit.graph.qdq.plan import QdqPlan, QuantizedWeight

    Floats = NDArray[np.float32]


NORMS: Final = frozenset({"LayerNormalization", "RMSNormalization"})

POINTWISE: Final = frozenset(
    {"Elu", "Gelu", "HardSwish", "LeakyRelu", "Mish", "Mul", "Relu", "Selu", "Swish"}
)
"""Operators whose kernel computes one number after the other: two more cost it nothing."""

_TOKENS: Final = 3
"""Axes from which a value holds several rows for an image, so that few images say enough."""

_MATRIX: Final = 2


@dataclass(frozen=True)
class LinearGroup:
    """A value (..., K) and the linear layers of a plan that read it; weights as (K, N).

    With ``source`` it is an attention's average of values, which that layer computes. ``folds``
    says that an equalised value costs nothing, as other constants compute it.
    """

    value: str
    layers: tuple[str, ...]
    weights: tuple[Floats, ...]
    source: LinearSource | None = None
    folds: bool = False


@dataclass(frozen=True)
class Scaling:
    """What is taken off each channel of a value, and what it is divided by; both (K,)."""

    shift: Floats
    scale: Floats


def linear_groups(model: ir.Model, plan: QdqPlan) -> tuple[LinearGroup, ...]:
    """Those of `token_groups` that a normalisation, a pointwise operator or an attention computes.

    The channels of an attention's source are not known yet.
    """
    makers = {
        str(node.outputs[0].name): node.op_type in NORMS
        for node in model.graph
        if node.op_type in NORMS | POINTWISE and not node.domain
    }
    groups = token_groups(model, plan)
    sources = {name: source for name, source in find_values(model).items() if name not in makers}
    alone = {str(group.value) for group in groups if _is_read_by(model, group)}
    return tuple(
        replace(group, source=sources.get(group.value), folds=makers.get(group.value, True))
        for group in groups
        if group.value in makers or (group.value in sources and group.value in alone)
    )


def _is_read_by(model: ir.Model, group: LinearGroup) -> bool:
    """Whether nothing but the layers of a group reads its value."""
    value = next(v for node in model.graph for v in node.outputs if v.name == group.value)
    return len(value.uses()) == len(group.layers) and not value.is_graph_output()


def token_groups(model: ir.Model, plan: QdqPlan) -> tuple[LinearGroup, ...]:
    """Values of tokens with the layers of the plan that read them, each with a weight of its own.

    All layers of the plan that read one must be linear in it, as they share its rounded form.
    """
    weights = {weight.node: weight for weight in plan.weights}
    found = []
    for value in (output for node in model.graph for output in node.outputs):
        readers = [use.node for use in value.uses() if use.node.name in weights]
        known = plan.activations.get(str(value.name), ())
        if not readers or len(known) != len(readers) or len(plan.group_of(str(value.name))) > 1:
            continue
        tables = [_weight_of(each, value, weights[str(each.name)]) for each in readers]
        arrays = tuple(table for table in tables if table is not None)
        if len(arrays) == len(readers):
            names = tuple(str(each.name) for each in readers)
            found.append(LinearGroup(str(value.name), names, arrays))
    return tuple(found)


def _weight_of(node: ir.Node, value: ir.Value, weight: QuantizedWeight) -> Floats | None:
    """The weight of a linear layer as (K, N); ``None`` where the layer is something else."""
    constant = None if node.inputs[1] is None else node.inputs[1].const_value
    is_plain = node.op_type == "MatMul" or (
        node.op_type == "Gemm"
        and node.attributes.get_float("alpha", 1.0) == 1.0
        and node.attributes.get_float("beta", 1.0) == 1.0
    )
    if not is_plain or constant is None or node.inputs[0] is not value or weight.index != 1:
        return None
    if value.shape is None or len(value.shape) < _TOKENS or len(constant.shape) != _MATRIX:
        return None
    if len(node.inputs[1].uses()) > 1:  # type: ignore[union-attr]  # it is constant
        return None
    data: Floats = constant.numpy()
    return data.T if node.attributes.get_int("transB", 0) else data


def equalise(
    model: ir.Model,
    scalings: Sequence[tuple[LinearGroup, Scaling]],
    shifts: Sequence[tuple[LinearSource, Floats]] = (),
) -> tuple[ir.Model, dict[str, str]]:
    """A copy of an FP32 graph in which the layers of each group read its equalised value.

    ``shifts`` (N,) are taken off what layers compute keys, which changes no probability.

    Returns also the name of each changed value, by the one that it takes the place of. Their names
    begin with `activations.CHANGED`: they hold other numbers than any value of the graph before.
    """
    result = model.clone()
    writer = _Writer(result)
    for group, scaling in scalings:
        writer.equalise(group, scaling)
    for source, shift in shifts:
        writer.fold_into(source, Scaling(shift, np.ones_like(shift)))
        writer.rename(source.path)
    drop_unused_initializers(result.graph)
    return result, writer.changed


class _Writer:
    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._values = ir.convenience.create_value_mapping(model.graph)
        self._nodes = {str(node.name): node for node in model.graph}
        self._value_names = Names(self._values)
        self._node_names = Names(self._nodes)
        self.changed: dict[str, str] = {}

    def equalise(self, group: LinearGroup, scaling: Scaling) -> None:
        """Let the layers of a group read its equalised value."""
        value = self._values[group.value]
        readers = [self._nodes[layer] for layer in group.layers]
        if group.source is not None:
            self.fold_into(group.source, scaling)
            self.rename(group.source.path)
            for node in readers:
                self._follow(node, value, scaling)
            return
        producer = value.producer()
        assert producer is not None  # noqa: S101 - a group's value is computed by a node
        whole = len(readers) == len(value.uses()) and not value.is_graph_output()
        if producer.op_type in NORMS and whole and self._fold(producer, scaling):
            self.rename([group.value])
            # Another node than that of the graph before, by which values are compared.
            producer.name = self._node_names.fresh(f"{producer.name}/equalised")
        else:
            value = self._insert(value, scaling)
            self.changed[group.value] = str(value.name)
        for node in readers:
            self._follow(node, value, scaling)

    def fold_into(self, source: LinearSource, scaling: Scaling) -> None:
        """Let a linear layer compute equalised channels."""
        layer, adding = self._nodes[source.node], self._nodes[source.bias]
        place = bias_place(adding)
        bias = adding.inputs[place].const_value.numpy()  # type: ignore[union-attr]  # as it was found
        channels = list(source.channels) or list(range(len(bias)))
        scale, shift = np.ones_like(bias), np.zeros_like(bias)
        scale[channels], shift[channels] = scaling.scale, scaling.shift
        weight = layer.inputs[1].const_value.numpy()  # type: ignore[union-attr]  # likewise
        is_turned = bool(layer.attributes.get_int("transB", 0))
        self._set(layer, 1, weight / (scale[:, None] if is_turned else scale))
        self._set(adding, place, (bias - shift) / scale)

    def rename(self, names: Sequence[str]) -> None:
        """Say that these values hold other numbers than before."""
        for name in names:
            value = self._values[name]
            if str(value.name) == name:
                value.name = self.changed[name] = self._fresh(name)

    def _fold(self, norm: ir.Node, scaling: Scaling) -> bool:
        """Let a normalisation compute the equalised value; false where its gain is computed."""
        constants = [None if each is None else each.const_value for each in norm.inputs[1:]]
        shifts = bool(scaling.shift.any())
        if None in constants or (shifts and norm.op_type != "LayerNormalization"):
            return False
        gain, *bias = (each.numpy() for each in constants if each is not None)
        if gain.shape != scaling.scale.shape:
            return False
        self._set(norm, 1, gain / scaling.scale)
        moved = (bias[0] if bias else np.float32(0)) - scaling.shift
        if bias or shifts:
            self._set(norm, 2, moved / scaling.scale)
        return True

    def _insert(self, value: ir.Value, scaling: Scaling) -> ir.Value:
        behind = value.producer()
        steps: list[tuple[str, NDArray[Any]]] = [("Mul", 1 / scaling.scale)]
        if scaling.shift.any():
            steps.append(("Add", -scaling.shift / scaling.scale))
        base = str(value.name)
        for op_type, numbers in steps:
            constant = self._constant(f"{base}_{op_type}", numbers)
            new = ir.Value(name=self._fresh(base), type=value.type, shape=value.shape)
            name = self._node_names.fresh(f"{base}/equalised/{op_type}")
            node = ir.Node("", op_type, [value, constant], outputs=[new], name=name)
            self._graph.insert_after(behind, node)  # type: ignore[arg-type]  # as in `equalise`
            value, behind = new, node
        return value

    def _follow(self, node: ir.Node, value: ir.Value, scaling: Scaling) -> None:
        """Let a layer read the equalised value, and compute what it did."""
        weight = node.inputs[1].const_value.numpy()  # type: ignore[union-attr]  # as in `linear_groups`
        is_turned = bool(node.attributes.get_int("transB", 0))
        rows = weight.T if is_turned else weight
        moved = (scaling.shift.astype(np.float64) @ rows).astype(np.float32)
        scaled = rows * scaling.scale[:, None]
        self._set(node, 1, np.ascontiguousarray(scaled.T if is_turned else scaled))
        node.replace_input_with(0, value)
        if not scaling.shift.any():
            return
        if node.op_type == "Gemm":
            bias = node.inputs[2] if len(node.inputs) > _MATRIX else None
            if bias is None or bias.const_value is not None:
                before = 0 if bias is None else bias.const_value.numpy()  # type: ignore[union-attr]
                self._set(node, 2, before + moved)
                return
        self._move(node, moved)

    def _move(self, node: ir.Node, moved: Floats) -> None:
        """Add ``moved`` to what a layer computes: to the bias behind it where there is one."""
        old = node.outputs[0]
        uses = list(old.uses())
        bias = uses[0].node if len(uses) == 1 and not old.is_graph_output() else None
        place = 1 - uses[0].idx if bias is not None else 0
        given = None
        if bias is not None and bias.op_type == "Add":
            constant = bias.inputs[place]
            given = None if constant is None else constant.const_value
        if bias is not None and given is not None and given.shape == moved.shape:
            self._set(bias, place, given.numpy() + moved)
            old.name = self._fresh(str(old.name))
            return
        new = ir.Value(name=old.name, type=old.type, shape=old.shape)
        constant = self._constant(f"{old.name}_shift", moved)
        name = self._node_names.fresh(f"{node.name}/equalised/Add")
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        adding = ir.Node("", "Add", [old, constant], outputs=[new], name=name)
        old.name = self._fresh(str(old.name))
        self._graph.insert_after(node, adding)

    def _set(self, node: ir.Node, index: int, data: NDArray[np.generic]) -> None:
        if len(node.inputs) <= index:
            node.resize_inputs(index + 1)
        node.replace_input_with(index, self._constant(f"{node.name}_input_{index}", data))

    def _constant(self, base: str, data: NDArray[np.generic]) -> ir.Value:
        name = self._value_names.fresh(f"{base}_equalised")
        return add_constant(self._graph, name, data.astype(np.float32))

    def _fresh(self, base: str) -> str:
        return self._value_names.fresh(f"{CHANGED}{base.removeprefix(CHANGED)}")
