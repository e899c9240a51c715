"""Weights rounded together: on the format's grid, with less error than the nearest numbers."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from deploykit.backends import GraphOptions
from deploykit.backends.ort import OrtRunner
from deploykit.core.precision import Precision
from deploykit.graph import LoadedGraph, write_model
from deploykit.graph.qdq import insert_qdq, plan_qdq, set_weights
from deploykit.graph.qdq.plan import FP8, INT8, QdqFormat
from deploykit.precision.quantization import weight_rounding
from deploykit.precision.quantization.conversion import QuantizationErrors
from deploykit.precision.quantization.weight_rounding import (
    Moments,
    RoundedWeights,
    round_together,
    round_weights,
    with_rounded_weights,
)
from tests import graphs

if TYPE_CHECKING:
    from pathlib import Path

CHANNELS, COLUMNS = 24, 8


def correlated(rows: int, channels: int = CHANNELS, seed: int = 0) -> np.ndarray:
    """Rows whose channels follow a few factors, as tokens do."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).normal(size=(4, channels))
    factors, own = random.normal(size=(rows, 4)), random.normal(size=(rows, channels))
    return (factors @ mixing + 0.3 * own + 0.5).astype(np.float32)


def numbers(values: object) -> np.ndarray:
    return np.array(values, np.float32)


def nearest(values: np.ndarray, scale: np.ndarray | float, wanted: QdqFormat) -> np.ndarray:
    steps = np.clip(values / scale, -wanted.largest, wanted.largest)
    if wanted is FP8:
        return steps.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
    return np.round(steps) * scale


def moments_of(rows: np.ndarray, rounded: np.ndarray) -> Moments:
    found = Moments.of(rows.shape[1])
    for part in np.array_split(np.arange(len(rows)), 5):
        found.add(rows[part], rounded[part])
    return found


@pytest.mark.parametrize("wanted", [INT8, FP8], ids=["INT8", "FP8"])
def test_fresh_rows_lose_less_and_the_scale_is_found_again(wanted: QdqFormat) -> None:
    weight = np.random.default_rng(1).normal(size=(CHANNELS, COLUMNS)).astype(np.float32)
    rows, fresh = correlated(600), correlated(600, seed=5)
    scale = float(np.abs(rows).max() / wanted.largest)
    found = round_together(weight, moments_of(rows, nearest(rows, scale, wanted)), wanted)
    scales = np.abs(found).max(axis=0) / wanted.largest
    np.testing.assert_allclose(nearest(found, scales, wanted), found, rtol=1e-5, atol=1e-7)
    plain = nearest(weight, np.abs(weight).max(axis=0) / wanted.largest, wanted)
    read = nearest(fresh, scale, wanted)
    exact = fresh @ weight
    before, after = (np.square(exact - read @ each).sum() for each in (plain, found))
    assert after < (0.75 if wanted is FP8 else 0.9) * before


def test_it_is_near_the_best_of_all_roundings() -> None:
    """Against all roundings up and down of five numbers in each of 40 columns."""
    coarse = QdqFormat("coarse", INT8.dtype, 3.0)
    rows = correlated(200, 5)
    weight = np.random.default_rng(3).uniform(-3, 3, (5, 40)).astype(np.float32)
    weight *= 3 / np.abs(weight).max(axis=0)
    found = round_together(weight, moments_of(rows, rows), coarse)
    errors = [
        np.square(rows @ (weight - np.where(ups, np.ceil(weight), np.floor(weight)))).sum(axis=0)
        for each in itertools.product((False, True), repeat=5)
        for ups in [np.array(each)[:, None]]
    ]
    best = np.min(errors, axis=0).sum()
    ours, plain = (np.square(rows @ (weight - each)).sum() for each in (found, np.round(weight)))
    assert ours < plain
    assert ours < 2 * best


def test_what_no_row_showed_stays_near() -> None:
    rows = correlated(100)
    rows[:, 3] = 0
    weight = np.random.default_rng(2).normal(size=(CHANNELS, COLUMNS)).astype(np.float32)
    found = round_together(weight, moments_of(rows, rows), INT8)
    step = np.abs(weight).max(axis=0) * 1.5 / 127
    assert (np.abs(found[3] - weight[3]) <= step).all()


