"""The choices of an INT8 export from scripted trials: which one wins, and by how much it must."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, nextafter
from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.backends import GraphOptions
from deploykit.backends.ort import OrtRunner
from deploykit.comparison.reference import Runners
from deploykit.graph import qdq, read_model, tidy
from deploykit.precision.calibration.table import CalibrationKey, CalibrationTable
from deploykit.precision.quantization.choice import (
    FIRST_LAYER_GAIN_DB,
    LAYERS_GAIN_DB,
    LAYERS_SHARE,
    RESIDUAL_GAIN_DB,
    Choice,
    Int8Choices,
    Trial,
    TrialSetup,
    choose,
    most_sensitive,
)
from deploykit.precision.quantization.conversion import QuantizationErrors
from tests.graphs import expose_outputs, graph, normal, run_ort, save

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx_ir as ir

    from deploykit.graph.qdq import QdqPolicy

METHODS = ("max", "percentile", "entropy", "mse")
NETWORK = """net (float[N, 3, 8, 8] x) => (float[N, 20] logits) {
    [first] a = Conv <pads = [1,1,1,1]> (x, w1)
    [relu] b = Relu (a)
    [second] c = Conv <pads = [1,1,1,1]> (b, w2)
    [add] d = Add (c, b)
    [pool] p = GlobalAveragePool (d)
    [flat] f = Flatten (p)
    [last] logits = Gemm <transB = 1> (f, w3)
}"""
WEIGHTS = {
    "w1": normal(16, 3, 3, 3, seed=1),
    "w2": normal(16, 16, 3, 3, seed=2),
    "w3": normal(20, 16, seed=3),
}
FIXED = Int8Choices("max", "int8", "int8", "int8", "off")
"""Nothing is left to be tried but the method itself."""


class Steps:
    """Keeps what the stage says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def update(self, done: float, total: float | None = None, detail: str = "") -> None:
        self.said.append(detail)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    path = tmp_path_factory.mktemp("choice") / "net.onnx"
    read = read_model(save(graph(NETWORK, WEIGHTS), path))
    tidy(read, rename=False)
    return read


def key() -> CalibrationKey:
    return CalibrationKey("m", "d", {}, {})


def table(amax: Mapping[str, float] | None = None) -> CalibrationTable:
    """The same ranges by every method."""
    ranges = {name: dict.fromkeys(METHODS, value) for name, value in (amax or {}).items()}
    return CalibrationTable(key(), 8, (), ranges, "2026-01-01")


@dataclass(frozen=True)
class Scripted(TrialSetup):
    """Trials that find what the test says: the ratio in dB by what is kept of a method.

    ``found`` is by the end of the candidate's name, ``None`` for a candidate without any error.
    """

    found: Mapping[str, float | None] = field(default_factory=dict)

    def run_trial(
        self,
        candidate: str,
        method: str,
        policy: QdqPolicy,
        errors: QuantizationErrors | None = None,
    ) -> Trial:
        return Trial(candidate, 0.0, 1.0, self.found[candidate.rpartition(", ")[2]])


def decide(
    model: ir.Model, found: Mapping[str, float | None], int8_choices: Int8Choices, steps: Steps
) -> Choice:
    setup = Scripted(model, table(), [], [], Runners(), found=found)
    measure_calls: list[str] = []

    def measure(method: str, policy: QdqPolicy) -> QuantizationErrors:
        measure_calls.append(method)
        return QuantizationErrors({"first": np.ones(16, np.float32)}, {"x": 30.0})

    choice = choose(setup, int8_choices, qdq.QdqPolicy(), measure, steps)
    assert measure_calls == ([] if int8_choices.bias_correction == "off" else [choice.method])
    return choice


# --- the method


@pytest.mark.parametrize("best", METHODS)
def test_the_method_with_the_least_noise_wins(model: ir.Model, best: str) -> None:
    found = {method: 30.0 + (method == best) for method in METHODS}
    int8_choices = Int8Choices("auto", "int8", "int8", "int8", "off")
    choice = decide(model, found, int8_choices, Steps())
    assert choice.method == best
    assert [trial.candidate for trial in choice.trials] == list(METHODS)


def test_of_equal_methods_the_first_wins(model: ir.Model) -> None:
    int8_choices = Int8Choices("auto", "int8", "int8", "int8", "off")
    assert decide(model, dict.fromkeys(METHODS, 30.0), int8_choices, Steps()).method == METHODS[0]


def test_no_error_at_all_beats_every_ratio(model: ir.Model) -> None:
    int8_choices = Int8Choices("auto", "int8", "int8", "int8", "off")
    found: dict[str, float | None] = {**dict.fromkeys(METHODS, 150.0), "entropy": None}
    assert decide(model, found, int8_choices, Steps()).method == "entropy"


