"""The output of a network that is meant, and its meaning, read from graph and values."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Final

from deploykit.core.deployed import LOG_PROBABILITIES, PROBABILITIES, SCORES
from deploykit.core.errors import ModelFileError, UsageError
from deploykit.core.specs import HeadRecord
from deploykit.graph import Tail
from deploykit.graph.tail import SQUASHING_OPS
from deploykit.heads import head_named
from deploykit.heads.raw import RAW
from deploykit.sources.output_candidate import FLAT, NUMBERS, PARTS, Candidate, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from deploykit.core.specs import Array, TensorSpec
    from deploykit.heads import Head

    Answers = Mapping[str, Array]
    _Rule = Callable[[Sequence[Candidate]], list[Candidate]]


@dataclass(frozen=True)
class Wish:
    """What a user says of the outputs: a kind of head, an output's name, how many labels."""

    head: str | None = None
    output: str | None = None
    labels: int | None = None


@dataclass(frozen=True)
class FixedBatch:
    """The number of images that a network insists on, and along which axis each output has them.

    ``None`` as an axis: along none, or the images depend on one another. Of one image none is said.
    """

    size: int
    axes: Mapping[str, int | None] = field(default_factory=dict)


@dataclass(frozen=True)
class OutputChoice:
    """The output that ``head`` is about.

    ``flat`` where it has the head's shape already; ``batch_axis`` is where its images are;
    ``single`` where a file for one image gives it without an axis for the batch. ``beside`` are
    the outputs that say how likely class numbers are, by what they have, as the manifest records
    them; ``lone`` are those of them that are ``single`` with it. ``why`` are sentences for the
    user.
    """

    head: Head
    name: str
    flat: bool = True
    moved: bool = False
    others: tuple[TensorSpec, ...] = ()
    batch_axis: int = 0
    single: bool = False
    beside: Mapping[str, str] = field(default_factory=dict)
    lone: tuple[str, ...] = ()
    why: tuple[str, ...] = ()

    @property
    def record(self) -> HeadRecord:
        """For the manifest."""
        return HeadRecord(self.head.name, self.name, self.head.activation)

    @property
    def chances(self) -> str | None:
        """The output with the probabilities of class numbers."""
        return self.beside.get(PROBABILITIES)

    def notes(self) -> list[str]:
        """What a user must know of the choice."""
        found = list(self.why)
        if self.others and not self.head.judges_all:
            named = ", ".join(f"{spec.name!r} {spec.shape_text}" for spec in self.others)
            found.append(f"{self.head.noun} are the output {self.name!r}; beside it: {named}")
        if self.moved:
            found.append(f"{self.name!r} was made the first output")
        if self.chances is not None:
            found.append(f"the probabilities of these classes are the output {self.chances!r}")
        if self.single:
            found += [
                f"{name!r} has no axis for the batch: it got one, of one image"
                for name in (self.name, *self.lone)
            ]
        if not self.flat:
            found.append(f"{self.name!r} was flattened to {self.head.layout}")
        if self.batch_axis:
            found.append(f"{self.name!r} was transposed: its images came second, now first")
        return found


def choose_output(
    name: str,
    outputs: Sequence[TensorSpec],
    answers: Sequence[Answers],
    tails: Mapping[str, Tail],
    wish: Wish,
    fixed: FixedBatch | None = None,
) -> OutputChoice:
    """The output that is meant, and what it means, of a network called ``name``.

    ``fixed`` is the batch that it insists on. ``answers`` are all outputs of the original for each
    batch of images: values that are probabilities are known by that. ``tails`` are read from its
    graph. A wish is obeyed; what it leaves open is decided by the tails and the number of labels.

    Raises:
        ModelFileError: no output is of the head that is wished for.
        UsageError: there is no output of the name that is wished for, or nothing tells which of
            several is meant.
    """
    is_one = fixed is not None and fixed.size == 1
    candidates = [
        Candidate(
            spec,
            tuple(one[spec.name] for one in answers),
            _tail_of(spec.name, tails),
            _has_sigmoid(spec.name, tails),
            _has_classes(answers[0][spec.name], wish),
            is_one and _is_single(spec, answers[0][spec.name]),
            fixed is not None and fixed.axes.get(spec.name) == 0,
        )
        for spec in outputs
    ]
    found = _candidate(name, candidates, wish)
    kind, assumed = (wish.head, None) if wish.head else kind_of(found, wish.labels)
    head = head_named(kind)
    head = head.applied(_kept(head, found))
    shape, others = found.shape, tuple(one.spec for one in candidates if one is not found)
    if not _fits(head, found):
        raise _refusal(name, candidates, head)
    axis = _batch_axis(found.values) if fixed is None or is_one else fixed.axes[found.name]
    if not head.judges_all and not found.single:
        _require_batch_first(name, found, head, fixed, axis)
    beside = _beside(found, candidates)
    # Of several raw outputs, as boxes and their scores, all stay as they are.
    single = found.single and not (head.judges_all and others)
    lone = [one.name for one in candidates if single and one.single and one.name in beside.values()]
    return OutputChoice(
        head=head,
        name=found.name,
        flat=head.fits(shape),
        moved=found is not candidates[0],
        others=others,
        batch_axis=axis or 0 if head.judges_all and not found.single else 0,
        single=single,
        beside=beside,
        lone=tuple(lone),
        why=tuple(each for each in (found.doubt, assumed, _taken(head, found)) if each),
    )


