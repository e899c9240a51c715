"""Choices of an INT8 export: ranges, placement, biases, each made on held-out images."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf, isfinite, isinf
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.comparison.validation import outputs_of
from deploykit.graph import qdq
from deploykit.heads.multiclass import kl_divergence
from deploykit.precision.calibration.calibrators import METHODS
from deploykit.precision.quantization.graphs import QuantizationErrors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import onnx_ir as ir
    from numpy.typing import NDArray

    from deploykit.comparison.reference import Runners
    from deploykit.core.progress import ProgressTask
    from deploykit.core.specs import Runner, SplitGraph
    from deploykit.graph.qdq import QdqPolicy
    from deploykit.precision.calibration.table import CalibrationTable

    Batches = list[NDArray[np.float32]]


def measure_gains(
    model: ir.Model,
    plan: qdq.QdqPlan,
    amax: Mapping[str, float],
    compared: tuple[Batches, Batches],
    *,
    open_runner: Callable[[SplitGraph], Runner],
    task: ProgressTask,
) -> dict[str, float]:
    """By how many dB the logits gain when one layer alone computes in FP32, by layer.

    ``compared`` are batches (N, C, H, W) and their FP32 logits; there is one pass over them for
    each layer, and one more. ``open_runner`` must run Q/DQ pairs as they are written.

    Raises:
        DataError: ``amax`` lacks a value of the plan, or is not a number from 0 up.
        ModelFileError: the graph is too large without its weights.
    """
    batches, exact = compared[0], np.concatenate(compared[1])
    layers = [weight.node for weight in plan.weights]
    graph = qdq.switchable(model, plan, amax)
    with open_runner(graph) as runner:
        none = np.zeros(len(layers), np.bool_)
        quantized = qdq.sqnr_db(exact, _logits(runner, batches, none))
        gains = {}
        for index, layer in enumerate(layers):
            alone = np.arange(len(layers)) == index
            gains[layer] = _gain(qdq.sqnr_db(exact, _logits(runner, batches, alone)), quantized)
            task.update(index + 1, len(layers), "noise of each layer")
    return gains


def _logits(runner: Runner, batches: Batches, switches: NDArray[np.bool_]) -> NDArray[np.float32]:
    image, switch = (spec.name for spec in runner.inputs)
    name = runner.outputs[0].name
    rows = [runner.run({image: batch, switch: switches})[name] for batch in batches]
    return np.concatenate(rows).astype(np.float32, copy=False)


def _gain(without: float, quantized: float) -> float:
    if isinf(quantized):
        return 0.0
    return inf if isinf(without) else without - quantized


AUTO: Final = "auto"

RESIDUAL_GAIN_DB: Final = 1.5
"""What skip operands in high precision must give for their memory traffic: 30 % less noise."""

FIRST_LAYER_GAIN_DB: Final = 1.0
"""What a first layer in high precision must give: 20 %, it has few of the multiply-adds."""

LAYERS_GAIN_DB: Final = 1.0
"""What the most sensitive layers in high precision must give together: 20 % less noise."""

LAYERS_SHARE: Final = 1 / 8
"""Of the multiply-adds that they may have: were FP16 half as fast, INT8 is an eighth slower."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate on the held-out images.

    ``mean_kl`` in nats and ``agreement`` of the top-1 against FP32; ``sqnr_db`` is the logits'
    power over the power of their error.
    """

    candidate: str
    mean_kl: float
    agreement: float
    sqnr_db: float | None


@dataclass(frozen=True)
class Choice:
    """What was chosen, and the trials that it was chosen by, in order."""

    method: str
    policy: QdqPolicy
    errors: QuantizationErrors
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class TrialSetup:
    """What candidates are made from and judged on; ``model`` is the FP32 graph.

    ``probed`` are the batches and logits that layers are judged on one by one, ``None`` where that
    would take too long; ``multiply_adds`` are those of each layer.
    """

    model: ir.Model
    table: CalibrationTable
    batches: Batches
    expected: Batches
    runners: Runners
    probed: tuple[Batches, Batches] | None = None
    multiply_adds: Mapping[str, int] = field(default_factory=dict)

    def run_trial(
        self,
        candidate: str,
        method: str,
        policy: QdqPolicy,
        errors: QuantizationErrors | None = None,
    ) -> Trial:
        """Make one candidate and judge it.

        What is not INT8 stays FP32: FP16 changes all candidates alike, and takes longer.
        """
        plan = qdq.plan_qdq(self.model, policy)
        shifts = {} if errors is None else errors.shifts
        content = qdq.trial_graph(self.model, plan, self.table.select_trial(method), shifts)
        with self.runners.open_unoptimised(content) as runner:
            outputs = outputs_of(runner, self.batches)
        return _judge(candidate, np.concatenate(outputs), np.concatenate(self.expected))


@dataclass(frozen=True, slots=True)
class Int8Choices:
    """What the user fixed; "auto" is decided by trials."""

    method: str = AUTO
    first_layer: str = AUTO
    residual: str = AUTO
    sensitive_layers: str = AUTO
    bias_correction: str = AUTO


def choose(
    setup: TrialSetup,
    int8_choices: Int8Choices,
    policy: QdqPolicy,
    measure: Callable[[str, QdqPolicy], QuantizationErrors],
    task: ProgressTask,
) -> Choice:
    """One choice after another, each by the noise of the logits on the held-out images.

    KL divergence and agreement are kept beside it, and decide nothing: where a network is sure of
    itself, one image makes most of the first and none changes the second. Every logit counts in
    the noise.

    ``measure`` gives the errors that a bias correction takes back, for a method and a policy.
    """
    trials: list[Trial] = []

    def run_trial(
        name: str, method: str, policy: QdqPolicy, errors: QuantizationErrors | None = None
    ) -> Trial:
        task.update(len(trials), None, name)
        trials.append(setup.run_trial(name, method, policy, errors))
        return trials[-1]

    methods = tuple(METHODS) if int8_choices.method == AUTO else (int8_choices.method,)
    contenders = {method: run_trial(method, method, policy) for method in methods}
    method = max(contenders, key=lambda name: _decibels(contenders[name]))
    best = contenders[method]
    for wish, name, keep, needed in (
        (int8_choices.residual, "skips kept", _keep_skips, RESIDUAL_GAIN_DB),
        (int8_choices.first_layer, "first layer kept", _keep_first, FIRST_LAYER_GAIN_DB),
    ):
        candidate = keep(policy)
        if wish != AUTO or not _is_another_plan(setup.model, policy, candidate):
            continue
        trial = run_trial(f"{best.candidate}, {name}", method, candidate)
        if _gain_db(trial, best) >= needed:
            policy, best = candidate, trial
    if sensitive := _sensitive_layers(setup, int8_choices, method, policy, task):
        candidate = replace(policy, sensitive=sensitive)
        trial = run_trial(f"{best.candidate}, {_count(sensitive)} kept", method, candidate)
        if _gain_db(trial, best) >= LAYERS_GAIN_DB:
            policy, best = candidate, trial
    errors = QuantizationErrors()
    if int8_choices.bias_correction != "off":
        errors = measure(method, policy)
        trial = run_trial(f"{best.candidate}, biases corrected", method, policy, errors)
        if int8_choices.bias_correction == AUTO and _gain_db(trial, best) <= 0:
            errors = replace(errors, shifts={})
    return Choice(method, policy, errors, tuple(trials))


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


def _judge(candidate: str, got: NDArray[np.float32], wanted: NDArray[np.float32]) -> Trial:
    exact, found = wanted.astype(np.float64), got.astype(np.float64)
    ratio = qdq.sqnr_db(wanted, got)
    return Trial(
        candidate=candidate,
        mean_kl=float(kl_divergence(exact, found).mean()),
        agreement=float((found.argmax(axis=1) == exact.argmax(axis=1)).mean()),
        sqnr_db=ratio if isfinite(ratio) else None,
    )
