"""Noise that INT8 adds to the outputs: the figure by which its choices are made."""

from __future__ import annotations

from math import inf, isinf
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.core.errors import ValidationError
from deploykit.graph import qdq

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from deploykit.comparison.reference import Reference
    from deploykit.core.progress import ProgressTask
    from deploykit.core.specs import Array, Runner, SplitGraph
    from deploykit.graph.qdq import QdqPlan
    from deploykit.heads import Head

    Batches = list[NDArray[np.float32]]
    Answers = Mapping[str, Array]
    Float32Answers = Mapping[str, NDArray[np.float32]]


PROBE_MULTIPLY_ADDS: Final = 120_000_000_000
"""For taking each layer out of INT8 once: some five seconds of two cores, Q/DQ pairs simulated."""

FEWEST_PROBES: Final = 2
"""With a single image the noise of one layer is too much a matter of chance."""


def affordable_probes(multiply_adds: Mapping[str, int], *, insist: bool) -> int:
    """On how many images each layer can be taken out of INT8; 0 where that is too slow.

    With ``insist`` it is done on `FEWEST_PROBES` however long it takes.
    """
    passes = len(multiply_adds) * sum(multiply_adds.values())
    count = PROBE_MULTIPLY_ADDS // passes if passes else 0
    if count >= FEWEST_PROBES:
        return count
    return FEWEST_PROBES if insist and passes else 0


def measure_gains(
    model: ir.Model,
    plan: QdqPlan,
    amax: Mapping[str, float],
    compared: tuple[Batches, Sequence[Answers]],
    *,
    open_runner: Callable[[SplitGraph], Runner],
    task: ProgressTask,
) -> dict[str, float]:
    """By how many dB the noisiest output gains when one layer alone computes in FP32, by layer.

    ``compared`` are batches (N, C, H, W) and their FP32 answers, see `judged_answers`; there is a
    pass over them for each layer, from somewhere before it on. ``open_runner`` must run Q/DQ pairs
    as they are written.

    Raises:
        DataError: ``amax`` lacks a value of the plan, or is not a number from 0 up.
        ModelFileError: the graph is too large without its weights.
        ValidationError: an output has another shape in INT8.
    """
    batches, exact = compared
    gains: dict[str, float] = {}
    given: Sequence[Array] = batches
    for part in qdq.switchable_parts(model, plan, amax):
        with open_runner(part.graph) as runner:
            none = np.zeros(len(part.layers), np.bool_)
            whole = _switched(runner, given, none)
            quantized = worst_sqnr_db(exact, whole)
            for index, layer in enumerate(part.layers):
                alone = np.arange(len(part.layers)) == index
                found = worst_sqnr_db(exact, _switched(runner, given, alone))
                gains[layer] = _gain(found, quantized)
                task.update(len(gains), len(plan.weights), "noise of each layer")
        if part.carried is not None:
            given = [one[part.carried] for one in whole]
    return gains


def _switched(runner: Runner, given: Sequence[Array], switches: NDArray[np.bool_]) -> list[Answers]:
    value, switch = (spec.name for spec in runner.inputs)
    return [runner.run({value: one, switch: switches}) for one in given]


def fp32_answers(reference: Reference, batches: Batches) -> tuple[list[Float32Answers], Batches]:
    """What the FP32 graph gives for each batch: every judged output by name, and the first."""
    with reference.runners.open(reference.graph.split()) as runner:
        answers = judged_answers(runner, batches, reference.head)
    return answers, [next(iter(one.values())) for one in answers]


def judged_answers(
    runner: Runner, batches: Sequence[NDArray[np.float32]], head: Head
) -> list[Float32Answers]:
    """The outputs of a graph that INT8 is chosen by, in FP32, for each batch (N, C, H, W).

    The first output comes first. Of a head that judges all of them the other floats with an entry
    per image follow: class numbers have no noise.
    """
    feed, first = runner.inputs[0].name, runner.outputs[0].name
    found = [runner.run({feed: batch}) for batch in batches]
    names = [first]
    if head.judges_all:
        names += [
            spec.name
            for spec in runner.outputs[1:]
            if _has_noise([one[spec.name] for one in found], batches)
        ]
    return [{name: one[name].astype(np.float32) for name in names} for one in found]


def _has_noise(values: Sequence[NDArray[Any]], batches: Sequence[NDArray[np.float32]]) -> bool:
    """Whether they are floats, as many for each image."""
    wanted = {(len(batch), *values[0].shape[1:]) for batch in batches}
    same = {value.shape for value in values} == wanted
    return same and values[0].size > 0 and bool(np.issubdtype(values[0].dtype, np.floating))


def worst_sqnr_db(expected: Sequence[Answers], got: Sequence[Answers]) -> float:
    """The least signal to noise ratio of the outputs in ``expected``, each over all batches, in dB.

    An output that is 0 for all images has no signal to compare with, and counts only alone.

    Raises:
        ValidationError: an output has another shape than in ``expected``.
    """
    ratios = []
    for name in expected[0]:
        wanted, found = (np.concatenate([one[name] for one in each]) for each in (expected, got))
        if wanted.shape != found.shape:
            raise ValidationError(
                f"output {name!r} has shape {found.shape} in INT8, {wanted.shape} in FP32\n"
                "its size depends on its values: end the graph before what selects them"
            )
        ratios.append(qdq.sqnr_db(wanted, found.astype(np.float32, copy=False)))
    return min((ratio for ratio in ratios if ratio > -inf), default=-inf)


def _gain(without: float, quantized: float) -> float:
    if isinf(quantized):
        return 0.0
    return inf if isinf(without) else without - quantized
