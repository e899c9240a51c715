"""Values of any meaning: embeddings, dense maps, sequences, boxes; compared image by image."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from deploykit.core.errors import UsageError
from deploykit.heads._head import Figures, Head, cosines, figures_of, require_finite, rows_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.core.precision import Limits
    from deploykit.heads._head import Outputs

_NAN: Final = float("nan")

_SMALL: Final = 0.05
"""Share of the batch's largest value below which an image's own is no scale: it is near zero."""


@dataclass(frozen=True, slots=True)
class RawComparison(Figures):
    """Candidate against reference on one batch; all figures but the means are the worst image's.

    ``max_image_relative`` is an image's largest error over its own largest value, ``rms_relative``
    the root mean square of its errors over that of its values; values below 5 % of the batch's
    largest count as that much. ``min_cosine`` is of images above it, and of several values each.
    ``differing`` is the share of an image's values that are not equal, for class numbers, which
    are near to each other without being alike.
    """

    max_image_relative: float
    rms_relative: float
    differing: float


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """One output of one image as the model gives it; ``shape`` is without the batch."""

    output: str | None
    shape: tuple[int, ...]
    values: NDArray[np.float32]


class Raw(Head):
    """Outputs that deploykit compares and hands over, and says nothing about."""

    name = "raw"
    noun = "outputs"
    layout = "(batch, ...)"
    form = "any"
    judges_all = True
    comparison_columns: tuple[str, ...] = (
        "batch", "max abs", "mean abs", "worst image: max rel", "rms rel", "cosine",
    )  # fmt: skip
    answer_columns = ("output", "shape", "least", "mean", "largest")

    def applied(self, activation: str) -> Self:
        """This head for a graph that ends in ``activation``; of numbers the share that changes."""
        changed = super().applied(activation)
        if activation in _NUMBERS:
            changed.comparison_columns = ("batch", "worst image: changed")
        return changed

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether there is a batch at all."""
        return len(shape) >= 1

    def compare(self, candidate: Outputs, reference: Outputs) -> RawComparison:
        """The figures of one batch of outputs of equal shape."""
        common = figures_of(candidate, reference)
        if common.non_finite:
            return RawComparison(**asdict(common), **_NOTHING)
        if not reference.size:  # a detector that finds nothing
            return RawComparison(**asdict(common), **_EQUAL)
        left, right = rows_of(candidate), rows_of(reference)
        error = np.abs(left - right)
        scale = np.abs(right).max(axis=1)
        rms, power = (np.sqrt((each**2).mean(axis=1)) for each in (error, right))
        judged = (scale > _SMALL * scale.max()) & (right.shape[1] > 1)
        cosine = cosines(left[judged], right[judged]).min(initial=1.0)
        return RawComparison(
            **asdict(common) | {"min_cosine": float(cosine)},
            max_image_relative=_worst(error.max(axis=1), scale),
            rms_relative=_worst(rms, power),
            differing=_differing(left, right),
        )

    def problems_of(self, figures: RawComparison, limits: Limits) -> list[str]:
        """What of the worst image is beyond its limit, a sentence each."""
        where = f"at batch {figures.batch}"
        if figures.non_finite:
            return [f"{figures.non_finite} values are NaN or infinite {where}"]
        if self.activation in _NUMBERS:
            return _changed(figures.differing, limits.share_of_ties, where)
        found = []
        if figures.max_image_relative > limits.max_relative:
            found.append(
                f"largest error is {figures.max_image_relative:.2e} of an image's largest value "
                f"{where}, limit {limits.max_relative:.0e}"
            )
        if figures.rms_relative > limits.max_relative:
            found.append(
                f"errors are {figures.rms_relative:.2e} of an image's values {where} (root mean "
                f"square), limit {limits.max_relative:.0e}"
            )
        if figures.min_cosine < limits.min_cosine:
            found.append(f"cosine {figures.min_cosine:.6f} {where}, limit {limits.min_cosine}")
        return found

    def comparison_row(self, figures: Mapping[str, Any]) -> tuple[str, ...]:
        """The figures of one batch, as plain data, under `comparison_columns`."""
        if self.activation in _NUMBERS:
            return str(figures["batch"]), f"{figures['differing']:.2%}"
        batch, largest, mean, _, cosine = super().comparison_row(figures)
        relative = f"{figures['max_image_relative']:.2e}"
        return batch, largest, mean, relative, f"{figures['rms_relative']:.2e}", cosine

    def answers(
        self,
        outputs: Outputs,
        labels: Sequence[str] | None,  # noqa: ARG002 - there are no classes
        top_k: int,  # noqa: ARG002 - nothing is left out
    ) -> list[list[Any]]:
        """The values of each image.

        Raises:
            ValidationError: a value is NaN or infinite.
        """
        require_finite(outputs, self.noun)
        return [[RawAnswer(None, each.shape, each)] for each in outputs]

    def answers_of_all(self, outputs: Mapping[str, NDArray[Any]], count: int) -> list[list[Any]]:
        """The values of each of ``count`` images, one answer for every output.

        An output without an entry per image, as a list of all boxes of a batch, belongs to none of
        them; it is given where there is one image.

        Raises:
            UsageError: there are several images, and no output has an entry for each.
            ValidationError: a value is NaN or infinite.
        """
        found: list[list[Any]] = [[] for _ in range(count)]
        for name, values in outputs.items():
            require_finite(values, self.noun)
            if values.shape[:1] == (count,):
                for image, each in zip(found, values, strict=True):
                    image.append(RawAnswer(name, each.shape, each))
            elif count == 1:
                found[0].append(RawAnswer(name, values.shape, values))
        if outputs and not any(found):
            listed = ", ".join(f"{name!r} {each.shape}" for name, each in outputs.items())
            raise UsageError(
                f"no output has an entry per image of {count}: {listed}\ngive one image at a time"
            )
        return found

    def answer_row(self, answer: RawAnswer) -> tuple[str, ...]:
        """The output, its shape, and what range its values have."""
        values = np.asarray(answer.values, np.float64)
        shape = " x ".join(map(str, answer.shape)) or "one"
        figures = (values.min(), values.mean(), values.max()) if values.size else (_NAN,) * 3
        return answer.output or "", shape, *(f"{figure:.6g}" for figure in figures)


