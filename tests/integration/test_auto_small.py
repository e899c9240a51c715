"""`--precision auto` on small untrained graphs: FP8, nothing but FP32, nothing to choose."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from deploykit.bundle.manifest import Bundle, manifest_text
from deploykit.comparison.converted import require_valid
from deploykit.core.errors import ValidationError
from deploykit.core.precision import Precision
from deploykit.precision.budget import conversion, request
from deploykit.precision.budget.frontier import Loss
from deploykit.precision.budget.judging import Judge
from tests.cli import Called, deploykit
from tests.graphs import graph, normal, save

if TYPE_CHECKING:
    from pathlib import Path

NETWORK = """net (float[N, 3, 8, 8] x) => (float[N, 10] logits) {
    [stem] a = Conv <pads = [1,1,1,1]> (x, w1)
    [relu] b = Relu (a)
    [middle] c = Conv <pads = [1,1,1,1]> (b, w2)
    [relu2] d = Relu (c)
    [middle2] e = Conv <pads = [1,1,1,1]> (d, w22)
    [middle3] g = Conv <pads = [1,1,1,1]> (e, w23)
    [mean] p = GlobalAveragePool (g)
    [flat] f = Flatten (p)
    [hidden] h = Gemm <transB = 1> (f, w3)
    [relu3] r = Relu (h)
    [last] logits = Gemm <transB = 1> (r, w4)
}"""
BATCH = "1,4096,4096"
"""So that eight bits pay in a network of 8x8 pixels; the starts of kernels take the time of few."""

WEIGHTS = {
    "w1": normal(64, 3, 3, 3, seed=1, scale=0.2),
    "w2": normal(64, 64, 3, 3, seed=2, scale=0.05),
    "w22": normal(64, 64, 3, 3, seed=5, scale=0.05),
    "w23": normal(64, 64, 3, 3, seed=6, scale=0.05),
    "w3": normal(32, 64, seed=3, scale=0.2),
    "w4": normal(10, 32, seed=4, scale=0.2),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A graph, images for it, few points."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(conversion, "POINTS", 3)
    save(graph(NETWORK, WEIGHTS), tmp_path / "net.onnx")
    pixels = np.random.default_rng(5).integers(0, 256, (120, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels)
    return tmp_path


def export(drop: str, *more: object) -> Called:
    return deploykit(
        "export", "net.onnx", "--precision", "auto", "--max-drop", drop, "--calib", "images.npz",
        "--calib-count", 40, "--gpu", "L4", "--batch", BATCH, "--backend", "none", "-o", "bundle",
        "--json", *more,
    )  # fmt: skip


def test_fp8_is_chosen_where_it_is_the_better_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request, "_EIGHT_BITS", (Precision.FP8,))
    called = export("60%")
    assert called.code == 0, called.err
    record = called.data["conversion"]["budget"]
    manifest = Bundle.open(folder / "bundle").manifest
    assert manifest.precision is Precision.FP8
    assert {loss["measure"] for loss in _losses(record)} == {"answers"}
    model = onnx.load(folder / "bundle" / "model.onnx")
    types = {tensor.data_type for tensor in model.graph.initializer}
    assert onnx.TensorProto.FLOAT8E4M3FN in types
    assert onnx.TensorProto.INT8 not in types
    assert manifest.conversion["layers"]["fp8"] >= 3
    again = export("61%")
    assert any("are used again" in note for note in again.data["notes"])
    assert Bundle.open(folder / "bundle").manifest.onnx.sha256 == manifest.onnx.sha256


def _losses(record: dict[str, object]) -> list[dict[str, object]]:
    points = record["points"]
    assert isinstance(points, list)
    return [point["loss"] for point in points if point["loss"] is not None]


def test_fp32_is_the_last_way_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Judge, "loss_of", lambda self, graph, task, name: Loss("answers", 80, 40.0))
    called = export("20%")
    assert called.code == 0, called.err
    manifest = Bundle.open(folder / "bundle").manifest
    assert manifest.precision is Precision.FP32
    assert manifest.calibration is None
    assert any(
        note.startswith("FP32: no faster choice has a loss of 20") for note in called.data["notes"]
    )
    assert deploykit("check", "bundle", "--json").data["ok"] is True


def test_a_point_beyond_the_limits_of_its_precision_is_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_eight_bits(reference: Any, graph: Any, *more: Any, **named: Any) -> Any:
        if graph.artifact.precision.facts.quantized:
            raise ValidationError("it does not compute the same\ncosine 0.9, limit 0.95")
        return require_valid(reference, graph, *more, **named)

    monkeypatch.setattr(conversion, "require_valid", refuse_eight_bits)
    called = export("90%")
    assert called.code == 0, called.err
    assert "a faster point was left out: cosine 0.9, limit 0.95" in called.data["notes"]
    record = called.data["conversion"]["budget"]
    assert called.data["precision"] in {"fp16", "fp32"}
    assert record["chosen"] == len(record["points"]) - 1
    assert called.data["validation"][-1]["passed"]


def test_what_came_out_otherwise_is_measured_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export("60%").code == 0
    manifest = Bundle.open(folder / "bundle").manifest
    record = dict(manifest.conversion["budget"])
    record["points"] = [
        {**point, "sha256": point["sha256"] and "0" * 64} for point in record["points"]
    ]
    changed = replace(manifest, conversion={**manifest.conversion, "budget": record})
    (folder / "bundle" / "manifest.json").write_text(manifest_text(changed), encoding="utf-8")
    called = export("60%")
    assert "measured anew: the chosen point came out otherwise" in called.data["notes"]
    assert any(stage["name"] == "judge" for stage in called.data["stages"])


def test_a_graph_without_layers_is_refused(folder: Path) -> None:
    text = """net (float[N, 3, 8, 8] x) => (float[N, 3] logits) {
        [mean] p = GlobalAveragePool (x)
        [flat] logits = Flatten (p)
    }"""
    save(graph(text), folder / "net.onnx")
    called = export("20%")
    assert called.code == 1
    assert "has no convolution and no matrix product whose precision could be chosen" in called.err


def test_another_precision_there_is_not_replaced(folder: Path) -> None:
    assert deploykit("export", "net.onnx", "--fp16", "--backend", "none", "-o", "bundle").code == 0
    called = export("60%")
    assert called.code == 1
    assert "this export is auto, not fp16" in called.err


def test_a_budget_and_a_precision_exclude_each_other() -> None:
    from deploykit.core.errors import UsageError
    from deploykit.exporting.steps import ExportOptions

    with pytest.raises(UsageError, match="a budget chooses the precision, and fp16 is one"):
        ExportOptions(Precision.FP16, budget=request.Budget(0.01))
