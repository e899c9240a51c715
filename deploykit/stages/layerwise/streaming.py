"""Runs both graphs with a few of their activations shown at a time.

onnxruntime's CPU computes most FP16 nodes in FP32, and may leave out the rounding between two of
them. What is shown is always rounded to the graph's own type: overflow is seen where it happens,
but what is computed from it in the same run may still be finite.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from deploykit import onnx_graph
from deploykit.errors import ValidationError
from deploykit.onnx_graph import activations
from deploykit.side_inputs import all_inputs
from deploykit.stages.layerwise.faults import TOLERANCES, Fault, drop_db, find_faults
from deploykit.stages.layerwise.figures import Sums, ValueComparison

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from deploykit.artifacts import OnnxArtifact
    from deploykit.onnx_graph.activations import ActivationPair
    from deploykit.specs import Array, Precision, ProgressTask, Runner, SplitGraph

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
        first, tolerance = self.first_fault, TOLERANCES[self.precision]
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
                {**value.to_dict(), "drop_db": self.drop_of(value)} for value in self.values
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

    ``open_runner`` must compute the graphs as they are written. The candidate's precision says
    how much it may lose. For each group of values both graphs run again, up to its last value.

    Raises:
        ModelFileError: a graph cannot be read or run.
        ValidationError: the graphs have no activation in common.
    """
    shape = batches[0].shape
    left = activations.with_input_shape(onnx_graph.read_model(candidate.path), shape)
    right = activations.with_input_shape(onnx_graph.read_model(reference.path), shape)
    pairing = activations.pair_activations(left, right)
    if not pairing.pairs:
        raise ValidationError(
            f"{candidate.path} and {reference.path} have no activation in common, "
            "by name or by node\ncompare graphs that come from the same export"
        )
    values: list[ValueComparison] = []
    for group in groups_of(pairing.pairs, group_numbers):
        values += _compare_group(group, (left, right), batches, open_runner)
        task.update(len(values), len(pairing.pairs), "activations")
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
