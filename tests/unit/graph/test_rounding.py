"""The rounding form of a graph, held against oracles that share no code with it.

onnx's ReferenceEvaluator computes FP16 operators in numpy's FP16, but rounds inside Softmax, norms
and reductions; there numpy in FP32, rounded once, is right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from deploykit.graph.rounding import Stored, computes_narrow, rounding_form, unfit_by_overflow
from tests.graphs import graph, normal, run_ort

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT
ULP = 2.0**-10


def half_graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int]],
    constants: Mapping[str, NDArray[np.generic]] | None = None,
) -> onnx.ModelProto:
    """FP32 inputs, cast to FP16 for ``nodes``, whose value ``y`` is cast back to ``out``."""
    down = [helper.make_node("Cast", [name], [f"{name}h"], f"{name}h", to=HALF) for name in inputs]
    up = helper.make_node("Cast", ["y"], ["out"], "up", to=FLOAT)
    graph = helper.make_graph(
        [*down, *nodes, up],
        "g",
        [helper.make_tensor_value_info(n, FLOAT, shape) for n, shape in inputs.items()],
        [helper.make_tensor_value_info("out", FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def rounded(model: onnx.ModelProto, stored: Stored = Stored.EVERY) -> onnx.ModelProto:
    return ir.to_proto(rounding_form(ir.from_proto(model), stored))


def reference(model: onnx.ModelProto, feeds: dict[str, NDArray[np.float32]]) -> Any:
    (found,) = cast("list[Any]", ReferenceEvaluator(model).run(None, feeds))
    return found


def halves(count: int, low: float, high: float, seed: int = 0) -> NDArray[np.float32]:
    """FP32 numbers that FP16 has, so that the cast at the input changes nothing."""
    found = np.random.default_rng(seed).uniform(low, high, count)
    return found.astype(np.float16).astype(np.float32)


# --- one operator


@pytest.mark.parametrize("op_type", ["Add", "Mul", "Exp", "Tanh", "Erf", "Pow"])
@pytest.mark.parametrize("stored", list(Stored))
def test_an_operator_gives_the_bits_of_the_reference(op_type: str, stored: Stored) -> None:
    is_binary = op_type in {"Add", "Mul", "Pow"}
    names = ["x", "z"] if is_binary else ["x"]
    node = helper.make_node(op_type, [f"{name}h" for name in names], ["y"], "op")
    feeds = {name: halves(4096, 0.01, 4, seed) for seed, name in enumerate(names)}
    model = half_graph([node], {name: [4096] for name in names})
    expected = reference(model, feeds)
    got = run_ort(rounded(model, stored), feeds)["out"]
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("op_type", ["Conv", "Gemm", "MatMul", "ConvTranspose"])
def test_a_product_is_within_one_unit_of_the_last_place(op_type: str) -> None:
    rng = np.random.default_rng(1)
    is_conv = op_type.startswith("Conv")
    shape = [2, 8, 6, 6] if is_conv else [6, 32]
    weights = rng.standard_normal((8, 8, 3, 3) if is_conv else (32, 16)) / 8
    node = helper.make_node(op_type, ["xh", "w"], ["y"], "op")
    model = half_graph([node], {"x": shape}, {"w": weights.astype(np.float16)})
    x = halves(int(np.prod(shape)), -2, 2).reshape(shape)
    got = run_ort(rounded(model), {"x": x})["out"]
    exact = half_graph([node], {"x": shape}, {"w": weights.astype(np.float16)})
    double = reference(_in_double(exact), {"x": x})
    assert np.array_equal(got, got.astype(np.float16))
    assert (np.abs(got - double) <= ULP * np.maximum(np.abs(double), 2.0**-14)).all()


def _in_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same numbers with sums in FP64."""
    double = onnx.ModelProto()
    double.CopyFrom(model)
    for node in double.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == HALF:
                attribute.i = TensorProto.DOUBLE
    for tensor in double.graph.initializer:
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name)
        )
    return double


