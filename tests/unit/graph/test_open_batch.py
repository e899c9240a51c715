"""A fixed batch is opened where the graph allows it; where not, the node is named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from deploykit.core.errors import ModelFileError
from deploykit.graph import fold, open_batch, tidy
from tests.graphs import normal, run_ort
from tests.own_files import convolution, linear, model, node, old, tensor, weights, written_shape

if TYPE_CHECKING:
    from collections.abc import Sequence


def opened(source: onnx.ModelProto) -> onnx.ModelProto:
    tidied = ir.from_proto(source)
    tidy(tidied, rename=False)
    before = ir.to_proto(tidied).SerializeToString(deterministic=True)
    result = open_batch(tidied)
    assert ir.to_proto(tidied).SerializeToString(deterministic=True) == before
    tidy(result, rename=False)
    proto = ir.to_proto(result)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def assert_opened(source: onnx.ModelProto) -> onnx.ModelProto:
    """Any number of images gives what the original gives them at its own batch."""
    result = opened(source)
    fixed = source.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    images = normal(3 * fixed, 3, 8, 8, seed=7)
    groups = [run_ort(source, {"x": part})["y"] for part in np.split(images, 3)]
    expected = np.concatenate(groups)
    for proto in (result, ir.to_proto(fold(ir.from_proto(result)))):
        for count in (1, 2, len(images)):
            got = run_ort(proto, {"x": images[:count]})["y"]
            np.testing.assert_allclose(got, expected[:count], atol=1e-4)
    dims = [
        list(v.type.tensor_type.shape.dim) for v in (result.graph.input[0], result.graph.output[0])
    ]
    assert [dim[0].dim_param for dim in dims] == ["batch", "batch"]
    return result


def net(
    batch: int, nodes: Sequence[onnx.NodeProto], shape: Sequence[int] = (10,), **more: Any
) -> onnx.ModelProto:
    outputs = [tensor("y", TensorProto.FLOAT, (batch, *shape))]
    return model([*convolution(), *nodes], weights(**more), batch=batch, outputs=outputs)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("rest", [256, -1])
def test_reshape_with_the_batch_in_numbers(batch: int, rest: int) -> None:
    result = assert_opened(written_shape(batch, (batch, rest)))
    (sizes,) = (t for t in result.graph.initializer if t.name == "flatten_shape")
    assert onnx.numpy_helper.to_array(sizes).tolist() == [-1, 256]


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("shape", [(-1, 256), (0, -1), (0, 256)])
def test_reshape_that_lets_the_batch_through_stays(batch: int, shape: tuple[int, int]) -> None:
    result = assert_opened(written_shape(batch, shape))
    assert [n.input[1] for n in result.graph.node if n.op_type == "Reshape"] == ["sizes"]


@pytest.mark.parametrize("batch", [1, 4])
def test_shape_that_is_computed_in_the_graph(batch: int) -> None:
    assert_opened(old(17, batch=batch))


@pytest.mark.parametrize("batch", [1, 2])
def test_heads_of_attention_next_to_the_batch(batch: int) -> None:
    """As torch's MultiheadAttention has it: (length, batch * heads, width)."""
    nodes = [
        node("Reshape", ["n", "tokens"], ["t"], "tokens"),
        node("Transpose", ["t"], ["l"], perm=[2, 0, 1]),
        node("Reshape", ["l", "split"], ["h"], "split"),
        node("Softmax", ["h"], ["a"]),
        node("Reshape", ["a", "join"], ["j"], "join"),
        node("Transpose", ["j"], ["k"], perm=[1, 2, 0]),
        node("Reshape", ["k", "flat"], ["f"], "flat"),
        linear(),
    ]
    sizes: dict[str, Any] = {
        "tokens": np.array([batch, 4, 64]),
        "split": np.array([64, batch * 2, 2]),
        "join": np.array([64, batch, 4]),
        "flat": np.array([batch, 256]),
    }
    assert_opened(net(batch, nodes, **sizes))


@pytest.mark.parametrize("batch", [1, 2])
def test_windows_of_attention_before_the_rest(batch: int) -> None:
    """As Swin has it: (batch * windows, width of a window, channels)."""
    nodes = [
        node("Reshape", ["n", "cut"], ["a"], "cut"),
        node("Transpose", ["a"], ["b"], perm=[0, 2, 4, 3, 5, 1]),
        node("Reshape", ["b", "windows"], ["w1"], "windows"),
        node("Softmax", ["w1"], ["s"]),
        node("Reshape", ["s", "back"], ["c1"], "back"),
        node("Flatten", ["c1"], ["f"]),
        linear(),
    ]
    sizes: dict[str, Any] = {
        "cut": np.array([batch, 4, 2, 4, 2, 4]),
        "windows": np.array([batch * 4, 16, 4]),
        "back": np.array([batch, 2, 2, 16, 4]),
    }
    assert_opened(net(batch, nodes, **sizes))


