"""Fine-tuning in torch: the same numbers as onnxruntime, better roundings, no image used twice."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from deploykit.core.errors import DataError
from deploykit.core.specs import Preprocessing
from deploykit.graph import qdq
from deploykit.graph.qdq.plan import FP8, INT8, QdqFormat
from deploykit.heads.multiclass import MULTICLASS
from deploykit.heads.raw import HEAD as RAW
from deploykit.images import ArrayImages
from deploykit.precision.calibration.data import CalibrationData
from deploykit.precision.finetuning.distillation import distil, logits_loss, value_loss
from deploykit.precision.finetuning.judging import judged, sign_test
from deploykit.precision.finetuning.network import TorchNetwork
from deploykit.precision.finetuning.operators import UnknownOperatorError, apply
from deploykit.precision.finetuning.reconstruction import TuningFit, fit_block, reconstruct
from deploykit.precision.finetuning.state import Grid, TuningState
from deploykit.precision.finetuning.tuning_images import load_tuning_images
from tests import graphs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploykit.graph.qdq import QdqPlan

COARSE = QdqFormat("coarse", INT8.dtype, 3.0)
"""Seven numbers, so that rounding matters."""

BODY = """[stem] a = Conv <pads = [1,1,1,1], strides = [2,2]> (x, w1, b1) b = Clip (a, zero, six)
    [wide] c = Conv (b, w2) d = Clip (c, zero, six)
    [depth] e = Conv <pads = [1,1,1,1], group = 32> (d, w3, b3) f = Clip (e, zero, six)
    [project] g = Conv (f, w4, b4) h = Add (g, b)
    p = GlobalAveragePool (h) q = Flatten (p) [last] y = Gemm <transB = 1> (q, w5, b5)"""

WEIGHTS = {
    "zero": np.array(0, np.float32),
    "six": np.array(6, np.float32),
    "w1": graphs.normal(16, 3, 3, 3, seed=1, scale=0.3),
    "b1": graphs.normal(16, seed=2),
    "w2": graphs.normal(32, 16, 1, 1, seed=3, scale=0.4),
    "w3": graphs.normal(32, 1, 3, 3, seed=4, scale=0.4),
    "b3": graphs.normal(32, seed=5),
    "w4": graphs.normal(16, 32, 1, 1, seed=6, scale=0.3),
    "b4": graphs.normal(16, seed=7),
    "w5": graphs.normal(16, 16, seed=8, scale=0.3),
    "b5": graphs.normal(16, seed=9),
}


class Steps:
    """Keeps what the stage says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def update(self, done: float, total: float | None = None, detail: str = "") -> None:
        self.said.append(detail)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The other core belongs to the other worker."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> ir.Model:
    return graphs.model_of(BODY, ("n,3,8,8", "n,16"), WEIGHTS)


def ranges(model: ir.Model, images: np.ndarray) -> dict[str, float]:
    split, names = graphs.expose_outputs(model)
    found = graphs.run_ort(split, {"x": images})
    largest = {name: float(np.abs(found[name]).max()) for name in names}
    return {"x": float(np.abs(images).max()), **largest}


def images_of(count: int, seed: int) -> np.ndarray:
    return graphs.normal(count, 3, 8, 8, seed=seed)


def started(model: ir.Model, plan: QdqPlan) -> tuple[TorchNetwork, TuningState, dict[str, float]]:
    amax = ranges(model, images_of(32, 20))
    return TorchNetwork(model, plan), TuningState.of(model, plan, amax, {}, {}), amax


# --- the network in torch


@pytest.mark.parametrize("place", [qdq.plan_qdq, qdq.plan_fp8], ids=["INT8", "FP8"])
def test_torch_computes_what_onnxruntime_does(model: ir.Model, place: Any) -> None:
    plan = place(model, qdq.QdqPolicy())
    network, state, amax = started(model, plan)
    images = images_of(8, 21)
    given = torch.from_numpy(images)
    exact = graphs.run_ort(graphs.expose_outputs(model)[0], {"x": images})["y"]
    np.testing.assert_allclose(network.whole(given).numpy(), exact, rtol=1e-4, atol=1e-5)
    narrow = graphs.run_ort(qdq.trial_graph(model, plan, amax, {}), {"x": images})["y"]
    with torch.no_grad():
        found = network.whole(given, state.narrow()).numpy()
    # A value that lies between two steps may fall to either side.
    assert qdq.sqnr_db(narrow, found) > qdq.sqnr_db(exact, narrow) + 20
    assert qdq.sqnr_db(exact, narrow) < 60


