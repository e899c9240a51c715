"""The outputs of a user's own file: as they are judged, and whether all of them still agree."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from deploykit.comparison.validation import validate
from deploykit.core.errors import ModelFileError, ValidationError
from deploykit.core.precision import Precision
from deploykit.graph import read_model, read_tails, tidy
from deploykit.heads import figures_of
from deploykit.heads._results import judged_beside
from deploykit.heads.multiclass import MULTICLASS
from deploykit.heads.raw import comparable, raw_for
from deploykit.sources.head_choice import FixedBatch, Wish, choose_output, kind_beside

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.comparison.validation import ValidationReport
    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.core.specs import Array, Runner, TensorSpec
    from deploykit.heads import Figures, Head
    from deploykit.sources.head_choice import OutputChoice

    Images = NDArray[np.float32]
    Answers = Mapping[str, Array]

_FLAT: Final = 2
_NONE_KNOWN: Final[Mapping[str, Head | None]] = MappingProxyType({})


def answers_of(runner: Runner, batches: Sequence[Images]) -> list[Answers]:
    """All outputs by name for each batch (N, C, H, W)."""
    feed = runner.inputs[0].name
    return [runner.run({feed: batch}) for batch in batches]


def answers_one_by_one(
    runner: Runner, batches: Sequence[Images], fixed: int, choice: OutputChoice
) -> list[Answers]:
    """As `answers_of` for a model that takes ``fixed`` images at a time, image by image.

    The images are given to it in groups; the last group is filled up with the last one. The output
    of ``choice`` has its final form.

    Raises:
        ModelFileError: an output has not one entry per image.
    """
    images = np.concatenate(batches)
    missing = -len(images) % fixed
    full = np.concatenate([images, np.repeat(images[-1:], missing, axis=0)])
    groups = settled(answers_of(runner, np.split(full, len(full) // fixed)), choice)
    for name, value in groups[0].items():
        if value.shape[:1] != (fixed,):
            raise ModelFileError(f"the output {name!r} {value.shape} has no batch of its own")
    joined = {name: np.concatenate([group[name] for group in groups]) for name in groups[0]}
    ends = np.cumsum([len(batch) for batch in batches])
    parts = {name: np.split(value, ends) for name, value in joined.items()}
    return [{name: parts[name][at] for name in parts} for at in range(len(batches))]


def fixed_batch_of(runner: Runner, batch: Images, answer: Answers) -> FixedBatch | None:
    """The batch that a model insists on, which gave ``answer`` for one of them.

    Sizes do not tell along which axis its images are in an output: with the images in another order
    the answers are in another order.
    """
    size = runner.inputs[0].fixed_batch
    if size is None or size == 1:
        return None if size is None else FixedBatch(size)
    turned = answers_of(runner, [np.roll(batch, 1, axis=0)])[0]
    axes = {}
    for name, value in answer.items():
        places = [axis for axis, count in enumerate(value.shape) if count == size]
        alike = (axis for axis in places if _are_close(np.roll(value, 1, axis), turned[name]))
        axes[name] = next(alike, None)
    return FixedBatch(size, axes)


def _are_close(left: Array, right: Array) -> bool:
    scale = float(np.abs(left.astype(np.float64)).max(initial=0.0))
    is_alike = left.shape == right.shape
    return is_alike and bool(np.allclose(left, right, rtol=0, atol=_ROUNDING * scale))


_ROUNDING: Final = 1e-4
"""Of another order of summation, beside the largest value."""


def settled(answers: Sequence[Answers], choice: OutputChoice) -> list[Answers]:
    """The answers of a user's file with the chosen output as `put_first` makes it."""
    return [{**one, choice.name: _settled(one[choice.name], choice)} for one in answers]


def _settled(value: Array, choice: OutputChoice) -> Array:
    if choice.single:
        value = value[None]
    if choice.batch_axis:
        value = np.swapaxes(value, 0, choice.batch_axis)
    return value if choice.flat else value.reshape(len(value), -1)


