"""Options of INT8, and what they ask for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from deploykit.cli import _options

if TYPE_CHECKING:
    from collections.abc import Callable

    from deploykit.precision.calibration.data import CalibrationOptions
    from deploykit.precision.quantization.choice import Int8Choices
    from deploykit.precision.quantization.request import QuantizationRequest

_END = click.Choice(["auto", "int8", "keep"])

_OPTIONS = (
    click.option("--calib", metavar="PATH", help="Images for INT8, as --data; `random` is noise."),
    _options.calib_count,
    click.option(
        "--calib-table",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="A table of `calibrate` that must fit model and images; none is made anew.",
    ),
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
    click.option(
        "--first-layer",
        type=_END,
        default="auto",
        show_default=True,
        help="INT8, or kept in the precision of the rest; auto: kept if that pays.",
    ),
    click.option(
        "--last-layer", type=click.Choice(["int8", "keep"]), default="int8", show_default=True
    ),
    click.option(
        "--residual",
        type=_END,
        default="auto",
        show_default=True,
        help="Skip operands of residual additions, likewise.",
    ),
    click.option(
        "--sensitive-layers",
        type=_END,
        default="auto",
        show_default=True,
        help="Layers that each make a large part of the noise: INT8, or looked for and kept; "
        "auto: looked for where that takes seconds.",
    ),
    click.option(
        "--bias-correction",
        type=click.Choice(["auto", "on", "off"]),
        default="auto",
        show_default=True,
        help="Give back what rounding takes from each channel; auto: if that pays.",
    ),
)


def options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of INT8."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def read_request(
    calibration: CalibrationOptions | None,
    int8_choices: Int8Choices,
    *,
    rest: str,
    exclude: tuple[str, ...],
    last_layer: str,
) -> QuantizationRequest | None:
    """What the options ask for; ``None`` without calibration images."""
    if calibration is None:
        return None
    from deploykit.core.precision import Precision
    from deploykit.graph.qdq import QdqPolicy
    from deploykit.precision.quantization.request import QuantizationRequest

    policy = QdqPolicy(
        exclude=exclude,
        first_layer=_fixed(int8_choices.first_layer),
        last_layer=_fixed(last_layer),
        residual=_fixed(int8_choices.residual),
    )
    return QuantizationRequest(calibration, int8_choices, policy, Precision(rest))


def _fixed(wish: str) -> Literal["int8", "keep"]:
    return "keep" if wish == "keep" else "int8"
