"""One output of a user's network: how it is written, and what its values mean by themselves."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.graph.tail import SQUASHING_OPS
from deploykit.heads.raw import RAW

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deploykit.core.specs import Array, TensorSpec
    from deploykit.graph import Tail

FLAT: Final = 2
"""Axes of values (N, K)."""
NUMBERS: Final = frozenset({"argmax", "top_k"})
"""Tails that leave numbers of classes, which are no floats."""

PARTS: Final = frozenset({"maximum", "top_values"})
"""Tails that leave some of the values, of which nobody knows whose they are."""

_OPERATORS: Final = {
    "softmax": "a Softmax", "log_softmax": "a LogSoftmax", "sigmoid": "a Sigmoid",
    "l2": "a normalisation",
}  # fmt: skip
_MEANT: Final = {
    "softmax": "probabilities that sum to 1", "sigmoid": "between 0 and 1", "l2": "of length 1",
    "log_softmax": "logarithms of probabilities that sum to 1",
}  # fmt: skip
_DECISIONS: Final = frozenset({
    "And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or"
})  # fmt: skip
"""Operators that leave a yes or no of what they read."""

_TO_SUM: Final = 1e-3  # how far probabilities, also of a file of FP16, may be from a sum of 1


@dataclass(frozen=True)
class Candidate:
    """One output: how it was declared, its answers to all batches, and its tail."""

    spec: TensorSpec
    values: tuple[Array, ...]
    tail: Tail
    has_sigmoid: bool = False
    """Whether another output is the Sigmoid of the same layer."""
    is_classes: bool = False
    """Whether the user says that it has classes, by a kind of head or by as many names."""
    single: bool = False
    """Whether it belongs to the one image that the file takes, and has no axis for the batch."""
    is_batch_first: bool = False
    """Whether its first axis is known to be the fixed batch of the file."""

    @property
    def name(self) -> str:
        """As the file has it."""
        return self.spec.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the first batch of values, the batch first."""
        shape = self.values[0].shape
        return (1, *shape) if self.single else shape

    @property
    def by_image(self) -> bool:
        """Whether its first axis is the batch, as far as is known or several sizes show it."""
        is_known = self.is_batch_first or self.shape[0] == 1
        return is_known or len({len(one) for one in self.values}) > 1

    @property
    def is_float(self) -> bool:
        """Whether its values are no class numbers or decisions."""
        is_whole = self.spec.dtype.startswith(("bool", "int", "uint"))
        return not is_whole and bool(np.issubdtype(self.values[0].dtype, np.floating))

    @property
    def is_of_numbers(self) -> bool:
        """Whether its values name something, as classes do: one is as far as any other.

        Pixels are no such numbers: they are the values of a layer, rounded.
        """
        if self.is_float or self.spec.dtype == "bool":
            return self.activation in NUMBERS
        between = self.tail.between
        is_rounded = self.tail.layer is not None and "ArgMax" not in between
        is_pixels = is_rounded or between[-1:] == ("Round",)
        return self.activation in NUMBERS or not is_pixels

    @property
    def flat_shape(self) -> tuple[int, ...]:
        """Without the (1, 1) of a pooled map; any other shape as it is.

        Behind a Softmax or a ranking, or where the user speaks of classes, also without what comes
        before these: TensorFlow's (N, 1, 1, K).
        """
        shape, count = self.shape, prod(self.shape[1:])
        if len(shape) <= FLAT or count != max(shape[1:]):
            return shape
        is_soft = self.is_classes or self.tail.activation in {"softmax", "log_softmax", "top_k"}
        return (shape[0], count) if (self.by_image and is_soft) or count == shape[1] else shape

    @property
    def is_of_one_place(self) -> bool:
        """Whether class numbers are those of an image, and not of several places in it."""
        is_ranking = self.activation == "top_k" and not self.tail.has_rankings
        return is_ranking or (self.activation in NUMBERS and self.width == 1)

    @property
    def width(self) -> int | None:
        """Numbers per image, of an output that has no other axes."""
        shape = self.flat_shape
        return None if len(shape) > FLAT else prod(shape[1:])

    @property
    def activation(self) -> str:
        """What the graph did to the values, where the values themselves do not speak against it."""
        read, rows = self.tail.activation, self._rows()
        if read in NUMBERS | PARTS or rows is None:
            return read
        if read == "sigmoid":
            return read if rows.min() >= 0 and rows.max() <= 1 else "none"
        seen = _seen(rows)
        return seen if read in ("none", seen) else "none"

    @property
    def is_chance(self) -> bool:
        """Whether values are made of probabilities, and may still be some: all are 0 to 1."""
        is_made_of_them = self.tail.is_of_probabilities and self.activation == "none"
        return is_made_of_them and self.may_be_chances

    @property
    def may_be_chances(self) -> bool:
        """Whether all values are floats from 0 to 1."""
        if not self.is_float:
            return False
        # NaN compares as false.
        floats = (one.astype(np.float64) for one in self.values)
        return all(bool(((one >= 0) & (one <= 1 + _TO_SUM)).all()) for one in floats)

    @property
    def doubt(self) -> str | None:
        """Where operators and values contradict each other."""
        read = self.tail.activation
        if read in (self.activation, "none"):
            return None
        return (
            f"{self.name!r} comes from {_OPERATORS[read]}, but its values for an image are not "
            f"{_MEANT[read]}: they are taken as they are"
        )

    def _rows(self) -> NDArray[np.float64] | None:
        """All values, a row per image; ``None`` for maps, and where a value is not finite."""
        if not self.is_float or len(self.flat_shape) != FLAT or not self.values[0].size:
            return None
        if self.single:
            rows = np.stack([one.ravel() for one in self.values]).astype(np.float64)
        else:
            alike = [one for one in self.values if one.shape[1:] == self.shape[1:]]
            rows = np.concatenate([one.reshape(len(one), -1) for one in alike]).astype(np.float64)
        one_class = self.tail.activation != "sigmoid" and rows.shape[1] == 1
        return None if one_class or not np.isfinite(rows).all() else rows