def test_a_method_that_was_fixed_is_the_only_one(model: ir.Model) -> None:
    steps = Steps()
    choice = decide(model, {"mse": 20.0}, Int8Choices("mse", "int8", "int8", "int8", "off"), steps)
    assert (choice.method, len(choice.trials)) == ("mse", 1)
    assert steps.said == ["mse"]
    assert choice.policy == qdq.QdqPolicy()
    assert choice.errors == QuantizationErrors()


# --- what is kept out of INT8


@pytest.mark.parametrize(
    ("kept", "int8_choices", "needed"),
    [
        ("residual", Int8Choices("max", "int8", "auto", "int8", "off"), RESIDUAL_GAIN_DB),
        ("first_layer", Int8Choices("max", "auto", "int8", "int8", "off"), FIRST_LAYER_GAIN_DB),
    ],
)
@pytest.mark.parametrize("is_enough", [True, False])
def test_what_is_kept_must_give_its_gain(
    model: ir.Model, kept: str, int8_choices: Int8Choices, needed: float, is_enough: bool
) -> None:
    gained = needed if is_enough else nextafter(needed, 0.0)
    name = {"residual": "skips kept", "first_layer": "first layer kept"}[kept]
    # Zero and the gain, so that the difference is the gain to the last bit.
    choice = decide(model, {"max": 0.0, name: gained}, int8_choices, Steps())
    assert getattr(choice.policy, kept) == ("keep" if is_enough else "int8")
    assert [trial.candidate for trial in choice.trials] == ["max", f"max, {name}"]


def test_a_gain_counts_from_what_was_kept_before(model: ir.Model) -> None:
    int8_choices = Int8Choices("max", "auto", "auto", "int8", "off")
    found = {"max": 0.0, "skips kept": 2.0, "first layer kept": 2.0 + FIRST_LAYER_GAIN_DB - 0.01}
    choice = decide(model, found, int8_choices, Steps())
    assert (choice.policy.residual, choice.policy.first_layer) == ("keep", "int8")
    assert choice.trials[-1].candidate == "max, skips kept, first layer kept"


@pytest.mark.parametrize("wish", ["int8", "keep"])
def test_what_was_fixed_is_not_tried(model: ir.Model, wish: str) -> None:
    choice = decide(model, {"max": 0.0}, Int8Choices("max", wish, wish, "int8", "off"), Steps())
    assert len(choice.trials) == 1


def test_a_candidate_that_changes_nothing_is_not_tried(tmp_path: Path) -> None:
    """There is no residual addition in it."""
    text = NETWORK.replace("[add] d = Add (c, b)", "[add] d = Relu (c)")
    path = save(graph(text, WEIGHTS), tmp_path / "plain.onnx")
    int8_choices = Int8Choices("max", "int8", "auto", "int8", "off")
    choice = decide(read_model(path), {"max": 0.0}, int8_choices, Steps())
    assert [trial.candidate for trial in choice.trials] == ["max"]


def test_a_candidate_that_leaves_nothing_in_int8_is_not_tried(tmp_path: Path) -> None:
    text = """net (float[N, 3, 8, 8] x) => (float[N, 16, 8, 8] y) {
        [only] y = Conv <pads = [1,1,1,1]> (x, w1)
    }"""
    path = save(graph(text, {"w1": WEIGHTS["w1"]}), tmp_path / "one.onnx")
    int8_choices = Int8Choices("max", "auto", "int8", "int8", "off")
    choice = decide(read_model(path), {"max": 0.0}, int8_choices, Steps())
    assert [trial.candidate for trial in choice.trials] == ["max"]


# --- biases


@pytest.mark.parametrize(
    ("wish", "gained", "is_corrected"),
    [("auto", 0.1, True), ("auto", 0.0, False), ("auto", -1.0, False), ("on", -1.0, True)],
)
def test_biases_are_corrected_where_that_helps_or_was_asked(
    model: ir.Model, wish: str, gained: float, is_corrected: bool
) -> None:
    found = {"max": 0.0, "biases corrected": gained}
    choice = decide(model, found, Int8Choices("max", "int8", "int8", "int8", wish), Steps())
    assert set(choice.errors.shifts) == ({"first"} if is_corrected else set())
    assert choice.errors.activation_sqnr_db == {"x": 30.0}  # the figures are kept either way
    assert choice.trials[-1].candidate == "max, biases corrected"


def test_two_trials_without_any_error_gain_nothing(model: ir.Model) -> None:
    found = {"max": None, "biases corrected": None}
    choice = decide(model, found, Int8Choices("max", "int8", "int8", "int8", "auto"), Steps())
    assert choice.errors.shifts == {}


# --- sensitive layers


