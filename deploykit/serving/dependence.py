"""Trial of a fixed batch: where its images change one another's answers, callers share none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.core.errors import DeploykitError
from deploykit.core.sizes import IMAGE_AXES, ShapeProfile, filled
from deploykit.core.specs import Preprocessing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from deploykit.core.specs import TensorSpec

    Run = Callable[[NDArray[Any]], Mapping[str, NDArray[Any]]]

_ROUNDING: Final = 1e-2
"""Of an output's largest value: an engine may round an image otherwise at another place."""

_OPEN_PX: Final = 64
"""An open height or width, where nothing says one."""


def images_depend(model: Any, run: Run) -> bool:
    """Whether an image's answer depends on the others of a fixed batch, or on its place there.

    Frames of a video, or a mean over the batch: one caller's images would change the answers of
    another's. An open batch was compared with the original image by image at export. Here an image
    is run twice, at another place and among others. ``run`` takes images as the first of
    ``model.inputs``; an open height and width are the preferred ones of its ``profile`` or its
    ``preprocessing``, where it has one.
    """
    spec: TensorSpec = model.inputs[0]
    if isinstance(spec.shape[0], str) or spec.shape[0] == 1:
        return False
    first, second = _two_batches(spec, _sizes_of(model))
    second[-1] = first[0]
    try:
        one, other = run(first), run(second)
    except DeploykitError:  # of noise: then its own images, and nobody else's, are to blame
        return True
    return not all(_agree(one[name][0], other[name][-1]) for name in one)


def _sizes_of(model: Any) -> dict[int, int]:
    profile, steps = getattr(model, "profile", None), getattr(model, "preprocessing", None)
    if isinstance(profile, ShapeProfile):
        return profile.preferred
    if isinstance(steps, Preprocessing):
        return dict(zip(IMAGE_AXES, steps.crop, strict=True))
    return {}


def _two_batches(spec: TensorSpec, sizes: dict[int, int]) -> tuple[NDArray[Any], ...]:
    shape = filled(spec.shape, dict.fromkeys(range(len(spec.shape)), _OPEN_PX) | sizes) or ()
    random = np.random.default_rng(0)
    return tuple(
        random.integers(0, 256, shape, np.uint8)
        if spec.dtype == "uint8"
        else random.standard_normal(shape).astype(spec.dtype)
        for _ in range(2)
    )


def _agree(one: NDArray[Any], other: NDArray[Any]) -> bool:
    if one.dtype.kind != "f":
        return np.array_equal(one, other)
    largest = np.abs(one.astype(np.float64)).max(initial=0)
    return np.allclose(one, other, rtol=0, atol=_ROUNDING * largest)
