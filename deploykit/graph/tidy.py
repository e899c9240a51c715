"""Brings an exporter's graph into the form that every later stage relies on."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from onnx_ir.passes.common import (
    LiftConstantsToInitializersPass,
    RemoveInitializersFromInputsPass,
    RemoveUnusedNodesPass,
    ShapeInferencePass,
    TopologicalSortPass,
)

from deploykit.graph.editing import Names
from deploykit.graph.opset import raise_opset
from deploykit.graph.rewrites import col2ims_to_convolutions, einsums_to_products

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

_SCOPES = "pkg.torch.onnx.name_scopes"


def tidy(model: ir.Model, *, rename: bool) -> None:
    """Drop what is unused, fill in shapes and names; in place.

    Constants become initializers, weights that old exporters list among the inputs leave that
    list, an ``Einsum`` becomes a ``MatMul`` and a ``Col2Im`` a ``ConvTranspose``. Every node then
    has a name of its own: with ``rename`` that of the module that it came from
    (``layer1.0.conv1/Conv``), its values are named after it; without it only a name that is
    missing or repeated changes. Inputs and outputs keep theirs.
    """
    _drop_identities(model.graph)
    for shared_pass in (
        RemoveInitializersFromInputsPass(),
        # Small ones too: rules and plans know a constant by its being an initializer.
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        RemoveUnusedNodesPass(),
        TopologicalSortPass(),
        ShapeInferencePass(),
    ):
        shared_pass(model)
    einsums_to_products(model)
    col2ims_to_convolutions(model)
    if rename:
        _name_after_modules(model)
    else:
        _complete_names(model)


def tidy_in_opset(model: ir.Model, needed: int) -> ir.Model:
    """The graph that `tidy` has seen, raised as `raise_opset` does it, and tidy again.

    Raises:
        ModelFileError: it cannot be raised.
    """
    raised = raise_opset(model, needed=needed)
    if raised is not model:
        tidy(raised, rename=False)  # the converter drops types
    return raised


def _drop_identities(graph: ir.Graph) -> None:
    # Not onnx_ir's own pass: it also takes them out of subgraphs, where one that returns an outer
    # value is needed, and onnxruntime then refuses the file.
    for node in graph:
        source = node.inputs[0] if node.op_type == "Identity" and not node.domain else None
        if source is not None and not node.outputs[0].is_graph_output():
            node.outputs[0].replace_all_uses_with(source)
            graph.remove(node, safe=True)


def _name_after_modules(model: ir.Model) -> None:
    outputs = set(model.graph.outputs)
    renamed = [
        (node, index, value)
        for node in model.graph
        for index, value in enumerate(node.outputs)
        if value.name and value not in outputs  # "" is an optional output that is left out
    ]
    # Names that are about to change do not count as taken.
    changing = {value for *_, value in renamed}
    nodes, values = Names(()), Names(str(v.name) for v in _values(model) if v not in changing)
    for node in model.graph:
        node.name = nodes.fresh(_base_name(node))
    for node, index, value in renamed:
        value.name = values.fresh(f"{node.name}_output_{index}")


def _complete_names(model: ir.Model) -> None:
    names = Names(str(node.name) for node in model.graph if node.name)
    seen: set[str] = set()
    for node in model.graph:
        if not node.name or node.name in seen:
            node.name = names.fresh(node.name or _base_name(node))
        seen.add(node.name)


def _base_name(node: ir.Node) -> str:
    return f"{_module_of(node)}/{node.op_type}".lstrip("/")


def _module_of(node: ir.Node) -> str:
    """Path of the module that a node came from: its weight's, else the exporter's scope."""
    for value in node.inputs:
        if value is not None and value.is_initializer() and str(value.name).endswith(".weight"):
            return str(value.name).removesuffix(".weight")
    try:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    except (SyntaxError, ValueError):
        return ""
    # The last scope is the operator itself, the one before it the module that called it.
    return str(scopes[-2]) if len(scopes) > 1 else ""


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs
