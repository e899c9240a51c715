from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import helper

from deploykit.core.artifacts import sha256_of
from deploykit.core.errors import ModelFileError
from deploykit.core.precision import Precision
from deploykit.core.specs import TensorSpec
from deploykit.graph import read_artifact, read_model, tidy, write_model
from tests.graphs import expose_outputs, graph, normal, run_ort, save
from tests.unit.graph.foreign import WEIGHT, assert_refused, convolution, in_subgraph, weight

if TYPE_CHECKING:
    from pathlib import Path

# Damaged files


def test_a_missing_file(tmp_path: Path) -> None:
    assert_refused(tmp_path / "no.onnx", "there is no file")


def test_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "folder.onnx"
    path.mkdir()
    assert_refused(path, "cannot read .*folder.onnx: Is a directory")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9, 0.999])
def test_a_truncated_file(tmp_path: Path, share: float) -> None:
    content = convolution().SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(content[: int(len(content) * share)])
    assert_refused(path, r"is truncated or not an ONNX file|holds no ONNX graph")


def test_a_file_cut_at_any_byte_never_escapes_as_another_error(tmp_path: Path) -> None:
    content = convolution().SerializeToString()
    path = tmp_path / "cut.onnx"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ModelFileError):
            read_model(path)


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.onnx"
    path.touch()
    assert_refused(path, r"holds no ONNX graph \(0 bytes\)")


@pytest.mark.parametrize("seed", range(5))
def test_random_bytes(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "noise.onnx"
    path.write_bytes(np.random.default_rng(seed).bytes(4096))
    assert_refused(path, r"is truncated or not an ONNX file \(4,096 bytes\)")


@pytest.mark.parametrize("name", ["page.onnx", "page.json", "page.textproto", "page.onnxtxt"])
def test_text_under_any_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("<!DOCTYPE html><title>404</title>", encoding="utf-8")
    assert_refused(path, "is truncated or not an ONNX file")


def test_a_graph_that_the_checker_refuses(tmp_path: Path) -> None:
    path = save(graph("g (float[2] x) => (float[2] y) { y = Relu (z) }"), tmp_path / "bad.onnx")
    assert_refused(path, "is not a valid ONNX model\n.*z")


# What an artifact says


def test_an_artifact_describes_the_file(tmp_path: Path) -> None:
    path = save(convolution(), tmp_path / "m.onnx")
    artifact = read_artifact(path)
    assert artifact.sha256 == sha256_of(path)
    assert (artifact.path, artifact.opset, artifact.parents) == (path, 20, ())
    assert artifact.precision is Precision.FP32
    assert artifact.inputs == (TensorSpec("x", "float32", ("batch", 3, 8, 8)),)
    assert artifact.outputs == (TensorSpec("y", "float32", ("batch", 4, 8, 8)),)


def test_open_dimensions_without_a_name_get_one(tmp_path: Path) -> None:
    model = graph("g (float[?,3,?] x) => (float[?,3,?] y) { y = Relu (x) }")
    artifact = read_artifact(save(model, tmp_path / "m.onnx"))
    assert artifact.inputs == (TensorSpec("x", "float32", ("x_0", 3, "x_2")),)


def test_weights_among_the_inputs_are_no_inputs(tmp_path: Path) -> None:
    model = graph(
        "g (float[2,3,8,8] x, float[4,3,1,1] w) => (float[2,4,8,8] y) { y = Conv (x, w) }",
        {"w": WEIGHT},
    )
    path = save(model, tmp_path / "m.onnx")
    written = write_model(read_model(path), tmp_path / "w.onnx", Precision.FP32)
    assert [spec.name for spec in read_artifact(path).inputs] == ["x"]
    assert written == read_artifact(tmp_path / "w.onnx")


def test_the_standard_domain_has_two_names(tmp_path: Path) -> None:
    model = convolution()
    model.opset_import[0].domain = "ai.onnx"
    assert read_artifact(save(model, tmp_path / "m.onnx")).opset == 20


def test_the_precision_of_a_foreign_file_is_seen_in_its_graph(tmp_path: Path) -> None:
    half = graph(
        "g (float16[2] x) => (float16[2] y) { y = Add (x, w) }", {"w": np.ones(2, np.float16)}
    )
    quantized = graph(
        """g (float[2] x) => (float[2] y) {
            q = QuantizeLinear (x, s)
            y = DequantizeLinear (q, s)
        }""",
        {"s": np.array(0.1, np.float32)},
    )
    assert read_artifact(save(half, tmp_path / "h.onnx")).precision is Precision.FP16
    assert read_artifact(save(quantized, tmp_path / "q.onnx")).precision is Precision.INT8


def test_parents_form_a_chain(tmp_path: Path) -> None:
    first = write_model(
        read_model(save(convolution(), tmp_path / "s.onnx")), tmp_path / "a.onnx", Precision.FP32
    )
    second = write_model(
        read_model(first.path), tmp_path / "b.onnx", Precision.FP16, (first.sha256, *first.parents)
    )
    third = write_model(
        read_model(second.path),
        tmp_path / "c.onnx",
        Precision.INT8,
        (second.sha256, *second.parents),
    )
    assert read_artifact(third.path) == third
    assert third.parents == (second.sha256, first.sha256)
    assert third.precision is Precision.INT8


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("deploykit.precision", "fp12", "'fp12' is not a valid Precision"),
        ("deploykit.parents", "{", "Expecting property name"),
        ("deploykit.parents", "5", "5 is not a list of hashes"),
    ],
)
def test_altered_metadata(tmp_path: Path, key: str, value: str, words: str) -> None:
    model = convolution()
    helper.set_model_props(model, {key: value})
    path = save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelFileError, match=f"metadata that deploykit did not write\n{words}"):
        read_artifact(path)


