"""One class out of several: the largest of the values (N, classes) is the answer.

The values are logits, or what the graph made of them already: probabilities, their logarithms, or
the numbers of the classes themselves.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from deploykit.core.errors import DataError
from deploykit.heads._accuracy import TOP, ClassEvaluation, ClassTally
from deploykit.heads._head import Figures, Head, cosines, figures_of, require_finite, rows_of
from deploykit.heads.multilabel import LEAST, bernoulli_kl

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

    ``max_kl`` is the worst image's Kullback-Leibler divergence of the probabilities, in nats, or
    ``None`` where the graph gives none; ``agreement`` the share of images with the same top-1,
    ``None`` where the classes are another output's; ``flipped_margins`` the reference's lead of its
    first over its second class for each image whose top-1 changed. ``image_kl`` and
    ``image_cosine`` are of each image; reports leave them out. Of a ranking of ``ranks`` class
    numbers ``ranks_lost`` behind the first are none of the reference's, ``ranks_moved`` are at
    another place.
    """

    max_kl: float | None
    agreement: float | None
    flipped_margins: tuple[float, ...]
    image_kl: tuple[float, ...] = ()
    image_cosine: tuple[float, ...] = ()
    ranks: int = 1
    ranks_moved: int = 0
    ranks_lost: int = 0


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class of one image; ``label`` is ``None`` where the bundle has no labels.

    ``probability`` is as the graph gives it, or the softmax of its logits; ``None`` where it gives
    the class alone. How far it can be trusted as a probability is a property of the model.
    ``logit`` is ``None`` where the graph gives none.
    """

    index: int
    label: str | None
    probability: float | None
    logit: float | None


CLASSES_ALONE: Final = frozenset({"argmax", "top_k"})
"""Activations that leave the numbers of the classes."""

_LOGITS: Final = frozenset({"none", "log_softmax"})
"""Activations whose softmax is the model's probability: that of a log softmax changes nothing."""


