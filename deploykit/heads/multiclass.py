"""One class out of several: the largest of the logits (N, classes) is the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.core.errors import DataError
from deploykit.heads._accuracy import ClassEvaluation, ClassTally
from deploykit.heads._head import Figures, Head, figures_of, require_finite, rows_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.core.precision import Limits

    Logits = NDArray[np.float32]
    Rows = NDArray[np.float64]

MIN_IMAGES_FOR_AGREEMENT: Final = 100
"""Below this, one image on a near tie would already be more than a percent."""

_RANK: Final = 2
_NAN: Final = float("nan")


@dataclass(frozen=True, slots=True)
class BatchComparison(Figures):
    """Candidate against reference on one batch of logits (N, K).

    ``max_kl`` is the worst image's Kullback-Leibler divergence of the softmax, in nats;
    ``agreement`` the share of images with the same top-1; ``flipped_margins`` the reference's lead
    of its first over its second class for each image whose top-1 changed.
    """

    max_kl: float
    agreement: float
    flipped_margins: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class of one image; ``label`` is ``None`` where the bundle has no labels.

    ``probability`` is the softmax of the logits. How far it can be trusted as a probability is a
    property of the model.
    """

    index: int
    label: str | None
    probability: float
    logit: float


class Multiclass(Head):
    """Logits of classes that exclude each other, compared and shown by their softmax."""

    name = "multiclass"
    noun = "logits"
    layout = "(batch, classes)"
    form = "2-dimensional"
    comparison_columns = (*Head.comparison_columns, "KL (nats)", "top-1 same", "flipped at")
    answer_columns = ("class", "probability")

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether the values are (N, K)."""
        return len(shape) == _RANK

    def advice(self, *, has_floats: bool) -> str:
        """Features lack the last layer; class numbers have one operator too many."""
        return "export it with its head" if has_floats else "let it end before its ArgMax"

    def compare(self, candidate: Logits, reference: Logits) -> BatchComparison:
        """The figures of one batch of logits, each (N, K)."""
        return compare(candidate, reference)

    def problems_of(self, figures: BatchComparison, limits: Limits) -> list[str]:
        """What is beyond its limit, a sentence each; all limits are judged."""
        return problems_of(figures, limits)

    def summary_of(self, batches: Sequence[BatchComparison]) -> dict[str, Any]:
        """The nearest to a tie that any changed decision was; ``None`` without a change."""
        margins = [margin for batch in batches for margin in batch.flipped_margins]
        return {"smallest_flipped_margin": min(margins, default=None)}

    def comparison_row(self, figures: Mapping[str, Any]) -> tuple[str, ...]:
        """The figures of one batch, as plain data, under `comparison_columns`."""
        flipped = figures["flipped_margins"]
        return (
            *super().comparison_row(figures),
            f"{figures['max_kl']:.2e}",
            f"{figures['agreement']:.1%}",
            f"margin {min(flipped):.2e}" if flipped else "-",
        )

    def answers(
        self, outputs: Logits, labels: Sequence[str] | None, top_k: int
    ) -> list[list[Prediction]]:
        """The ``top_k`` classes of each row of logits (N, classes), the likeliest first.

        Raises:
            ValidationError: a logit is NaN or infinite.
        """
        return best_classes(outputs, labels, top_k)

    def answer_row(self, answer: Prediction) -> tuple[str, ...]:
        """The class by its name, or by its number where it has none, and its probability."""
        name = str(answer.index) if answer.label is None else answer.label
        return name, f"{answer.probability:.2%}"

    def fitting_labels(
        self, given: tuple[str, ...] | None, known: tuple[str, ...] | None, shape: Sequence[int]
    ) -> tuple[str, ...] | None:
        """The labels that were given, or those that the definition knows.

        Raises:
            DataError: not one for each class.
        """
        classes = shape[-1]
        if given is not None and len(given) != classes:
            raise DataError(
                f"the file of labels has {len(given)} lines, the model has {classes} classes\n"
                "expected one name per line, in the order of the logits"
            )
        return known if given is None else given

    def tally(self, labels: NDArray[np.int64]) -> ClassTally:
        """Top-1 and the rank of the label of each image."""
        return ClassTally(labels)

    def evaluation(self, tally: ClassTally, other: ClassTally | None) -> ClassEvaluation:
        """Top-1 and top-5, and McNemar's comparison with the other model."""
        return ClassEvaluation.of(tally, other)


