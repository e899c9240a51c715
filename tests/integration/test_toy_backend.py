"""A backend that another package brings: one file, and nothing of deploykit changes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from deploykit.core.plugs import plugs
from tests.graphs import graph, normal, save
from tests.plugins import install_plug

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOY = '''
"""onnx's own evaluator, in numpy."""

import time

from deploykit.backends import CPU, GraphBackend
from deploykit.core.precision import Precision
from deploykit.core.specs import Closing, StepTimes, TensorSpec


class ToyRunner(Closing):
    def __init__(self, path):
        import onnx
        from onnx.reference import ReferenceEvaluator

        model = onnx.load(path)
        self._evaluator = ReferenceEvaluator(model)
        self.inputs = tuple(map(spec, model.graph.input))
        self.outputs = tuple(map(spec, model.graph.output))

    def run(self, feeds):
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, self._evaluator.run(names, dict(feeds))))

    def run_timed(self, feeds):
        start = time.perf_counter()
        outputs = self.run(feeds)
        return outputs, StepTimes(wall_ms=(time.perf_counter() - start) * 1e3)

    def close(self):
        self._evaluator = None


def spec(value):
    dims = value.type.tensor_type.shape.dim
    return TensorSpec(value.name, "float32", tuple(d.dim_param or d.dim_value for d in dims))


BACKEND = GraphBackend(
    name="toy",
    label="a toy",
    rank=45,
    device=CPU,
    precisions=(Precision.FP32,),
    usual=(Precision.FP32,),
    problem=lambda gpus: PROBLEM,
    notes=lambda precision, streams: ["computed by a toy"],
    open=lambda graph, options: ToyRunner(str(graph)),
    load_device="toy",
)
'''


@pytest.fixture(autouse=True)
def _forget_plugs() -> Iterator[None]:
    """What a test installs is gone with its folder."""
    yield
    plugs.cache_clear()


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, problem: str = "") -> None:
    source = TOY.replace("PROBLEM", repr(problem))
    install_plug(folder, "backends", "toy", source, monkeypatch)


def deploykit(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """In a process of its own, which reads the path that the package was put on."""
    command = [sys.executable, "-m", "deploykit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


def model(folder: Path) -> Path:
    text = """g (float[N,3,4,4] input) => (float[N,5] logits) {
        means = GlobalAveragePool (input)
        mean = Flatten (means)
        logits = MatMul (mean, w)
    }"""
    return save(graph(text, {"w": normal(3, 5)}), folder / "tiny.onnx")


def test_it_is_measured_as_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch)
    called = deploykit(
        tmp_path,
        *("bench", model(tmp_path), "--backend", "ort,toy", "--batch", 2, "--duration", 0.01),
        *("--warmup", 0, "--min-samples", 3, "--threads", 1, "-o", "out.json", "--json"),
    )
    assert called.returncode == 0, called.stdout + called.stderr
    data = json.loads(called.stdout)
    assert [row["backend"] for row in data["results"]] == ["ort", "toy"]
    assert data["failures"] == []
    assert "computed by a toy" in json.dumps(data["results"][1])


def test_doctor_lists_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch)
    rows = json.loads(deploykit(tmp_path, "doctor", "--json").stdout)["abilities"]
    how = "deploykit bench TARGET --backend toy"
    assert {"task": "run models on a toy", "works": True, "how": how} in rows


def test_its_reason_is_shown_where_it_does_not_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "its licence has ended")
    called = deploykit(tmp_path, "bench", model(tmp_path), "--backend", "toy", "--batch", 2)
    assert called.returncode == 1
    assert "no backend to measure with" in called.stderr
    assert "toy: its licence has ended" in called.stderr
