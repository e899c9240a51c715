"""Compare a candidate with its reference on the same batches, and judge the difference."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.core.errors import ValidationError
from deploykit.heads.multiclass import MULTICLASS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from deploykit.core.precision import Precision
    from deploykit.core.specs import Runner
    from deploykit.heads import Figures, Head

    Outputs = NDArray[np.float32]

__all__ = [
    "ReportedValidationError",
    "ValidationReport",
    "notes_on_samples",
    "outputs_of",
    "same_images",
    "validate",
]


@dataclass(frozen=True)
class ValidationReport:
    """All batches of one candidate, what it was measured against, and what is wrong with it.

    ``blind_spots`` say why the comparison could not have failed, where it could not.
    """

    candidate: str
    reference: str
    precision: Precision
    batches: tuple[Figures, ...]
    problems: tuple[str, ...]
    head: Head = MULTICLASS
    blind_spots: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every batch is within the limits."""
        return not self.problems

    @property
    def images_beyond(self) -> dict[int, str]:
        """What of single images is beyond the limits, by their place; a few may be, in INT8."""
        return self.head.images_beyond(self.batches, self.precision.facts.limits)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the manifest and ``--json``."""
        return {
            "candidate": self.candidate,
            "reference": self.reference,
            "precision": str(self.precision),
            "passed": self.passed,
            "problems": list(self.problems),
            "head": self.head.name,
            "activation": self.head.activation,
            "blind_spots": list(self.blind_spots),
            **self.head.summary_of(self.batches),
            "images_beyond": {str(place): what for place, what in self.images_beyond.items()},
            "batches": [_plain(batch) for batch in self.batches],
            "limits": asdict(self.precision.facts.limits),
        }

    def doubted(self, reasons: Sequence[str]) -> ValidationReport:
        """The report with more ``blind_spots``."""
        return replace(self, blind_spots=(*reasons, *self.blind_spots))

    def require_pass(self, advice: str = "") -> None:
        """Raise what the report found.

        Raises:
            ValidationError: the first problems, in words, and the ``advice``; ``details`` is the
                whole report.
        """
        if not self.passed:
            raise ReportedValidationError(self, advice)


_OF_EACH_IMAGE: Final = frozenset({"image_kl", "image_cosine"})
"""Figures that are judged and not recorded: there may be thousands."""


def _plain(figures: Figures) -> dict[str, Any]:
    return {name: value for name, value in asdict(figures).items() if name not in _OF_EACH_IMAGE}


class ReportedValidationError(ValidationError):
    """A failed validation; ``details`` holds every figure, for a table."""

    def __init__(self, report: ValidationReport, advice: str = "") -> None:
        self.details = report.to_dict()
        shown = "; ".join(report.problems[:2])
        lines = (
            f"{report.candidate} does not compute what {report.reference} computes:",
            shown,
            *([advice] if advice else []),
        )
        super().__init__("\n".join(lines))


def same_images(batches: Sequence[Outputs]) -> list[str]:
    """A sentence where all images (N, C, H, W) of the batches are one and the same."""
    alike = [batch for batch in batches if batch.shape[1:] == batches[0].shape[1:]]
    first = batches[0][:1]
    if sum(map(len, alike)) == 1 or not all((batch == first).all() for batch in alike):
        return []
    return [f"all {sum(map(len, alike))} images are the same one"]


def notes_on_samples(report: ValidationReport) -> list[str]:
    """What to do where deploykit's own photographs are beyond what ranges were calibrated on."""
    if report.passed or not report.precision.facts.quantized:
        return []
    photographs = "the photographs that come with deploykit may be unlike the calibration images"
    return [f"{photographs} of {report.candidate}: compare on such as these, with --data"]


def outputs_of(runner: Runner, batches: Sequence[Outputs]) -> list[Outputs]:
    """The first output for each batch (N, C, H, W) given to the first input."""
    feed, result = runner.inputs[0].name, runner.outputs[0].name
    return [runner.run({feed: batch})[result].astype(np.float32) for batch in batches]


def require_numbers(answers: Sequence[Outputs], of: str) -> None:
    """Refuse outputs, a batch each, against which nothing can be verified.

    Raises:
        ValidationError: one has NaN or infinity; says for how many of the images.
    """
    broken = sum(
        int(np.count_nonzero(~np.isfinite(batch).reshape(len(batch), -1).all(axis=1)))
        for batch in answers
        if batch.size
    )
    if broken:
        raise ValidationError(
            f"{of} itself gives NaN or infinity for {broken} of {sum(map(len, answers))} images\n"
            "outputs must be numbers: check the weights, and that images are preprocessed as in "
            "training; end the network before a mask of infinities, and mask what it gives"
        )


def validate(
    candidate: Sequence[Outputs],
    reference: Sequence[Outputs],
    *,
    precision: Precision,
    names: tuple[str, str],
    head: Head = MULTICLASS,
) -> ValidationReport:
    """Compare outputs batch by batch and judge them by the limits of ``precision``.

    ``head`` says what they mean, and which of the limits are for it. Where it takes values as they
    are there may be none, as of a detector that finds nothing; a blind spot says so.

    Raises:
        ValidationError: the outputs do not even have the same shape, or there is nothing in them.
    """
    pairs = list(zip(candidate, reference, strict=True))
    if not pairs or not (head.judges_all or all(expected.size for _, expected in pairs)):
        raise ValidationError(f"there is no output of {names[1]} to compare {names[0]} with")
    for got, expected in pairs:
        if got.shape != expected.shape:
            raise ValidationError(
                f"{names[0]} returns shape {got.shape}, {names[1]} returns {expected.shape}"
            )
    limits = precision.facts.limits
    batches = tuple(head.compare(got, expected) for got, expected in pairs)
    problems = head.problems(batches, limits)
    blind = head.blind_spots([expected for _, expected in pairs], limits)
    return ValidationReport(*names, precision, batches, tuple(problems), head, tuple(blind))