def test_layers_are_taken_by_gain_for_each_multiply_add() -> None:
    """``b`` gains most, ``a`` most for what it costs; there is room for one of them."""
    gains = {"a": 2.0, "b": 3.0, "c": 1.0}
    costs = {"a": 6, "b": 12, "c": 12, "rest": 66}
    assert sum(costs.values()) * LAYERS_SHARE == 12
    assert most_sensitive(gains, costs) == ("a",)
    assert most_sensitive({"b": 3.0, "c": 1.0}, costs) == ("b",)


def test_a_layer_may_have_the_whole_share_and_no_more() -> None:
    assert most_sensitive({"a": 1.0}, {"a": 1, "rest": 7}) == ("a",)
    assert most_sensitive({"a": 1.0}, {"a": 1001, "rest": 7000}) == ()


def test_a_smaller_layer_fits_behind_one_that_does_not() -> None:
    gains, costs = {"large": 40.0, "small": 0.1}, {"large": 20, "small": 10, "rest": 70}
    assert most_sensitive(gains, costs) == ("small",)


@pytest.mark.parametrize("gain", [0.0, -1.0])
def test_a_layer_that_gains_nothing_is_never_taken(gain: float) -> None:
    assert most_sensitive({"a": gain, "b": inf}, {"a": 1, "b": 1, "rest": 98}) == ("b",)
    assert most_sensitive({"a": gain}, {"a": 1, "rest": 99}) == ()


def images() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return normal(6, 3, 8, 8, seed=9)


def probing(
    model: ir.Model, found: Mapping[str, float | None], costs: Mapping[str, int]
) -> Scripted:
    """Trials that do measure what each layer gains."""
    plan = qdq.plan_qdq(model, qdq.QdqPolicy())
    exposed, _ = expose_outputs(model)
    values = {"x": images(), **run_ort(exposed, {"x": images()})}
    amax = {name: float(np.abs(values[name]).max()) for name in plan.tensors}
    probed = ([images()], [{"logits": values["logits"]}])
    return Scripted(model, table(amax), [], [], Runners(), probed, costs, found=found)


@pytest.mark.parametrize("is_enough", [True, False])
def test_sensitive_layers_must_give_their_gain_together(model: ir.Model, is_enough: bool) -> None:
    gained = LAYERS_GAIN_DB if is_enough else nextafter(LAYERS_GAIN_DB, 0.0)
    setup = probing(
        model,
        {"max": 0.0, "a sensitive layer kept": gained},
        {"first": 10, "second": 1000, "last": 1000},
    )
    int8_choices = Int8Choices("max", "int8", "int8", "auto", "off")
    steps = Steps()
    choice = choose(setup, int8_choices, qdq.QdqPolicy(), lambda *_: QuantizationErrors(), steps)
    assert choice.policy.sensitive == (("first",) if is_enough else ())
    assert choice.trials[-1].candidate == "max, a sensitive layer kept"
    assert steps.said.count("noise of each layer") == 3


def test_layers_are_not_measured_where_int8_was_asked(model: ir.Model) -> None:
    setup = probing(model, {"max": 0.0}, {"first": 10, "second": 1000, "last": 1000})
    steps = Steps()
    choose(setup, FIXED, qdq.QdqPolicy(), lambda *_: QuantizationErrors(), steps)
    assert steps.said == ["max"]


# --- a trial on real values


def test_a_trial_measures_the_logits_of_the_quantized_graph(model: ir.Model) -> None:
    """Against numpy, from what onnxruntime computes of the same Q/DQ graph."""
    setup = probing(model, {}, {})
    exact = setup.probed[1] if setup.probed else ()
    trials = TrialSetup(model, setup.table, [images()[:2], images()[2:]], exact, Runners())
    trial = trials.run_trial("max", "max", qdq.QdqPolicy())
    plan = qdq.plan_qdq(model, qdq.QdqPolicy())
    content = qdq.trial_graph(model, plan, setup.table.select_trial("max"), {})
    with OrtRunner(content, GraphOptions(optimise=False)) as runner:
        found = runner.run({"x": images()})["logits"].astype(np.float64)
    wanted = exact[0]["logits"].astype(np.float64)
    noise = 10 * np.log10(np.sum(wanted**2) / np.sum((wanted - found) ** 2))
    assert trial.candidate == "max"
    assert trial.sqnr_db == pytest.approx(float(noise), abs=0.01)
    assert trial.agreement == np.mean(found.argmax(1) == wanted.argmax(1))
    chances = [np.exp(row - row.max(1, keepdims=True)) for row in (wanted, found)]
    true, other = (part / part.sum(1, keepdims=True) for part in chances)
    assert trial.mean_kl == pytest.approx(float((true * np.log(true / other)).sum(1).mean()), 1e-4)
    assert 10 < noise < 80


