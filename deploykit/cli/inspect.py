"""`deploykit inspect`."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from deploykit.cli import _options
from deploykit.cli._command import Answer, Command, examples
from deploykit.cli._report import report_option, require_report, with_report
from deploykit.cli._show import (
    progress,
    short_count,
    show_doubts,
    show_engines,
    show_input,
    table,
)
from deploykit.core.errors import UsageError
from deploykit.core.precision import OWN

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rich.console import Console
    from rich.table import Table

    from deploykit.core.choices import DefinitionChoices
    from deploykit.core.precision import Precision
    from deploykit.costs.network import ModelSummary
    from deploykit.graph.node_precisions import GraphPrecision, NodePrecision
    from deploykit.sources.definition import SourceOptions
    from deploykit.verbs.inspect import PrecisionOptions, PrecisionReport, PreparedInput


_PARTICULAR: Final = re.compile(r"\S*\d\S*|'[^']*'|\S+(?= reaches )")
"""Numbers, and names that have one: what differs between reasons that are alike."""


@dataclass(frozen=True)
class Work:
    """One kernel of the compiled network, or a node that is none and still has a reason."""

    nodes: tuple[NodePrecision, ...]

    @property
    def head(self) -> NodePrecision:
        """What it is named after; its precision is that of the arithmetic."""
        return self.nodes[0]

    @property
    def operators(self) -> str:
        """In order: ``Conv + Add + Relu``."""
        return " + ".join(node.op_type for node in self.nodes)

    @property
    def reason(self) -> str:
        """Why it, or something that is computed with it, is not lower."""
        found = {self.head.reason: self.head.reason} if self.head.reason else {}
        for node in self.nodes[1:]:
            if node.reason and node.reason not in found:
                found[node.reason] = f"{node.op_type}: {node.reason}"
        return "; ".join(text for text in found.values() if text)

    @property
    def trials(self) -> tuple[str, ...]:
        """What of it trials on images may change."""
        return tuple(dict.fromkeys(node.trial for node in self.nodes if node.trial))


@dataclass(frozen=True)
class Group:
    """Works that are alike, in graph order."""

    works: tuple[Work, ...]

    @property
    def precision(self) -> Precision:
        """Of all of them."""
        return self.works[0].head.precision

    @property
    def operators(self) -> str:
        """Those of one, or how many there are of each."""
        counts = Counter(work.operators for work in self.works)
        if len(counts) == 1:
            return self.works[0].operators
        return ", ".join(f"{count} {operators}" for operators, count in counts.items())

    @property
    def multiply_adds(self) -> int:
        """Of all of them."""
        return sum(work.head.multiply_adds for work in self.works)

    @property
    def where(self) -> str:
        """The first and the last by name, without the operator that their names end with."""
        first, last = _place(self.works[0]), _place(self.works[-1])
        return first if first == last else f"{first} .. {last}"

    @property
    def because(self) -> str:
        """The reason of the heaviest, and what is still open."""
        heaviest = max(self.works, key=lambda work: work.head.multiply_adds)
        differ = len({work.reason for work in self.works}) > 1
        reason = f"{heaviest.reason}, and the like" if differ else heaviest.reason
        trials = ", ".join(heaviest.trials)
        return "; ".join(filter(None, (reason, f"trials decide: {trials}" if trials else "")))


def _place(work: Work) -> str:
    module, _, operator = work.head.name.rpartition("/")
    return module if module and operator.startswith(work.head.op_type) else work.head.name


def works_of(graph: GraphPrecision) -> tuple[Work, ...]:
    """What the compiled network computes, in graph order, with nodes that have a reason only."""
    kernels: dict[str, list[NodePrecision]] = {}
    for node in graph.nodes:
        if node.kernel is not None or node.reason:
            kernels.setdefault(node.kernel or node.name, []).append(node)
    return tuple(Work(tuple(nodes)) for nodes in kernels.values())


def group(works: Iterable[Work]) -> tuple[Group, ...]:
    """Works with the same operators, precision and kind of reason together.

    Those without multiply-adds are alike whatever their operators. Groups are in the order of
    their first member.
    """
    found: dict[tuple[object, ...], list[Work]] = {}
    for work in works:
        kind = _PARTICULAR.sub("#", work.reason)
        operators = work.operators if work.head.multiply_adds else ""
        key = (operators, work.head.precision, kind, work.trials)
        found.setdefault(key, []).append(work)
    return tuple(Group(tuple(members)) for members in found.values())


def left_out(graph: GraphPrecision) -> Mapping[str, int]:
    """Nodes that are no work and have no reason, counted by operator."""
    return Counter(n.op_type for n in graph.nodes if n.kernel is None and not n.reason)


HEAVIEST_SHOWN: Final = 6

SMALLEST_SHARE: Final = 0.001

_ORDER: Final = tuple(reversed(OWN))
"""The narrowest first."""


def show_precision(out: Console, report: PrecisionReport, *, every_node: bool) -> None:
    """Totals, the heaviest nodes that stay high, then groups of nodes or ``every_node``."""
    _show_totals(out, report)
    _show_heaviest(out, report)
    if every_node:
        _show_nodes(out, report.graph)
    else:
        _show_groups(out, report.graph)
    for note in report.notes:
        out.print(f"note: {note}", style="yellow", markup=False)
    out.print(_next_step(report), markup=False)


def _show_totals(out: Console, report: PrecisionReport) -> None:
    graph = report.graph
    made = f"planned: what an export in {_upper(report.precision)} would make of it"
    has = f"{_upper(report.precision)}: what its graph has"
    out.print(f"{report.target}, {made if report.planned else has}", style="bold", markup=False)
    rows = table(("", *map(_upper, _ORDER)), right=tuple(map(_upper, _ORDER)))
    counts, heavy = graph.multiply_adds_in, graph.heavy_in
    shares = (_share(graph, counts[precision]) for precision in _ORDER)
    total = short_count(graph.multiply_adds)
    rows.add_row(f"of {total} multiply-adds", *shares)
    rows.add_row("convolutions, matrix products", *(str(heavy[each]) for each in _ORDER))
    out.print(rows)
    out.print(f"on its edges: {graph.casts} casts, {graph.qdq_pairs} Q/DQ pairs, {_weights(graph)}")
    seen = report.magnitudes
    if seen is not None:
        kept = "" if seen.limit is None else f"; beyond {seen.limit:.0f} a value stays FP32"
        out.print(f"largest activation: {seen.largest:.4g} in {seen.value}{kept}", markup=False)
    out.print("")


def _weights(graph: GraphPrecision) -> str:
    """As ``3 INT8 weights``; those of FP8 where there are some."""
    if graph.fp8_weights:
        return f"{graph.fp8_weights} FP8 weights"
    return f"{graph.int8_weights} INT8 weights"


def _show_heaviest(out: Console, report: PrecisionReport) -> None:
    graph = report.graph
    high = graph.heaviest_above(report.precision)
    if not high:
        if graph.multiply_adds:
            name = _upper(report.precision)
            out.print(f"every convolution and matrix product is {name}\n")
        return
    title = f"look here first: heaviest that are not {_upper(report.precision)}"
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


def _next_step(report: PrecisionReport) -> str:
    facts = report.precision.facts
    if report.planned and facts.quantized and not report.graph.quantized_weights:
        return f"what FP16 would be: deploykit inspect {report.source} --fp16"
    if report.planned:
        needed = " --calib PATH" if facts.needs_calibration else ""
        made = f"deploykit export {report.source} --{report.precision}{needed}"
        return f"to make it, with what options you gave: {made}"
    other = "" if report.has_reference else " REFERENCE"
    return (
        f"if its answers are off: deploykit validate {report.source}{other} --layers; "
        f"if its speed is: deploykit bench {report.source}"
    )


def _share(graph: GraphPrecision, multiply_adds: int) -> str:
    share = graph.share(multiply_adds)
    if not multiply_adds:
        return "-"
    return f"{share:.1%}" if share >= SMALLEST_SHARE else f"<{SMALLEST_SHARE:.1%}"


def _upper(precision: Precision) -> str:
    return str(precision).upper()


@click.command(
    "inspect",
    cls=Command,
    epilog=examples(
        "deploykit inspect alexnet --num-classes 10 --input-size 256",
        "deploykit inspect torchvision:vit_b_16 --int8",
        "deploykit inspect resnet50 --fp16 --weights imagenet",
        "deploykit inspect engines/resnet50-int8 --precision",
        "deploykit inspect engines/resnet50-int8 --report resnet50-int8.html --data images/",
    ),
)
@click.argument("target")
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Images that the figures are for.  [default: the graph's own where it is fixed, or 1]",
)
@click.option(
    "--precision",
    is_flag=True,
    help="What each node runs in and why: as it is, or if all is FP32 as --int8 would make it.",
)
@_options.precision_flags(
    {
        each: f"The same for what `export --{each}` would make of it."
        for each in OWN
        if not each.facts.is_source
    }
)
@click.option(
    "--exclude", multiple=True, metavar="PATTERN", help="Nodes to keep out of INT8 or FP8: layer4.*"
)
@click.option("--all", "every_node", is_flag=True, help="Each node, not those alike in one row.")
@_options.weights
@_options.seed
@_options.data
@_options.choices
@_options.open_size
@report_option
def command(  # noqa: PLR0913 - one parameter per option, click's way
    *,
    target: str,
    batch: int | None,
    precision: bool,
    flagged: tuple[Precision, ...],
    exclude: tuple[str, ...],
    every_node: bool,
    weights: str | None,
    seed: int,
    data: Path | None,
    choices: DefinitionChoices,
    open_size: tuple[int, int] | None,
    report_file: Path | None,
) -> Answer:
    """Show the layers of TARGET, or what of it is in which precision and why.

    TARGET is all that `export` takes, or a bundle, whose engines are shown too. Multiply-adds count
    convolutions and matrix products without bias. Activation memory counts every layer's output
    forward and backward in FP32, as torchsummary does.

    --fp16, --int8 and the others export a definition to a temporary folder and measure its
    activations, as `export` does: what comes near the end of FP16 stays FP32. Ranges of INT8 and
    FP8 are not needed for it. --report writes one HTML page about a bundle, with --data about its
    answers to these images.
    """
    if not (precision or flagged):
        measuring = {
            "--exclude": exclude,
            "--all": every_node,
            "--weights": weights,
            "--side-inputs": choices.side_inputs,
            "--head": choices.head,
        }
        _refuse_without_precision(measuring)
    wanted = _options.one_precision("inspect", flagged=flagged, name=None)
    from deploykit.sources.calls import require_call

    require_call([target], weights=weights, images=[data])
    require_report(report_file, bundle=target)
    with progress().step("start"):  # importing torch takes seconds
        from deploykit.sources.definition import SourceOptions
        from deploykit.verbs.inspect import PrecisionOptions

    choices = replace(choices, open_size=open_size)
    source_options = SourceOptions(weights, seed, choices, data)
    if not (precision or flagged):
        answer = _look_at_layers(target, source_options, batch)
    else:
        options = PrecisionOptions(wanted, exclude, batch, source_options)
        answer = _look(target, options, every_node=every_node)
    return with_report(answer, report_file, [Path(target)], data)


def _look_at_layers(target: str, source_options: SourceOptions, batch: int | None) -> Answer:
    summary, prepared = _inspected(target, source_options, batch)
    from deploykit.core.serialization import engine_to_plain

    kept = _kept_by(target)

    def show(out: Console) -> None:
        _show(out, summary)
        out.print("")
        show_engines(out, kept.get("engines", ()))
        _show_prepared(out, prepared)
        show_doubts(out, kept.get("doubts", ()))

    found = {"engines": list(map(engine_to_plain, kept["engines"]))} if kept else {}
    return Answer({**_layers_to_plain(summary, prepared), **kept, **found}, show)


def _kept_by(target: str) -> dict[str, Any]:
    """Engines of a bundle, and why its verification could not have failed; of others nothing."""
    from deploykit.bundle.manifest import doubts_of
    from deploykit.verbs.inspect import manifest_of

    manifest = manifest_of(target)
    if manifest is None:
        return {}
    return {"engines": manifest.engines, "doubts": doubts_of(manifest.validation)}


def _look(target: str, options: PrecisionOptions, *, every_node: bool) -> Answer:
    from deploykit.verbs.inspect import inspect_precision

    report = inspect_precision(target, options, progress())
    summary, prepared = _inspected(target, options.source, options.batch)
    doubts = _kept_by(target).get("doubts")

    def show(out: Console) -> None:
        _show_prepared(out, prepared, said=report.notes)
        show_precision(out, report, every_node=every_node)
        show_doubts(out, doubts or ())

    layers = _layers_to_plain(summary, prepared)
    told = {} if doubts is None else {"doubts": doubts}
    return Answer({**layers, "precision": report.to_dict(), **told}, show)


def _inspected(
    target: str, source_options: SourceOptions, batch: int | None
) -> tuple[ModelSummary, PreparedInput | None]:
    with progress().step("inspect"):
        from deploykit.verbs.inspect import inspect_with_input

        return inspect_with_input(target, source_options, batch=batch)


def _layers_to_plain(summary: ModelSummary, prepared: PreparedInput | None) -> dict[str, Any]:
    from deploykit.costs.network import summary_to_plain

    found = {"input_range": None, "notes": []} if prepared is None else prepared.to_dict()
    return {**summary_to_plain(summary), **found}


def _show_prepared(
    out: Console, prepared: PreparedInput | None, said: tuple[str, ...] = ()
) -> None:
    """The range of the input, and what is to be known of it beside what is ``said`` later."""
    if prepared is None:
        return
    show_input(out, prepared.range, prepared.preprocessing)
    for note in prepared.notes:
        if note not in said:
            out.print(f"note: {note}", style="yellow", markup=False)


def _refuse_without_precision(given: dict[str, Any]) -> None:
    unused = next((name for name, value in given.items() if value), None)
    if unused is not None:
        raise UsageError(
            f"{unused} changes nothing in the table of layers\n"
            "it is for --precision, --fp16 and --int8"
        )


def _show(out: Console, summary: ModelSummary) -> None:
    numbers = ("output shape", "parameters", "multiply-adds")
    rows = table(("layer", "kind", *numbers), right=numbers)
    for layer in summary.layers:
        shape = ", ".join(str(dim) for dim in layer.output_shape)
        counts = (
            f"{layer.parameters:,}" if layer.parameters else "-",
            f"{layer.multiply_adds:,}" if layer.multiply_adds else "-",
        )
        rows.add_row(layer.name, layer.kind, f"({shape})", *counts)
    out.print(rows, "")
    totals = table(("", ""), right=("",))
    totals.show_header = False
    totals.add_row("parameters", f"{summary.parameters:,}")
    totals.add_row("multiply-adds", f"{summary.multiply_adds:,}")
    totals.add_row("input (MB)", f"{summary.input_mb:.2f}")
    held = "forward/backward (MB)" if summary.engine is None else "activations at a time (MB)"
    totals.add_row(held, f"{summary.forward_backward_mb:.2f}")
    totals.add_row("parameters (MB)", f"{summary.parameters_mb:.2f}")
    totals.add_row("total (MB)", f"{summary.total_mb:.2f}")
    out.print(totals)
    for note in summary.notes:
        out.print(f"note: {note}", style="yellow", markup=False)
