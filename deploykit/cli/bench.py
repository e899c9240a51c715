"""`deploykit bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploykit.cli import _bench_options
from deploykit.cli._bench_options import Asked, read_matrix, read_one_cell, read_switches
from deploykit.cli._command import Answer, DetailedCommand, examples
from deploykit.cli._show import progress
from deploykit.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.verbs.bench import BenchOptions, BenchReport


@click.command(
    "bench",
    cls=DetailedCommand,
    epilog=examples(
        "deploykit bench --all --quick",
        "deploykit bench resnet50 engines/mine-fp16 --batch 1,8",
        "deploykit bench --all --filter 'resnet*' --backend tensorrt --preset trtexec11",
        "deploykit bench --compare old.json new.json --fail-above 5%",
        "deploykit bench --ab engines/old engines/new",
    ),
)
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@_bench_options.options
@click.option(
    "--compare",
    nargs=2,
    type=click.Path(path_type=Path),
    metavar="OLD NEW",
    help="Compare two files of results instead of measuring.",
)
@click.option("--fail-above", metavar="5%", help="Exit code 1 if something got slower by more.")
@click.option("--force", is_flag=True, help="Compare other machines or switches all the same.")
@click.option(
    "--ab", nargs=2, metavar="A B", help="Two targets in turn in one process, after A against A."
)
@click.option(
    "--rounds",
    default=40,
    show_default=True,
    type=click.IntRange(min=20),
    metavar="N",
    help="Pairs of --ab.",
)
def command(
    *,
    compare: tuple[Path, Path] | None,
    fail_above: str | None,
    force: bool,
    ab: tuple[str, str] | None,
    rounds: int,
    **measuring: Any,  # the options of `_bench_options`, which `Asked` names
) -> Answer:
    """Measure latency and throughput, beside what the hardware could do at best.

    A TARGET is all that `export` takes, or a bundle. Each combination with a backend, a precision
    and a batch is measured in a process of its own; one that fails is noted and the rest goes on.
    Interrupted, the same command goes on where it was.
    """
    asked = Asked(**measuring)
    if compare is not None:
        if ab is not None or asked.targets or asked.everything:
            raise UsageError("--compare reads two files and measures nothing\nleave out the rest")
        return _compare(compare, fail_above, force=force)
    if fail_above is not None or force:
        raise UsageError("--fail-above and --force belong to --compare OLD NEW")
    if ab is not None:
        return _in_turn(ab, asked, rounds)
    return _measure(asked)


def _measure(asked: Asked) -> Answer:
    from deploykit.cli._bench_show import show_details, show_run
    from deploykit.sources.calls import require_call

    require_call(asked.targets)
    with progress().step("start"):
        from deploykit.benchmarking.matrix.preparing import own_precisions
        from deploykit.verbs.bench import BenchOptions, bench_to_plain, default_output

        matrix, switches = read_matrix(asked), read_switches(asked)
        own = own_precisions(matrix.targets, asked.choices, asked.sizes)
    options = BenchOptions(
        matrix=matrix,
        switches=switches,
        output=asked.output or default_output("bench"),
        work=asked.work,
        cell_s=asked.cell_s,
        memory_bytes=asked.memory_bytes,
        fresh=asked.fresh,
        choices=asked.choices,
        device=asked.device,
        sizes=asked.sizes,
    )
    report = _bench(options, own)
    failed = bool(report.run.failures)
    return Answer(
        bench_to_plain(report),
        lambda out: show_run(out, report),
        failed=failed,
        details=lambda out: show_details(out, report),
    )


def _bench(options: BenchOptions, own: dict[str, Any]) -> BenchReport:
    from deploykit.verbs.bench import bench

    try:
        return bench(options, own, progress())
    except KeyboardInterrupt:
        click.echo("\ninterrupted; the same command goes on from here", err=True)
        raise


def _compare(files: Sequence[Path], fail_above: str | None, *, force: bool) -> Answer:
    from deploykit.benchmarking.report.two_runs import (
        compare_files,
        comparison_to_plain,
        parse_share,
    )
    from deploykit.cli._bench_show import show_comparison

    limit = None if fail_above is None else parse_share(fail_above)
    found = compare_files(files[0], files[1], fail_above=limit, force=force)
    return Answer(
        comparison_to_plain(found), lambda out: show_comparison(out, found), failed=found.fails
    )


def _in_turn(targets: tuple[str, str], asked: Asked, rounds: int) -> Answer:
    from deploykit.cli._bench_show import show_in_turn

    with progress().step("start"):
        from deploykit.benchmarking.matrix.ab_run import AbOptions, bench_ab, run_to_plain
        from deploykit.benchmarking.matrix.preparing import own_precisions
        from deploykit.benchmarking.matrix.steps import Steps, process_limits
        from deploykit.core import environment
        from deploykit.verbs.bench import default_output, visible_gpus

        chosen = read_one_cell(asked)
        switches = read_switches(asked)
        own = own_precisions(targets, asked.choices, asked.sizes)
    memory = environment.memory_bytes()
    visible = visible_gpus(asked.device)
    limits = process_limits(asked.cell_s, asked.memory_bytes, memory, visible)
    options = AbOptions(targets, *chosen, rounds, asked.output or default_output("ab"))
    steps = Steps(switches, asked.work, *limits, choices=asked.choices, sizes=asked.sizes)
    found = bench_ab(options, steps, own, progress())
    return Answer(run_to_plain(found), lambda out: show_in_turn(out, found))