def _softmax(x: NDArray[np.float32]) -> NDArray[np.float32]:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def _normal(x: NDArray[np.float32], axes: tuple[int, ...]) -> NDArray[np.float32]:
    mean, var = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    return np.asarray((x - mean) / np.sqrt(var + np.float32(1e-5)))


ONCE: dict[str, tuple[list[str], dict[str, Any], Callable[[Any], Any]]] = {
    "Softmax": (["xh"], {}, _softmax),
    "Sigmoid": (["xh"], {}, lambda x: 1 / (1 + np.exp(-x))),
    "LayerNormalization": (["xh", "one"], {}, lambda x: _normal(x, (-1,))),
    "InstanceNormalization": (["xh", "c_one", "c_zero"], {}, lambda x: _normal(x, (2, 3))),
    "ReduceMean": (["xh", "axes"], {"keepdims": 1}, lambda x: x.mean(axis=3, keepdims=True)),
    "ReduceSum": (["xh", "axes"], {"keepdims": 1}, lambda x: x.sum(axis=3, keepdims=True)),
    "GlobalAveragePool": (["xh"], {}, lambda x: x.mean(axis=(2, 3), keepdims=True)),
}


@pytest.mark.parametrize("op_type", sorted(ONCE))
def test_a_norm_or_a_reduction_computes_in_fp32_and_rounds_once(op_type: str) -> None:
    inputs, attributes, exact = ONCE[op_type]
    constants: dict[str, NDArray[np.generic]] = {
        "one": np.ones(64, np.float16),
        "c_one": np.ones(4, np.float16),
        "c_zero": np.zeros(4, np.float16),
        "axes": np.array([3], np.int64),
    }
    used = {name: value for name, value in constants.items() if name in inputs}
    node = helper.make_node(op_type, inputs, ["y"], "op", **attributes)
    model = half_graph([node], {"x": [2, 4, 8, 64]}, used)
    x = halves(2 * 4 * 8 * 64, -6, 6).reshape(2, 4, 8, 64)
    got = run_ort(rounded(model), {"x": x})["out"]
    once = np.asarray(exact(x)).astype(np.float16).astype(np.float32)
    assert np.array_equal(got, got.astype(np.float16))
    # Another order of summation in FP32 may fall on the other side of a tie, seldom.
    assert (got == once).mean() > 0.98
    assert np.abs(got - once).max() <= ULP * max(1.0, float(np.abs(once).max()))


# --- both ends of the range


@pytest.mark.parametrize(
    ("op_type", "value", "operands"),
    [
        ("Mul", 300.0, 2),
        ("Exp", 12.0, 1),
        ("Add", 40000.0, 2),
        ("Pow", 300.0, 2),
        ("Softplus", 65520.0, 1),
    ],
)
def test_what_passes_65504_is_infinite(op_type: str, value: float, operands: int) -> None:
    x = np.array([value], np.float32)
    if op_type == "Pow":
        node = helper.make_node("Pow", ["xh", "two"], ["y"], "op")
        model = half_graph([node], {"x": [1]}, {"two": np.array(2, np.float16)})
    else:
        model = half_graph([helper.make_node(op_type, ["xh"] * operands, ["y"], "op")], {"x": [1]})
    with np.errstate(over="ignore"):
        assert np.isinf(run_ort(rounded(model), {"x": x})["out"]).all()
        assert np.isinf(reference(model, {"x": x})).all()
    assert np.isfinite(run_ort(model, {"x": x})["out"]).all() or value > 65504


def test_what_falls_below_the_smallest_number_is_0() -> None:
    node = helper.make_node("Mul", ["xh", "xh"], ["y"], "op")
    model = half_graph([node], {"x": [1]})
    x = np.array([1e-4], np.float32)
    assert run_ort(rounded(model), {"x": x})["out"] == 0
    assert reference(model, {"x": x}) == 0


# --- the two forms