def test_zeros_stay_zeros() -> None:
    zeros = np.zeros((CHANNELS, COLUMNS), np.float32)
    rows = np.zeros((10, CHANNELS), np.float32)
    assert not round_together(zeros, moments_of(rows, rows), FP8).any()


def test_biases_give_back_what_the_rounded_weights_lack() -> None:
    errors = QuantizationErrors({"gemm": numbers([1]), "conv": numbers([2])}, {"x": 30.0})
    rounded = RoundedWeights(
        {"gemm": numbers([[5]]), "matmul": numbers([[6]])},
        {"gemm": numbers([0.1]), "matmul": numbers([0.2])},
    )
    found = with_rounded_weights(errors, rounded)
    assert {name: float(each[0]) for name, each in found.shifts.items()} == {
        "gemm": pytest.approx(0.1),
        "conv": 2,
    }
    assert set(found.weights) == {"gemm", "matmul"}
    assert found.activation_sqnr_db == {"x": 30.0}


BODY = """t = Neg (x) [q] q = MatMul (t, w)
    h = Relu (q) [down] y0 = MatMul (h, v) f = Reshape (y0, flat)
    [last] y = Gemm <transB = 1> (f, u, b)"""


def network() -> ir.Model:
    random = np.random.default_rng(7)
    constants = {
        "w": random.normal(size=(CHANNELS, 32)).astype(np.float32),
        "v": random.normal(size=(32, CHANNELS)).astype(np.float32),
        "u": random.normal(size=(16, 3 * CHANNELS)).astype(np.float32),
        "b": random.normal(size=16).astype(np.float32),
        "flat": np.array([0, -1]),
    }
    return graphs.model_of(BODY, (f"n,3,{CHANNELS}", "n,16"), constants)


class Silent:
    def update(self, done: float, total: float | None = None, detail: str = "") -> None:
        pass


def found_on(model: ir.Model, images: int, folder: Path) -> RoundedWeights:
    loaded = LoadedGraph(write_model(model, folder / "net.onnx", Precision.FP32), model)
    plan = plan_qdq(model)
    batches = [correlated(3, seed=seed)[None] for seed in range(images)]
    return round_weights(
        loaded, plan, dict.fromkeys(plan.tensors, 12.0), batches,
        open_runner=lambda graph: OrtRunner(graph, GraphOptions()), task=Silent(),
    )  # fmt: skip


def test_layers_of_tokens_are_rounded_and_the_network_loses_less(tmp_path: Path) -> None:
    model = network()
    found = found_on(model, 60, tmp_path)
    assert set(found.weights) == {"q", "down"}, "the last layer has one row for an image"
    plan = plan_qdq(model)
    amax = dict.fromkeys(plan.tensors, 12.0)
    fresh = correlated(300, seed=99).reshape(100, 3, CHANNELS)
    exact = graphs.run_ort(ir.to_proto(model), {"x": fresh})["y"]
    only = replace(plan, activations={})
    noise = []
    for made in (model, set_weights(model, found.weights)):
        got = graphs.run_ort(ir.to_proto(insert_qdq(made, only, amax)), {"x": fresh})["y"]
        noise.append(np.square(exact - got).sum())
    assert noise[1] < noise[0]
    (layer,) = [n for n in set_weights(model, found.weights).graph if n.name == "q"]
    weight = layer.inputs[1]
    assert weight is not None and weight.const_value is not None  # noqa: PT018
    np.testing.assert_array_equal(weight.const_value.numpy(), found.weights["q"])


def test_too_few_rows_change_nothing(tmp_path: Path) -> None:
    assert found_on(network(), 5, tmp_path).weights == {}


def test_more_moments_than_fit_take_more_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    whole = found_on(model, 40, tmp_path)
    monkeypatch.setattr(weight_rounding, "PASS_BYTES", 1)
    apart = found_on(model, 40, tmp_path)
    assert set(apart.weights) == set(whole.weights)
    for name, weight in whole.weights.items():
        np.testing.assert_array_equal(apart.weights[name], weight)
