"""The graph of INT8 or FP8 by a plan, and what the conversion does to each layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.core.errors import ModelFileError, UsageError
from deploykit.core.precision import Precision
from deploykit.graph import BF16, HEAVY_OPS, convert_to_half, plan_half, qdq, write_graph
from deploykit.graph.qdq.insertion import ratio_db
from deploykit.precision.fp16 import HEADROOM

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import onnx_ir as ir
    from numpy.typing import NDArray

    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.core.progress import ProgressTask
    from deploykit.core.specs import Runner, SplitGraph
    from deploykit.graph import HalfPlan, LoadedGraph
    from deploykit.graph.qdq import QdqPlan

    Halve = Callable[[ir.Model], tuple[ir.Model, HalfPlan]]


WORST_SHOWN: Final = 10
"""Layers and values in the tables of the report."""

SHOWN_REASONS: Final = 5


@dataclass(frozen=True)
class Int8Options:
    """What is left out of INT8, and what it is then: FP16, BF16 or FP32."""

    policy: qdq.QdqPolicy = field(default_factory=qdq.QdqPolicy)
    rest: Precision = Precision.FP16

    def __post_init__(self) -> None:
        if self.rest.facts.quantized:
            raise UsageError(
                f"the rest of an INT8 graph cannot be {self.rest}\npossible: fp16, bf16, fp32"
            )


@dataclass(frozen=True)
class QuantizationErrors:
    """What quantization does to each layer by itself, measured on images.

    ``shifts`` are mean(exact - quantized) of a layer's output channels, shape (C,), by layer;
    ``activation_sqnr_db`` the signal to noise ratio of each value that becomes INT8 or FP8.
    ``weights`` are on the grid already, rounded together or fine-tuned: (K, N) of linear layers,
    those of convolutions as they are stored. The others are rounded to the nearest number.
    """

    shifts: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    activation_sqnr_db: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True)
class QuantizedResult:
    """The INT8 or FP8 artifact and what became of each layer.

    ``layers`` counts convolutions and matrix products by precision. The two tables hold the ten
    lowest signal to quantization noise ratios in dB, the worst first. ``kept`` says why a node is
    not quantized; ``corrected`` is the number of layers whose bias was corrected, ``rounded`` that
    of layers whose weights were rounded together.
    """

    graph: LoadedGraph
    layers: Mapping[Precision, int]
    weight_sqnr_db: Mapping[str, float]
    activation_sqnr_db: Mapping[str, float]
    kept: Mapping[str, str] = field(default_factory=dict)
    corrected: int = 0
    rounded: int = 0

    @property
    def artifact(self) -> OnnxArtifact:
        """The file of the graph."""
        return self.graph.artifact

    @property
    def kept_heavy(self) -> int:
        """Convolutions and matrix products that are FP32, as the proof of the precision asks."""
        return self.layers[Precision.FP32]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the manifest."""
        return {
            "layers": {str(precision): count for precision, count in self.layers.items()},
            "weight_sqnr_db": _finite(self.weight_sqnr_db),
            "activation_sqnr_db": _finite(self.activation_sqnr_db),
            "kept": dict(self.kept),
            "corrected_biases": self.corrected,
            "weights_rounded_together": self.rounded,
        }


_DEFAULTS: Final = Int8Options()
_NOT_MEASURED: Final = QuantizationErrors()


def plan_int8(graph: LoadedGraph, policy: qdq.QdqPolicy, name: str | None = None) -> QdqPlan:
    """What would become INT8; its ``tensors`` are what must be calibrated.

    ``name`` is how the user calls the network, for the message; ``None``: as its file is called.

    Raises:
        ModelFileError: the graph cannot be read, is quantized already, or has nothing to quantize.
    """
    plan = qdq.plan_qdq(graph.model, policy)
    require_layers(graph, plan, policy, Precision.INT8, name)
    return plan


def require_layers(
    graph: LoadedGraph,
    plan: QdqPlan,
    policy: qdq.QdqPolicy,
    precision: Precision,
    name: str | None = None,
) -> None:
    """Refuse a plan without a layer; ``name`` is as that of `plan_int8`.

    Raises:
        ModelFileError: it has none; the message has the first reasons.
    """
    if plan.layers:
        return
    said = "; ".join(reasons_against(graph.model, plan.kept)[:SHOWN_REASONS])
    raise ModelFileError(
        f"nothing in {name or graph.artifact.path.name} can be {precision.upper()}\n"
        f"{said or 'it has no convolution and no matrix product'}\n"
        f"{'exclude less, or ' if policy.exclude else ''}use --fp16; "
        f"deploykit inspect TARGET --{precision} lists every node"
    )