def _has_classes(values: Array, wish: Wish) -> bool:
    if wish.head is not None and not head_named(wish.head).judges_all:
        return True
    return wish.labels is not None and prod(values.shape[1:]) == wish.labels > 1


def _is_single(spec: TensorSpec, values: Array) -> bool:
    """Whether an output of one image has no axis for it; an open one may count what is found."""
    if values.ndim < FLAT:
        return values.shape != (1,)
    return isinstance(spec.shape[0], int) and spec.shape[0] > 1


def _beside(found: Candidate, candidates: Sequence[Candidate]) -> dict[str, str]:
    """The outputs with probabilities, or other scores, of the class numbers of ``found``."""
    names: dict[str, str] = {}
    for one in candidates:
        kind = kind_beside(found.tail, one.tail)
        is_fitting = one.is_float and one.values[0].size == found.values[0].size
        if kind is not None and is_fitting:
            names.setdefault(kind, one.name)
    return names


def kind_beside(numbers: Tail, values: Tail) -> str | None:
    """What an output has that takes the largest ``values`` where another gives class ``numbers``.

    ``None`` where the two are of different layers.
    """
    if numbers.activation not in NUMBERS or values.activation not in PARTS:
        return None
    is_same = numbers.ranked is not None and numbers.ranked == values.ranked
    if not is_same and (numbers.layer is None or numbers.layer != values.layer):
        return None
    # Softmax keeps the order of the logits, of which the class numbers may be.
    is_of_logits = (numbers.scale, numbers.between) == ("none", ())
    is_soft = (values.scale, values.between) == ("softmax", ("Softmax",))
    if is_same or (is_of_logits and is_soft):
        return PROBABILITIES
    return LOG_PROBABILITIES if values.scale == "log_softmax" else SCORES


def _tail_of(name: str, tails: Mapping[str, Tail]) -> Tail:
    return tails.get(name) or Tail(name)


def _has_sigmoid(name: str, tails: Mapping[str, Tail]) -> bool:
    """Whether another output is the Sigmoid of the layer that ``name`` ends in, pooled or not."""
    own = _tail_of(name, tails)
    others = (tail for other, tail in tails.items() if other != name)
    return own.layer is not None and any(
        tail.activation == "sigmoid" and tail.layer == own.layer and _bent(tail) == _bent(own)
        for tail in others
    )


def _bent(tail: Tail) -> list[str]:
    """What was done to the values of the layer beside pooling, which leaves their meaning."""
    return [each for each in tail.between if each in SQUASHING_OPS | {"Clip", "Relu"}]


def _kept(head: Head, one: Candidate) -> str:
    """The activation as the head has a use for it; a unit length says nothing of classes.

    The column of one class of a Softmax needs no second activation, as behind a Sigmoid, and the
    largest of its probabilities none either. Numbers of classes that are computed further are
    judged as those of an ArgMax.
    """
    if head.judges_all:
        return "argmax" if one.is_of_numbers else one.activation
    if one.is_chance or (one.activation in PARTS and one.may_be_chances):
        return "sigmoid"
    return one.activation if one.activation not in PARTS | {"l2"} else "none"


def _taken(head: Head, one: Candidate) -> str | None:
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


