"""The outputs of a user's own file: which are the logits, and whether all of them still agree."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.comparison.differences import compare, problems_of
from deploykit.core.errors import ModelFileError
from deploykit.core.precision import Precision

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.comparison.differences import BatchComparison
    from deploykit.comparison.reference import Runners
    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.core.specs import Array, Runner, TensorSpec

    Images = NDArray[np.float32]
    Answers = Mapping[str, Array]

_LOGITS_RANK: Final = 2


@dataclass(frozen=True)
class LogitsChoice:
    """The output that is taken for the logits; ``flat`` where it is (N, K) already."""

    name: str
    flat: bool
    moved: bool
    others: tuple[TensorSpec, ...]

    def notes(self) -> list[str]:
        """What a user must know of the choice; nothing where there was none."""
        found = []
        if self.others:
            named = ", ".join(f"{spec.name!r} {spec.shape}" for spec in self.others)
            rule = "the first 2-dimensional float32 output"
            found.append(f"logits are {self.name!r}, {rule}; beside them: {named}")
        if self.moved:
            found.append(f"{self.name!r} was made the first output")
        if not self.flat:
            found.append(f"{self.name!r} was flattened to (batch, classes)")
        return found


def choose_logits(name: str, outputs: Sequence[TensorSpec], answers: Answers) -> LogitsChoice:
    """The first output of shape (N, K) in float32, else the first of (N, K, 1, 1).

    Raises:
        ModelFileError: there is none.
    """
    floats = [spec for spec in outputs if answers[spec.name].dtype == np.float32]
    flat = [spec for spec in floats if answers[spec.name].ndim == _LOGITS_RANK]
    pooled = [spec for spec in floats if _is_pooled(answers[spec.name].shape)]
    if not flat and not pooled:
        found = ", ".join(f"{s.name} {answers[s.name].dtype} {s.shape}" for s in outputs)
        raise ModelFileError(
            f"{name} returns {found}\nexpected a float32 output (batch, classes), the logits\n"
            + ("export it with its head" if floats else "let it end before its ArgMax")
        )
    chosen = (flat or pooled)[0]
    others = tuple(spec for spec in outputs if spec is not chosen)
    return LogitsChoice(chosen.name, bool(flat), chosen is not outputs[0], others)


def _is_pooled(shape: tuple[int, ...]) -> bool:
    return len(shape) > _LOGITS_RANK and prod(shape[_LOGITS_RANK:]) == 1


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


def logits_in(answers: Sequence[Answers], name: str) -> list[Images]:
    """The logits (N, K) of each batch."""
    return [one[name].reshape(len(one[name]), -1).astype(np.float32) for one in answers]


def other_problems(got: Sequence[Answers], expected: Sequence[Answers], logits: str) -> list[str]:
    """How the outputs beside the logits differ from the original's, a sentence each."""
    problems = []
    for left, right in zip(got, expected, strict=True):
        for name in right:
            if name != logits:
                problems += [f"output {name!r}: {p}" for p in _problems(left[name], right[name])]
    return problems


def notes_on_others(
    reference: OnnxArtifact, candidate: OnnxArtifact, batches: Sequence[Images], runners: Runners
) -> list[str]:
    """How far each float32 output beside the logits is from that of the FP32 graph.

    They pass no judgement: what is built on them is not known.
    """
    if len(candidate.outputs) == 1 or candidate.precision.facts.is_source:
        return []
    sides = []
    for artifact in (candidate, reference):
        with runners.of_artifact(artifact) as runner:
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


def _compared(got: Array, expected: Array) -> BatchComparison:
    return compare(got.astype(np.float32), expected.astype(np.float32))


def _problems(got: Array, expected: Array) -> list[str]:
    if got.shape != expected.shape:
        return [f"shape {got.shape} instead of {expected.shape}"]
    if expected.dtype != np.float32:
        equal = np.array_equal(got, expected)
        return [] if equal else [f"{expected.dtype} values differ"]
    if not expected.size or not expected.ndim:
        return []
    return problems_of(_compared(got, expected), Precision.FP32.facts.limits)
