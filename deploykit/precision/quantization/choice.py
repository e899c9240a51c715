"""Choices of an INT8 or FP8 export: ranges, placement, biases, each made on held-out images."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf, isfinite
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.graph import qdq
from deploykit.heads.multiclass import MULTICLASS
from deploykit.precision.calibration.calibrators import METHODS
from deploykit.precision.quantization.conversion import QuantizationErrors
from deploykit.precision.quantization.noise import measure_gains, worst_sqnr_db

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from deploykit.comparison.reference import Runners
    from deploykit.core.progress import ProgressTask
    from deploykit.graph import HalfPlan
    from deploykit.graph.qdq import QdqPlan, QdqPolicy
    from deploykit.heads import Head
    from deploykit.precision.calibration.table import CalibrationTable

    Halve = Callable[[ir.Model], tuple[ir.Model, HalfPlan]]
    Batches = list[NDArray[np.float32]]
    Answers = Mapping[str, NDArray[np.float32]]
    Planner = Callable[[ir.Model, QdqPolicy], QdqPlan]
    Rounder = Callable[[str, QdqPolicy, QuantizationErrors], QuantizationErrors]
    Measure = Callable[[str, QdqPolicy], QuantizationErrors]
    Contender = tuple["TrialSetup", Measure]


AUTO: Final = "auto"

RESIDUAL_GAIN_DB: Final = 1.5
"""What skip operands in high precision must give for their memory traffic: 30 % less noise."""

FIRST_LAYER_GAIN_DB: Final = 1.0
"""What a first layer in high precision must give: 20 %, it has few of the multiply-adds."""

EQUALISATION_GAIN_DB: Final = 0.5
"""What equalised channels must give: 11 %, as their Mul is fused, or folded into a LayerNorm."""

ROOM_COST_DB: Final = 0.5
"""What room in the ranges of equalised values may cost on images like those of the calibration.

It is for subjects that these do not show: of Swin-T it costs 0.2 dB and saves 13 in the worst image
(`benchmarks/README.md`). A trained encoder lost 1.8 dB and had no such image.
"""

LAYERS_GAIN_DB: Final = 1.0
"""What the most sensitive layers in high precision must give together: 20 % less noise."""

WEIGHTS_GAIN_DB: Final = 0.2
"""What weights rounded together must give: they cost nothing, but were fitted to few images."""

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
    """What was chosen, and the trials that it was chosen by, in order.

    ``side`` is 0 for the graph as it is, 1 for that with equalised channels, 2 for the same with
    room in the ranges.
    """

    method: str
    policy: QdqPolicy
    errors: QuantizationErrors
    trials: tuple[Trial, ...]
    side: int = 0

    @property
    def equalised(self) -> bool:
        """Whether channels are equalised."""
        return self.side > 0

    @property
    def has_room(self) -> bool:
        """Whether the ranges of equalised values have room."""
        return self.side > 1


@dataclass(frozen=True)
class TrialSetup:
    """What candidates are made from and judged on; ``model`` is the FP32 graph.

    ``plan`` places the pairs of one format by a policy, ``methods`` are its ways to find ranges;
    ``round_weights`` adds weights that were
    rounded together to measured errors, ``None`` where that is not wanted.

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
    plan: Planner = qdq.plan_qdq
    methods: tuple[str, ...] = tuple(METHODS)
    round_weights: Rounder | None = None

    def run_trial(
        self,
        candidate: str,
        method: str,
        policy: QdqPolicy,
        errors: QuantizationErrors | None = None,
    ) -> Trial:
        """Make one candidate and judge it.

        What is not of eight bits stays FP32: FP16 changes all candidates alike, and takes longer.

        Raises:
            ValidationError: an output has another shape in INT8.
        """
        plan = self.plan(self.model, policy)
        given = errors or QuantizationErrors()
        amax = self.table.select_trial(method)
        content = qdq.trial_graph(self.model, plan, amax, given.shifts, given.weights)
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
    weight_rounding: str = AUTO


