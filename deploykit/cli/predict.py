"""`deploykit predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploykit.cli import _options
from deploykit.cli._command import Answer, Command, examples
from deploykit.cli._ray_options import ray_options
from deploykit.cli._show import progress, show_doubts, table
from deploykit.core.errors import UsageError, one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from deploykit.cli._ray_options import RayCall
    from deploykit.ray.predicting import ClusterChoices, ClusterReport
    from deploykit.verbs.predict import PredictionReport


@click.command(
    "predict",
    cls=Command,
    epilog=examples(
        "deploykit predict engines/resnet50-fp16 cat.jpg dog.png",
        "deploykit predict engines/resnet50-fp16 photographs/ --device cpu --json",
        "deploykit predict engines/resnet50-fp16 s3://photographs --ray -o answers.parquet",
    ),
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(), metavar="IMAGE...")
@click.option(
    "--top-k",
    default=5,
    show_default=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Classes per image.",
)
@_options.threshold
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Write the arrays of a raw head there, as .npy files; with --ray the answers, as Parquet.",
)
@_options.best_device
@ray_options
@_options.max_pixels
@_options.fast
def command(  # noqa: PLR0913 - one parameter per option
    *,
    bundle: Path,
    images: tuple[str, ...],
    top_k: int,
    threshold: float | None,
    output: Path | None,
    device: str,
    cluster: RayCall | None,
    max_pixels: int | None,
    fast: bool,
) -> Answer:
    """Say what is on images, with a bundle or one of its engines.

    An IMAGE is a file or a folder of them. An image that cannot be read, or that the model gives
    NaN for, is named at the end, the others are answered all the same, and the exit code is 1.

    With --ray IMAGE is one folder, Parquet file or address, as s3://..., and the answers go to a
    folder of Parquet as they are made, a row for each image; an interrupted run goes on.
    """
    if cluster is not None:
        from deploykit.ray.predicting import ClusterChoices

        call = ClusterChoices(
            cluster.address, cluster.workers, device, top_k, threshold, max_pixels
        )
        return _on_ray(bundle, images, output, call, fast=fast)
    from deploykit.verbs.predict import predict

    found = predict(
        bundle,
        [Path(image) for image in images],
        top_k=top_k,
        threshold=threshold,
        device=device,
        fast=fast,
        output=output,
        max_pixels=max_pixels,
        progress=progress(),
    )
    return Answer(found.to_dict(), lambda out: _show(out, found), failed=bool(found.failed))


def _on_ray(
    bundle: Path,
    sources: Sequence[str],
    output: Path | None,
    choices: ClusterChoices,
    *,
    fast: bool,
) -> Answer:
    if output is None:
        raise UsageError(
            "--ray writes the answers as it goes\nsay where: -o answers.parquet, a folder"
        )
    if len(sources) != 1 or fast:
        what = "--fast" if fast else f"{len(sources)} sources"
        raise UsageError(
            f"--ray does not take {what}\ngive one folder, Parquet file or address, without --fast"
        )
    from deploykit.ray.predicting import predict_on_cluster

    with progress().step("predict on Ray") as task:
        found = predict_on_cluster(bundle, sources[0], output, choices, task)
    verdict = (
        f"{_counted(found.rows, 'image')}, {found.failed} of them without an answer: {found.output}"
    )
    return Answer(
        found.to_dict(),
        lambda out: _show_cluster(out, found, verdict),
        failed=bool(found.failed),
        verdict=verdict,
    )


def _show_cluster(out: Console, found: ClusterReport, verdict: str) -> None:
    out.print(verdict, style="bold", markup=False, soft_wrap=True)
    resumed = f", {found.resumed} of them from before" if found.resumed else ""
    workers = f"; {_counted(found.workers, 'worker')}" if found.workers else ""
    out.print(f"{_counted(found.parts, 'part')}{resumed}{workers}", markup=False)
    for image, reason in found.named:
        why = "; ".join(reason.splitlines())
        out.print(f"problem: {one_line(image)}, {why}", style="red", markup=False)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _show(out: Console, found: PredictionReport) -> None:
    from rich.markup import escape

    columns = found.head.answer_columns
    rows = table(("image", *columns), right=columns[-1:])
    for image, top in found.predictions:
        for rank, each in enumerate(top):
            cells = map(escape, found.head.answer_row(each))
            rows.add_row("" if rank else escape(one_line(image)), *cells)
    if found.predictions:
        out.print(rows)
    if found.trained is not True:
        doubt = (
            "the answers mean nothing" if found.trained is False else "trained or not is unknown"
        )
        out.print(f"weights: {found.weights}; {doubt}", markup=False)
    out.print(found.choice, markup=False)
    show_doubts(out, found.doubts)
    for note in found.notes:
        out.print(f"note: {note}", style="yellow", markup=False)
    for image, reason in found.failed:
        why = "; ".join(reason.splitlines())
        name = one_line(image)
        named = why if name in why else f"{name}, {why}"
        out.print(f"problem: {named}", style="red", markup=False)
