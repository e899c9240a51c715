"""`deploykit predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploykit.cli import _options
from deploykit.cli._command import Answer, Command, examples
from deploykit.cli._options import NamesBackends
from deploykit.cli._show import progress, table
from deploykit.core.errors import one_line

if TYPE_CHECKING:
    from rich.console import Console

    from deploykit.verbs.predict import PredictionReport


@click.command(
    "predict",
    cls=Command,
    epilog=examples(
        "deploykit predict engines/resnet50-fp16 cat.jpg dog.png",
        "deploykit predict engines/resnet50-fp16 photographs/ --device cpu --json",
    ),
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument(
    "images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE..."
)
@click.option(
    "--top-k",
    default=5,
    show_default=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Classes per image.",
)
@click.option(
    "--threshold",
    type=float,
    metavar="P",
    help="Probability from which a binary or multilabel head says yes.  [default: 0.5]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Write the arrays of a raw head there, as .npy files.",
)
@click.option(
    "--device",
    cls=NamesBackends,
    default="auto",
    show_default=True,
    metavar="NAME",
    help="cuda (an engine; of several GPUs one: cuda:1, a PCI bus id, a UUID), DEVICES (the ONNX "
    "file), or auto.",
)
@_options.max_pixels
@_options.fast
def command(  # noqa: PLR0913 - one parameter per option
    *,
    bundle: Path,
    images: tuple[Path, ...],
    top_k: int,
    threshold: float | None,
    output: Path | None,
    device: str,
    max_pixels: int | None,
    fast: bool,
) -> Answer:
    """Say what is on images, with a bundle or one of its engines.

    An IMAGE is a file or a folder of them. An image that cannot be read, or that the model gives
    NaN for, is named at the end, the others are answered all the same, and the exit code is 1.
    """
    from deploykit.verbs.predict import predict

    found = predict(
        bundle,
        images,
        top_k=top_k,
        threshold=threshold,
        device=device,
        fast=fast,
        output=output,
        max_pixels=max_pixels,
        progress=progress(),
    )
    return Answer(found.to_dict(), lambda out: _show(out, found), failed=bool(found.failed))


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
    for note in found.notes:
        out.print(f"note: {note}", style="yellow", markup=False)
    for image, reason in found.failed:
        why = "; ".join(reason.splitlines())
        name = one_line(image)
        named = why if name in why else f"{name}, {why}"
        out.print(f"problem: {named}", style="red", markup=False)