def reasons_against(model: ir.Model, kept: Mapping[str, str]) -> list[str]:
    """Why nodes are not quantized, each reason once: of convolutions and matrix products first."""
    heavy = {str(node.name) for node in model.graph if node.op_type in HEAVY_OPS}
    order = sorted(kept, key=lambda name: name not in heavy)
    nodes: dict[str, list[str]] = {}
    for name in order:
        nodes.setdefault(kept[name], []).append(name)
    return [f"{names[0]}{_more(names)}: {reason}" for reason, names in nodes.items()]


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def measure_errors(
    graph: LoadedGraph,
    plan: QdqPlan,
    amax: Mapping[str, float],
    images: Sequence[NDArray[np.float32]],
    *,
    open_runner: Callable[[SplitGraph], Runner],
    task: ProgressTask,
) -> QuantizationErrors:
    """Run each batch of ``images`` (N, C, H, W) through exact and quantized layers side by side.

    Raises:
        DataError: ``amax`` lacks a value of the plan, or is not a number from 0 up.
    """
    probe = qdq.probe_errors(graph.model, plan, amax)
    total: dict[str, NDArray[np.float64]] = {}
    count = 0
    with open_runner(probe.graph) as runner:
        feed = runner.inputs[0].name
        for done, batch in enumerate(images, start=1):
            for name, value in runner.run({feed: batch}).items():
                # Means of a batch count by its images; sums of squares are sums already.
                weight = len(batch) if value.ndim else 1
                total[name] = total.get(name, np.zeros(())) + value.astype(np.float64) * weight
            count += len(batch)
            task.update(done, len(images), "errors of each layer")
    return QuantizationErrors(
        {layer: (total[name] / count).astype(np.float32) for layer, name in probe.shifts.items()},
        {
            value: ratio_db(float(total[signal]), float(total[noise]))
            for value, (signal, noise) in probe.powers.items()
        },
    )


def quantize_to_int8(
    graph: LoadedGraph,
    amax: Mapping[str, float],
    path: Path,
    *,
    options: Int8Options = _DEFAULTS,
    halve: Halve | None = None,
    errors: QuantizationErrors = _NOT_MEASURED,
) -> QuantizedResult:
    """Write the INT8 form of an FP32 ``graph`` to ``path``; inputs and outputs stay FP32.

    Args:
        graph: an FP32 graph.
        amax: magnitude that the outermost INT8 step stands for, by value; see `plan_int8`.
        path: the file to write.
        options: what is left out, and the precision of the rest.
        halve: makes FP16 of what stays beside INT8, by what was measured; by default all that can.
        errors: from `measure_errors`; with it the biases are corrected, and weights set.

    Raises:
        ModelFileError: the graph is quantized already, has nothing to quantize, or the result is
            not a valid model.
        DataError: ``amax`` lacks a value, or is not a number from 0 up.
    """
    plan = plan_int8(graph, options.policy)
    if options.rest is Precision.BF16:
        halve = to_bf16
    halve = None if options.rest.facts.is_source else halve or _halve_all
    return quantize_by_plan(graph, plan, amax, path, Precision.INT8, halve=halve, errors=errors)


def quantize_by_plan(  # noqa: PLR0913 - each comes from another stage
    graph: LoadedGraph,
    plan: QdqPlan,
    amax: Mapping[str, float],
    path: Path,
    precision: Precision,
    *,
    halve: Halve | None,
    errors: QuantizationErrors = _NOT_MEASURED,
) -> QuantizedResult:
    """Write the form of an FP32 ``graph`` that ``plan`` says; without ``halve`` the rest is FP32.

    Raises:
        ModelFileError: the result is not a valid model.
        DataError: ``amax`` lacks a value, or is not a number from 0 up.
    """
    source, artifact = graph.model, graph.artifact
    corrected, corrections = qdq.correct_biases(source, errors.shifts)
    if errors.weights:
        corrected = qdq.set_weights(corrected, errors.weights)
    result = qdq.insert_qdq(corrected, plan, amax)
    fp32 = {str(node.name) for node in result.graph if node.op_type in HEAVY_OPS}
    kept = dict(plan.kept)
    if halve is not None:
        result, half = halve(result)
        fp32 -= half.halved
        kept |= {name: half.kept[name] for name in half.kept if name in fp32}
    parents = (artifact.sha256, *artifact.parents)
    written = write_graph(result, path, precision, parents)
    kinds = precision, Precision.BF16 if written.artifact.has_bf16 else Precision.FP16
    return QuantizedResult(
        graph=written,
        layers=_count_layers(plan, source, fp32, kinds),
        weight_sqnr_db=_worst(qdq.weight_sqnr_db(source, plan)),
        activation_sqnr_db=_worst(errors.activation_sqnr_db),
        kept=kept,
        corrected=corrections,
        rounded=len(errors.weights),
    )


def to_bf16(model: ir.Model) -> tuple[ir.Model, HalfPlan]:
    """BF16 of all that has such a form; its range is FP32's, so nothing is measured first."""
    plan = plan_half(model, {}, HEADROOM, half=BF16)
    return convert_to_half(model, plan), plan


def _halve_all(model: ir.Model) -> tuple[ir.Model, HalfPlan]:
    plan = plan_half(model, {}, HEADROOM)
    return convert_to_half(model, plan), plan


def _count_layers(
    plan: QdqPlan, source: Any, fp32: set[str], kinds: tuple[Precision, Precision]
) -> dict[Precision, int]:
    precision, rest = kinds
    heavy = {str(node.name) for node in source.graph if node.op_type in HEAVY_OPS}
    return {
        precision: len(plan.layers),
        rest: len(heavy - plan.layers - fp32),
        Precision.FP32: len((heavy & fp32) - plan.layers),
    }


def _worst(ratios: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(ratios.items(), key=lambda item: item[1])[:WORST_SHOWN])


def _finite(ratios: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no infinity: an exact weight has no ratio."""
    return {name: round(value, 2) if abs(value) < inf else None for name, value in ratios.items()}
