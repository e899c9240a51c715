"""Images, labels and class names in one array file (``.npz``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.core.errors import DataError
from deploykit.core.npz import open_npz

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray


EXPECTED: Final = (
    "expected `images` uint8 (N, H, W, 3), and if wanted `labels` of whole numbers (N,)\n"
    "and `classes`, their names"
)


def read_npz(
    path: Path,
) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None, tuple[str, ...] | None]:
    """Images (N, H, W, 3), labels and class names of an ``.npz``; pickles are never read.

    Raises:
        DataError: damaged, or not of the expected names, types and shapes.
    """
    arrays = _read_arrays(path)
    images = _require_images(path, arrays)
    classes = _require_classes(path, arrays.get("classes"))
    labels = _require_labels(path, arrays.get("labels"), len(images), classes)
    images.setflags(write=False)
    return images, labels, classes


def _read_arrays(path: Path) -> Mapping[str, NDArray[Any]]:
    try:
        with open_npz(path) as archive:
            known = ("images", "labels", "classes")
            found = {name: archive[name] for name in known if name in archive}
            names = ", ".join(archive) or "nothing"
    except DataError:
        raise
    # zipfile, zlib and numpy's header parser each raise their own kinds on damaged bytes.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"cannot read {path}: {reason}\n{EXPECTED}") from error
    if "images" not in found:
        raise DataError(f"{path} has no `images`, it has: {names}\n{EXPECTED}")
    return found


def _require_images(path: Path, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    images = arrays["images"]
    right_shape = images.ndim == 4 and images.shape[3] == 3  # noqa: PLR2004
    if images.dtype != np.uint8 or not right_shape or images.size == 0:
        raise DataError(f"`images` of {path} is {images.dtype} {images.shape}\n{EXPECTED}")
    return images


def _require_classes(path: Path, classes: NDArray[Any] | None) -> tuple[str, ...] | None:
    if classes is None:
        return None
    if classes.dtype.kind != "U" or classes.ndim != 1:
        raise DataError(f"`classes` of {path} is {classes.dtype} {classes.shape}\n{EXPECTED}")
    return tuple(str(name) for name in classes)


def _require_labels(
    path: Path, labels: NDArray[Any] | None, count: int, classes: tuple[str, ...] | None
) -> NDArray[np.int64] | None:
    if labels is None:
        return None
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise DataError(
            f"`labels` of {path} is {labels.dtype} {labels.shape} for {count} images\n{EXPECTED}"
        )
    # A label of an unsigned type beyond int64 turns negative here and is refused below.
    numbers = labels.astype(np.int64)
    require_in_range(path, numbers, classes)
    numbers.setflags(write=False)
    return numbers


def require_in_range(
    path: Path, labels: NDArray[np.int64], classes: tuple[str, ...] | None
) -> None:
    """Refuse labels below 0, and those beyond ``classes`` where the names are given.

    Raises:
        DataError: with the first such label and where it stands.
    """
    limit = np.iinfo(np.int64).max if classes is None else len(classes)
    wrong = np.flatnonzero((labels < 0) | (labels >= limit))
    if wrong.size:
        highest = "up" if classes is None else f"to {limit - 1}, one of {limit} classes"
        raise DataError(
            f"image {wrong[0]} of {path} has label {labels[wrong[0]]}\nexpected 0 {highest}"
        )
