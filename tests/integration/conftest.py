"""Bundles that several tests read; one that changes a bundle takes a copy."""

from __future__ import annotations

import json
import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli import deploykit
from tests.documents import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from deploykit.core.progress import ProgressTask
    from tests.digits import Digits


def export_digits(digits: Digits, folder: Path, precision: str, *more: object) -> None:
    called = deploykit(
        "export", "resnet20", f"--{precision}", "--input-size", 8, "--weights", digits.weights,
        "--labels", digits.labels, "--data", digits.calibration, "-o", folder, *more,
    )  # fmt: skip
    assert called.code == 0, called.err


@pytest.fixture(scope="session")
def fp16_bundle(digits: Digits, made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """Trained on digits, with an engine where TensorRT for RTX is installed. Read only."""
    return made_once("digits-fp16", lambda folder: export_digits(digits, folder, "fp16"))


@pytest.fixture(scope="session")
def cifar_bundle(
    shared_data: Path, made_once: Callable[[str, Callable[[Path], object]], Path]
) -> Path:
    """ResNet-20 with its published weights for CIFAR-10, in FP16. Read only."""

    def make(folder: Path) -> None:
        called = deploykit(
            "export", "resnet20", "--fp16", "-o", folder, "--backend", "none",
            "--weights", shared_data / "resnet20_cifar10.npz",
            "--data", shared_data / "cifar10_calib512.npz",
        )  # fmt: skip
        assert called.code == 0, called.err

    return made_once("cifar-fp16", make)


@pytest.fixture
def fp16_copy(fp16_bundle: Path, tmp_path: Path) -> Path:
    """A bundle of one's own to break."""
    copy = tmp_path / "digits-fp16"
    shutil.copytree(fp16_bundle, copy)
    return copy


@pytest.fixture(scope="session")
def desk(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """What the documents say that the reader has. Read only."""
    from tests.pages import make_desk

    return made_once("desk", make_desk)


@pytest.fixture(scope="session")
def page_folder(
    desk: Path, made_once: Callable[[str, Callable[[Path], object]], Path]
) -> Callable[[str], Path]:
    """The folder in which the blocks of a page of the documents were run, once. Read only."""
    from tests.pages import run_page

    def folder_of(page: str) -> Path:
        place = f"page-{page.replace('/', '-')}"
        return made_once(place, lambda folder: run_page(ROOT / page, desk, folder))

    return folder_of


@pytest.fixture
def steps_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what `bench` answers: its steps run here, each in a process takes a second."""
    from deploykit.benchmarking.matrix import worker
    from deploykit.benchmarking.matrix.processes import ChildFailure
    from deploykit.benchmarking.matrix.steps import Steps
    from deploykit.benchmarking.results import FAILURES
    from deploykit.core.errors import DeploykitError
    from deploykit.verbs import bench

    def call(
        step: str, request: Mapping[str, Any], *_: object, progress: ProgressTask, **__: object
    ) -> dict[str, Any]:
        sent = json.loads(json.dumps(request))
        try:
            answer = getattr(worker, step)(sent, progress)
        except DeploykitError as error:
            raise ChildFailure(FAILURES[0], str(error)) from error
        return dict(json.loads(json.dumps(answer)))

    monkeypatch.setattr(bench, "Steps", partial(Steps, call=call))