def test_blocks_end_behind_residual_additions(model: ir.Model) -> None:
    blocks = qdq.blocks_of(model, qdq.plan_qdq(model))
    assert [(block.start, block.end) for block in blocks] == [("x", "h"), ("h", "y")]
    assert sum(len(block.nodes) for block in blocks) == len(list(model.graph))


def test_gradients_of_rounding_are_those_of_lsq() -> None:
    """Against the formula of the paper, written out for each value."""
    from deploykit.precision.finetuning.network import rounded

    values = torch.tensor([0.2, 0.6, -1.4, 5.0, -9.0], requires_grad=True)
    scale = torch.tensor(1.0, requires_grad=True)
    torch.autograd.backward(rounded(values, scale, COARSE).sum())
    assert values.grad is not None
    assert scale.grad is not None
    assert values.grad.tolist() == [1, 1, 1, 0, 0]
    expected = (0 - 0.2) + (1 - 0.6) + (-1 + 1.4) + 3 - 3
    assert float(scale.grad) == pytest.approx(expected, abs=1e-6)


def test_an_operator_without_gradient_is_named() -> None:
    node = ir.Node("", "NonZero", [], name="odd")
    with pytest.raises(UnknownOperatorError, match="NonZero of node odd has no gradient here"):
        apply(node, [])
    pool = ir.Node("", "Conv", [], [ir.AttrString("auto_pad", "SAME_UPPER")], name="padded")
    weight = torch.zeros(1, 1, 3, 3)
    with pytest.raises(UnknownOperatorError, match="Conv of node padded has auto_pad SAME_UPPER"):
        apply(pool, [weight, weight])


# --- roundings


@pytest.mark.parametrize("wanted", [INT8, FP8, COARSE], ids=["INT8", "FP8", "coarse"])
def test_neighbours_are_next_to_the_exact_number(wanted: QdqFormat) -> None:
    weight = graphs.normal(4, 30, seed=3)
    grid = Grid.of(weight, 0, wanted)
    lower, upper = grid.neighbours(wanted)
    free = ~grid.is_held
    assert bool(((lower <= grid.exact) & (grid.exact <= upper))[free].all())
    nearest = torch.where(grid.exact - lower < upper - grid.exact, lower, upper)
    off = (nearest != grid.steps) & free
    assert bool((grid.exact - lower == upper - grid.exact)[off].all())
    # Each channel keeps its largest number, so that insertion finds the scale again.
    assert bool(grid.is_held.any(dim=1).all())
    found = qdq.channel_scales(grid.values.numpy(), 0, wanted)
    np.testing.assert_allclose(found, grid.scale.numpy().ravel(), rtol=1e-6)


def tiny() -> tuple[ir.Model, QdqPlan, torch.Tensor]:
    """A product of two inputs and four outputs; correlated inputs, whose roundings are exact."""
    weight = np.random.default_rng(3).uniform(-0.9, 0.9, (4, 5)).astype(np.float32) * 3
    weight[:, 0] = 3
    model = graphs.model_of("y = Gemm <transB = 1> (x, w)", ("n,5", "n,4"), {"w": weight})
    policy = qdq.QdqPolicy(min_features=1, min_channels=1)
    plan = replace(qdq.plan_qdq(model, policy), format=COARSE)
    random = np.random.default_rng(0)
    mixing = np.random.default_rng(9).normal(size=(2, 5))
    rows = random.normal(size=(256, 2)) @ mixing + 0.2 * random.normal(size=(256, 5)) + 0.5
    rows = np.clip(np.round(rows), -3, 3)
    return model, plan, torch.from_numpy(rows.astype(np.float32))


