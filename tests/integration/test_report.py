"""`--report` of export and inspect, and of `deploykit.export`."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import deploykit as api
from deploykit.bundle.manifest import REFERENCE
from deploykit.core.errors import UsageError
from tests.bundles import write_bundle, write_classifier
from tests.cli import deploykit

if TYPE_CHECKING:
    from pathlib import Path


def told_in(page: Path) -> dict[str, Any]:
    block = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)
    (text,) = block.findall(page.read_text(encoding="utf-8"))
    (bundle,) = json.loads(text)["bundles"]
    return dict(bundle)


@pytest.mark.usefixtures("own_folder")
def test_export_and_inspect_write_a_page(tmp_path: Path) -> None:
    write_classifier(tmp_path / "net.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels)
    called = deploykit(
        "export", "net.onnx", "--int8", "--calib", "images.npz", "--backend", "none",
        "-o", "bundle", "--report", "page.html", "--json",
    )  # fmt: skip
    assert (called.code, called.data["report"]) == (0, "page.html")
    first = told_in(tmp_path / "page.html")
    assert (first["name"], first["answers"]["images"]) == ("net-int8", 12)
    assert first["answers"]["source"] == "images of images.npz"
    called = deploykit("inspect", "bundle", "--report", "again.html")
    assert called.code == 0
    assert "report: again.html" in called.out
    again = told_in(tmp_path / "again.html")
    assert again["answers"]["source"] == "photographs that come with deploykit"
    assert again["layers"] == first["layers"]
    (tmp_path / "bundle" / REFERENCE).unlink()
    assert deploykit("inspect", "bundle", "--report", "lone.html").code == 0
    reason = told_in(tmp_path / "lone.html")["errors"]["reason"]
    assert reason == "reference.onnx was deleted, with which answers are compared"


def test_a_program_gets_a_page_about_features(tmp_path: Path) -> None:
    write_classifier(tmp_path / "net.onnx")
    api.export(
        tmp_path / "net.onnx",
        precision="fp16",
        head="raw",
        backend="none",
        output=tmp_path / "bundle",
        report=tmp_path / "page.html",
        quiet=True,
    )
    told = told_in(tmp_path / "page.html")
    assert told["answers"]["measure"] == "error"
    assert 0 < told["answers"]["error"] < 0.01
    assert "gives the outputs of FP32 within" in told["verdict"]


def test_a_report_that_cannot_be_is_refused_at_once(tmp_path: Path) -> None:
    write_classifier(tmp_path / "net.onnx")
    export = ("export", tmp_path / "net.onnx", "--backend", "none", "-o", tmp_path / "bundle")
    called = deploykit(*export, "--report", tmp_path / "page.txt")
    assert (called.code, (tmp_path / "bundle").exists()) == (2, False)
    assert "expected one that ends in .html" in called.err
    called = deploykit("inspect", tmp_path / "net.onnx", "--report", tmp_path / "page.html")
    assert called.code == 2
    assert "--report is about a bundle" in called.err
    assert "make one: deploykit export" in called.err
    with pytest.raises(UsageError, match="is no name of a report"):
        api.export("resnet20", report=tmp_path / "page", output=tmp_path / "bundle", quiet=True)


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    folder, file = write_bundle(tmp_path / "bundle"), tmp_path / "page.html"
    file.write_text("mine", encoding="utf-8")
    (folder / "model.onnx").write_bytes(b"changed")
    called = deploykit("inspect", folder, "--report", file)
    assert called.code == 1
    assert file.read_text(encoding="utf-8") == "mine"