def outputs_in(answers: Sequence[Answers], name: str) -> list[Images]:
    """The output ``name`` of each batch in FP32."""
    return [one[name].astype(np.float32) for one in answers]


def other_problems(got: Sequence[Answers], expected: Sequence[Answers], compared: str) -> list[str]:
    """How the outputs beside ``compared`` differ from the original's, a sentence each."""
    problems = []
    for left, right in zip(got, expected, strict=True):
        for name in right:
            if name != compared:
                problems += [f"output {name!r}: {p}" for p in _problems(left[name], right[name])]
    return problems


def notes_on_batches(
    runner: Runner, batches: Sequence[Images], answers: Sequence[Answers], head: Head
) -> list[str]:
    """A sentence where an image gets other answers alone than among others, as FP32 computes them.

    Every image of the largest batch is run alone, and all outputs that have a row for each are
    held against the ``answers`` to that batch. A graph that takes a fixed number of images is not
    looked at.
    """
    batch, among_others = max(zip(batches, answers, strict=True), key=lambda pair: len(pair[0]))
    if len(batch) == 1 or runner.inputs[0].fixed_batch is not None:
        return []
    alone = answers_of(runner, [batch[at : at + 1] for at in range(len(batch))])
    changed = [
        name
        for name, rows in among_others.items()
        if _depends([one[name] for one in alone], rows, name)
    ]
    if not changed:
        return []
    first = next(iter(among_others))
    what = head.noun if first in changed else f"values in {', '.join(map(repr, changed))}"
    note = (
        f"an image's {what} depend on the other images of its batch; alone it gets others, and so "
        "it does in a service that gathers requests into batches"
    )
    return [note]


def _depends(alone: Sequence[Array], rows: Array, name: str) -> bool:
    """Whether ``rows``, one for each image, are others than what each image gave alone."""
    if {one.shape for one in alone} != {(1, *rows.shape[1:])} or len(rows) != len(alone):
        return False  # what an image has none or several of, as boxes
    return bool(other_problems([{name: np.concatenate(alone)}], [{name: rows}], ""))


def heads_of_file(
    name: str, source: OnnxArtifact, outputs: Sequence[Sequence[Images]]
) -> tuple[Head, dict[str, Head], list[list[Images]]]:
    """What the first output of a file means; the last of ``outputs`` are what it gave, by batch.

    Also what judges those beside it, by name, that say how likely its class numbers are, and all
    ``outputs`` with the axis for the batch that a file for one image may leave out.

    Raises:
        ModelFileError: the file cannot be read.
    """
    first, *others = source.outputs
    model = read_model(source.path)
    tidy(model, rename=False)  # with the shapes by which an export reads the same file
    tails = read_tails(model)
    answers = [{first.name: one} for one in outputs[-1]]
    sizes = [spec.fixed_batch for spec in source.inputs if spec.fixed_batch is not None]
    # Where the images of a fixed batch lie in a file that nothing was exported from is assumed.
    fixed = FixedBatch(min(sizes), {first.name: 0}) if sizes else None
    choice = choose_output(name, (first,), answers, tails, Wish(), fixed)
    head = choice.head
    found: dict[str, Head] = {}
    for spec in others:
        kind = kind_beside(tails[first.name], tails[spec.name])
        found |= {} if kind is None else judged_beside(head, {kind: spec.name})
    sides = [[one[None] if choice.single else one for one in side] for side in outputs]
    return head, found, sides


class OthersJudged(NamedTuple):
    """What became of the outputs beside the first: reports, notes, and which stay as in FP32."""

    reports: tuple[ValidationReport, ...]
    notes: list[str]
    steady: frozenset[str]


