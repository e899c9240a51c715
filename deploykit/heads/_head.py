"""The interface of a head: one kind of output, and all that is done with its numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import copy
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, Self

import numpy as np

from deploykit.core.errors import (
    DataError,
    UsageError,
    ValidationError,
)
from deploykit.core.plugs import plug_named

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.core.precision import Limits
    from deploykit.core.specs import HeadRecord

    Outputs = NDArray[np.float32]
    Rows = NDArray[np.float64]

_ROOM: Final = "heads"
_NAN: Final = float("nan")
_TWO: Final = 2
_COMPARED_AT_MOST: Final = 8
"""Images that are given one another's outputs; maps of many more would take gigabytes."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Candidate against reference on one batch of outputs; a head may add figures of its own.

    ``max_relative`` is the largest error over the largest reference value; ``min_cosine`` the
    worst image's. Where values are not finite the other figures are NaN.
    """

    batch: int
    max_abs: float
    mean_abs: float
    max_relative: float
    min_cosine: float
    non_finite: int


@dataclass(frozen=True, slots=True)
class Table:
    """What a command prints: rows of text under column names; those in ``right`` hold numbers.

    ``note`` is a sentence below the rows.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str | None = None
    right: tuple[str, ...] = ()
    note: str | None = None


class Tally(Protocol):
    """One model's answers on labelled images, as they come in."""

    def add(self, indices: Sequence[int], outputs: Outputs) -> None:
        """Count the outputs (N, ...) of the images at ``indices``.

        Raises:
            DataError: a label does not fit the outputs.
        """

    def counted(self, indices: Sequence[int]) -> Mapping[str, NDArray[np.int64]]:
        """What was counted of the images at ``indices``, each (N,), by names for columns."""

    def restore(self, indices: Sequence[int], counted: Mapping[str, NDArray[np.int64]]) -> None:
        """Take over what `counted` gave for the images at ``indices``."""

    def require_same(self, other: Any) -> None:
        """Refuse another model's tally that cannot be compared with this one.

        Raises:
            DataError: the two models do not answer the same question.
        """


