"""One thing is broken in one of two graphs, and is found; nothing is broken, and nothing is."""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from deploykit.backends import GraphOptions
from deploykit.backends.ort import OrtRunner
from deploykit.comparison.layerwise import LayerReport, compare_layers, groups_of
from deploykit.core.errors import ValidationError
from deploykit.core.precision import Precision
from deploykit.core.progress import SilentProgress
from deploykit.graph import (
    HalfPlan,
    LoadedGraph,
    convert_to_half,
    read_artifact,
    read_model,
    tidy,
    write_model,
)
from deploykit.graph.activations import ActivationPair
from deploykit.precision.quantization.conversion import quantize_to_int8
from tests.graphs import graph, normal, run_ort, save

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.core.specs import SplitGraph

BATCHES = [np.abs(normal(1, 16, 8, 8, seed=seed)) for seed in range(3)]
TEXT = """net (float[batch,16,8,8] x) => (float[batch,5] y) {
    [stem] c1 = Conv <pads = [1,1,1,1]> (x, w1)
    [relu1] r1 = Relu (c1)
    [conv2] c2 = Conv <pads = [1,1,1,1]> (r1, w2)
    [relu2] r2 = Relu (c2)
    [conv3] c3 = Conv <pads = [1,1,1,1]> (r2, w3)
    [add] s = Add (c3, r1)
    [relu3] r3 = Relu (s)
    [conv4] c4 = Conv <pads = [1,1,1,1]> (r3, w4)
    [pool] p = GlobalAveragePool (c4)
    [flat] f = Flatten (p)
    [head] y = Gemm <transB = 1> (f, fc)
}"""
WEIGHTS = {
    **{f"w{i}": normal(16, 16, 3, 3, seed=i, scale=0.1) for i in range(1, 5)},
    "fc": normal(5, 16, seed=9),
}
VALUES = ["c1", "r1", "c2", "r2", "c3", "s", "r3", "c4", "p", "f", "y"]


def artifact(folder: Path, name: str, weights: Mapping[str, Any]) -> OnnxArtifact:
    model = read_model(save(graph(TEXT, weights), folder / f"{name}-given.onnx"))
    tidy(model, rename=False)
    return write_model(model, folder / f"{name}.onnx", Precision.FP32)


@pytest.fixture
def exact(tmp_path: Path) -> OnnxArtifact:
    return artifact(tmp_path, "exact", WEIGHTS)


def open_runner(model: SplitGraph) -> OrtRunner:
    return OrtRunner(model, GraphOptions(threads=1, optimise=False))


def compared(candidate: OnnxArtifact, reference: OnnxArtifact, **options: Any) -> LayerReport:
    options = {"open_runner": open_runner} | options
    with SilentProgress().step("") as task:
        return compare_layers(candidate, reference, BATCHES, task=task, **options)


def amax_of(source: OnnxArtifact) -> dict[str, float]:
    """Magnitudes on the images, by onnxruntime."""
    shown = shown_values(source, VALUES[:-1])
    peaks = {name: max(float(np.abs(v[name]).max()) for v in shown) for name in VALUES}
    return {"x": max(float(batch.max()) for batch in BATCHES), **peaks}


def shown_values(source: OnnxArtifact, inner: list[str]) -> list[dict[str, NDArray[Any]]]:
    model = onnx.load(source.path)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    return [run_ort(model, {"x": batch}) for batch in BATCHES]


def half_of(source: OnnxArtifact, folder: Path) -> OnnxArtifact:
    """All of it in FP16, whatever its values are."""
    model = read_model(source.path)
    plan = HalfPlan(frozenset(str(node.name) for node in model.graph))
    return write_model(convert_to_half(model, plan), folder / "half.onnx", Precision.FP16)


# Nothing is broken


def test_equal_graphs(exact: OnnxArtifact) -> None:
    report = compared(exact, exact)
    assert report.first_fault is None
    assert [value.name for value in report.values] == VALUES
    assert all(value.sqnr_db == math.inf and value.cosine == 1 for value in report.values)
    assert all(report.drop_of(value) == 0 for value in report.values)
    assert (report.matched, report.of_candidate, report.of_reference) == (11, 11, 11)
    assert report.images == 3


def test_a_sound_fp16_graph(exact: OnnxArtifact, tmp_path: Path) -> None:
    report = compared(half_of(exact, tmp_path), exact)
    assert report.faults == ()
    assert report.matched == 11
    assert report.precision is Precision.FP16
    assert all(55 < value.sqnr_db < 85 for value in report.values)


def test_a_sound_int8_graph(exact: OnnxArtifact, tmp_path: Path) -> None:
    result = quantize_to_int8(LoadedGraph(exact), amax_of(exact), tmp_path / "int8.onnx")
    report = compared(result.artifact, exact)
    assert report.faults == ()
    assert report.matched == 11
    assert {"x_dequantized", "r1_dequantized"} <= {value.name for value in report.values}


