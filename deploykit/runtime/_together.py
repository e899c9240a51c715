"""Requests run as one batch, and what each of them gets when that fails."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any, Protocol

from deploykit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Images = NDArray[Any]


class BatchModel(Protocol):
    """Takes images (N, C, H, W) and returns logits (N, classes); a `Classifier` is one.

    Where it has ``inputs`` as well (a tuple with one `TensorSpec`), they are compared with every
    request, and so is an engine's ``profile``.
    """

    def run(self, batch: NDArray[Any], /) -> Any:
        """Logits (N, classes) for images (N, C, H, W)."""


def run_together(model: BatchModel, requests: Sequence[Images]) -> Iterator[Images | BaseException]:
    """For each request's images (n, C, H, W) its own logits, or the error that is its own.

    When the batch fails, one blank image is tried. If that fails too the model itself is broken:
    every request gets the error of the batch, and the model is not asked again. Otherwise one
    request is to blame, or the size of the batch (memory), and each runs once more, alone.
    """
    together = _attempt(model, requests)
    if not isinstance(together, BaseException):
        yield from together
    elif len(requests) > 1 and isinstance(together, Exception) and _works(model, requests[0]):
        for number in range(len(requests)):
            alone = _attempt(model, requests[number : number + 1])
            yield alone if isinstance(alone, BaseException) else alone[0]
    else:
        yield from [together] * len(requests)


def _attempt(model: BatchModel, requests: Sequence[Images]) -> list[Images] | BaseException:
    try:
        return _run(model, requests)
    # SystemExit too: a thread that ended here would leave its callers waiting for ever.
    except BaseException as error:
        _forget_locals(error)
        return error


def _forget_locals(error: BaseException) -> None:
    """A caller that keeps its error would keep the whole batch through the frames of the model."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__


def _run(model: BatchModel, requests: Sequence[Images]) -> list[Images]:
    import numpy as np

    batch = requests[0] if len(requests) == 1 else np.concatenate(requests)
    logits = np.asarray(model.run(batch))
    if logits.shape[:1] != batch.shape[:1]:
        raise UsageError(
            f"the model returned {logits.shape} for a batch of {len(batch)} images\n"
            "expected one row for each image"
        )
    ends = np.cumsum([len(images) for images in requests])[:-1]
    # Copies: a view would keep the logits of the whole batch, and let callers write to them.
    return [part.copy() for part in np.split(logits, ends)]


def _works(model: BatchModel, like: Images) -> bool:
    import numpy as np

    try:
        model.run(np.zeros_like(like[:1]))
    except BaseException:  # as in _attempt
        return False
    return True
