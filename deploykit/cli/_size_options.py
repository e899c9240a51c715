"""Options of the height and width of images, where a file leaves them open."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from deploykit.core.errors import UsageError

if TYPE_CHECKING:
    from deploykit.core.sizes import ShapeProfile

_AXIS_TEXT = "of the images, where the .onnx leaves it open"
_SIZES_TEXT = f"{_AXIS_TEXT}: smallest, preferred, largest."

SIZES, SIZES_OF_EACH = (
    tuple(
        click.option(
            f"--{name}",
            metavar="MIN,OPT,MAX",
            multiple=several,
            help=f"{name.title()} {_SIZES_TEXT}",
        )
        for name in ("height", "width")
    )
    for several in (False, True)
)

OPEN_SIZE = tuple(
    click.option(f"--{name}", metavar="PX", help=f"{name.title()} {_AXIS_TEXT}.")
    for name in ("height", "width")
)
"""For commands that look at one size; of three the preferred one, so that a call can be copied."""


def read_sizes(*, height: str | None, width: str | None) -> ShapeProfile:
    """What the options ask for.

    Raises:
        UsageError: no sizes.
    """
    from deploykit.core.sizes import ShapeProfile, SizeRange

    return ShapeProfile(
        height=None if height is None else SizeRange.parse(height, "--height"),
        width=None if width is None else SizeRange.parse(width, "--width"),
    )


def read_open_size(*, height: str | None, width: str | None) -> tuple[int, int] | None:
    """Height and width; ``None`` where neither is given.

    Raises:
        UsageError: one of them alone is given, or what is given is no size.
    """
    sizes = read_sizes(height=height, width=width)
    if sizes.height is None and sizes.width is None:
        return None
    if sizes.height is None or sizes.width is None:
        given, other = ("height", "width") if sizes.width is None else ("width", "height")
        raise UsageError(f"--{given} is given without --{other}\ngive both, as 224 and 224")
    return sizes.height.opt, sizes.width.opt
