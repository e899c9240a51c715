"""Ends of graphs: operators behind an output, by its head and by the result that is asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.core.deployed import CLASSES, LOG_PROBABILITIES, PROBABILITIES, SCORES, TOP_K
from deploykit.core.errors import UsageError
from deploykit.heads.binary import BINARY
from deploykit.heads.multiclass import CLASSES_ALONE, MULTICLASS, Multiclass, compare, softmax
from deploykit.heads.multilabel import MULTILABEL, sigmoid
from deploykit.heads.raw import Raw

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.core.deployed import Result
    from deploykit.core.precision import Limits
    from deploykit.heads._head import Head
    from deploykit.heads.multiclass import BatchComparison
    from deploykit.heads.raw import RawComparison

    Outputs = NDArray[np.float32]

_SOFT: Final[Mapping[str, tuple[str, ...]]] = {
    "none": ("Softmax",), "log_softmax": ("Exp",), "softmax": (), "sigmoid": (),
}  # fmt: skip
"""What makes probabilities of classes that exclude each other, by what the graph ends in."""

_YES: Final[Mapping[str, tuple[str, ...]]] = {**_SOFT, "none": ("Sigmoid",)}
"""The same of labels that do not exclude each other, and of a yes or no."""


@dataclass(frozen=True, slots=True)
class End:
    """Operators behind an output, the names of what they give, and what the values are then.

    ``count`` is how many classes a ``TopK`` gives. Without operators the graph ends so already.
    """

    wanted: str
    operators: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    activation: str = "none"
    count: int | None = None

    def applied_to(self, values: Outputs) -> dict[str, NDArray[Any]]:
        """What the operators make of ``values`` (N, K), by name, computed by numpy.

        >>> End("topk:1", ("TopK",), ("classes", "probabilities"), count=1).applied_to(
        ...     np.array([[0.25, 0.75]], np.float32)
        ... )["classes"].tolist()
        [[1]]
        """
        found: list[NDArray[Any]] = [values]
        for operator in self.operators:
            found = self._applied(operator, found[0], values)
        return dict(zip(self.names, found, strict=True)) if self.operators else {}

    def first_of(self, batches: Iterable[Outputs]) -> list[Outputs]:
        """The first of what the operators give for each batch, as numbers that a head compares."""
        first = self.names[0]
        return [self.applied_to(values)[first].astype(np.float32) for values in batches]

    def _applied(self, operator: str, values: NDArray[Any], first: Outputs) -> list[NDArray[Any]]:
        match operator:
            case "Softmax":
                return [softmax(values.astype(np.float64)).astype(np.float32)]
            case "Sigmoid":
                return [sigmoid(values.astype(np.float64)).astype(np.float32)]
            case "Exp":
                return [np.exp(values)]
            case "ArgMax":
                return [values.argmax(axis=1)]
        # By the outputs as they were: probabilities that are 0 in FP32 have no order any more.
        order = np.argsort(-first, axis=1, kind="stable")[:, : self.count]
        return [order, np.take_along_axis(values, order, axis=1)]


def end_for(head: Head, shape: Sequence[int | str], wanted: Result) -> End:
    """What is put behind outputs of ``shape``, (N, classes), so that they become ``wanted``.

    Raises:
        UsageError: the head has no such end; or fewer classes than are asked for.
    """
    if head.name not in (MULTICLASS.name, MULTILABEL.name, BINARY.name):
        raise UsageError(
            f"--result {wanted} for {head.name} outputs, of which nobody knows what they mean\n"
            "say it with --head multiclass, multilabel or binary; or leave --result out"
        )
    if head.name != MULTICLASS.name:
        return _of_yes_or_no(head, wanted)
    if head.activation in CLASSES_ALONE:
        return _of_class_numbers(head, shape, wanted)
    soft = _SOFT[head.activation]
    if wanted.kind == PROBABILITIES:
        after = "sigmoid" if head.activation == "sigmoid" else "softmax"
        return End(str(wanted), soft, (PROBABILITIES,), after)
    if wanted.kind == CLASSES:  # the largest logit is the largest probability
        return End(str(wanted), ("ArgMax",), (CLASSES,), "argmax")
    classes = head.classes(shape)
    if classes is not None and (wanted.count or 0) > classes:
        raise UsageError(
            f"--result {wanted} for {classes} classes\npossible: {TOP_K}:1 to {TOP_K}:{classes}"
        )
    names = (CLASSES, PROBABILITIES)
    return End(str(wanted), (*soft, "TopK"), names, "top_k", wanted.count)


def _of_yes_or_no(head: Head, wanted: Result) -> End:
    if wanted.kind != PROBABILITIES:
        raise UsageError(
            f"--result {wanted} is for classes that exclude each other, the head is {head.name}: "
            f"a yes or no depends on a threshold, which is the caller's\n"
            f"possible: {PROBABILITIES}; or --head multiclass, if the classes exclude each other"
        )
    return End(str(wanted), _YES[head.activation], (PROBABILITIES,), "sigmoid")


def _of_class_numbers(head: Head, shape: Sequence[int | str], wanted: Result) -> End:
    is_top = head.activation == "top_k"
    given = shape[-1] if is_top and len(shape) > 1 else 1
    is_same = wanted.count == given if is_top else wanted.kind == CLASSES
    if not is_same:
        has = f"{TOP_K}:{given}" if is_top else CLASSES
        raise UsageError(
            f"--result {wanted}: the graph ends in class numbers already, as {has} makes them\n"
            "leave --result out, or end the graph before its ArgMax or TopK"
        )
    return End(str(wanted), activation=head.activation)


def chances_of(head: Head, conversion: Mapping[str, Any]) -> str | None:
    """The output with the probabilities of class numbers, by what a manifest says.

    It was added by ``--result``, or was in the file beside its class numbers.
    """
    if head.activation not in CLASSES_ALONE:
        return None
    _, *others = conversion.get("result", {}).get("outputs") or (None,)
    found = others[0] if others else conversion.get(PROBABILITIES)
    return None if found is None else str(found)


def judged_beside(head: Head, conversion: Mapping[str, Any]) -> dict[str, Head]:
    """What judges the outputs beside class numbers that say how likely these are, by name."""
    if head.name != MULTICLASS.name or head.activation not in CLASSES_ALONE:
        return {}
    names = {kind: conversion.get(kind) for kind in (LOG_PROBABILITIES, SCORES)}
    names[PROBABILITIES] = chances_of(head, conversion)
    return {str(name): _BESIDE[kind] for kind, name in names.items() if name is not None}


class _TopProbabilities(Multiclass):
    """The largest probabilities of each image (N, K), the largest first, or the largest (N,).

    They are compared as all probabilities are, with the rest as one class more, so that they are
    judged no harder; those of a Sigmoid each by itself. Which classes they are of is another
    output's.
    """

    def compare(self, candidate: Outputs, reference: Outputs) -> BatchComparison:
        """The figures of one batch."""
        got, wanted = (each.reshape(len(each), -1) for each in (candidate, reference))
        if (wanted.sum(axis=1) > 1 + _ROUNDING).any():
            found = compare(got, wanted, "sigmoid")
        else:
            found = compare(_with_rest(got), _with_rest(wanted), "softmax")
        return replace(found, agreement=None, flipped_margins=())

    def undecided(self, outputs: Outputs) -> list[str]:  # noqa: ARG002 - no decision is in them
        """Nothing: the first is the largest of every image."""
        return []


class _TopLogProbabilities(_TopProbabilities):
    """The logarithms of such probabilities: near 0 for a sure answer, so that these are judged."""

    def compare(self, candidate: Outputs, reference: Outputs) -> BatchComparison:
        """The figures of one batch."""
        return super().compare(np.exp(candidate), np.exp(reference))


class _TopScores(Raw):
    """The largest scores of each image, of which one alone may be near 0 by chance."""

    def problems_of(self, figures: RawComparison, limits: Limits) -> list[str]:
        """The largest error, over the largest score of all images."""
        if figures.non_finite or figures.max_relative > limits.max_relative:
            return super().problems_of(figures, limits)
        return []


def _with_rest(rows: Outputs) -> Outputs:
    rest = np.maximum(1 - rows.sum(axis=1, keepdims=True), 0)
    return np.concatenate([rows, rest], axis=1)


_ROUNDING: Final = 1e-3

_BESIDE: Final[Mapping[str, Head]] = {
    PROBABILITIES: _TopProbabilities().applied("softmax"),
    LOG_PROBABILITIES: _TopLogProbabilities().applied("softmax"),
    SCORES: _TopScores(),
}
