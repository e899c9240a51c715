"""The connection to a Ray cluster, or one of this machine's own for the time of a call."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from deploykit.core.environment import require
from deploykit.core.errors import UsageError, first_line

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOGGERS: Final = ("ray", "ray.data", "ray.data._internal")


@dataclass(frozen=True)
class Cluster:
    """Ray with its data sets, and what the cluster has."""

    ray: Any
    data: Any
    cpus: float
    gpus: float


@contextmanager
def cluster(address: str | None) -> Iterator[Cluster]:
    """Connect to ``address``, or start workers on this machine; what was started is ended.

    A connection that is there already is used and stays. Ray's own words go to its log files.

    Raises:
        MissingDependencyError: Ray is not installed.
        UsageError: no cluster answers at ``address``.
    """
    # Ray warns of what its next versions will do: nothing that a caller of this can change.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray, data = require("ray"), require("ray.data")
        ours = not ray.is_initialized()
        if ours:
            _connect(ray, address)
        try:
            with _quiet(data.DataContext.get_current()):
                has = ray.cluster_resources()
                yield Cluster(ray, data, has.get("CPU", 1.0), has.get("GPU", 0.0))
        finally:
            if ours:
                ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    # A cluster of one's own has a dashboard by default; of another's nothing may be said.
    own = {} if address is not None else {"include_dashboard": False}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as exc:  # it raises a plain Exception where its processes do not start in time
        raise UsageError(
            f"no Ray cluster answers at {address or 'this machine'}: {first_line(exc)}\n"
            "give the address of its head, as --address 10.0.0.1:6379, or leave it out to start "
            "workers here"
        ) from exc


@contextmanager
def _quiet(context: Any) -> Iterator[None]:
    """Leave out the bars and what Ray says of each step and of errors, which are raised too.

    Its import sets the levels of its loggers, so this comes after it.
    """
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
        context.enable_progress_bars = bars
