"""The request of a precision under a budget, refused where the call shows that it cannot be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from deploykit import images
from deploykit.core.errors import DataError, UsageError
from deploykit.core.precision import AUTO, RANDOM, Precision, require_images
from deploykit.costs.estimates import known_gpu
from deploykit.costs.peaks import gpu_peak
from deploykit.precision.budget.bounds import images_needed, least_bound
from deploykit.precision.calibration.data import choose_images

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from deploykit.costs.peaks import DevicePeak
    from deploykit.images import ImageSet
    from deploykit.precision.calibration.data import CalibrationOptions
    from deploykit.precision.quantization.request import QuantizationRequest

ASSUMED_GPU: Final = "A10"
"""Whose rates count where no GPU is named or found: Ampere, with INT8 and without FP8."""

ENOUGH: Final = 4
"""So many times the images that the budget needs at least are judged on, where there are as many:
then the bound also holds where a few answers change."""

_EIGHT_BITS: Final = (Precision.INT8, Precision.FP8)


@dataclass(frozen=True)
class Budget:
    """What may be lost, and what time is predicted for.

    Attributes:
        max_drop: largest loss, as a share from 0 to 1.
        gpu: its name, as `costs.peaks.gpu_peak` takes it; ``None``: `ASSUMED_GPU`.
        data: images that judge, labelled or not; ``None``: those of the calibration set that the
            calibration leaves.
        batch: images at once that times are predicted for.
        targets: compute capabilities that the engine must run on, beside that of ``gpu``.
        place: the bundle whose measurements may be used again.
    """

    max_drop: float
    gpu: str | None = None
    data: Path | None = None
    batch: int = 8
    targets: tuple[str, ...] = ()
    place: Path | None = None

    def __post_init__(self) -> None:
        if not 0 < self.max_drop < 1:
            raise UsageError(
                f"a loss of at most {self.max_drop:g} cannot be promised\n"
                "expected a share between 0 and 1, as --max-drop 1% or 0.01"
            )
        self.peak  # noqa: B018 - an unknown GPU is refused at once

    @property
    def peak(self) -> DevicePeak:
        """Rates of the GPU.

        Raises:
            UnknownNameError: none of the table has this name.
            UsageError: several have.
        """
        return known_gpu(self.gpu or ASSUMED_GPU)

    def formats(self) -> tuple[tuple[Precision, ...], tuple[str, ...]]:
        """The eight-bit formats that the GPU gains by, and a sentence for each of the others."""
        peak = self.peak
        plain = peak.flop_per_s(Precision.FP16) or 0.0
        where = [each for each in (peak.compute_capability, *self.targets) if each]
        usable, notes = [], []
        for each in _EIGHT_BITS:
            lacking = [capability for capability in where if not each.facts.runs_on(capability)]
            if lacking:
                notes.append(f"no {each.upper()}: compute capability {lacking[0]} has none")
            elif peak.int8_op_per_s is None:
                notes.append(f"no {each.upper()}: {peak.name} has none")
            elif peak.int8_op_per_s <= plain:
                notes.append(f"no {each.upper()}: {peak.name} is not faster in it than in FP16")
            else:
                usable.append(each)
        return tuple(usable), tuple(notes)


def parse_drop(text: str) -> float:
    """A share as a user writes it.

    >>> parse_drop("1%"), parse_drop("0.005"), parse_drop(" 0.5 % ")
    (0.01, 0.005, 0.005)

    Raises:
        UsageError: it is no share between 0 and 1.
    """
    stripped = text.strip()
    number = stripped.removesuffix("%").strip()
    try:
        share = float(number) / (100 if stripped.endswith("%") else 1)
    except ValueError:
        share = float("nan")
    if not (isfinite(share) and 0 < share < 1):
        raise UsageError(
            f"--max-drop is {text!r}\nexpected a share above 0% and below 100%, as 1% or 0.01"
        )
    return share


def require_budget(
    budget: Budget, request: QuantizationRequest | None
) -> tuple[QuantizationRequest, Judges]:
    """The request with what a budget decides left to it, and the images that judge.

    Raises:
        UsageError: there are no images, or an option fixes what the budget decides.
        DataError: too few images are left to judge the loss on; says how many are needed.
    """
    require_images(AUTO, given=request is not None)
    request = cast("QuantizationRequest", request)
    if request.calibration.data == RANDOM:
        raise UsageError(
            "--precision auto cannot judge a loss on noise: --calib random is for sizes and speed\n"
            "give images: --calib PATH"
        )
    choices = request.int8_choices
    fixed = {
        "--sensitive-layers": choices.sensitive_layers != AUTO,
        "--rest": request.rest is not Precision.FP16,
    }
    wrong = next((option for option, is_fixed in fixed.items() if is_fixed), None)
    if wrong is not None:
        raise UsageError(
            f"{wrong} fixes what --precision auto decides for each layer\nleave it out"
        )
    judges = require_resolvable(budget, request.calibration)
    decided = replace(
        choices,
        sensitive_layers="int8",
        first_layer="keep" if choices.first_layer == "keep" else "int8",
    )
    return replace(request, int8_choices=decided), judges


@dataclass(frozen=True)
class Judges:
    """Images that a loss is judged on: which of ``source``, in an order that does not change."""

    source: ImageSet
    indices: Sequence[int]

    def first(self, count: int) -> Judges:
        """The first ``count`` of them, or all where there are fewer."""
        return Judges(self.source, self.indices[:count])

    @property
    def resolution(self) -> str:
        """What so many images leave possible, as a sentence."""
        count = len(self.indices)
        return (
            f"the loss is judged on {count} images: no changed answer among them still leaves "
            f"{least_bound(count):.2%} possible (95 % confidence)"
        )


def judges_of(budget: Budget, calibration: CalibrationOptions) -> Judges:
    """All images of ``--data``, or those of ``--calib`` that the calibration does not see.

    Raises:
        DataError: they cannot be opened.
    """
    given = calibration.data
    if budget.data is not None:
        source = images.open_images(budget.data, calibration.max_pixels)
        is_same = isinstance(given, str) and Path(given).resolve() == budget.data.resolve()
        seen = calibration.count if is_same else 0
    elif isinstance(given, str):
        source, seen = images.open_images(Path(given), calibration.max_pixels), calibration.count
    else:
        source, seen = given, calibration.count
    left = choose_images(len(source), len(source), calibration.seed)[seen:]
    return Judges(source, left)


def require_resolvable(budget: Budget, calibration: CalibrationOptions) -> Judges:
    """The images that judge.

    Raises:
        DataError: too few for the budget, whatever they show; says how many are needed.
    """
    found = judges_of(budget, calibration)
    needed = images_needed(budget.max_drop)
    if len(found.indices) >= needed:
        return found.first(ENOUGH * needed)
    left = len(found.indices)
    possible = f"{least_bound(left):.2%}" if left else "everything"
    where = (
        "of --data"
        if budget.data is not None
        else (
            f"of --calib beside the {min(calibration.count, len(found.source))} of the calibration"
        )
    )
    remedy = (
        "" if budget.data is not None else ", lower --calib-count, or judge on others: --data PATH"
    )
    raise DataError(
        f"--max-drop {100 * budget.max_drop:.4g}% needs {needed} images to judge it, "
        f"there are {left} {where}: they leave {possible} possible when no answer changes\n"
        f"give {needed - left} more{remedy}; or allow more: --max-drop"
    )


def with_found_gpu(budget: Budget, names: Iterable[str]) -> Budget:
    """The budget for the first of this machine's GPUs ``names`` that has known rates.

    One that names its GPU stays as it is, and so does one where none is known.

    >>> with_found_gpu(Budget(0.01), ["NVIDIA L4"]).gpu, with_found_gpu(Budget(0.01), []).gpu
    ('NVIDIA L4', None)
    """
    if budget.gpu is not None:
        return budget
    return replace(budget, gpu=next((each for each in names if gpu_peak(each).peak), None))