def choose(
    setup: TrialSetup,
    int8_choices: Int8Choices,
    policy: QdqPolicy,
    measure: Measure,
    task: ProgressTask,
    equalised: Sequence[Contender] = (),
) -> Choice:
    """One choice after another, each by the noise of the outputs on the held-out images.

    Of several outputs that are judged the noisiest one counts. KL divergence and agreement of the
    first are kept beside it, and decide nothing: where a network is sure of itself, one image makes
    most of the first and none changes the second. Every logit counts in the noise.

    ``measure`` gives the errors that a bias correction takes back, for a method and a policy;
    ``equalised`` are both for a graph with equalised channels, where there is one, and once more
    for the same with room in the ranges.
    """
    trials = _Trials(setup, task)
    methods = setup.methods if int8_choices.method == AUTO else (int8_choices.method,)
    method, best = trials.best_method(methods, policy)
    if equalised:
        trials.setup, other_measure = equalised[0]
        other, trial = trials.best_method(methods, policy, ", equalised")
        if _gain_db(trial, best) >= EQUALISATION_GAIN_DB:
            method, best, measure = other, trial, other_measure
            best, measure = _with_room(trials, method, policy, best, measure, equalised[1:])
        else:
            trials.setup = setup
    for wish, name, keep, needed in (
        (int8_choices.residual, "skips kept", _keep_skips, RESIDUAL_GAIN_DB),
        (int8_choices.first_layer, "first layer kept", _keep_first, FIRST_LAYER_GAIN_DB),
    ):
        candidate = keep(policy)
        if wish != AUTO or not _is_another_plan(trials.setup, policy, candidate):
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
        else:
            best = trial
    errors = _rounded_weights(trials, method, policy, best, errors)
    sides = (setup, *(other for other, _ in equalised))
    side = next(number for number, each in enumerate(sides) if each is trials.setup)
    return Choice(method, policy, errors, tuple(trials.done), side)


def _with_room(
    trials: _Trials,
    method: str,
    policy: QdqPolicy,
    best: Trial,
    measure: Measure,
    roomy: Sequence[Contender],
) -> tuple[Trial, Measure]:
    """The same with room in the ranges, where that costs next to nothing."""
    tight = trials.setup
    for setup, other in roomy:
        trials.setup = setup
        trial = trials.run(f"{best.candidate}, with room", method, policy)
        if _gain_db(trial, best) >= -ROOM_COST_DB:
            return trial, other
        trials.setup = tight
    return best, measure


def _rounded_weights(
    trials: _Trials, method: str, policy: QdqPolicy, best: Trial, errors: QuantizationErrors
) -> QuantizationErrors:
    """``errors``, with weights that were rounded together where that gains."""
    if trials.setup.round_weights is None:
        return errors
    rounded = trials.setup.round_weights(method, policy, errors)
    if not rounded.weights:
        return errors
    trial = trials.run(f"{best.candidate}, weights rounded together", method, policy, rounded)
    return rounded if _gain_db(trial, best) >= WEIGHTS_GAIN_DB else errors


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
        setup.plan(setup.model, policy),
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


def _is_another_plan(setup: TrialSetup, policy: QdqPolicy, candidate: QdqPolicy) -> bool:
    """Whether the candidate changes anything, and leaves something in eight bits."""
    first, second = (setup.plan(setup.model, each) for each in (policy, candidate))
    is_same = (first.activations, first.weights) == (second.activations, second.weights)
    return not is_same and bool(second.weights)


def _gain_db(trial: Trial, best: Trial) -> float:
    return _decibels(trial) - _decibels(best) if trial.sqnr_db != best.sqnr_db else 0.0


def _decibels(trial: Trial) -> float:
    return inf if trial.sqnr_db is None else trial.sqnr_db  # None: no error at all