def _seen(rows: NDArray[np.float64]) -> str:
    """What values (N, K) are by themselves, whichever operators made them."""
    if rows.min() >= 0 and np.abs(rows.sum(axis=1) - 1).max() < _TO_SUM:
        return "softmax"
    if rows.max() <= 0 and np.abs(np.exp(rows).sum(axis=1) - 1).max() < _TO_SUM:
        return "log_softmax"
    if np.abs(np.linalg.norm(rows, axis=1) - 1).max() < _TO_SUM:
        return "l2"
    return "none"


_KINDS: Final = {"sigmoid": "multilabel", "softmax": "multiclass", "log_softmax": "multiclass"}


def kind_of(one: Candidate, labels: int | None) -> tuple[str, str | None]:
    """The kind of head that an output is for, and a sentence where that is an assumption."""
    activation, width = one.activation, one.width
    if not width or activation in PARTS or one.doubt is not None:
        return RAW.name, _why_raw(one)
    if activation in NUMBERS or not one.is_float:
        return ("multiclass", None) if one.is_of_one_place else (RAW.name, _why_raw(one))
    if (kind := _kind_of_chances(one, width)) is not None:
        return kind, None
    if activation == "none" and SQUASHING_OPS.isdisjoint(one.tail.between):
        is_decided = not _DECISIONS.isdisjoint(one.tail.between)
        fits = labels is not None and width == labels > 1 and not is_decided
        return ("multiclass", None) if fits else _kind_of_plain(one, width)
    if activation == "none":
        return _kind_of_plain(one, width)
    kind = _KINDS.get(activation, RAW.name)
    return ("binary" if width == 1 and kind == "multilabel" else kind), None


def _kind_of_chances(one: Candidate, width: int) -> str | None:
    """Of the probability of one class, and of logits whose Sigmoid is another output."""
    if one.is_chance and width == 1 and not one.tail.is_mean:
        return "binary"
    is_bare = one.activation == "none" and SQUASHING_OPS.isdisjoint(one.tail.between)
    is_labels = one.has_sigmoid and is_bare
    return "multilabel" if is_labels and width > 1 else None


