from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from deploykit.backends import GraphOptions
from deploykit.backends.ort import OrtRunner
from deploykit.core.errors import DataError, ModelFileError, UsageError
from deploykit.core.precision import Precision
from deploykit.core.progress import SilentProgress
from deploykit.graph import (
    OPSET_FOR_BF16,
    LoadedGraph,
    read_artifact,
    read_model,
    tidy,
    tidy_in_opset,
    write_model,
)
from deploykit.graph.qdq import QdqPolicy
from deploykit.precision.quantization.conversion import (
    Int8Options,
    QuantizationErrors,
    measure_errors,
    plan_int8,
    quantize_to_int8,
)
from tests.graphs import graph, normal, run_ort, save
from tests.unit.graph.halving import halving

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.core.specs import SplitGraph

IMAGES = [np.abs(normal(3, 16, 6, 6)), np.abs(normal(2, 16, 6, 6, seed=1))]
AMAX = {"x": 1.0, "r": 4.0}  # clips the input
NETWORK = """net (float[batch,16,6,6] x) => (float[batch,5] y) {
    [first] c = Conv <pads = [1,1,1,1]> (x, w, b)
    [relu] r = Relu (c)
    [second] d = Conv (r, v)
    [pool] p = GlobalAveragePool (d)
    [flat] f = Flatten (p)
    [head] y = Gemm <transB = 1> (f, fc)
}"""
WEIGHTS = {
    "w": normal(16, 16, 3, 3, scale=0.1),
    "b": normal(16, seed=2),
    "v": normal(16, 16, 3, 3, seed=3, scale=0.1),
    "fc": normal(5, 16, seed=4),
}


def open_runner(model: SplitGraph) -> OrtRunner:
    return OrtRunner(model, GraphOptions(threads=1, optimise=False))


@pytest.fixture
def artifact(tmp_path: Path) -> OnnxArtifact:
    model = read_model(save(graph(NETWORK, WEIGHTS), tmp_path / "given.onnx"))
    tidy(model, rename=False)
    return write_model(model, tmp_path / "fp32.onnx", Precision.FP32)


def measured(artifact: OnnxArtifact, amax: dict[str, float]) -> QuantizationErrors:
    with SilentProgress().step("") as task:
        return measure_errors(
            LoadedGraph(artifact),
            plan_int8(LoadedGraph(artifact), QdqPolicy()),
            amax,
            IMAGES,
            open_runner=open_runner,
            task=task,
        )


def test_writes_an_int8_artifact_with_its_history(artifact: OnnxArtifact, tmp_path: Path) -> None:
    result = quantize_to_int8(LoadedGraph(artifact), AMAX, tmp_path / "int8.onnx")
    assert result.artifact == read_artifact(tmp_path / "int8.onnx")
    assert result.artifact.precision is Precision.INT8
    assert result.artifact.parents == (artifact.sha256,)
    assert result.artifact.inputs == artifact.inputs
    assert result.artifact.outputs == artifact.outputs
    assert result.artifact.opset == artifact.opset
    assert result.layers == {Precision.INT8: 2, Precision.FP16: 1, Precision.FP32: 0}
    assert result.kept_heavy == 0
    assert set(result.weight_sqnr_db) == {"first", "second"}
    assert result.kept["head"] == "its weight (5, 16) is too small to gain from INT8"
    assert "first" not in result.kept


def test_the_same_input_gives_the_same_bytes(artifact: OnnxArtifact, tmp_path: Path) -> None:
    hashes = {
        quantize_to_int8(LoadedGraph(artifact), AMAX, tmp_path / name).artifact.sha256
        for name in ("a", "b")
    }
    assert len(hashes) == 1


def test_the_rest_may_be_fp32(artifact: OnnxArtifact, tmp_path: Path) -> None:
    options = Int8Options(rest=Precision.FP32)
    result = quantize_to_int8(LoadedGraph(artifact), AMAX, tmp_path / "int8.onnx", options=options)
    assert result.layers == {Precision.INT8: 2, Precision.FP16: 0, Precision.FP32: 1}
    assert result.kept_heavy == 1
    assert not any(node.op_type == "Cast" for node in onnx.load(tmp_path / "int8.onnx").graph.node)


