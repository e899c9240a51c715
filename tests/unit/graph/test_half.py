from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from deploykit.core.errors import ModelFileError
from deploykit.graph import plan_half, read_model, tidy
from tests.graphs import graph, normal, run_reference, save
from tests.unit.graph.halving import (
    HEADROOM,
    IMAGE,
    Converted,
    assert_well_typed,
    node_of,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_a_large_value_never_passes_through_fp16(tmp_path: Path) -> None:
    source = graph(
        """g (float[batch,3,8,8] x) => (float[batch,3,8,8] y) {
            c = Conv (x, w)
            big = Mul (c, up)
            small = Mul (big, down)
            y = Relu (small)
        }""",
        {
            "w": normal(3, 3, 1, 1),
            "up": np.full((1, 3, 1, 1), 6e4, np.float32),
            "down": np.full((1, 3, 1, 1), 1 / 6e4, np.float32),
        },
    )
    converted = Converted(source, tmp_path, {"x": IMAGE})
    reasons = converted.plan.kept
    assert set(reasons) == {"Mul", "Mul_2"}
    assert all(reason.startswith("big reaches ") for reason in reasons.values())
    assert_well_typed(converted.half)
    converted.assert_close()
    naive = run_reference(converted.naive(tmp_path), converted.feeds)["y"]
    assert not np.isfinite(naive).all()


def test_the_headroom_decides_at_the_limit(tmp_path: Path) -> None:
    source = graph("g (float[2] x) => (float[2] y) { y = Relu (x) }")
    model = read_model(save(source, tmp_path / "source.onnx"))
    tidy(model, rename=False)
    assert plan_half(model, {"x": 16376.0}, 4.0).halved == {"Relu"}
    assert plan_half(model, {"x": 16377.0}, 4.0).kept == {"Relu": "x reaches 1.638e+04"}
    assert plan_half(model, {"x": 65504.0}, 1.0).halved == {"Relu"}


def test_heavy_nodes_in_a_kept_subgraph_are_counted(tmp_path: Path) -> None:
    source = graph(
        """g (float[batch,3,8,8] x, bool c) => (float[batch,3,8,8] y) {
            r = Conv (x, w)
            y = If (c) <
                then_branch = then () => (float[batch,3,8,8] t) { t = Conv (r, w) },
                else_branch = other () => (float[batch,3,8,8] e) { e = Neg (r) }
            >
        }""",
        {"w": normal(3, 3, 1, 1)},
    )
    converted = Converted(source, tmp_path, {"x": IMAGE, "c": np.array(1, bool)})
    assert converted.plan.kept_heavy(converted.tidied) == 1
    assert_well_typed(converted.half)
    converted.assert_close()


def test_arithmetic_on_shapes_stays_exact(tmp_path: Path) -> None:
    source = graph(
        """g (float[1,1,1,w] x) => (float[1,1,1,v] y) {
            s = Shape (x)
            f = Cast <to = 1> (s)
            g = Mul (f, factor)
            d = Floor (g)
            sizes = Cast <to = 7> (d)
            r = Relu (x)
            y = Resize <mode = "nearest"> (r, , , sizes)
        }""",
        {"factor": np.array([1, 1, 1, 2], np.float32)},
    )
    converted = Converted(source, tmp_path, {"x": normal(1, 1, 1, 1029)})
    assert set(converted.plan.kept) == {"Cast", "Mul", "Floor", "Cast_2"}
    assert set(converted.plan.kept.values()) <= {
        "it computes with shapes, which FP16 would round",
        "the operator has no FP16 form",
        "d holds whole numbers, any: FP16 has them to 2048",
    }
    assert_well_typed(converted.half)
    converted.assert_close()
    assert run_reference(converted.half, converted.feeds)["y"].shape == (1, 1, 1, 2058)


def test_an_unknown_operator_stays_fp32_with_all_that_depends_on_its_type(tmp_path: Path) -> None:
    source = graph(
        """g (float[batch,3,8,8] x) => (float[batch,3,8,8] y) {
            a = Relu (x)
            b = lab.Thing (a)
            c = Add (a, b)
            y = Neg (c)
        }""",
        domain="lab",
    )
    converted = Converted(source, tmp_path, {})
    assert converted.plan.halved == {"Relu", "Neg"}
    assert converted.plan.kept == {
        "Thing": "the operator has no FP16 form",
        "Add": "the type of b is not known",
    }
    onnx.checker.check_model(converted.half, full_check=True)
    thing = node_of(converted.half, "Thing")
    assert thing.input[0] == node_of(converted.half, "Add").input[0] == "a_fp32"


def test_a_weight_beyond_fp16_keeps_its_node_and_says_so(tmp_path: Path) -> None:
    source = graph(
        """g (float[batch,3,8,8] x) => (float[batch,3,8,8] y) {
            m = Add (x, mask)
            y = Softmax <axis = 3> (m)
        }""",
        {"mask": np.array([[[[0, -1e9] * 4]]], np.float32)},
    )
    converted = Converted(source, tmp_path, {"x": IMAGE})
    assert converted.plan.kept["Add"] == "mask reaches 1e+09"
    assert_well_typed(converted.half)
    converted.assert_close()


def test_a_weight_needs_no_headroom(tmp_path: Path) -> None:
    source = graph(
        "g (float[batch,3,8,8] x) => (float[batch,3,8,8] y) { y = Mul (x, w) }",
        {"w": np.full((1, 3, 1, 1), 60000, np.float32)},
    )
    converted = Converted(source, tmp_path, {"x": np.full((1, 3, 8, 8), 1e-2, np.float32)})
    assert converted.plan.halved == {"Mul"}
    converted.assert_close()


def test_two_nodes_of_one_name_are_refused(tmp_path: Path) -> None:
    source = graph("g (float[3] x) => (float[3] y) { a = Relu (x)  y = Neg (a) }")
    model = read_model(save(source, tmp_path / "source.onnx"))
    with pytest.raises(ModelFileError, match="no names of their own; tidy it first"):
        plan_half(model, {}, HEADROOM)


def test_integers_and_doubles_are_not_touched(tmp_path: Path) -> None:
    source = graph(
        """g (float[3] x, int64[3] i, double[3] d) => (int64[3] j, double[3] e, float[3] y) {
            j = Add (i, i)
            e = Add (d, d)
            y = Relu (x)
        }"""
    )
    feeds = {"x": normal(3), "i": np.arange(3), "d": np.ones(3)}
    converted = Converted(source, tmp_path, feeds)
    assert converted.plan.halved == {"Relu"}
    assert_well_typed(converted.half)
    converted.assert_close()
