"""FP32 graph to FP16 graph, after a look at the activations on real images."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from deploykit.comparison.converted import require_valid
from deploykit.core.errors import ValidationError
from deploykit.core.precision import Precision
from deploykit.graph import (
    Extremes,
    convert_to_half,
    expose_magnitudes,
    plan_half,
    write_graph,
)
from deploykit.graph.half_range import (
    NOTHING_UNFIT,
    Unfit,
    cancelled,
    expose_probes,
    find_probes,
    unfit_by_probes,
)
from deploykit.graph.infinities import counterparts, digest_of_signs, placed_by_images
from deploykit.graph.node_precisions import planned_half
from deploykit.graph.rounding import (
    Stored,
    computes_narrow,
    rounded_from,
    rounding_form,
    unfit_by_overflow,
)
from deploykit.images.side_inputs import all_inputs
from deploykit.precision import Conversion, Converted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import onnx_ir as ir
    from numpy.typing import NDArray

    from deploykit.comparison.reference import Reference
    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.core.progress import Journal, ProgressTask
    from deploykit.core.specs import Array, Runner, SplitGraph
    from deploykit.graph import HalfPlan, LoadedGraph
    from deploykit.graph.node_precisions import Planned
    from deploykit.precision import PlanSource
    from deploykit.precision.quantization.request import QuantizationRequest

    Batches = list[NDArray[np.float32]]

HEADROOM: Final = 4.0
"""Images that were not seen may go higher: values beyond 65504 / 4 on the samples stay FP32."""


_MOST_ROUNDS: Final = 8
"""Of looking for values that overflow: each keeps those that the one before found in FP32."""


@dataclass(frozen=True)
class HalfResult:
    """The FP16 or BF16 graph, how many nodes changed, and why each of the others did not.

    ``outputs`` are the first output for each batch where every narrow value is rounded, where
    they were computed.
    """

    graph: LoadedGraph
    halved: int
    outputs: Batches | None = None
    kept_fp32: Mapping[str, str] = field(default_factory=dict)
    kept_heavy: int = 0

    @property
    def artifact(self) -> OnnxArtifact:
        """The file of the graph."""
        return self.graph.artifact

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the manifest."""
        return {
            "halved": self.halved,
            "kept_fp32": dict(self.kept_fp32),
            "kept_heavy": self.kept_heavy,
        }


def convert_to_fp16(
    graph: LoadedGraph,
    images: Sequence[NDArray[np.float32]],
    path: Path,
    *,
    open_runner: Callable[[SplitGraph], Runner],
    task: ProgressTask,
) -> HalfResult:
    """Write the FP16 form of ``graph`` to ``path``; inputs and outputs stay FP32.

    Each of ``images`` (N, C, H, W) is run through the FP32 graph by ``open_runner``, with every
    intermediate value shown. A node stays FP32 where a value it reads or makes comes near 65504.

    Raises:
        ValidationError: the FP32 graph itself gives NaN, or infinite outputs.
        ModelFileError: the result is not a valid model.
    """
    model = graph.model
    measured = measure_magnitudes(model, images, open_runner=open_runner, task=task)
    unfit = measure_unfit(model, measured.amax, images, open_runner=open_runner, task=task)
    found = halve(model, measured, unfit, images, open_runner=open_runner, task=task)
    plan = found.plan
    parents = (graph.artifact.sha256, *graph.artifact.parents)
    written = write_graph(found.model, path, Precision.FP16, parents)
    kept_heavy = plan.kept_heavy(model)
    return HalfResult(written, len(plan.halved), found.outputs, plan.kept, kept_heavy)


@dataclass(frozen=True)
class MeasuredMagnitudes:
    """Largest magnitude of each value of an FP32 graph, and where it holds infinities on purpose.

    ``amax`` is that of its numbers. ``infinities`` has for each run the `digest_of_signs` of each
    value that may have infinities of the graph's constants, by name, and of each of ``own``: those
    that are infinite by themselves, though the graph's outputs are numbers. Their ``amax`` is so.
    """

    amax: Mapping[str, float]
    infinities: tuple[Mapping[str, str], ...] = ()
    own: frozenset[str] = frozenset()


NOT_MEASURED: Final = MeasuredMagnitudes({})


class Halved(NamedTuple):
    """An FP16 graph, its plan, and its first output where every FP16 value is rounded."""

    model: ir.Model
    plan: HalfPlan
    outputs: Batches


