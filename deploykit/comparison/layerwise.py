"""Layer-by-layer comparison of two graphs, and the first activation that goes wrong."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from math import inf, isnan, nan
from typing import TYPE_CHECKING, Any, Final

from deploykit import graph
from deploykit.comparison.activation_figures import Sums, ValueComparison
from deploykit.core.errors import ValidationError
from deploykit.core.serialization import to_plain
from deploykit.graph import activations
from deploykit.graph.infinities import mended
from deploykit.graph.rounding import Stored, rounding_form
from deploykit.images.side_inputs import all_inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.core.precision import Precision, PrecisionFacts
    from deploykit.core.progress import ProgressTask
    from deploykit.core.specs import Array, Runner, SplitGraph
    from deploykit.graph.activations import ActivationPair


CLIPPED_SHARE: Final = 0.5
"""A quantized value that ends below this share of the reference's peak lost more than outliers."""
_UNDERFLOWS: Final = "underflows"
_ADDED_UP: Final = {"INT8": "errors have added up: --sensitive-layers keep finds who adds most"}


@dataclass(frozen=True, slots=True)
class Fault:
    """A value that goes wrong though its inputs are right.

    ``kind`` is ``shape``, ``non_finite``, ``sqnr`` or ``cosine``; ``reason`` says it in figures,
    ``advice`` what to try, a sentence each; ``inputs`` are the figures of what it was made from.
    """

    value: ValueComparison
    kind: str
    reason: str
    advice: tuple[str, ...]
    inputs: tuple[ValueComparison, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "value": self.value.name,
            "node": self.value.node,
            "op_type": self.value.op_type,
            "kind": self.kind,
            "reason": self.reason,
            "advice": list(self.advice),
            "inputs": to_plain(self.inputs),
        }


def find_faults(values: Sequence[ValueComparison], precision: Precision) -> tuple[Fault, ...]:
    """Every value of a candidate in ``precision`` that goes wrong by itself, in graph order."""
    known = {value.name: value for value in values}
    found = []
    for value in values:
        inputs = tuple(known[name] for name in value.reads if name in known)
        compared = _judge(value, inputs, precision)
        if compared is not None:
            kind, reason = compared
            advice = _advise(value, kind, precision)
            if _UNDERFLOWS in reason:
                advice = (f"keep {value.node} and what makes its operands in FP32",)
            found.append(Fault(value, kind, reason, advice, inputs))
    return tuple(found)


def drop_db(
    value: ValueComparison, inputs: Sequence[ValueComparison], precision: Precision
) -> float:
    """What is lost between the worst input and the value; better than healthy counts as healthy.

    NaN where an input or the value cannot be compared.
    """
    healthy = precision.facts.tolerance.healthy_db
    ratios = [each.sqnr_db for each in inputs]
    if any(map(isnan, (value.sqnr_db, *ratios))):  # which min would pass over
        return nan
    if value.sqnr_db == -inf:  # noise where the reference is all zero
        return inf if min(ratios, default=inf) > -inf else 0.0
    return min([healthy, *ratios]) - min(healthy, value.sqnr_db)


def _judge(
    value: ValueComparison, inputs: Sequence[ValueComparison], precision: Precision
) -> tuple[str, str] | None:
    """Kind and reason of a fault."""
    if not _same_shape(value):
        here, there = value.shape, value.reference_shape
        reason = f"its shape is {here}, the reference's {there}"
        return ("shape", reason) if all(map(_same_shape, inputs)) else None
    if not _is_finite(value):
        vanished = _vanished(inputs, precision.facts) if value.op_type in _OF_NOTHING else None
        reason = vanished or _non_finite(value)
        return ("non_finite", reason) if all(map(_is_finite, inputs)) else None
    lost = drop_db(value, inputs, precision)
    if lost > precision.facts.tolerance.drop_db:
        before = min((each.sqnr_db for each in inputs), default=inf)
        if small := _too_small(value, precision.facts):
            return "sqnr", small
        return "sqnr", f"SQNR falls from {decibels(before)} to {decibels(value.sqnr_db)}"
    limit = precision.facts.limits.min_cosine
    if value.cosine < limit and all(each.cosine >= limit for each in inputs):
        return "cosine", f"cosine {value.cosine:.6f} is under {limit}, the limit of {precision}"
    return None


def decibels(ratio: float) -> str:
    """A ratio in words of a table.

    >>> decibels(31.25), decibels(float("inf")), decibels(float("nan"))
    ('31.2 dB', 'equal', '-')
    """
    if ratio == inf:
        return "equal"
    return "-" if isnan(ratio) else f"{ratio:.1f} dB"


def _same_shape(value: ValueComparison) -> bool:
    return value.shape == value.reference_shape


def _is_finite(value: ValueComparison) -> bool:
    return not value.non_finite and not value.reference_non_finite


def _non_finite(value: ValueComparison) -> str:
    here, there = value.non_finite, value.reference_non_finite
    alike = value.infinite_alike
    more = f", beside {alike} infinities that both have" if alike else ""
    return f"{here} values are NaN or infinite, {there} of the reference's{more}"


