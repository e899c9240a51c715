"""The output of a network that is meant, and its meaning, read from graph and values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.core.errors import ModelFileError, UsageError
from deploykit.core.specs import HeadRecord
from deploykit.graph import Tail
from deploykit.graph.tail import SQUASHING_OPS
from deploykit.heads import head_named
from deploykit.heads.raw import RAW

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.core.specs import Array, TensorSpec
    from deploykit.heads import Head

    Answers = Mapping[str, Array]
    _Rule = Callable[[Sequence["_Candidate"]], list["_Candidate"]]

_FLAT: Final = 2
_NUMBERS: Final = frozenset({"argmax", "top_k"})
"""Tails that leave numbers of classes, which are no floats."""

_PARTS: Final = frozenset({"maximum", "top_values"})
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
class Wish:
    """What a user says of the outputs: a kind of head, an output's name, how many labels."""

    head: str | None = None
    output: str | None = None
    labels: int | None = None


@dataclass(frozen=True)
class OutputChoice:
    """The output that ``head`` is about.

    ``flat`` where it has the head's shape already; ``batch_axis`` is where its images are.
    ``why`` are sentences for the user.
    """

    head: Head
    name: str
    flat: bool = True
    moved: bool = False
    others: tuple[TensorSpec, ...] = ()
    batch_axis: int = 0
    why: tuple[str, ...] = ()

    @property
    def record(self) -> HeadRecord:
        """For the manifest."""
        return HeadRecord(self.head.name, self.name, self.head.activation)

    def notes(self) -> list[str]:
        """What a user must know of the choice."""
        found = list(self.why)
        if self.others and not self.head.judges_all:
            named = ", ".join(f"{spec.name!r} {spec.shape_text}" for spec in self.others)
            found.append(f"{self.head.noun} are the output {self.name!r}; beside it: {named}")
        if self.moved:
            found.append(f"{self.name!r} was made the first output")
        if not self.flat:
            found.append(f"{self.name!r} was flattened to {self.head.layout}")
        if self.batch_axis:
            found.append(f"{self.name!r} was transposed: its images came second, now first")
        return found


@dataclass(frozen=True)
class _Candidate:
    """One output: how it was declared, its answers to all batches, and its tail."""

    spec: TensorSpec
    values: tuple[Array, ...]
    tail: Tail
    has_sigmoid: bool = False
    """Whether another output is the Sigmoid of the same layer."""

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values[0].shape

    @property
    def is_float(self) -> bool:
        return bool(np.issubdtype(self.values[0].dtype, np.floating))

    @property
    def flat_shape(self) -> tuple[int, ...]:
        """Without the (1, 1) of a pooled map; any other shape as it is.

        Behind a Softmax also without what comes before the classes: TensorFlow's (N, 1, 1, K).
        """
        shape, count = self.shape, prod(self.shape[1:])
        if len(shape) <= _FLAT or count != max(shape[1:]):
            return shape
        by_image = shape[0] == 1 or len({len(one) for one in self.values}) > 1
        is_soft = by_image and self.tail.activation in {"softmax", "log_softmax"}
        return (shape[0], count) if is_soft or count == shape[1] else shape

    @property
    def width(self) -> int | None:
        """Numbers per image, of an output that has no other axes."""
        shape = self.flat_shape
        return None if len(shape) > _FLAT else prod(shape[1:])

    @property
    def activation(self) -> str:
        """What the graph did to the values, where the values themselves do not speak against it."""
        read, rows = self.tail.activation, self._rows()
        if read in _NUMBERS | _PARTS or rows is None:
            return read
        if read == "sigmoid":
            return read if rows.min() >= 0 and rows.max() <= 1 else "none"
        seen = _seen(rows)
        return seen if read in ("none", seen) else "none"

    @property
    def is_chance(self) -> bool:
        """Whether values are made of probabilities, and may still be some: all are 0 to 1."""
        if not self.is_float or not self.tail.is_of_probabilities or self.activation != "none":
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
        if not self.is_float or len(self.flat_shape) != _FLAT or not self.values[0].size:
            return None
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