def _batch_axis(values: Sequence[Array]) -> int | None:
    """Which axis grows with the batch: the first, or where sequences come first the second.

    ``None`` where batches of several sizes give as many: of rankings of the images, say.
    """
    counts = [one.shape[:FLAT] for one in values]
    grows = [len(set(sizes)) > 1 for sizes in zip(*counts, strict=True)]
    if len(values) == 1 or grows[:1] == [True]:
        return 0
    return 1 if grows == [False, True] else None


def _require_batch_first(
    name: str, found: Candidate, head: Head, fixed: FixedBatch | None, axis: int | None
) -> None:
    # Where images depend on one another, nothing but the size is known of a fixed batch.
    has_size = fixed is not None and fixed.size == found.shape[0]
    if axis == 0 or (axis is None and has_size):
        return
    where = "comes second" if axis == 1 else "is at no place of its own"
    raise ModelFileError(
        f"{name} returns {_described(found)}, in which the batch {where}: not {head.layout}\n"
        "export it with the batch first, or take it as it is: --head raw"
    )


def _refusal(name: str, candidates: Sequence[Candidate], head: Head) -> ModelFileError:
    found = ", ".join(_described(one) for one in candidates)
    has_floats = any(one.is_float for one in candidates)
    return ModelFileError(
        f"{name} returns {found}\nexpected a float32 output {head.layout}, the {head.noun}\n"
        f"{head.advice(has_floats=has_floats)}"
    )


def _described(one: Candidate) -> str:
    return f"{one.name} {one.values[0].dtype} {one.spec.shape_text}"


def _candidate(name: str, candidates: Sequence[Candidate], wish: Wish) -> Candidate:
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


def _may_be(one: Candidate, wished: Head | None, labels: int | None) -> bool:
    if wished is None:
        return kind_of(one, labels)[0] != RAW.name
    head = wished.applied(_kept(wished, one))
    return _fits(head, one) and (one.is_float or one.activation in NUMBERS)


def _fits(head: Head, one: Candidate) -> bool:
    is_fitting = head.fits(one.shape) or head.fits(one.flat_shape)
    return is_fitting and (head.judges_all or not one.tail.has_rankings)


def _with_labels(fitting: Sequence[Candidate], labels: int | None) -> list[Candidate]:
    """The outputs that have a value for each label; a yes or no has one or two names."""
    if labels is None:
        return []
    return [one for one in fitting if one.width == labels or (one.width == 1 and labels == FLAT)]


def _last_in_line(fitting: Sequence[Candidate]) -> list[Candidate]:
    """Without features that another one's last layer is fed with."""
    layers = {one.name: one.tail.layer for one in fitting}
    return [
        one
        for one in fitting
        if not any(layers.get(fed, one.tail.layer) != one.tail.layer for fed in one.tail.feeds)
    ]


def _with_values(fitting: Sequence[Candidate]) -> list[Candidate]:
    """Values for each class say more than their numbers; those of another layer say nothing."""
    has_values = {one.name: one.is_float and one.activation not in NUMBERS for one in fitting}
    layers = {one.tail.layer for one in fitting if has_values[one.name]}
    if not layers:
        return []
    known = {*layers, None}
    return [one for one in fitting if has_values[one.name] or one.tail.layer not in known]


def _one_per_layer(fitting: Sequence[Candidate]) -> list[Candidate]:
    """Of logits and what is made of them the first."""
    first: dict[str, Candidate] = {}
    for one in fitting:
        first.setdefault(one.tail.layer or f"without a layer: {one.name}", one)
    return list(first.values())


def _from_a_layer(fitting: Sequence[Candidate]) -> list[Candidate]:
    """Those that a Gemm, MatMul or Conv ends in, without pooling or ReLU behind it."""
    return [one for one in fitting if one.tail.layer is not None and not one.tail.between]


def _deepest(fitting: Sequence[Candidate]) -> list[Candidate]:
    """Of heads for the same classes the one at the end: others are auxiliary ones of training."""
    if len({one.width for one in fitting}) > 1:
        return []
    most = max(one.tail.layers for one in fitting)
    return [one for one in fitting if one.tail.layers == most]


_RULES: Final[tuple[_Rule, ...]] = (
    _last_in_line, _with_values, _one_per_layer, _from_a_layer, _deepest,
)  # fmt: skip
"""What decides between outputs, in this order; a rule that leaves none is passed over."""
