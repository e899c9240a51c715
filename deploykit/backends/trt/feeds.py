"""Feeds of an engine, checked against its inputs and its profile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from deploykit.backends._cuda.arrays import as_source
from deploykit.backends._feeds import check_feeds
from deploykit.core.errors import UsageError
from deploykit.core.sizes import AXIS_NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from deploykit.backends._cuda.arrays import GpuView
    from deploykit.backends._cuda.device import Stream
    from deploykit.core.sizes import ShapeProfile
    from deploykit.core.specs import Array, TensorSpec


def read_feeds(
    name: str,
    inputs: tuple[TensorSpec, ...],
    profile: ShapeProfile,
    feeds: Mapping[str, Any],
    stream: Stream,
) -> list[NDArray[Any] | GpuView]:
    """The sources of the inputs in their order; all have the same batch, one of the profile.

    Raises:
        UsageError: names, types, shapes or places are not the engine's, or the batch, the height
            or the width is outside the profile.
    """
    sources = {
        # The exact type first: it is the usual case, and the cheapest test in every call.
        key: value if type(value) is np.ndarray else as_source(key, value, stream)
        for key, value in feeds.items()
    }
    # It reads their dtype and shape only, which both kinds have.
    check_feeds(name, cast("Mapping[str, Array]", sources), inputs)
    ordered = [sources[spec.name] for spec in inputs]
    batch = ordered[0].shape[0]
    if len(ordered) > 1 and any(source.shape[0] != batch for source in ordered):
        batches = sorted(source.shape[0] for source in ordered)
        raise UsageError(f"the inputs of {name} have different batches: {batches}")
    if not profile.min_batch <= batch <= profile.max_batch:
        raise UsageError(
            f"{name} was fed a batch of {batch}, its profile is {profile.min_batch} to "
            f"{profile.max_batch}\nsplit or fill up the batch, or compile the engine with another "
            "--batch MIN,OPT,MAX"
        )
    if profile.height is not None or profile.width is not None:
        for spec, source in zip(inputs, ordered, strict=True):
            _check_image(name, spec, source.shape, profile)
    return ordered


def _check_image(
    name: str, spec: TensorSpec, shape: tuple[int, ...], profile: ShapeProfile
) -> None:
    ranges = profile.ranges
    for axis, dim in enumerate(spec.shape):
        sizes = ranges.get(axis)
        if isinstance(dim, str) and sizes is not None and shape[axis] not in sizes:
            label = AXIS_NAMES[axis]
            raise UsageError(
                f"{name} was fed images of {label} {shape[axis]}, its profile is {sizes.min} to "
                f"{sizes.max}\nresize or pad them, or compile the engine with another "
                f"--{label} MIN,OPT,MAX"
            )
