"""One test per rule of placement, on graphs small enough to be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from deploykit.core.errors import ModelFileError, UsageError
from deploykit.graph import read_model, tidy
from deploykit.graph.qdq import QdqPlan, QdqPolicy, calibration_tensors, plan_qdq
from tests.graphs import graph, normal, save

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.graphs import Array


def planned(
    folder: Path, text: str, constants: Mapping[str, Array], policy: QdqPolicy | None = None
) -> QdqPlan:
    model = read_model(save(with_output_shapes(graph(text, constants)), folder / "graph.onnx"))
    tidy(model, rename=False)
    return plan_qdq(model, policy or QdqPolicy())


def with_output_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """``float y`` of the text form would be a scalar: let onnx find the shape."""
    names = [output.name for output in proto.graph.output]
    del proto.graph.output[:]
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    found = {value.name: value for value in inferred.graph.value_info}
    inferred.graph.output.extend(found[name] for name in names)
    del inferred.graph.value_info[:]
    return inferred


def readers(plan: QdqPlan, tensor: str) -> set[str]:
    return {f"{reader.node}:{reader.position}" for reader in plan.activations[tensor]}


CONV = {"w": normal(16, 16, 3, 3), "b": normal(16)}
TWO_CONVS = """net (float[batch,16,8,8] x) => (float[batch,16,8,8] y) {
    [first] c = Conv <pads = [1,1,1,1]> (x, w, b)
    [relu] r = Relu (c)
    [second] y = Conv <pads = [1,1,1,1]> (r, w2, b)
}"""
TWO_WEIGHTS = CONV | {"w2": normal(16, 16, 3, 3, seed=1)}


# Rule 1: weights per output channel.
@pytest.mark.parametrize(
    ("operator", "data", "weight", "axis"),
    [
        ("Conv", "16,8,8", (32, 16, 3, 3), 0),
        ("ConvTranspose", "16,8,8", (16, 32, 3, 3), 1),
        ("Gemm <transB = 1>", "24", (32, 24), 0),
        ("Gemm", "24", (24, 32), 1),
        ("MatMul", "24", (24, 32), 1),
    ],
)
def test_weights_have_a_scale_per_output_channel(
    operator: str, data: str, weight: tuple[int, ...], axis: int, tmp_path: Path
) -> None:
    text = f"net (float[batch,{data}] x) => (float y) {{ [layer] y = {operator} (x, w) }}"
    (found,) = planned(tmp_path, text, {"w": normal(*weight)}).weights
    assert (found.node, found.index, found.tensor, found.axis) == ("layer", 1, "w", axis)


# Rule 2: inputs and weights, nothing between a convolution and its ReLU, the bias stays.
def test_quantizes_inputs_not_outputs(tmp_path: Path) -> None:
    plan = planned(tmp_path, TWO_CONVS, TWO_WEIGHTS)
    assert plan.tensors == ("x", "r")
    assert readers(plan, "r") == {"second:0"}
    assert [weight.index for weight in plan.weights] == [1, 1]
    assert plan.kept == {}


# Rule 3: the skip operand only.
@pytest.mark.parametrize("operands", ["c, x", "x, c"])
def test_residual_takes_its_skip_operand_as_int8(operands: str, tmp_path: Path) -> None:
    plan = planned(
        tmp_path,
        f"""net (float[batch,16,8,8] x) => (float[batch,16,8,8] y) {{
            [conv] c = Conv <pads = [1,1,1,1]> (x, w, b)
            [add] y = Add ({operands})
        }}""",
        CONV,
    )
    assert plan.tensors == ("x",)
    assert readers(plan, "x") == {"conv:0", f"add:{operands.split(', ').index('x')}"}


@pytest.mark.parametrize("operands", ["long, short", "short, long"])
def test_the_longer_branch_of_a_downsample_block_stays_plain(operands: str, tmp_path: Path) -> None:
    plan = planned(
        tmp_path,
        f"""net (float[batch,16,8,8] x) => (float[batch,16,8,8] y) {{
            [conv1] c = Conv <pads = [1,1,1,1]> (x, w, b)
            [relu] r = Relu (c)
            [conv2] long = Conv <pads = [1,1,1,1]> (r, w2, b)
            [downsample] short = Conv (x, w1)
            [add] y = Add ({operands})
        }}""",
        TWO_WEIGHTS | {"w1": normal(16, 16, 1, 1)},
    )
    assert readers(plan, "short") == {f"add:{operands.split(', ').index('short')}"}
    assert "long" not in plan.activations


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        (
            "p = MaxPool <kernel_shape = [1,1]> (x)\n[add] y = Add (p, x)",
            "no quantized convolution",
        ),
        ("c = Conv <pads = [1,1,1,1]> (x, w, b)\n[add] y = Add (c, c)", None),
        ("c = Conv <pads = [1,1,1,1]> (x, w, b)\n[add] y = Add (c, row)", None),
        (
            "c = Conv (x, w, b)\ng = GlobalMaxPool (x)\n[add] y = Add (c, g)",
            None,
        ),
    ],
)
def test_other_additions_are_left_alone(nodes: str, why: str | None, tmp_path: Path) -> None:
    plan = planned(
        tmp_path,
        f"net (float[batch,16,8,8] x) => (float y) {{ {nodes} }}",
        CONV | {"row": normal(1, 16, 1, 1)},
    )
    assert not any(r.node == "add" for readers in plan.activations.values() for r in readers)
    assert plan.kept.get("add", "").startswith(why or "")
    assert ("add" in plan.kept) is (why is not None)


# Rule 4: MaxPool commutes, averages stay in high precision.
def test_max_pool_needs_nothing(tmp_path: Path) -> None:
    plan = planned(
        tmp_path,
        """net (float[batch,16,8,8] x) => (float y) {
            [conv1] c = Conv (x, w, b)
            [pool] p = MaxPool <kernel_shape = [2,2]> (c)
            [conv2] y = Conv (p, w2, b)
        }""",
        TWO_WEIGHTS,
    )
    assert plan.tensors == ("x", "p")
    assert plan.groups == ()


def test_max_pool_of_an_int8_value_passes_it_on(tmp_path: Path) -> None:
    plan = planned(
        tmp_path,
        """net (float[batch,16,8,8] x) => (float y, float z) {
            [conv1] y = Conv (x, w, b)
            [pool] p = MaxPool <kernel_shape = [3,3]> (x)
            [pad] q = Pad (p, pads)
            [conv2] z = Conv (q, w2, b)
        }""",
        TWO_WEIGHTS | {"pads": _pads(0, 0, 1, 1, 0, 0, 1, 1)},
    )
    assert readers(plan, "x") == {"conv1:0", "pool:0"}
    assert plan.groups == (frozenset({"x", "q"}),)
    assert plan.group_of("q") == {"x", "q"}
    assert plan.group_of("other") == {"other"}


def padded_pool(folder: Path, value: float, amount: int) -> QdqPlan:
    """A convolution, its result padded and pooled, and a convolution of that."""
    return planned(
        folder,
        """net (float[batch,16,8,8] x) => (float y) {
            [conv1] c = Conv <pads = [1,1,1,1]> (x, w, b)
            [pad] p = Pad (c, pads, value)
            [pool] q = MaxPool <kernel_shape = [3,3], strides = [2,2]> (p)
            [conv2] y = Conv <pads = [1,1,1,1]> (q, w2, b)
        }""",
        TWO_WEIGHTS
        | {"pads": _pads(*[0, 0, amount, amount] * 2), "value": np.array(value, np.float32)},
    )


def test_padding_of_minus_infinity_is_never_quantized(tmp_path: Path) -> None:
    plan = padded_pool(tmp_path, -np.inf, 1)
    assert plan.tensors == ("x", "q")  # behind the pooling, which leaves nothing of it
    assert readers(plan, "q") == {"conv2:0"}
    assert plan.groups == ()


def test_a_layer_that_may_read_infinities_is_kept(tmp_path: Path) -> None:
    plan = padded_pool(tmp_path, -np.inf, 3)  # the corners of what is pooled are nothing else
    assert plan.tensors == ("x",)
    said = "what it reads may hold the infinities of a mask, which no scale has"
    assert plan.kept == {"conv2": said}
    assert padded_pool(tmp_path, -1.0, 3).tensors == ("x", "q")


def test_a_skip_operand_with_a_mask_is_kept(tmp_path: Path) -> None:
    mask = np.where(np.triu(np.ones((8, 8), bool), 1), -np.inf, 0).astype(np.float32)
    text = """net (float[batch,16,8,8] x) => (float y) {
        [conv] c = Conv <pads = [1,1,1,1]> (x, w, b)
        [masked] m = Add (x, mask)
        [sum] y = Add (c, m)
    }"""
    plan = planned(tmp_path, text, CONV | {"mask": mask})
    assert plan.tensors == ("x",)
    assert plan.kept["sum"].startswith("what it reads may hold the infinities of a mask")
    model = read_model(tmp_path / "graph.onnx")
    tidy(model, rename=False)
    assert calibration_tensors(model) == ("x",)
    plain = planned(tmp_path, text, CONV | {"mask": np.where(mask < 0, -100, mask)})
    assert plain.tensors == ("x", "m")


def test_padding_with_another_value_is_no_move(tmp_path: Path) -> None:
    plan = planned(
        tmp_path,
        """net (float[batch,16,8,8] x) => (float y, float z) {
            [conv1] y = Conv (x, w, b)
            [pad] q = Pad (x, pads, one)
            [conv2] z = Conv (q, w2, b)
        }""",
        TWO_WEIGHTS | {"pads": _pads(0, 0, 1, 1, 0, 0, 1, 1), "one": normal(1).reshape(())},
    )
    assert readers(plan, "x") == {"conv1:0"}
    assert plan.groups == ()


@pytest.mark.parametrize(
    "average",
    ["GlobalAveragePool (x)", "AveragePool <kernel_shape = [3,3]> (x)", "ReduceMean (x, a)"],
)
def test_averages_read_what_is_not_rounded(average: str, tmp_path: Path) -> None:
    plan = planned(
        tmp_path,
        f"""net (float[batch,16,8,8] x) => (float y, float z) {{
            [conv] y = Conv (x, w, b)
            [average] z = {average}
        }}""",
        CONV | {"a": _pads(2, 3)},
    )
    assert readers(plan, "x") == {"conv:0"}
    assert plan.kept["average"] == "averages keep the bits that INT8 would drop"


# Rule 5: one scale for a concatenation.
CONCAT = """net (float[batch,16,8,8] x) => (float y) {
    [conv1] a = Conv (x, w, b)
    [conv2] c = Conv (x, w2, b)
    [concat] j = Concat <axis = 1> (a, OTHER)
    [conv3] y = Conv (j, w3)
}"""
THREE_WEIGHTS = TWO_WEIGHTS | {"w3": normal(16, 32, 3, 3), "k": normal(1, 16, 6, 6)}


def test_concatenated_values_share_a_scale(tmp_path: Path) -> None:
    plan = planned(tmp_path, CONCAT.replace("OTHER", "c"), THREE_WEIGHTS)
    assert plan.groups == (frozenset({"a", "c", "j"}),)
    assert readers(plan, "a") == {"concat:0"}
    assert readers(plan, "c") == {"concat:1"}
    assert readers(plan, "j") == {"conv3:0"}


def test_a_concatenation_that_is_pooled_first_shares_its_scale(tmp_path: Path) -> None:
    text = CONCAT.replace("OTHER", "c").replace(
        "[conv3] y = Conv (j, w3)",
        "[pool] p = MaxPool <kernel_shape = [2,2]> (j)\n[conv3] y = Conv (p, w3)",
    )
    plan = planned(tmp_path, text, THREE_WEIGHTS)
    assert plan.groups == (frozenset({"a", "c", "j", "p"}),)
    assert readers(plan, "j") == {"pool:0"}


def test_concatenations_that_follow_each_other_are_one_group(tmp_path: Path) -> None:
    plan = planned(
        tmp_path,
        """net (float[batch,16,8,8] x) => (float y) {
            [conv1] a = Conv (x, w, b)
            [conv2] c = Conv (x, w2, b)
            [inner] i = Concat <axis = 1> (a, c)
            [outer] j = Concat <axis = 1> (i, a)
            [conv3] y = Conv (j, w4)
        }""",
        THREE_WEIGHTS | {"w4": normal(16, 48, 3, 3)},
    )
    assert plan.groups == (frozenset({"a", "c", "i", "j"}),)
    assert readers(plan, "a") == {"inner:0", "outer:1"}


@pytest.mark.parametrize(
    ("other", "policy", "why"),
    [
        ("k", QdqPolicy(), "an operand is a constant"),
        ("c", QdqPolicy(exclude=("conc*",)), "excluded by 'conc*'"),
    ],
)
def test_concatenations_that_stay(other: str, policy: QdqPolicy, why: str, tmp_path: Path) -> None:
    plan = planned(tmp_path, CONCAT.replace("OTHER", other), THREE_WEIGHTS, policy)
    assert plan.kept["concat"] == why
    assert plan.groups == ()
    assert "a" not in plan.activations


def test_a_concatenation_that_nobody_reads_as_int8_stays(tmp_path: Path) -> None:
    text = CONCAT.replace("OTHER", "c").replace("Conv (j, w3)", "Relu (j)")
    assert "a" not in planned(tmp_path, text, THREE_WEIGHTS).activations


# Rule 7: small layers, and what the user leaves out.
@pytest.mark.parametrize(
    ("weight", "group", "quantized"),
    [
        ((16, 3, 3, 3), 1, True),
        ((8, 3, 3, 3), 1, False),
        ((16, 1, 3, 3), 16, True),
        ((8, 1, 3, 3), 8, False),
    ],
)
def test_the_first_convolution_may_read_few_channels(
    weight: tuple[int, ...], group: int, quantized: bool, tmp_path: Path
) -> None:
    channels = weight[1] * group
    text = f"""net (float[batch,{channels},8,8] x) => (float y) {{
        [conv] y = Conv <group = {group}> (x, w)
    }}"""
    plan = planned(tmp_path, text, {"w": normal(*weight)})
    assert bool(plan.weights) is quantized
    if not quantized:
        assert plan.kept["conv"].endswith("channels are too few to gain from INT8")


@pytest.mark.parametrize("weight", [(15, 16, 3, 3), (16, 15, 3, 3)])
def test_a_later_convolution_with_few_channels_stays(
    weight: tuple[int, ...], tmp_path: Path
) -> None:
    plan = planned(
        tmp_path,
        """net (float[batch,16,8,8] x) => (float y) {
            [conv1] a = Conv (x, w1)
            [conv2] y = Conv (a, w2)
        }""",
        {
            "w1": normal(max(weight[1], 16) if weight[1] == 16 else 15, 16, 3, 3),
            "w2": normal(*weight),
        },
    )
    assert "conv2" not in [found.node for found in plan.weights]
    assert (
        plan.kept["conv2"] == f"{weight[1]} to {weight[0]} channels are too few to gain from INT8"
    )


@pytest.mark.parametrize("shape", [(15, 32), (32, 15)])
def test_small_matrices_stay(shape: tuple[int, int], tmp_path: Path) -> None:
    text = f"net (float[batch,{shape[1]}] x) => (float y) {{ [fc] y = Gemm <transB = 1> (x, w) }}"
    plan = planned(tmp_path, text, {"w": normal(*shape)})
    assert plan.weights == ()
    assert plan.kept["fc"] == f"its weight {shape} is too small to gain from INT8"


@pytest.mark.parametrize(
    ("node", "why"),
    [
        ("MatMul (w, x)", "its constant is the left operand"),
        ("MatMul (x, x)", "it has no constant weight"),
        ("MatMul (x, w3)", "its weight has 3 dimensions"),
        ("Gemm <transA = 1> (x, w)", "its data is transposed"),
    ],
)
def test_products_that_are_no_layers_stay(node: str, why: str, tmp_path: Path) -> None:
    text = f"net (float[32,32] x) => (float y) {{ [product] y = {node} }}"
    plan = planned(tmp_path, text, {"w": normal(32, 32), "w3": normal(2, 32, 32)})
    assert plan.kept == {"product": why}


def test_what_does_not_compute_in_fp32_stays(tmp_path: Path) -> None:
    text = "net (double[batch,16,8,8] x) => (double y) { [conv] y = Conv (x, w) }"
    plan = planned(tmp_path, text, {"w": normal(16, 16, 3, 3).astype("float64")})
    assert plan.kept == {"conv": "it does not compute in FP32"}


def test_what_has_no_known_type_stays(tmp_path: Path) -> None:
    model = read_model(save(with_output_shapes(graph(TWO_CONVS, TWO_WEIGHTS)), tmp_path / "g.onnx"))
    tidy(model, rename=False)
    for node in model.graph:
        node.outputs[0].type = None
    assert plan_qdq(model).kept == {"second": "the type of its input is not known"}


@pytest.mark.parametrize(
    ("policy", "kept", "why"),
    [
        (QdqPolicy(exclude=("sec*",)), "second", "excluded by 'sec*'"),
        (QdqPolicy(first_layer="keep"), "first", "the first layer is kept"),
        (QdqPolicy(last_layer="keep"), "second", "the last layer is kept"),
    ],
)
def test_policies_leave_layers_out(policy: QdqPolicy, kept: str, why: str, tmp_path: Path) -> None:
    plan = planned(tmp_path, TWO_CONVS, TWO_WEIGHTS, policy)
    assert plan.kept == {kept: why}
    assert kept not in {r.node for found in plan.activations.values() for r in found}


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        (QdqPolicy(exclude=("add",)), "excluded by 'add'"),
        (QdqPolicy(residual="keep"), "residual additions are kept"),
    ],
)
def test_an_addition_that_is_left_out_reads_what_is_not_rounded(
    policy: QdqPolicy, why: str, tmp_path: Path
) -> None:
    text = """net (float[batch,16,8,8] x) => (float y) {
        [conv] c = Conv <pads = [1,1,1,1]> (x, w, b)
        [add] y = Add (c, x)
    }"""
    plan = planned(tmp_path, text, CONV, policy)
    assert readers(plan, "x") == {"conv:0"}
    assert plan.kept["add"] == why


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(UsageError, match=r"last_layer='fp16' is no policy\npossible: int8, keep"):
        QdqPolicy(last_layer="fp16")  # type: ignore[arg-type]  # what a caller without types may do


# Bad input.
def test_a_quantized_graph_is_refused(tmp_path: Path) -> None:
    text = """net (float[batch,16] x) => (float y) {
        [quantize] q = QuantizeLinear (x, s)
        y = DequantizeLinear (q, s)
    }"""
    with pytest.raises(ModelFileError, match="already quantized: it has QuantizeLinear 'quantize'"):
        planned(tmp_path, text, {"s": normal(1).reshape(())})


def test_a_graph_without_names_is_refused(tmp_path: Path) -> None:
    text = "net (float[batch,16] x) => (float[batch,16] y) { a = Relu (x) y = Relu (a) }"
    model = read_model(save(graph(text), tmp_path / "graph.onnx"))
    for node in model.graph:
        node.name = "same"
    with pytest.raises(ModelFileError, match="no names of their own; tidy it first"):
        plan_qdq(model)


def _pads(*values: int) -> Array:
    return np.array(values, np.int64)
