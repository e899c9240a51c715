"""What every form of labels has to obey."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deploykit.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


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