CHAIN = [
    helper.make_node("Conv", ["xh", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
    helper.make_node("Add", ["c", "xh"], ["s"], "add"),
    helper.make_node("Relu", ["s"], ["r"], "relu"),
    helper.make_node("Conv", ["r", "w"], ["d"], "second", pads=[1, 1, 1, 1]),
    helper.make_node("Conv", ["xh", "w"], ["e"], "third", pads=[1, 1, 1, 1]),
    helper.make_node("Add", ["d", "e"], ["y"], "join"),
]


def chain() -> onnx.ModelProto:
    weights = np.random.default_rng(3).standard_normal((4, 4, 3, 3)).astype(np.float16)
    return half_graph(CHAIN, {"x": [1, 4, 5, 5]}, {"w": weights})


def rounds_at(model: onnx.ModelProto) -> set[str]:
    """Names of the values behind a pair of casts."""
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    down = {node.output[0] for node in casts if node.attribute[0].i == HALF}
    return {node.output[0] for node in casts if node.input[0] in down}


def test_every_value_is_rounded_that_is_not_exact_anyway() -> None:
    assert rounds_at(rounded(chain())) == {"xh", "c", "s", "d", "e", "y"}


def test_fusion_leaves_one_value_of_a_kernel() -> None:
    """Of the two convolutions before the last addition only one fuses with it."""
    assert rounds_at(rounded(chain(), Stored.FUSED)) == {"xh", "r", "d", "y"}


def test_a_value_with_a_reader_elsewhere_is_stored() -> None:
    nodes = [
        helper.make_node("Conv", ["xh", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["c"], ["s"], "gate"),
        helper.make_node("Mul", ["c", "s"], ["m"], "silu"),
        helper.make_node("Conv", ["c", "w"], ["d"], "second", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["m", "d"], ["y"], "join"),
    ]
    weights = np.ones((4, 4, 3, 3), np.float16)
    model = half_graph(nodes, {"x": [1, 4, 5, 5]}, {"w": weights})
    assert "c" in rounds_at(rounded(model, Stored.FUSED))
    alone = half_graph([*nodes[:2], _named(nodes[2], "y")], {"x": [1, 4, 5, 5]}, {"w": weights})
    assert rounds_at(rounded(alone, Stored.FUSED)) == {"xh", "y"}


def _named(node: onnx.NodeProto, output: str) -> onnx.NodeProto:
    again = onnx.NodeProto()
    again.CopyFrom(node)
    again.output[0] = output
    return again


def test_names_outputs_and_constants_are_kept() -> None:
    source, made = chain(), rounded(chain())
    assert [value.name for value in made.graph.output] == ["out"]
    assert {n.name for n in source.graph.node} <= {n.name for n in made.graph.node}
    (weights,) = made.graph.initializer
    assert (weights.name, weights.data_type) == ("w", HALF)
    onnx.checker.check_model(made, full_check=True)


def test_optimisers_leave_the_rounding_in() -> None:
    x = np.random.default_rng(4).standard_normal((1, 4, 5, 5)).astype(np.float32)
    made = rounded(chain())
    optimised, plain = (
        run_ort(made, {"x": x}),
        reference(made, {"x": x}),
    )
    assert np.abs(optimised["out"] - plain).max() <= 2 * ULP * np.abs(plain).max()


def test_a_graph_without_narrow_values_is_left_as_it_is() -> None:
    node = helper.make_node("Relu", ["x"], ["out"], "relu")
    value = helper.make_tensor_value_info("x", FLOAT, [1])
    out = helper.make_tensor_value_info("out", FLOAT, [1])
    model = ir.from_proto(helper.make_model(helper.make_graph([node], "g", [value], [out])))
    assert not computes_narrow(model)
    assert ir.to_proto(rounding_form(model)) == ir.to_proto(model)


def test_a_bf16_graph_runs_in_the_opset_before() -> None:
    """RoiAlign has a kernel on CPUs there, and none in the opset that brought BF16."""
    model = graph(
        """g (float[1,2,4,4] x) => (float[1,2,2,2] y) {
            s = Cast <to = 16> (x)
            n = Neg (s)
            l = Cast <to = 1> (n)
            y = RoiAlign <output_height = 2, output_width = 2> (l, rois, images)
        }""",
        {"rois": np.array([[0, 0, 4, 4]], np.float32), "images": np.zeros(1, np.int64)},
        opset=22,
    )
    image = normal(1, 2, 4, 4)
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
        run_ort(model, {"x": image})
    found = run_ort(rounded(model), {"x": image})["y"]
    want = reference(model, {"x": image})
    np.testing.assert_allclose(found, want, atol=1e-6)


def test_the_opset_that_brought_bf16_added_types_alone() -> None:
    """So that a graph of FP32 may be called one of the opset before; by onnx's own schemas."""
    schemas = [one for one in onnx.defs.get_all_schemas_with_history() if not one.domain]
    changed = [one for one in schemas if one.since_version == 22]
    assert len(changed) > 30
    for schema in changed:
        before = onnx.defs.get_schema(schema.name, 21, "")
        for these, those in ((schema.inputs, before.inputs), (schema.outputs, before.outputs)):
            assert [one.name for one in these] == [one.name for one in those]
        assert schema.attributes.keys() == before.attributes.keys()


@pytest.mark.parametrize("stored", list(Stored))
def test_a_file_that_leaves_types_out_is_rounded_all_the_same(stored: Stored) -> None:
    """Most tools that convert to FP16 write no types of the values between the nodes."""
    nodes = [
        helper.make_node("ReduceSum", ["xh", "axes"], ["s"], "sum"),
        helper.make_node("Div", ["xh", "s"], ["y"], "divide"),
    ]
    model = half_graph(nodes, {"x": [1, 4096]}, {"axes": np.array([1], np.int64)})
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    bare.graph.ClearField("value_info")
    assert computes_narrow(ir.from_proto(bare))
    x = {"x": np.full((1, 4096), 30, np.float32)}
    # 4096 x 30 is 122,880: infinite in FP16, and 30 over infinity is 0.
    with np.errstate(over="ignore"):
        expected = reference(bare, x)
    assert expected.max() == 0
    assert np.array_equal(run_ort(rounded(bare, stored), x)["out"], expected)


def test_only_the_first_of_broken_values_is_to_blame() -> None:
    model = ir.from_proto(chain())
    found = unfit_by_overflow(model, {"s", "r", "d", "y"})
    assert list(found.values) == ["s"]
    assert list(found.nodes) == ["add"]
    assert "may overflow" in found.values["s"]


def test_an_input_that_overflows_is_blamed_by_its_own_name() -> None:
    found = unfit_by_overflow(ir.from_proto(chain()), {"xh"})
    assert list(found.values) == ["x"]


@pytest.mark.parametrize(
    ("body", "blamed"),
    [
        ("[log] y = Log (f)", {"h"}),
        ("[relu] r = Relu (f) [log] y = Log (r)", {"h"}),
        ("[divide] y = Div (g, f)", {"h"}),  # what is divided does not matter
        ("[arc] y = Atanh (f)", {"h"}),
        ("[sum] r = Add (f, g) [arc] y = Acosh (r)", {"h", "i"}),
    ],
)
def test_what_was_rounded_before_a_node_in_fp32_is_blamed(body: str, blamed: set[str]) -> None:
    """h and i are FP16, f and g the same in FP32; y is NaN or infinite."""
    text = f"""g (float[2] x) => (float[2] y) {{
        [down] xh = Cast <to = 10> (x)
        [some] h = Sigmoid (xh)
        [more] i = Tanh (xh)
        [up] f = Cast <to = 1> (h)
        [over] g = Cast <to = 1> (i)
        {body.replace(") [", ")" + chr(10) + "[")}
    }}"""
    model = ir.from_proto(onnx.shape_inference.infer_shapes(graph(text)))
    found = unfit_by_overflow(model, {"y"})
    assert set(found.values) == blamed
    last = body.rsplit("[", 1)[1].partition("]")[0]
    assert found.values["h"] == f"{last} gives NaN or infinity where h is rounded to FP16"
    assert found.nodes["some"] == found.values["h"]