def _differing(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    """The share of other class numbers in the worst image; one in all is a near tie, no fault."""
    changed = (left != right).sum(axis=1)
    is_near_tie = changed.sum() <= 1 < left.shape[1]
    return 0.0 if is_near_tie else float(changed.max() / left.shape[1])


_NUMBERS: Final = frozenset({"argmax", "top_k"})
"""Activations that leave class numbers."""

_NOTHING: Final[dict[str, Any]] = {
    "max_image_relative": _NAN,
    "rms_relative": _NAN,
    "differing": _NAN,
}

_EQUAL: Final[dict[str, Any]] = dict.fromkeys(_NOTHING, 0.0)


def _changed(share: float, limit: float, where: str) -> list[str]:
    if share <= limit:
        return []
    return [f"{share:.2%} of an image's class numbers changed {where}, limit {limit:.2%}"]


def _worst(errors: NDArray[np.float64], scales: NDArray[np.float64]) -> float:
    """The largest ratio; where all values are 0, the error itself."""
    least = _SMALL * scales.max() or 1.0
    return float((errors / np.maximum(scales, least)).max())


HEAD = RAW = Raw()


def raw_for(values: NDArray[Any]) -> Raw:
    """What judges one more output of a network by its ``values``: numbers, or class numbers."""
    return RAW if np.issubdtype(values.dtype, np.floating) else RAW.applied("argmax")


def comparable(values: NDArray[Any]) -> NDArray[np.float32]:
    """The values of an output in FP32; a single number as (1,)."""
    found: NDArray[np.float32] = np.atleast_1d(values.astype(np.float32))
    return found