def choose_output(
    name: str,
    outputs: Sequence[TensorSpec],
    answers: Sequence[Answers],
    tails: Mapping[str, Tail],
    wish: Wish,
) -> OutputChoice:
    """The output that is meant, and what it means, of a network called ``name``.

    ``answers`` are all outputs of the original for each batch of images: values that are
    probabilities are known by that. ``tails`` are read from its graph. A wish is obeyed; what it
    leaves open is decided by the tails and the number of labels.

    Raises:
        ModelFileError: no output is of the head that is wished for.
        UsageError: there is no output of the name that is wished for, or nothing tells which of
            several is meant.
    """
    candidates = [
        _Candidate(
            spec,
            tuple(one[spec.name] for one in answers),
            _tail_of(spec.name, tails),
            _has_sigmoid(spec.name, tails),
        )
        for spec in outputs
    ]
    found = _candidate(name, candidates, wish)
    kind, assumed = (wish.head, None) if wish.head else _kind(found, wish.labels)
    head = head_named(kind)
    head = head.applied(_kept(head, found))
    shape = found.shape
    if not head.fits(shape) and not head.fits(found.flat_shape):
        raise _refusal(name, candidates, head)
    return OutputChoice(
        head=head,
        name=found.name,
        flat=head.fits(shape),
        moved=found is not candidates[0],
        others=tuple(one.spec for one in candidates if one is not found),
        batch_axis=_batch_axis(found.values) if head.judges_all else 0,
        why=tuple(each for each in (found.doubt, assumed, _taken(head, found)) if each),
    )


def _tail_of(name: str, tails: Mapping[str, Tail]) -> Tail:
    return tails.get(name) or Tail(name)


def _has_sigmoid(name: str, tails: Mapping[str, Tail]) -> bool:
    """Whether another output is the Sigmoid of the layer that ``name`` ends in."""
    layer = _tail_of(name, tails).layer
    others = (tail for other, tail in tails.items() if other != name)
    return layer is not None and any(
        tail.layer == layer and tail.activation == "sigmoid" and not tail.between for tail in others
    )


def _kept(head: Head, one: _Candidate) -> str:
    """The activation as the head has a use for it; a unit length says nothing of classes.

    The column of one class of a Softmax needs no second activation, as behind a Sigmoid.
    """
    if head.judges_all:
        return one.activation
    if one.is_chance:
        return "sigmoid"
    return one.activation if one.activation not in _PARTS | {"l2"} else "none"


def _taken(head: Head, one: _Candidate) -> str | None:
    """What a head makes of values that were probabilities before, where that is not plain."""
    if head.judges_all or not one.tail.is_of_probabilities or one.activation != "none":
        return None
    where = f"{one.name!r} {one.spec.shape_text} is made of probabilities"
    if one.is_chance:
        return f"{where}, and from 0 to 1: taken for probabilities"
    return (
        f"{where}, but not from 0 to 1: taken for logits; where these are wanted as they are, "
        "end the graph in its Softmax or Sigmoid"
    )


def _batch_axis(values: Sequence[Array]) -> int:
    """Which axis grows with the batch: the first, or where sequences come first the second."""
    counts = [one.shape[:_FLAT] for one in values]
    if len(counts[0]) < _FLAT:
        return 0
    grows = [len({count[axis] for count in counts}) > 1 for axis in range(_FLAT)]
    return 1 if grows == [False, True] else 0


def _refusal(name: str, candidates: Sequence[_Candidate], head: Head) -> ModelFileError:
    found = ", ".join(_described(one) for one in candidates)
    has_floats = any(one.is_float for one in candidates)
    return ModelFileError(
        f"{name} returns {found}\nexpected a float32 output {head.layout}, the {head.noun}\n"
        f"{head.advice(has_floats=has_floats)}"
    )


def _described(one: _Candidate) -> str:
    return f"{one.name} {one.values[0].dtype} {one.spec.shape_text}"


def _candidate(name: str, candidates: Sequence[_Candidate], wish: Wish) -> _Candidate:
    """The output that is meant."""
    if wish.output is not None:
        by_name = {one.name: one for one in candidates}
        if wish.output not in by_name:
            raise UsageError(
                f"{name} has no output {wish.output!r}\n"
                f"its outputs: {', '.join(map(_described, candidates))}"
            )
        return by_name[wish.output]
    if len(candidates) == 1:
        return candidates[0]
    wished = None if wish.head is None else head_named(wish.head)
    if wished is not None and wished.judges_all:
        return candidates[0]
    fitting = [one for one in candidates if _may_be(one, wished, wish.labels)]
    if not fitting:
        if wished is not None:
            raise _refusal(name, candidates, wished)
        return candidates[0]
    rules: list[_Rule] = [partial(_with_labels, labels=wish.labels), *_RULES]
    for rule in rules:
        fitting = rule(fitting) or fitting
        if len(fitting) == 1:
            return fitting[0]
    listed = ", ".join(_described(one) for one in candidates)
    raise UsageError(
        f"{name} returns {listed}\n"
        f"nothing tells whether {' or '.join(repr(one.name) for one in fitting)} is the answer\n"
        f"say which: --head-output {fitting[0].name}, or --head raw for all of them as they are"
    )


