"""Options that mean the same in every command that has them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from deploykit.specs import Precision, ShapeProfile

    Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_MIB = 2**20

backend = click.option(
    "--backend",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="tensorrt, tensorrt-rtx, none (no engine), or auto: what this machine has.",
)
batch = click.option(
    "--batch",
    "batch",
    default="1,8,32",
    show_default=True,
    metavar="MIN,OPT,MAX",
    help="Batches that the engine accepts, and the one that it is tuned for.",
)
_AXIS_TEXT = "of the images, where the .onnx leaves it open: smallest, preferred, largest."
_AXIS_OPTIONS = tuple(
    click.option(f"--{name}", metavar="MIN,OPT,MAX", help=f"{name.title()} {_AXIS_TEXT}")
    for name in ("height", "width")
)
workspace = click.option(
    "--workspace",
    type=click.IntRange(min=1),
    metavar="MIB",
    help="Limit of the compiler's scratch memory.",
)
compute_capability = click.option(
    "--compute-capability",
    "compute_capabilities",
    multiple=True,
    metavar="CC",
    help="GPU generation for tensorrt-rtx, as 8.9; may be repeated. Default: all from 8.0 on.",
)
weights = click.option(
    "--weights",
    metavar="imagenet|FILE",
    help="torchvision's or timm's, or a .safetensors, .npz or .pth file.  "
    "[default: the definition's own, or untrained]",
)
num_classes = click.option(
    "--num-classes", type=click.IntRange(min=1), metavar="N", help="Length of the logits."
)
input_size = click.option(
    "--input-size", type=click.IntRange(min=1), metavar="PX", help="Height and width of the input."
)
seed = click.option(
    "--seed", default=0, show_default=True, metavar="N", help="Of untrained weights."
)
data = click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Images: a folder, a CSV list or an .npz.",
)
side_inputs = click.option(
    "--side-inputs",
    type=click.Path(path_type=Path),
    metavar="FILE.npz",
    help="What an .onnx takes beside images: an array by the name of each input, a row per image.",
)
calib_count = click.option(
    "--calib-count",
    default=512,
    show_default=True,
    type=click.IntRange(min=2),
    metavar="N",
    help="Images to calibrate with, at most.",
)


def image_sizes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--height`` and ``--width``."""
    for option in reversed(_AXIS_OPTIONS):
        function = option(function)
    return function


def precision_flags(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--fp32``, ``--fp16`` and ``--int8``."""
    texts = (
        ("int8", "8 bits where it pays, the rest FP16; needs --calib."),
        ("fp16", "16 bits, inputs and outputs stay FP32."),
        ("fp32", "32 bits."),
    )
    for name, text in texts:
        function = click.option(f"--{name}", is_flag=True, help=text)(function)
    return function


def read_precision(*, fp32: bool, fp16: bool, int8: bool) -> Precision:
    """The one precision that was asked; FP32 without a flag.

    Raises:
        UsageError: more than one flag.
    """
    from deploykit.errors import UsageError
    from deploykit.specs import Precision

    flags = {Precision.FP32: fp32, Precision.FP16: fp16, Precision.INT8: int8}
    asked = [precision for precision, given in flags.items() if given]
    if len(asked) > 1:
        given = " and ".join(f"--{precision}" for precision in asked)
        raise UsageError(f"{given} exclude each other: run export once for each")
    return asked[0] if asked else Precision.FP32


def read_profile(batch: str, height: str | None = None, width: str | None = None) -> ShapeProfile:
    """The profile of ``--batch``, ``--height`` and ``--width``."""
    from dataclasses import replace

    from deploykit.sizes import ShapeProfile, SizeRange

    return replace(
        ShapeProfile.parse(batch),
        height=None if height is None else SizeRange.parse(height, "--height"),
        width=None if width is None else SizeRange.parse(width, "--width"),
    )


def workspace_bytes(mib: int | None) -> int | None:
    """The limit of ``--workspace`` in bytes."""
    return None if mib is None else mib * _MIB
