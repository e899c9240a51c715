"""A converted graph is judged as an engine computes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.comparison.converted import (
    notes_on_every_value,
    open_as_engine,
    validate_converted,
)
from deploykit.comparison.reference import Runners
from deploykit.comparison.validation import validate
from deploykit.core.precision import Precision
from deploykit.graph import HalfPlan, convert_to_half, read_model, tidy, write_graph
from deploykit.heads.multiclass import MULTICLASS
from tests.graphs import graph, normal, run_ort, save

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.graph import LoadedGraph

NETWORK = """net (float[N,3,8,8] x) => (float[N,4] y) {
    [conv] c = Conv <pads = [1,1,1,1]> (x, w)
    [up] u = Add (c, far)
    [down] d = Sub (u, far)
    [pool] p = GlobalAveragePool (d)
    [flat] f = Flatten (p)
    [head] y = Gemm <transB = 1> (f, h)
}"""
"""Numbers near 1000 have steps of a half in FP16; within one kernel they are FP32."""

IMAGES = [normal(1, 3, 8, 8, seed=5), normal(2, 3, 8, 8, seed=6), normal(5, 3, 8, 8, seed=7)]
NAMES = ("the half", "the whole")


def halved(folder: Path, far: float) -> tuple[LoadedGraph, list[np.ndarray]]:
    weights = {
        "w": normal(8, 3, 3, 3) / 4,
        "h": normal(4, 8, seed=1),
        "far": np.array(far, np.float32),
    }
    source = graph(NETWORK, weights)
    model = read_model(save(source, folder / "net.onnx"))
    tidy(model, rename=False)
    plan = HalfPlan(frozenset(str(node.name) for node in model.graph))
    written = write_graph(convert_to_half(model, plan), folder / "half.onnx", Precision.FP16)
    return written, [run_ort(source, {"x": images})["y"] for images in IMAGES]


def test_what_fusion_leaves_is_judged_and_the_other_form_is_noted(tmp_path: Path) -> None:
    half, expected = halved(tmp_path, 1000.0)
    report, notes = validate_converted(
        Runners(), half, (IMAGES, expected), names=NAMES, head=MULTICLASS
    )
    assert report.passed
    assert len(report.batches) == len(IMAGES)
    (note,) = notes
    assert note.startswith("the half: cosine 0.99999")
    assert "in an engine that stores every value" in note


def test_forms_that_agree_are_not_mentioned(tmp_path: Path) -> None:
    half, expected = halved(tmp_path, 1.0)
    report, notes = validate_converted(
        Runners(), half, (IMAGES, expected), names=NAMES, head=MULTICLASS
    )
    assert report.passed
    assert notes == []


def test_what_is_nan_in_both_forms_is_said_by_the_report_alone(tmp_path: Path) -> None:
    half, expected = halved(tmp_path, 1.0)
    broken = [np.full_like(one, np.nan) for one in expected]
    report = validate(broken, expected, precision=Precision.FP16, names=NAMES, head=MULTICLASS)
    assert "are NaN or infinite" in report.problems[0]
    assert not notes_on_every_value(Runners(), half, (IMAGES, expected), report, broken)


@pytest.mark.parametrize("fast", [False, True])
def test_fast_leaves_the_rounding_out(fast: bool, tmp_path: Path) -> None:
    half, _ = halved(tmp_path, 1000.0)
    with open_as_engine(Runners(), half.artifact, fast=fast) as runner:
        got = runner.run({"x": IMAGES[0]})["y"]
    is_half = np.array_equal(got, got.astype(np.float16))
    assert is_half is not fast


def test_known_outputs_of_the_other_form_are_not_computed_again(tmp_path: Path) -> None:
    half, expected = halved(tmp_path, 1000.0)
    report, notes = validate_converted(
        Runners(), half, (IMAGES, expected), names=NAMES, head=MULTICLASS, every=expected
    )
    assert report.passed
    assert notes == []


def test_images_that_depend_on_one_another_are_no_matter_of_rounding(tmp_path: Path) -> None:
    """Alone an image gets other answers in any arithmetic, which the export says beside FP32."""
    half, expected = halved(tmp_path, 1.0)
    alone = [(one * 1.5).astype(np.float32) for one in expected]
    report, notes = validate_converted(
        Runners(), half, (IMAGES, expected), names=NAMES, head=MULTICLASS, every=alone
    )
    assert report.passed
    assert notes == []
