"""`deploykit visualize`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploykit.cli import _options
from deploykit.cli._command import Answer, Command, examples
from deploykit.cli._show import progress, table

if TYPE_CHECKING:
    from rich.console import Console

    from deploykit.core.choices import DefinitionChoices
    from deploykit.verbs.visualize import Visualization

_METHODS = ("filters", "top", "deconvnet", "guided", "maximise", "gradcam", "occlusion")


@click.command(
    "visualize",
    cls=Command,
    epilog=examples(
        "deploykit visualize resnet20 --weights resnet20.npz --images test.npz",
        "deploykit visualize alexnet --weights imagenet --images photographs/ --layer features.0 "
        "--layer features.10 --method top --method deconvnet",
        "deploykit visualize torchvision:vit_b_16 --weights imagenet --images photographs/ "
        "--method occlusion",
        "deploykit visualize engines/resnet50-int8 --images photographs/",
    ),
)
@click.argument("target")
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Images: a folder, a CSV list, an .npz or .npy; any number of them.  [default: for a "
    "graph the photographs that come with deploykit, else none]",
)
@click.option(
    "--layer",
    "layers",
    multiple=True,
    metavar="NAME",
    help="A module of the network, as layer2 or features.10; may be repeated.  [default: the last "
    "one of each resolution, at most four]",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(_METHODS),
    help="May be repeated.  [default: what the inputs allow, without guided, maximise and, for a "
    "definition, occlusion]",
)
@click.option(
    "--filters",
    default=9,
    show_default=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Filters of each layer that are shown, spread evenly over those that any image activates.",
)
@_options.weights
@_options.choices
@_options.max_pixels
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    metavar="N",
    help="Of the noise that maximise begins with, and of untrained weights.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="For the page and its PNG files.  [default: visualized/NAME]",
)
@click.option("--replace", is_flag=True, help="Replace pictures that are there already.")
def command(  # noqa: PLR0913 - one parameter per option, click's way
    *,
    target: str,
    images: Path | None,
    layers: tuple[str, ...],
    methods: tuple[str, ...],
    filters: int,
    weights: str | None,
    choices: DefinitionChoices,
    max_pixels: int | None,
    seed: int,
    output: Path | None,
    replace: bool,
) -> Answer:
    """Show what the network TARGET has learnt, on one page that works offline.

    Of a definition: the filters of the first layer; with --images the nine images that activate a
    filter most, cut to its receptive field, with DeconvNet (Zeiler and Fergus 2013) or guided
    backpropagation (Springenberg 2014) beside them, and Grad-CAM (Selvaraju 2016). --method
    maximise makes an image for each filter by gradient ascent, which takes minutes for large
    networks.

    Of an .onnx file or a bundle, which have no gradients: the filters, and occlusion maps. Of a
    bundle those of its FP32 graph and of its own stand side by side, for the images whose answers
    changed.
    """
    with progress().step("start"):
        from deploykit.verbs.visualize import VisualizeCall, visualize

    call = VisualizeCall(
        target=target,
        images=images,
        layers=layers,
        methods=methods,
        filters=filters,
        weights=weights,
        seed=seed,
        choices=choices,
        max_pixels=max_pixels,
        output=output,
        replace=replace,
    )
    found = visualize(call, progress())
    return Answer(found.numbers, lambda out: _show(out, found), verdict=f"pictures: {found.page}")


def _show(out: Console, found: Visualization) -> None:
    numbers = found.numbers
    out.print(f"pictures: {found.page}", style="bold", markup=False, soft_wrap=True)
    out.print(f"methods: {', '.join(numbers['methods'])}", markup=False)
    if numbers.get("layers"):
        _show_layers(out, numbers["layers"])
    changed = numbers.get("occlusion", {}).get("changed")
    if changed is not None:
        seen = numbers["occlusion"]["images"]
        out.print(f"answers other than FP32's: {changed} of {seen} images")
    for note in found.notes:
        out.print(f"note: {note}", style="yellow", markup=False)


def _show_layers(out: Console, layers: list[dict[str, object]]) -> None:
    from rich.text import Text

    rows = table(("layer", "map", "receptive field"))
    for layer in layers:
        shape, field = layer["shape"], layer["receptive_field"]
        if not isinstance(shape, list) or not isinstance(field, list):
            continue
        seen = "the whole image" if layer["whole_image"] else f"{field[0]} x {field[1]} px"
        cells = (str(layer["name"]), " x ".join(map(str, shape)), seen)
        rows.add_row(*map(Text, cells))
    out.print(rows)
