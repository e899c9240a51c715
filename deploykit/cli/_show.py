"""Figures in a terminal: tables, sizes, tables that commands share.

Every command imports this, and so does ``deploykit --help``: rich is imported where it is used.
"""

from __future__ import annotations

import sys
from math import inf
from typing import TYPE_CHECKING, Any

from deploykit.cli._command import is_quiet
from deploykit.core.artifacts import THIS_GPU
from deploykit.core.byte_sizes import byte_size
from deploykit.core.precision import Precision
from deploykit.core.progress import LineProgress, Progress, SilentProgress
from deploykit.core.sizes import AXIS_NAMES
from deploykit.core.specs import DEFAULT_HEAD

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rich.console import Console
    from rich.table import Table

    from deploykit.bundle.listing import ListedBundle
    from deploykit.bundle.manifest import Bundle
    from deploykit.core.artifacts import EngineRecord
    from deploykit.core.progress import StageTime
    from deploykit.core.specs import HeadRecord, Preprocessing
    from deploykit.heads import Table as HeadTable
    from deploykit.images import InputRange


def progress() -> Progress:
    """On standard error a bar if a person watches it, otherwise lines; nothing where asked."""
    if is_quiet():
        return SilentProgress()
    if not sys.stderr.isatty():
        return LineProgress()
    from deploykit.cli._terminal import BarProgress, console

    return BarProgress(console(stderr=True))


def table(columns: Sequence[str], *, title: str | None = None, right: Sequence[str] = ()) -> Table:
    """An empty table; the columns named in ``right`` hold numbers."""
    from rich.table import Table

    result = Table(title=title, title_justify="left", header_style="bold", pad_edge=False, box=None)
    for column in columns:
        result.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return result


def escape(text: str) -> str:
    """Text in which rich finds no markup."""
    from rich.markup import escape as of_rich

    return of_rich(text)


def show_table(out: Console, shown: HeadTable) -> None:
    """A table of text, and the sentence below it."""
    rows = table(shown.columns, title=shown.title, right=shown.right)
    rows.show_header = any(shown.columns)
    for row in shown.rows:
        rows.add_row(*map(escape, row))
    out.print(rows)
    if shown.note is not None:
        out.print(shown.note, markup=False, soft_wrap=True)


def short_count(count: int) -> str:
    """A count in thousands, millions or billions, three digits.

    >>> short_count(25_557_032), short_count(4_089_184_256), short_count(269_722)
    ('25.6 M', '4.09 G', '270 k')
    """
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            value = count / limit
            digits = 2 if value < 10 else 1 if value < 100 else 0  # noqa: PLR2004 - three digits
            return f"{value:.{digits}f} {unit}"
    return str(count)


def census_line(census: Mapping[str, int]) -> str:
    """The layers of a network by kind and type, most frequent first.

    >>> census_line({"MATRIX_MULTIPLY HALF": 1, "CONVOLUTION HALF": 53})
    '53 CONVOLUTION HALF, 1 MATRIX_MULTIPLY HALF'
    """
    ordered = sorted(census.items(), key=lambda item: -item[1])
    return ", ".join(f"{count} {kind}" for kind, count in ordered)


def show_stages(out: Console, stages: Sequence[StageTime]) -> None:
    """How long each stage took."""
    rows = table(("stage", "seconds"), right=("seconds",))
    for stage in stages:
        rows.add_row(stage.name, f"{stage.seconds:.2f}")
    rows.add_row("total", f"{sum(stage.seconds for stage in stages):.2f}", style="bold")
    out.print(rows, "")


def show_doubts(out: Console, doubts: Iterable[str], what: str = "VERIFICATION") -> None:
    """Why a verification, or an evaluation, could not have failed: nobody may overlook it."""
    for reason in doubts:
        out.print(f"WEAK {what}: {reason}", style="bold red", markup=False)


