"""A whole run with scripted steps: files, notes, rankings, and what makes two runs the same."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.benchmarking.matrix.cells import Cell, CellGraph, Matrix
from deploykit.benchmarking.matrix.steps import Steps
from deploykit.benchmarking.results import Subject, read_run
from deploykit.core import environment
from deploykit.core.environment import Gpu
from deploykit.core.errors import BundleError, DeviceError, UsageError
from deploykit.core.precision import Precision
from deploykit.core.serialization import Source, from_plain, to_plain
from deploykit.costs.peaks import gpu_peak
from deploykit.verbs import bench as bench_run
from deploykit.verbs.bench import BenchOptions, bench, bench_to_plain, ranked_to_plain
from tests.unit.benchmarking.statistics.noise import SWITCHES, independent, result_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FP32 = Precision.FP32
L4 = gpu_peak("NVIDIA L4").peak


@dataclass
class Script:
    """Answers each step; the latency of a model is ``latency_ms``."""

    latency_ms: dict[str, float] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)
    peaks: list[set[str]] = field(default_factory=list)
    slower: dict[Precision, float] = field(default_factory=dict)

    def __call__(self, step: str, request: Mapping[str, Any], *_: Any, **__: Any) -> dict[str, Any]:
        if step == "graph":
            self.peaks.append(set(request["peaks"]))
            made = CellGraph("m.onnx", "a" * 64, FP32, FP32, None, False, {}, ())
            return dict(to_plain(made))
        cell = from_plain(Cell, request["cell"], Source("request"))
        self.made.append(cell.key)
        subject = Subject(cell.model, cell.precision, FP32, cell.backend, cell.batch)
        times = independent(np.random.default_rng(1), 200, 0.01) / 5
        factor = self.latency_ms.get(cell.model, 1.0) * self.slower.get(cell.precision, 1.0)
        result = result_of(times * factor, subject=subject)
        return dict(to_plain(result))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    script = Script()
    monkeypatch.setattr(bench_run, "Steps", partial(Steps, call=script))
    monkeypatch.setattr(bench_run, "measure_cpu_peaks", lambda _, **__: L4)
    return script


def options(folder: Path, *targets: str, **changes: Any) -> BenchOptions:
    matrix = Matrix(targets or ("nin",), (1,), precisions=(FP32,), backends=("ort",))
    known = BenchOptions(matrix, SWITCHES, folder / "run.json", folder / "work", 60.0)
    return replace(known, **changes)


def test_a_run_is_written_with_its_reports(script: Script, tmp_path: Path) -> None:
    report = bench(options(tmp_path), {})
    assert [path.name for path in report.files] == ["run.json", "run.md", "run.csv", "run.html"]
    assert read_run(tmp_path / "run.json") == report.run
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        path.name for path in report.files
    )
    data = json.loads(json.dumps(bench_to_plain(report)))
    assert data["results"][0]["latency_ms"]["p50"] == pytest.approx(1.0, rel=0.01)
    assert (data["failures"], data["rankings"], data["resumed"]) == ([], [], 0)


def test_a_slower_lower_precision_stands_in_every_report(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "gpus", lambda: (Gpu("L4", "8.9", 1),))
    monkeypatch.setattr(bench_run, "unavailable_backends", lambda _: {})
    script.slower[Precision.FP16] = 1.3
    matrix = Matrix(("nin",), (1,), precisions=(FP32, Precision.FP16), backends=("ort-cuda",))
    report = bench(options(tmp_path, matrix=matrix), {})
    assert report.run == read_run(tmp_path / "run.json")
    data = json.loads(json.dumps(bench_to_plain(report)))
    said = {each["precision"]: " ".join(each["notes"]) for each in data["results"]}
    assert said["fp32"] == ""
    assert said["fp16"].startswith("fp16 takes 1.30 times as long as fp32 (1.")
    for path in report.files:
        assert "fp16 takes 1.30 times as long as fp32" in path.read_text(encoding="utf-8")


def test_models_that_differ_in_nothing_else_are_ranked(script: Script, tmp_path: Path) -> None:
    script.latency_ms = {"vgg11": 30.0, "nin": 3.0, "resnet18": 3.1}
    report = bench(options(tmp_path, "vgg11", "nin", "resnet18"), {})
    (ranked,) = report.rankings
    assert ranked.title == "ort fp32 batch 1"
    assert [(rank, model) for rank, model, _ in ranked.places] == [
        (1, "nin"),
        (1, "resnet18"),
        (3, "vgg11"),
    ]
    place = ranked_to_plain(ranked)["places"][2]
    assert (place["rank"], place["model"]) == (3, "vgg11")


def test_a_file_that_is_no_json_is_refused_before_anything_is_done(
    script: Script, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"run\.txt is no file of results\nexpected a name that"):
        bench(options(tmp_path, output=tmp_path / "run.txt"), {})
    assert script.peaks == []
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_kept_for_the_next_start(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _: object) -> None:
        raise BundleError(f"cannot write {path}: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(bench_run, "write_run", full)
        with pytest.raises(BundleError, match="No space left on device"):
            bench(options(tmp_path), {})
    assert bench(options(tmp_path), {}).resumed == 1
    assert script.made == ["nin/ort/fp32/b1"]


def test_a_fresh_run_forgets_an_unfinished_one(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(bench_run, "write_run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            bench(options(tmp_path), {})
    report = bench(options(tmp_path, fresh=True), {})
    assert report.resumed == 0
    assert script.made == ["nin/ort/fp32/b1"] * 2


@pytest.mark.parametrize("change", ["switches", "target", "limit"])
def test_another_run_does_not_go_on_with_this_one(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(bench_run, "write_run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            bench(options(tmp_path), {})
    other = {
        "switches": options(tmp_path, switches=replace(SWITCHES, seed=5)),
        "target": options(tmp_path, "vgg11"),
        "limit": options(tmp_path, cell_s=5.0),
    }
    assert bench(other[change], {}).resumed == 0


def test_without_the_cpus_peak_there_is_no_limit_and_a_note(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(_: int, **__: object) -> None:
        raise DeviceError("the speed of this CPU could not be measured\nreason: killed")

    monkeypatch.setattr(bench_run, "measure_cpu_peaks", busy)
    report = bench(options(tmp_path), {})
    assert report.notes == (
        "no physical limits: the speed of this CPU could not be measured; reason: killed",
    )
    assert script.peaks == [set()]


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("NVIDIA L4", None),
        ("Made Up 9000", "no physical limits: the rates of Made Up 9000 are not in the table"),
        ("Orin", "no physical limits: the rates of Orin are not in the table; it may be "),
    ],
)
def test_a_gpu_is_looked_up_by_its_name(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, note: str | None
) -> None:
    here = replace(environment.describe(), gpus=(Gpu(name, "8.9", 24_000_000_000),))
    monkeypatch.setattr(environment, "describe", lambda: here)
    monkeypatch.setattr(bench_run, "unavailable_backends", lambda _: {})
    matrix = Matrix(("nin",), (1,), precisions=(FP32,), backends=("ort-cuda",))
    report = bench(options(tmp_path, matrix=matrix), {})
    assert script.peaks == [set() if note else {"gpu"}]
    assert len(report.notes) == (0 if note is None else 1)
    assert note is None or report.notes[0].startswith(note)


def test_a_backend_that_was_asked_for_and_is_missing_is_mentioned(
    script: Script, tmp_path: Path
) -> None:
    matrix = Matrix(("nin",), (1,), precisions=(FP32,), backends=("tensorrt", "ort"))
    report = bench(options(tmp_path, matrix=matrix), {})
    assert report.notes == ("tensorrt was not measured: no GPU on this machine",)
    assert script.made == ["nin/ort/fp32/b1"]


# --- on one of several GPUs

SEEN = (
    Gpu("NVIDIA L4", "8.9", 1, 0, "0000:3B:00.0", "GPU-11111111-2222-3333-4444-555555555555"),
    Gpu("NVIDIA T4", "7.5", 1, 1, "0000:AF:00.0", "GPU-66666666-2222-3333-4444-555555555555"),
)


@pytest.mark.parametrize(
    ("device", "visible"),
    [
        ("cuda", None),
        ("cuda:1", SEEN[1].uuid),
        ("0000:af:00.0", SEEN[1].uuid),
        ("GPU-1", SEEN[0].uuid),
    ],
)
def test_the_children_see_the_gpu_that_was_named(
    monkeypatch: pytest.MonkeyPatch, device: str, visible: str | None
) -> None:
    monkeypatch.setattr(environment, "gpus", lambda: SEEN)
    assert bench_run.visible_gpus(device) == visible


def test_a_gpu_that_is_not_there_is_said_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(environment, "gpus", lambda: SEEN)
    with pytest.raises(UsageError, match="no GPU is called '2'"):
        bench_run.visible_gpus("cuda:2")
    with pytest.raises(UsageError, match="--device cpu: engines are for GPUs"):
        bench_run.visible_gpus("cpu")