@pytest.mark.parametrize("batch", [1, 3])
def test_class_token_is_repeated(batch: int) -> None:
    nodes = [
        node("Reshape", ["n", "sizes"], ["t"], "tokens"),
        node("Concat", ["cls", "t"], ["y"], "cls_cat", axis=2),
    ]
    token = np.repeat(normal(1, 4, 1), batch, axis=0)
    assert_opened(net(batch, nodes, (4, 65), sizes=np.array([batch, 4, 64]), cls=token))


def test_class_token_next_to_the_batch() -> None:
    nodes = [
        node("Transpose", ["n"], ["t"], perm=[1, 0, 2, 3]),
        node("Concat", ["t", "cls"], ["a"], "cls_cat", axis=0),
        node("Transpose", ["a"], ["y"], perm=[1, 0, 2, 3]),
    ]
    assert_opened(net(1, nodes, (5, 8, 8), cls=normal(1, 1, 8, 8)))


@pytest.mark.parametrize("batch", [1, 3])
def test_expanded_class_token(batch: int) -> None:
    nodes = [
        node("Reshape", ["n", "sizes"], ["t"], "tokens"),
        node("Expand", ["cls", "each"], ["e"], "each"),
        node("Concat", ["e", "t"], ["y"], "cls_cat", axis=2),
    ]
    sizes: dict[str, Any] = {"sizes": np.array([batch, 4, 64]), "each": np.array([batch, 4, 1])}
    assert_opened(net(batch, nodes, (4, 65), cls=normal(1, 4, 1), **sizes))


@pytest.mark.parametrize("batch", [1, 3])
def test_expand_of_the_images_themselves(batch: int) -> None:
    nodes = [
        node("GlobalAveragePool", ["n"], ["p"]),
        node("Expand", ["p", "each"], ["y"], "each"),
    ]
    assert_opened(net(batch, nodes, (4, 2, 2), each=np.array([batch, 4, 2, 2])))


def test_operand_that_was_written_out_for_each_image() -> None:
    nodes = [node("Flatten", ["n"], ["f"]), linear(result="z"), node("Add", ["z", "each"], ["y"])]
    assert_opened(net(3, nodes, each=np.repeat(normal(1, 10), 3, axis=0)))


def assert_frozen(source: onnx.ModelProto, words: str) -> None:
    with pytest.raises(ModelFileError, match=words):
        opened(source)


def test_a_batch_that_is_squeezed_away_is_named() -> None:
    nodes = [
        node("Reshape", ["n", "sizes"], ["a"], "flat"),
        node("Unsqueeze", ["a", "first"], ["f"], "unsqueeze"),
        linear(),
    ]
    source = net(1, nodes, sizes=np.array([256]), first=np.array([0]))
    assert_frozen(source, r"Gemm 'fc' holds for a batch of 1 only \(Dimension mismatch")


@pytest.mark.parametrize(
    ("made", "what"),
    [
        (node("Gather", ["n", "zero"], ["g"], "pick", axis=0), r"Gather 'pick' gives \(4, 8, 8\)"),
        (
            node("ReduceMean", ["n", "first"], ["g"], "mix"),
            r"ReduceMean 'mix' gives \(1, 4, 8, 8\)",
        ),
    ],
)
def test_a_node_that_mixes_the_images_is_named(made: onnx.NodeProto, what: str) -> None:
    nodes = [made, node("Sub", ["n", "g"], ["d"]), node("Flatten", ["d"], ["f"]), linear()]
    source = net(2, nodes, zero=np.array(0), first=np.array([0]))
    assert_frozen(source, f"{what} whatever the batch: it mixes the images")


def test_an_output_without_a_batch() -> None:
    nodes = [node("Flatten", ["n"], ["f"]), linear(), node("Identity", ["bias"], ["z"])]
    source = net(2, nodes)
    source.graph.output.append(tensor("z", TensorProto.FLOAT, (10,)))
    assert_frozen(source, "the output 'z' has no batch of its own")


def test_other_open_dimensions() -> None:
    source = model([node("Relu", ["x"], ["y"])], {}, outputs=[tensor("y", 1, (1, 3, "h", 8))])
    dims = source.graph.input[0].type.tensor_type.shape.dim
    dims[0].dim_value, dims[2].dim_param = 1, "h"
    assert_frozen(source, "x has other open dimensions, which hide the batch")
