"""`check` on small bundles: what is found, and what is not run any more."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.backends import Compiler, EngineHeader
from deploykit.bundle.manifest import GOLDEN, MANIFEST, Bundle, manifest_text
from deploykit.core import environment
from deploykit.core.environment import Gpu
from deploykit.core.errors import BundleError, UsageError
from deploykit.verbs import check as checking
from deploykit.verbs.check import check, check_to_plain
from tests.bundles import engine_record, write_bundle
from tests.fakes.engine_fake import FakeMachine

if TYPE_CHECKING:
    from pathlib import Path

HOPPER, ADA = Gpu("Hopper", "9.0", 1), Gpu("Ada", "8.9", 1)


@pytest.fixture
def on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "gpus", lambda: (HOPPER,))


def test_a_whole_bundle_has_no_problems(tmp_path: Path) -> None:
    report = check(write_bundle(tmp_path / "colours"))
    assert report.ok
    assert check_to_plain(report) == {
        "bundle": str(tmp_path / "colours"),
        "ok": True,
        "problems": [],
        "remedy": "",
        "golden": "model.onnx",
        "signed_by": None,
        "doubts": [],
        "engines": [],
    }


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle"):
        check(tmp_path)


def test_a_manifest_that_was_edited_is_the_one_problem(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "colours")
    text = (folder / MANIFEST).read_text(encoding="utf-8")
    (folder / MANIFEST).write_text(text.replace("colours-fp32", "shapes-fp32"), encoding="utf-8")
    report = check(folder)
    assert not report.ok
    (problem,) = report.problems
    assert "was changed after it was written" in problem
    assert report.engines == ()


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "labels.txt"])
def test_a_changed_file_is_named_and_not_run(tmp_path: Path, name: str) -> None:
    folder = write_bundle(tmp_path / "colours")
    (folder / name).write_bytes(b"other")
    report = check(folder)
    (problem,) = report.problems  # nothing of a sample that does not run
    assert problem.startswith(f"{name} has sha256 ")
    assert report.remedy == "copy or export the bundle again"


def golden(folder: Path, error: float) -> None:
    """A sample that is wrong by ``error``, in a manifest that has its hash."""
    with np.load(folder / GOLDEN) as sample:
        images, logits = sample["input"], sample["logits"] + np.array([error, 0, 0], np.float32)
    np.savez(folder / GOLDEN, input=images, logits=logits)
    from dataclasses import replace

    from deploykit.core.artifacts import sha256_of

    manifest = Bundle.open(folder).manifest
    files = {**manifest.files, GOLDEN: sha256_of(folder / GOLDEN)}
    (folder / MANIFEST).write_text(manifest_text(replace(manifest, files=files)), encoding="utf-8")


def test_a_sample_that_is_not_what_the_model_computes(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "colours")
    golden(folder, 1.0)
    problems = check(folder).problems
    assert problems
    assert all(problem.startswith("golden sample: ") for problem in problems)


def test_a_sample_within_the_limits_is_none(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "colours")
    golden(folder, 1e-7)
    assert check(folder).ok


def test_a_model_that_does_not_run(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "colours")
    (folder / "model.onnx").write_bytes(b"no graph at all")
    from dataclasses import replace

    from deploykit.core.artifacts import sha256_of

    manifest = Bundle.open(folder).manifest
    digest = sha256_of(folder / "model.onnx")
    changed = replace(
        manifest,
        files={**manifest.files, "model.onnx": digest},
        onnx=replace(manifest.onnx, sha256=digest),
    )
    (folder / MANIFEST).write_text(manifest_text(changed), encoding="utf-8")
    (problem,) = check(folder).problems
    assert problem.startswith("the golden sample does not run: ")


@pytest.mark.usefixtures("on_hopper")
def test_an_engine_for_another_gpu_is_no_problem(tmp_path: Path) -> None:
    record = engine_record(compute_capabilities=("8.9",))
    report = check(write_bundle(tmp_path / "colours", record))
    (engine,) = report.engines
    assert report.ok
    assert (engine.file, engine.compiler, engine.fits) == (record.file, "tensorrt", False)
    assert engine.reason


@pytest.mark.usefixtures("on_hopper")
def test_an_engine_that_is_missing_is_one(tmp_path: Path) -> None:
    record = engine_record()
    folder = write_bundle(tmp_path / "colours", record)
    (folder / record.file).unlink()
    report = check(folder)
    assert not report.ok
    assert (report.engines[0].fits, report.engines[0].reason) == (False, "it is missing")


def test_an_engine_fits_nothing_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "gpus", lambda: ())
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    (engine,) = check(write_bundle(tmp_path / "colours", engine_record())).engines
    assert (engine.fits, bool(engine.reason)) == (False, True)


# --- on a device


ENGINE = engine_record()


def test_the_engine_that_will_serve_runs_the_sample(tmp_path: Path) -> None:
    machine = FakeMachine()
    folder = write_bundle(tmp_path / "colours", ENGINE)
    report = check(folder, device="cuda", machine=machine())
    assert report.ok
    assert report.golden is not None
    assert report.golden.startswith(f"{ENGINE.file} on Hopper, ")
    (engine,) = machine.opened
    assert engine.batches == [2]
    assert engine.closed


def test_an_engine_that_computes_something_else_is_a_problem(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "colours", ENGINE)
    report = check(folder, device="cuda", machine=FakeMachine(offset=1.0)())
    assert not report.ok
    assert report.problems[0].startswith("the golden sample gives other logits than at export")
    assert check(folder).ok  # its graph is as it was


def test_without_an_engine_here_the_sample_does_not_run(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "colours", ENGINE)
    report = check(folder, device="cuda", machine=FakeMachine(ADA)())
    (problem,) = report.problems
    assert problem.startswith("the golden sample does not run: no engine of colours-fp32 runs on")
    assert report.golden is None


def test_a_changed_engine_is_not_run(tmp_path: Path) -> None:
    folder, machine = write_bundle(tmp_path / "colours", ENGINE), FakeMachine()
    (folder / ENGINE.file).write_text("another", encoding="utf-8")
    assert not check(folder, device="cuda", machine=machine()).ok
    assert machine.opened == []


def test_a_device_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown device 'gpu'"):
        check(write_bundle(tmp_path / "colours"), device="gpu")


@pytest.mark.parametrize("device", ["cpu:1", "auto:0"])
def test_a_gpu_of_what_is_on_none(tmp_path: Path, device: str) -> None:
    name = device.partition(":")[0]
    with pytest.raises(UsageError, match=f"'{name}' is not on a GPU"):
        check(write_bundle(tmp_path / "colours"), device=device, machine=FakeMachine()())


def test_an_engine_that_fits_but_for_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = Compiler("tensorrt", ENGINE.compiler_version, None)
    monkeypatch.setattr(checking, "loadable_compilers", lambda: {"tensorrt": compiler})
    monkeypatch.setattr(checking, "read_header", lambda *_: EngineHeader("unknown", ""))
    folder = write_bundle(tmp_path / "colours", ENGINE)
    (found,) = check(folder, machine=FakeMachine()(driver="12.4")).engines
    assert not found.fits
    assert "needs a driver for CUDA 13, this one ends at 12.4" in found.reason
    (found,) = check(folder, machine=FakeMachine()(driver="13.0")).engines
    assert found.fits