def judge_others(
    reference: OnnxArtifact,
    candidate: OnnxArtifact,
    batches: Sequence[Images],
    head: Head,
    openers: tuple[Callable[[], Runner], Callable[[], Runner]],
    *,
    known: Mapping[str, Head | None] = _NONE_KNOWN,
) -> OthersJudged:
    """Hold the outputs beside the first against those of the FP32 graph.

    Where ``head`` judges all outputs each has a report, and so have those that are ``known``, each
    judged by its head. Otherwise notes say how far each float32 output is off, and pass no
    judgement: what is built on them is not known. Those within the limits of plain values can be
    held against the golden sample later. ``openers`` open the candidate, or what runs in place of
    its graph, as its engine, and the reference.
    """
    names = [spec.name for spec in candidate.outputs[1:]]
    if not names or candidate.sha256 == reference.sha256:
        return OthersJudged((), [], frozenset(names))
    sides = []
    for opened in openers:
        with opened() as runner:
            sides.append(answers_of(runner, batches))
    names = [name for name in names if name in sides[1][0]]
    judged = names if head.judges_all else [name for name in names if name in known]
    got, wanted = sides
    reports = tuple(_report_on(name, candidate, got, wanted, known.get(name)) for name in judged)
    if head.judges_all:
        return OthersJudged(reports, [], frozenset(names))
    steady = frozenset(name for name in names if _is_steady(name, candidate, *sides))
    noted = [spec for spec in candidate.outputs if spec.name in {*names} - {*judged}]
    return OthersJudged(reports, _notes_on_others(noted, candidate, steady, sides), steady)


def _is_steady(
    name: str, candidate: OnnxArtifact, got: Sequence[Answers], expected: Sequence[Answers]
) -> bool:
    try:
        return _report_on(name, candidate, got, expected).passed
    except ValidationError:  # another shape
        return False


def _report_on(
    name: str,
    candidate: OnnxArtifact,
    got: Sequence[Answers],
    expected: Sequence[Answers],
    head: Head | None = None,
) -> ValidationReport:
    names = f"output {name!r} of the {candidate.precision} graph", "the fp32 graph"
    return validate(
        [comparable(one[name]) for one in got],
        [comparable(one[name]) for one in expected],
        precision=candidate.precision,
        names=names,
        head=head or raw_for(expected[0][name]),
    )


def _notes_on_others(
    noted: Sequence[TensorSpec],
    candidate: OnnxArtifact,
    steady: frozenset[str],
    sides: Sequence[Sequence[Answers]],
) -> list[str]:
    notes = []
    for spec in noted:
        pairs = [(left[spec.name], right[spec.name]) for left, right in zip(*sides, strict=True)]
        is_alike = all(left.shape == right.shape for left, right in pairs)
        if spec.dtype.startswith("int") and is_alike:
            changed = sum(np.count_nonzero(left != right) for left, right in pairs)
            if changed:
                count = sum(right.size for _, right in pairs)
                notes.append(
                    f"output {spec.name!r} of the {candidate.precision} graph: {changed} of "
                    f"{count} numbers changed; not judged"
                )
        if spec.dtype == "float32" and all(right.ndim for _, right in pairs):
            found = [_compared(left, right) for left, right in pairs]
            where = "" if spec.name in steady else "; too far for the golden sample"
            notes.append(
                f"output {spec.name!r} of the {candidate.precision} graph: largest error "
                f"{max(f.max_relative for f in found):.1e} of its largest value, "
                f"cosine {min(f.min_cosine for f in found):.6f}{where}"
            )
    return notes


def _compared(got: Array, expected: Array) -> Figures:
    return figures_of(got.astype(np.float32), expected.astype(np.float32))


def _problems(got: Array, expected: Array) -> list[str]:
    if got.shape != expected.shape:
        return [f"shape {got.shape} instead of {expected.shape}"]
    if expected.dtype != np.float32:
        equal = np.array_equal(got, expected)
        return [] if equal else [f"{expected.dtype} values differ"]
    if not expected.size or not expected.ndim:
        return []
    # Nobody says what they mean; the limits of a classifier are the strictest.
    found = MULTICLASS.compare(got.astype(np.float32), expected.astype(np.float32))
    return MULTICLASS.problems_of(found, Precision.FP32.facts.limits)
