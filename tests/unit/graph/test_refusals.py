"""What no later stage can use is refused by its name, with what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from deploykit.core.errors import ModelFileError
from deploykit.graph import plain, require_usable
from deploykit.graph.files import require_tensors
from deploykit.graph.foreign import declare_outputs
from tests.graphs import graph, normal
from tests.own_files import convolution, linear, model, node, old, tensor, weights

if TYPE_CHECKING:
    from collections.abc import Sequence

IMAGE = "float[n,3,8,8]"


def read(source: onnx.ModelProto) -> None:
    require_usable(ir.from_proto(source), "own.onnx")
    plain(ir.from_proto(source), "own.onnx")


def assert_refused(source: onnx.ModelProto, words: str) -> None:
    with pytest.raises(ModelFileError, match=words) as caught:
        read(source)
    assert str(caught.value).startswith("own.onnx")
    assert len(str(caught.value).splitlines()) <= 3


def relu(*nodes: onnx.NodeProto, opset: int = 20, **stored: Any) -> onnx.ModelProto:
    """``nodes`` that make ``a`` of ``x``, and a ReLU behind them."""
    outputs = [tensor("y", TensorProto.FLOAT, ("n", 3, 8, 8))]
    return model([*nodes, node("Relu", ["a"], ["y"])], stored, opset=opset, outputs=outputs)


@pytest.mark.parametrize("opset", [7, 11, 20])
def test_a_usual_file_is_taken(opset: int) -> None:
    read(old(opset))


def test_opset_that_nothing_runs() -> None:
    source = old(7)
    source.opset_import[0].version = 6
    assert_refused(
        source, "is of opset 6; onnxruntime, .* runs 7 and later\nexport the model again"
    )


def test_custom_operators_are_counted() -> None:
    text = (
        f"g ({IMAGE} x) => ({IMAGE} y) {{ a = lab.Twist (x) b = lab.Twist (a) y = lab.Turn (b) }}"
    )
    words = (
        r"custom operators: lab.Twist \(2\), lab.Turn \(1\)\n.*ai.onnx\nexport the model without"
    )
    assert_refused(graph(text, domain="lab"), words)


def test_file_that_onnxruntime_optimised() -> None:
    text = f"g ({IMAGE} x) => ({IMAGE} y) {{ y = com.microsoft.Gelu (x) }}"
    words = r"com.microsoft.Gelu \(1\)\n.*\ncom.microsoft is onnxruntime's: give the file"
    assert_refused(graph(text, domain="com.microsoft"), words)


def test_custom_operator_within_a_function() -> None:
    source = graph(f"g ({IMAGE} x) => ({IMAGE} y) {{ y = lab.F (x) }}", domain="lab")
    body = [helper.make_node("Twist", ["a"], ["b"], domain="lab")]
    imports = [helper.make_opsetid("lab", 1)]
    source.functions.append(helper.make_function("lab", "F", ["a"], ["b"], body, imports))
    assert_refused(source, r"custom operators: lab.Twist \(1\)")


@pytest.mark.parametrize(
    "made",
    [
        node("RandomNormalLike", ["x"], ["a"], "noise"),
        node("RandomUniformLike", ["x"], ["a"], "noise"),
        node("Bernoulli", ["x"], ["a"], "noise"),
    ],
    ids=lambda made: str(made.op_type),
)
def test_random_operators(made: onnx.NodeProto) -> None:
    words = f"draws random numbers: {made.op_type} 'noise'\nexport it for inference"
    assert_refused(relu(made), words)


def test_dropout_in_training_mode() -> None:
    drop = node("Dropout", ["x", "ratio", "train"], ["a"], "drop")
    stored: dict[str, Any] = {"ratio": np.array(0.5, np.float32), "train": np.array(1, bool)}
    words = r"training mode: Dropout 'drop'\n.*chance\nexport it for inference: model.eval\(\)"
    assert_refused(relu(drop, **stored), words)
    switched_off: dict[str, Any] = {**stored, "train": np.array(0, bool)}
    require_usable(ir.from_proto(relu(drop, **switched_off)), "own.onnx")


def norm(outputs: Sequence[str], opset: int, **attributes: Any) -> onnx.ModelProto:
    nodes = [*convolution(**attributes), node("Flatten", ["n"], ["f"]), linear()]
    nodes[1].output.extend(outputs)
    return model(nodes, weights(), opset=opset)


def test_batch_norm_in_training_mode() -> None:
    assert_refused(
        norm(["m1", "v1"], 15, training_mode=1), "training mode: BatchNormalization 'bn'"
    )


def test_batch_norm_in_training_mode_before_it_had_a_name() -> None:
    source = norm(["m1", "v1"], 9)
    source.graph.output.append(tensor("m1", TensorProto.FLOAT, (4,)))
    assert_refused(source, "training mode: BatchNormalization 'bn'")
    require_usable(ir.from_proto(norm([], 9)), "own.onnx")


def test_batch_norm_whose_statistics_nobody_reads() -> None:
    """By its outputs it is in training mode all the same, and runtimes compute it so."""
    beside = ["m1", "v1", "m2", "v2"]
    assert_refused(norm(beside, 9), "training mode: BatchNormalization 'bn'")


def test_file_in_quantized_operators() -> None:
    text = (
        f"g ({IMAGE} x) => ({IMAGE} y) {{ q, s, z = DynamicQuantizeLinear (x) "
        "y = DequantizeLinear (q, s, z) }"
    )
    words = (
        "is quantized already: DynamicQuantizeLinear, DequantizeLinear\n.*give it the FP32 model"
    )
    assert_refused(graph(text), words)


def test_pairs_of_an_int8_file_are_spoken_of_elsewhere() -> None:
    text = (
        f"g ({IMAGE} x) => ({IMAGE} y) {{ q = QuantizeLinear (x, s) y = DequantizeLinear (q, s) }}"
    )
    source = graph(text, {"s": np.array(0.1, np.float32)})
    require_usable(ir.from_proto(source), "own.onnx")


@pytest.mark.parametrize(
    ("kind", "called"),
    [(TensorProto.BFLOAT16, "bfloat16"), (TensorProto.FLOAT8E4M3FN, "float8_e4m3fn")],
)
def test_narrow_weights_are_named(kind: int, called: str) -> None:
    source = relu(node("Cast", ["half"], ["h"], to=1), node("Mul", ["x", "h"], ["a"]))
    source.graph.initializer.append(helper.make_tensor("half", kind, [1], [2.0]))
    words = rf"has {called} weights \(1, as 'half'\)\n.*export the model with float32 weights"
    assert_refused(source, words)


def test_computing_in_float64() -> None:
    nodes = [
        node("Cast", ["x"], ["d"], to=TensorProto.DOUBLE),
        node("Conv", ["d", "w"], ["c"], kernel_shape=[1, 1]),
        node("Cast", ["c"], ["a"], to=TensorProto.FLOAT),
    ]
    source = relu(*nodes, w=normal(3, 3, 1, 1).astype(np.float64))
    assert_refused(source, r"has float64 weights \(1, as 'w'\)")


def test_a_number_in_float64_is_taken() -> None:
    scale = node("Cast", ["f"], ["s"], to=TensorProto.FLOAT)
    source = relu(scale, node("Mul", ["x", "s"], ["a"]), f=np.array(0.5))
    require_usable(ir.from_proto(source), "own.onnx")


def test_half_weights_in_constant_nodes() -> None:
    value = onnx.numpy_helper.from_array(normal(3, 3, 1, 1).astype(np.float16), "k")
    nodes = [
        node("Constant", [], ["w"], value=value),
        node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        node("Conv", ["h", "w"], ["c"], kernel_shape=[1, 1]),
        node("Cast", ["c"], ["a"], to=TensorProto.FLOAT),
    ]
    assert_refused(relu(*nodes), "has float16 weights")


def test_a_branch_that_depends_on_the_images() -> None:
    text = f"""g ({IMAGE} x) => ({IMAGE} y) {{
        m = ReduceMax <keepdims = 0> (x)
        c = Greater (m, zero)
        y = If (c) <
            then_branch = then () => ({IMAGE} t) {{ t = Relu (x) }},
            else_branch = other () => ({IMAGE} e) {{ e = Neg (x) }}
        >
    }}"""
    source = graph(text, {"zero": np.array(0, np.float32)})
    source.graph.node[2].name = "which"
    words = "control flow that depends on the images: If 'which'\nTensorRT compiles straight graphs"
    assert_refused(source, words)


def test_a_loop_is_named() -> None:
    text = f"""g ({IMAGE} x) => ({IMAGE} y) {{
        y = Loop (times, , x) <
            body = body (int64 i, bool go, {IMAGE} a) => (bool on, {IMAGE} b) {{
                on = Identity (go)
                b = Neg (a)
            }}
        >
    }}"""
    assert_refused(graph(text, {"times": np.array(2)}), "control flow that depends .* Loop")


def test_a_sequence_within_the_graph() -> None:
    text = f"""g ({IMAGE} x) => ({IMAGE} y) {{
        q = SequenceConstruct (x, x)
        m = ReduceMax <keepdims = 0> (x)
        k = Cast <to = 7> (m)
        y = SequenceAt (q, k)
    }}"""
    source = graph(text)
    words = r"what is not a tensor of numbers: q \(sequence\)\nTensorRT computes tensors only"
    assert_refused(source, words)


def test_strings_within_the_graph() -> None:
    text = f"g ({IMAGE} x) => ({IMAGE} y) {{ s = Cast <to = 8> (x) y = Cast <to = 1> (s) }}"
    assert_refused(graph(text), r"what is not a tensor of numbers: s \(strings\)")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (helper.make_tensor_type_proto(TensorProto.STRING, ("n",)), r"y \(strings\)"),
        (
            helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, None)),
            r"y \(sequence\)",
        ),
        (
            helper.make_optional_type_proto(helper.make_tensor_type_proto(1, None)),
            r"y \(optional\)",
        ),
        (
            helper.make_sequence_type_proto(
                helper.make_map_type_proto(7, helper.make_tensor_type_proto(1, ()))
            ),
            r"y \(sequence\)",
        ),
    ],
)
def test_outputs_that_are_no_tensors(kind: onnx.TypeProto, words: str) -> None:
    source = relu(node("Neg", ["x"], ["a"]))
    source.graph.output[0].type.CopyFrom(kind)
    with pytest.raises(
        ModelFileError, match=rf"own.onnx returns {words}\nexpected numbers: images"
    ):
        require_tensors(source, "own.onnx")


def test_inputs_that_are_no_tensors() -> None:
    source = relu(node("Neg", ["x"], ["a"]))
    source.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    with pytest.raises(ModelFileError, match=r"own.onnx takes x \(strings\)\nexpected numbers"):
        require_tensors(source, "own.onnx")
    require_tensors(relu(node("Neg", ["x"], ["a"])), "own.onnx")


def test_an_output_without_a_shape_gets_one() -> None:
    source = old(17)
    assert not declare_outputs(source)
    source.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(onnx.checker.ValidationError, match="'shape' of 'type' is required"):
        onnx.checker.check_model(source)
    assert declare_outputs(source)
    onnx.checker.check_model(source, full_check=True)
    dims = source.graph.output[0].type.tensor_type.shape.dim
    assert dims[1].dim_value == 10
    assert len(source.graph.initializer[0].raw_data) == normal(4, 3, 3, 3).nbytes
