"""Accuracy with its interval, and tests whether two models differ: pure counting."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Interval = tuple[float, float]

Z_95: Final = 1.959964
"""Two-sided 95 % quantile of the normal distribution."""

SIGNIFICANCE: Final = 0.05
"""Below this p value a difference counts as one; the counterpart of 95 % intervals."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model said of each labelled image, all (N,).

    ``ranks`` is how many classes the model puts before the label: 0 is a hit, below 5 a top-5 hit.
    """

    labels: NDArray[np.int64]
    top1: NDArray[np.int64]
    ranks: NDArray[np.int64]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Where the first class is the label (N,)."""
        right: NDArray[np.bool_] = self.top1 == self.labels
        return right

    def hits(self, k: int) -> int:
        """How many images have their label among the first ``k`` classes."""
        return int((self.ranks < k).sum())


@dataclass(frozen=True, slots=True)
class ClassAccuracy:
    """Top-1 on the images of one class, with its 95 % interval."""

    index: int
    count: int
    right: int
    interval: Interval

    @property
    def top1(self) -> float:
        """Share of the class's images, from 0 to 1."""
        return self.right / self.count


@dataclass(frozen=True, slots=True)
class Confusion:
    """So many images of class ``label`` were taken for ``predicted``."""

    label: int
    predicted: int
    count: int


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """Two models on the same images, counted by who had the right top-1.

    ``agreeing`` counts images with the same top-1, right or wrong; ``p_value`` is of McNemar's
    exact test.
    """

    both_right: int
    only_first: int
    only_second: int
    both_wrong: int
    agreeing: int
    p_value: float

    @property
    def better(self) -> Literal["first", "second"] | None:
        """Which model is right more often, where chance alone would hardly make the difference."""
        if self.p_value >= SIGNIFICANCE:
            return None
        return "first" if self.only_first > self.only_second else "second"


def label_ranks(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many classes come before the label in each row of ``logits`` (N, K).

    Equal logits rank by class, the lower first, as ``argmax`` does.

    >>> label_ranks(np.array([[0.1, 0.9, 0.5], [0.5, 0.5, 0.5]], np.float32), np.array([2, 1]))
    array([1, 1])
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    lower = np.arange(logits.shape[1]) < labels[:, None]
    ranks: NDArray[np.int64] = ((logits > own) | ((logits == own) & lower)).sum(axis=1)
    return ranks


def wilson_interval(hits: int, count: int) -> Interval:
    """95 % interval of a share by Wilson's score (Wilson 1927, JASA 22, 209-212).

    Of the usual intervals it is the one that also holds for few images and for shares near 0 and 1
    (Brown, Cai and DasGupta 2001, Statistical Science 16, 101-133).

    >>> low, high = wilson_interval(915, 1000)
    >>> round(low, 4), round(high, 4)
    (0.8961, 0.9307)
    """
    share, z2 = hits / count, Z_95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z_95 * sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Two-sided p value of McNemar's test (1947, Psychometrika 12, 153-157), exact.

    Only images that one model gets right and the other wrong tell the two apart. If neither were
    better, each would be a toss of a coin: twice the binomial tail of the rarer side, at most 1.

    >>> mcnemar_p_value(1, 9)
    0.021484375
    >>> mcnemar_p_value(0, 0)
    1.0
    """
    tosses = only_first + only_second
    ways = tail = 1
    for heads in range(min(only_first, only_second)):
        ways = ways * (tosses - heads) // (heads + 1)
        tail += ways
    return min(1.0, 2 * tail / (1 << tosses))  # in whole numbers: no tail is too small to count


def compare_answers(first: Answers, second: Answers) -> PairedComparison:
    """Both models image by image; they answered the same images in the same order."""
    only_first = int((first.right & ~second.right).sum())
    only_second = int((second.right & ~first.right).sum())
    return PairedComparison(
        both_right=int((first.right & second.right).sum()),
        only_first=only_first,
        only_second=only_second,
        both_wrong=int((~first.right & ~second.right).sum()),
        agreeing=int((first.top1 == second.top1).sum()),
        p_value=mcnemar_p_value(only_first, only_second),
    )


def per_class(answers: Answers) -> tuple[ClassAccuracy, ...]:
    """Top-1 of every class that has images, the worst first; of equal shares the more images."""
    counts = np.bincount(answers.labels)
    rights = np.bincount(answers.labels[answers.right], minlength=len(counts))
    found = [
        ClassAccuracy(index, count, right, wilson_interval(right, count))
        for index, (count, right) in enumerate(zip(counts.tolist(), rights.tolist(), strict=True))
        if count
    ]
    return tuple(sorted(found, key=lambda one: (one.top1, -one.count, one.index)))


def confusions(answers: Answers, most: int) -> tuple[Confusion, ...]:
    """The ``most`` frequent wrong answers, the most frequent first; equal ones by class."""
    wrong = ~answers.right
    pairs = np.stack([answers.labels[wrong], answers.top1[wrong]], axis=1)
    kinds, counts = np.unique(pairs, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]  # np.unique has sorted the pairs by class
    return tuple(
        Confusion(int(kinds[at, 0]), int(kinds[at, 1]), int(counts[at])) for at in order.tolist()
    )