class Multiclass(Head):
    """Classes that exclude each other, compared and shown by their probabilities."""

    name = "multiclass"
    noun = "logits"
    layout = "(batch, classes)"
    form = "2-dimensional"
    comparison_columns = (*Head.comparison_columns, "KL (nats)", "top-1 same", "flipped at")
    answer_columns = ("class", "probability")

    def applied(self, activation: str) -> Self:
        """This head for a graph that ends in ``activation``, which is not applied again."""
        changed = super().applied(activation)
        changed.noun = _NOUNS.get(activation, "logits")
        return changed

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether the values are (N, K); class numbers may be (N,)."""
        return len(shape) == _RANK or (self._has_classes_alone and len(shape) == 1)

    @property
    def _has_classes_alone(self) -> bool:
        return self.activation in CLASSES_ALONE

    def advice(self, *, has_floats: bool) -> str:
        """Features and maps have no classes; class numbers have one operator too many."""
        if has_floats:
            return "export it with its classifier, or as it is: --head raw"
        return "let it end before its ArgMax"

    def compare(self, candidate: Logits, reference: Logits) -> BatchComparison:
        """The figures of one batch of outputs, each (N, K)."""
        return compare(candidate, reference, self.activation)

    def problems_of(self, figures: BatchComparison, limits: Limits) -> list[str]:
        """What is beyond its limit, a sentence each; all limits are judged.

        Class numbers are no quantities, so that only the first of an image is compared.
        """
        return (
            self.problems([figures], limits)
            if self._has_classes_alone
            else problems_of(figures, limits, "logit" if self.noun == "logits" else "value")
        )

    def problems(self, batches: Sequence[BatchComparison], limits: Limits) -> list[str]:
        """As `problems_of` each batch; class numbers alone are judged over all of them.

        An image on a near tie is no fault where values are rounded, and these numbers do not show
        how near it is. Where the limits let a share of the images be beyond, those of all batches
        are counted together.
        """
        if not self._has_classes_alone:
            eased, found = _without_few(batches, limits)
            return [*found, *super().problems(eased, limits)]
        bad = sum(batch.non_finite for batch in batches)
        if bad:
            return [f"{bad} values are NaN or infinite"]
        count = sum(batch.batch for batch in batches)
        changed = round(sum((1 - (batch.agreement or 0)) * batch.batch for batch in batches))
        allowed = max(limits.near_ties, int(limits.share_of_ties * count))
        found = []
        if changed > allowed:
            found.append(f"{changed} of {count} images get another class, limit {allowed}")
        return found + _problems_of_ranks(batches, limits)

    def images_beyond(self, batches: Sequence[BatchComparison], limits: Limits) -> dict[int, str]:
        """Images whose KL or cosine is beyond its limit, by their place in all batches."""
        return images_beyond(batches, limits)

    def undecided(self, outputs: Logits) -> list[str]:
        """One class, or one answer for all images."""
        rows = rows_of(outputs)
        if rows.shape[1] == 1 and not self._has_classes_alone:
            return ["there is one class: every image is of it, whatever the model computes"]
        top = self._top(rows)
        if len(top) > 1 and (top == top[0]).all():
            return [f"all {len(top)} images are of class {int(top[0])}"]
        return []

    def closeness(self, candidate: Logits, reference: Logits) -> tuple[float | None, float]:
        """Mean KL divergence of an image, and the share of images with the same top-1."""
        got, wanted = rows_of(candidate), rows_of(reference)
        kl = None
        if not self._has_classes_alone:
            kl = float(divergence(wanted, got, self.activation).mean())
        return kl, float((self._top(got) == self._top(wanted)).mean())

    loss_measure = "answers"

    def losses(self, candidate: Logits, reference: Logits) -> Rows:
        """1 for an image of another top-1, 0 for the others."""
        got, wanted = rows_of(candidate), rows_of(reference)
        changed = self._top(got) != self._top(wanted)
        found: Rows = (changed | ~np.isfinite(got).all(axis=1)).astype(np.float64)
        return found

    def right_answers(self, outputs: Logits, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the top-1 of each image is its label."""
        rows = rows_of(outputs)
        right: NDArray[np.bool_] = np.isfinite(rows).all(axis=1) & (self._top(rows) == labels)
        return right

    def classes(self, shape: Sequence[int | str]) -> int | None:
        """Length of the output; class numbers do not say how many there are."""
        return None if self._has_classes_alone else super().classes(shape)

    def summary_of(self, batches: Sequence[BatchComparison]) -> dict[str, Any]:
        """The nearest to a tie that any changed decision was; ``None`` without a change."""
        margins = [margin for batch in batches for margin in batch.flipped_margins]
        return {"smallest_flipped_margin": min(margins, default=None)}

    def comparison_row(self, figures: Mapping[str, Any]) -> tuple[str, ...]:
        """The figures of one batch, as plain data, under `comparison_columns`."""
        flipped, kl = figures["flipped_margins"], figures["max_kl"]
        common = super().comparison_row(figures)
        if kl is None:  # class numbers, which are near or far from one another by chance
            common = (common[0], *["-"] * (len(common) - 1))
        return (
            *common,
            "-" if kl is None else f"{kl:.2e}",
            "-" if figures["agreement"] is None else f"{figures['agreement']:.1%}",
            f"{min(flipped):.2e}" if flipped else "-",
        )

    def answers(
        self, outputs: Logits, labels: Sequence[str] | None, top_k: int
    ) -> list[list[Prediction]]:
        """The ``top_k`` classes of each row of outputs (N, classes), the likeliest first.

        A graph that gives class numbers gives its own, in its own order.

        Raises:
            ValidationError: a value is NaN or infinite.
        """
        if not self._has_classes_alone:
            return best_classes(outputs, labels, top_k, self.activation)
        rows = rows_of(outputs)
        require_finite(rows, self.noun)
        chosen = rows[:, :top_k].astype(np.int64).tolist()
        return [[Prediction(at, _label(at, labels), None, None) for at in row] for row in chosen]

    def answer_row(self, answer: Prediction) -> tuple[str, ...]:
        """The class by its name, or by its number where it has none, and its probability."""
        name = str(answer.index) if answer.label is None else answer.label
        return name, "-" if answer.probability is None else f"{answer.probability:.2%}"

    def fitting_labels(
        self, given: tuple[str, ...] | None, known: tuple[str, ...] | None, shape: Sequence[int]
    ) -> tuple[str, ...] | None:
        """The labels that were given, or those that the definition knows.

        Raises:
            DataError: not one for each class.
        """
        classes, labels = self.classes(shape), known if given is None else given
        if labels is not None and classes is not None and len(labels) != classes:
            raise DataError(
                f"there are {len(labels)} labels, the model has {classes} classes\n"
                "expected one name for each, in the order of the logits: --labels FILE"
            )
        return labels

    def tally(self, labels: NDArray[np.int64]) -> ClassTally:
        """Top-1 and the rank of the label of each image."""
        return DecisionTally(labels) if self._has_classes_alone else ClassTally(labels)

    def evaluation(self, tally: ClassTally, other: ClassTally | None) -> ClassEvaluation:
        """Top-1 and top-5, and McNemar's comparison with the other model."""
        return ClassEvaluation.of(tally, other)

    def _top(self, rows: Rows) -> NDArray[np.int64]:
        top: NDArray[np.int64] = (
            rows[:, 0].astype(np.int64) if self._has_classes_alone else rows.argmax(axis=1)
        )
        return top


