"""Placement on the real definitions, and that TensorRT for RTX takes the result as it is meant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deploykit.backends import CompileOptions
from deploykit.backends.trt.builder import compile_onnx
from deploykit.backends.trt.compiler import load_compiler
from deploykit.core.precision import Precision
from deploykit.core.sizes import ShapeProfile
from deploykit.precision.quantization.conversion import quantize_to_int8
from tests.families import IMAGE_SIZES

if TYPE_CHECKING:
    from pathlib import Path

    from tests.families import Family

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_alexnet_keeps_its_response_normalisation(families: dict[str, Family]) -> None:
    alexnet = families["alexnet2012"]
    assert len(alexnet.plan.weights) == 5
    for op_type in ("AveragePool", "Pow", "Div", "Mul", "Transpose"):
        assert alexnet.nodes(op_type)
        assert all(not alexnet.int8_operands(node) for node in alexnet.nodes(op_type))
    assert all(not alexnet.int8_operands(node) for node in alexnet.nodes("MaxPool"))


def test_vgg_has_one_pair_before_each_convolution(families: dict[str, Family]) -> None:
    vgg = families["vgg11"]
    assert len(vgg.plan.weights) == len(vgg.plan.activations) == 8
    assert all(vgg.int8_operands(node) == {0} for node in vgg.nodes("Conv"))
    assert vgg.plan.groups == ()
    assert vgg.plan.kept == {}


def test_nin_averages_what_is_not_rounded(families: dict[str, Family]) -> None:
    nin = families["nin"]
    assert len(nin.plan.weights) == len(nin.plan.activations) == 12
    assert len(nin.plan.kept) == 1
    assert set(nin.plan.kept.values()) == {"averages keep the bits that INT8 would drop"}


def test_googlenet_has_one_scale_around_each_concatenation(families: dict[str, Family]) -> None:
    googlenet = families["googlenet"]
    concats = googlenet.nodes("Concat")
    assert len(concats) == 9
    read_as_int8 = [
        node for node in concats if str(node.outputs[0].name) in googlenet.plan.activations
    ]
    assert len(read_as_int8) == 8  # the ninth is averaged, and nothing but averaged
    for node in read_as_int8:
        group = googlenet.plan.group_of(str(node.outputs[0].name))
        assert {str(value.name) for value in node.inputs if value is not None} <= group
        assert googlenet.int8_operands(node) == {0, 1, 2, 3}


def test_googlenet_pools_int8_values_beside_its_convolutions(families: dict[str, Family]) -> None:
    googlenet = families["googlenet"]
    inner = [
        node
        for node in googlenet.nodes("MaxPool")
        if googlenet.int8_operands(node) and node.inputs[0] is not None
    ]
    assert len(inner) == 11  # one in each of nine modules, and two between them
    for node in inner:
        group = googlenet.plan.group_of(str(node.outputs[0].name))
        assert str(node.inputs[0].name if node.inputs[0] else "") in group


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_residual_additions_have_one_int8_operand(name: str, families: dict[str, Family]) -> None:
    network = families[name]
    adds = network.nodes("Add")
    assert len(adds) == {"resnet18": 8}.get(name, 16)
    downsampled = 0
    for add in adds:
        (index,) = network.int8_operands(add)
        plain, skip = add.inputs[1 - index], add.inputs[index]
        assert plain is not None
        assert skip is not None
        producer = skip.producer()
        assert producer is not None
        downsampled += producer.op_type == "Conv"
        assert str(plain.name) not in network.plan.activations
        if producer.op_type == "Conv":  # it reads what the block reads
            (block_input, *_) = (str(value.name) for value in producer.inputs if value)
            assert len(network.readers(block_input)) == 2
    assert downsampled == (3 if name == "resnet18" else 4)


def test_resnext_groups_are_int8(families: dict[str, Family]) -> None:
    resnext = families["resnext50_32x4d"]
    grouped = [n for n in resnext.nodes("Conv") if n.attributes.get_int("group", 1) == 32]
    assert len(grouped) == 16
    assert {node.name for node in grouped} <= {weight.node for weight in resnext.plan.weights}
    assert {weight.axis for weight in resnext.plan.weights} == {0}


def test_option_a_shortcuts_stay_int8(families: dict[str, Family]) -> None:
    resnet = families["resnet20"]
    assert all(resnet.int8_operands(pool) == {0} for pool in resnet.nodes("MaxPool"))
    assert sorted(len(group) for group in resnet.plan.groups) == [2, 2]
    for pad in resnet.nodes("Pad"):
        assert resnet.readers(str(pad.outputs[0].name))
        assert not resnet.int8_operands(pad)


@pytest.mark.parametrize("name", list(IMAGE_SIZES))
def test_the_compiler_takes_it_without_a_warning(
    name: str, families: dict[str, Family], tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX: tensorrt-rtx-cu13")
    family = families[name]
    amax = dict.fromkeys(family.plan.tensors, 3.0)
    result = quantize_to_int8(family.graph, amax, tmp_path / "int8.onnx")
    options = CompileOptions(ShapeProfile(1, 1, 2), compute_capabilities=("8.9",))
    compiled = compile_onnx(load_compiler("tensorrt-rtx"), result.artifact.path, options)
    assert compiled.warnings == ()
    int8 = sum(count for kind, count in compiled.census.items() if kind.endswith(" INT8"))
    assert int8 == len(family.plan.weights) == result.layers[Precision.INT8]
    assert not any(kind.endswith(" FLOAT") for kind in compiled.census)