def _may_be(one: _Candidate, wished: Head | None, labels: int | None) -> bool:
    if wished is None:
        return _kind(one, labels)[0] != RAW.name
    head = wished.applied(_kept(wished, one))
    fits = head.fits(one.shape) or head.fits(one.flat_shape)
    return fits and (one.is_float or one.activation in _NUMBERS)


def _with_labels(fitting: Sequence[_Candidate], labels: int | None) -> list[_Candidate]:
    """The outputs that have a value for each label; a yes or no has one or two names."""
    if labels is None:
        return []
    return [one for one in fitting if one.width == labels or (one.width == 1 and labels == _FLAT)]


def _last_in_line(fitting: Sequence[_Candidate]) -> list[_Candidate]:
    """Without features that another one's last layer is fed with."""
    layers = {one.name: one.tail.layer for one in fitting}
    return [
        one
        for one in fitting
        if not any(layers.get(fed, one.tail.layer) != one.tail.layer for fed in one.tail.feeds)
    ]


def _with_values(fitting: Sequence[_Candidate]) -> list[_Candidate]:
    """Values for each class say more than class numbers."""
    return [one for one in fitting if one.is_float and one.activation not in _NUMBERS]


def _one_per_layer(fitting: Sequence[_Candidate]) -> list[_Candidate]:
    """Of logits and what is made of them the first."""
    first: dict[str, _Candidate] = {}
    for one in fitting:
        first.setdefault(one.tail.layer or f"without a layer: {one.name}", one)
    return list(first.values())


def _from_a_layer(fitting: Sequence[_Candidate]) -> list[_Candidate]:
    """Those that a Gemm, MatMul or Conv ends in, without pooling or ReLU behind it."""
    return [one for one in fitting if one.tail.layer is not None and not one.tail.between]


def _deepest(fitting: Sequence[_Candidate]) -> list[_Candidate]:
    """Of heads for the same classes the one at the end: others are auxiliary ones of training."""
    if len({one.width for one in fitting}) > 1:
        return []
    most = max(one.tail.layers for one in fitting)
    return [one for one in fitting if one.tail.layers == most]


_RULES: Final[tuple[_Rule, ...]] = (
    _last_in_line, _with_values, _one_per_layer, _from_a_layer, _deepest,
)  # fmt: skip
"""What decides between outputs, in this order; a rule that leaves none is passed over."""


_KINDS: Final = {"sigmoid": "multilabel", "softmax": "multiclass", "log_softmax": "multiclass"}


def _kind(one: _Candidate, labels: int | None) -> tuple[str, str | None]:
    """The kind of head that an output is for, and a sentence where that is an assumption."""
    activation, width = one.activation, one.width
    if not width or activation in _PARTS or one.doubt is not None:
        return RAW.name, _why_raw(one)
    if activation in _NUMBERS or not one.is_float:
        is_class = activation in _NUMBERS and (width == 1 or activation == "top_k")
        return ("multiclass", None) if is_class else (RAW.name, _why_raw(one))
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


def _kind_of_chances(one: _Candidate, width: int) -> str | None:
    """Of the probability of one class, and of logits whose Sigmoid is another output."""
    if one.is_chance and width == 1 and not one.tail.is_mean:
        return "binary"
    is_labels = one.has_sigmoid and one.activation == "none" and not one.tail.between
    return "multilabel" if is_labels and width > 1 else None


def _why_raw(one: _Candidate) -> str | None:
    """What of class numbers, parts of values and decisions nobody can know; ``None`` of others."""
    where, dtype = f"{one.name!r} {one.spec.shape_text}", one.values[0].dtype
    if one.activation in _PARTS:
        return (
            f"{where} has the largest values without their classes: taken as they are; where it is "
            "a classifier, end the graph before the ReduceMax or TopK"
        )
    if one.activation in _NUMBERS:
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
        return None
    return (
        f"{where} has {dtype} numbers that are computed further: taken as they are; where they are "
        "classes, end the graph in the ArgMax or in what it reads"
    )


def _odd_end(one: _Candidate) -> str | None:
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


def _kind_of_plain(one: _Candidate, width: int) -> tuple[str, str | None]:
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
