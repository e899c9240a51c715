"""Graphs that ask for far more memory than their files have bytes."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit.core.errors import ModelFileError
from deploykit.graph import fold, plain, read_model, require_bounded
from deploykit.graph.shapes import ShapesAt
from tests.cli import deploykit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from onnx import NodeProto

    Joined = tuple[list[NodeProto], str]


def doubled(first: str, times: int, axis: int = 0) -> Joined:
    """A value that is joined with itself, again and again."""
    names = [first, *(f"d{i}" for i in range(times))]
    nodes = [
        helper.make_node("Concat", [a, a], [b], f"join_{b}", axis=axis) for a, b in pairwise(names)
    ]
    return nodes, names[-1]


def braided(first: str, times: int) -> Joined:
    """Two values that are joined with one another, so that no input stands there twice."""
    nodes, a, b = [], first, "other"
    for i in range(times):
        nodes += [
            helper.make_node("Concat", [a, b], [f"a{i}"], f"join_a{i}", axis=0),
            helper.make_node("Concat", [b, a], [f"b{i}"], f"join_b{i}", axis=0),
        ]
        a, b = f"a{i}", f"b{i}"
    return nodes, a


def tiled(first: str, times: int) -> Joined:
    return [helper.make_node("Tile", [first, "many"], ["t"], "repeat")], "t"


def squared(first: str, times: int) -> Joined:
    """Each product with its own transpose has the square of the elements."""
    nodes, last = [], first
    for i in range(5):
        nodes += [
            helper.make_node("Reshape", [last, "column"], [f"c{i}"]),
            helper.make_node("Reshape", [last, "row"], [f"r{i}"]),
            helper.make_node("MatMul", [f"c{i}", f"r{i}"], [f"m{i}"], f"product_{i}"),
        ]
        last = f"m{i}"
    return nodes, last


GROWING: dict[str, Callable[[str, int], Joined]] = {
    "doubled": doubled,
    "braided": braided,
    "tiled": tiled,
    "squared": squared,
}


def model_of(grow: Callable[[str, int], Joined], *, constant: bool) -> onnx.ModelProto:
    """A classifier that adds the mean of what grows, of a constant or of the image."""
    start = "seed" if constant else "flat"
    nodes, last = grow(start, 40)
    weights: dict[str, np.ndarray[Any, Any]] = {
        "seed": np.ones((64,), np.float32),
        "other": np.zeros((64,), np.float32),
        "many": np.array([2**34], np.int64),
        "column": np.array([-1, 1], np.int64),
        "row": np.array([1, -1], np.int64),
        "all": np.array([-1], np.int64),
    }
    body = [
        helper.make_node("Reshape", ["x", "all"], ["flat"]),
        *nodes,
        helper.make_node("ReduceMean", [last], ["mean"], keepdims=0),
        helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["rows"]),
        helper.make_node("Add", ["rows", "mean"], ["y"]),
    ]
    made = helper.make_graph(
        body,
        "grows",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.fixture
def bounded() -> Iterator[None]:
    """Fails where numpy took more than 512 MiB meanwhile."""
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 512 * 2**20


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(ModelFileError) as caught:
        call()
    first, second = str(caught.value).splitlines()
    assert second.startswith("expected at most 1,0")
    assert second.endswith("is the file damaged?")
    return first


@pytest.mark.timeout(60)
@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("constant", [True, False], ids=["a constant", "the image"])
@pytest.mark.parametrize("grow", GROWING)
def test_a_graph_that_grows_is_refused_before_it_is_read(
    tmp_path: Path, grow: str, *, constant: bool
) -> None:
    path = tmp_path / "bomb.onnx"
    onnx.save(model_of(GROWING[grow], constant=constant), path)
    said = refused(lambda: read_model(path))
    assert said.startswith("bomb.onnx: ")
    numbers = "constants" if constant and grow in {"doubled", "braided"} else "bytes for one image"
    assert numbers in said


@pytest.mark.timeout(60)
@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("grow", GROWING)
def test_folding_does_not_compute_it(grow: str) -> None:
    model = ir.from_proto(model_of(GROWING[grow], constant=True))
    assert refused(lambda: fold(model)).startswith("the graph: ")
    assert refused(lambda: plain(model, "bomb")).startswith("bomb: ")


@pytest.mark.timeout(60)
@pytest.mark.usefixtures("bounded")
def test_nodes_in_disorder_are_followed_too(tmp_path: Path) -> None:
    proto = model_of(doubled, constant=True)
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    onnx.save(proto, tmp_path / "bomb.onnx")
    assert "constants" in refused(lambda: read_model(tmp_path / "bomb.onnx"))


@pytest.mark.timeout(60)
@pytest.mark.usefixtures("bounded")
def test_a_function_of_the_file_is_followed_too() -> None:
    proto = model_of(doubled, constant=False)
    inside = [each for each in proto.graph.node if each.op_type == "Concat"]
    start = helper.make_node("Constant", [], ["flat"], value=numpy_helper.from_array(np.ones(64)))
    domain = helper.make_opsetid("mine", 1)
    opsets = [helper.make_opsetid("", 13)]
    proto.functions.append(
        helper.make_function("mine", "Bomb", [], [inside[-1].output[0]], [start, *inside], opsets)
    )
    proto.opset_import.append(domain)
    outside = [each for each in proto.graph.node if each.op_type != "Concat"]
    called = helper.make_node("Bomb", [], [inside[-1].output[0]], domain="mine")
    del proto.graph.node[:]
    proto.graph.node.extend([called, *outside])
    assert "constants" in refused(lambda: require_bounded(ir.from_proto(proto), "bomb"))


def test_folding_counts_a_value_once_that_is_joined_with_itself() -> None:
    """Weights of 8,192 numbers, doubled seven times: 1 million, less than any limit of a value."""
    nodes, last = doubled("w", 7)
    graph = helper.make_graph(
        [*nodes, helper.make_node("Add", ["x", last], ["y"])],
        "seven",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2**20])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2**20])],
        [numpy_helper.from_array(np.ones(8192, np.float32), "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    folded = fold(ir.from_proto(proto))
    kept = [value.const_value for value in folded.graph.initializers.values()]
    assert [each.size for each in kept if each is not None] == [8192]


def node(op: str, inputs: Sequence[str], **attributes: Any) -> NodeProto:
    return helper.make_node(op, inputs, ["big"], **attributes)


HUGE = {
    "Range": (node("Range", ["zero", "huge", "one"]), ["zero", "huge", "one"]),
    "ConstantOfShape": (node("ConstantOfShape", ["shape"]), ["shape"]),
    "Expand": (node("Expand", ["one", "shape"]), ["one", "shape"]),
    "Tile": (node("Tile", ["shape", "shape"]), ["shape"]),
    "Pad": (node("Pad", ["shape", "pads"]), ["shape", "pads"]),
    "OneHot": (node("OneHot", ["shape", "huge", "values"]), ["shape", "huge", "values"]),
}


@pytest.mark.timeout(30)
@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("op", HUGE)
def test_shapes_are_propagated_without_the_numbers(op: str) -> None:
    """Each of them would take 8 GB or more to evaluate."""
    values = {
        "zero": np.array(0, np.int64),
        "one": np.array(1, np.int64),
        "huge": np.array(10**9, np.int64),
        "shape": np.array([10**9], np.int64),
        "pads": np.array([0, 10**9], np.int64),
        "values": np.array([0, 1], np.int64),
    }
    made, names = HUGE[op]
    graph = helper.make_graph(
        [made],
        "huge",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("big", TensorProto.INT64, None)],
        [numpy_helper.from_array(values[name], name) for name in names],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    model = ir.from_proto(proto)
    shapes = ShapesAt(model, 1)
    for each in model.graph:
        shapes.follow(each)
    big = model.graph.outputs[0]
    assert shapes.data(big) is None
    with pytest.raises(ModelFileError, match=f"bomb: {op} .* would make a "):
        require_bounded(model, "bomb")


def test_small_results_of_the_same_operators_are_still_known() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Shape", ["x"], ["s"]),
            helper.make_node("ConstantOfShape", ["four"], ["z"]),
            helper.make_node("Expand", ["s", "four"], ["e"]),
        ],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("e", TensorProto.INT64, None)],
        [numpy_helper.from_array(np.array([4], np.int64), "four")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    model = ir.from_proto(proto)
    shapes = ShapesAt(model, 5)
    for each in model.graph:
        shapes.follow(each)
    found = {str(v.name): shapes.data(v) for n in model.graph for v in n.outputs}
    assert {name: value.tolist() for name, value in found.items() if value is not None} == {
        "s": [5, 3, 8, 8],
        "z": [0, 0, 0, 0],
        "e": [5, 3, 8, 8],
    }
    require_bounded(model, "small")


def test_large_images_may_have_large_values() -> None:
    """64 channels at full size of 2,048 x 2,048 are 1 GiB, of 4,096 x 4,096 4 GiB."""
    for side in (2048, 4096):
        graph = helper.make_graph(
            [helper.make_node("Concat", ["x"] * 21, ["y"], axis=1)],
            "vgg",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, side, side])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        require_bounded(ir.from_proto(proto), "vgg")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("command", ["export", "validate"])
def test_commands_refuse_it_before_anything_runs_it(tmp_path: Path, command: str) -> None:
    path = tmp_path / "bomb.onnx"
    onnx.save(model_of(doubled, constant=True), path)
    more = (path,) if command == "validate" else ("--backend", "none")
    called = deploykit(command, path, *more)
    assert called.code == 1
    assert "bomb.onnx: Concat 'join_d" in called.err
