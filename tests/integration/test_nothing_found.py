"""Networks that find nothing in an image, and files that declare what they do not give.

Right values are those of onnxruntime on the user's own file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

import deploykit
from deploykit.core.errors import ValidationError
from tests import cli
from tests.graphs import normal, run_ort
from tests.small_tails import network, original, pictures

if TYPE_CHECKING:
    from pathlib import Path

    from tests.graphs import Array

SPLIT, FLAT, COLUMNS = np.array([4, 12]), np.array([0, 4, -1]), np.array([0, 2])
ALL, MOST = np.array([0, -1, 4]), np.array([50])
BOXES = """b, s = Split <axis = 1> (r, sizes)  t = Transpose <perm = [0, 2, 3, 1]> (b)
    boxes = Reshape (t, all)  z = Sigmoid (s)  u = Slice (z, zero, four, one)
    scores = Reshape (u, flat)  sel = NonMaxSuppression (boxes, scores, most, iou, limit)
    at = Gather <axis = 1> (sel, columns)  found = GatherND (boxes, at)"""
ENDS: dict[str, tuple[str, str]] = {
    "boxes": (BOXES, "float[D, 4] found"),
    "boxes and their places": (BOXES, "int64[D, 3] sel, float[D, 4] found"),
    "peaks": (
        "q = Greater (r, limit)  n = NonZero (q)  t = Transpose (n)  found = GatherND (r, t)",
        "float[D] found",
    ),
    "peaks beside classes": (
        """q = Greater (r, limit)  n = NonZero (q)  t = Transpose (n)  found = GatherND (r, t)
        y = Gemm <transB = 1> (f, k7)""",
        "float[N, 7] y, float[D] found",
    ),
    "rows": (
        """m = ReduceMax <keepdims = 0> (f, one)  q = Greater (m, limit)
        found = Compress <axis = 0> (f, q)""",
        "float[D, 16] found",
    ),
}


def detector(name: str, folder: Path, limit: float) -> Path:
    nodes, outputs = ENDS[name]
    constants: dict[str, Array] = {
        "sizes": SPLIT, "all": ALL, "flat": FLAT, "most": MOST, "columns": COLUMNS,
        "iou": np.array([0.5], np.float32), "zero": np.array([0]), "four": np.array([4]),
        "one": np.array([1]), "limit": np.array(limit, np.float32),
    }  # fmt: skip
    return network(nodes, outputs, folder, "net", **constants)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ENDS)
def test_no_detections_are_no_failure(name: str, precision: str, tmp_path: Path) -> None:
    model = detector(name, tmp_path, 1e4)
    images = pictures(tmp_path / "images", 2)
    outputs = original(model, images)
    assert any(not each.size for each in outputs)
    options = ["--head", "raw", "--backend", "none", "--json"]
    called = cli.deploykit("export", model, f"--{precision}", *options, "-o", tmp_path / "b")
    assert called.code == 0, called.err
    blind = [spot for report in called.data["validation"] for spot in report["blind_spots"]]
    said = "there are no outputs for any image: nothing could be compared" in blind
    # In FP32 the first output alone has a report.
    assert said or (outputs[0].size and precision == "fp32")
    assert cli.deploykit("check", tmp_path / "b").code == 0
    with deploykit.load(tmp_path / "b", device="cpu") as loaded:
        loaded.self_test()
    called = cli.deploykit("predict", tmp_path / "b", images[0], "--json")
    assert called.code == 0, called.err


@pytest.mark.parametrize("name", ["peaks", "rows"])
def test_detections_in_some_images_are_still_compared(name: str, tmp_path: Path) -> None:
    """A limit that one of a few images passes: with detections the comparison can fail."""
    model = detector(name, tmp_path, 0.0)
    assert all(each.size for each in original(model, pictures(tmp_path / "images", 2)))
    options = ["--head", "raw", "--backend", "none", "--json"]
    called = cli.deploykit("export", model, "--fp16", *options, "-o", tmp_path / "b")
    if called.code == 0:
        blind = [spot for report in called.data["validation"] for spot in report["blind_spots"]]
        assert not any("nothing could be compared" in spot for spot in blind)
    else:  # rounding may change how many there are, which is said
        assert "returns shape" in called.err


def test_a_classifier_without_an_answer_is_refused_as_before(tmp_path: Path) -> None:
    from deploykit.comparison.validation import validate
    from deploykit.core.precision import Precision
    from deploykit.heads.raw import RAW

    nothing = np.zeros((0, 7), np.float32)
    with pytest.raises(ValidationError, match="there is no output of b to compare a with"):
        validate([nothing], [nothing], precision=Precision.FP32, names=("a", "b"))
    with pytest.raises(ValidationError, match=r"a returns shape \(1, 7\), b returns \(0, 7\)"):
        validate(
            [np.zeros((1, 7), np.float32)], [nothing], precision=Precision.FP32,
            names=("a", "b"), head=RAW,
        )  # fmt: skip


# Declared shapes


@pytest.mark.parametrize(
    ("nodes", "real", "declared"),
    [
        ("y = Gemm <transB = 1> (f, k7)", ("N", 7), ("N", 10)),
        ("y = Gemm <transB = 1> (f, k7)", ("N", 7), ("N", 7, 1, 1)),
        ("l = Gemm <transB = 1> (f, k7)  y = Softmax <axis = 1> (l)", ("N", 7), ("N",)),
        ("y = Conv (r, wide)", ("N", 5, 16, 16), ("N", 5, 8, 8)),
        ("l = Gemm <transB = 1> (f, k6)  y = Reshape (l, shape)", ("N", 2, 3), ("N", 3, 2)),
    ],
)
def test_an_output_that_is_declared_otherwise(
    nodes: str,
    real: tuple[str | int, ...],
    declared: tuple[str | int, ...],
    tmp_path: Path,
) -> None:
    """The file runs all the same; what it gives is what its operators say."""
    wide, shape = normal(5, 16, 1, 1), np.array([0, 2, 3])
    outputs = f"float[{', '.join(map(str, real))}] y"
    model = network(nodes, outputs, tmp_path, wide=wide, shape=shape)
    proto = onnx.load(model)
    right = run_ort(proto, {"x": normal(2, 3, 16, 16)})["y"]
    wrong = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, declared)
    proto.graph.output[0].CopyFrom(wrong)
    proto.graph.value_info.append(
        onnx.helper.make_tensor_value_info("r", onnx.TensorProto.FLOAT, ("N", 16, 3, 3))
    )
    onnx.save(proto, model)
    options = ["--head", "raw", "--backend", "none", "-o", tmp_path / "b", "--json"]
    called = cli.deploykit("export", model, *options)
    assert called.code == 0, called.err
    before = f"({', '.join(map(str, declared))})"
    now = f"({', '.join(map(str, real))})"
    said = f"net.onnx declares its output 'y' as {before}, its operators give {now}: read as this"
    assert any(said in note and "export it again" in note for note in called.data["notes"])
    assert any("as 'r' (N, 16, 3, 3): inferred again" in note for note in called.data["notes"])
    with deploykit.load(tmp_path / "b", device="cpu") as loaded:
        np.testing.assert_allclose(loaded.run(normal(2, 3, 16, 16)), right, rtol=1e-4, atol=1e-5)
        assert loaded.outputs[0].shape[1:] == real[1:]