def halve(
    model: ir.Model,
    measured: MeasuredMagnitudes,
    unfit: Unfit,
    images: Sequence[NDArray[np.float32]],
    *,
    open_runner: Callable[[SplitGraph], Runner],
    task: ProgressTask,
) -> Halved:
    """The FP16 form of ``model`` in which no value of ``images`` passes FP16's range.

    It is run with every FP16 value rounded. A value that becomes NaN or infinite there, though
    FP32 gives a number or the other infinity, keeps its nodes in FP32, and it is run again.
    """
    for _ in range(_MOST_ROUNDS):
        plan = plan_half(model, measured.amax, HEADROOM, unfit)
        halved = convert_to_half(model, plan)
        found, outputs = find_overflows(
            halved, images, measured, open_runner=open_runner, task=task
        )
        if not found.values:
            return Halved(halved, plan, outputs)
        unfit = unfit.joined(found)
    raise ValidationError(
        f"after {_MOST_ROUNDS} rounds values still pass FP16's range: {', '.join(found.values)}\n"
        "export it in another precision"
    )


def find_overflows(
    halved: ir.Model,
    images: Sequence[NDArray[np.float32]],
    measured: MeasuredMagnitudes = NOT_MEASURED,
    *,
    open_runner: Callable[[SplitGraph], Runner],
    task: ProgressTask,
) -> tuple[Unfit, Batches]:
    """Values that turn NaN or infinite in FP16 by themselves, on any of ``images``.

    The infinities of FP32 on the same images, as ``measured``, are none of them where they have
    their places and signs; one that went away is. Where the images choose the places, none may be
    added by rounding. Beside them the first output for each batch, none where nothing
    is FP16.
    """
    if not computes_narrow(halved):
        return Unfit(), []
    form, infinities = rounding_form(halved, Stored.EVERY), measured.infinities
    stands_for = counterparts(halved, infinities[0].keys() if infinities else ())
    exact = rounded_from(form)
    by_images = placed_by_images(form, measured.own) | measured.own if infinities else frozenset()
    # What is NaN or infinite before it is rounded is so behind it, too.
    seen_rounded = set(exact.values()) - {exact.get(name, name) for name in by_images}
    graph, extremes = expose_magnitudes(form, measured.own, seen_rounded)
    broken: set[str] = set()
    answers = []
    with open_runner(graph) as runner:
        for run, (_, outputs) in enumerate(_runs(runner, images, task, "range of FP16")):
            answers.append(outputs[runner.outputs[0].name].astype(np.float32))
            meant = infinities[run] if infinities else {}
            for name, named in extremes.items():
                where = meant.get(stands_for.get(name, ""), "")
                if name in by_images:  # rounding may move them, and must not add to them
                    where = _signs(outputs, extremes[exact.get(name, name)])
                if _is_broken(outputs, named, where):
                    broken.add(name)
    return unfit_by_overflow(halved, broken), _per_batch(answers, images)


def _is_broken(outputs: Mapping[str, Array], named: Extremes, where: str) -> bool:
    """Whether a value has NaN, or other infinities than ``where`` tells."""
    return not np.isfinite(_numbers(outputs, named)).all() or _signs(outputs, named) != where


def _numbers(outputs: Mapping[str, Array], named: Extremes) -> list[float]:
    return [float(outputs[output]) for output in (named.largest, named.least, named.broken)]


def _signs(outputs: Mapping[str, Array], named: Extremes) -> str:
    """What tells where infinities are that the graph may hold on purpose; empty if nowhere."""
    return digest_of_signs(outputs[named.signs].astype(np.int8)) if named.signs else ""


def _per_batch(answers: Batches, images: Sequence[NDArray[np.float32]]) -> Batches:
    """What was answered in one run for each batch, or for each image of it."""
    if len(answers) == len(images):
        return answers
    rest = iter(answers)
    return [np.concatenate(list(islice(rest, len(batch)))) for batch in images]


def measure_unfit(
    model: ir.Model,
    amax: Mapping[str, float],
    images: Sequence[NDArray[np.float32]],
    *,
    open_runner: Callable[[SplitGraph], Runner],
    task: ProgressTask,
) -> Unfit:
    """Values that vanish in FP16 before a division, a root or a logarithm, and sums beyond it."""
    probes = find_probes(model, amax)
    if not probes:
        return NOTHING_UNFIT
    numbers = [np.inf if probe.value is not None else 0.0 for probe in probes]
    with open_runner(expose_probes(model, probes)) as runner:
        names = [spec.name for spec in runner.outputs]
        for _, outputs in _runs(runner, images, task, "smallest values and sums"):
            for at, (probe, name) in enumerate(zip(probes, names, strict=True)):
                keep = max if probe.value is None else min
                numbers[at] = keep(numbers[at], float(outputs[name]))
    return unfit_by_probes(probes, numbers).joined(cancelled(model, amax, probes, numbers))


