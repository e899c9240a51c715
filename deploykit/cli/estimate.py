"""`deploykit estimate`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from deploykit.cli import _options
from deploykit.cli._command import NOTHING_DONE, Answer, Command, examples, is_quiet, only_checks
from deploykit.cli._option_types import TARGET
from deploykit.cli._show import progress, table
from deploykit.core.errors import UsageError
from deploykit.core.precision import OWN

if TYPE_CHECKING:
    from rich.console import Console

    from deploykit.core.precision import Precision
    from deploykit.verbs.estimate import EstimateReport


@click.command(
    "estimate",
    cls=Command,
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
@click.option("--batch", default="1,8,32", show_default=True, metavar="1,8,32", help="Batches.")
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
def command(  # noqa: PLR0913 - one parameter per option, click's way
    target: str,
    *,
    gpus: tuple[str, ...],
    precision: str | None,
    flagged: tuple[Precision, ...],
    batch: str,
    prices: tuple[str, ...],
    num_classes: int | None,
    input_size: int | None,
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
        prices_of,
    )

    if all_gpus and gpus:
        raise UsageError("--all-gpus and --gpu exclude each other\ngive one of the two")
    names = [part.strip() for part in (precision or "").split(",") if part.strip()]
    asked = None if all_gpus else gpus_of(gpus)
    call = EstimateCall(
        gpus=asked,
        precisions=in_order([*flagged, *names]),
        batches=parse_batches(batch),
        prices=prices_of(prices, asked),
        graph=graph,
        choices=DefinitionChoices(num_classes, input_size),
    )
    require_call([target])
    if only_checks():
        return NOTHING_DONE
    report = estimate_target(target, call, progress())
    return Answer(estimate_to_plain(report), lambda out: _show(out, report))


def _show(out: Console, report: EstimateReport) -> None:
    priced = any(row.price_per_million is not None for row in report.rows)
    numbers: tuple[str, ...] = ("batch", "ms", "90 % interval", "images/s", "at best ms", "rows")
    numbers += ("price of 1 M images",) if priced else ()
    shown = table(("GPU", "precision", *numbers), right=numbers)
    for row in report.rows:
        latency, price = row.latency_ms, row.price_per_million
        cells = [
            row.gpu,
            str(row.precision),
            str(row.batch),
            f"{latency.value:.3g}",
            f"{latency.low:.3g} to {latency.high:.3g}",
            f"{row.throughput_per_s.value:,.0f}",
            f"{row.limit_ms:.3g}",
            str(row.published_rows),
        ]
        if priced:
            cells.append("" if price is None else f"{price.low:.3g} to {price.high:.3g}")
        shown.add_row(*cells)
    out.print(shown)
    from deploykit.costs.estimates import basis

    fitted = basis()
    out.print(
        f"estimated, not measured: fitted on {fitted['rows']} published latencies from "
        f"{fitted['sources']} sources; on GPUs and networks that it had not seen it was off by "
        f"{fitted['median_error']['all']:.0%} (median). rows: those of this GPU and precision.",
        markup=False,
        soft_wrap=True,
    )
    for name in report.left_out.values():
        out.print(f"left out: {name}", style="yellow", markup=False)
    for note in () if is_quiet() else report.notes:
        out.print(f"note: {note}", style="yellow", markup=False)