def show_comparison(out: Console, reports: Iterable[Mapping[str, Any]]) -> None:
    """The figures of each validation, a row per batch; problems in words below."""
    from deploykit.heads import head_named

    for report in reports:
        head = head_named(report.get("head", DEFAULT_HEAD))
        head = head.applied(report.get("activation", head.activation))
        numbers = head.comparison_columns
        title = f"{report['candidate']} against {report['reference']}"
        rows = table(numbers, title=title, right=numbers)
        for batch in report["batches"]:
            rows.add_row(*head.comparison_row(batch))
        out.print(rows)
        for problem in report["problems"]:
            out.print(f"problem: {problem}", style="red", markup=False)
        show_doubts(out, report.get("blind_spots", ()))
        out.print("")


_APPLIED = {
    "none": "values as they are",
    "softmax": "softmax in the graph",
    "log_softmax": "log softmax in the graph",
    "sigmoid": "sigmoid in the graph",
    "argmax": "class numbers by ArgMax",
    "top_k": "class numbers by TopK",
    "l2": "normalised in the graph",
}


def head_line(head: HeadRecord) -> str:
    """What an output means, in a line.

    >>> from deploykit.core.specs import HeadRecord
    >>> head_line(HeadRecord("multiclass", "y", "softmax"))
    "multiclass, output 'y', softmax in the graph"
    """
    output = "the first output" if head.output is None else f"output {head.output!r}"
    return f"{head.kind}, {output}, {_APPLIED.get(head.activation, head.activation)}"


def show_files(out: Console, bundle: Bundle) -> None:
    """Every file of the bundle with its size and the start of its hash."""
    rows = table(("file", "size", "sha256"), right=("size",))
    for name, digest in bundle.expected_files().items():
        rows.add_row(escape(name), byte_size((bundle.folder / name).stat().st_size), digest[:16])
    out.print(rows, "")


def show_input(out: Console, found: InputRange, preprocessing: Preprocessing) -> None:
    """Smallest and largest value that the sample has once it is prepared."""
    order = preprocessing.channel_order.upper()
    out.print(f"input: {found.min:.4g} to {found.max:.4g} on {found.images} images, {order}")


def show_kept(out: Console, kept: Mapping[str, str], fate: str = "stays FP32") -> None:
    """Nodes that a conversion left as they were, each with its reason."""
    if not kept:
        return
    rows = table((fate, "because"))
    for node, reason in kept.items():
        rows.add_row(escape(node), escape(reason))
    out.print(rows, "")


def show_engines(out: Console, engines: Sequence[EngineRecord]) -> None:
    """What each engine was compiled for, and which layers its network has."""
    for engine in engines:
        profile = engine.profile
        out.print(f"{engine.file}", style="bold")
        rows = table(("", ""))
        rows.add_row("  proven", f"{engine.precision}: {census_line(engine.precision_census)}")
        for place, each in enumerate(profile.parts):
            rows.add_row(f"  profile {place}", str(each))
        for axis, sizes in () if profile.parts else profile.ranges.items():
            words = f"{sizes.min} to {sizes.max}, tuned for {sizes.opt}"
            rows.add_row(f"  {AXIS_NAMES[axis]}", words)
        rows.add_row("  compute capability", engine.targets)
        if engine.hardware_compatibility != THIS_GPU:
            rows.add_row("  hardware compatibility", engine.hardware_compatibility)
        if engine.optimization_level is not None:
            rows.add_row("  optimization level", str(engine.optimization_level))
        rows.add_row("  compiled", f"in {engine.build_s:.2f} s, {byte_size(engine.bytes)}")
        for warning in engine.warnings:
            rows.add_row("  warning", escape(warning))
        rows.show_header = False
        out.print(rows, "")


def show_bundles(out: Console, found: Sequence[ListedBundle]) -> None:
    """A row for each bundle of a folder, and what is wrong with those that cannot be read."""
    numbers = ("engines", "size", "age")
    rows = table(("bundle", "model", "precision", *numbers), right=numbers)
    for one in found:
        size = byte_size(one.size_bytes)
        known = (one.model, one.precision, str(len(one.engines)), size, _age(one.age_s))
        cells = known if one.problem is None else ("cannot be read", "", "", size, "")
        rows.add_row(*map(escape, (one.folder.name, *cells)))
    out.print(rows)
    for one in found:
        if one.problem is not None:
            out.print(f"{one.folder.name}: {one.problem}", style="yellow", markup=False)


