"""Options of commands that a Ray cluster may do: ``--ray``, ``--address``, ``--workers``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from deploykit.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class RayCall:
    """Which Ray cluster, and how many actors there; ``None`` is the default."""

    address: str | None
    workers: int | None


_OPTIONS = (
    click.option(
        "--ray",
        "on_ray",
        is_flag=True,
        help="On a Ray cluster, which needs the extra ray: docs/ray.md.",
    ),
    click.option(
        "--address",
        metavar="HOST:PORT",
        help="Of the Ray cluster.  [default: workers on this machine]",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        metavar="N",
        help="Actors of --ray that run the bundle.  [default: one for each GPU, or two CPUs]",
    ),
)


def ray_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options, of which the command gets ``cluster``: a `RayCall`, ``None`` without."""

    @wraps(function)
    def command(on_ray: bool, address: str | None, workers: int | None, **given: Any) -> Any:  # noqa: FBT001 - click's keyword
        return function(cluster=_read(address, workers, on_ray=on_ray), **given)

    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _read(address: str | None, workers: int | None, *, on_ray: bool) -> RayCall | None:
    for option, given in {"--address": address, "--workers": workers}.items():
        if given is not None and not on_ray:
            raise UsageError(f"{option} {given} is for --ray\nadd that, or leave it out")
    return RayCall(address, workers) if on_ray else None
