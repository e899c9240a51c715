"""Calibration measures whatever a policy may ask for, on small graphs and on real families."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.core.errors import ModelFileError
from deploykit.graph import read_model, tidy
from deploykit.graph.qdq import QdqPolicy, calibration_tensors, plan_qdq
from tests.families import TORCHVISION
from tests.graphs import graph, normal, save

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import onnx_ir as ir

    from tests.families import Family
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CHECKED = ("resnet20", "googlenet", "resnet18", "resnet50", *TORCHVISION)
NEW_SKIP_OPERANDS = {"resnet18": 3, "resnet50": 4, "mobilenet_v2": 5, "regnet_y_400mf": 4}
"""Layers without which an addition has a skip operand that the default policy does not have."""

RANDOM_SETS = 4

Asked = Callable[[str, QdqPolicy], set[str]]


def policies(family: Family) -> Iterator[QdqPolicy]:
    """Every field by itself, each layer and addition out of INT8, and random mixtures.

    An excluded layer is no other than a sensitive one: mixtures have some.
    """
    layers = [weight.node for weight in family.plan.weights]
    others = [str(node.name) for node in family.nodes("Add", "Concat")]
    yield from (QdqPolicy(sensitive=(layer,)) for layer in layers)
    yield QdqPolicy(over_budget=tuple(layers[::2]))  # the same layers out, for another reason
    yield from (QdqPolicy(exclude=(name,)) for name in (layers[0], layers[-1], *others))
    yield from (QdqPolicy(first_layer="keep"), QdqPolicy(last_layer="keep"))
    yield QdqPolicy(residual="keep")
    yield from (QdqPolicy(min_channels=count) for count in (0, 1, 8, 24, 32, 64, 256, 10_000))
    yield from (QdqPolicy(min_features=count) for count in (0, 1, 17, 10_000))
    rng = np.random.default_rng(0)
    for count in (2, 2, 5, len(layers) // 2):
        for _ in range(RANDOM_SETS):
            yield QdqPolicy(
                sensitive=tuple(rng.choice(layers, count, replace=False)),
                exclude=tuple(rng.choice((*layers, *others), 2, replace=False)),
                first_layer=rng.choice(("int8", "keep")),
                last_layer=rng.choice(("int8", "keep")),
                min_channels=int(rng.choice((0, 16, 48))),
                min_features=int(rng.choice((0, 16, 48))),
            )


def test_every_field_of_a_policy_is_varied() -> None:
    """A new field needs a line in `policies`."""
    assert [field.name for field in fields(QdqPolicy)] == [
        "exclude", "sensitive", "over_budget", "first_layer", "last_layer", "residual",
        "min_channels", "min_features",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def asked(families: dict[str, Family]) -> Asked:
    """What a policy asks for in a network; two tests take each layer by itself out of INT8."""

    @cache
    def tensors(name: str, policy: QdqPolicy) -> set[str]:
        return set(plan_qdq(families[name].model, policy).tensors)

    return tensors


@pytest.mark.parametrize("name", CHECKED)
def test_no_policy_asks_for_more(name: str, families: dict[str, Family], asked: Asked) -> None:
    family = families[name]
    measured = set(calibration_tensors(family.model))
    for policy in policies(family):
        assert asked(name, policy) <= measured, policy


@pytest.mark.parametrize("name", CHECKED)
def test_measures_what_some_policy_asks_for_and_no_more(
    name: str, families: dict[str, Family]
) -> None:
    model = families[name].model
    asked = set(plan_qdq(model, QdqPolicy(min_channels=0, min_features=0)).tensors)
    for layer in families[name].nodes("Conv"):
        without = QdqPolicy(sensitive=(str(layer.name),), min_channels=0, min_features=0)
        asked |= set(plan_qdq(model, without).tensors)
    assert set(calibration_tensors(model)) == asked


@pytest.mark.parametrize("name", list(NEW_SKIP_OPERANDS))
def test_a_kept_layer_changes_the_skip_operand(
    name: str, families: dict[str, Family], asked: Asked
) -> None:
    default = families[name].plan
    changing = [
        weight.node
        for weight in default.weights
        if asked(name, QdqPolicy(sensitive=(weight.node,))) - set(default.tensors)
    ]
    assert len(changing) == NEW_SKIP_OPERANDS[name]


TWO_BRANCHES = """net (float[batch,16,8,8] x) => (float[batch,16,8,8] y) {
    [inner] a = Conv <pads = [1,1,1,1]> (x, w)
    [relu] r = Relu (a)
    [last] long = Conv <pads = [1,1,1,1]> (r, w)
    [down] short = Conv <pads = [1,1,1,1]> (x, w)
    [add] y = Add (long, short)
}"""


def small(folder: Path, text: str, **constants: tuple[int, ...]) -> ir.Model:
    weights = {name: normal(*shape) for name, shape in constants.items()}
    model = read_model(save(graph(text, weights), folder / "graph.onnx"))
    tidy(model, rename=False)
    return model


def test_both_operands_of_two_convolutions(tmp_path: Path) -> None:
    model = small(tmp_path, TWO_BRANCHES, w=(16, 16, 3, 3))
    assert plan_qdq(model).tensors == ("x", "r", "short")
    assert plan_qdq(model, QdqPolicy(sensitive=("last",))).tensors == ("x", "long")
    assert calibration_tensors(model) == ("x", "r", "long", "short")


def test_one_operand_beside_one_convolution(tmp_path: Path) -> None:
    text = TWO_BRANCHES.replace("[down] short = Conv <pads = [1,1,1,1]> (x, w)", "short = Relu (x)")
    model = small(tmp_path, text, w=(16, 16, 3, 3))
    assert calibration_tensors(model) == plan_qdq(model).tensors == ("x", "r", "short")


def test_inputs_of_small_layers(tmp_path: Path) -> None:
    text = """net (float[batch,16,8,8] x) => (float[batch,5] y) {
        [first] a = Conv (x, w)
        [small] b = Conv (a, w2)
        [pool] p = GlobalAveragePool (b)
        [flat] f = Flatten (p)
        [head] y = Gemm <transB = 1> (f, w3)
    }"""
    model = small(tmp_path, text, w=(16, 16, 3, 3), w2=(4, 16, 3, 3), w3=(5, 4))
    assert plan_qdq(model).tensors == ("x",)
    assert calibration_tensors(model) == ("x", "a", "f")


def test_operands_of_a_concatenation_before_a_small_layer(tmp_path: Path) -> None:
    text = """net (float[batch,16,8,8] x) => (float[batch,4,4,4] y) {
        [left] a = Relu (x)
        [right] b = Sigmoid (x)
        [concat] c = Concat <axis = 1> (a, b)
        [pool] p = MaxPool <kernel_shape = [2,2], strides = [2,2]> (c)
        [before] o = Conv (p, w)
        [small] y = Conv (o, w2)
    }"""
    model = small(tmp_path, text, w=(4, 32, 1, 1), w2=(4, 4, 1, 1))
    assert plan_qdq(model, QdqPolicy(last_layer="keep", min_channels=99)).tensors == ()
    assert calibration_tensors(model) == ("a", "b", "c", "p", "o")


def test_a_quantized_graph_is_refused(tmp_path: Path) -> None:
    text = """net (float[batch,16] x) => (float[batch,16] y) {
        [quantize] q = QuantizeLinear (x, s)
        [restore] y = DequantizeLinear (q, s)
    }"""
    model = read_model(save(graph(text, {"s": np.array(0.5, np.float32)}), tmp_path / "graph.onnx"))
    with pytest.raises(ModelFileError, match="already quantized: it has QuantizeLinear 'quantize'"):
        calibration_tensors(model)