HEAD = MULTICLASS = Multiclass()


def compare(candidate: Logits, reference: Logits) -> BatchComparison:
    """The figures of one batch of logits, each (N, K)."""
    common = figures_of(candidate, reference)
    left, right = rows_of(candidate), rows_of(reference)
    flipped = left.argmax(axis=1) != right.argmax(axis=1)
    found = (
        (_NAN, 0.0, ())
        if common.non_finite
        else (
            float(kl_divergence(right, left).max()),
            float(1 - flipped.mean()),
            tuple(float(margin) for margin in _margins(right)[flipped]),
        )
    )
    return BatchComparison(
        common.batch,
        common.max_abs,
        common.mean_abs,
        common.max_relative,
        common.min_cosine,
        common.non_finite,
        *found,
    )


def kl_divergence(expected: NDArray[np.float64], got: NDArray[np.float64]) -> NDArray[np.float64]:
    """KL(softmax(expected) || softmax(got)) of each row, in nats."""
    log_p, log_q = _log_softmax(expected), _log_softmax(got)
    divergence: NDArray[np.float64] = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return np.maximum(divergence, 0.0)


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _margins(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lead of the first class over the second; infinite where there is only one."""
    if logits.shape[1] == 1:
        return np.full(len(logits), np.inf)
    ordered = np.partition(logits, -2, axis=1)
    margins: NDArray[np.float64] = ordered[:, -1] - ordered[:, -2]
    return margins


def problems_of(batch: BatchComparison, limits: Limits) -> list[str]:
    """What is beyond its limit, a sentence each; empty where the candidate passes."""
    where = f"at batch {batch.batch}"
    if batch.non_finite:
        return [f"{batch.non_finite} values are NaN or infinite {where}"]
    found = []
    if batch.max_relative > limits.max_relative:
        found.append(
            f"largest error is {batch.max_relative:.2e} of the largest logit {where}, "
            f"limit {limits.max_relative:.0e}"
        )
    if batch.min_cosine < limits.min_cosine:
        found.append(f"cosine {batch.min_cosine:.6f} {where}, limit {limits.min_cosine}")
    if batch.max_kl > limits.max_kl:
        found.append(f"KL divergence {batch.max_kl:.2e} nats {where}, limit {limits.max_kl:.0e}")
    if batch.batch >= MIN_IMAGES_FOR_AGREEMENT and batch.agreement < limits.min_agreement:
        found.append(f"top-1 agreement {batch.agreement:.2%} {where}, limit {limits.min_agreement}")
    return found


def best_classes(
    logits: NDArray[np.float32], labels: Sequence[str] | None, top_k: int
) -> list[list[Prediction]]:
    """The ``top_k`` classes of each row of logits (N, classes), the likeliest first.

    Raises:
        ValidationError: a logit is NaN or infinite.
    """
    rows = rows_of(logits)
    require_finite(rows, "logits")
    probabilities = softmax(rows)
    order = np.argsort(-rows, axis=1, kind="stable")[:, :top_k]
    return [
        [_prediction(int(index), labels, chances, row) for index in best]
        for best, chances, row in zip(order, probabilities, rows, strict=True)
    ]


def _prediction(
    index: int,
    labels: Sequence[str] | None,
    chances: NDArray[np.float64],
    row: NDArray[np.float64],
) -> Prediction:
    label = labels[index] if labels is not None and index < len(labels) else None
    return Prediction(index, label, float(chances[index]), float(row[index]))


def softmax(rows: Rows) -> Rows:
    """Probabilities of each row of logits (N, K)."""
    exponentials = np.exp(rows - rows.max(axis=1, keepdims=True))
    probabilities: Rows = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities
