"""Which input and output of a graph come first: later stages take the first one."""

from __future__ import annotations

import onnx_ir as ir

from deploykit.onnx_graph.naming import Names


def put_image_first(model: ir.Model, name: str) -> None:
    """Make ``name`` the first of the inputs; the others keep their order. In place."""
    inputs = model.graph.inputs
    at = next(index for index, value in enumerate(inputs) if value.name == name)
    inputs.insert(0, inputs.pop(at))


def put_first(model: ir.Model, name: str, *, flatten: bool) -> None:
    """Make ``name`` the first of the outputs; the others keep their order. In place.

    With ``flatten`` its last dimensions, which are all 1, are dropped: (N, K, 1, 1) becomes (N, K).
    """
    outputs = model.graph.outputs
    at = next(index for index, value in enumerate(outputs) if value.name == name)
    chosen = outputs.pop(at)
    outputs.insert(0, _flattened(model.graph, chosen) if flatten else chosen)


def _flattened(graph: ir.Graph, value: ir.Value) -> ir.Value:
    name = str(value.name)
    taken = Names(str(v.name) for node in graph for v in (*node.inputs, *node.outputs) if v)
    value.name = taken.fresh(f"{name}_unflattened")
    shape = None if value.shape is None else ir.Shape(value.shape[:2])
    flat = ir.Value(name=name, type=value.type, shape=shape)
    node = ir.Node("", "Flatten", [value], outputs=[flat], name=f"{name}/Flatten")
    graph.append(node)
    return flat
