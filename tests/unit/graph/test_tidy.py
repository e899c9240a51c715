from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from deploykit.core.precision import Precision
from deploykit.graph import read_model, tidy, write_model
from tests.graphs import graph, normal, run_ort, save

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

IMAGE = normal(2, 3, 8, 8)


def tidied(source: onnx.ModelProto, folder: Path, *, rename: bool) -> onnx.ModelProto:
    model = read_model(save(source, folder / "source.onnx"))
    tidy(model, rename=rename)
    write_model(model, folder / "tidy.onnx", Precision.FP32)
    return onnx.load(folder / "tidy.onnx")


def assert_same_results(
    first: onnx.ModelProto,
    second: onnx.ModelProto,
    feeds: Mapping[str, NDArray[np.generic]] | None = None,
) -> None:
    expected, got = (run_ort(model, feeds or {"x": IMAGE}) for model in (first, second))
    assert list(got) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value)


def node_names(model: onnx.ModelProto) -> list[str]:
    return [node.name for node in model.graph.node]


def branches() -> onnx.ModelProto:
    """Unnamed nodes, and a subgraph that reads outer values."""
    model = graph(
        """g (float[batch,3,8,8] x, bool c) => (float[batch,4,8,8] y) {
            a = Conv (x, w)
            b = Relu (a)
            d = Relu (b)
            e = If (c) <
                then_branch = then () => (float[batch,4,8,8] t) { t = Add (a, b) },
                else_branch = other () => (float[batch,4,8,8] u) { u = Identity (d) }
            >
            y = Add (e, d)
        }""",
        {"w": normal(4, 3, 1, 1)},
    )
    model.graph.node[0].input[1] = model.graph.initializer[0].name = "block.conv.weight"
    return model


def branches_with_names(*names: str) -> onnx.ModelProto:
    model = branches()
    for node, name in zip(model.graph.node, names, strict=True):
        node.name = name
    return model


@pytest.mark.parametrize("rename", [True, False])
@pytest.mark.parametrize("condition", [True, False])
def test_names_are_unique_and_nothing_else_changes(
    tmp_path: Path, rename: bool, condition: bool
) -> None:
    source = branches_with_names("", "twice", "twice", "", "twice_2")
    result = tidied(source, tmp_path, rename=rename)
    assert all(count == 1 for count in Counter(node_names(result)).values())
    assert all(node_names(result))
    # onnxruntime itself refuses a name that stands there twice.
    assert_same_results(branches(), result, {"x": IMAGE, "c": np.array(condition)})


def test_nodes_and_values_are_named_after_modules(tmp_path: Path) -> None:
    result = tidied(branches(), tmp_path, rename=True)
    assert node_names(result) == ["block.conv/Conv", "Relu", "Relu_2", "If", "Add"]
    made = [name for node in result.graph.node for name in node.output]
    assert made == [
        "block.conv/Conv_output_0",
        "Relu_output_0",
        "Relu_2_output_0",
        "If_output_0",
        "y",
    ]
    then = next(a.g for a in result.graph.node[3].attribute if a.name == "then_branch")
    assert list(then.node[0].input) == made[:2]


def test_the_scope_of_the_exporter_names_a_node_without_weight(tmp_path: Path) -> None:
    source = graph("g (float[2] x) => (float[2] y) { a = Relu (x) b = Neg (a) y = Abs (b) }")
    scopes = ["['', 'layer1', 'layer1.relu', 'relu_1']", "not a list", "['only']"]
    for node, scope in zip(source.graph.node, scopes, strict=True):
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scope)
    result = tidied(source, tmp_path, rename=True)
    assert node_names(result) == ["layer1.relu/Relu", "Neg", "Abs"]


def test_names_that_the_user_gave_stay(tmp_path: Path) -> None:
    source = graph(
        "g (float[2] x) => (float[2] y) { a = Relu (x) b = Relu (a) c = Neg (b) y = Neg (c) }"
    )
    for node, name in zip(source.graph.node, ["first", "", "first", "Relu"], strict=True):
        node.name = name
    result = tidied(source, tmp_path, rename=False)
    assert node_names(result) == ["first", "Relu_2", "first_2", "Relu"]
    assert [node.output[0] for node in result.graph.node] == ["a", "b", "c", "y"]


