"""Noise of each group in each format, of whole choices, and the step back where they interact."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from math import inf, isfinite
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.core.precision import Precision
from deploykit.graph import qdq
from deploykit.precision.quantization.noise import worst_sqnr_db

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.core.progress import ProgressTask
    from deploykit.core.specs import Runner
    from deploykit.precision.budget.grouping import Group
    from deploykit.precision.budget.making import Side
    from deploykit.precision.budget.solver import Assignment, GroupTable

    Answers = Mapping[str, NDArray[np.float32]]

INTERACTION: Final = 1.26
"""Noise that a whole choice may have, of the sum of its groups': 1 dB more."""

MOST_STEPS: Final = 16
"""Steps back for one point, a pass over the images each."""

_LEVELS: Final = {Precision.FP32: qdq.EXACT, Precision.FP16: qdq.HALF}


@dataclass
class Noise:
    """Measures noise with one graph: power of the output's error over that of the output."""

    runner: Runner
    batches: Sequence[NDArray[np.float32]]
    expected: Sequence[Answers]

    def of(self, formats: Sequence[Precision]) -> float:
        """That of the noisiest output, with each group in its format.

        Raises:
            ValidationError: an output has another shape than in FP32.
        """
        levels = np.array([_LEVELS.get(each, qdq.NARROW) for each in formats], np.int64)
        feed, switch = (spec.name for spec in self.runner.inputs)
        with np.errstate(invalid="ignore", over="ignore"):
            found = [self.runner.run({feed: batch, switch: levels}) for batch in self.batches]
            ratio = worst_sqnr_db(self.expected, found)
        return 10 ** (-ratio / 10) if ratio == ratio else inf  # noqa: PLR0124 - NaN: it overflowed


@contextmanager
def open_noise(
    side: Side,
    groups: Sequence[Group],
    compared: tuple[Sequence[NDArray[np.float32]], Sequence[Answers]],
) -> Iterator[Noise]:
    """The graph of ``side`` with a level for each group, on batches and their FP32 answers.

    Raises:
        DataError: a range is missing.
        ModelFileError: the graph is too large without its weights.
    """
    graph = qdq.with_levels(side.graph.model, side.planned(), side.trial_amax, groups)
    with side.reference.runners.open_unoptimised(graph) as runner:
        yield Noise(runner, *compared)


def noise_table(
    noise: Noise,
    groups: Sequence[Group],
    formats: Sequence[Precision],
    can_narrow: frozenset[str],
    task: ProgressTask,
) -> list[list[float]]:
    """Noise (G, F) of each group alone in each format; infinite where it has not that format."""
    rows = []
    exact = [Precision.FP32] * len(groups)
    for at, group in enumerate(groups):
        row = []
        for each in formats:
            if each is Precision.FP32:
                row.append(0.0)
            elif each.facts.quantized and can_narrow.isdisjoint(group):
                row.append(inf)
            else:
                row.append(noise.of([*exact[:at], each, *exact[at + 1 :]]))
        rows.append(row)
        task.update(at + 1, len(groups), "noise of each group")
    return rows


def repaired(
    noise: Noise, table: GroupTable, choice: Assignment, formats: Sequence[Precision]
) -> tuple[Assignment, float]:
    """A choice whose noise is what its groups' come to, with the noise that was measured.

    Where the whole has more, because groups act on each other, the group that takes most noise
    away for its time steps back to a wider format, until it has not.
    """
    most = INTERACTION * choice.noise
    found = noise.of([formats[at] for at in choice.formats])
    for _ in range(MOST_STEPS):
        if found <= most:
            break
        back = _step_back(table, choice)
        if back is None:
            break
        choice = back
        found = noise.of([formats[at] for at in choice.formats])
    return choice, found


def _step_back(table: GroupTable, choice: Assignment) -> Assignment | None:
    """One group in the next wider format: that which takes most noise away for its time."""
    best, best_gain = None, 0.0
    for group, at in enumerate(choice.formats):
        if at + 1 >= len(table.noise[group]):
            continue
        formats = (*choice.formats[:group], at + 1, *choice.formats[group + 1 :])
        other = table.evaluated(formats)
        less, more = choice.noise - other.noise, other.ms - choice.ms
        if less <= 0 or not isfinite(other.ms):
            continue
        gain = inf if more <= 0 else less / more
        if gain > best_gain:
            best, best_gain = other, gain
    return best