def test_the_rest_may_be_bf16_which_holds_large_values(
    artifact: OnnxArtifact, tmp_path: Path
) -> None:
    raised = LoadedGraph(artifact, tidy_in_opset(read_model(artifact.path), OPSET_FOR_BF16))
    options = Int8Options(rest=Precision.BF16)
    result = quantize_to_int8(
        raised, AMAX, tmp_path / "int8.onnx", options=options, halve=halving({"f": 60000.0})
    )
    assert result.layers == {Precision.INT8: 2, Precision.BF16: 1, Precision.FP32: 0}
    assert result.artifact.precisions == (Precision.INT8, Precision.BF16)
    model = onnx.load(tmp_path / "int8.onnx")
    casts = {node.attribute[0].i for node in model.graph.node if node.op_type == "Cast"}
    assert casts == {onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT}
    assert read_artifact(tmp_path / "int8.onnx").has_bf16


def test_large_values_keep_the_rest_in_fp32(artifact: OnnxArtifact, tmp_path: Path) -> None:
    result = quantize_to_int8(
        LoadedGraph(artifact), AMAX, tmp_path / "int8.onnx", halve=halving({"f": 60000.0})
    )
    assert result.layers == {Precision.INT8: 2, Precision.FP16: 0, Precision.FP32: 1}
    assert result.kept["head"] == "f reaches 6e+04"


def test_policies_are_followed(artifact: OnnxArtifact, tmp_path: Path) -> None:
    options = Int8Options(QdqPolicy(first_layer="keep"))
    result = quantize_to_int8(LoadedGraph(artifact), AMAX, tmp_path / "int8.onnx", options=options)
    assert result.layers[Precision.INT8] == 1
    assert result.kept["first"] == "the first layer is kept"


def test_measured_errors_make_the_result_better(artifact: OnnxArtifact, tmp_path: Path) -> None:
    errors = measured(artifact, AMAX)
    images = np.concatenate(IMAGES)
    exact = run_ort(onnx.load(artifact.path), {"x": images})["y"]
    distances = []
    for given in (QuantizationErrors(), errors):
        result = quantize_to_int8(LoadedGraph(artifact), AMAX, tmp_path / "int8.onnx", errors=given)
        assert result.corrected == len(given.shifts)
        got = run_ort(onnx.load(tmp_path / "int8.onnx"), {"x": images})["y"]
        distances.append(float(np.abs(got - exact).mean()))
    plain, corrected = distances
    assert corrected < 0.6 * plain  # the part of the error that is no mean stays


def test_errors_do_not_depend_on_how_images_are_batched(artifact: OnnxArtifact) -> None:
    errors = measured(artifact, AMAX)
    images = np.concatenate(IMAGES)
    noise = images - np.clip(np.rint(images * 127), -128, 127) / np.float32(127)
    ratio = 10 * np.log10(np.square(images).sum() / np.square(noise).sum())
    assert errors.activation_sqnr_db["x"] == pytest.approx(ratio, abs=0.01)
    with SilentProgress().step("") as task:
        plan = plan_int8(LoadedGraph(artifact), QdqPolicy())
        whole = measure_errors(
            LoadedGraph(artifact), plan, AMAX, [images], open_runner=open_runner, task=task
        )
    for layer, shift in errors.shifts.items():
        np.testing.assert_allclose(shift, whole.shifts[layer], atol=1e-5)


def test_the_report_is_plain_json(artifact: OnnxArtifact, tmp_path: Path) -> None:
    errors = QuantizationErrors({}, {f"value{i}": float(i) for i in range(20)} | {"exact": np.inf})
    result = quantize_to_int8(LoadedGraph(artifact), AMAX, tmp_path / "int8.onnx", errors=errors)
    report = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert report["layers"] == {"int8": 2, "fp16": 1, "fp32": 0}
    assert list(report["activation_sqnr_db"]) == [f"value{i}" for i in range(10)]
    exact = quantize_to_int8(
        LoadedGraph(artifact),
        AMAX,
        tmp_path / "a",
        errors=QuantizationErrors({}, {"exact": np.inf}),
    )
    assert exact.to_dict()["activation_sqnr_db"] == {"exact": None}


