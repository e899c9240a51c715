"""Labels that do not exclude each other: a yes or no for each of (N, labels), by itself."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from deploykit.core.errors import DataError, UsageError
from deploykit.heads._head import Figures, Head, figures_of, require_finite, rows_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deploykit.core.precision import Limits
    from deploykit.heads._head import Outputs, Rows

MIN_IMAGES_FOR_AGREEMENT: Final = 100
"""Below this, one image on a near tie would already be more than a percent."""

THRESHOLD: Final = 0.5
"""Probability from which a label is a yes, where nobody says another."""

_MOST_SHOWN: Final = 10
_NAN: Final = float("nan")


@dataclass(frozen=True, slots=True)
class LabelComparison(Figures):
    """Candidate against reference on one batch, label by label, by their probabilities.

    ``max_error`` is the largest difference of two probabilities, at ``worst_label``;
    ``max_scaled`` the largest error of a value over the largest value, which counts as 1 at least;
    ``agreement`` the share of images with equal decisions on the label that has the fewest;
    ``flips`` the images whose decision changed, by label; ``flipped_margins`` how far the
    reference's probability was from the threshold for each of these.
    """

    max_error: float
    worst_label: int
    max_scaled: float
    agreement: float
    flips: Mapping[str, int]
    flipped_margins: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LabelAnswer:
    """One label of one image; ``present`` where its ``probability`` reaches the threshold.

    ``label`` is ``None`` where the bundle has no labels, ``logit`` where the graph ends in its
    sigmoid.
    """

    index: int
    label: str | None
    probability: float
    logit: float | None
    present: bool


class Multilabel(Head):
    """Several labels per image, each with a probability of its own."""

    name = "multilabel"
    noun = "labels"
    layout = "(batch, labels)"
    form = "2-dimensional"
    comparison_columns = (
        "batch", "max abs", "mean abs", "max rel", "probability", "same", "flipped at",
    )  # fmt: skip
    answer_columns: tuple[str, ...] = ("label", "present", "probability")
    threshold: float = THRESHOLD

    def with_threshold(self, threshold: float) -> Self:
        """This head where a probability from ``threshold`` up is a yes.

        Raises:
            UsageError: it is not between 0 and 1.
        """
        if not 0.0 < threshold < 1.0:
            raise UsageError(
                f"--threshold is {threshold:g}\nexpected a probability between 0 and 1, as 0.5"
            )
        changed = self.applied(self.activation)
        changed.threshold = threshold
        return changed

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether the values are (N, K)."""
        return len(shape) == 2  # noqa: PLR2004

    def probabilities(self, outputs: Outputs) -> Rows:
        """The probability of each label (N, K): the graph's own, or the sigmoid of its logits."""
        rows = rows_of(outputs)
        if self.activation == "log_softmax":
            return np.exp(rows)
        return sigmoid(rows) if self.activation == "none" else rows

    def compare(self, candidate: Outputs, reference: Outputs) -> LabelComparison:
        """The figures of one batch of outputs of equal shape."""
        common = figures_of(candidate, reference)
        if common.non_finite:
            return LabelComparison(**asdict(common), **_NOTHING)
        got, wanted = self.probabilities(candidate), self.probabilities(reference)
        errors = np.abs(got - wanted)
        changed = (got >= self.threshold) != (wanted >= self.threshold)
        counts = changed.sum(axis=0)
        flips = {str(at): int(counts[at]) for at in np.flatnonzero(counts).tolist()}
        scale = max(1.0, float(np.abs(reference).max()))
        return LabelComparison(
            **asdict(common),
            max_error=float(errors.max()),
            worst_label=int(errors.max(axis=0).argmax()),
            max_scaled=common.max_abs / scale,
            agreement=float(1 - counts.max() / len(got)),
            flips=flips,
            flipped_margins=tuple(np.abs(wanted - self.threshold)[changed].tolist()),
        )

    def problems_of(self, figures: LabelComparison, limits: Limits) -> list[str]:
        """What is beyond its limit: values, probabilities, and over many images decisions."""
        where = f"at batch {figures.batch}"
        if figures.non_finite:
            return [f"{figures.non_finite} values are NaN or infinite {where}"]
        found = []
        if figures.max_scaled > limits.max_relative:
            found.append(
                f"largest error is {figures.max_scaled:.2e} of the largest value {where}, "
                f"limit {limits.max_relative:.0e}"
            )
        # A sigmoid is at most a quarter as steep as its logit; half leaves room for large logits.
        if figures.max_error > limits.max_relative / 2:
            found.append(
                f"{self._named(figures.worst_label)} is {figures.max_error:.4f} off "
                f"{where}, limit {limits.max_relative / 2:g}"
            )
        enough = figures.batch >= MIN_IMAGES_FOR_AGREEMENT
        if enough and figures.agreement < limits.min_agreement:
            found.append(
                f"equal decisions on {figures.agreement:.2%} of the images {where}, "
                f"limit {limits.min_agreement}"
            )
        return found

    def _named(self, label: int) -> str:
        return f"the probability of label {label}"

    def summary_of(self, batches: Sequence[LabelComparison]) -> dict[str, Any]:
        """Decisions that changed over all images, by label, and the nearest to the threshold."""
        images = sum(batch.batch for batch in batches)
        flips: Counter[str] = Counter()
        for batch in batches:
            flips.update(batch.flips)
        margins = [margin for batch in batches for margin in batch.flipped_margins]
        worst = flips.most_common(_MOST_SHOWN)
        return {
            "smallest_flipped_margin": min(margins, default=None),
            "label_agreement": {label: 1 - count / images for label, count in worst},
        }

    def comparison_row(self, figures: Mapping[str, Any]) -> tuple[str, ...]:
        """The figures of one batch, as plain data, under `comparison_columns`."""
        flipped = figures["flipped_margins"]
        return (
            *super().comparison_row(figures)[:4],
            f"{figures['max_error']:.2e}",
            f"{figures['agreement']:.1%}",
            f"{min(flipped):.2e}" if flipped else "-",
        )

    def undecided(self, outputs: Outputs) -> list[str]:
        """Every label has one decision on all images."""
        yes = self.probabilities(outputs) >= self.threshold
        if len(yes) > 1 and (yes == yes[:1]).all():
            return [f"all {len(yes)} images have the same decisions"]
        return []

    def closeness(self, candidate: Outputs, reference: Outputs) -> tuple[float | None, float]:
        """Mean KL divergence of an image's labels, and the share of equal decisions."""
        got, wanted = self.probabilities(candidate), self.probabilities(reference)
        equal = (got >= self.threshold) == (wanted >= self.threshold)
        return float(bernoulli_kl(wanted, got).sum(axis=1).mean()), float(equal.mean())

    loss_measure = "decisions"

    def losses(self, candidate: Outputs, reference: Outputs) -> Rows:
        """The share of an image's labels that are decided otherwise."""
        got, wanted = self.probabilities(candidate), self.probabilities(reference)
        changed = (got >= self.threshold) != (wanted >= self.threshold)
        broken = ~np.isfinite(rows_of(candidate)).all(axis=1)
        found: Rows = np.where(broken, 1.0, changed.mean(axis=1))
        return found

    def answers(
        self, outputs: Outputs, labels: Sequence[str] | None, top_k: int
    ) -> list[list[Any]]:
        """The ``top_k`` likeliest labels of each row of outputs (N, labels).

        Raises:
            ValidationError: a value is NaN or infinite.
        """
        rows = rows_of(outputs)
        require_finite(rows, self.noun)
        chances = self.probabilities(outputs)
        order = np.argsort(-chances, axis=1, kind="stable")[:, :top_k]
        return [
            [self._answer(int(index), labels, row, values) for index in best]
            for best, row, values in zip(order, chances, rows, strict=True)
        ]

    def _answer(
        self, index: int, labels: Sequence[str] | None, chances: Rows, values: Rows
    ) -> LabelAnswer:
        chance = float(chances[index])
        label = labels[index] if labels is not None and index < len(labels) else None
        logit = float(values[index]) if self.activation == "none" else None
        return LabelAnswer(index, label, chance, logit, chance >= self.threshold)

    def answer_row(self, answer: Any) -> tuple[str, ...]:
        """The label by its name or number, whether it is there, and its probability."""
        name = str(answer.index) if answer.label is None else answer.label
        return name, "yes" if answer.present else "no", f"{answer.probability:.2%}"

    def fitting_labels(
        self, given: tuple[str, ...] | None, known: tuple[str, ...] | None, shape: Sequence[int]
    ) -> tuple[str, ...] | None:
        """The labels that were given, or those that the definition knows.

        Raises:
            DataError: not one for each label.
        """
        labels = known if given is None else given
        if labels is not None and len(labels) != shape[-1]:
            raise DataError(
                f"there are {len(labels)} labels, the model has {shape[-1]} labels\n"
                "expected one name for each, in the order of the outputs: --labels FILE"
            )
        return labels


_NOTHING: Final[dict[str, Any]] = {
    "max_error": _NAN,
    "worst_label": 0,
    "max_scaled": _NAN,
    "agreement": 0.0,
    "flips": {},
    "flipped_margins": (),
}


def sigmoid(values: Rows) -> Rows:
    """1 / (1 + exp(-x)), which does not overflow.

    >>> sigmoid(np.array([[0.0, 1000.0, -1000.0]])).tolist()
    [[0.5, 1.0, 0.0]]
    """
    small = np.exp(-np.abs(values))
    result: Rows = np.where(values >= 0, 1.0, small) / (1.0 + small)
    return result


LEAST: Final = 2.0**-24
"""Smallest magnitude that FP16 has: what is below is 0 there, and no worse for it."""


def bernoulli_kl(expected: Rows, got: Rows) -> Rows:
    """KL divergence of a yes or no with probability ``expected`` from one with ``got``, in nats."""
    p, q = (np.clip(value, LEAST, 1.0 - LEAST) for value in (expected, got))
    divergence: Rows = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    return np.maximum(divergence, 0.0)


HEAD = MULTILABEL = Multilabel()
