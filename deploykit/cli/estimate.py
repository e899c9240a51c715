"""`deploykit estimate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from deploykit.cli import _options
from deploykit.cli._command import (
    NOTHING_DONE,
    Answer,
    DetailedCommand,
    examples,
    is_quiet,
    only_checks,
)
from deploykit.cli._option_types import TARGET
from deploykit.cli._show import progress, table
from deploykit.core.errors import UsageError
from deploykit.core.precision import OWN

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import Console
    from rich.table import Table

    from deploykit.core.precision import Precision
    from deploykit.costs.intervals import Interval
    from deploykit.verbs.estimate import EstimateReport, EstimateRow

_READABLE: Final = 80
"""Columns of a sentence, also in a file: a terminal breaks longer lines inside words."""

_THREE_DIGITS: Final = 999.5
_PRICE: Final = "price of\n1 M images"
_ENDS: Final = "90 % interval"
_PRICE_ENDS: Final = "90 % interval of the price"


@click.command(
    "estimate",
    cls=DetailedCommand,
    epilog=examples(
        "deploykit estimate resnet50 --gpu L4 --precision fp16 --batch 1,8,32",
        "deploykit estimate resnet50 --all-gpus --fp16 --batch 8",
        "deploykit estimate mine.onnx --gpu L4 --gpu T4 --price-per-hour L4=0.8 "
        "--price-per-hour T4=0.35",
    ),
)
@click.argument("target", type=TARGET)
@click.option("--gpu", "gpus", multiple=True, metavar="NAME", help="As L4 or L4,T4; repeatable.")
@click.option("--all-gpus", is_flag=True, help="Every GPU that is known, the fastest first.")
@click.option(
    "--precision",
    metavar="fp32,fp16,int8",
    help="Precisions.  [default: fp32,fp16,int8; of a converted graph its own]",
)
@_options.precision_flags({each: f"As --precision {each}; may be combined." for each in OWN})
@click.option(
    "--batch",
    metavar="1,8,32",
    help="Batches.  [default: 1,8,32; of a graph with a fixed batch that one]",
)
@click.option(
    "--price-per-hour",
    "prices",
    multiple=True,
    metavar="[GPU=]N",
    help="Adds the price of a million images; of several GPUs one each: L4=0.8.",
)
@click.option(
    "--graph/--no-graph",
    default=True,
    show_default=True,
    help="A replayed CUDA graph, as `bench` measures; without one the host launches each kernel.",
)
@_options.num_classes
@_options.input_size
@_options.open_size
def command(  # noqa: PLR0913 - one parameter per option, click's way
    target: str,
    *,
    gpus: tuple[str, ...],
    precision: str | None,
    flagged: tuple[Precision, ...],
    batch: str | None,
    prices: tuple[str, ...],
    num_classes: int | None,
    input_size: int | None,
    open_size: tuple[int, int] | None,
    all_gpus: bool,
    graph: bool,
) -> Answer:
    """Estimate the latency of TARGET on GPUs that are not here.

    TARGET is all that `export` takes, or a bundle. An estimate comes from a model of the hardware,
    fitted on published TensorRT latencies: read its interval, which holds nine measurements of ten.
    It is no measurement, see `bench`.
    """
    from deploykit.benchmarking.matrix.cells import in_order, parse_batches
    from deploykit.core.choices import DefinitionChoices
    from deploykit.sources.calls import require_call
    from deploykit.verbs.estimate import (
        EstimateCall,
        estimate_target,
        estimate_to_plain,
        gpus_of,
        parse_price,
        prices_of,
    )

    if all_gpus and gpus:
        raise UsageError("--all-gpus and --gpu exclude each other\ngive one of the two")
    if not all_gpus and not gpus_of(gpus):
        raise UsageError(
            "no GPU is named\ngive one, as --gpu L4, or all that are known: --all-gpus"
        )
    names = [part.strip() for part in (precision or "").split(",") if part.strip()]
    asked = None if all_gpus else gpus_of(gpus)
    call = EstimateCall(
        gpus=asked,
        precisions=in_order([*flagged, *names]),
        batches=None if batch is None else parse_batches(batch),
        prices=prices_of(map(parse_price, prices), asked),
        graph=graph,
        choices=DefinitionChoices(num_classes, input_size, open_size=open_size),
    )
    require_call([target])
    if only_checks():
        return NOTHING_DONE
    report = estimate_target(target, call, progress())
    return Answer(
        estimate_to_plain(report),
        lambda out: _show(out, report),
        details=lambda out: _show_details(out, report),
    )


def _show(out: Console, report: EstimateReport) -> None:
    from deploykit.costs.estimates import basis

    priced = any(row.price_per_million is not None for row in report.rows)
    # Cost follows from the rate: a table has room for one of them.
    out.print(_table(report.rows, ("ms", _ENDS, _PRICE if priced else "images/s")))
    fitted = basis()
    _say(
        out,
        f"estimated, not measured: fitted on {fitted['rows']} published latencies from "
        f"{fitted['sources']} sources; on GPUs and networks that it had not seen it was off by "
        f"{fitted['median_error']['all']:.0%} (median)",
    )
    for text in _cheapest(report.rows):
        _say(out, text)
    if report.left_out:
        _say(out, f"left out: {'; '.join(report.left_out.values())}", "yellow")
    for note in () if is_quiet() else report.notes:
        _say(out, f"note: {note}", "yellow")


def _show_details(out: Console, report: EstimateReport) -> None:
    out.print(_table(report.rows, ("images/s", "limit ms", "rows")))
    _say(out, "limit: the physical one. rows: published ones of this GPU and precision")
    priced = [row for row in report.rows if row.price_per_million is not None]
    if priced:
        out.print("", _table(priced, (_PRICE, _PRICE_ENDS)), sep="\n")


def _table(rows: Iterable[EstimateRow], figures: Sequence[str]) -> Table:
    shown = table(("GPU", "precision", "batch", *figures), right=("batch", *figures))
    for row in rows:
        cells = _cells(row)
        names = row.gpu, str(row.precision), str(row.batch)
        shown.add_row(*names, *(cells[name] for name in figures))
    return shown


def _cells(row: EstimateRow) -> dict[str, str]:
    latency, price = row.latency_ms, row.price_per_million
    return {
        "ms": _figure(latency.value),
        _ENDS: _ends(latency),
        "images/s": _figure(row.throughput_per_s.value),
        "limit ms": _figure(row.limit_ms),
        "rows": str(row.published_rows),
        _PRICE: "" if price is None else _figure(price.value),
        _PRICE_ENDS: "" if price is None else _ends(price),
    }


def _cheapest(rows: Iterable[EstimateRow]) -> Iterator[str]:
    """The order by price, where it is more than one GPU's; that of the rows is by latency."""
    found: dict[str, list[tuple[float, str]]] = {}
    for row in rows:
        if row.price_per_million is not None:
            cell = f"{row.precision}, batch {row.batch}"
            found.setdefault(cell, []).append((row.price_per_million.value, row.gpu))
    for cell, prices in found.items():
        if len(prices) > 1:
            places = enumerate(sorted(prices), start=1)
            order = ", ".join(f"{place}. {gpu} {_figure(price)}" for place, (price, gpu) in places)
            yield f"ranking by price of 1 M images, {cell}: {order}"


def _ends(interval: Interval) -> str:
    return f"{_figure(interval.low)} to {_figure(interval.high)}"


def _figure(number: float) -> str:
    """Three digits, which is more than an estimate has."""
    return f"{number:,.0f}" if number >= _THREE_DIGITS else f"{number:.3g}"


def _say(out: Console, text: str, style: str | None = None) -> None:
    out.print(text, style=style, markup=False, width=min(out.width, _READABLE))
