"""Options of the form that a network is deployed in: bytes in, results out."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from deploykit.cli._options import all_of
from deploykit.core.choices import CHANNEL_ORDERS
from deploykit.core.deployed import INPUTS, LAYOUTS, DeployedForm

if TYPE_CHECKING:
    from collections.abc import Callable

_OPTIONS = (
    click.option(
        "--input",
        "given_input",
        type=click.Choice(INPUTS),
        help="What the graph takes: prepared images, or pixels of 0 to 255 as bytes, which it "
        "converts and normalises itself; decoding, resizing and the crop stay outside.  "
        "[default: float32]",
    ),
    click.option(
        "--input-layout",
        type=click.Choice(LAYOUTS),
        help="Of bytes: (N, H, W, C) or (N, C, H, W).  [default: nhwc]",
    ),
    click.option(
        "--input-order",
        type=click.Choice(CHANNEL_ORDERS),
        help="Of bytes: bgr as OpenCV has them.  [default: rgb, or grey]",
    ),
    click.option(
        "--result",
        "results",
        multiple=True,
        metavar="probabilities|classes|topk:K",
        help="What the graph ends in, by its head: all probabilities, the class, or the K "
        "likeliest classes and their probabilities.  [default: as the network ends]",
    ),
)


def deployed_form(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; the command gets ``form``, `DeployedForm`."""

    @all_of(_OPTIONS)
    @wraps(function)
    def command(
        given_input: str | None,
        input_layout: str | None,
        input_order: str | None,
        results: tuple[str, ...],
        **given: Any,
    ) -> Any:
        form = DeployedForm.of(given_input, input_layout, input_order, results)
        return function(form=form, **given)

    return command
