"""Operators that compilers lack, put in other words one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir


def replace_each(
    model: ir.Model, op_type: str, replace: Callable[[ir.Node, ir.Graph], str | None]
) -> dict[str, str]:
    """Let ``replace`` put others in the place of each ``op_type`` of the standard, in place.

    Returns the reason that it gives for each one that stays, by the node's name. Those in subgraphs
    are left alone, they have no entry. Shapes must have been inferred, and are inferred again where
    something changed.
    """
    nodes = [node for node in model.graph if node.op_type == op_type and not node.domain]
    reasons = {str(node.name): replace(node, model.graph) for node in nodes}
    stay = {name: reason for name, reason in reasons.items() if reason is not None}
    if len(stay) < len(nodes):
        RemoveUnusedNodesPass()(model)  # constants that were rewritten have no reader any more
        ShapeInferencePass()(model)
    return stay
