"""INT8 of networks with several outputs is chosen by the noisiest; the figures are numpy's."""

from __future__ import annotations

from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.backends import GraphOptions
from deploykit.backends.ort import OrtRunner
from deploykit.comparison.reference import Runners
from deploykit.core.errors import ValidationError
from deploykit.graph import qdq, read_model, tidy
from deploykit.graph.external_weights import split
from deploykit.heads.multiclass import MULTICLASS
from deploykit.heads.raw import RAW
from deploykit.precision.calibration.table import CalibrationKey, CalibrationTable
from deploykit.precision.quantization.choice import TrialSetup
from deploykit.precision.quantization.noise import judged_answers, measure_gains, worst_sqnr_db
from tests.graphs import expose_outputs, graph, normal, run_ort, save

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

    from tests.graphs import Array

NETWORK = """net (float[N, 3, 8, 8] x) => (
    float[N, 20] calm, float[N, 20] loud, int64[N, 1] best, float total, float[N, 16, 64] map
) {
    [conv] a = Conv <pads = [1,1,1,1]> (x, w1)
    [relu] b = Relu (a)
    [pool] p = GlobalAveragePool (b)
    [flat] f = Flatten (p)
    [calm] calm = Gemm <transB = 1> (f, w2)
    [spread] s = Mul (f, wide)
    [loud] loud = Gemm <transB = 1> (s, w3)
    [best] best = ArgMax <axis = 1> (calm)
    [total] total = ReduceMax <keepdims = 0> (loud)
    [maps] m = Conv (b, w4)
    shape = Constant <value_ints = [0, 16, 64]> ()
    [map] map = Reshape (m, shape)
}"""
FLOATS = ("calm", "loud", "map")
judge = partial(OrtRunner, options=GraphOptions(optimise=False, threads=1))


def images(count: int = 6) -> Array:
    return normal(count, 3, 8, 8, seed=9)


def given(folder: Path) -> tuple[ir.Model, dict[str, Array], CalibrationTable]:
    """The network, all of its values for `images`, and their ranges.

    One channel before ``loud`` is a hundred times the others: INT8 leaves these no steps.
    """
    wide = np.ones((1, 16), np.float32)
    wide[0, 3] = 100
    weights = {
        "w1": normal(16, 3, 3, 3, seed=1),
        "w2": normal(20, 16, seed=3),
        "w3": normal(20, 16, seed=4) / wide,
        "w4": normal(16, 16, 1, 1, seed=5),
        "wide": wide,
    }
    model = read_model(save(graph(NETWORK, weights), folder / "net.onnx"))
    tidy(model, rename=False)
    exposed, _ = expose_outputs(model)
    values = {"x": images(), **run_ort(exposed, {"x": images()})}
    plan = qdq.plan_qdq(model, qdq.QdqPolicy())
    ranges = {name: {"max": float(np.abs(values[name]).max())} for name in plan.tensors}
    return model, values, CalibrationTable(CalibrationKey("m", "d", {}, {}), 8, (), ranges, "")


def decibels(wanted: Array, found: Array) -> float:
    exact, other = wanted.astype(np.float64), found.astype(np.float64)
    return float(10 * np.log10(np.sum(exact**2) / np.sum((exact - other) ** 2)))


def test_floats_of_images_are_what_choices_go_by(tmp_path: Path) -> None:
    model, values, _ = given(tmp_path)
    with judge(split(model, "net")) as runner:
        answers = judged_answers(runner, [images()[:2], images()[2:]], RAW)
        alone = judged_answers(runner, [images()], MULTICLASS)
    assert tuple(answers[0]) == FLOATS
    assert tuple(alone[0]) == ("calm",)
    for name in FLOATS:
        together = np.concatenate([one[name] for one in answers])
        np.testing.assert_allclose(together, values[name], rtol=1e-4, atol=1e-5)


def test_a_trial_gives_the_noisiest_output(tmp_path: Path) -> None:
    model, values, table = given(tmp_path)
    plan = qdq.plan_qdq(model, qdq.QdqPolicy())
    with judge(qdq.trial_graph(model, plan, table.select_trial("max"), {})) as runner:
        found = runner.run({"x": images()})
    ratios = {name: decibels(values[name], found[name]) for name in FLOATS}
    assert min(ratios, key=lambda name: ratios[name]) == "loud"
    assert ratios["calm"] > ratios["loud"] + 6
    for head, judged in ((RAW, FLOATS), (MULTICLASS, ("calm",))):
        batches = [images()[:2], images()[2:]]
        with judge(split(model, "net")) as runner:
            expected = judged_answers(runner, batches, head)
        setup = TrialSetup(model, table, batches, expected, Runners(), head=head)
        trial = setup.run_trial("max", "max", qdq.QdqPolicy())
        assert trial.sqnr_db == pytest.approx(min(ratios[name] for name in judged), abs=0.01)


def test_a_layer_gains_what_the_noisiest_output_gains(tmp_path: Path) -> None:
    model, values, table = given(tmp_path)
    plan, amax = qdq.plan_qdq(model, qdq.QdqPolicy()), table.select_trial("max")
    layers = [weight.node for weight in plan.weights]
    assert {"loud", "calm"} <= set(layers)

    def worst(*left_out: str) -> float:
        switches = np.array([layer in left_out for layer in layers])
        (part,) = qdq.switchable_parts(model, plan, amax)
        found = run_ort(part.graph, {"x": images(), qdq.SWITCHES: switches})
        return min(decibels(values[name], found[name]) for name in FLOATS)

    expected = [{name: values[name] for name in FLOATS}]
    task: Any = type("Task", (), {"update": lambda *_: None})()
    gains = measure_gains(model, plan, amax, ([images()], expected), open_runner=judge, task=task)
    for layer, gain in gains.items():
        assert gain == pytest.approx(worst(layer) - worst(), abs=0.02)
    assert gains["loud"] > 1
    assert abs(gains["calm"]) < 0.01  # its own output has less noise than another


def test_an_output_of_zeros_has_no_signal() -> None:
    zero, other = np.zeros((2, 3), np.float32), normal(2, 3)
    found = [{"a": zero + 1, "b": other * np.float32(1.1)}]
    assert worst_sqnr_db([{"a": zero, "b": other}], found) == pytest.approx(20.0, abs=0.01)
    assert worst_sqnr_db([{"a": zero}], found) == -inf
    assert worst_sqnr_db([{"a": zero, "b": other}], [{"a": zero, "b": other}]) == inf


def test_an_output_whose_size_depends_on_its_values() -> None:
    with pytest.raises(
        ValidationError, match=r"'b' has shape \(2, 5\) in INT8, \(2, 3\) in FP32\nits size depends"
    ):
        worst_sqnr_db([{"b": normal(2, 3)}], [{"b": normal(2, 5)}])
