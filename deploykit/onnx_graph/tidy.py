"""Brings an exporter's graph into the form that every later stage relies on."""

from __future__ import annotations

import ast
from collections import Counter
from typing import TYPE_CHECKING

from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    IdentityEliminationPass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
    ShapeInferencePass,
    TopologicalSortPass,
)

if TYPE_CHECKING:
    import onnx_ir as ir

_SCOPES = "pkg.torch.onnx.name_scopes"


def tidy(model: ir.Model, *, rename: bool) -> None:
    """Drop what is unused, fill in shapes and names; in place.

    Constants become initializers. With ``rename`` every node is named after the module that it
    came from (``layer1.0.conv1/Conv``); without it only unnamed nodes get a name. All metadata
    goes: exporters put Python stack traces with local paths there, which are nobody else's
    business and differ between machines.
    """
    for shared_pass in (
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        IdentityEliminationPass(),
        RemoveUnusedNodesPass(),
        TopologicalSortPass(),
        ShapeInferencePass(),
    ):
        shared_pass(model)
    _name_nodes(model, rename=rename)
    ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()


def _name_nodes(model: ir.Model, *, rename: bool) -> None:
    graph_outputs = set(model.graph.outputs)
    seen = Counter("" if rename else str(node.name) for node in model.graph)
    for node in model.graph:
        if not rename and node.name:
            continue
        base = f"{_module_of(node)}/{node.op_type}".lstrip("/")
        seen[base] += 1
        node.name = base if seen[base] == 1 else f"{base}_{seen[base]}"
        for index, value in enumerate(node.outputs):
            if value not in graph_outputs:
                value.name = f"{node.name}_output_{index}"


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
