"""`path/to/file.py:factory` as a user gives it to commands."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from deploykit.bundle.manifest import Bundle
from deploykit.core.artifacts import sha256_of
from tests.cli import deploykit

if TYPE_CHECKING:
    from pathlib import Path

NETS = """
import torch
from torch import nn

print("building")

class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, classes)

    def forward(self, images):
        return {"logits": self.fc(self.conv(images).mean((2, 3)))}

class Deciding(Net):
    def forward(self, images):
        features = self.conv(images).mean((2, 3))
        if features.sum() > 0:
            features = -features
        return self.fc(features)

class Looping(Net):
    def forward(self, images):
        features = self.conv(images).mean((2, 3))
        for _ in range(int(features.abs().max() * 3)):
            features = features / 2
        return self.fc(features)
"""

LEAST = "--input-size", 16, "--backend", "none"


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "nets.py"
    path.write_text(NETS, encoding="utf-8")
    return path


def test_becomes_a_bundle_that_says_where_it_comes_from(nets: Path) -> None:
    told = "--factory-args", '{"classes": 4}', "--resize", "20x18", "--mean", "0,0,0"
    called = deploykit("export", "nets.py:Net", *LEAST, *told, "--fp16", "-o", "out", "--json")
    assert called.code == 0, called.err
    assert called.data["precision"] == "fp16"  # what the file prints is not on standard output
    assert "building" in called.err
    manifest = Bundle.open(nets.parent / "out").manifest
    assert manifest.model["source_sha256"] == sha256_of(nets)
    assert manifest.model["num_classes"] == 4
    assert manifest.weights["trained"] is None
    assert manifest.preprocessing.resize == (20, 18)
    assert manifest.preprocessing.mean == (0.0, 0.0, 0.0)
    notes = "\n".join(called.data["notes"])
    assert "preprocessing is assumed: interpolation bilinear, std (0.229, 0.224, 0.225)" in notes
    assert "as nets.py:Net made them; whether they are trained is not known" in notes


@pytest.mark.parametrize(
    ("factory", "line"),
    [
        ("Deciding", "line 19 of nets.py, in forward: if features.sum() > 0:"),
        (
            "Looping",
            "line 26 of nets.py, in forward: for _ in range(int(features.abs().max() * 3)):",
        ),
    ],
)
def test_a_decision_by_values_is_shown_with_its_line(nets: Path, factory: str, line: str) -> None:
    called = deploykit("export", f"nets.py:{factory}", *LEAST, "-o", "out", "-q")
    assert called.code == 1
    assert called.err.splitlines() == [
        f"Error: nets-{factory} decides by the values of its input, which no graph can",
        line,
        "compute both ways and choose with torch.where, or decide outside the model",
    ]
    assert not (nets.parent / "out").exists()


@pytest.mark.parametrize("command", ["export", "inspect", "calibrate"])
def test_every_command_names_a_missing_factory(nets: Path, command: str) -> None:
    data = ("--data", "random") if command == "calibrate" else ()
    called = deploykit(command, "nets.py:Nett", *data)
    assert called.code == 2
    assert "unknown factory of nets.py 'Nett'\ndid you mean: Net?" in called.err


def test_a_bundle_is_not_exported_again(nets: Path) -> None:
    assert deploykit("export", "nets.py:Net", *LEAST, "-o", "out").code == 0
    called = deploykit("export", "out")
    assert called.code == 2
    assert "out is a bundle already\nexport takes a definition or an .onnx file" in called.err


NETS_WITH_OTHER_ENDS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.fc = nn.Linear(16, 1 if form == "yes or no" else 4)
        self.form = form

    def forward(self, images):
        maps = self.conv(images).relu()
        values = self.fc(maps.mean((2, 3)))
        if self.form in ("labels", "yes or no"):
            return values.sigmoid()
        if self.form == "chances":
            return values.softmax(1)
        if self.form == "maps":
            return maps
        if self.form == "sequence":
            return maps.mean(2).permute(2, 0, 1)
        if self.form == "pooled":
            return values[:, :, None, None]
        return {"features": maps, "scores": values}
"""


@pytest.mark.parametrize(
    ("form", "kind", "shape"),
    [
        ("labels", "multilabel", (4,)),
        ("yes or no", "binary", (1,)),
        ("chances", "multiclass", (4,)),
        ("maps", "raw", (16, 16, 16)),
        ("sequence", "raw", (16, 16)),
        ("pooled", "multiclass", (4,)),
    ],
)
def test_what_a_module_returns_decides_the_head(
    tmp_path: Path, form: str, kind: str, shape: tuple[int, ...]
) -> None:
    (tmp_path / "ends.py").write_text(NETS_WITH_OTHER_ENDS, encoding="utf-8")
    called = deploykit(
        "export", f"{tmp_path / 'ends.py'}:Net", "--factory-args", json.dumps({"form": form}),
        "--input-size", 16, "--fp16", "--backend", "none", "-o", tmp_path / "out", "--json",
    )  # fmt: skip
    assert called.code == 0, called.err
    assert called.data["head"]["kind"] == kind
    output = Bundle.open(tmp_path / "out").manifest.onnx.outputs[0]
    assert output.shape[1:] == shape


def test_one_of_several_things_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text(NETS_WITH_OTHER_ENDS, encoding="utf-8")
    args = (
        "export", f"{tmp_path / 'ends.py'}:Net", "--factory-args", '{"form": "dict"}',
        "--input-size", 16, "--backend", "none", "-o", tmp_path / "out", "--json",
        "--replace",
    )  # fmt: skip
    found = deploykit(*args, "--head-output", "features").data["head"]
    assert (found["kind"], found["output"]) == ("raw", "features")
    assert deploykit(*args, "--head-output", "scores").data["head"]["kind"] == "multiclass"
    refused = deploykit(*args, "--head-output", "boxes")
    assert refused.code == 2
    assert "there is no 'boxes' of floating-point values with a row per image in it" in refused.err
    both = deploykit(*args, "--head", "raw")
    assert "which of them is the answer? --head-output NAME" in both.err