def test_figures_are_those_of_numpy(exact: OnnxArtifact, tmp_path: Path) -> None:
    other = artifact(tmp_path, "other", WEIGHTS | {"w3": WEIGHTS["w3"] * np.float32(1.01)})
    report = compared(other, exact)
    ours, theirs = shown_values(other, VALUES[:-1]), shown_values(exact, VALUES[:-1])
    for value in report.values:
        left = np.concatenate([v[value.name].ravel() for v in ours]).astype(np.float64)
        right = np.concatenate([v[value.name].ravel() for v in theirs]).astype(np.float64)
        cosine = left @ right / np.linalg.norm(left) / np.linalg.norm(right)
        assert value.cosine == pytest.approx(cosine, rel=1e-9)
        assert value.range == (left.min(), left.max())
        assert value.reference_range == (right.min(), right.max())
        noise = np.square(left - right).sum()
        if noise == 0:
            assert value.sqnr_db == math.inf
        else:
            ratio = 10 * np.log10(np.square(right).sum() / noise)
            assert value.sqnr_db == pytest.approx(ratio, rel=1e-6)


# One thing is


@pytest.mark.parametrize("layer", [1, 2, 3, 4])
@pytest.mark.parametrize("broken_is_candidate", [True, False])
def test_a_layer_with_corrupted_weights(
    exact: OnnxArtifact, tmp_path: Path, layer: int, broken_is_candidate: bool
) -> None:
    wrong = WEIGHTS[f"w{layer}"].copy()
    wrong[:, :8] = wrong[:, 8:]
    broken = artifact(tmp_path, "broken", WEIGHTS | {f"w{layer}": wrong})
    pair = (broken, exact) if broken_is_candidate else (exact, broken)
    report = compared(*pair)
    (fault,) = report.faults
    assert fault == report.first_fault
    assert (fault.value.node, fault.kind) == (
        ("stem", "conv2", "conv3", "conv4")[layer - 1],
        "sqnr",
    )
    assert all(each.sqnr_db == math.inf for each in fault.inputs)
    assert fault.reason.startswith("SQNR falls from equal to ")
    assert fault.advice[0].startswith(f"the weights or attributes of {fault.value.node} differ")


def test_corrupted_weights_of_an_fp16_graph(exact: OnnxArtifact, tmp_path: Path) -> None:
    broken = artifact(tmp_path, "broken", WEIGHTS | {"w3": WEIGHTS["w3"][::-1].copy()})
    report = compared(half_of(broken, tmp_path), exact)
    (fault,) = report.faults
    assert (fault.value.node, fault.kind) == ("conv3", "sqnr")
    assert [each.name for each in fault.inputs] == ["r2"]
    assert fault.inputs[0].sqnr_db > 60


def test_what_lies_behind_a_fault_is_none(exact: OnnxArtifact, tmp_path: Path) -> None:
    wrong = {name: WEIGHTS[name][::-1].copy() for name in ("w2", "w4")}
    report = compared(artifact(tmp_path, "broken", WEIGHTS | wrong), exact)
    assert [fault.value.node for fault in report.faults] == ["conv2"]


def test_fp16_overflow_is_found_at_its_node(exact: OnnxArtifact, tmp_path: Path) -> None:
    # conv3 passes 65504, and what follows takes it back: the logits of FP32 are ordinary.
    scaled = {"w3": WEIGHTS["w3"] * np.float32(2e5), "w4": WEIGHTS["w4"] * np.float32(5e-6)}
    large = artifact(tmp_path, "large", WEIGHTS | scaled)
    report = compared(half_of(large, tmp_path), large)
    fault = report.first_fault
    assert fault is not None
    assert (fault.value.node, fault.value.name, fault.kind) == ("conv3", "c3", "non_finite")
    assert fault.value.non_finite > 0
    assert fault.value.reference_non_finite == 0
    assert math.isnan(fault.value.sqnr_db)
    assert math.isnan(report.drop_of(fault.value))
    assert fault.advice[0].startswith("the reference reaches ")
    assert fault.advice[0].endswith("FP16 ends at 65504")
    assert fault.advice[1].startswith("keep conv3 in FP32: ")


def test_nan_in_the_weights_of_the_reference_too(exact: OnnxArtifact, tmp_path: Path) -> None:
    wrong = WEIGHTS["w2"].copy()
    wrong[3, 3, 1, 1] = np.nan
    broken = artifact(tmp_path, "broken", WEIGHTS | {"w2": wrong})
    fault = compared(broken, broken).first_fault
    assert fault is not None
    assert (fault.value.node, fault.kind) == ("conv2", "non_finite")
    assert fault.value.non_finite == fault.value.reference_non_finite == 3 * 8 * 8
    assert fault.advice == ("the reference has them too: check its weights and the preprocessing",)
    alone = compared(broken, exact).first_fault
    assert alone is not None
    assert alone.reason == "192 values are NaN or infinite, 0 of the reference's"
    assert alone.advice[0].startswith("look for NaN in the weights of conv2")


