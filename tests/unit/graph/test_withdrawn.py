"""GroupNormalization of opset 18 to 20: onnx refuses it, onnxruntime runs it, so it is read.

The oracles are onnxruntime on the file as it is written, and the formula in numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit.core.errors import ModelFileError
from deploykit.graph import read_model
from deploykit.graph.foreign import mended_of
from tests import cli
from tests.graphs import normal, run_ort
from tests.small_tails import pictures

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

GROUPS, CHANNELS = 2, 6
SCALE, BIAS = normal(GROUPS, seed=1) + 1, normal(GROUPS, seed=2)


def written(
    path: Path, opset: int = 18, scales: int = GROUPS, *, inside: bool = False, **attributes: Any
) -> Path:
    """A classifier with one group normalisation, at the top or in both branches of an If."""
    node = helper.make_node(
        "GroupNormalization", ["c", "s", "b"], ["g"], num_groups=GROUPS, **attributes
    )
    middle = [node]
    if inside:
        node.output[0] = "inner"
        result = [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)]
        branch = helper.make_graph([node], "branch", [], result)
        middle = [helper.make_node("If", ["yes"], ["g"], then_branch=branch, else_branch=branch)]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        *middle,
        helper.make_node("Relu", ["g"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "v"], ["y"], transB=1),
    ]
    weights = {
        "w": normal(CHANNELS, 3, 3, 3), "v": normal(4, CHANNELS, seed=3),
        "s": np.resize(SCALE, scales), "b": np.resize(BIAS, scales), "yes": np.array(True),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def operators(model: ir.Model) -> set[str]:
    return {node.op_type for node in model.graph.all_nodes()}


@pytest.mark.parametrize("opset", [18, 19, 20])
@pytest.mark.parametrize("options", [{}, {"epsilon": 0.25}, {"inside": True}])
def test_it_computes_what_onnxruntime_makes_of_the_file(
    tmp_path: Path, opset: int, options: dict[str, Any]
) -> None:
    path = written(tmp_path / "net.onnx", opset, **options)
    x = normal(3, 3, 16, 16, seed=5)
    model = read_model(path)
    assert "GroupNormalization" not in operators(model)
    found = run_ort(onnx.load(_written(model, tmp_path)), {"x": x})["y"]
    np.testing.assert_allclose(found, run_ort(onnx.load(path), {"x": x})["y"], rtol=2e-5, atol=2e-5)
    (note,) = mended_of(model).notes
    assert note.startswith("net.onnx has GroupNormalization with a scale for each group")


def _written(model: ir.Model, folder: Path) -> Path:
    import onnx_ir as ir

    ir.save(model, folder / "read.onnx")
    onnx.checker.check_model(str(folder / "read.onnx"), full_check=True)
    return folder / "read.onnx"


def test_the_formula(tmp_path: Path) -> None:
    path = written(tmp_path / "net.onnx", epsilon=0.5)
    model = read_model(path)
    (normalised,) = (n for n in model.graph if n.op_type == "InstanceNormalization")
    c, y = normal(2, CHANNELS, 5, 7, seed=8), "g"
    proto = onnx.load(_written(model, tmp_path))
    at = [node.output[0] for node in proto.graph.node]
    nodes = proto.graph.node[at.index("c") + 1 : at.index(y) + 1]
    alone = helper.make_graph(
        nodes,
        "alone",
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, ["n", CHANNELS, 5, 7])],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, None)],
        [each for each in proto.graph.initializer if each.name in {"s", "b"}],
    )
    made = helper.make_model(alone, opset_imports=proto.opset_import, ir_version=8)
    found = run_ort(made, {"c": c})[y]
    grouped = c.reshape(2, GROUPS, -1).astype(np.float64)
    mean, variance = grouped.mean(2, keepdims=True), grouped.var(2, keepdims=True)
    expected = (grouped - mean) / np.sqrt(variance + 0.5) * SCALE[:, None] + BIAS[:, None]
    np.testing.assert_allclose(found, expected.reshape(c.shape), rtol=1e-4, atol=1e-5)
    assert normalised.attributes["epsilon"].as_float() == 0.5


def test_scales_of_channels_are_refused_with_the_reason(tmp_path: Path) -> None:
    path = written(tmp_path / "net.onnx", 18, scales=CHANNELS)
    said = (
        r"net.onnx has GroupNormalization of 2 groups with a scale \(6,\)\nup to opset 20 it is one"
        r" for each group, from opset 21 one for each channel\nexport it again with opset 21"
    )
    with pytest.raises(ModelFileError, match=said):
        read_model(path)


def test_opset_21_is_left_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "net.onnx", 21, scales=CHANNELS)
    model = read_model(path)
    assert "GroupNormalization" in operators(model)
    assert mended_of(model).notes == ()


def test_such_a_file_is_exported_and_answers(tmp_path: Path) -> None:
    path, bundle = written(tmp_path / "net.onnx"), tmp_path / "bundle"
    called = cli.deploykit("export", path, "--fp16", "--backend", "none", "-o", bundle, "--json")
    assert called.code == 0, called.err
    assert any("which ONNX withdrew" in note for note in called.data["notes"])
    assert cli.deploykit("check", bundle).code == 0
    (image,) = pictures(tmp_path / "images", 1)
    assert cli.deploykit("predict", bundle, image).code == 0