def _age(seconds: float) -> str:
    """In the largest unit of which there is one or more.

    >>> _age(5), _age(7_300), _age(86_400 * 3.2)
    ('0 min', '2 h', '3 d')
    """
    for size, unit in ((86_400, "d"), (3_600, "h")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(seconds, 0) // 60:.0f} min"


def show_int8(out: Console, conversion: Mapping[str, Any], calibration: Mapping[str, Any]) -> None:
    """Layers by precision, the worst ratios, and how each method did on held-out images."""
    kinds = sorted(conversion["layers"], key=lambda kind: Precision(kind).facts.operand_bits)
    layers = ", ".join(f"{conversion['layers'][kind]} {kind.upper()}" for kind in kinds)
    out.print(f"convolutions and matrix products: {layers}")
    out.print(
        f"ranges: {calibration['method']}, from {calibration['images']} images; "
        f"first layer {_kept_or(calibration['policy']['first_layer'], kinds[0])}, "
        f"skips {_kept_or(calibration['policy']['residual'], kinds[0])}, "
        f"{len(calibration['policy']['sensitive'])} sensitive layers kept, "
        f"{len(calibration.get('equalised', ()))} values equalised, "
        f"{conversion['corrected_biases']} biases corrected, "
        f"{conversion.get('weights_rounded_together', 0)} weights rounded together",
        "",
    )
    if calibration["trials"]:
        numbers = ("mean KL (nats)", "top-1 same", "logits' SQNR (dB)")
        rows = table(("candidate", *numbers), title="on held-out images", right=numbers)
        for trial in calibration["trials"]:
            ratio = "exact" if trial["sqnr_db"] is None else f"{trial['sqnr_db']:.1f}"
            kl, agreement = trial["mean_kl"], trial["agreement"]
            figures = (
                "-" if kl is None else f"{kl:.2e}",
                "-" if agreement is None else f"{agreement:.1%}",
                ratio,
            )
            rows.add_row(trial["candidate"], *figures)
        out.print(rows, "")
    for title, key in (("weights", "weight_sqnr_db"), ("activations", "activation_sqnr_db")):
        if conversion[key]:
            rows = table((title, "SQNR (dB)"), title="lowest ratios", right=("SQNR (dB)",))
            for name, ratio in sorted(conversion[key].items(), key=_ratio):
                rows.add_row(name, "exact" if ratio is None else f"{ratio:.1f}")
            out.print(rows, "")
    show_kept(out, conversion["kept"], f"not {kinds[0].upper()}")


_MEASURES = {
    "top1": "drop of top-1",
    "answers": "changed answers",
    "decisions": "changed decisions",
    "error": "error (RMS)",
}


def show_frontier(out: Console, budget: Mapping[str, Any]) -> None:
    """Predicted time against loss, with the chosen point."""
    points = budget["points"]
    measured = next((point["loss"] for point in points if point["loss"] is not None), None)
    loss = "loss" if measured is None else _MEASURES.get(measured["measure"], "loss")
    numbers = ("predicted ms", loss, "at most (95 %)")
    title = f"frontier on {budget['gpu']}, batch {budget['batch']}, budget {budget['max_drop']:.2%}"
    rows = table(("", *numbers, "layers"), title=title, right=numbers)
    for place, point in enumerate(points):
        found = point["loss"]
        share = 0.0 if found is None else (found["lost"] - found["gained"]) / found["images"]
        layers = ", ".join(f"{count} {kind.upper()}" for kind, count in point["layers"].items())
        rows.add_row(
            "chosen" if place == budget["chosen"] else "",
            f"{point['ms']:.3g}",
            f"{share:.2%}",
            f"{point['upper']:.2%}",
            layers,
            style="bold" if place == budget["chosen"] else None,
        )
    out.print(rows)
    out.print("another point without measuring again: the same export with another --max-drop", "")


def _kept_or(choice: str, kind: str) -> str:
    """A choice of a policy, whose ``int8`` stands for quantized."""
    return kind if choice == "int8" else choice


def _ratio(item: tuple[str, float | None]) -> float:
    """The worst first; an exact weight has no ratio."""
    return inf if item[1] is None else item[1]
