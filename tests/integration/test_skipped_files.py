"""Every command that reads a folder says which of its files it did not take for images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from PIL import Image

from tests.bundles import SIZE, write_bundle, write_classifier
from tests.cli import deploykit

if TYPE_CHECKING:
    from pathlib import Path

NOTE = "2 files are no images that can be read, and were skipped: 2 .xcf (y.xcf, x.xcf)"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for index, name in enumerate(("red/1.jfif", "green/2.tga", "blue/3.avif")):
        (tmp_path / "data" / name).parent.mkdir(parents=True)
        pixels = [0, 0, 0]
        pixels[index] = 255
        Image.new("RGB", (SIZE, SIZE), tuple(pixels)).save(tmp_path / "data" / name)
    for name in ("red/x.xcf", "green/y.xcf"):
        (tmp_path / "data" / name).touch()
    return tmp_path / "data"


def test_files_that_are_skipped_are_in_every_answer(tmp_path: Path, data: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    network = write_classifier(tmp_path / "mine.onnx")
    export = ("export", network, "--backend", "none", "-o", tmp_path / "made")
    calls = {
        "eval": ("eval", bundle, "--data", data),
        "predict": ("predict", bundle, data),
        "validate": ("validate", bundle, bundle / "model.onnx", "--data", data),
        "export": (*export, "--data", data),
        "calibrate": ("calibrate", network, "--data", data, "-o", tmp_path / "table.json"),
        "inspect": ("inspect", network, "--data", data),
        "inspect --fp16": ("inspect", bundle, "--fp16", "--data", data),
    }
    for name, call in calls.items():
        called = deploykit(*call, "--json")
        assert called.code == 0, (name, called.err)
        assert NOTE in called.data["notes"], name
        shown = deploykit(*call)
        assert f"note: {NOTE}" in " ".join(shown.out.split()), name
    found = deploykit("eval", bundle, "--data", data, "--json").data
    assert found["top1"] == 1
    assert found["count"] == 3
    assert found["skipped"] == [str(data / "green/y.xcf"), str(data / "red/x.xcf")]
    answered = deploykit("predict", bundle, data, data / "red/1.jfif", "--json").data
    assert len(answered["predictions"]) == 4
    assert sorted(answered["skipped"]) == found["skipped"]
