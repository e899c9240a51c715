"""Constants are folded within limits, and the graph computes the same."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit.core.errors import ModelFileError
from deploykit.core.precision import Precision
from deploykit.graph import fold, plain, read_model, tidy, write_model
from tests.graphs import graph, normal, run_ort
from tests.own_files import convolution, linear, model, node, old, tensor, weights

if TYPE_CHECKING:
    from pathlib import Path

IMAGES = normal(3, 3, 8, 8)


def tidied(source: onnx.ModelProto) -> ir.Model:
    result = ir.from_proto(source)
    tidy(result, rename=False)
    return result


def folded(source: onnx.ModelProto) -> onnx.ModelProto:
    result = ir.to_proto(fold(tidied(source)))
    onnx.checker.check_model(result, full_check=True)
    expected, got = (run_ort(each, {"x": IMAGES}) for each in (source, result))
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, atol=1e-5)
    return result


def ops(result: onnx.ModelProto) -> list[str]:
    return [made.op_type for made in result.graph.node]


@pytest.mark.parametrize("batch", ["n", 3])
def test_a_shape_that_is_computed_from_the_batch_becomes_one_number(batch: int | str) -> None:
    result = folded(old(17, batch=batch))
    assert ops(result) == ["Conv", "Relu", "Reshape", "Gemm"]
    sizes = next(t for t in result.graph.initializer if t.name == result.graph.node[2].input[1])
    # With a fixed batch the file's own numbers are folded: opening it comes first.
    assert numpy_helper.to_array(sizes).tolist() == ([-1, 256] if batch == "n" else [3, -1])
    assert not result.graph.node[2].attribute


def test_shapes_behind_a_computed_shape_are_known() -> None:
    result = folded(old(17))
    known = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
             for v in result.graph.value_info}  # fmt: skip
    assert known["f"] == ["n", 256]


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(convolution, id="Conv"),
        pytest.param(
            lambda: [
                node("ConvTranspose", ["x", "wt"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
                node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["n"]),
            ],
            id="ConvTranspose",
        ),
    ],
)
def test_batch_norm_goes_into_the_weights(make: object) -> None:
    assert callable(make)
    nodes = [*make(), node("Flatten", ["n"], ["f"]), linear()]
    result = folded(model(nodes, weights(wt=normal(3, 4, 3, 3))))
    assert "BatchNormalization" not in ops(result)
    assert len(result.graph.node[0].input) == 3


def test_batch_norm_stays_where_the_convolution_is_read_by_others() -> None:
    nodes = [
        *convolution(),
        node("Add", ["n", "c"], ["a"]),
        node("Flatten", ["a"], ["f"]),
        linear(),
    ]
    assert "BatchNormalization" in ops(folded(model(nodes, weights())))


def test_batch_norm_stays_where_the_convolution_is_an_output() -> None:
    nodes = [*convolution(), node("Flatten", ["n"], ["f"]), linear()]
    outputs = [
        tensor("y", TensorProto.FLOAT, ("n", 10)),
        tensor("c", TensorProto.FLOAT, ("n", 4, 8, 8)),
    ]
    assert "BatchNormalization" in ops(folded(model(nodes, weights(), outputs=outputs)))


def test_batch_norm_after_a_shared_weight_stays_right() -> None:
    nodes = [
        *convolution(),
        node("Conv", ["x", "w"], ["c2"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Add", ["n", "c2"], ["a"]),
        node("Flatten", ["a"], ["f"]),
        linear(),
    ]
    folded(model(nodes, weights()))


def test_zero_padding_goes_into_the_convolution() -> None:
    source = graph(
        """g (float[n,3,8,8] x) => (float[n,4,8,8] y) {
            p = Pad (x, sizes)
            y = Conv <kernel_shape = [3,3]> (p, w)
        }""",
        {"w": normal(4, 3, 3, 3), "sizes": np.array([0, 0, 1, 1, 0, 0, 1, 1])},
    )
    assert ops(folded(source)) == ["Conv"]


def standardised(channels: int) -> onnx.ModelProto:
    """A convolution whose weight is normalised in the graph, larger than onnxscript's limits."""
    return graph(
        """g (float[n,3,8,8] x) => (float[n,k,6,6] y) {
            m = ReduceMean (w, axes)
            d = Sub (w, m)
            q = Mul (d, d)
            v = ReduceMean (q, axes)
            s = Sqrt (v)
            u = Div (d, s)
            y = Conv <kernel_shape = [3,3]> (x, u)
        }""",
        {"w": normal(channels, 3, 3, 3), "axes": np.array([1, 2, 3])},
    )


def test_a_weight_that_is_normalised_in_the_graph_becomes_a_constant() -> None:
    assert ops(folded(standardised(400))) == ["Conv"]