class DecisionTally(ClassTally):
    """Counts class numbers (N, k), the likeliest first; how many classes there are is not known."""

    def add(self, indices: Sequence[int], logits: NDArray[np.float32]) -> None:
        """Count the class numbers of the images at ``indices``."""
        chosen = logits.astype(np.int64)
        found = chosen == self._labels[indices][:, None]
        self._top1[indices] = chosen[:, 0]
        self._ranks[indices] = np.where(found.any(axis=1), found.argmax(axis=1), TOP)


_NOUNS: Final = {
    "softmax": "probabilities",
    "log_softmax": "log probabilities",
    "sigmoid": "probabilities",
    "argmax": "classes",
    "top_k": "classes",
}

HEAD = MULTICLASS = Multiclass()


def compare(candidate: Logits, reference: Logits, activation: str = "none") -> BatchComparison:
    """The figures of one batch of outputs, each (N, K), behind the graph's ``activation``."""
    common = figures_of(candidate, reference)
    left, right = rows_of(candidate), rows_of(reference)
    if common.non_finite:
        return BatchComparison(**asdict(common), max_kl=_NAN, agreement=0.0, flipped_margins=())
    if activation in CLASSES_ALONE:
        equal = left == right
        lost = (~np.isin(got[1:], wanted) for got, wanted in zip(left, right, strict=True))
        return BatchComparison(
            **asdict(common),
            max_kl=None,
            agreement=float(equal[:, 0].mean()),
            flipped_margins=(),
            ranks=left.shape[1],
            ranks_moved=int((~equal[:, 1:]).sum()),
            ranks_lost=int(sum(each.sum() for each in lost)),
        )
    flipped = left.argmax(axis=1) != right.argmax(axis=1)
    kl = divergence(right, left, activation)
    return BatchComparison(
        **asdict(common),
        max_kl=float(kl.max()),
        agreement=float(1 - flipped.mean()),
        flipped_margins=tuple(float(margin) for margin in _margins(right)[flipped]),
        image_kl=tuple(kl.tolist()),
        image_cosine=tuple(cosines(left, right).tolist()),
    )


def _problems_of_ranks(batches: Sequence[BatchComparison], limits: Limits) -> list[str]:
    """What is wrong with the class numbers behind the first, over all batches.

    Where values are rounded their order is not judged, and near the end of a ranking the next class
    may take a place: ten times as often as the first changes, and for a quarter of them at most.
    """
    count = sum(batch.batch for batch in batches)
    others = sum(batch.batch * (batch.ranks - 1) for batch in batches)
    if limits.near_ties:
        what, found = "none of the original's", sum(batch.ranks_lost for batch in batches)
        share = min(_MORE_AT_THE_END * limits.share_of_ties * count, others / 4)
        allowed = max(limits.near_ties, int(share + _ROUNDING))
    else:
        what, found = "at another place", sum(batch.ranks_moved for batch in batches)
        allowed = int((1 - limits.min_agreement) * others)
    if found <= allowed:
        return []
    return [f"{found} of {others} class numbers behind the first are {what}, limit {allowed}"]


_MORE_AT_THE_END: Final = 10


def divergence(expected: Rows, got: Rows, activation: str) -> Rows:
    """KL divergence of each row (N,) in nats, from logits or from probabilities as they are."""
    if activation == "sigmoid":
        return np.asarray(bernoulli_kl(expected, got).sum(axis=1))
    if activation in _LOGITS:
        return kl_divergence(expected, got)
    p, q = (np.maximum(rows, LEAST) for rows in (expected, got))
    found: Rows = (p * np.log(p / q)).sum(axis=1)
    return np.maximum(found, 0.0)


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


def images_beyond(batches: Sequence[BatchComparison], limits: Limits) -> dict[int, str]:
    """What of an image is beyond the limits of KL or cosine, by its place in all batches."""
    found = {}
    kls, cosine = (
        [value for batch in batches for value in getattr(batch, name)]
        for name in ("image_kl", "image_cosine")
    )
    for place, (kl, angle) in enumerate(zip(kls, cosine, strict=True)):
        if kl > limits.max_kl:
            found[place] = f"KL {kl:.2g} nats"
        elif angle < limits.min_cosine:
            found[place] = f"cosine {angle:.4f}"
    return found


