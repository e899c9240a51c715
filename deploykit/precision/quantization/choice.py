"""Choices of an INT8 export: ranges, placement, biases, each made on held-out images.

One file because a choice is between conversions: each trial makes one and measures its error.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf, isfinite
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.core.errors import ModelFileError, UsageError
from deploykit.core.precision import Precision
from deploykit.graph import HEAVY_OPS, convert_to_half, plan_half, qdq, write_graph
from deploykit.graph.qdq.insertion import ratio_db
from deploykit.heads.multiclass import MULTICLASS
from deploykit.precision.calibration.calibrators import METHODS
from deploykit.precision.fp16 import HEADROOM
from deploykit.precision.quantization.noise import measure_gains, worst_sqnr_db

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import onnx_ir as ir
    from numpy.typing import NDArray

    from deploykit.comparison.reference import Runners
    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.core.progress import ProgressTask
    from deploykit.core.specs import Runner, SplitGraph
    from deploykit.graph import HalfPlan, LoadedGraph
    from deploykit.graph.qdq import QdqPlan, QdqPolicy
    from deploykit.heads import Head
    from deploykit.precision.calibration.table import CalibrationTable

    Halve = Callable[[ir.Model], tuple[ir.Model, HalfPlan]]
    Batches = list[NDArray[np.float32]]
    Answers = Mapping[str, NDArray[np.float32]]


WORST_SHOWN: Final = 10
"""Layers and values in the tables of the report."""

SHOWN_REASONS: Final = 5


@dataclass(frozen=True)
class Int8Options:
    """What is left out of INT8, and what it is then: FP16 or FP32."""

    policy: qdq.QdqPolicy = field(default_factory=qdq.QdqPolicy)
    rest: Precision = Precision.FP16

    def __post_init__(self) -> None:
        if self.rest is Precision.INT8:
            raise UsageError("the rest of an INT8 graph cannot be int8\npossible: fp16, fp32")


@dataclass(frozen=True)
class QuantizationErrors:
    """What quantization does to each layer by itself, measured on images.

    ``shifts`` are mean(exact - quantized) of a layer's output channels, shape (C,), by layer;
    ``activation_sqnr_db`` the signal to noise ratio of each value that becomes INT8.
    """

    shifts: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    activation_sqnr_db: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class QuantizedResult:
    """The INT8 or FP8 artifact and what became of each layer.

    ``layers`` counts convolutions and matrix products by precision. The two tables hold the ten
    lowest signal to quantization noise ratios in dB, the worst first. ``kept`` says why a node is
    not quantized; ``corrected`` is the number of layers whose bias was corrected.
    """

    graph: LoadedGraph
    layers: Mapping[Precision, int]
    weight_sqnr_db: Mapping[str, float]
    activation_sqnr_db: Mapping[str, float]
    kept: Mapping[str, str] = field(default_factory=dict)
    corrected: int = 0

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
    if not plan.weights:
        said = "; ".join(reasons_against(graph.model, plan.kept)[:SHOWN_REASONS])
        raise ModelFileError(
            f"nothing in {name or graph.artifact.path.name} can be INT8\n"
            f"{said or 'it has no convolution and no matrix product'}\n"
            f"{'exclude less, or ' if policy.exclude else ''}use --fp16; "
            "deploykit inspect TARGET --int8 lists every node"
        )
    return plan


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
        errors: from `measure_errors`; with it the biases are corrected.

    Raises:
        ModelFileError: the graph is quantized already, has nothing to quantize, or the result is
            not a valid model.
        DataError: ``amax`` lacks a value, or is not a number from 0 up.
    """
    plan = plan_int8(graph, options.policy)
    halve = (halve or _halve_all) if options.rest is Precision.FP16 else None
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
    result = qdq.insert_qdq(corrected, plan, amax)
    fp32 = {str(node.name) for node in result.graph if node.op_type in HEAVY_OPS}
    kept = dict(plan.kept)
    if halve is not None:
        result, half = halve(result)
        fp32 -= half.halved
        kept |= {name: half.kept[name] for name in half.kept if name in fp32}
    parents = (artifact.sha256, *artifact.parents)
    written = write_graph(result, path, precision, parents)
    return QuantizedResult(
        graph=written,
        layers=_count_layers(plan, source, fp32, precision),
        weight_sqnr_db=_worst(qdq.weight_sqnr_db(source, plan)),
        activation_sqnr_db=_worst(errors.activation_sqnr_db),
        kept=kept,
        corrected=corrections,
    )


def _halve_all(model: ir.Model) -> tuple[ir.Model, HalfPlan]:
    plan = plan_half(model, {}, HEADROOM)
    return convert_to_half(model, plan), plan


