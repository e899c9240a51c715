"""Accuracy with its interval, and tests whether two models differ: pure counting."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import sqrt
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from deploykit.core.errors import DataError
from deploykit.heads._head import Evaluation, Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Interval = tuple[float, float]

Z_95: Final = 1.959964
"""Two-sided 95 % quantile of the normal distribution."""

SIGNIFICANCE: Final = 0.05
"""Below this p value a difference counts as one; the counterpart of 95 % intervals."""


TOP: Final = 5
"""Classes that count as a hit of the second kind, as the papers of ImageNet count."""


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


def blind_spots(answers: Answers) -> list[str]:
    """Why the share of right ``answers`` says nothing of the model, a sentence each.

    >>> same = np.zeros(9, np.int64)
    >>> blind_spots(Answers(same, same, same))
    ['all 9 images are labelled class 0: a model that gives no other answer is always right']
    """
    count, label, top1 = len(answers.labels), int(answers.labels[0]), int(answers.top1[0])
    if count == 1:
        return ["one image alone was judged"]
    found = []
    has_one_label = bool((answers.labels == label).all())
    if has_one_label:
        found.append(
            f"all {count} images are labelled class {label}: a model that gives no other answer "
            "is always right"
        )
    if (answers.top1 == top1).all() and not (has_one_label and label == top1):
        found.append(f"all {count} images get the answer class {top1}")
    return [*found, *_other_order(answers)]


_BEYOND_CHANCE: Final = 2.5
"""Standard deviations, of a count of answers that are as likely right as wrong, and more."""

_IMAGES_OF_CLASS: Final = 4
_SHOWN_CLASSES: Final = 3


def _other_order(answers: Answers) -> list[str]:
    """A sentence where the answers fit the labels once these are taken in another order.

    >>> labels = np.arange(30) % 3
    >>> _other_order(Answers(labels, (labels + 1) % 3, (labels + 1) % 3))  # doctest: +ELLIPSIS
    [...30 of 30 images would be right, not 0, if label 0 were class 1, 1 class 2, 2 class 0...
    >>> _other_order(Answers(labels, labels, labels))
    []
    """
    labels = np.unique(answers.labels)
    usual = {
        int(label): int(np.bincount(answers.top1[answers.labels == label]).argmax())
        for label in labels
    }
    moved = {label: answer for label, answer in usual.items() if label != answer}
    count, right = len(answers.labels), int(answers.right.sum())
    # Of a single image the answer fits itself.
    has_few = count < _IMAGES_OF_CLASS * len(usual)
    if not moved or has_few or len(set(usual.values())) < len(usual):
        return []
    fitting = sum(
        int(((answers.labels == a) & (answers.top1 == b)).sum()) for a, b in usual.items()
    )
    if 2 * fitting < count or fitting - right < _BEYOND_CHANCE * sqrt(count):
        return []
    shown = list(moved.items())[:_SHOWN_CLASSES]
    order = ", ".join(f"{label} class {answer}" for label, answer in shown)
    more = ", ..." if len(moved) > len(shown) else ""
    order = order.replace(" class", " were class", 1)
    said = f"{fitting} of {count} images would be right, not {right}, if label {order}{more}"
    return [f"{said}: the order of the classes may be another one than the model's"]


@dataclass(frozen=True)
class Accuracy:
    """Shares of right answers, from 0 to 1, with the 95 % intervals of Wilson (1927).

    The intervals are for images drawn at random. ``top5`` is ``None`` for models of five classes
    or fewer, where it says nothing.
    """

    top1: float
    top5: float | None
    top1_interval: Interval
    top5_interval: Interval | None

    @classmethod
    def of(cls, answers: Answers, classes: int) -> Accuracy:
        """The shares of a model that tells so many ``classes`` apart."""
        count, hits1, hits5 = len(answers.labels), answers.hits(1), answers.hits(TOP)
        has_top5 = classes > TOP
        return cls(
            top1=hits1 / count,
            top5=hits5 / count if has_top5 else None,
            top1_interval=wilson_interval(hits1, count),
            top5_interval=wilson_interval(hits5, count) if has_top5 else None,
        )


@dataclass(frozen=True)
class ClassEvaluation(Evaluation):
    """What came of one pass over the images; ``other`` and ``comparison`` are of the other model.

    ``answers`` are the model's own, for tables by class.
    """

    count: int
    accuracy: Accuracy
    other: Accuracy | None
    comparison: PairedComparison | None
    answers: Answers = field(compare=False, repr=False)

    @property
    def agreement(self) -> float | None:
        """Share of the images whose top-1 is the other model's, right or wrong."""
        return None if self.comparison is None else self.comparison.agreeing / self.count

    @classmethod
    def of(cls, tally: ClassTally, other: ClassTally | None) -> ClassEvaluation:
        """What the tallies of a model, and of another on the same images, come to."""
        answers = tally.answers()
        others = None if other is None else other.answers()
        return cls(
            count=len(answers.labels),
            accuracy=Accuracy.of(answers, tally.classes),
            other=None if others is None else Accuracy.of(others, tally.classes),
            comparison=None if others is None else compare_answers(answers, others),
            answers=answers,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        compared = self.comparison
        return {
            "count": self.count,
            **asdict(self.accuracy),
            "agreement": self.agreement,
            "agreement_interval": compared and wilson_interval(compared.agreeing, self.count),
            "comparison": compared and self._comparison(compared),
        }

    def _comparison(self, compared: PairedComparison) -> dict[str, Any]:
        better = {"first": "this", "second": "other", None: None}
        return {
            "both_right": compared.both_right,
            "only_this_right": compared.only_first,
            "only_other_right": compared.only_second,
            "both_wrong": compared.both_wrong,
            "p_value": compared.p_value,
            "better": better[compared.better],
            "other": self.other and asdict(self.other),
        }

    def blind_spots(self) -> list[str]:
        """One label, or one answer, for all images."""
        return blind_spots(self.answers)

    def tables(self, names: tuple[str, str | None]) -> list[Table]:
        """Top-1, top-5 and agreement; with another model's name both side by side."""
        agreement = "no reference: give one with --reference"
        if self.agreement is not None:
            whose = "the reference's" if names[1] is None else "the other's"
            agreement = f"{self.agreement:.2%} of the images have {whose} top-1"
        rows = (
            ("images", str(self.count)),
            ("top-1", share_text(self.accuracy.top1, self.accuracy.top1_interval)),
            ("top-5", share_text(self.accuracy.top5, self.accuracy.top5_interval)),
            ("agreement", agreement),
        )
        return [Table(("", ""), rows), *self._side_by_side(names)]

    def _side_by_side(self, names: tuple[str, str | None]) -> list[Table]:
        this, other = names
        if other is None or self.other is None or self.comparison is None:
            return []
        compared = self.comparison
        sides = ((this, self.accuracy), (other, self.other))
        shares = [
            (
                name,
                share_text(one.top1, one.top1_interval),
                share_text(one.top5, one.top5_interval),
            )
            for name, one in sides
        ]
        counts = (
            (str(compared.both_right), "both"),
            (str(compared.only_first), f"{this} only"),
            (str(compared.only_second), f"{other} only"),
            (str(compared.both_wrong), "neither"),
        )
        return [
            Table(("", "top-1", "top-5"), tuple(shares)),
            Table(
                ("images", "right by"),
                counts,
                right=("images",),
                note=_verdict((this, other), compared),
            ),
        ]

    def per_class(self, names: Sequence[str] | None) -> list[dict[str, Any]]:
        """Top-1 of every class that has images, the worst first."""
        return [
            {
                "class": one.index,
                "name": None if names is None else names[one.index],
                "count": one.count,
                "right": one.right,
                "top1": one.top1,
                "top1_interval": one.interval,
            }
            for one in per_class(self.answers)
        ]

    def confusions(self, most: int, names: Sequence[str] | None) -> list[dict[str, Any]]:
        """The most frequent wrong answers."""
        return [
            {
                "class": one.label,
                "name": None if names is None else names[one.label],
                "predicted": one.predicted,
                "predicted_name": None if names is None else names[one.predicted],
                "count": one.count,
            }
            for one in confusions(self.answers, most)
        ]


def share_text(share: float | None, interval: Interval | None) -> str:
    """A share with its interval.

    >>> share_text(0.5, (0.25, 0.75)), share_text(None, None)
    ('50.00% (95 % interval 25.00% to 75.00%)', '-')
    """
    if share is None or interval is None:
        return "-"
    return f"{share:.2%} (95 % interval {interval[0]:.2%} to {interval[1]:.2%})"


def _verdict(names: tuple[str, str], compared: PairedComparison) -> str:
    """What the comparison comes to, in a sentence."""
    sides = [(names[0], compared.only_first), (names[1], compared.only_second)]
    sides.sort(key=lambda side: -side[1])
    (more, most), (less, least) = sides
    only = f"{most} images are right with {more} only, {least} with {less} only"
    test = f"McNemar's exact test, p = {compared.p_value:.2g}"
    if compared.better is None:
        return f"nothing speaks for a difference in top-1: {only} ({test})"
    return f"{more} is better than {less} in top-1: {only} ({test})"


class ClassTally:
    """One model's answers, as they come in."""

    def __init__(self, labels: NDArray[np.int64]) -> None:
        self.classes = 0  # as long as it is not known
        self._labels = labels
        self._top1 = np.zeros_like(labels)
        self._ranks = np.zeros_like(labels)

    def add(self, indices: Sequence[int], logits: NDArray[np.float32]) -> None:
        """Count the logits (N, K) of the images at ``indices``.

        Raises:
            DataError: the model has no logit for a label.
        """
        self.classes = logits.shape[1]
        _require_known(self._labels, self.classes)
        self._top1[indices] = logits.argmax(axis=1)
        self._ranks[indices] = label_ranks(logits, self._labels[indices])

    def counted(self, indices: Sequence[int]) -> Mapping[str, NDArray[np.int64]]:
        """First class and rank of the label of the images at ``indices``, and how many classes."""
        classes = np.full(len(indices), self.classes, np.int64)
        return {"top1": self._top1[indices], "rank": self._ranks[indices], "classes": classes}

    def restore(self, indices: Sequence[int], counted: Mapping[str, NDArray[np.int64]]) -> None:
        """Take over what `counted` gave for the images at ``indices``."""
        self._top1[indices] = counted["top1"]
        self._ranks[indices] = counted["rank"]
        self.classes = int(counted["classes"][0])

    def require_same(self, other: ClassTally) -> None:
        """Refuse a model that tells another number of classes apart.

        Raises:
            DataError: it does.
        """
        if self.classes != other.classes and 0 not in (self.classes, other.classes):
            raise DataError(
                f"the models tell {self.classes} and {other.classes} classes apart\n"
                "one label cannot mean the same to both: compare models of the same classes"
            )

    def answers(self) -> Answers:
        """All that was counted."""
        return Answers(self._labels, self._top1, self._ranks)


def _require_known(labels: NDArray[np.int64], classes: int) -> None:
    # Of all images, though one batch is at hand: folders are sorted by class, the last come last.
    if int(labels.max()) >= classes:
        raise DataError(
            f"image {int(labels.argmax())} has label {int(labels.max())}, "
            f"the model tells {classes} classes apart\n"
            f"expected labels from 0 to {classes - 1}: are these images for another model?"
        )
