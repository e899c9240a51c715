"""Channels of values and keys that an attention lets change, by onnxruntime."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from deploykit.graph.activations import CHANGED
from deploykit.graph.qdq import (
    Scaling,
    channels_of,
    equalise,
    find_keys,
    linear_groups,
    number_channels,
    plan_fp8,
    plan_qdq,
)
from tests import graphs

TOKENS, HEADS, SIZE = 18, 2, 16
WIDTH = HEADS * SIZE
RANDOM = np.random.default_rng(4)
X = RANDOM.normal(size=(2, TOKENS, WIDTH)).astype(np.float32)


def constant(*shape: int) -> np.ndarray:
    return (RANDOM.normal(size=shape) * 0.3).astype(np.float32)


CONSTANTS = {
    **{f"w{each}": constant(WIDTH, WIDTH) for each in "qkvo"},
    **{f"b{each}": constant(WIDTH) for each in "qkvo"},
    "wide": constant(WIDTH, 3 * WIDTH),
    "wb": constant(3 * WIDTH),
    "heads": np.array([0, 0, HEADS, SIZE]),
    "three": np.array([0, 0, 3, HEADS, SIZE]),
    "flat": np.array([0, 0, WIDTH]),
    "factor": np.array(SIZE**-0.5, np.float32),
    "zero": np.array(0),
    "one": np.array(1),
    "two": np.array(2),
}
ENDING = """[scores] s = MatMul (qt, kt) ss = Mul (s, factor) p = Softmax <axis = -1> (ss)
    [mix] o = MatMul (p, vt) ot = Transpose <perm = [0,2,1,3]> (o) f = Reshape (ot, flat)
    [out] y0 = MatMul (f, wo) y = Add (y0, bo)"""
APART = (
    "".join(
        f"[{c}] {c}0 = MatMul (x, w{c}) [{c}b] {c}1 = Add (b{c}, {c}0) "
        f"{c}2 = Reshape ({c}1, heads) "
        for c in "qkv"
    )
    + """qt = Transpose <perm = [0,2,1,3]> (q2) kt = Transpose <perm = [0,2,3,1]> (k2)
    vt = Transpose <perm = [0,2,1,3]> (v2) """
    + ENDING
)
FUSED = (
    """[qkv] a0 = MatMul (x, wide) [qkvb] a1 = Add (a0, wb) a2 = Reshape (a1, three)
    a3 = Transpose <perm = [2,0,3,1,4]> (a2)
    qt = Gather <axis = 0> (a3, zero) kk = Gather <axis = 0> (a3, one)
    vt = Gather <axis = 0> (a3, two) kt = Transpose <perm = [0,1,3,2]> (kk) """
    + ENDING
)


def model_of(body: str) -> ir.Model:
    return graphs.model_of(body, (f"n,{TOKENS},{WIDTH}", f"n,{TOKENS},{WIDTH}"), CONSTANTS)


def run(model: ir.Model, name: str = "y") -> np.ndarray:
    proto = ir.to_proto(model)
    return graphs.run_ort(proto, {"x": X})[name]


def numbered(model: ir.Model, value: str, sources: list) -> np.ndarray:  # type: ignore[type-arg]
    graph = number_channels(model, sources)
    (shown,) = [v for node in graph.graph for v in node.outputs if v.name == value]
    graph.graph.outputs.append(shown)
    return run(graph, value)


@pytest.mark.parametrize(
    ("body", "source", "channels"),
    [(APART, ("v", "vb"), range(WIDTH)), (FUSED, ("qkv", "qkvb"), range(2 * WIDTH, 3 * WIDTH))],
    ids=["apart", "fused"],
)
def test_values_are_scaled_and_shifted_by_their_layer(
    body: str, source: tuple[str, str], channels: range
) -> None:
    model = model_of(body)
    (group,) = [each for each in linear_groups(model, plan_qdq(model)) if each.value == "f"]
    assert group.source is not None
    assert group.folds
    assert (group.source.node, group.source.bias) == source
    found = channels_of(numbered(model, "f", [group.source]))
    assert found == tuple(channels)
    scale = np.exp(RANDOM.normal(size=WIDTH)).astype(np.float32)
    scaling = Scaling(RANDOM.normal(size=WIDTH).astype(np.float32), scale)
    known = replace(group, source=replace(group.source, channels=found))
    changed, names = equalise(model, [(known, scaling)])
    np.testing.assert_allclose(run(changed), run(model), rtol=1e-4, atol=1e-4)
    assert len(changed.graph) == len(model.graph), "it costs no operator"
    assert all(name.startswith(CHANGED) for name in names.values())
    assert {"vt", "o", "f"} <= set(names)
    wrong = replace(group, source=replace(group.source, channels=tuple(reversed(found))))
    other, _ = equalise(model, [(wrong, scaling)])
    assert np.abs(run(other) - run(model)).max() > 0.1


def test_keys_are_shifted_without_a_trace() -> None:
    model = model_of(APART)
    keys = find_keys(model, plan_fp8(model))
    ((value, source),) = keys.items()
    assert (value, source.node, source.bias) == ("k1", "k", "kb")
    shift = RANDOM.normal(size=WIDTH).astype(np.float32) * 5
    changed, names = equalise(model, [], [(source, shift)])
    np.testing.assert_allclose(run(changed), run(model), rtol=1e-4, atol=1e-4)
    assert "kt" in names
    assert find_keys(model, plan_qdq(model)) == {}, "INT8 has no product of two activations"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[mix] o = MatMul (p, vt)", "vr = Relu (vt) [mix] o = MatMul (p, vr)"),
        ("p = Softmax <axis = -1> (ss)", "p = Softmax <axis = 2> (ss)"),
        ("y = Add (y0, bo)", "y1 = Add (y0, bo) y = Add (y1, f)"),
        ("[vb] v1 = Add (bv, v0)", "v1 = Identity (v0)"),
    ],
    ids=["not linear", "sums over queries", "read elsewhere", "without a bias"],
)
def test_values_that_may_not_change(old: str, new: str) -> None:
    assert old in APART
    model = model_of(APART.replace(old, new))
    assert [group.value for group in linear_groups(model, plan_qdq(model))] == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("p = Softmax", "st = Tanh (ss) p = Softmax"),
        ("[scores] s = MatMul (qt, kt)", "kr = Relu (kt) [scores] s = MatMul (qt, kr)"),
    ],
    ids=["a soft cap", "not linear"],
)
def test_keys_that_may_not_change(old: str, new: str) -> None:
    body = APART.replace(old, new)
    if "Tanh" in new:
        body = body.replace("<axis = -1> (ss)", "<axis = -1> (st)")
    model = model_of(body)
    assert find_keys(model, plan_fp8(model)) == {}
