"""`deploykit bench` on a real GPU: every backend that works here, in processes of its own.

pytest -n 0 tests/gpu
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deploykit.backends._registry import engine_backends, unavailable_backends
from deploykit.benchmarking.results import read_run
from deploykit.core import environment
from tests.bundles import write_classifier
from tests.cli import deploykit

REASON = "no GPU on this machine"
SHORT = ("--duration", 0.5, "--warmup", 0.1, "--precision", "fp32,fp16", "--batch", "1,4", "--json")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if not environment.gpus():
        pytest.skip(REASON)
    monkeypatch.chdir(tmp_path)
    return write_classifier(tmp_path / "small.onnx")


def measured(model: Path, *options: object) -> dict[str, Any]:
    called = deploykit("bench", model, *options, *SHORT)
    assert called.code == 0, called.err + called.out
    return called.data


def engines_here() -> list[str]:
    missing = unavailable_backends(environment.gpus())
    found = sorted({each.name for each in engine_backends()} - set(missing))
    if not found:
        pytest.skip("; ".join(f"{name}: {reason}" for name, reason in missing.items()))
    return found


@pytest.mark.parametrize("preset", [None, "trtexec10", "trtexec11", "trtexec10-exposedma"])
def test_engines_are_built_and_measured(model: Path, preset: str | None) -> None:
    chosen = () if preset is None else ("--preset", preset)
    data = measured(model, "--backend", ",".join(engines_here()), *chosen)
    assert data["failures"] == []
    for row in data["results"]:
        assert row["precision_proven"] == row["precision"]
        assert {"compute_ms", "enqueue_ms", "wall_ms"} <= set(row["steps_ms"])
        assert ("h2d_ms" in row["steps_ms"]) is (preset != "trtexec11")
        assert row["latency_ms"]["p50"] <= row["steps_ms"]["wall_ms"] * 1.05


def test_the_gpu_is_watched(model: Path) -> None:
    pytest.importorskip("pynvml", reason="needs nvidia-ml-py")
    data = measured(model, "--backend", engines_here()[0])
    run = read_run(Path(data["files"][0]))
    gpu = run.results[0].environment["conditions"]["gpu"]
    assert gpu["readings"] >= 1


def test_onnxruntime_runs_on_the_gpu(model: Path) -> None:
    data = measured(model, "--backend", "ort-cuda")
    if data["failures"]:
        pytest.skip(data["failures"][0]["reason"])
    assert [row["backend"] for row in data["results"]] == ["ort-cuda"] * 4