class Evaluation(ABC):
    """What came of one pass over labelled images, alone or beside another model."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""

    @abstractmethod
    def tables(self, names: tuple[str, str | None]) -> list[Table]:
        """What is printed; ``names`` are the model's and, where one was named, the other's."""

    def blind_spots(self) -> list[str]:
        """Why these images do not tell a good model from a bad one, a sentence each."""
        return []

    def per_class(
        self,
        names: Sequence[str] | None,  # noqa: ARG002 - for heads that override it
    ) -> list[dict[str, Any]]:
        """Every class that has images, the worst first, with its name; by default refused.

        Raises:
            UsageError: the head has no classes.
        """
        raise UsageError(
            "--per-class is for models whose answer is a class\nleave it out for this one"
        )

    def confusions(
        self,
        most: int,
        names: Sequence[str] | None,  # noqa: ARG002 - for heads that override it
    ) -> list[dict[str, Any]]:
        """The ``most`` frequent wrong answers; by default refused.

        Raises:
            UsageError: the head has no classes.
        """
        raise UsageError(
            f"--confusion {most} is for models whose answer is a class\nleave it out for this one"
        )


class Head(ABC):
    """One kind of output. Only what every head must say is abstract."""

    name: ClassVar[str]
    """As the file is called, for ``--head`` and the manifest."""
    noun: str = "outputs"
    """How messages call the values, in the plural."""
    layout: ClassVar[str]
    """Shape of the values for messages, as "(batch, classes)"."""
    form: ClassVar[str]
    """The same in words, as "2-dimensional"."""
    judges_all: ClassVar[bool] = False
    """Whether all outputs of a network are judged and shown, not one that was chosen."""
    activation: str = "none"
    """What the graph did to the values already, see `deploykit.core.specs.HeadRecord`."""
    threshold: float | None = None
    """The probability from which it says yes, where it decides by one."""

    def applied(self, activation: str) -> Self:
        """This head for a graph that ends in ``activation``, which is not applied again."""
        changed = copy(self)
        changed.activation = activation
        return changed

    def with_threshold(self, threshold: float) -> Self:
        """This head where a probability from ``threshold`` up is a yes; by default refused.

        Raises:
            UsageError: the head decides nothing by a threshold, or it is not between 0 and 1.
        """
        raise UsageError(
            f"--threshold {threshold:g} is for binary and multilabel heads, this one is "
            f"{self.name}\nleave it out"
        )

    @abstractmethod
    def fits(self, shape: Sequence[int]) -> bool:
        """Whether float32 values of this shape, the batch first, can be of this kind."""

    def advice(self, *, has_floats: bool) -> str:
        """What to do about a graph none of whose outputs `fits`."""
        return f"end the graph in {self.layout}" if has_floats else "let it end in float32 values"

    # Comparison of a candidate with its reference

    def compare(self, candidate: Outputs, reference: Outputs) -> Figures:
        """The figures of one batch of outputs of equal shape."""
        return figures_of(candidate, reference)

    @abstractmethod
    def problems_of(self, figures: Any, limits: Limits) -> list[str]:
        """What of `compare` is beyond its limit, a sentence each; empty for a pass."""

    def summary_of(
        self,
        batches: Sequence[Any],  # noqa: ARG002 - for heads that override it
    ) -> dict[str, Any]:
        """What the report of a comparison says of all batches together."""
        return {}

    def problems(self, batches: Sequence[Any], limits: Limits) -> list[str]:
        """`problems_of` every batch; a head may judge all of them together instead."""
        return [problem for batch in batches for problem in self.problems_of(batch, limits)]

    def images_beyond(
        self,
        batches: Sequence[Any],  # noqa: ARG002 - for heads that override it
        limits: Limits,  # noqa: ARG002 - likewise
    ) -> dict[int, str]:
        """What of single images is beyond the limits, by their place in all batches.

        A head that judges images one by one lets ``limits.share_within`` of them be enough.
        """
        return {}

    def blind_spots(self, outputs: Sequence[Outputs], limits: Limits) -> list[str]:
        """Why a comparison with these reference ``outputs`` could not fail, a sentence each.

        ``outputs`` are of one batch of images each. The test does not ask what the numbers mean:
        each image is given the answer of another, which no comparison worth its name lets pass.
        """
        if not any(one.size for one in outputs):
            return [f"there are no {self.noun} for any image: nothing could be compared"]
        rows = _of_one_shape([one for one in outputs if one.size])
        if not np.isfinite(rows).all():
            return []
        found = self.undecided(rows)
        if len(rows) < _TWO:
            return [*found, "one image alone was compared"]
        if (rows == rows[:1]).all():
            return [*found, f"the {self.noun} are the same for all {len(rows)} images"]
        if not self.problems([self.compare(np.roll(rows, 1, axis=0), rows)], limits):
            found.append(
                f"each image could have the {self.noun} of another and still pass: "
                f"{len(rows)} images, limit {limits.max_relative:g}"
            )
        return found

    def undecided(
        self,
        outputs: Outputs,  # noqa: ARG002 - for heads that override it
    ) -> list[str]:
        """Why no decision on these ``outputs`` (N, ...) tells two images apart, a sentence each."""
        return []

    def closeness(
        self,
        candidate: Outputs,  # noqa: ARG002 - for heads that override it
        reference: Outputs,  # noqa: ARG002 - for heads that override it
    ) -> tuple[float | None, float | None]:
        """Mean KL divergence in nats, and the share of equal answers; ``None`` where there is none.

        Trials of INT8 list both, and are decided by the noise of the outputs.
        """
        return None, None

    loss_measure: ClassVar[str] = "error"
    """What `losses` counts: ``error``, or ``answers`` or ``decisions`` that change."""

    def losses(self, candidate: Outputs, reference: Outputs) -> Rows:
        """What each image loses against its reference, (N,), from 0 (nothing) to 1.

        By default the root mean square of an image's errors over that of its values; an image with
        a value that is no number has lost everything.
        """
        left, right = rows_of(candidate), rows_of(reference)
        if not right.size:
            return np.zeros(len(right))
        with np.errstate(invalid="ignore", over="ignore"):
            noise, power = np.square(left - right).mean(axis=1), np.square(right).mean(axis=1)
        finite = np.isfinite(noise) & (power > 0)
        ratio = np.sqrt(np.where(finite, noise, 0.0) / np.where(finite, power, 1.0))
        silent = np.where((power == 0) & (noise == 0), 0.0, 1.0)
        return np.minimum(1.0, np.where(finite, ratio, silent))

    def right_answers(
        self,
        outputs: Outputs,  # noqa: ARG002 - for heads that override it
        labels: NDArray[np.int64],  # noqa: ARG002 - likewise
    ) -> NDArray[np.bool_] | None:
        """Whether each answer is that of its class label, (N,); ``None``: a class says nothing."""
        return None

    def classes(self, shape: Sequence[int | str]) -> int | None:
        """How many classes outputs of this shape tell apart, where the shape says it."""
        sizes = [size for size in shape[1:] if isinstance(size, int)]
        return prod(sizes) if sizes and len(sizes) == len(shape) - 1 else None

    comparison_columns: tuple[str, ...] = (
        "batch",
        "max abs",
        "mean abs",
        "max rel",
        "cosine",
    )

    def comparison_row(self, figures: Mapping[str, Any]) -> tuple[str, ...]:
        """The figures of one batch, as plain data, under `comparison_columns`."""
        return (
            str(figures["batch"]),
            f"{figures['max_abs']:.2e}",
            f"{figures['mean_abs']:.2e}",
            f"{figures['max_relative']:.2e}",
            f"{figures['min_cosine']:.7f}",
        )

    def worst_row(self, batches: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
        """`worst_of` the batches under `comparison_columns`."""
        return self.comparison_row(worst_of(batches))

    # Answers for people

    answer_columns: tuple[str, ...]
    """What `deploykit predict` prints of an answer; the last holds numbers."""

    @abstractmethod
    def answers(
        self, outputs: Outputs, labels: Sequence[str] | None, top_k: int
    ) -> list[list[Any]]:
        """What the outputs say of each image: at most ``top_k`` dataclasses, the best first.

        Raises:
            ValidationError: a value is NaN or infinite.
        """

    def answers_of_all(self, outputs: Mapping[str, NDArray[Any]], count: int) -> list[list[Any]]:
        """As `answers`, of all outputs by name, for heads that judge all of them.

        Raises:
            ValidationError: a value is NaN or infinite.
        """
        raise NotImplementedError(f"{self.name} answers by one output")

    @abstractmethod
    def answer_row(self, answer: Any) -> tuple[str, ...]:
        """One of `answers` under `answer_columns`."""

    def fitting_labels(
        self,
        given: tuple[str, ...] | None,
        known: tuple[str, ...] | None,  # noqa: ARG002 - for heads that override it
        shape: Sequence[int],  # noqa: ARG002 - for heads that override it
    ) -> tuple[str, ...] | None:
        """Names for a bundle, of those ``given`` and those that the definition knows.

        Raises:
            DataError: they do not fit outputs of this shape; by default all that are given.
        """
        if given is not None:
            raise DataError(
                f"{self.name} outputs have no classes to name, {len(given)} labels were given\n"
                "leave out --labels"
            )
        return None

    # Evaluation on labelled images

    def tally(
        self,
        labels: NDArray[np.int64],  # noqa: ARG002 - for heads that override it
    ) -> Tally:
        """Where the answers to images of these class ``labels`` are counted; by default refused.

        Raises:
            UsageError: a class says nothing about outputs of this kind.
        """
        raise UsageError(
            f"{self.name} outputs cannot be judged by the classes of images, which eval reads\n"
            "judge them in a program: deploykit.load(...).run(batch)"
        )

    def evaluation(self, tally: Any, other: Any | None) -> Evaluation:
        """What the tallies of a model, and of another on the same images, come to."""
        raise NotImplementedError(f"{self.name} has a tally and no evaluation of it")


def head_of(record: HeadRecord) -> Head:
    """The head that a manifest records, which knows the activation of its graph.

    Raises:
        UnknownNameError: as `head_named`.
        MissingDependencyError: as `head_named`.
    """
    return head_named(record.kind).applied(record.activation)


def head_named(name: str) -> Head:
    """The head of this name.

    Raises:
        UnknownNameError: neither deploykit nor an installed package has one.
        MissingDependencyError: an installed package's module cannot be used.
    """
    head: Head = plug_named(_ROOM, "head", name, "HEAD", Head)
    return head


def figures_of(candidate: Outputs, reference: Outputs) -> Figures:
    """The figures that make sense for values of any meaning, each (N, ...); no values agree."""
    if not reference.size:
        return Figures(len(reference), 0.0, 0.0, 0.0, 1.0, 0)
    left, right = rows_of(candidate), rows_of(reference)
    bad = int(np.count_nonzero(~np.isfinite(left)) + np.count_nonzero(~np.isfinite(right)))
    if bad:
        return Figures(len(left), _NAN, _NAN, _NAN, _NAN, bad)
    error = np.abs(left - right)
    scale = float(np.abs(right).max())
    return Figures(
        batch=len(left),
        max_abs=float(error.max()),
        mean_abs=float(error.mean()),
        max_relative=float(error.max()) / scale if scale else float(error.max()),
        min_cosine=float(cosines(left, right).min()),
        non_finite=0,
    )


def rows_of(outputs: Outputs) -> Rows:
    """One row per image in double precision: (N, ...) to (N, K)."""
    return outputs.reshape(len(outputs), -1).astype(np.float64)


def worst_of(batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All batches of a comparison, as plain data, in one: of every figure the worst of any.

    ``batch`` is the number of all images, ``agreement`` the share of these; ``None`` is a figure
    that a batch does not have.
    """
    images = sum(batch["batch"] for batch in batches)
    found = {name: _worst([batch[name] for batch in batches], name) for name in batches[0]}
    if found.get("agreement") is not None:
        found["agreement"] = sum(one["agreement"] * one["batch"] for one in batches) / images
    return found | {"batch": images}


