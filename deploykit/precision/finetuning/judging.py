"""TuningVerdict on a fine-tuned graph: whether it is nearer to FP32 than before, beyond chance."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import comb
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.heads import Head

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Outputs = NDArray[np.float32]
    Rows = NDArray[np.float64]

SIGNIFICANCE: Final = 0.05
"""Largest probability of as many better images by chance, one-sided."""


@dataclass(frozen=True)
class Paired:
    """One measure of distance from FP32 on the same images, before and after.

    ``before`` and ``after`` are means; so many images came nearer or went further away; ``chance``
    is the probability of as many nearer ones if either were as likely: the sign test, which for
    answers that change or not is McNemar's exact test.
    """

    measure: str
    before: float
    after: float
    nearer: int
    further: int
    chance: float

    @classmethod
    def of(cls, measure: str, before: Rows, after: Rows) -> Paired:
        """Of distances (N,) in the same order."""
        nearer, further = int((after < before).sum()), int((after > before).sum())
        return cls(
            measure,
            float(before.mean()),
            float(after.mean()),
            nearer,
            further,
            sign_test(nearer, further),
        )

    @property
    def is_gain(self) -> bool:
        """Whether the mean fell, and more images came nearer than chance explains."""
        return self.after < self.before and self.chance <= SIGNIFICANCE


@dataclass(frozen=True)
class TuningVerdict:
    """The head's own measure (answers that change, of classes), and the distance of each output."""

    images: int
    own: Paired
    distance: Paired

    @property
    def is_kept(self) -> bool:
        """One of the two gains, and the head's own measure gets no worse.

        Few answers change in eight bits: where so few of them cannot show a gain, the distance of
        each image's output from FP32 can.
        """
        return self.own.is_gain or (self.distance.is_gain and self.own.after <= self.own.before)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the manifest; agreement is that of the answers of classes."""
        agreement = {
            f"agreement_{when}": 1 - value
            for when, value in (("before", self.own.before), ("after", self.own.after))
            if self.own.measure != Head.loss_measure
        }
        return {
            "images": self.images,
            **agreement,
            "own": asdict(self.own),
            "distance": asdict(self.distance),
        }


def sign_test(nearer: int, further: int) -> float:
    """Probability of ``nearer`` heads or more out of all, of a fair coin.

    >>> sign_test(5, 0), sign_test(0, 0), sign_test(4, 1)
    (0.03125, 1.0, 0.1875)
    """
    total = nearer + further
    ways: int = sum(comb(total, hits) for hits in range(nearer, total + 1))
    return float(ways / 2**total)


def judged(head: Head, exact: Outputs, before: Outputs, after: Outputs) -> TuningVerdict:
    """The verdict by outputs (N, ...) for the same images, of FP32 and of both graphs."""
    own = Paired.of(head.loss_measure, head.losses(before, exact), head.losses(after, exact))
    name, (left, right) = _distances(head, exact, before, after)
    return TuningVerdict(len(exact), own, Paired.of(name, left, right))


def _distances(
    head: Head, exact: Outputs, before: Outputs, after: Outputs
) -> tuple[str, tuple[Rows, Rows]]:
    found = [
        [head.closeness(each[at : at + 1], exact[at : at + 1])[0] for at in range(len(exact))]
        for each in (before, after)
    ]
    if any(one is None for each in found for one in each):
        return "error", (Head.losses(head, before, exact), Head.losses(head, after, exact))
    return "kl", (np.array(found[0], np.float64), np.array(found[1], np.float64))
