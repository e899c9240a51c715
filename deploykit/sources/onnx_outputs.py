"""The outputs of a user's own file: which is judged, and whether all of them still agree."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.comparison.converted import open_as_engine
from deploykit.core.errors import ModelFileError
from deploykit.core.precision import Precision
from deploykit.heads import figures_of
from deploykit.heads.multiclass import MULTICLASS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.comparison.reference import Runners
    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.core.specs import Array, Runner, TensorSpec
    from deploykit.heads import Figures, Head

    Images = NDArray[np.float32]
    Answers = Mapping[str, Array]

_FLAT: Final = 2


@dataclass(frozen=True)
class OutputChoice:
    """The output that ``head`` is about; ``flat`` where it has the head's shape already."""

    head: Head
    name: str
    flat: bool
    moved: bool
    others: tuple[TensorSpec, ...]

    def notes(self) -> list[str]:
        """What a user must know of the choice; nothing where there was none."""
        found = []
        if self.others:
            named = ", ".join(f"{spec.name!r} {spec.shape}" for spec in self.others)
            rule = f"the first {self.head.form} float32 output"
            found.append(f"{self.head.noun} are {self.name!r}, {rule}; beside them: {named}")
        if self.moved:
            found.append(f"{self.name!r} was made the first output")
        if not self.flat:
            found.append(f"{self.name!r} was flattened to {self.head.layout}")
        return found


def choose_output(
    name: str, outputs: Sequence[TensorSpec], answers: Answers, head: Head
) -> OutputChoice:
    """The first float32 output that ``head`` fits, else the first that it fits without (1, 1).

    So logits may be (N, K) or (N, K, 1, 1).

    Raises:
        ModelFileError: there is none.
    """
    floats = [spec for spec in outputs if answers[spec.name].dtype == np.float32]
    flat = [spec for spec in floats if head.fits(answers[spec.name].shape)]
    pooled = [spec for spec in floats if _is_pooled(answers[spec.name].shape, head)]
    if not flat and not pooled:
        found = ", ".join(f"{s.name} {answers[s.name].dtype} {s.shape}" for s in outputs)
        raise ModelFileError(
            f"{name} returns {found}\nexpected a float32 output {head.layout}, the {head.noun}\n"
            f"{head.advice(has_floats=bool(floats))}"
        )
    chosen = (flat or pooled)[0]
    others = tuple(spec for spec in outputs if spec is not chosen)
    return OutputChoice(head, chosen.name, bool(flat), chosen is not outputs[0], others)


def _is_pooled(shape: tuple[int, ...], head: Head) -> bool:
    return len(shape) > _FLAT and prod(shape[_FLAT:]) == 1 and head.fits(shape[:_FLAT])


def answers_of(runner: Runner, batches: Sequence[Images]) -> list[Answers]:
    """All outputs by name for each batch (N, C, H, W)."""
    feed = runner.inputs[0].name
    return [runner.run({feed: batch}) for batch in batches]


def answers_one_by_one(runner: Runner, batches: Sequence[Images], fixed: int) -> list[Answers]:
    """As `answers_of` for a model that takes ``fixed`` images at a time, image by image.

    The images are given to it in groups; the last group is filled up with the last one.

    Raises:
        ModelFileError: an output has not one entry per image.
    """
    images = np.concatenate(batches)
    missing = -len(images) % fixed
    full = np.concatenate([images, np.repeat(images[-1:], missing, axis=0)])
    groups = answers_of(runner, np.split(full, len(full) // fixed))
    for name, value in groups[0].items():
        if value.shape[:1] != (fixed,):
            raise ModelFileError(f"the output {name!r} {value.shape} has no batch of its own")
    joined = {name: np.concatenate([group[name] for group in groups]) for name in groups[0]}
    ends = np.cumsum([len(batch) for batch in batches])
    parts = {name: np.split(value, ends) for name, value in joined.items()}
    return [{name: parts[name][at] for name in parts} for at in range(len(batches))]


def outputs_in(answers: Sequence[Answers], name: str, head: Head) -> list[Images]:
    """The output ``name`` of each batch, in the shape of ``head``."""
    values = [one[name].astype(np.float32) for one in answers]
    return [one if head.fits(one.shape) else one.reshape(one.shape[:_FLAT]) for one in values]


def other_problems(got: Sequence[Answers], expected: Sequence[Answers], compared: str) -> list[str]:
    """How the outputs beside ``compared`` differ from the original's, a sentence each."""
    problems = []
    for left, right in zip(got, expected, strict=True):
        for name in right:
            if name != compared:
                problems += [f"output {name!r}: {p}" for p in _problems(left[name], right[name])]
    return problems


def notes_on_others(
    reference: OnnxArtifact, candidate: OnnxArtifact, batches: Sequence[Images], runners: Runners
) -> list[str]:
    """How far each float32 output beside the first is from that of the FP32 graph.

    They pass no judgement: what is built on them is not known.
    """
    if len(candidate.outputs) == 1 or candidate.precision.facts.is_source:
        return []
    sides = []
    for artifact in (candidate, reference):
        with open_as_engine(runners, artifact) as runner:
            sides.append(answers_of(runner, batches))
    notes = []
    for spec in candidate.outputs[1:]:
        pairs = [
            (got[spec.name], expected[spec.name]) for got, expected in zip(*sides, strict=True)
        ]
        if spec.dtype == "float32" and all(expected.ndim for _, expected in pairs):
            found = [_compared(got, expected) for got, expected in pairs]
            notes.append(
                f"output {spec.name!r} of the {candidate.precision} graph: largest error "
                f"{max(f.max_relative for f in found):.1e} of its largest value, "
                f"cosine {min(f.min_cosine for f in found):.6f}"
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
