"""A backend that another package brings: one file, and nothing of deploykit changes."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING

import pytest

from deploykit.core.errors import UsageError
from deploykit.core.plugs import plugs
from deploykit.runtime.choice import Machine
from deploykit.runtime.loading import load
from tests.bundles import write_bundle
from tests.cli import deploykit
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
    sys.modules.pop("plugged_toy", None)


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, problem: str = "") -> None:
    source = TOY.replace("PROBLEM", repr(problem))
    install_plug(folder, "backends", "toy", source, monkeypatch)


def model(folder: Path) -> Path:
    text = """g (float[N,3,4,4] input) => (float[N,5] logits) {
        means = GlobalAveragePool (input)
        mean = Flatten (means)
        logits = MatMul (mean, w)
    }"""
    return save(graph(text, {"w": normal(3, 5)}), folder / "tiny.onnx")


def test_it_is_measured_as_any_other(
    tmp_path: Path, known_peak: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    called = deploykit(
        *("bench", model(tmp_path), "--backend", "ort,toy", "--batch", 2, "--duration", 0.01),
        *("--warmup", 0, "--min-samples", 3, "--threads", 1, "-o", "out.json", "--json"),
    )
    assert called.code == 0, called.out + called.err
    data = called.data
    assert [row["backend"] for row in data["results"]] == ["ort", "toy"]
    assert data["failures"] == []
    assert "computed by a toy" in json.dumps(data["results"][1])


def test_doctor_lists_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch)
    rows = deploykit("doctor", "--json").data["abilities"]
    how = "deploykit bench TARGET --backend toy"
    assert {"task": "run models on a toy", "works": True, "how": how} in rows


def test_the_help_of_commands_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch)
    compiled = r"tensorrt, tensorrt-rtx, none \(no engine\), or auto"
    assert re.search(compiled, _help_of("build"))
    assert "cuda, toy, eager. " in _help_of("bench")
    assert "cpu, toy, ort-cuda (the ONNX file), or auto" in _help_of("predict")


def test_a_bundle_is_loaded_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch)
    folder = write_bundle(tmp_path / "colours")
    with load(folder, device="toy", machine=Machine(gpus=(), driver=None)) as loaded:
        loaded.self_test()
        assert loaded.choice == "model.onnx on a toy: asked for with device='toy'"
    with pytest.raises(UsageError, match="possible: auto, cuda, cpu, toy, ort-cuda"):
        load(folder, device="tyo")


def _help_of(command: str) -> str:
    return " ".join(deploykit(command, "--help").out.split())


def test_its_reason_is_shown_where_it_does_not_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "its licence has ended")
    called = deploykit("bench", model(tmp_path), "--backend", "toy", "--batch", 2)
    assert called.code == 1
    assert "no backend to measure with" in called.err
    assert "toy: its licence has ended" in called.err
