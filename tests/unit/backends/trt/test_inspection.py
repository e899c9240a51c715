"""Layers of engines, read from what inspectors of TensorRT printed elsewhere.

The files in ``recorded`` say where each is from: none was made by this project.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deploykit.backends import LayerConversion
from deploykit.backends.trt.inspection import (
    EngineLayer,
    LayerTensor,
    conversions_among,
    read_layers,
)
from deploykit.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

RECORDED = Path(__file__).parent / "recorded"
POOL = "resnetv15_conv0_fwd + resnetv15_batchnorm0_fwd + resnetv15_relu0_fwd + resnetv15_pool0_fwd"
COPY = f"Reformatting CopyNode for Input Tensor 0 to {POOL}"


def recorded(name: str) -> tuple[EngineLayer, ...]:
    body = json.loads((RECORDED / name).read_text())
    assert body["source"]
    return read_layers(json.dumps(body["information"]))


def found(name: str) -> tuple[LayerConversion, ...]:
    return conversions_among(recorded(name))


def layer(name: str, kind: str, before: str, after: str, **more: Any) -> EngineLayer:
    """One input "x" and one output "y" of these types, unless ``more`` says otherwise."""
    given: dict[str, Any] = {
        "inputs": (LayerTensor("x", before, ""),),
        "outputs": (LayerTensor("y", after, ""),),
    }
    return EngineLayer(name, kind, **(given | more))


CONV = layer("conv + relu", "CaskConvolution", "INT8", "FP16", inputs=(LayerTensor("y", "", ""),))
STEM = layer("stem", "CaskConvolution", "FP32", "FP16", outputs=(LayerTensor("x", "", ""),))


def between(*given: EngineLayer) -> tuple[LayerConversion, ...]:
    """Of layers from "x" to "y", between the stem and a convolution."""
    return conversions_among((STEM, *given, CONV))


def test_tensorrt_10() -> None:
    copy, conv = recorded("tensorrt-10-resnet18-int8.json")
    assert (copy.kind, copy.origin, copy.nodes) == ("Reformat", "REFORMAT", ())
    assert copy.inputs == (LayerTensor("data", "FP32", "row major linear"),)
    assert copy.outputs[0].type_name == "INT8"
    assert conv.inputs[0].layout == "thirty-two wide channel vectorized row major"
    assert found("tensorrt-10-resnet18-int8.json") == (
        LayerConversion("reformat", COPY, POOL, "FP32", "INT8", at_border=True),
    )


def test_tensorrt_11_says_the_same_with_other_keys() -> None:
    assert recorded("tensorrt-11-keys.json")[0].inputs == (
        LayerTensor("data", "FP32", "row major linear"),
    )
    assert found("tensorrt-11-keys.json") == found("tensorrt-10-resnet18-int8.json")


def test_an_engine_without_details_names_its_reformats() -> None:
    layers = recorded("tensorrt-10-names.json")
    assert [each.kind for each in layers] == [""] * 5
    assert conversions_among(layers) == (
        LayerConversion("reformat", COPY, POOL, "", "", at_border=False),
    )
    assert conversions_among(layers)[0].sentence == f"reformat at {POOL}"


def test_generated_kernels_compute() -> None:
    norm, linear = recorded("tensorrt-10-generated-kernels.json")
    assert norm.nodes[1] == "/encoder/layers.9/mha/output/layernorm/LayerNormalization"
    assert norm.inputs[0] == LayerTensor("__myln_k_arg__bb1_72", "FP16", "")
    assert linear.kind == "fusion"
    assert len(linear.nodes) == 7
    assert found("tensorrt-10-generated-kernels.json") == ()


def test_a_quantization_that_stands_alone_belongs_to_the_layer_behind_it() -> None:
    (only,) = found("tensorrt-8-qdq.json")
    assert (only.kind, only.before, only.after) == ("quantize", "FP32", "INT8")
    assert only.neighbour.endswith("/model/backbone0/conv/Conv")
    assert only.at_border


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (layer("a_QuantizeLinear", "Reformat", "FP16", "INT8", origin="QDQ"), "quantize"),
        (layer("b", "Reformat", "INT8", "FP16", origin="QDQ"), "dequantize"),
        (layer("q17_quantize_scale_node", "Quantize", "FP32", "FP8"), "quantize"),
        (layer("DequantizeLinear_8", "Scale", "", ""), "dequantize"),
        (
            layer("__myl_X_myl0_4", "kgen", "FP8", "BF16", nodes=("t/DequantizeLinear",)),
            "dequantize",
        ),
        (layer("k", "PointWiseV2", "FP16", "INT8", nodes=("add_1/QuantizeLinear",)), "quantize"),
        (layer("head/Cast", "Cast", "FP32", "FP16"), "cast"),
        (layer("__myl_Cast_myl1_9", "kgen", "FP16", "FP32"), "cast"),
        (layer("__myl_MoveCast_myl0_3", "kgen", "FP16", "FP32"), "reformat"),
        (layer("__myl_Move_myl0_7", "kgen", "FP16", "FP16"), "reformat"),
        (layer("onnx::Concat_987 copy", "Reformat", "INT8", "INT8"), "reformat"),
    ],
    ids=lambda given: given.name if isinstance(given, EngineLayer) else given,
)
def test_layers_that_only_convert(given: EngineLayer, kind: str) -> None:
    (only,) = between(given)
    assert (only.kind, only.layer, only.neighbour) == (kind, given.name, "conv + relu")
    assert not only.at_border


@pytest.mark.parametrize(
    "given",
    [
        layer("w + w/QuantizeLinear + conv2", "CaskConvolution", "INT8", "FP16"),
        layer("bn_1", "Scale", "FP16", "FP16"),
        layer("__myl_CastMulAdd_myl0_3", "kgen", "FP16", "FP32"),
        layer("k", "kgen", "INT8", "FP16", nodes=("a/DequantizeLinear", "softmax")),
        layer("add_2 + add_2/QuantizeLinear", "PointWise", "FP16", "INT8"),
        layer("Reformatting CopyNode for Input Tensor 0 to reshape_7", "NoOp", "FP16", "FP16"),
    ],
    ids=lambda given: given.name,
)
def test_layers_that_compute_and_layers_that_launch_nothing(given: EngineLayer) -> None:
    assert between(given) == ()


def test_the_neighbour_of_an_output() -> None:
    head = layer("fc", "gemm", "FP16", "FP16", outputs=(LayerTensor("x", "FP16", ""),))
    given = layer("logits_cast", "Cast", "FP16", "FP32")
    (only,) = conversions_among((head, given))
    assert (only.neighbour, only.at_border) == ("fc", True)
    name = "Reformatting CopyNode for Network Output logits"
    (copy,) = conversions_among((head, layer(name, "Reformat", "FP16", "FP16")))
    assert (copy.neighbour, copy.at_border) == ("logits", True)
    name = "Reformatting CopyNode for Output Tensor 0 to fc"
    (copy,) = conversions_among((head, layer(name, "Reformat", "FP16", "FP32"), CONV))
    assert (copy.neighbour, copy.at_border) == ("fc", False)


@pytest.mark.parametrize(
    ("told", "type_name", "layout"),
    [
        ({"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"},
         "FP16", "channel major where channel % 8 == 0"),
        ({"Format/Datatype": "Two wide channel vectorized row major BFloat16 format."},
         "BF16", "two wide channel vectorized row major"),
        ({"Format/Datatype": "N/A due to dynamic shapes"}, "", ""),
        ({"Format/Datatype": "FP8"}, "FP8", ""),
        ({"Datatype": "Half", "Format": "Channel major FP16 format (kHWC8)"},
         "FP16", "channel major"),
        ({"DataType": "Int64"}, "INT64", ""),
        ({}, "", ""),
    ],
)  # fmt: skip
def test_types_and_layouts(told: dict[str, str], type_name: str, layout: str) -> None:
    body = {"Layers": [{"Name": "a", "Inputs": [{"Name": "x", **told}]}]}
    (only,) = read_layers(json.dumps(body))
    assert only.inputs == (LayerTensor("x", type_name, layout),)


def test_a_change_of_layout_alone_is_named() -> None:
    tensors = (LayerTensor("x", "INT8", "linear"), LayerTensor("y", "INT8", "channel major"))
    copy = EngineLayer("r", "Reformat", tensors[:1], tensors[1:])
    (only,) = between(copy)
    assert only.sentence == "reformat INT8 linear to channel major at conv + relu"


def test_separators_of_nodes_may_be_bare_control_characters() -> None:
    text = '{"Layers": [{"Name": "a", "Metadata": "[ONNX Layer: b]\x1e[ONNX Layer: c]"}]}'
    assert read_layers(text)[0].nodes == ("b", "c")


BAD: Sequence[str] = ("", "[]", "{}", '{"Layers": 3}', '{"Layers": [{}]}', '{"Layers": [[1]]}')


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_answer_of_an_inspector(text: str) -> None:
    with pytest.raises(DataError, match=r"the engine's inspector answers .*\nexpected JSON with"):
        read_layers(text)
