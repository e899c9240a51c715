"""A graph of prepared images made into one of pixels as bytes: cast, layout, order, normalisation.

The normalisation is computed in FP32, whatever the rest computes in: of a pixel x it is
(x - 255 mean) / (255 std), whose two constants are rounded once. Against exact arithmetic that is
at most 2.5e-7 off for ImageNet's, CIFAR's and [-1, 1] of a network, x / 255 first 3.7e-7, and one
Mul and Add 3.7e-7; in FP16 arithmetic it would be 2e-3 to 4e-3, ten times what FP16 rounds the
result by. It is not folded into the first convolution: with zero padding a mean has no such form,
and a scale for each input channel would change the ranges of INT8 and FP8 weights. The compiler
makes one kernel of these operators, with the cast of FP16 or the Q of INT8 behind them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from deploykit.core.sizes import CHANNELS_FIRST, CHANNELS_LAST
from deploykit.graph.editing import Names, add_constant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.core.specs import Preprocessing

_RANK = 4
_PREPARED = "_prepared"


def take_bytes(model: ir.Model, preprocessing: Preprocessing) -> ir.Model:
    """A copy of ``model`` whose first input has ``preprocessing.pixels``; weights are shared.

    The input keeps its name. ``model`` takes images, float32 (N, C, H, W), as its first input.

    Raises:
        ValueError: ``preprocessing`` has no ``pixels``.
    """
    pixels = preprocessing.pixels
    if pixels is None:
        raise ValueError("the preprocessing is that of a graph that takes prepared images")
    model = model.clone()
    front = _Front(model.graph)
    given = front.begin(pixels.layout)
    # TensorRT takes uint8 in a Cast alone: everything else comes behind it.
    value = front.add("Cast", [given], to=int(ir.DataType.FLOAT))
    if pixels.layout == "nhwc":
        value = front.add("Transpose", [value], perm=CHANNELS_FIRST)
    if pixels.order != preprocessing.channel_order:
        value = front.add("Gather", [value, front.constant("order", [2, 1, 0], np.int64)], axis=1)
    mean, std = (np.array(each, np.float64) for each in (preprocessing.mean, preprocessing.std))
    if mean.any():
        value = front.add("Sub", [value, front.per_channel("mean", 255 * mean)])
    front.end("Mul", [value, front.per_channel("scale", 1 / (255 * std))])
    return model


def is_of_bytes(model: ir.Model) -> bool:
    """Whether `take_bytes` made ``model``, by the names that it gives."""
    made = {str(value.name) for node in model.graph for value in node.outputs}
    return any(
        value.dtype == ir.DataType.UINT8 and f"{value.name}{_PREPARED}" in made
        for value in model.graph.inputs
    )


class _Front:
    """Nodes that are put before all others of a graph, one behind the other."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._prepared = graph.inputs[0]
        self._name = str(self._prepared.name)
        self._values = Names(_values_of(graph))
        self._nodes = Names(str(node.name) for node in graph)
        self._first = graph[0]

    def begin(self, layout: str) -> ir.Value:
        """Put an input of bytes in the place of the first one, which becomes a value."""
        prepared, graph = self._prepared, self._graph
        shape = list(prepared.shape or ())
        if layout == "nhwc" and len(shape) == _RANK:
            shape = [shape[axis] for axis in CHANNELS_LAST]
        graph.inputs.pop(0)
        prepared.name = self._values.fresh(f"{self._name}{_PREPARED}")
        given = ir.Value(
            name=self._name, type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape(shape)
        )
        graph.inputs.insert(0, given)
        return given

    def constant(self, name: str, data: Any, dtype: Any) -> ir.Value:
        """An initializer, called after the input."""
        return add_constant(
            self._graph, self._values.fresh(f"{self._name}_{name}"), np.array(data, dtype)
        )

    def per_channel(self, name: str, data: Any) -> ir.Value:
        """One FP32 number for each channel of (N, C, H, W)."""
        return self.constant(name, np.reshape(data, (1, -1, 1, 1)), np.float32)

    def add(self, op_type: str, inputs: Sequence[ir.Value], **attributes: Any) -> ir.Value:
        """One more node, and what it gives."""
        name = self._values.fresh(f"{self._name}_{op_type.lower()}")
        result = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT))
        self._put(op_type, inputs, result, attributes)
        return result

    def end(self, op_type: str, inputs: Sequence[ir.Value]) -> None:
        """The last node, which gives what the graph took before."""
        self._put(op_type, inputs, self._prepared, {})

    def _put(
        self, op_type: str, inputs: Sequence[ir.Value], result: ir.Value, attributes: Any
    ) -> None:
        made = ir.convenience.convert_attributes(attributes)
        name = self._nodes.fresh(f"{self._name}/{op_type}")
        node = ir.Node("", op_type, inputs, made, outputs=[result], name=name)
        self._graph.insert_before(self._first, node)


def _values_of(graph: ir.Graph) -> set[str]:
    found = {str(value.name) for value in graph.inputs} | set(graph.initializers)
    return found | {str(value.name) for node in graph for value in node.outputs}