def test_roundings_are_near_the_best_of_all() -> None:
    """All roundings up and down of the four free numbers in each of four outputs."""
    model, plan, rows = tiny()
    network = TorchNetwork(model, plan)
    state = TuningState.of(model, plan, {"x": 3.0}, {}, {})
    state = replace(state, shifts={}, units={})
    wanted = network.whole(rows)
    block = network.blocks[0]
    found = fit_block(network, block, state, (rows, wanted), TuningFit(200, 64))
    weight = qdq.constants_of(model)["w"]
    values = rows.numpy()
    errors = [
        np.square(values @ (weight - np.where(ups, np.ceil(weight), np.floor(weight))).T).sum(
            axis=0
        )
        for each in itertools.product((False, True), repeat=5)
        for ups in [np.array(each)]
    ]
    best = np.min(errors, axis=0).sum()
    ours = found.grids["w"].values.numpy()
    assert (np.abs(ours - weight) < 1).all()
    np.testing.assert_array_equal(ours, np.round(ours))
    reached, plain = (
        np.square(values @ (weight - each).T).sum() for each in (ours, np.round(weight))
    )
    assert reached < 0.7 * plain
    assert reached < 1.3 * best


def test_a_block_that_does_not_gain_stays(model: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from deploykit.precision.finetuning import reconstruction

    network, state, _ = started(model, qdq.plan_qdq(model))
    monkeypatch.setattr(reconstruction, "GAIN", 1.0)
    sets = torch.from_numpy(images_of(32, 30)), torch.from_numpy(images_of(16, 31))
    found, blocks = reconstruct(network, state, sets, TuningFit(2, 16), Steps())
    assert [block.is_kept for block in blocks] == [False, False]
    assert all(found.grids[name] is grid for name, grid in state.grids.items())
    assert found.scales == state.scales


# --- the whole


def tuned(model: ir.Model) -> tuple[TuningState, TuningState, dict[str, float], list[str]]:
    network, state, amax = started(model, qdq.plan_qdq(model))
    steps = Steps()
    sets = torch.from_numpy(images_of(96, 30)), torch.from_numpy(images_of(32, 31))
    rebuilt, _ = reconstruct(network, state, sets, TuningFit(20, 16), steps)
    found, distilled = distil(network, [state, rebuilt], sets, TuningFit(60, 16), value_loss, steps)
    assert distilled.after <= min(distilled.before, distilled.reconstructed)
    return state, found, amax, steps.said


def test_what_is_written_is_nearer_to_fp32_on_other_images(model: ir.Model) -> None:
    """The graph with the fitted numbers, run by onnxruntime, on images of no earlier step."""
    _, found, amax, said = tuned(model)
    assert any(each.startswith("block 2, error") for each in said)
    assert any(each.startswith("distillation, loss") for each in said)
    plan, images = qdq.plan_qdq(model), images_of(64, 40)
    exact = graphs.run_ort(graphs.expose_outputs(model)[0], {"x": images})["y"]
    before = graphs.run_ort(qdq.trial_graph(model, plan, amax, {}), {"x": images})["y"]
    content = qdq.trial_graph(
        model, plan, found.amax(amax), found.layer_shifts({}), found.layer_weights(model, {})
    )
    after = graphs.run_ort(content, {"x": images})["y"]
    assert qdq.sqnr_db(exact, after) > qdq.sqnr_db(exact, before) + 2
    with torch.no_grad():
        network = TorchNetwork(model, plan)
        torchs = network.whole(torch.from_numpy(images), found.narrow()).numpy()
    assert qdq.sqnr_db(after, torchs) > qdq.sqnr_db(exact, after) + 10


def test_the_same_call_gives_the_same_numbers(model: ir.Model) -> None:
    _, first, amax, _ = tuned(model)
    _, second, _, _ = tuned(model)
    assert first.amax(amax) == second.amax(amax)
    left, right = (each.layer_weights(model, {}) for each in (first, second))
    assert left.keys() == right.keys()
    assert all((left[name] == right[name]).all() for name in left)
    assert left


def test_nothing_is_told_to_the_conversion_where_nothing_changed(model: ir.Model) -> None:
    _, state, amax = started(model, qdq.plan_qdq(model))
    assert state.amax(amax) == amax
    assert state.layer_weights(model, {}) == {}
    assert state.layer_shifts({}) == {}


def test_logits_lose_nothing_where_they_are_equal() -> None:
    wanted = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    assert float(logits_loss(wanted, wanted)) == pytest.approx(0, abs=1e-6)
    assert float(logits_loss(wanted * 1.1, wanted)) > 0.01


# --- who judges


def calibration(images: np.ndarray, held_out: int) -> CalibrationData:
    places = list(range(len(images)))
    look = Preprocessing(resize=(8, 8), crop=(8, 8))
    return CalibrationData(ArrayImages(images), look, places[:-held_out], 0, places[-held_out:])


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)


