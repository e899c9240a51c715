"""Rule 3: which operand of a residual addition is INT8."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.onnx_graph.half import is_float

if TYPE_CHECKING:
    from collections.abc import Iterator, Set

    import onnx_ir as ir

    from deploykit.onnx_graph.qdq.plan import QdqPolicy


def skip_operands(
    model: ir.Model, convolutions: Set[ir.Node | None], policy: QdqPolicy, kept: dict[str, str]
) -> Iterator[tuple[ir.Node, int]]:
    """Each residual addition with the index of the operand that is to be INT8.

    The addition becomes part of the convolution before it (Conv + Add + ReLU in one kernel) when
    that convolution's result comes to it as it is. The other operand is then an input of the
    kernel, and a kernel with an INT8 output reads it as INT8.
    """
    for node in model.graph:
        if node.op_type != "Add" or not _adds_two_activations(node):
            continue
        index = skip_operand(model, node, convolutions)
        reason = None if index is not None else "no INT8 convolution ends in this addition"
        reason = _unwanted(node, policy) or reason
        if reason is not None:
            kept[str(node.name)] = reason
        elif index is not None:
            yield node, index


def skip_operand(model: ir.Model, add: ir.Node, convolutions: Set[ir.Node | None]) -> int | None:
    """Index of the operand of ``add`` that does not come straight from its convolution.

    Where both do (a downsample block), the longer branch since their common ancestor is computed
    last, so that it is the one that the addition is fused with: it stays plain.
    """
    direct = [index for index in (0, 1) if _maker(add, index) in convolutions]
    if len(direct) != 2:  # noqa: PLR2004
        return 1 - direct[0] if direct else None
    lengths = _branch_lengths(model, add)
    return 1 if lengths[0] >= lengths[1] else 0


def _unwanted(node: ir.Node, policy: QdqPolicy) -> str | None:
    pattern = policy.pattern_of(str(node.name))
    if pattern is not None:
        return f"excluded by {pattern!r}"
    return "residual additions are kept" if policy.residual == "keep" else None


def _adds_two_activations(node: ir.Node) -> bool:
    left, right = node.inputs
    if left is None or right is None or left is right:
        return False
    computed = all(is_float(value) and value.const_value is None for value in (left, right))
    return computed and _may_have_one_shape(left, right)


def _may_have_one_shape(left: ir.Value, right: ir.Value) -> bool:
    """Whether nothing that is known of the shapes differs.

    A smaller operand is spread over the other: that is no residual, and no kernel fuses it.
    """
    if left.shape is None or right.shape is None:
        return True
    if len(left.shape) != len(right.shape):
        return False
    pairs = zip(left.shape, right.shape, strict=True)
    return all(a == b for a, b in pairs if isinstance(a, int) and isinstance(b, int))


def _branch_lengths(model: ir.Model, add: ir.Node) -> tuple[int, int]:
    """Nodes on the longest way from the common ancestors to each operand."""
    left, right = (_ancestors(_maker(add, index)) for index in (0, 1))
    common = left & right
    longest: dict[ir.Node | None, int] = dict.fromkeys((None, *common), 0)
    for node in model.graph:
        if node in longest or node not in left | right:
            continue
        makers = [value.producer() for value in node.inputs if value is not None]
        longest[node] = 1 + max(longest.get(maker, 0) for maker in makers)
    first, second = (longest[_maker(add, index)] for index in (0, 1))
    return first, second


def _maker(node: ir.Node, index: int) -> ir.Node | None:
    value = node.inputs[index]
    return None if value is None else value.producer()


def _ancestors(node: ir.Node | None) -> set[ir.Node]:
    """The node itself and all that it is computed from."""
    found: set[ir.Node] = set()
    open_nodes = [node]
    while open_nodes:
        current = open_nodes.pop()
        if current is None or current in found:
            continue
        found.add(current)
        open_nodes.extend(value.producer() for value in current.inputs if value is not None)
    return found