def _without_few(
    batches: Sequence[BatchComparison], limits: Limits
) -> tuple[Sequence[BatchComparison], list[str]]:
    """The batches without their worst image's KL and cosine, and what is wrong with all images.

    Where the limits hold for each image, or not all are known, the batches are as they were.
    """
    count = sum(len(batch.image_kl) for batch in batches)
    if limits.share_within >= 1 or count < sum(batch.batch for batch in batches):
        return batches, []
    beyond = images_beyond(batches, limits)
    allowed = int((1 - limits.share_within) * count + _ROUNDING)
    eased = [replace(batch, max_kl=None, min_cosine=1.0) for batch in batches]
    if len(beyond) <= allowed:
        return eased, []
    named = "; ".join(f"image {place}: {beyond[place]}" for place in list(beyond)[:_NAMED])
    kls, angles = (
        [value for batch in batches for value in getattr(batch, name)]
        for name in ("image_kl", "image_cosine")
    )
    kl = float(np.quantile(kls, limits.share_within))
    angle = float(np.quantile(angles, 1 - limits.share_within))
    problem = (
        f"{len(beyond)} of {count} images are beyond KL {limits.max_kl:g} nats or cosine "
        f"{limits.min_cosine:g}, {allowed} may be; the {limits.share_within:.0%} quantile is KL "
        f"{kl:.2g}, cosine {angle:.4f} ({named})"
    )
    return eased, [problem]


_NAMED: Final = 3
"""Images that a message names."""

_ROUNDING: Final = 1e-9
"""A tenth of twenty images is two."""


def problems_of(batch: BatchComparison, limits: Limits, what: str = "logit") -> list[str]:
    """What is beyond its limit, a sentence each; empty where the candidate passes.

    ``what`` is one of the values.
    """
    where = f"at batch {batch.batch}"
    if batch.non_finite:
        return [f"{batch.non_finite} values are NaN or infinite {where}"]
    found = []
    if batch.max_relative > limits.max_relative:
        found.append(
            f"largest error is {batch.max_relative:.2e} of the largest {what} {where}, "
            f"limit {limits.max_relative:.0e}"
        )
    if batch.min_cosine < limits.min_cosine:
        found.append(f"cosine {batch.min_cosine:.6f} {where}, limit {limits.min_cosine}")
    if batch.max_kl is not None and batch.max_kl > limits.max_kl:
        found.append(f"KL divergence {batch.max_kl:.2e} nats {where}, limit {limits.max_kl:.0e}")
    agreement = 1.0 if batch.agreement is None else batch.agreement
    if batch.batch >= MIN_IMAGES_FOR_AGREEMENT and agreement < limits.min_agreement:
        found.append(f"top-1 agreement {agreement:.2%} {where}, limit {limits.min_agreement}")
    return found


def best_classes(
    outputs: NDArray[np.float32],
    labels: Sequence[str] | None,
    top_k: int,
    activation: str = "none",
) -> list[list[Prediction]]:
    """The ``top_k`` classes of each row of outputs (N, classes), the likeliest first.

    Raises:
        ValidationError: a value is NaN or infinite.
    """
    rows = rows_of(outputs)
    require_finite(rows, _NOUNS.get(activation, "logits"))
    has_logits = activation in _LOGITS
    probabilities = softmax(rows) if has_logits else rows
    order = np.argsort(-rows, axis=1, kind="stable")[:, :top_k]
    return [
        [
            Prediction(
                at, _label(at, labels), float(chances[at]), float(row[at]) if has_logits else None
            )
            for at in best
        ]
        for best, chances, row in zip(order.tolist(), probabilities, rows, strict=True)
    ]


def with_probabilities(
    answers: Sequence[Sequence[Prediction]], chances: NDArray[Any]
) -> list[list[Prediction]]:
    """The answers of class numbers (N, K) with what the graph gives beside them, (N, K) or (N,).

    Raises:
        ValidationError: a probability is NaN or infinite.
    """
    chances = rows_of(chances)
    require_finite(chances, "probabilities")
    return [
        [
            replace(each, probability=float(chance))
            for each, chance in zip(row, of_row, strict=False)
        ]
        for row, of_row in zip(answers, chances, strict=True)
    ]


def _label(index: int, labels: Sequence[str] | None) -> str | None:
    return labels[index] if labels is not None and 0 <= index < len(labels) else None


def softmax(rows: Rows) -> Rows:
    """Probabilities of each row of logits (N, K)."""
    exponentials = np.exp(rows - rows.max(axis=1, keepdims=True))
    probabilities: Rows = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities
