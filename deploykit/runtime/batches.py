"""Any number of images through a runner that takes only so many at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from deploykit.core.sizes import ShapeProfile
    from deploykit.core.specs import TensorSpec

    Feeds = dict[str, Any]
    Run = Callable[[Feeds], Feeds]

_PREFERRED_ON_CPU: Final = 8
"""Images per run of a folder: onnxruntime on a CPU gains nothing from more, and needs memory."""


class BatchSplitWarning(UserWarning):
    """A batch was larger than the engine takes, and was run in several parts."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Smallest, preferred and largest batch of one run; ``largest`` ``None`` is any."""

    smallest: int = 1
    preferred: int = _PREFERRED_ON_CPU
    largest: int | None = None

    @classmethod
    def of_engine(cls, profile: ShapeProfile) -> BatchLimits:
        """What an engine's profile says."""
        return cls(profile.min_batch, profile.opt_batch, profile.max_batch)

    @classmethod
    def of_graph(cls, inputs: Sequence[TensorSpec]) -> BatchLimits:
        """Any batch, unless the graph fixes one."""
        batch = inputs[0].shape[0]
        return cls() if isinstance(batch, str) else cls(batch, batch, batch)

    def too_many(self, count: int) -> bool:
        """Whether ``count`` images need more than one run."""
        return self.largest is not None and count > self.largest

    def require_one_run(self, count: int, why: str) -> None:
        """Refuse what cannot be split or filled up, because of ``why``.

        Raises:
            UsageError: ``count`` images are too few or too many for one run.
        """
        if count < self.smallest or self.too_many(count):
            raise UsageError(
                f"a batch of {count} with {why}: the engine takes {self.smallest} to "
                f"{self.largest} at once\n"
                "give it such a batch, or one in main memory, which is split or filled up"
            )

    def parts(self, feeds: Feeds, count: int) -> Iterator[tuple[Feeds, int]]:
        """Feeds for one run each, with how many of its images are not padding.

        All but the last are as large as possible. What a part lacks to the smallest batch is
        filled with its last image: real values, so that nothing overflows that would not anyway.
        """
        step = self.largest or count
        for start in range(0, count, step):
            real = min(step, count - start)
            part = {name: array[start : start + real] for name, array in feeds.items()}
            missing = max(self.smallest - real, 0)
            yield {name: _padded(array, missing) for name, array in part.items()}, real

    def run(self, run: Run, feeds: Feeds, count: int, output: str) -> NDArray[np.float32]:
        """One output for all of ``feeds``, in as many runs as it takes."""
        if self.smallest <= count and not self.too_many(count):
            found = run(feeds)[output]
        else:
            found = np.concatenate([run(part)[output][:n] for part, n in self.parts(feeds, count)])
        return np.asarray(found, np.float32)


def _padded(array: NDArray[Any], missing: int) -> NDArray[Any]:
    if not missing:
        return array
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])
