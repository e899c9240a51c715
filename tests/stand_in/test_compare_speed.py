"""`build --compare-speed` on the stand-in: two engines are measured in turn, down to the driver."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from deploykit.backends import CompileOptions, Compiler
from deploykit.backends.trt.compiler import TENSORRT
from deploykit.benchmarking.matrix import against_source
from deploykit.benchmarking.statistics.comparing import Ratio, Verdict
from deploykit.bundle.manifest import MANIFEST, MODEL, REFERENCE, Bundle, manifest_text
from deploykit.core import environment
from deploykit.core.artifacts import EngineRecord, sha256_of
from deploykit.core.errors import BuildError, UsageError
from deploykit.core.precision import Precision
from deploykit.core.sizes import ShapeProfile
from deploykit.runtime.choice import Machine
from deploykit.verbs import build as building
from tests.bundles import engine_record, write_bundle
from tests.fakes.runtime_fake import FakeRuntime

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.verbs.build import BuildReport
    from tests.fakes.runtime_fake import Script

PROFILE = ShapeProfile(1, 3, 5)
NAME = "Reformatting CopyNode for Input Tensor 0 to mean"


@pytest.fixture
def bundle(tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle that says FP16; its engines are its graphs, which the fake runtime computes."""
    folder = write_bundle(tmp_path / "colours", precision=Precision.FP16)
    shutil.copyfile(folder / MODEL, folder / REFERENCE)
    manifest = Bundle.open(folder).manifest
    files = {**manifest.files, REFERENCE: sha256_of(folder / REFERENCE)}
    (folder / MANIFEST).write_text(manifest_text(replace(manifest, files=files)))

    def compiled(graph: OnnxArtifact, where: Path, *_: Any, **__: Any) -> EngineRecord:
        record = engine_record(
            sha256=sha256_of(graph.path),
            compiler_version=FakeRuntime.__version__,
            compute_capabilities=(environment.gpus()[0].compute_capability,),
            profile=PROFILE,
            precision=Precision.FP32 if graph.path.name == REFERENCE else Precision.FP16,
        )
        shutil.copyfile(graph.path, where / record.file)
        return record

    compiler = Compiler(TENSORRT, FakeRuntime.__version__, FakeRuntime(script))
    monkeypatch.setattr(building, "choose_compiler", lambda *_: compiler)
    monkeypatch.setattr(building, "require_options", lambda *_: None)
    monkeypatch.setattr(building, "build_engine", compiled)
    quick = replace(against_source.SWITCHES, warmup_s=0.0, duration_s=0.0, min_samples=150)
    monkeypatch.setattr(against_source, "SWITCHES", quick)
    return folder


def build(bundle: Path, script: Script, **changes: Any) -> BuildReport:
    compiler = Compiler(TENSORRT, FakeRuntime.__version__, FakeRuntime(script))
    machine = Machine(
        gpus=changes.pop("gpus", environment.gpus()),
        load_compiler=lambda _: compiler,
        cuda_major=lambda _: None,
    )
    return building.build(
        bundle, "auto", CompileOptions(profile=PROFILE), machine=machine, compare_speed=True
    )


def test_both_engines_are_measured_and_one_is_kept(bundle: Path, script: Script) -> None:
    script.layers = json.dumps({"Layers": [NAME, "mean"]})
    report = build(bundle, script)
    speed = report.speed
    assert speed is not None
    assert (speed.precision, speed.source, speed.batch) == (Precision.FP16, Precision.FP32, 3)
    assert speed.report.queries_a == speed.report.queries_b >= 150
    assert [each.neighbour for each in speed.conversions or ()] == ["mean"]
    assert script.inspected == [{"input": (3, 3, 8, 8)}] * 2
    stages = [each.name for each in report.stages]
    assert stages == ["verify", "build engine", "run engine", "build source", "compare speed"]
    assert Bundle.open(bundle).manifest.engines == (report.engine,)
    assert sorted(path.suffix for path in bundle.iterdir()).count(".engine") == 1
    plain = json.loads(json.dumps(report.to_dict()))["speed"]
    assert (plain["precision"], plain["source"], plain["batch"]) == ("fp16", "fp32", 3)
    assert plain["report"]["rounds"] == 50
    assert plain["conversions"][0]["layer"] == NAME


VERDICTS = (
    (
        Ratio(1.2, 1.15, 1.25),
        "batch 3: fp16 takes 1.20 times as long as fp32 (1.15 to 1.25); 1 layer of its engine",
    ),
    (Ratio(0.5, 0.4, 0.6), "batch 3: fp16 takes 0.50 times as long as fp32 (0.40 to 0.60)"),
    (
        Ratio(1.01, 0.9, 1.2),
        "batch 3: fp16 is as fast as fp32: 1.01 times as long as fp32 (0.90 to 1.20), a ver",
    ),
)


def test_the_note_says_the_verdict(bundle: Path, script: Script) -> None:
    script.layers = json.dumps({"Layers": [NAME, "mean"]})
    speed = build(bundle, script).speed
    assert speed is not None
    verdicts = set()
    for ratio, said in VERDICTS:
        judged = replace(speed.report.comparison, ratio=ratio, min_effect=0.02)
        other = replace(speed, report=replace(speed.report, comparison=judged))
        assert other.notes[0].startswith(said)
        assert other.notes[0].endswith(("reformat at mean", "0.60)", "verdict needs 2.0%"))
        verdicts.add(judged.verdict)
    assert verdicts == set(Verdict)


def test_an_engine_for_another_gpu_is_added_and_not_compared(bundle: Path, script: Script) -> None:
    report = build(bundle, script, gpus=())
    assert report.speed is None
    assert report.notes[-1] == "its speed was not compared, as it did not run"
    assert Bundle.open(bundle).manifest.engines == (report.engine,)


def test_an_engine_is_added_though_its_source_does_not_compile(
    bundle: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: Any = getattr(building, "build_engine")  # noqa: B009 - what the fixture put there

    def refusing(graph: OnnxArtifact, *given: Any, **more: Any) -> EngineRecord:
        if graph.path.name == REFERENCE:
            raise BuildError("no kernel\nchange it")
        record: EngineRecord = compiled(graph, *given, **more)
        return record

    monkeypatch.setattr(building, "build_engine", refusing)
    report = build(bundle, script)
    assert report.speed is None
    assert report.notes[-1] == "its speed was not compared: no kernel; change it"
    assert Bundle.open(bundle).manifest.engines == (report.engine,)


def test_there_must_be_an_fp32_graph(bundle: Path, script: Script, tmp_path: Path) -> None:
    (bundle / REFERENCE).unlink()
    words = r"--compare-speed: .* keeps no reference\.onnx, its FP32 graph\nexport the model again"
    with pytest.raises(UsageError, match=words):
        build(bundle, script)
    assert Bundle.open(bundle).manifest.engines == ()
    words = r"--compare-speed: colours-fp32 is fp32, as what it came from\nit compares a lower"
    with pytest.raises(UsageError, match=words):
        build(write_bundle(tmp_path / "plain"), script)
