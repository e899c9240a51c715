"""How a look at precision reads in a terminal: what matters first, then the graph in its order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from deploykit.cli._precision_groups import group, left_out, works_of
from deploykit.cli._show import short_count, table
from deploykit.specs import Precision

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from deploykit.onnx_graph.precision import GraphPrecision, NodePrecision
    from deploykit.pipeline.precision_sight import PrecisionSight

HEAVIEST_SHOWN: Final = 6

SMALLEST_SHARE: Final = 0.001

_ORDER: Final = (Precision.INT8, Precision.FP16, Precision.FP32)


def show_precision(out: Console, sight: PrecisionSight, *, every_node: bool) -> None:
    """Totals, the heaviest nodes that stay high, then groups of nodes or ``every_node``."""
    _show_totals(out, sight)
    _show_heaviest(out, sight)
    if every_node:
        _show_nodes(out, sight.graph)
    else:
        _show_groups(out, sight.graph)
    for note in sight.notes:
        out.print(f"note: {note}", style="yellow", markup=False)
    out.print(_next_step(sight), markup=False)


def _show_totals(out: Console, sight: PrecisionSight) -> None:
    graph = sight.graph
    made = f"planned: what an export in {_upper(sight.precision)} would make of it"
    has = f"{_upper(sight.precision)}: what its graph has"
    out.print(f"{sight.target}, {made if sight.planned else has}", style="bold", markup=False)
    rows = table(("", *map(_upper, _ORDER)), right=tuple(map(_upper, _ORDER)))
    counts, heavy = graph.multiply_adds_in, graph.heavy_in
    shares = (_share(graph, counts[precision]) for precision in _ORDER)
    total = short_count(graph.multiply_adds)
    rows.add_row(f"of {total} multiply-adds", *shares)
    rows.add_row("convolutions, matrix products", *(str(heavy[each]) for each in _ORDER))
    out.print(rows)
    out.print(
        f"on its edges: {graph.casts} casts, {graph.qdq_pairs} Q/DQ pairs, "
        f"{graph.int8_weights} INT8 weights"
    )
    seen = sight.magnitudes
    if seen is not None:
        out.print(
            f"largest activation: {seen.largest:.4g} in {seen.value}; "
            f"beyond {seen.limit:.0f} a value stays FP32",
            markup=False,
        )
    out.print("")


def _show_heaviest(out: Console, sight: PrecisionSight) -> None:
    graph = sight.graph
    high = graph.heaviest_above(sight.precision)
    if not high:
        if graph.multiply_adds:
            name = _upper(sight.precision)
            out.print(f"every convolution and matrix product is {name}\n")
        return
    title = f"look here first: heaviest that are not {_upper(sight.precision)}"
    rows = table(("share", "", "operator", "node", "because"), title=title, right=("share",))
    for node in high[:HEAVIEST_SHOWN]:
        share = _share(graph, node.multiply_adds)
        _add(rows, share, _upper(node.precision), node.op_type, node.name, node.reason or "")
    out.print(rows)
    if len(high) > HEAVIEST_SHOWN:
        rest = high[HEAVIEST_SHOWN:]
        share = _share(graph, sum(node.multiply_adds for node in rest))
        out.print(f"and {len(rest)} more with {share}: --all or --json")
    out.print("")


def _show_groups(out: Console, graph: GraphPrecision) -> None:
    rows = table(
        ("", "kernels", "operators", "share", "where", "why not lower"),
        title="in graph order, kernels that are alike together (each node: --all)",
        right=("kernels", "share"),
    )
    for each in group(works_of(graph)):
        _add(
            rows,
            _upper(each.precision),
            str(len(each.works)),
            each.operators,
            _share(graph, each.multiply_adds),
            each.where,
            each.because,
        )
    out.print(rows)
    others = left_out(graph)
    if others:
        said = ", ".join(f"{count} {kind}" for kind, count in others.items())
        out.print(f"and no work of their own: {said}", markup=False)
    out.print("")


def _show_nodes(out: Console, graph: GraphPrecision) -> None:
    rows = table(("", "operator", "node", "share", "why not lower"), right=("share",))
    for node in graph.nodes:
        share = _share(graph, node.multiply_adds)
        _add(rows, _upper(node.precision), node.op_type, node.name, share, _remark(node))
    out.print(rows, "")


def _add(rows: Table, *cells: str) -> None:
    """A row of plain text: a pattern in a reason may look like markup."""
    from rich.text import Text

    rows.add_row(*map(Text, cells))


def _remark(node: NodePrecision) -> str:
    inside = f"computed with {node.kernel}" if node.kernel not in {None, node.name} else ""
    trial = f"trials decide: {node.trial}" if node.trial else ""
    return "; ".join(filter(None, (node.reason, trial, inside)))


def _next_step(sight: PrecisionSight) -> str:
    if sight.planned and sight.precision is Precision.INT8 and not sight.graph.int8_weights:
        return f"what FP16 would be: deploykit inspect {sight.source} --fp16"
    if sight.planned:
        needed = " --calib PATH" if sight.precision is Precision.INT8 else ""
        made = f"deploykit export {sight.source} --{sight.precision}{needed}"
        return f"to make it, with what options you gave: {made}"
    other = "" if sight.has_reference else " REFERENCE"
    return (
        f"if its answers are off: deploykit validate {sight.source}{other} --layers; "
        f"if its speed is: deploykit bench {sight.source}"
    )


def _share(graph: GraphPrecision, multiply_adds: int) -> str:
    share = graph.share(multiply_adds)
    if not multiply_adds:
        return "-"
    return f"{share:.1%}" if share >= SMALLEST_SHARE else f"<{SMALLEST_SHARE:.1%}"


def _upper(precision: Precision) -> str:
    return str(precision).upper()