def test_values_that_are_always_zero_have_no_ratio_to_fall_under(artifact: OnnxArtifact) -> None:
    with SilentProgress().step("") as task:
        errors = measure_errors(
            LoadedGraph(artifact),
            plan_int8(LoadedGraph(artifact), QdqPolicy()),
            AMAX,
            [np.zeros((1, 16, 6, 6), np.float32)],
            open_runner=open_runner,
            task=task,
        )
    assert errors.activation_sqnr_db["x"] == float("inf")


def test_refuses_what_is_quantized_already(artifact: OnnxArtifact, tmp_path: Path) -> None:
    first = quantize_to_int8(LoadedGraph(artifact), AMAX, tmp_path / "int8.onnx").artifact
    with pytest.raises(ModelFileError, match="already quantized"):
        quantize_to_int8(LoadedGraph(first), AMAX, tmp_path / "again.onnx")
    assert not (tmp_path / "again.onnx").exists()


def test_refuses_when_nothing_is_left(artifact: OnnxArtifact) -> None:
    with pytest.raises(
        ModelFileError,
        match=r"nothing in fp32.onnx can be INT8\nfirst and 2 more: excluded by '\*'.*\nexclude l",
    ):
        plan_int8(LoadedGraph(artifact), QdqPolicy(exclude=("*",)))


def test_the_refusal_of_small_layers_gives_their_reasons_first(tmp_path: Path) -> None:
    """As `inspect --int8` says them, whatever else is in the graph before."""
    pools = " ".join(
        f"[pool{at}] p{at} = AveragePool <kernel_shape = [1, 1]> ({f'p{at - 1}' if at else 'x'})"
        for at in range(7)
    )
    text = f"""net (float[batch,3,8,8] x) => (float[batch,4] y) {{
        {pools}
        [small] c = Conv (p6, w)
        [mean] m = GlobalAveragePool (c)
        [flat] f = Flatten (m)
        [head] y = Gemm <transB = 1> (f, v)
    }}"""
    weights = {"w": normal(4, 3, 3, 3), "v": normal(4, 4, seed=1)}
    read = read_model(save(graph(text, weights), tmp_path / "raw.onnx"))
    tidy(read, rename=False)
    small = write_model(read, tmp_path / "small.onnx", Precision.FP32)
    with pytest.raises(ModelFileError) as caught:
        plan_int8(LoadedGraph(small), QdqPolicy())
    lines = str(caught.value).splitlines()
    assert lines[1].startswith(
        "small: 3 to 4 channels are too few to gain from INT8; "
        "head: its weight (4, 4) is too small to gain from INT8; "
    )
    assert lines[2] == "use --fp16; deploykit inspect TARGET --int8 lists every node"


def test_refuses_a_network_without_layers(tmp_path: Path) -> None:
    text = "net (float[batch,16] x) => (float[batch,16] y) { [relu] y = Relu (x) }"
    relu = read_artifact(save(graph(text), tmp_path / "relu.onnx"))
    with pytest.raises(ModelFileError, match="no convolution and no matrix product"):
        plan_int8(LoadedGraph(relu), QdqPolicy())


def test_a_missing_range_leaves_no_file(artifact: OnnxArtifact, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no figure for 'r'"):
        quantize_to_int8(LoadedGraph(artifact), {"x": 1.0}, tmp_path / "int8.onnx")
    assert not (tmp_path / "int8.onnx").exists()


def test_the_rest_is_not_int8() -> None:
    with pytest.raises(UsageError, match=r"cannot be int8\npossible: fp16, bf16, fp32"):
        Int8Options(rest=Precision.INT8)
