"""What a person reads after an export: the verdict first, a screen of lines, no fold of a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deploykit.bundle.manifest import Bundle
from deploykit.cli import _terminal
from tests.bundles import write_classifier
from tests.cli import deploykit

WIDTH = 80


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 80 columns: what is no terminal has more."""
    monkeypatch.setattr(_terminal, "_WIDTH_OF_A_FILE", WIDTH)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    path = tmp_path / "images.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    np.savez(path, images=pixels)
    return path


@pytest.mark.usefixtures("narrow", "images")
def test_an_int8_export_says_the_verdict_first_and_the_rest_where_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # paths have no place to fold
    model = write_classifier(Path("net.onnx"))
    place, images = Path("b"), "images.npz"
    asked = ("export", model, "--int8", "--calib", images, "--data", images, "-o", place)
    called = deploykit(*asked, "--backend", "none")
    assert called.code == 0, called.err
    lines = called.out.splitlines()
    assert lines[0] == f"{place} is ready: INT8, verified, no engine"
    names = [line.split()[0] for line in lines if line.startswith("  ") and line[2] != " "]
    assert names == [
        "network", "layers", "ranges", "compared", "compared", "compared", "input", "head", "took",
    ]  # fmt: skip
    assert "candidate" not in called.out
    whole = deploykit(*asked, "--backend", "none", "--verbose")
    assert whole.out.splitlines()[0] == lines[0]
    method = (Bundle.open(place).manifest.calibration or {})["method"]
    for figure in ("candidate", "seconds", "sha256", "model.onnx", method):
        assert figure in whole.out
    assert max(map(len, whole.out.splitlines())) <= WIDTH


def test_quiet_leaves_the_verdict(tmp_path: Path, images: Path) -> None:
    model = write_classifier(tmp_path / "net.onnx")
    place = tmp_path / "b"
    called = deploykit(
        "export", model, "--fp16", "--data", images, "-o", place, "--backend", "none", "-q"
    )
    assert (called.code, called.err) == (0, "")
    assert called.out == f"{place} is ready: FP16, verified, no engine\n"
    assert deploykit("check", place, "-q").out == (
        f"{place}: every file is as it was written, the golden sample agrees\n"
    )
    wrong = deploykit("check", tmp_path, "-q")
    assert wrong.code == 1
    assert str(tmp_path) in wrong.err
