"""Taking layers out of INT8 one by one, against graphs that were made for each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import helper

from deploykit.backends import GraphOptions
from deploykit.backends.ort import OrtRunner
from deploykit.core.precision import Precision
from deploykit.graph import LoadedGraph, qdq, read_model, tidy, write_model
from deploykit.precision.quantization.conversion import Int8Options, quantize_to_int8
from deploykit.precision.quantization.noise import measure_gains
from tests.graphs import expose_outputs, graph, normal, run_ort, save

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import onnx_ir as ir
    from numpy.typing import NDArray

    from deploykit.core.artifacts import OnnxArtifact

    Images = NDArray[np.float32]

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
LAYERS = ("first", "second", "last")
# A skip operand in INT8 would be plain again in a graph that was made without the layer beside it.
POLICY = qdq.QdqPolicy(residual="keep")
judge = partial(OrtRunner, options=GraphOptions(optimise=False, threads=1))


class Steps:
    """Keeps what the stage says."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float | None]] = []

    def update(self, done: float, total: float | None = None, detail: str = "") -> None:
        self.seen.append((done, total))


@pytest.fixture
def artifact(tmp_path: Path) -> OnnxArtifact:
    model = read_model(save(graph(NETWORK, WEIGHTS), tmp_path / "raw.onnx"))
    tidy(model, rename=False)
    return write_model(model, tmp_path / "net.onnx", Precision.FP32)


@pytest.fixture
def amax(artifact: OnnxArtifact) -> Mapping[str, float]:
    model = read_model(artifact.path)
    plan = qdq.plan_qdq(model, POLICY)
    exposed, _ = expose_outputs(model)
    values = {"x": images(), **run_ort(exposed, {"x": images()})}
    return {name: float(np.abs(values[name]).max()) for name in plan.tensors}


def images() -> Images:
    return normal(6, 3, 8, 8, seed=9)


def logits(path: Path) -> Images:
    with judge(path) as runner:
        return runner.run({"x": images()})["logits"].astype(np.float32)


def without(
    artifact: OnnxArtifact, amax: Mapping[str, float], folder: Path, *layers: str
) -> Images:
    """The logits of a graph that was quantized without these layers."""
    path = folder / "other.onnx"
    options = Int8Options(replace(POLICY, sensitive=layers), Precision.FP32)
    quantize_to_int8(LoadedGraph(artifact), amax, path, options=options)
    return logits(path)


@pytest.mark.parametrize("switched", [(), ("first",), ("second", "last"), LAYERS])
def test_a_switched_layer_computes_as_if_it_had_been_left_out(
    artifact: OnnxArtifact, amax: Mapping[str, float], tmp_path: Path, switched: tuple[str, ...]
) -> None:
    model = read_model(artifact.path)
    plan = qdq.plan_qdq(model, POLICY)
    assert tuple(weight.node for weight in plan.weights) == LAYERS
    switches = np.array([layer in switched for layer in LAYERS])
    feeds = {"x": images(), qdq.SWITCHES: switches}
    (part,) = qdq.switchable_parts(model, plan, amax)
    assert part.layers == LAYERS
    assert part.carried is None
    found = run_ort(part.graph, feeds)["logits"]
    if switched == LAYERS:  # a graph made without any of them is refused
        expected = logits(artifact.path)
    else:
        expected = without(artifact, amax, tmp_path, *switched)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_gains_are_those_of_graphs_made_one_by_one(
    artifact: OnnxArtifact, amax: Mapping[str, float], tmp_path: Path
) -> None:
    exact, steps = logits(artifact.path), Steps()
    model = read_model(artifact.path)
    plan = qdq.plan_qdq(model, POLICY)
    compared = ([images()[:2], images()[2:]], [{"logits": exact[:2]}, {"logits": exact[2:]}])
    gains = measure_gains(model, plan, amax, compared, open_runner=judge, task=steps)
    ratio = qdq.sqnr_db(exact, without(artifact, amax, tmp_path))
    assert tuple(gains) == LAYERS
    for layer, gain in gains.items():
        alone = qdq.sqnr_db(exact, without(artifact, amax, tmp_path, layer))
        assert gain == pytest.approx(alone - ratio, abs=0.01)
    assert max(gains.values()) > 1
    assert steps.seen == [(1, 3), (2, 3), (3, 3)]


def test_no_noise_leaves_nothing_to_gain(artifact: OnnxArtifact, amax: Mapping[str, float]) -> None:
    """Images of zeros: every value is exact in INT8."""
    black = np.zeros((2, 3, 8, 8), np.float32)
    model = read_model(artifact.path)
    plan = qdq.plan_qdq(model, POLICY)
    compared = ([black], [{"logits": np.zeros((2, 20), np.float32)}])
    gains = measure_gains(model, plan, amax, compared, open_runner=judge, task=Steps())
    assert gains == dict.fromkeys(LAYERS, 0.0)