def _too_small(value: ValueComparison, facts: PrecisionFacts) -> str | None:
    end = facts.overflow
    if end is None or facts.quantized or not 0 < value.reference_peak < end.least:
        return None
    return (
        f"it {_UNDERFLOWS}: the reference is {value.reference_peak:.3g} at most, {end.type_name} "
        f"loses digits below {_short(end.least)}"
    )


_OF_NOTHING: Final = frozenset({"Div", "Log", "Mod", "Pow", "Reciprocal"})
"""Operators that give NaN or infinity where an operand is 0."""


def _vanished(inputs: Sequence[ValueComparison], facts: PrecisionFacts) -> str | None:
    """Why a division or a logarithm gives NaN: what keeps its operand from 0 became 0."""
    end = facts.overflow
    for each in inputs:
        least = each.reference_range[0]
        if end is not None and 0 < least < end.least and each.range[0] <= 0:
            return (
                f"its operand {each.name} {_UNDERFLOWS} to 0, the reference has {least:.3g}: "
                f"{end.type_name} loses digits below {_short(end.least)}"
            )
    return None


def _advise(value: ValueComparison, kind: str, precision: Precision) -> tuple[str, ...]:
    if kind == "shape":
        return ("these are not the same network, or one was exported with another batch or size",)
    if kind == "non_finite":
        return _advise_non_finite(value, precision.facts)
    if precision.facts.quantized:
        return _advise_quantized(value, kind, precision.upper())
    if kind == "cosine":
        return ("no single node does this: see which lose most with --all",)
    compare = f"the weights or attributes of {value.node} differ: compare them in both files"
    rounding = precision.facts.rounding
    if rounding is not None:
        costs = f"rounding to {precision.upper()} costs {_short(rounding)}, this is more"
        return (compare, f"keep {value.node} in FP32: {costs}")
    return (compare, "export it again from the same weights")


def _short(number: float) -> str:
    """A small number with two digits, without zeros in its exponent.

    >>> _short(2**-11)
    '4.9e-4'
    """
    digits, exponent = f"{number:.1e}".split("e")
    return f"{digits}e{int(exponent)}"


def _advise_non_finite(value: ValueComparison, facts: PrecisionFacts) -> tuple[str, ...]:
    if value.reference_non_finite > (0 if value.infinite_alike else value.non_finite):
        return (f"an infinity is at another place, or a number instead: look at {value.node}",)
    if value.reference_non_finite:
        return ("the reference has them too: check its weights and the preprocessing",)
    end = facts.overflow
    if end is None:
        return (f"look for NaN in the weights of {value.node}, and for a division by 0",)
    kept = (
        f"keep {value.node} in FP32: `export` does so by itself if it sees such values, "
        "give it images like these with --data"
    )
    largest = f"{end.largest:.0f}"
    if value.reference_peak > end.largest:
        reached = f"the reference reaches {value.reference_peak:.3g}"
        return (f"{reached}, {end.type_name} ends at {largest}", kept)
    return (f"a square or a sum within the node passes {largest}, where {end.type_name} ends", kept)


def _advise_quantized(value: ValueComparison, kind: str, name: str) -> tuple[str, ...]:
    layers = value.readers if value.op_type == "DequantizeLinear" else (value.node,)
    exclude = f"keep it out of {name}: " + " ".join(f"--exclude '{node}'" for node in layers)
    more = "calibrate with more images (--calib-count), or like those in use (--calib PATH)"
    if kind == "cosine":
        return (_ADDED_UP.get(name, "errors have added up"), more, exclude)
    if value.op_type != "DequantizeLinear":
        return (f"its weights or its inputs lose too much in {name}: {exclude}", more)
    if value.peak < CLIPPED_SHARE * value.reference_peak:
        ends = f"its {name} range ends at {value.peak:.3g}, the reference reaches"
        return (f"{ends} {value.reference_peak:.3g}: all beyond is clipped", more, exclude)
    coarse = f"its {name} steps are too coarse for a range of {value.peak:.3g}"
    return (f"{coarse}: try another --method (percentile, entropy, mse)", exclude)


GROUP_NUMBERS: Final = 2**23
"""Numbers of activations that each graph shows at once: 32 MiB of FP32 for either.

A deeper network takes more groups, not more memory; ResNet-50 takes two at 224 x 224.
"""