def _count_layers(
    plan: QdqPlan, source: Any, fp32: set[str], precision: Precision
) -> dict[Precision, int]:
    heavy = {str(node.name) for node in source.graph if node.op_type in HEAVY_OPS}
    return {
        precision: len(plan.layers),
        Precision.FP16: len(heavy - plan.layers - fp32),
        Precision.FP32: len((heavy & fp32) - plan.layers),
    }


def _worst(ratios: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(ratios.items(), key=lambda item: item[1])[:WORST_SHOWN])


def _finite(ratios: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no infinity: an exact weight has no ratio."""
    return {name: round(value, 2) if abs(value) < inf else None for name, value in ratios.items()}


AUTO: Final = "auto"

RESIDUAL_GAIN_DB: Final = 1.5
"""What skip operands in high precision must give for their memory traffic: 30 % less noise."""

FIRST_LAYER_GAIN_DB: Final = 1.0
"""What a first layer in high precision must give: 20 %, it has few of the multiply-adds."""

EQUALISATION_GAIN_DB: Final = 0.5
"""What equalised channels must give: 11 %, as their Mul is fused, or folded into a LayerNorm."""

LAYERS_GAIN_DB: Final = 1.0
"""What the most sensitive layers in high precision must give together: 20 % less noise."""

LAYERS_SHARE: Final = 1 / 8
"""Of the multiply-adds that they may have: were FP16 half as fast, INT8 is an eighth slower."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate on the held-out images.

    ``mean_kl`` in nats and ``agreement`` of the top-1 against FP32, ``None`` for outputs that have
    none; ``sqnr_db`` is an output's power over the power of its error, of the noisiest output that
    is judged.
    """

    candidate: str
    mean_kl: float | None
    agreement: float | None
    sqnr_db: float | None


@dataclass(frozen=True)
class Choice:
    """What was chosen, and the trials that it was chosen by, in order."""

    method: str
    policy: QdqPolicy
    errors: QuantizationErrors
    trials: tuple[Trial, ...]
    equalised: bool = False


@dataclass(frozen=True)
class TrialSetup:
    """What candidates are made from and judged on; ``model`` is the FP32 graph.

    ``expected`` are its answers to ``batches``, see `judged_answers`. ``probed`` are the batches
    and answers that layers are judged on one by one, ``None`` where that would take too long;
    ``multiply_adds`` are those of each layer.
    """

    model: ir.Model
    table: CalibrationTable
    batches: Batches
    expected: Sequence[Answers]
    runners: Runners
    probed: tuple[Batches, Sequence[Answers]] | None = None
    multiply_adds: Mapping[str, int] = field(default_factory=dict)
    head: Head = MULTICLASS

    def run_trial(
        self,
        candidate: str,
        method: str,
        policy: QdqPolicy,
        errors: QuantizationErrors | None = None,
    ) -> Trial:
        """Make one candidate and judge it.

        What is not INT8 stays FP32: FP16 changes all candidates alike, and takes longer.

        Raises:
            ValidationError: an output has another shape in INT8.
        """
        plan = qdq.plan_qdq(self.model, policy)
        shifts = {} if errors is None else errors.shifts
        content = qdq.trial_graph(self.model, plan, self.table.select_trial(method), shifts)
        with self.runners.open_unoptimised(content) as runner:
            feed = runner.inputs[0].name
            found = [runner.run({feed: batch}) for batch in self.batches]
        ratio = worst_sqnr_db(self.expected, found)
        first = next(iter(self.expected[0]))
        got, wanted = (
            np.concatenate([one[first] for one in each]) for each in (found, self.expected)
        )
        kl, agreement = self.head.closeness(got.astype(np.float32, copy=False), wanted)
        return Trial(candidate, kl, agreement, ratio if isfinite(ratio) else None)


@dataclass(frozen=True, slots=True)
class Int8Choices:
    """What the user fixed; "auto" is decided by trials."""

    method: str = AUTO
    first_layer: str = AUTO
    residual: str = AUTO
    sensitive_layers: str = AUTO
    bias_correction: str = AUTO
    equalisation: str = AUTO


def choose(
    setup: TrialSetup,
    int8_choices: Int8Choices,
    policy: QdqPolicy,
    measure: Callable[[str, QdqPolicy], QuantizationErrors],
    task: ProgressTask,
    equalised: tuple[TrialSetup, Callable[[str, QdqPolicy], QuantizationErrors]] | None = None,
) -> Choice:
    """One choice after another, each by the noise of the outputs on the held-out images.

    Of several outputs that are judged the noisiest one counts. KL divergence and agreement of the
    first are kept beside it, and decide nothing: where a network is sure of itself, one image makes
    most of the first and none changes the second. Every logit counts in the noise.

    ``measure`` gives the errors that a bias correction takes back, for a method and a policy;
    ``equalised`` are both for a graph with equalised channels, where there is one.
    """
    trials = _Trials(setup, task)
    methods = tuple(METHODS) if int8_choices.method == AUTO else (int8_choices.method,)
    method, best = trials.best_method(methods, policy)
    if equalised is not None:
        trials.setup = equalised[0]
        other, trial = trials.best_method(methods, policy, ", equalised")
        if _gain_db(trial, best) >= EQUALISATION_GAIN_DB:
            method, best, measure = other, trial, equalised[1]
        else:
            trials.setup = setup
    for wish, name, keep, needed in (
        (int8_choices.residual, "skips kept", _keep_skips, RESIDUAL_GAIN_DB),
        (int8_choices.first_layer, "first layer kept", _keep_first, FIRST_LAYER_GAIN_DB),
    ):
        candidate = keep(policy)
        if wish != AUTO or not _is_another_plan(trials.setup.model, policy, candidate):
            continue
        trial = trials.run(f"{best.candidate}, {name}", method, candidate)
        if _gain_db(trial, best) >= needed:
            policy, best = candidate, trial
    if sensitive := _sensitive_layers(trials.setup, int8_choices, method, policy, task):
        candidate = replace(policy, sensitive=sensitive)
        trial = trials.run(f"{best.candidate}, {_count(sensitive)} kept", method, candidate)
        if _gain_db(trial, best) >= LAYERS_GAIN_DB:
            policy, best = candidate, trial
    errors = QuantizationErrors()
    if int8_choices.bias_correction != "off":
        errors = measure(method, policy)
        trial = trials.run(f"{best.candidate}, biases corrected", method, policy, errors)
        if int8_choices.bias_correction == AUTO and _gain_db(trial, best) <= 0:
            errors = replace(errors, shifts={})
    return Choice(method, policy, errors, tuple(trials.done), trials.setup is not setup)


@dataclass
class _Trials:
    """The trials so far, all but those of other graphs made from ``setup``."""

    setup: TrialSetup
    task: ProgressTask
    done: list[Trial] = field(default_factory=list)

    def run(
        self, name: str, method: str, policy: QdqPolicy, errors: QuantizationErrors | None = None
    ) -> Trial:
        self.task.update(len(self.done), None, name)
        self.done.append(self.setup.run_trial(name, method, policy, errors))
        return self.done[-1]

    def best_method(
        self, methods: Sequence[str], policy: QdqPolicy, ending: str = ""
    ) -> tuple[str, Trial]:
        """The method with the least noise, and its trial."""
        found = {method: self.run(f"{method}{ending}", method, policy) for method in methods}
        method = max(found, key=lambda name: _decibels(found[name]))
        return method, found[method]


def _sensitive_layers(
    setup: TrialSetup, int8_choices: Int8Choices, method: str, policy: QdqPolicy, task: ProgressTask
) -> tuple[str, ...]:
    """The layers that give most for what they cost; none where that was not asked for."""
    if int8_choices.sensitive_layers == "int8" or setup.probed is None:
        return ()
    gains = measure_gains(
        setup.model,
        qdq.plan_qdq(setup.model, policy),
        setup.table.select_trial(method),
        setup.probed,
        open_runner=setup.runners.open_unoptimised,
        task=task,
    )
    return most_sensitive(gains, setup.multiply_adds)


def most_sensitive(gains: Mapping[str, float], multiply_adds: Mapping[str, int]) -> tuple[str, ...]:
    """Of the layers that gain in FP32, the first by gain per multiply-add, up to `LAYERS_SHARE`.

    >>> most_sensitive({"a": 2.0, "b": 0.1, "c": -0.1}, {"a": 10, "b": 5, "c": 1, "d": 84})
    ('a',)
    """
    room = LAYERS_SHARE * sum(multiply_adds.values())
    chosen = []
    for layer in sorted(gains, key=lambda name: gains[name] / multiply_adds[name], reverse=True):
        if gains[layer] > 0 and multiply_adds[layer] <= room:
            chosen.append(layer)
            room -= multiply_adds[layer]
    return tuple(chosen)


def _count(layers: tuple[str, ...]) -> str:
    return "a sensitive layer" if len(layers) == 1 else f"{len(layers)} sensitive layers"


def _keep_skips(policy: QdqPolicy) -> QdqPolicy:
    return replace(policy, residual="keep")


def _keep_first(policy: QdqPolicy) -> QdqPolicy:
    return replace(policy, first_layer="keep")


def _is_another_plan(model: ir.Model, policy: QdqPolicy, candidate: QdqPolicy) -> bool:
    """Whether the candidate changes anything, and leaves something in INT8."""
    first, second = qdq.plan_qdq(model, policy), qdq.plan_qdq(model, candidate)
    is_same = (first.activations, first.weights) == (second.activations, second.weights)
    return not is_same and bool(second.weights)


def _gain_db(trial: Trial, best: Trial) -> float:
    return _decibels(trial) - _decibels(best) if trial.sqnr_db != best.sqnr_db else 0.0


def _decibels(trial: Trial) -> float:
    return inf if trial.sqnr_db is None else trial.sqnr_db  # None: no error at all