def test_a_new_name_evades_those_of_inputs_outputs_weights_and_subgraphs(tmp_path: Path) -> None:
    source = graph(
        """g (float[2] Relu_output_0, bool c) => (float[2] Neg_output_0, float[2] y) {
            a = Relu (Relu_output_0)
            b = Neg (a)
            d = Abs (b)
            Neg_output_0 = Add (d, Relu_2_output_0)
            y = If (c) <
                then_branch = then () => (float[2] t) { Abs_output_0 = Exp (a)
                    t = Add (Abs_output_0, d) },
                else_branch = other () => (float[2] e) { e = Neg (d) }
            >
        }""",
        {"Relu_2_output_0": normal(2)},
    )
    result = tidied(source, tmp_path, rename=True)
    assert_same_results(source, result, {"Relu_output_0": normal(2), "c": np.array(1, bool)})
    assert [node.output[0] for node in result.graph.node] == [
        "Relu_output_0_2",
        "Neg_output_0_2",
        "Abs_output_0_2",
        "Neg_output_0",
        "y",
    ]


@pytest.mark.parametrize("rename", [True, False])
def test_inputs_and_outputs_keep_names_and_order(tmp_path: Path, rename: bool) -> None:
    source = graph(
        """g (float[batch,3,8,8] x) => (float[batch,3,8,8] second, float[batch,3,8,8] first) {
            first = Relu (x)
            n = Neg (first)
            second = Identity (n)
        }"""
    )
    result = tidied(source, tmp_path, rename=rename)
    assert [value.name for value in result.graph.input] == ["x"]
    assert [value.name for value in result.graph.output] == ["second", "first"]
    assert_same_results(source, result)


def test_an_optional_output_that_is_left_out_stays_out(tmp_path: Path) -> None:
    source = graph(
        """g (float[2,6] x) => (float[2,2] y, float[2,2] z) {
            y, , z = Split <axis = 1, num_outputs = 3> (x)
        }"""
    )
    source.graph.node[0].output[1] = "unused"
    pooled = graph(
        """g (float[batch,3,8,8] x) => (float[batch,3,4,4] y) {
            p, i = MaxPool <kernel_shape = [2,2], strides = [2,2]> (x)
            y = Relu (p)
        }"""
    )
    result = tidied(pooled, tmp_path, rename=True)
    assert len(result.graph.node[0].output) == 1
    assert_same_results(pooled, result)
    result = tidied(source, tmp_path, rename=True)
    assert_same_results(source, result, {"x": normal(2, 6)})


def test_constants_become_weights_and_the_unused_goes(tmp_path: Path) -> None:
    source = graph(
        """g (float[batch,3,8,8] x) => (float[batch,3,8,8] y, float[1] k) {
            k = Constant <value = float[1] {2}> ()
            s = Constant <value_float = 3.0> ()
            dead = Exp (x)
            same = Identity (x)
            kept = Dropout (same)
            y = Mul (kept, s)
        }""",
        {"spare": normal(5)},
    )
    result = tidied(source, tmp_path, rename=False)
    assert [node.op_type for node in result.graph.node] == ["Constant", "Dropout", "Mul"]
    assert [tensor.name for tensor in result.graph.initializer] == ["s"]
    assert_same_results(source, result)


def test_an_identity_that_a_subgraph_needs_stays(tmp_path: Path) -> None:
    result = tidied(branches(), tmp_path, rename=True)
    other = next(a.g for a in result.graph.node[3].attribute if a.name == "else_branch")
    assert [node.op_type for node in other.node] == ["Identity"]


def test_weights_leave_the_list_of_inputs(tmp_path: Path) -> None:
    source = graph(
        "g (float[2,3,8,8] x, float[4,3,1,1] w) => (float[2,4,8,8] y) { y = Conv (x, w) }",
        {"w": normal(4, 3, 1, 1)},
    )
    result = tidied(source, tmp_path, rename=True)
    assert [value.name for value in result.graph.input] == ["x"]
    assert_same_results(source, result)


def test_shapes_and_types_are_filled_in(tmp_path: Path) -> None:
    result = tidied(branches(), tmp_path, rename=True)
    known = {value.name: value.type.tensor_type for value in result.graph.value_info}
    shape = [dim.dim_param or dim.dim_value for dim in known["Relu_output_0"].shape.dim]
    assert shape == ["batch", 4, 8, 8]
    assert known["Relu_output_0"].elem_type == onnx.TensorProto.FLOAT


def test_tidying_twice_changes_nothing(tmp_path: Path) -> None:
    first = tidied(branches(), tmp_path, rename=True)
    second = tidied(first, tmp_path, rename=True)
    assert first.SerializeToString() == second.SerializeToString()