@dataclass(frozen=True)
class LayerReport:
    """Every activation that both graphs have, in the candidate's order, and where it goes wrong.

    ``of_candidate`` and ``of_reference`` count the activations of each side, without casts and
    Q/DQ pairs; ``candidate_only`` and ``reference_only`` name those that have no counterpart.
    """

    precision: Precision
    images: int
    values: tuple[ValueComparison, ...]
    faults: tuple[Fault, ...]
    candidate_only: tuple[str, ...]
    reference_only: tuple[str, ...]
    of_candidate: int
    of_reference: int

    @property
    def first_fault(self) -> Fault | None:
        """The first in graph order: where to look."""
        return self.faults[0] if self.faults else None

    @property
    def matched(self) -> int:
        """Activations of the reference that have a counterpart."""
        return self.of_reference - len(self.reference_only)

    def drop_of(self, value: ValueComparison) -> float:
        """What the node of a value lost, in dB; see `drop_db`."""
        known = {each.name: each for each in self.values}
        return drop_db(value, [known[n] for n in value.reads if n in known], self.precision)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        first, tolerance = self.first_fault, self.precision.facts.tolerance
        return {
            "images": self.images,
            "matched": self.matched,
            "of_candidate": self.of_candidate,
            "of_reference": self.of_reference,
            "candidate_only": list(self.candidate_only),
            "reference_only": list(self.reference_only),
            "tolerance": {
                "healthy_db": tolerance.healthy_db,
                "drop_db": tolerance.drop_db,
                "reason": tolerance.reason,
            },
            "first_fault": None if first is None else first.to_dict(),
            "faults": [fault.to_dict() for fault in self.faults],
            "values": [
                {**to_plain(value), "drop_db": self.drop_of(value)} for value in self.values
            ],
        }


def compare_layers(
    candidate: OnnxArtifact,
    reference: OnnxArtifact,
    batches: Sequence[NDArray[np.float32]],
    *,
    open_runner: Callable[[SplitGraph], Runner],
    task: ProgressTask,
    group_numbers: int = GROUP_NUMBERS,
) -> LayerReport:
    """Run ``batches`` (N, C, H, W), all of one shape, through both graphs and compare all values.

    Each value of the candidate is rounded as an engine does that stores them all.
    ``open_runner`` must compute the graphs as they are written. The candidate's precision says
    how much it may lose. For each group of values both graphs run again, up to its last value.

    Raises:
        ModelFileError: a graph cannot be read or run.
        ValidationError: the graphs have no activation in common.
    """
    shape = batches[0].shape
    left = activations.with_input_shape(graph.read_model(candidate.path), shape)
    right = activations.with_input_shape(graph.read_model(reference.path), shape)
    pairing = activations.pair_activations(left, right)
    left = rounding_form(left, Stored.EVERY)
    passed_over = mended(right)  # NaN that goes no further is no fault
    pairs = [pair for pair in pairing.pairs if pair.reference not in passed_over]
    if not pairs:
        raise ValidationError(
            f"{candidate.path} and {reference.path} have no activation in common, "
            "by name or by node\ncompare graphs that come from the same export"
        )
    values: list[ValueComparison] = []
    for group in groups_of(pairs, group_numbers):
        values += _compare_group(group, (left, right), batches, open_runner)
        task.update(len(values), len(pairs), "activations")
    return LayerReport(
        precision=candidate.precision,
        images=sum(len(batch) for batch in batches),
        values=tuple(values),
        faults=find_faults(values, candidate.precision),
        candidate_only=pairing.candidate_only,
        reference_only=pairing.reference_only,
        of_candidate=pairing.of_candidate,
        of_reference=pairing.of_reference,
    )


def groups_of(pairs: Sequence[ActivationPair], numbers: int) -> list[list[ActivationPair]]:
    """Neighbours together, as long as they have no more than ``numbers`` numbers.

    A pair that has more, or an unknown length, is a group of its own.
    """
    groups: list[list[ActivationPair]] = []
    room = 0
    for pair in pairs:
        length = numbers if pair.numbers is None else pair.numbers
        if not groups or length > room:
            groups.append([])
            room = numbers
        groups[-1].append(pair)
        room -= length
    return groups


def _compare_group(
    pairs: Sequence[ActivationPair],
    models: tuple[ir.Model, ir.Model],
    batches: Sequence[NDArray[np.float32]],
    open_runner: Callable[[SplitGraph], Runner],
) -> list[ValueComparison]:
    sums = [Sums() for _ in pairs]
    left, right = models
    with (
        _showing(left, [pair.name for pair in pairs], open_runner) as run_candidate,
        _showing(right, [pair.reference for pair in pairs], open_runner) as run_reference,
    ):
        for batch in batches:
            got, expected = run_candidate(batch), run_reference(batch)
            for pair, total in zip(pairs, sums, strict=True):
                total.add(got[pair.name], expected[pair.reference])
    return [total.figures(pair) for pair, total in zip(pairs, sums, strict=True)]


@contextmanager
def _showing(
    model: ir.Model, names: Sequence[str], open_runner: Callable[[SplitGraph], Runner]
) -> Iterator[Callable[[NDArray[np.float32]], dict[str, Array]]]:
    """Gives a batch and gets the named values, of which an input itself may be one."""
    feed, *others = activations.input_names(model)
    computed = [name for name in dict.fromkeys(names) if name not in (feed, *others)]
    shown = computed or [activations.first_computed(model)]
    with open_runner(activations.expose_only(model, shown)) as runner:
        yield lambda batch: {**all_inputs(runner, batch), **runner.run({feed: batch})}