def test_a_sensitive_layer_is_kept_with_the_reason(artifact: OnnxArtifact) -> None:
    model = read_model(artifact.path)
    plan = qdq.plan_qdq(model, replace(POLICY, sensitive=("second",)))
    assert [weight.node for weight in plan.weights] == ["first", "last"]
    assert plan.kept["second"] == "by itself it made a large part of the logits' noise"


# --- parts of a deep network


BLOCKS = 9


def deep(ends: str = "", outputs: str = "") -> onnx.ModelProto:
    """Nine residual blocks of two convolutions, and a last layer."""
    blocks = "".join(
        f"[c{at}a] a{at} = Conv <pads = [1,1,1,1]> (x{at}, w{at}a) [r{at}] r{at} = Relu (a{at}) "
        f"[c{at}b] b{at} = Conv <pads = [1,1,1,1]> (r{at}, w{at}b) "
        f"[add{at}] x{at + 1} = Add (b{at}, x{at}) "
        for at in range(1, BLOCKS + 1)
    )
    text = (
        f"deep (float[N, 3, 8, 8] x) => (float[N, 20] logits{outputs}) {{ "
        f"[first] x1 = Conv <pads = [1,1,1,1]> (x, w1) {blocks}"
        f"[pool] p = GlobalAveragePool (x{BLOCKS + 1}) [flat] f = Flatten (p) "
        f"[last] logits = Gemm <transB = 1> (f, w3) {ends} }}"
    )
    names = [f"w{at}{side}" for at in range(1, BLOCKS + 1) for side in "ab"]
    inner = {name: normal(16, 16, 3, 3, seed=at, scale=0.06) for at, name in enumerate(names)}
    return graph(text, {"w1": WEIGHTS["w1"], "w3": WEIGHTS["w3"], **inner})


@dataclass(frozen=True)
class Deep:
    artifact: OnnxArtifact
    model: ir.Model
    plan: qdq.QdqPlan
    amax: Mapping[str, float]


def planned(proto: onnx.ModelProto, folder: Path, **beside: Images) -> Deep:
    model = read_model(save(proto, folder / "raw.onnx"))
    tidy(model, rename=False)
    artifact = write_model(model, folder / "net.onnx", Precision.FP32)
    plan = qdq.plan_qdq(model, POLICY)
    exposed, _ = expose_outputs(model)
    feeds = {"x": images(), **beside}
    values = {**feeds, **run_ort(exposed, feeds)}
    amax = {name: float(np.abs(values[name]).max()) for name in plan.tensors}
    return Deep(artifact, model, plan, amax)


def test_each_part_begins_where_one_value_goes_on(tmp_path: Path) -> None:
    made = planned(deep(), tmp_path)
    parts = list(qdq.switchable_parts(made.model, made.plan, made.amax))
    layers = [layer for part in parts for layer in part.layers]
    assert layers == [weight.node for weight in made.plan.weights]
    # Inside a block its skip operand goes on too.
    assert [(len(part.layers), part.carried) for part in parts] == [(9, "x5"), (11, None)]
    sizes = [len(onnx.load_from_string(part.graph.content).graph.node) for part in parts]
    assert sizes[1] < sizes[0]


def test_gains_of_parts_are_those_of_graphs_made_one_by_one(tmp_path: Path) -> None:
    made, steps = planned(deep(), tmp_path), Steps()
    exact = logits(made.artifact.path)
    compared = ([images()[:2], images()[2:]], [{"logits": exact[:2]}, {"logits": exact[2:]}])
    gains = measure_gains(made.model, made.plan, made.amax, compared, open_runner=judge, task=steps)
    ratio = qdq.sqnr_db(exact, without(made.artifact, made.amax, tmp_path))
    assert tuple(gains) == tuple(weight.node for weight in made.plan.weights)
    for layer in ("first", "c4a", "c4b", "c5a", "c9b", "last"):
        alone = qdq.sqnr_db(exact, without(made.artifact, made.amax, tmp_path, layer))
        assert gains[layer] == pytest.approx(alone - ratio, abs=0.01)
    assert steps.seen[-1] == (20, 20)


def test_what_several_values_go_on_from_is_not_cut(tmp_path: Path) -> None:
    early = deep(outputs=", float[N, 16, 8, 8] x2")
    assert len(list(_parts_of(planned(early, tmp_path)))) == 1
    beside = deep("h = Gemm <transB = 1> (age, w3) y = Add (logits, h)", ", float[N, 20] y")
    beside.graph.input.append(helper.make_tensor_value_info("age", 1, ("N", 16)))
    made = planned(beside, tmp_path, age=normal(6, 16))
    assert len(list(_parts_of(made))) == 1


def _parts_of(made: Deep) -> Iterator[object]:
    return qdq.switchable_parts(made.model, made.plan, made.amax)