class Open:
    """An artifact with an open batch, as far as images are concerned."""

    class _Input:
        fixed_batch: int | None = None

    inputs = (_Input(),)


def test_an_image_is_in_one_set_only() -> None:
    """Copies of images to fit to are planted among those that judge, and found by their pixels."""
    images = pictures(120)
    images[100:104] = images[:4]
    artifact: Any = Open()
    found = load_tuning_images(calibration(images, 24), artifact)
    assert found.repeated == 4
    assert len(found.judging) == 20
    sets = [
        {each.tobytes() for each in some} for some in (found.fitted, found.stopping, found.judging)
    ]
    assert [len(each) for each in sets] == [77, 19, 20]
    assert all(left.isdisjoint(right) for left, right in itertools.combinations(sets, 2))


def test_too_few_different_judges_are_refused() -> None:
    images = pictures(100)
    images[80:] = images[:20]
    artifact: Any = Open()
    with pytest.raises(DataError, match=r"0 different images to judge by, of 100 .*20 were there"):
        load_tuning_images(calibration(images, 20), artifact)


def test_chance_is_that_of_a_fair_coin() -> None:
    """Against counting all sequences of heads and tails."""
    for nearer, further in ((0, 0), (3, 1), (5, 0), (2, 6)):
        total = nearer + further
        flips = list(itertools.product((0, 1), repeat=total))
        share = sum(sum(each) >= nearer for each in flips) / len(flips)
        assert sign_test(nearer, further) == pytest.approx(share)


def test_more_equal_answers_beyond_chance_are_kept() -> None:
    exact = np.asarray(5 * np.eye(10)[np.arange(40) % 10], np.float32)
    wrong = np.roll(exact, 1, axis=1)
    before = np.concatenate([wrong[:6], exact[6:]])
    assert judged(MULTICLASS, exact, before, exact).is_kept
    verdict = judged(MULTICLASS, exact, np.concatenate([wrong[:4], exact[4:]]), exact)
    assert verdict.own.chance == pytest.approx(1 / 16)
    assert not verdict.is_kept
    assert verdict.to_dict()["agreement_before"] == pytest.approx(0.9)


def test_nearer_outputs_count_only_where_no_more_answers_change() -> None:
    exact = np.asarray(5 * np.eye(10)[np.arange(40) % 10], np.float32)
    noise = graphs.normal(40, 10, seed=1)
    before = np.asarray(exact + 0.5 * noise, np.float32)
    after = np.asarray(exact + 0.1 * noise, np.float32)
    assert judged(MULTICLASS, exact, before, after).is_kept
    after[0] = np.roll(exact[0], 1)
    worse = judged(MULTICLASS, exact, before, after)
    assert worse.own.further == 1
    assert not worse.is_kept


def test_other_heads_are_judged_by_their_own_measure() -> None:
    exact = graphs.normal(30, 2, 3, seed=2)
    noise = graphs.normal(30, 2, 3, seed=3)
    verdict = judged(RAW, exact, exact + np.float32(0.2) * noise, exact + np.float32(0.1) * noise)
    assert verdict.own.measure == verdict.distance.measure == "error"
    assert verdict.is_kept
    assert "agreement_before" not in verdict.to_dict()
    assert not judged(
        RAW, exact, exact + np.float32(0.1) * noise, exact + np.float32(0.1) * noise
    ).is_kept