def _why_raw(one: Candidate) -> str | None:
    """What of class numbers, parts of values and decisions nobody can know; ``None`` of others."""
    where, dtype = f"{one.name!r} {one.spec.shape_text}", one.values[0].dtype
    if one.activation in PARTS and one.is_float:
        return (
            f"{where} has the largest values without their classes: taken as they are; where it is "
            "a classifier, end the graph before the ReduceMax, TopK or Gather"
        )
    if one.activation in NUMBERS:
        return (
            f"{where} has class numbers for several places of an image: taken as they are, and "
            "compared by how many change"
        )
    if dtype == np.bool_:
        return (
            f"{where} has decisions without their probabilities: taken as they are; to have these "
            "compared, end the graph before the threshold"
        )
    if one.is_float:
        return _row_or_sequence(one)
    compared = "how many change" if one.is_of_numbers else "how far they change"
    return (
        f"{where} has {dtype} numbers that are computed further: taken as they are, and "
        f"compared by {compared}; where they are classes, end the graph in the ArgMax or in what "
        "it reads"
    )


def _row_or_sequence(one: Candidate) -> str | None:
    """Of (N, 1, K), which the logits of classes have, and sequences of one step."""
    shape = one.shape
    if len(shape) <= FLAT or not one.by_image or one.activation != "none":
        return None
    if prod(shape[1:]) != max(shape[1:]):
        return None
    return (
        f"{one.name!r} {one.spec.shape_text} may be a sequence: taken as it is; where it is a "
        "classifier: --head multiclass"
    )


def _odd_end(one: Candidate) -> str | None:
    """What was done to probabilities, so that they are none any more."""
    where, between = f"{one.name!r} {one.spec.shape_text}", one.tail.between
    for each in between:
        if each in SQUASHING_OPS:
            return (
                f"{where} has a {each}, and other operators behind it: taken as it is; "
                "where it is a classifier, end the graph in one of the two"
            )
    for each in between:
        if each in _DECISIONS:
            return (
                f"{where} is decided by a {each}: taken as it is; to have the probabilities "
                "compared, end the graph before it"
            )
    if one.tail.is_mean:
        return (
            f"{where} is a mean weighted by probabilities: taken as it is; where it is the "
            "probability of a yes: --head binary"
        )
    if one.is_chance:
        return (
            f"{where} has some of the probabilities of a Softmax or Sigmoid, or sums of them: "
            "taken as they are; where they are classes: --head multiclass or multilabel"
        )
    if one.tail.is_of_probabilities:
        return (
            f"{where} is made of probabilities, but is not from 0 to 1: taken as it is; where it "
            "is a classifier, end the graph in its Softmax or Sigmoid"
        )
    return None


def _kind_of_plain(one: Candidate, width: int) -> tuple[str, str | None]:
    tail, where = one.tail, f"{one.name!r} {one.spec.shape_text}"
    if (odd := _odd_end(one)) is not None:
        return RAW.name, odd
    is_shaped = bool(tail.between) and (tail.between[-1] == "Relu" or "Clip" in tail.between)
    if tail.is_inner:
        return RAW.name, f"{where} goes through another layer: taken for features"
    if tail.layer is None or (is_shaped and len(tail.between) == 1):
        meant = "one number per image" if width == 1 else "features"
        other = "binary" if width == 1 else "multiclass"
        return RAW.name, (
            f"{where} does not end in a Gemm, MatMul or Conv: taken for {meant}; "
            f"where it is a classifier: --head {other}"
        )
    if width == 1:
        return "binary", (
            f"{where} has no Sigmoid: taken for the logit of a yes or no; where it is another "
            "number: --head raw"
        )
    if is_shaped:
        return "multiclass", (
            f"{where} is pooled behind a {tail.between[-1]}: taken for the logits of classes; "
            "where they are features: --head raw"
        )
    return "multiclass", None
