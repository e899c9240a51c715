"""A yes or no: one number per image, (N,) or (N, 1), is the positive class's probability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.core.errors import DataError
from deploykit.heads._accuracy import ClassEvaluation, ClassTally
from deploykit.heads.multilabel import Multilabel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from deploykit.heads._head import Outputs

_TWO: Final = 2


@dataclass(frozen=True, slots=True)
class BinaryAnswer:
    """The decision on one image.

    ``probability`` is the positive class's, whatever the decision; ``index`` is 1 where it reaches
    ``threshold``, else 0, and ``label`` that class's name, ``None`` where the bundle has no labels.
    ``logit`` is ``None`` where the graph ends in its sigmoid.
    """

    index: int
    label: str | None
    probability: float
    logit: float | None
    threshold: float


class Binary(Multilabel):
    """One number per image: the probability of the positive class, or its logit."""

    name = "binary"
    noun = "probabilities"
    layout = "(batch, 1) or (batch,)"
    form = "single-valued"
    answer_columns = ("class", "positive class's probability")

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether the values are (N,) or (N, 1)."""
        return len(shape) == 1 or (len(shape) == _TWO and shape[1] == 1)

    def advice(self, *, has_floats: bool) -> str:
        """What to do about a graph with several numbers per image."""
        if has_floats:
            return "for two numbers that exclude each other: --head multiclass"
        return super().advice(has_floats=has_floats)

    def _named(self, label: int) -> str:  # noqa: ARG002 - there is one
        return "the probability of the positive class"

    def undecided(self, outputs: Outputs) -> list[str]:
        """All images are decided the same way."""
        yes = self.probabilities(outputs) >= self.threshold
        if len(yes) > 1 and (yes == yes[:1]).all():
            return [f"all {len(yes)} images are {'positive' if yes[0, 0] else 'negative'}"]
        return []

    def answers(
        self,
        outputs: Outputs,
        labels: Sequence[str] | None,
        top_k: int,  # noqa: ARG002 - there is one answer
    ) -> list[list[Any]]:
        """The decision on each image, one each.

        Raises:
            ValidationError: a value is NaN or infinite.
        """
        found = super().answers(outputs, None, 1)
        return [[self._decision(each, labels)] for (each,) in found]

    def _decision(self, found: Any, labels: Sequence[str] | None) -> BinaryAnswer:
        return BinaryAnswer(
            index=int(found.present),
            label=None if labels is None else _name(labels, int(found.present)),
            probability=found.probability,
            logit=found.logit,
            threshold=self.threshold,
        )

    def answer_row(self, answer: BinaryAnswer) -> tuple[str, ...]:
        """The class by its name or number, and the positive class's probability."""
        name = str(answer.index) if answer.label is None else answer.label
        return name, f"{answer.probability:.4%}"

    def fitting_labels(
        self,
        given: tuple[str, ...] | None,
        known: tuple[str, ...] | None,
        shape: Sequence[int],  # noqa: ARG002 - there is one number
    ) -> tuple[str, ...] | None:
        """The names of the negative and the positive class, or of the positive one alone.

        Raises:
            DataError: more than two.
        """
        if given is not None and len(given) not in (1, _TWO):
            raise DataError(
                f"there are {len(given)} labels, the model says yes or no\n"
                "expected the negative class and then the positive one, or the positive one alone"
            )
        return known if given is None else given

    loss_measure = "answers"

    def right_answers(self, outputs: Outputs, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each image is decided as its label says, 0 or 1."""
        yes = self.probabilities(outputs)[:, 0] >= self.threshold
        right: NDArray[np.bool_] = yes.astype(np.int64) == labels
        return right

    def classes(self, shape: Sequence[int | str]) -> int:  # noqa: ARG002 - always two
        """Two: the negative and the positive one."""
        return _TWO

    def tally(self, labels: NDArray[np.int64]) -> BinaryTally:
        """Decisions on images of class 0 (negative) or 1 (positive)."""
        return BinaryTally(labels, self)

    def evaluation(self, tally: ClassTally, other: ClassTally | None) -> ClassEvaluation:
        """The share of right decisions, and McNemar's comparison with the other model."""
        return ClassEvaluation.of(tally, other)


class BinaryTally(ClassTally):
    """Counts a probability as a choice between two classes."""

    def __init__(self, labels: NDArray[np.int64], head: Binary) -> None:
        super().__init__(labels)
        self._head = head

    def add(self, indices: Sequence[int], logits: NDArray[np.float32]) -> None:
        """Count the outputs (N, 1) of the images at ``indices``.

        Raises:
            DataError: a label is neither 0 nor 1.
        """
        yes = self._head.probabilities(logits) >= self._head.threshold
        super().add(indices, np.concatenate([~yes, yes], axis=1).astype(np.float32))


def _name(labels: Sequence[str], index: int) -> str:
    if len(labels) == 1:
        return labels[0] if index else f"not {labels[0]}"
    return labels[index]


HEAD = BINARY = Binary()