# Writing

WRITE = """
import sys
from pathlib import Path
from deploykit.graph import read_model, tidy, write_model
from deploykit.core.precision import Precision
model = read_model(Path(sys.argv[1]))
tidy(model, rename=True)
print(write_model(model, Path(sys.argv[2]), Precision.FP32, ("a" * 64,)).sha256)
"""


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    source = save(convolution(), tmp_path / "s.onnx")
    digests = []
    for seed in ("1", "2"):
        out = tmp_path / f"{seed}.onnx"
        ran = subprocess.run(
            [sys.executable, "-c", WRITE, str(source), str(out)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.append(ran.stdout.strip())
        assert sha256_of(out) == digests[-1]
    assert digests[0] == digests[1]


def test_writing_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = read_model(save(convolution(), tmp_path / "s.onnx"))
    first = write_model(model, tmp_path / "a.onnx", Precision.FP32, ("p",))
    assert "deploykit.precision" not in model.metadata_props
    assert write_model(model, tmp_path / "b.onnx", Precision.FP32, ("p",)).sha256 == first.sha256


def test_no_word_of_the_origin_is_written(tmp_path: Path) -> None:
    model = in_subgraph(weight())
    trace = "/home/someone/net.py"
    branch = model.graph.node[0].attribute[0].g
    model.doc_string = model.producer_name = model.domain = trace
    helper.set_model_props(model, {"trace": trace})
    described: list[Any] = [
        *(model.graph, branch, model.graph.node[0], branch.node[0]),
        *(model.graph.input[0], model.graph.output[0], branch.output[0]),
        *(model.graph.initializer[0], branch.initializer[0]),
    ]
    for item in described:
        item.doc_string = trace
        item.metadata_props.add(key="trace", value=trace)
    read = read_model(save(model, tmp_path / "s.onnx"))
    tidy(read, rename=True)
    write_model(read, tmp_path / "m.onnx", Precision.FP32)
    content = (tmp_path / "m.onnx").read_bytes()
    assert trace.encode() not in content
    assert str(tmp_path).encode() not in content


def test_a_graph_that_the_checker_refuses_is_not_written(tmp_path: Path) -> None:
    model = read_model(save(convolution(), tmp_path / "s.onnx"))
    model.graph.outputs[0].name = "nowhere"
    model.graph[0].op_type = "Konv"
    path = tmp_path / "m.onnx"
    with pytest.raises(ModelFileError, match=r"the graph for m\.onnx is not valid ONNX\n.*Konv"):
        write_model(model, path, Precision.FP32)
    assert not path.exists()


# Showing activations


def test_every_computed_fp32_value_is_shown(tmp_path: Path) -> None:
    source = graph(
        """g (float[batch,3,8,8] x) => (float[batch,4,8,8] y, int64[4] s) {
            c = Conv (x, w)
            s = Shape (c)
            y = Relu (c)
        }""",
        {"w": WEIGHT},
    )
    model = read_model(save(source, tmp_path / "s.onnx"))
    tidy(model, rename=False)
    content, names = expose_outputs(model)
    assert names == ("c", "y")
    assert [value.name for value in model.graph.outputs] == ["y", "s"]
    shown = run_ort(content, {"x": normal(2, 3, 8, 8)})
    expected = run_ort(source, {"x": normal(2, 3, 8, 8)})
    assert list(shown) == ["y", "s", "c"]
    np.testing.assert_array_equal(shown["y"], expected["y"])
    np.testing.assert_array_equal(np.maximum(shown["c"], 0), expected["y"])