def measure_magnitudes(
    model: ir.Model,
    images: Sequence[NDArray[np.float32]],
    *,
    open_runner: Callable[[SplitGraph], Runner],
    task: ProgressTask,
) -> MeasuredMagnitudes:
    """Largest absolute value of each input and of every FP32 value of ``model`` on ``images``.

    Raises:
        ValidationError: a value is NaN, or an input or output is infinite; the first value in graph
            order that is NaN, or infinite by itself and not by a constant of the graph, is given.
    """
    graph, extremes = expose_magnitudes(model)
    with open_runner(graph) as runner:
        found = largest_magnitudes(runner, images, extremes, task)
    own = frozenset(name for name, largest in found.amax.items() if not np.isfinite(largest))
    if not own:
        return found
    first = next(name for name in found.amax if name in own)
    graph, extremes = expose_magnitudes(model, own)
    with open_runner(graph) as runner:
        found = largest_magnitudes(runner, images, extremes, task)
    made = {str(value.name) for node in model.graph for value in node.outputs}
    outputs = {str(value.name) for value in model.graph.outputs}
    if not np.isfinite(list(found.amax.values())).all() or own & outputs or not own <= made:
        raise ValidationError(
            f"{first} is NaN or infinite already in FP32\n"
            "check the weights and that the images are preprocessed as in training"
        )
    return replace(found, amax={**found.amax, **dict.fromkeys(own, np.inf)}, own=own)


def largest_magnitudes(
    runner: Runner,
    images: Sequence[NDArray[np.float32]],
    extremes: Mapping[str, Extremes],
    task: ProgressTask,
) -> MeasuredMagnitudes:
    """Largest absolute value of each input, and of each value by its ``extremes``, over all images.

    In graph order; infinite where a value has NaN, or infinities not told from its numbers.
    """
    amax: dict[str, float] = {}
    infinities = []
    for batch, outputs in _runs(runner, images, task, "activations"):
        found = {name: _extremes(values) for name, values in all_inputs(runner, batch).items()}
        for name, named in extremes.items():
            found[name] = [*_numbers(outputs, named), *_others(outputs, named)]
        for name, numbers in found.items():
            amax[name] = max(amax.get(name, 0.0), _magnitude(numbers))
        infinities.append(
            {name: _signs(outputs, named) for name, named in extremes.items() if named.signs}
        )
    return MeasuredMagnitudes(amax, tuple(infinities))


def _others(outputs: Mapping[str, Array], named: Extremes) -> list[float]:
    """An infinity of a sign that no constant has, where there is one."""
    wrong = {-1, 1} - named.expected
    if not named.signs or not wrong:
        return []
    return [sign * np.inf for sign in wrong if (outputs[named.signs] == sign).any()]


def _runs(
    runner: Runner, images: Sequence[NDArray[np.float32]], task: ProgressTask, words: str
) -> Iterator[tuple[NDArray[np.float32], Mapping[str, Array]]]:
    """Each batch with its outputs by name: a single image, as far as the graph takes one."""
    feed = runner.inputs[0].name
    single = _one_by_one(images, runner)
    for done, batch in enumerate(single, start=1):
        yield batch, runner.run({feed: batch})
        task.update(done, len(single), words)


def _one_by_one(
    images: Sequence[NDArray[np.float32]], runner: Runner
) -> Sequence[NDArray[np.float32]]:
    # The activations of a single image take the least memory.
    if runner.inputs[0].fixed_batch is not None:
        return images
    return [batch[at : at + 1] for batch in images for at in range(len(batch))]


def _extremes(values: NDArray[np.generic]) -> list[float]:
    # max and min of numpy propagate NaN.
    return [float(values.max()), float(values.min())] if values.size else [0.0]


def _magnitude(extremes: Sequence[float]) -> float:
    return max(map(abs, extremes)) if np.isfinite(extremes).all() else np.inf


def judged(reference: Reference, result: HalfResult, journal: Journal) -> Converted:
    """The graph after its comparison with what ``reference`` was made from.

    Raises:
        ValidationError: it is not the model any more.
    """
    compared = reference.batches, reference.outputs
    report = require_valid(
        reference,
        result.graph,
        compared,
        journal,
        made_by=reference.made_by,
        every=result.outputs,
    )
    return Converted(
        result.artifact,
        (reference.report, report),
        {**reference.conversion, **result.to_dict()},
        compared,
        graph=result.graph,
    )


class _Fp16(Conversion):
    """Measures magnitudes, then converts what stays within FP16."""

    def convert(
        self,
        reference: Reference,
        path: Path,
        request: QuantizationRequest | None,  # noqa: ARG002
        journal: Journal,
    ) -> Converted:
        with journal.stage("convert to fp16") as task:
            result = convert_to_fp16(
                reference.graph,
                reference.batches,
                path,
                open_runner=reference.runners.measuring,
                task=task,
            )
        return judged(reference, result, journal)

    def plan(self, source: PlanSource) -> Planned:
        return planned_half(source.model, source.magnitudes, HEADROOM, source.unfit)


CONVERSION: Final[Conversion] = _Fp16()
