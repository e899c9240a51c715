"""Files that break the standard in ways whose meaning is clear."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from deploykit.backends._registry import graph_judge
from deploykit.core.errors import ModelFileError
from deploykit.graph import describe_layers, read_artifact, read_graph, read_model
from deploykit.graph.foreign import mended_of
from deploykit.graph.kernel_costs import network_cost
from tests.graphs import graph, normal, run_ort, save, whole
from tests.own_files import node

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    Dims = Sequence[int | str | None] | None

STATIC = [2, 3, 8, 8]


def network(
    image: Dims, out: Dims = ("n", 4), channels: int = 3, group: int = 1
) -> onnx.ModelProto:
    """Conv, Relu, pooling and Gemm, with ``x`` and ``y`` declared as they are given."""
    source = graph(
        f"""g (float[n,{channels},8,8] x) => (float[n,4] y) {{
            c = Conv <group = {group}> (x, w)
            r = Relu (c)
            p = GlobalAveragePool (r)
            f = Flatten (p)
            y = Gemm <transB = 1> (f, v)
        }}""",
        {"w": normal(6, channels // group, 3, 3), "v": normal(4, 6, seed=1)},
    )
    for value, dims in ((source.graph.input[0], image), (source.graph.output[0], out)):
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, dims))
    return source


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ([-1, 3, 8, 8], ("x_0", 3, 8, 8)),
        ([0, 3, 8, 8], ("x_0", 3, 8, 8)),
        ([-1, 3, -1, -1], ("x_0", 3, "x_2", "x_3")),
        (["?", 3, "?", "?"], ("x_0", 3, "x_2", "x_3")),
        (["-1", 3, "-1", "-1"], ("x_0", 3, "x_2", "x_3")),
        (["None", 3, "None", "None"], ("x_0", 3, "x_2", "x_3")),
        (["N", 3, "N", "N"], ("x_0", 3, "x_2", "x_3")),
        (["n", 3, "side", "side"], ("n", 3, "side", "side")),
        (["unk__6", 3, 8, 8], ("unk__6", 3, 8, 8)),
        ([None, None, None, None], ("x_0", 3, "x_2", "x_3")),
        ([-1, -1, 8, 8], ("x_0", 3, 8, 8)),
        (["batch", "num_channels", "height", "width"], ("batch", 3, "height", "width")),
        (["n", "?", 8, None], ("n", 3, 8, "x_3")),
        (None, ("x_0", 3, "x_2", "x_3")),
    ],
)
def test_what_is_open(tmp_path: Path, written: Dims, read: tuple[int | str, ...]) -> None:
    source = network(written, None)
    path = save(source, tmp_path / "m.onnx")
    artifact = read_artifact(path)
    assert artifact.inputs[0].shape == read
    assert len(artifact.outputs[0].shape) == 2
    assert artifact.outputs[0].shape[1] == 4
    images = normal(*STATIC)
    found = run_ort(whole(read_graph(path).split()), {"x": images})["y"]
    clean = run_ort(network(["n", 3, 8, 8]), {"x": images})["y"]
    np.testing.assert_array_equal(found, clean)


def test_a_name_of_batch_and_side_inputs_stays(tmp_path: Path) -> None:
    """Only where it is also a height or a width it says nothing."""
    text = """g (float[N,3,8,8] x, float[N,5] z) => (float[N,5] y) {
        p = GlobalAveragePool (x)
        s = ReduceSum <keepdims = 0> (p, axes)
        u = Unsqueeze (s, last)
        y = Add (u, z)
    }"""
    constants = {"axes": np.array([1, 2, 3]), "last": np.array([1])}
    found = read_artifact(save(graph(text, constants), tmp_path / "m.onnx"))
    assert [spec.shape for spec in found.inputs] == [("N", 3, 8, 8), ("N", 5)]


def test_notes_of_what_is_read_otherwise(tmp_path: Path) -> None:
    model = read_model(save(network([-1, 3, 8, 8]), tmp_path / "m.onnx"))
    (note,) = mended_of(model).notes
    assert note == "m.onnx has 'x' as (-1, 3, 8, 8): read as (?, 3, 8, 8), ? is open"
    assert mended_of(model).runs_as_written
    model = read_model(save(network(["n", "c", 8, 8]), tmp_path / "m.onnx"))
    assert mended_of(model).notes == ("m.onnx has 'x' as (n, c, 8, 8): read as (n, 3, 8, 8)",)
    model = read_model(save(network([0, 3, 8, 8]), tmp_path / "m.onnx"))
    assert not mended_of(model).runs_as_written
    model = read_model(save(network(["n", 3, 8, 8]), tmp_path / "m.onnx"))
    assert not mended_of(model).notes


@pytest.mark.parametrize(("channels", "group"), [(1, 1), (4, 2), (6, 6)])
def test_channels_of_an_input_without_a_shape(tmp_path: Path, channels: int, group: int) -> None:
    path = save(network(None, None, channels, group), tmp_path / "m.onnx")
    assert read_artifact(path).inputs[0].shape == ("x_0", channels, "x_2", "x_3")


def test_channels_behind_arithmetic_and_a_transpose(tmp_path: Path) -> None:
    source = graph(
        """g (float[n,8,8,3] x) => (float[n,6,8,8] y) {
            s = Sub (x, mean)
            t = Transpose <perm = [0, 3, 1, 2]> (s)
            w = Constant <value = float[1,3,1,1] {1.0, 2.0, 3.0}> ()
            y = Conv (t, w)
        }""",
        {"mean": normal(3)},
    )
    source.graph.input[0].type.tensor_type.ClearField("shape")
    source.graph.output[0].type.tensor_type.ClearField("shape")
    artifact = read_artifact(save(source, tmp_path / "m.onnx"))
    assert artifact.inputs[0].shape == ("x_0", "x_1", "x_2", 3)


def test_a_vector_without_a_shape(tmp_path: Path) -> None:
    source = graph("g (float[n,7] x) => (float[n,4] y) { y = Gemm (x, w) }", {"w": normal(7, 4)})
    source.graph.input[0].type.tensor_type.ClearField("shape")
    assert read_artifact(save(source, tmp_path / "m.onnx")).inputs[0].shape == ("x_0", 7)


def test_numbers_without_a_shape_that_nothing_shows(tmp_path: Path) -> None:
    source = graph(
        "g (int64[n] ward) => (float[n,4] y) { y = Gather (w, ward) }", {"w": normal(7, 4)}
    )
    source.graph.input[0].type.tensor_type.ClearField("shape")
    words = r"does not say the shape of its input 'ward', and no layer shows it\nexport it again"
    with pytest.raises(ModelFileError, match=words):
        read_artifact(save(source, tmp_path / "m.onnx"))


# Order


def shuffled(source: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    nodes = list(source.graph.node)
    order = np.random.default_rng(seed).permutation(len(nodes))
    copies = [onnx.NodeProto.FromString(nodes[at].SerializeToString()) for at in order]
    del source.graph.node[:]
    source.graph.node.extend(copies)
    return source


@pytest.mark.parametrize("seed", range(4))
def test_nodes_in_any_order(tmp_path: Path, seed: int) -> None:
    source = shuffled(network(["n", 3, 8, 8]), seed)
    model = read_model(save(source, tmp_path / "m.onnx"))
    assert [each.op_type for each in model.graph] == [
        "Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"
    ]  # fmt: skip
    assert mended_of(model).notes == ("the nodes of m.onnx are not in order: sorted",)


def test_independent_nodes_keep_their_order(tmp_path: Path) -> None:
    source = graph(
        """g (float[n,2] x) => (float[n,2] y) {
            y = Add (d, c)
            a = Neg (x)
            b = Abs (x)
            c = Mul (a, b)
            d = Sub (b, a)
        }"""
    )
    model = read_model(save(source, tmp_path / "m.onnx"))
    assert [each.op_type for each in model.graph] == ["Neg", "Abs", "Mul", "Sub", "Add"]


def test_nodes_in_a_branch_and_what_it_reads_from_outside(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    branches = {
        "then_branch": ([node("Relu", ["q"], ["t"]), node("Neg", ["late"], ["q"])], "t"),
        "else_branch": ([node("Abs", ["late"], ["e"])], "e"),
    }
    bodies = {
        name: helper.make_graph(nodes, name, [], [value(out, TensorProto.FLOAT, [2])])
        for name, (nodes, out) in branches.items()
    }
    nodes = [node("If", ["c"], ["y"], **bodies), node("Exp", ["x"], ["late"])]
    inputs = [value("x", TensorProto.FLOAT, [2]), value("c", TensorProto.BOOL, [])]
    made = helper.make_graph(nodes, "g", inputs, [value("y", TensorProto.FLOAT, [2])])
    source = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = save(source, tmp_path / "m.onnx")
    feeds = {"x": np.array([-1, 2], np.float32)}
    graph_read = whole(read_graph(path).split())
    for flag, expected in ((True, np.zeros(2)), (False, np.exp([-1.0, 2.0]))):
        found = run_ort(graph_read, {**feeds, "c": np.array(flag)})["y"]
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_nodes_that_wait_for_one_another(tmp_path: Path) -> None:
    source = graph("g (float[2] x) => (float[2] y) { a = Add (x, b)  b = Neg (a)  y = Abs (b) }")
    words = r"m.onnx has a circle: Add '' reads what is computed from it\nthe file is damaged"
    with pytest.raises(ModelFileError, match=words):
        read_model(save(source, tmp_path / "m.onnx"))


# Links of a cache


def cached(cache: Path, *, data: str = "m.onnx_data", folder: str = "onnx") -> Path:
    """As huggingface_hub lays a repository out: a snapshot of links to blobs."""
    blobs, snapshot = cache / "blobs", cache / "snapshots" / "abc" / folder
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    onnx.save(
        network(["n", 3, 8, 8]), blobs / "m.onnx", save_as_external_data=True, location=data,
        size_threshold=0,
    )  # fmt: skip
    (blobs / "m.onnx").rename(blobs / "1f")
    (blobs / data).rename(blobs / "2e")
    for name, blob in (("m.onnx", "1f"), (data, "2e")):
        (snapshot / name).symlink_to(os.path.relpath(blobs / blob, snapshot))
    return snapshot / "m.onnx"


@pytest.mark.parametrize("folder", ["", "onnx", "a/b"])
def test_a_cache_of_links(tmp_path: Path, folder: str) -> None:
    path = cached(tmp_path / "models--a--b", folder=folder)
    images = normal(*STATIC)
    found = run_ort(whole(read_graph(path).split()), {"x": images})["y"]
    clean = run_ort(network(["n", 3, 8, 8]), {"x": images})["y"]
    np.testing.assert_array_equal(found, clean)


def test_links_of_a_cache_that_is_itself_behind_one(tmp_path: Path) -> None:
    path = cached(tmp_path / "disk" / "models--a--b")
    (tmp_path / "hub").symlink_to(tmp_path / "disk")
    assert read_artifact(tmp_path / "hub" / path.relative_to(tmp_path / "disk")).inputs


@pytest.mark.parametrize("target", ["../secret", "../../../secret", "blobs-of-others/2e"])
def test_links_of_a_cache_that_lead_out(tmp_path: Path, target: str) -> None:
    cache = tmp_path / "models--a--b"
    path = cached(cache)
    data = path.with_name("m.onnx_data")
    place = cache / "blobs" / target if target.startswith("..") else cache / target
    place.parent.mkdir(exist_ok=True)
    data.resolve().rename(place)
    data.unlink()
    data.symlink_to(place)
    with pytest.raises(ModelFileError, match=r"'m\.onnx_data', outside its own folder"):
        read_model(path)


def test_blobs_that_are_a_link_themselves(tmp_path: Path) -> None:
    cache = tmp_path / "models--a--b"
    path = cached(cache)
    (cache / "blobs").rename(tmp_path / "elsewhere")
    (cache / "blobs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelFileError, match="outside its own folder"):
        read_model(path)


def test_a_path_through_a_cache_with_dots(tmp_path: Path) -> None:
    path = cached(tmp_path / "models--a--b", data="m.onnx_data")
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../../blobs/2e"
    path.unlink()
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelFileError, match="outside its own folder"):
        read_model(path)


# Shapes that only a run tells

TAIL = {"k": normal(16, 5, seed=3)}


def expanded_token() -> onnx.ModelProto:
    """A class token that is expanded by a shape with -1 for "keep", as detectors export it."""
    text = """g (float[n,3,32,32] x) => (float[n,65,5] y) {
        c = Conv <kernel_shape = [4, 4], strides = [4, 4]> (x, w)
        p = Reshape (c, flat)
        t = Transpose <perm = [0, 2, 1]> (p)
        s = Shape <start = 0, end = 1> (x)
        sizes = Concat <axis = 0> (s, keep)
        ones = ConstantOfShape <value = int64[1] {1}> (three)
        none = Equal (sizes, minus)
        wanted = Where (none, ones, sizes)
        token = Expand (cls, wanted)
        all = Concat <axis = 1> (token, t)
        y = MatMul (all, k)
    }"""
    constants = {
        "w": normal(16, 3, 4, 4), "cls": normal(1, 1, 16), "flat": np.array([0, 16, -1]),
        "keep": np.array([-1, -1]), "three": np.array([3]), "minus": np.full(3, -1), **TAIL,
    }  # fmt: skip
    return graph(text, constants)


def counted_pixels() -> onnx.ModelProto:
    """As many rows as places that are not zero: no inference can know."""
    text = """g (float[n,3,8,8] x) => (float[m,5] y) {
        found = NonZero (x)
        rows = Transpose <perm = [1, 0]> (found)
        f = Cast <to = 1> (rows)
        y = MatMul (f, k)
    }"""
    return graph(text, {"k": normal(4, 5, seed=3)})


def resized() -> onnx.ModelProto:
    """Sizes that are computed from the image in floating point."""
    text = """g (float[n,3,8,8] x) => (float[n,3,h,w] y) {
        s = Shape (x)
        f = Cast <to = 1> (s)
        d = Mul (f, scale)
        sizes = Cast <to = 7> (d)
        empty = Constant <value = float[0] {}> ()
        big = Resize <mode = "nearest"> (x, empty, empty, sizes)
        y = Conv <pads = [1, 1, 1, 1]> (big, w)
    }"""
    scale = np.array([1, 1, 2, 3], np.float32)
    return graph(text, {"scale": scale, "w": normal(3, 3, 3, 3)})


@pytest.mark.parametrize(
    ("source", "macs", "last"),
    [
        (expanded_token(), 2 * (64 * 16 * 48 + 65 * 16 * 5), (2, 65, 5)),
        (counted_pixels(), 2 * 192 * 4 * 5, (2 * 192, 5)),
        (resized(), 2 * 16 * 24 * 3 * 27, (2, 3, 16, 24)),
    ],
)
def test_shapes_of_a_run(
    tmp_path: Path, source: onnx.ModelProto, macs: int, last: tuple[int, ...]
) -> None:
    model = read_model(save(source, tmp_path / "m.onnx"))
    run = graph_judge().run_once
    summary = describe_layers(model, "m.onnx", 2, run)
    assert summary.multiply_adds == macs
    assert summary.layers[-1].output_shape == last
    assert network_cost(model, 2, run).multiply_adds == macs


def test_a_shape_that_nothing_tells_without_a_run(tmp_path: Path) -> None:
    model = read_model(save(counted_pixels(), tmp_path / "m.onnx"))
    with pytest.raises(ModelFileError, match="no shape can be inferred for"):
        describe_layers(model, "m.onnx", 2)
