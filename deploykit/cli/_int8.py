"""Options of INT8, and what they ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

import click

from deploykit.cli import _options

if TYPE_CHECKING:
    from collections.abc import Callable

    from deploykit.pipeline.int8 import Int8Request

_END = click.Choice(["int8", "keep"])

_OPTIONS = (
    click.option("--calib", metavar="PATH", help="Images for INT8, as --data; `random` is noise."),
    _options.calib_count,
    click.option(
        "--method",
        default="auto",
        show_default=True,
        metavar="NAME",
        help="How ranges are found: max, percentile, entropy, mse; auto: the best of them.",
    ),
    click.option(
        "--rest",
        type=click.Choice(["fp16", "fp32"]),
        default="fp16",
        show_default=True,
        help="Precision of what is not INT8.",
    ),
    click.option(
        "--exclude", multiple=True, metavar="PATTERN", help="Nodes to keep out of INT8: layer4.*"
    ),
    click.option("--first-layer", type=_END, default="int8", show_default=True, help="Or keep."),
    click.option("--last-layer", type=_END, default="int8", show_default=True, help="Or keep."),
)


def options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of INT8."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def read_request(  # noqa: PLR0913 - one argument per option
    calib: str | None,
    count: int,
    seed: int,
    *,
    method: str,
    rest: str,
    exclude: tuple[str, ...],
    ends: tuple[str, str],
) -> Int8Request | None:
    """What the options ask for; ``None`` without ``--calib``."""
    if calib is None:
        return None
    from deploykit.onnx_graph.qdq import QdqPolicy
    from deploykit.pipeline.calibrate import CalibrationOptions
    from deploykit.pipeline.int8 import Int8Request
    from deploykit.specs import Precision
    from deploykit.stages.int8 import Int8Options

    first, last = (cast("Literal['int8', 'keep']", end) for end in ends)
    policy = QdqPolicy(exclude=exclude, first_layer=first, last_layer=last)
    calibration = CalibrationOptions(calib, count, seed, None)
    return Int8Request(calibration, method, Int8Options(policy, Precision(rest)))
