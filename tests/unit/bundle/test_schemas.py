"""Manifests of both schemas, as they lie on disks: their text is written out here by hand."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from deploykit.bundle.manifest import MANIFEST, Bundle, manifest_text
from deploykit.core.specs import HeadRecord

if TYPE_CHECKING:
    from pathlib import Path

SECOND = """{
  "schema_version": 2, "name": "net-fp16", "model": {"name": "net", "num_classes": 3},
  "weights": {"source": "net.onnx", "sha256": "aa", "trained": true},
  "preprocessing": {
    "crop": [8, 8], "resize": 9, "interpolation": "bicubic", "mean": [0.5, 0.25, 0.125],
    "std": [1.0, 0.5, 0.25], "channel_order": "bgr"
  },
  "precision": "fp16",
  "onnx": {
    "path": "model.onnx", "sha256": "bb", "precision": "fp16", "opset": 20,
    "inputs": [{"name": "input", "dtype": "float32", "shape": ["batch", 3, 8, 8]}],
    "outputs": [{"name": "p", "dtype": "float32", "shape": ["batch", 3]}], "parents": ["cc"]
  },
  "files": {"model.onnx": "bb"}, "validation": [], "conversion": {}, "engines": [],
  "packages": {"deploykit": "0.1.0"}, "created": "2026-03-01T00:00:00+00:00", "calibration": null,
  "head": {"kind": "multilabel", "output": "scores", "activation": "sigmoid"},
  "manifest_sha256": "dceb70731598ccc49cb3affda34413ae54ccdb724cd7300f11c0e0dcc376d61c"
}
"""
FIRST = (
    SECOND.replace('"schema_version": 2', '"schema_version": 1')
    .replace(', "channel_order": "bgr"', "")
    .replace('  "head": {"kind": "multilabel", "output": "scores", "activation": "sigmoid"},\n', "")
    .replace(
        "dceb70731598ccc49cb3affda34413ae54ccdb724cd7300f11c0e0dcc376d61c",
        "ebb30d44fca4fa606549137c4dc73eeae78d37a31eefaf05c5b46310c103fd74",
    )
)
"""Of before there were heads: the digest is of the JSON with sorted keys and without spaces."""


def opened(folder: Path, text: str) -> Bundle:
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return Bundle.open(folder)


def test_the_second_schema(tmp_path: Path) -> None:
    manifest = opened(tmp_path, SECOND).manifest
    assert manifest.preprocessing.channel_order == "bgr"
    assert manifest.preprocessing.mean == (0.5, 0.25, 0.125)
    assert manifest.head == HeadRecord("multilabel", "scores", "sigmoid")


def test_the_first_schema_is_logits_of_classes_red_first(tmp_path: Path) -> None:
    bundle = opened(tmp_path, FIRST)
    assert bundle.manifest.preprocessing.channel_order == "rgb"
    assert bundle.manifest.head == HeadRecord("multiclass", None, "none")
    assert "for the bundle has no model.cpu.onnx" in bundle.on_cpu().arithmetic


@pytest.mark.parametrize("text", [FIRST, SECOND], ids=["first", "second"])
def test_what_is_written_is_of_the_second(tmp_path: Path, text: str) -> None:
    """An older release knows schema 1 alone, and refuses it instead of turning the colours."""
    written = manifest_text(opened(tmp_path, text).manifest)
    assert json.loads(written)["schema_version"] == 2
    assert opened(tmp_path, written).manifest == opened(tmp_path, text).manifest