def _worst(found: Sequence[Any], name: str) -> Any:
    """Of one figure of several batches; ``None`` where a batch has none."""
    if isinstance(found[0], list | tuple):
        return [each for one in found for each in one]
    if not all(isinstance(one, int | float) for one in found):
        return None
    if any(one != one for one in found):  # NaN, which has no order  # noqa: PLR0124
        return _NAN
    return min(found) if name.startswith("min_") else max(found)


def _of_one_shape(outputs: Sequence[Outputs]) -> Outputs:
    """Outputs (N, ...) of a few images in one array, without those of another size."""
    alike = [one for one in outputs if one.shape[1:] == outputs[0].shape[1:]]
    return np.concatenate(alike)[:_COMPARED_AT_MOST]


def cosines(left: Rows, right: Rows) -> Rows:
    """The cosine of each pair of rows (N, K), as (N,)."""
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    dots = np.einsum("nk,nk->n", left, right)
    # Two zero vectors agree; one alone does not.
    equal = (left == right).all(axis=1)
    cosine: Rows = np.where(equal, 1.0, dots / np.where(norms == 0, np.inf, norms))
    return cosine


def require_finite(rows: NDArray[Any], noun: str) -> None:
    """Refuse to make an answer of values that are none.

    Raises:
        ValidationError: a value is NaN or infinite.
    """
    if not np.isfinite(rows).all():
        raise ValidationError(
            f"the model gave {noun} that are NaN or infinite\n"
            "self_test() says whether it still computes what it did when it was exported"
        )
