"""The small files of a bundle: the golden sample, and the names of the classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.bundle import GOLDEN, SIDE_INPUTS
from deploykit.errors import DataError
from deploykit.runtime.golden import BESIDE

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.pipeline.sources import Reference
    from deploykit.side_inputs import SideInputs

GOLDEN_BATCH: Final = 2


def write_golden(
    folder: Path,
    batches: list[NDArray[np.float32]],
    logits: list[NDArray[np.float32]],
    side: SideInputs,
) -> None:
    """Keep one batch and what the reference made of it, for `Classifier.self_test`.

    All that is known of what the model takes beside images is kept too, for later commands.
    """
    # Two images where possible: enough to show a frozen batch, small enough to check in no time.
    distance = [abs(len(batch) - GOLDEN_BATCH) for batch in batches]
    at = distance.index(min(distance))
    beside = {f"{BESIDE}{name}": value for name, value in side.beside(batches[at]).items()}
    np.savez(folder / GOLDEN, input=batches[at], logits=logits[at], **beside)  # type: ignore[arg-type]  # names
    if side.rows:
        side.save(folder / SIDE_INPUTS)


def read_labels(path: Path) -> tuple[str, ...]:
    """Names of the classes, one on each line.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"cannot read the labels of {path}: {exc}") from exc


def fitting_labels(given: tuple[str, ...] | None, reference: Reference) -> tuple[str, ...] | None:
    """The labels that were given, or those that the reference knows.

    Raises:
        DataError: not one for each class.
    """
    classes = reference.logits[0].shape[-1]
    if given is not None and len(given) != classes:
        raise DataError(
            f"the file of labels has {len(given)} lines, the model has {classes} classes\n"
            "expected one name per line, in the order of the logits"
        )
    return reference.labels if given is None else given
