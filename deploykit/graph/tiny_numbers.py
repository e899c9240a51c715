"""Tiny numbers of a graph, kept from an optimiser that takes them for 0.

The rules of onnxscript match a 0 by any number of up to 1e-8 (``abs_tol`` of their constants), and
take away what is added as such: also the guard of a division, a root or a logarithm. torch's
exporter runs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import onnx_ir as ir

from deploykit.graph.editing import all_names
from deploykit.graph.folding import fold

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from onnx_ir import TensorProtocol

_TAKEN_FOR_ZERO: Final = 1.001e-8
"""With room for a 1e-8 that a type of fewer bits rounds up."""


def hide_tiny(model: ir.Model) -> dict[str, TensorProtocol]:
    """Make inputs of the tiny numbers of ``model``, in place; returns them by the inputs' names."""
    graph, names = model.graph, all_names(model.graph)
    hidden = {}
    for value in list(_constants(graph)):
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None or not _is_tiny(tensor):
            continue
        name = names.fresh("tiny")
        stand_in = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=value.shape)
        value.replace_all_uses_with(stand_in)
        graph.inputs.append(stand_in)
        hidden[name] = tensor
    return hidden


def show_tiny(model: ir.Model, hidden: Mapping[str, TensorProtocol]) -> ir.Model:
    """``model`` with the ``hidden`` numbers in it again, and folded with them."""
    if not hidden:
        return model
    graph = model.graph
    for value in [each for each in graph.inputs if each.name in hidden]:
        graph.inputs.remove(value)
        value.const_value = ir.tensor(hidden[str(value.name)].numpy(), name=value.name)
        graph.register_initializer(value)
    return fold(model)


def _constants(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.initializers.values()
    yield from (node.outputs[0] for node in graph if node.op_type == "Constant")


def _is_tiny(tensor: TensorProtocol) -> bool:
    is_number = tensor.size == 1 and tensor.dtype.is_floating_point()
    return is_number and 0 < abs(float(tensor.numpy().item())) <= _TAKEN_FOR_ZERO