def test_a_trial_without_any_error_has_no_ratio(model: ir.Model) -> None:
    setup = probing(model, {}, {})
    black = np.zeros((2, 3, 8, 8), np.float32)
    trials = TrialSetup(
        model, setup.table, [black], [{"logits": np.zeros((2, 20), np.float32)}], Runners()
    )
    trial = trials.run_trial("max", "max", qdq.QdqPolicy())
    assert (trial.sqnr_db, trial.agreement, trial.mean_kl) == (None, 1.0, 0.0)


# --- equalised channels


@pytest.mark.parametrize(("gain", "wins"), [(0.4, False), (0.5, True), (8.0, True)])
def test_equalisation_is_kept_where_it_pays(model: ir.Model, gain: float, *, wins: bool) -> None:
    found = {"max": 20.0, "equalised": 20.0 + gain}
    asked: list[str] = []

    def measure_of(name: str) -> QuantizationErrors:
        asked.append(name)
        return QuantizationErrors()

    int8_choices = Int8Choices("max", "int8", "int8", "int8", "on")
    other = Scripted(model, table(), [], [], Runners(), found={**found, "biases corrected": 40.0})
    plain = Scripted(model, table(), [], [], Runners(), found={**found, "biases corrected": 21.0})
    choice = choose(
        plain,
        int8_choices,
        qdq.QdqPolicy(),
        lambda *_: measure_of("plain"),
        Steps(),
        [(other, lambda *_: measure_of("equalised"))],
    )
    assert (choice.equalised, choice.has_room) == (wins, False)
    assert asked == ["equalised" if wins else "plain"]
    assert [trial.candidate for trial in choice.trials][:2] == ["max", "max, equalised"]
    assert choice.trials[-1].sqnr_db == (40.0 if wins else 21.0)


@pytest.mark.parametrize(
    ("gain", "cost", "wins"), [(8, 0.5, True), (8, 0.75, False), (8, -1, True), (0.25, -1, False)]
)
def test_room_is_kept_where_it_costs_little(
    model: ir.Model, gain: float, cost: float, *, wins: bool
) -> None:
    found = {"max": 0.0, "equalised": gain, "with room": gain - cost}
    contenders = [
        (
            Scripted(model, table(), [], [], Runners(), found={**found, "biases corrected": last}),
            lambda *_, name=name: QuantizationErrors({name: np.ones(1, np.float32)}),
        )
        for name, last in (("plain", 20.0), ("equalised", 21.0), ("with room", 22.0))
    ]
    (plain, measure), *others = contenders
    int8_choices = Int8Choices("max", "int8", "int8", "int8", "on")
    choice = choose(plain, int8_choices, qdq.QdqPolicy(), measure, Steps(), others)
    used = "with room" if wins else "equalised" if gain > 1 else "plain"
    assert (choice.equalised, choice.has_room) == (used != "plain", wins)
    assert set(choice.errors.shifts) == {used}
    names = ["max", "max, equalised", "max, equalised, with room"][: 2 + (gain > 1)]
    assert [trial.candidate for trial in choice.trials][:-1] == names
    wanted = {"plain": 20.0, "equalised": 21.0, "with room": 22.0}
    assert choice.trials[-1].sqnr_db == wanted[used]


@pytest.mark.parametrize(("gained", "wins"), [(0.1, False), (0.3, True), (-1.0, False)])
def test_weights_rounded_together_must_gain(model: ir.Model, gained: float, wins: bool) -> None:
    found = {"max": 20.0, "weights rounded together": 20.0 + gained}
    weights = {"fc": np.ones((2, 2), np.float32)}
    setup = Scripted(
        model, table(), [], [], Runners(), found=found,
        round_weights=lambda *_: QuantizationErrors(weights=weights),
    )  # fmt: skip
    int8_choices = Int8Choices("max", "int8", "int8", "int8", "off")
    choice = choose(setup, int8_choices, qdq.QdqPolicy(), lambda *_: QuantizationErrors(), Steps())
    assert (choice.errors.weights == weights) is wins
    assert choice.trials[-1].candidate == "max, weights rounded together"


def test_without_weights_to_round_there_is_no_trial(model: ir.Model) -> None:
    setup = Scripted(
        model, table(), [], [], Runners(), found={"max": 20.0},
        round_weights=lambda *_: QuantizationErrors(),
    )  # fmt: skip
    int8_choices = Int8Choices("max", "int8", "int8", "int8", "off")
    choice = choose(setup, int8_choices, qdq.QdqPolicy(), lambda *_: QuantizationErrors(), Steps())
    assert [trial.candidate for trial in choice.trials] == ["max"]