@pytest.mark.parametrize(
    ("tensor", "reader"), [("x", "stem"), ("r1", "conv2"), ("r2", "conv3"), ("r3", "conv4")]
)
def test_an_int8_scale_that_is_ten_times_too_small(
    exact: OnnxArtifact, tmp_path: Path, tensor: str, reader: str
) -> None:
    sound = quantize_to_int8(LoadedGraph(exact), amax_of(exact), tmp_path / "int8.onnx").artifact
    model = onnx.load(sound.path)
    (scale,) = [t for t in model.graph.initializer if t.name == f"{tensor}_scale"]
    smaller = numpy_helper.to_array(scale) / np.float32(10)
    scale.CopyFrom(numpy_helper.from_array(smaller, scale.name))
    path = save(model, tmp_path / "broken.onnx")
    report = compared(read_artifact(path), exact)
    fault = report.first_fault
    assert fault is not None
    assert fault.value.name == f"{tensor}_dequantized"
    assert fault.value.reference == tensor
    assert fault.value.op_type == "DequantizeLinear"
    assert fault.value.readers[0] == reader
    assert fault.advice[0].startswith("its INT8 range ends at ")
    assert f"--exclude '{reader}'" in fault.advice[-1]
    assert "--calib-count" in fault.advice[1]


# What cannot be compared


def test_graphs_without_anything_in_common(exact: OnnxArtifact, tmp_path: Path) -> None:
    text = "net (float[batch,16,8,8] x) => (float[batch,16,8,8] z) { [abs] z = Abs (x) }"
    other = read_artifact(save(graph(text), tmp_path / "other.onnx"))
    with pytest.raises(
        ValidationError, match=r"have no activation in common, by name or by node\ncompare graphs"
    ):
        compared(other, exact)


def test_another_shape_is_a_fault(exact: OnnxArtifact, tmp_path: Path) -> None:
    weights = WEIGHTS | {"fc": normal(6, 16, seed=9)}
    text = TEXT.replace("float[batch,5]", "float[batch,6]")
    other = read_artifact(save(graph(text, weights), tmp_path / "other.onnx"))
    (fault,) = compared(other, exact).faults
    assert (fault.value.node, fault.kind) == ("head", "shape")
    assert fault.reason == "its shape is (1, 6), the reference's (1, 5)"
    assert math.isnan(fault.value.cosine)
    assert fault.advice[0].startswith("these are not the same network")


# Memory


def test_groups_change_no_figure(exact: OnnxArtifact, tmp_path: Path) -> None:
    half = half_of(exact, tmp_path)
    single = compared(half, exact, group_numbers=1)
    at_once = compared(half, exact)
    assert len(single.values) == len(at_once.values)
    for one, other in zip(single.values, at_once.values, strict=True):
        assert one.name == other.name
        assert one.sqnr_db == pytest.approx(other.sqnr_db, abs=3)  # FP16: rounded where shown


def test_never_more_is_shown_than_a_group_holds(exact: OnnxArtifact) -> None:
    limit = 2 * 16 * 8 * 8
    shown: list[int] = []

    class Counting(OrtRunner):
        def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
            outputs = super().run(feeds)
            shown.append(sum(value.size for value in outputs.values()))
            return outputs

    def count(model: SplitGraph) -> OrtRunner:
        return Counting(model, GraphOptions(threads=1, optimise=False))

    report = compared(exact, exact, open_runner=count, group_numbers=limit)
    assert len(report.values) == 11
    assert max(shown) == limit
    assert len(shown) == 2 * len(BATCHES) * 5


def test_every_runner_is_closed(exact: OnnxArtifact) -> None:
    opened: list[int] = []

    @contextmanager
    def watching(model: SplitGraph) -> Iterator[OrtRunner]:
        opened.append(1)
        with open_runner(model) as runner:
            yield runner
        opened.pop()

    compared(exact, exact, open_runner=watching, group_numbers=1)
    assert opened == []


def pair(name: str, numbers: int | None) -> ActivationPair:
    return ActivationPair(name, name, name, "Conv", (), (), numbers)


def test_neighbours_share_a_group_until_it_is_full() -> None:
    pairs = [pair("a", 4), pair("b", 6), pair("c", 1), pair("d", 20), pair("e", 1), pair("f", None)]
    groups = [[each.name for each in group] for group in groups_of(pairs, 10)]
    assert groups == [["a", "b"], ["c"], ["d"], ["e"], ["f"]]


def test_the_report_is_plain_data(exact: OnnxArtifact, tmp_path: Path) -> None:
    broken = artifact(tmp_path, "broken", WEIGHTS | {"w2": WEIGHTS["w2"][::-1].copy()})
    data = json.loads(json.dumps(compared(broken, exact).to_dict()))
    assert data["first_fault"]["node"] == "conv2"
    assert data["first_fault"]["inputs"][0]["name"] == "r1"
    assert data["faults"] == [data["first_fault"]]
    assert [value["name"] for value in data["values"]] == VALUES
    assert data["values"][2]["drop_db"] > 20
    assert data["values"][0]["shape"] == [1, 16, 8, 8]
    assert data["tolerance"]["drop_db"] == 20
    assert data["matched"] == 11
