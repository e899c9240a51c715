"""Weights of linear layers rounded together, so that their errors cancel on images.

Rounding each weight to its nearest number ignores that the inputs of a layer are correlated. Here
the rows of a weight are rounded one after the other, and the error of each is taken up by those
that are still exact, by the inputs' second moments (Frantar et al. 2022, GPTQ,
https://arxiv.org/abs/2210.17323, algorithm 1). Before, the weight is moved to where the layer's
rounded inputs give the least squared error (the target of Zhang et al. 2025, Qronos,
https://arxiv.org/abs/2505.11695, without its update of later layers). The engine is as fast.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.graph import qdq
from deploykit.graph.activations import expose_named
from deploykit.precision.quantization.conversion import QuantizationErrors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.core.progress import ProgressTask
    from deploykit.core.specs import Runner, SplitGraph
    from deploykit.graph import LoadedGraph
    from deploykit.graph.qdq import LinearGroup, QdqPlan
    from deploykit.graph.qdq.plan import QdqFormat

    Floats = NDArray[np.float32]
    Doubles = NDArray[np.float64]


DAMPING: Final = 0.05
"""Added to each channel's power, of the mean: what few images never showed stays as it was."""

FEWEST_ROWS: Final = 2
"""Rows of a value, for each channel: fewer say too little of how channels belong together."""

MOST_CHANNELS: Final = 4096
"""Of a layer's input: the time grows with their cube."""

PASS_BYTES: Final = 256 * 2**20
"""Of the moments that one pass over the images adds up; more values take another pass."""

_BLOCK: Final = 96
"""Rows whose errors are handed on one by one; those behind them get the sum in one product."""


@dataclass
class Moments:
    """Sums over rows of a layer's input (n, K): ``squares`` (K, K) of what it reads rounded."""

    squares: Floats
    exact_sum: Doubles
    rounded_sum: Doubles
    rows: int = 0

    @classmethod
    def of(cls, channels: int) -> Moments:
        """Without a row yet."""
        squares = np.zeros((channels, channels), np.float32)
        return cls(squares, np.zeros(channels), np.zeros(channels))

    def add(self, exact: Floats, rounded: Floats) -> None:
        """Count the rows (n, K) of an image."""
        self.squares += rounded.T @ rounded
        self.exact_sum += exact.sum(axis=0, dtype=np.float64)
        self.rounded_sum += rounded.sum(axis=0, dtype=np.float64)
        self.rows += len(exact)


@dataclass(frozen=True)
class RoundedWeights:
    """Weights (K, N) that the format holds with a scale per column, and what means still lack.

    ``shifts`` (N,) are mean(exact - quantized) of each layer's outputs.
    """

    weights: Mapping[str, Floats] = field(default_factory=dict)
    shifts: Mapping[str, Floats] = field(default_factory=dict)


def round_weights(
    graph: LoadedGraph,
    plan: QdqPlan,
    amax: Mapping[str, float],
    images: Sequence[Floats],
    *,
    open_runner: Callable[[SplitGraph], Runner],
    task: ProgressTask,
) -> RoundedWeights:
    """Round the weights of the linear layers that read tokens, on ``images`` (N, C, H, W)."""
    groups = [
        group
        for group in qdq.token_groups(graph.model, plan)
        if len(group.weights[0]) <= MOST_CHANNELS
    ]
    scales = qdq.activation_scales(plan, amax)

    def rounded(name: str, exact: Floats) -> Floats:
        return qdq.round_to(exact, scales[name], plan.format)

    weights: dict[str, Floats] = {}
    shifts: dict[str, Floats] = {}
    for some in _passes(groups):
        seen = _moments(graph, some, rounded, images, open_runner, task)
        for group in some:
            moments = seen.pop(group.value)
            if moments.rows < FEWEST_ROWS * len(group.weights[0]):
                continue
            wide = np.concatenate(group.weights, axis=1)
            found = round_together(wide, moments, plan.format)
            lost = (moments.exact_sum @ wide - moments.rounded_sum @ found) / moments.rows
            ends = np.cumsum([each.shape[1] for each in group.weights])[:-1]
            weights |= zip(group.layers, np.split(found, ends, axis=1), strict=True)
            shifts |= zip(group.layers, np.split(lost.astype(np.float32), ends), strict=True)
    return RoundedWeights(weights, shifts)


def with_rounded_weights(errors: QuantizationErrors, found: RoundedWeights) -> QuantizationErrors:
    """The errors that a conversion gives back: those of rounded weights instead of the nearest."""
    shifts = {layer: found.shifts.get(layer, shift) for layer, shift in errors.shifts.items()}
    return QuantizationErrors(shifts, errors.activation_sqnr_db, found.weights)


def _passes(groups: Sequence[LinearGroup]) -> Iterator[list[LinearGroup]]:
    some: list[LinearGroup] = []
    used = 0
    for group in groups:
        size = 4 * len(group.weights[0]) ** 2
        if some and used + size > PASS_BYTES:
            yield some
            some, used = [], 0
        some.append(group)
        used += size
    if some:
        yield some


def _moments(
    graph: LoadedGraph,
    groups: Sequence[LinearGroup],
    rounded: Callable[[str, Floats], Floats],
    images: Sequence[Floats],
    open_runner: Callable[[SplitGraph], Runner],
    task: ProgressTask,
) -> dict[str, Moments]:
    names = [group.value for group in groups]
    found = {group.value: Moments.of(len(group.weights[0])) for group in groups}
    with open_runner(expose_named(graph.model, names)) as runner:
        feed = runner.inputs[0].name
        for done, batch in enumerate(images, start=1):
            values = runner.run({feed: batch})
            for name in names:
                exact = np.asarray(values[name], np.float32).reshape(-1, values[name].shape[-1])
                found[name].add(exact, rounded(name, exact))
            task.update(done, len(images), "rounding of weights")
    return found


def round_together(weight: Floats, moments: Moments, wanted: QdqFormat) -> Floats:
    """Numbers of the format for a weight (K, N) with the least error in what it computes.

    The largest number of each column keeps the format's largest, so that the scale that is found
    from the result is the one that it was rounded with.
    """
    power = moments.squares.astype(np.float64)
    power += np.eye(len(power)) * (DAMPING * np.diag(power).mean() or 1.0)
    order = np.argsort(-np.diag(power), kind="stable")
    inverse = np.linalg.inv(power[np.ix_(order, order)])
    factor = np.linalg.cholesky(inverse).T.astype(np.float32)
    found = np.empty_like(weight)
    found[order] = _rounded_rows(weight[order], factor, wanted)
    return found


def _rounded_rows(left: Floats, factor: Floats, wanted: QdqFormat) -> Floats:
    """Round the rows of ``left`` in turn, which is changed; ``factor`` hands on their errors."""
    scales = qdq.channel_scales(left, 1, wanted)
    largest = np.abs(left).argmax(axis=0)
    columns = np.arange(left.shape[1])
    ends = np.sign(left[largest, columns]) * scales * np.float32(wanted.largest)
    found = np.empty_like(left)
    for start in range(0, len(left), _BLOCK):
        stop = min(len(left), start + _BLOCK)
        errors = np.empty((stop - start, left.shape[1]), np.float32)
        for row in range(start, stop):
            near = qdq.round_to(left[row], scales, wanted)
            found[row] = np.where(largest == row, ends, near)
            error = errors[row - start] = (left[row] - found[row]) / factor[row, row]
            left[row + 1 : stop] -= np.outer(factor[row, row + 1 : stop], error)
        left[stop:] -= factor[start:stop, stop:].T @ errors
    return found