def test_a_large_constant_is_not_made_of_a_few_numbers() -> None:
    source = graph(
        """g (float[n,3,8,8] x) => (float[n,3,8,8] y) {
            e = Expand (one, big)
            t = Tile (one, big)
            z = ConstantOfShape (big)
            a = Add (e, t)
            b = Add (a, z)
            m = ReduceMax (b)
            y = Add (x, m)
        }""",
        {"one": np.ones((1, 1), np.float32), "big": np.array([300, 300])},
    )
    result = folded(source)
    assert sum(numpy_helper.to_array(t).nbytes for t in result.graph.initializer) < 1000
    assert {"Expand", "Tile", "ConstantOfShape"} <= set(ops(result))


def test_a_weight_that_is_used_many_times_is_not_multiplied() -> None:
    """Each product is no larger than its weight; all together would be ten times the file."""
    lines = "\n".join(f"p{k} = Mul (w, f{k}) y{k} = Conv (x, p{k})" for k in range(10))
    total = "s1 = Add (y0, y1)\n" + "\n".join(f"s{k} = Add (s{k - 1}, y{k})" for k in range(2, 10))
    factors = {f"f{k}": np.full(1, k + 1, np.float32) for k in range(10)}
    text = f"g (float[n,3,8,8] x) => (float[n,c,6,6] s9) {{ {lines}\n{total} }}"
    source = graph(text, {"w": normal(2000, 3, 3, 3), **factors})
    result = tidied(source)
    assert ir.to_proto(fold(result)).ByteSize() < source.ByteSize() * 1.1


def test_nothing_to_fold_is_the_same_graph() -> None:
    source = tidied(model([node("Flatten", ["x"], ["y"])], {}))
    assert fold(source) is source


def test_folding_leaves_its_input_alone() -> None:
    source = tidied(old(17))
    before = ir.to_proto(source).SerializeToString(deterministic=True)
    fold(source)
    assert ir.to_proto(source).SerializeToString(deterministic=True) == before


def test_the_same_file_gives_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "old.onnx").write_bytes(old(17).SerializeToString())
    here = fold(plain(read_model(tmp_path / "old.onnx"), "old"))
    expected = write_model(here, tmp_path / "here.onnx", Precision.FP32).sha256
    code = (
        "import sys, pathlib; from deploykit import graph as g\n"
        "from deploykit.core.precision import Precision\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "model = g.fold(g.plain(g.read_model(folder / 'old.onnx'), 'old'))\n"
        "print(g.write_model(model, folder / 'there.onnx', Precision.FP32).sha256)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    seed = {"PYTHONHASHSEED": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=seed)
    assert done.stdout.strip() == expected


def test_what_onnxscript_cannot_fold_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such pass\nat line 3")

    monkeypatch.setattr("onnxscript.optimizer.fold_constants_ir", broken)
    with pytest.raises(ModelFileError, match=r"constants cannot be folded\nno such pass$"):
        fold(tidied(old(17)))
    assert logging.getLogger("onnxscript").level == logging.NOTSET


def constant_branch() -> onnx.ModelProto:
    """As ``squeeze`` is exported: whether a dimension is 1 is asked in the graph."""
    return graph(
        """g (float[n,3,8,8] x) => (float[n,3,8,8] y) {
            s = Shape <start = 1, end = 2> (x)
            c = Equal (s, three)
            y = If (c) <
                then_branch = then () => (float[n,3,8,8] t) { t = Relu (x) },
                else_branch = other () => (float[n,3,8,8] e) { e = Neg (x) }
            >
        }""",
        {"three": np.array([3])},
    )


def test_a_branch_that_is_always_taken_is_written_out() -> None:
    source = constant_branch()
    result = ir.to_proto(plain(ir.from_proto(source), "own.onnx"))
    assert ops(result) == ["Relu"]
    assert_same(source, result)


def test_functions_of_the_file_are_written_out() -> None:
    source = graph("g (float[n,3,8,8] x) => (float[n,3,8,8] y) { y = lab.F (x) }", domain="lab")
    body = [helper.make_node("Neg", ["a"], ["b"]), helper.make_node("Relu", ["b"], ["c"])]
    imports = [helper.make_opsetid("", 20)]
    source.functions.append(helper.make_function("lab", "F", ["a"], ["c"], body, imports))
    result = ir.to_proto(plain(ir.from_proto(source), "own.onnx"))
    assert ops(result) == ["Neg", "Relu"]
    assert not result.functions
    assert_same(source, result)


def assert_same(source: onnx.ModelProto, result: onnx.ModelProto) -> None:
    expected, got = (run_ort(each, {"x": IMAGES})["y"] for each in (source, result))
    np.testing.assert_array_equal(got, expected)


def test_a_file_of_the_first_format_can_be_written(tmp_path: Path) -> None:
    source = old(7)
    assert source.ir_version == 3
    result = plain(ir.from_proto(source), "own.onnx")
    write_model(result, tmp_path / "new.onnx", Precision.FP32)
    assert [value.name for value in result.graph.inputs] == ["x"]
