"""Graphs for trials of INT8 and FP8, corrected biases and weights."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import onnx_ir as ir

from deploykit.graph.editing import Names, add_constant, drop_unused_initializers
from deploykit.graph.external_weights import split_own
from deploykit.graph.qdq.insertion import insert_qdq
from deploykit.graph.qdq.plan import Reader

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.core.specs import SplitGraph
    from deploykit.graph.qdq.plan import QdqPlan, QuantizedWeight

    Floats = NDArray[np.float32]


_NOTHING: Final[Mapping[str, Floats]] = MappingProxyType({})


def correct_biases(model: ir.Model, shifts: Mapping[str, Floats]) -> tuple[ir.Model, int]:
    """A copy of an FP32 graph with ``shifts`` (C,) added to the biases of the named layers.

    A layer without a bias gets one. Returns the number of layers that could be corrected: a Gemm
    that scales its bias, or whose bias is not a row of (C,), is left alone.
    """
    result = model.clone()
    names = Names(ir.convenience.create_value_mapping(result.graph))
    corrected = 0
    for node in result.graph:
        shift = shifts.get(str(node.name))
        bias = None if shift is None else bias_of(node, len(shift))
        if shift is None or bias is None:
            continue
        fresh = names.fresh(f"{node.name}_corrected_bias")
        value = add_constant(result.graph, fresh, (bias + shift).astype(np.float32))
        _set_bias(node, value)
        corrected += 1
    drop_unused_initializers(result.graph)
    return result, corrected


def set_weights(model: ir.Model, weights: Mapping[str, Floats]) -> ir.Model:
    """A copy of an FP32 graph with other ``weights`` in the named layers.

    Those of linear layers are (K, N), those of convolutions as they are stored.
    """
    result = model.clone()
    for node in result.graph:
        data = weights.get(str(node.name))
        value = node.inputs[1] if data is not None else None
        if data is None or value is None:
            continue
        stored = data.T if node.attributes.get_int("transB", 0) else data
        value.const_value = ir.Tensor(np.ascontiguousarray(stored), name=value.name)
    return result


def bias_of(node: ir.Node, channels: int) -> Floats | None:
    """Bias (C,) of a layer, zeros where it has none; ``None`` where it cannot be corrected."""
    given = node.inputs[2] if len(node.inputs) > 2 else None  # noqa: PLR2004
    if given is None:
        return np.zeros(channels, np.float32)
    if given.const_value is None or node.attributes.get_float("beta", 1.0) != 1.0:
        return None
    bias: Floats = given.const_value.numpy()
    return bias if bias.shape == (channels,) else None


def _set_bias(node: ir.Node, value: ir.Value) -> None:
    if len(node.inputs) < 3:  # noqa: PLR2004
        node.resize_inputs(3)
    node.replace_input_with(2, value)


def trial_graph(
    model: ir.Model,
    plan: QdqPlan,
    amax: Mapping[str, float],
    shifts: Mapping[str, NDArray[np.float32]],
    weights: Mapping[str, NDArray[np.float32]] = _NOTHING,
) -> SplitGraph:
    """The graph for a runner; ``shifts`` (C,) are added to the biases of the named layers.

    ``weights`` take the place of those of the named layers, see `set_weights`.

    Raises:
        DataError: ``amax`` lacks a value of the plan, or is not a number from 0 up.
        ModelFileError: it is too large without its weights.
    """
    corrected, _ = correct_biases(model, shifts) if shifts else (model, 0)
    corrected = set_weights(corrected, weights) if weights else corrected
    return split_own(insert_qdq(corrected, plan, amax), f"a candidate for {plan.format.name}")


SWITCHES: Final = "exact_layers"
"""Name of the extra input: bool (L,), True for each layer of the plan that runs in FP32."""


LAYERS_PER_PART: Final = 8
"""Least layers that `switchable_parts` has in a part: each part is a session of its own to open."""


class SwitchablePart(NamedTuple):
    """The rest of an INT8 graph, from some value on, whose first layers can be switched.

    ``layers`` are those, in the order of the input `SWITCHES`; the other input is what the rest is
    computed from. ``carried`` is the output that the next part takes as its own, ``None`` of the
    last.
    """

    graph: SplitGraph
    layers: tuple[str, ...]
    carried: str | None


def switchable_parts(
    model: ir.Model, plan: QdqPlan, amax: Mapping[str, float]
) -> Iterator[SwitchablePart]:
    """The INT8 form of an FP32 graph, for a runner, from several places on.

    A layer that is switched reads its input and its weight as they were before; the others, and
    residual additions, read what they read in INT8. What lies before a layer computes the same
    whether it is switched or not: so the graph is cut where a single value goes on, and each part
    begins there. Together the parts have the layers of ``plan.weights``, in the order of the graph.

    Raises:
        DataError: ``amax`` lacks a value of the plan, or is not a number from 0 up.
        ModelFileError: it is too large without its weights.
    """
    result = insert_qdq(model, plan, amax)
    start: str | None = None
    for end, weights in _parts(model, plan.weights):
        part = _from(result, start, end)
        builder = _LayerSwitches(model, part, SWITCHES, ir.DataType.BOOL, len(weights))
        for index, weight in enumerate(weights):
            builder.add_switch(index, weight)
        layers = tuple(weight.node for weight in weights)
        yield SwitchablePart(split_own(part, "the graph with its switches"), layers, end)
        start = end


def _parts(
    model: ir.Model, weights: Sequence[QuantizedWeight]
) -> list[tuple[str | None, list[QuantizedWeight]]]:
    """The layers of each part, and the value that it ends with."""
    by_node = {weight.node: weight for weight in weights}
    ends = cuts(model)
    parts: list[tuple[str | None, list[QuantizedWeight]]] = []
    current: list[QuantizedWeight] = []
    waiting = len(weights)
    for node in model.graph:
        if str(node.name) in by_node:
            current.append(by_node[str(node.name)])
            waiting -= 1
        if node in ends and len(current) >= LAYERS_PER_PART and waiting >= LAYERS_PER_PART:
            parts.append((ends[node], current))
            current = []
    return [*parts, (None, current)]


def cuts(model: ir.Model) -> dict[ir.Node, str]:
    """Nodes behind which a single value goes on, and nothing else that was computed; its name."""
    graph = model.graph
    if sum(not value.is_initializer() for value in graph.inputs) > 1:
        return {}  # what a runner adds beside images goes with the images
    last = {value: node for node in graph for value in node.inputs if value is not None}
    alive = {value for value in graph.inputs if value in last}
    found = {}
    for node in graph:
        alive |= {value for value in node.outputs if value in last or value.is_graph_output()}
        alive -= {
            value
            for value in node.inputs
            if value is not None and last[value] is node and not value.is_graph_output()
        }
        value = next(iter(alive)) if len(alive) == 1 else None
        is_float = value is not None and value.dtype == ir.DataType.FLOAT
        if value is not None and is_float and value.shape is not None and value in last:
            found[node] = str(value.name)
    return found


def _from(model: ir.Model, start: str | None, end: str | None) -> ir.Model:
    """A copy of what follows from the value ``start``, with ``end`` as one more output."""
    values = ir.convenience.create_value_mapping(model.graph)
    inputs = list(model.graph.inputs) if start is None else [values[start]]
    outputs = [*model.graph.outputs, *([] if end is None else [values[end]])]
    graph = ir.convenience.extract(model.graph, inputs, outputs)
    if start is not None:
        rank = len(graph.inputs[0].shape or ())
        graph.inputs[0].shape = ir.Shape([None] * rank)
    return ir.Model(graph, ir_version=model.ir_version)


class SwitchBuilder:
    """Adds an input with ``count`` switches to a graph of eight bits, which choose operands.

    ``source`` is the FP32 graph that it was made from.
    """

    def __init__(
        self, source: ir.Model, result: ir.Model, name: str, dtype: ir.DataType, count: int
    ) -> None:
        self.source = {str(node.name): node for node in source.graph}
        self.graph = result.graph
        self.nodes = {str(node.name): node for node in result.graph}
        self._values = ir.convenience.create_value_mapping(result.graph)
        self.value_names = Names(self._values)
        self._node_names = Names(self.nodes)
        self.switches = ir.Value(
            name=self.value_names.fresh(name), type=ir.TensorType(dtype), shape=ir.Shape([count])
        )
        result.graph.inputs.append(self.switches)

    def either(
        self, chosen: ir.Value, then: ir.Value | None, other: ir.Value | None, before: ir.Node
    ) -> ir.Value:
        """``then`` where ``chosen`` is true, else ``other``.

        An ``If`` copies the one that is chosen. onnxruntime's ``Where`` reads both, in one thread,
        and took longer than all convolutions of a network together.
        """
        branches = [
            ir.AttrGraph(key, self._branch(value))
            for key, value in (("then_branch", then), ("else_branch", other))
        ]
        return self.insert("If", [chosen], ir.DataType.FLOAT, before, branches)

    def _branch(self, value: ir.Value | None) -> ir.Graph:
        """A graph that gives a value of the graph around it."""
        name = self.value_names.fresh("branch_output")
        output = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT))
        copy = ir.Node("", "Identity", [value], outputs=[output], name=f"{name}/Identity")
        return ir.Graph([], [output], nodes=[copy], name=name)

    def exact(self, value: ir.Value | None) -> ir.Value:
        """The same value in the new graph; an FP32 weight, which it lacks, is added again."""
        known = self._values.get(str(value.name)) if value is not None else None
        if known is not None:
            return known
        constant = ir.convenience.get_const_tensor(value)  # type: ignore[arg-type]  # a weight of the plan is there and constant
        name = self.value_names.fresh(f"{value.name}_exact")  # type: ignore[union-attr]
        return add_constant(self.graph, name, constant.numpy())  # type: ignore[union-attr]

    def insert(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        dtype: ir.DataType,
        before: ir.Node,
        attributes: Iterable[ir.Attr] = (),
    ) -> ir.Value:
        """A new node of one result, which stands before another one."""
        name = self._node_names.fresh(f"switch/{op_type}")
        output = ir.Value(name=self.value_names.fresh(f"{name}_output"), type=ir.TensorType(dtype))
        node = ir.Node("", op_type, inputs, tuple(attributes), outputs=[output], name=name)
        self.graph.insert_before(before, node)
        return output


class _LayerSwitches(SwitchBuilder):
    """A switch for each layer of a plan."""

    def add_switch(self, index: int, weight: QuantizedWeight) -> None:
        """Let the layer read its FP32 or its INT8 operands, as switch ``index`` says."""
        node, original = self.nodes[weight.node], self.source[weight.node]
        place = add_constant(
            self.graph, self.value_names.fresh(f"layer_{index}"), np.asarray(index, np.int64)
        )
        chosen = self.insert("Gather", [self.switches, place], ir.DataType.BOOL, node)
        for position in (0, weight.index):
            exact, rounded = self.exact(original.inputs[position]), node.inputs[position]
            node.replace_input_with(position, self.either(chosen, exact, rounded, node))


BIASED_OPS = frozenset({"Conv", "ConvTranspose", "Gemm"})
"""Operators with a bias of their own, one number for each output channel."""


class Probe(NamedTuple):
    """A graph for a runner, with the meaning of its outputs.

    ``shifts`` gives for each layer the output with mean(exact - quantized) of each channel, shape
    (C,); ``powers`` for each activation the two outputs with its sum of squares and that of its
    rounding error, scalars.
    """

    graph: SplitGraph
    shifts: Mapping[str, str]
    powers: Mapping[str, tuple[str, str]]


def probe_errors(model: ir.Model, plan: QdqPlan, amax: Mapping[str, float]) -> Probe:
    """Build the probe for an FP32 graph, its plan and the ranges of its activations.

    Raises:
        DataError: ``amax`` lacks a value of the plan, or is not a number from 0 up.
        ModelFileError: it is too large without its weights.
    """
    doubled = model.clone()
    builder = _ProbeBuilder(doubled)
    shifts = {
        weight.node: builder.add_twin(weight.node)
        for weight in plan.weights
        if builder.nodes[weight.node].op_type in BIASED_OPS
    }
    powers = {tensor: builder.add_powers(tensor) for tensor in plan.activations}
    doubled.graph.outputs.clear()
    doubled.graph.outputs.extend(builder.outputs)
    twins = builder.twins
    probing = replace(
        plan,
        # The twins read INT8, and the second operand of each difference; the network stays FP32.
        activations={
            tensor: (*builder.inputs_of(tensor), Reader(builder.errors[tensor], 1))
            for tensor in plan.activations
        },
        weights=tuple(replace(w, node=twins[w.node]) for w in plan.weights if w.node in twins),
    )
    probed = insert_qdq(doubled, probing, amax)
    return Probe(split_own(probed, "the graph with its errors"), shifts, powers)


class _ProbeBuilder:
    """Adds twins and sums to one graph."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._values = ir.convenience.create_value_mapping(model.graph)
        self._node_names = Names(str(node.name) for node in model.graph)
        self._value_names = Names(self._values)
        self._readers: dict[str, list[Reader]] = {}
        self.nodes = {str(node.name): node for node in model.graph}
        self.twins: dict[str, str] = {}
        self.errors: dict[str, str] = {}
        self.outputs: list[ir.Value] = []

    def add_twin(self, name: str) -> str:
        """Add a second node with the same inputs; return the output with the mean difference."""
        node = self.nodes[name]
        twin = self._add(node, node.op_type, node.inputs, node.attributes.values())
        self.twins[name] = str(twin.name)
        data, weight, *_ = (value for value in node.inputs if value is not None)
        self._readers.setdefault(str(data.name), []).append(Reader(str(twin.name), 0))
        error = self._add(twin, "Sub", [node.outputs[0], twin.outputs[0]])
        # The output has as many dimensions as the weight, channels at 1.
        axes = np.array([axis for axis in range(len(weight.shape or ())) if axis != 1], np.int64)
        mean = self._add(
            error,
            "ReduceMean",
            [error.outputs[0], self._constant("axes", axes)],
            [ir.AttrInt64("keepdims", 0)],
        )
        return self._show(mean)

    def add_powers(self, tensor: str) -> tuple[str, str]:
        """Outputs with the sum of squares of an activation and of its rounding error."""
        value = self._values[tensor]
        behind = value.producer()
        signal = self._add(behind, "ReduceSumSquare", [value], [ir.AttrInt64("keepdims", 0)])
        error = self._add(signal, "Sub", [value, value])  # insertion makes the second one INT8
        noise = self._add(
            error, "ReduceSumSquare", [error.outputs[0]], [ir.AttrInt64("keepdims", 0)]
        )
        self.errors[tensor] = str(error.name)
        return self._show(signal), self._show(noise)

    def inputs_of(self, tensor: str) -> tuple[Reader, ...]:
        """The twins that read an activation."""
        return tuple(self._readers.get(tensor, ()))

    def _show(self, node: ir.Node) -> str:
        self.outputs.append(node.outputs[0])
        return str(node.outputs[0].name)

    def _add(
        self,
        behind: ir.Node | None,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Iterable[ir.Attr] = (),
    ) -> ir.Node:
        name = self._node_names.fresh(f"probe/{op_type}")
        result = ir.Value(
            name=self._value_names.fresh(f"{name}_output"), type=ir.TensorType(ir.DataType.FLOAT)
        )
        node = ir.Node("", op_type, inputs, tuple(attributes), outputs=[result], name=name)
        if behind is None:
            self._graph.insert_before(self._graph[0], node)
        else:
            self._graph.insert_after(behind, node)
        return node

    def _constant(self, name: str, data: NDArray[np.int64]) -> ir.Value:
        return add_constant(self._graph, self._value_names.fresh(f"probe_{name}"), data)
