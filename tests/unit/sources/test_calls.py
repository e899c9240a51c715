"""Mistakes that the call alone shows, found without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploykit.core.errors import DeploykitError, MissingDependencyError
from deploykit.sources.calls import require_call

FILES = ("nets.py", "w.npz", "labels.txt")

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"targets": ["resnet5"]}, "unknown architecture 'resnet5'\ndid you mean: res"),
    "onnx": ({"targets": ["none.onnx"]}, "there is no file none.onnx"),
    "python file": ({"targets": ["none.py:make"]}, "there is no file none.py\nexpected path/to"),
    "factory": ({"targets": ["nets.py"]}, "nets.py names no factory\nexpected nets.py:FACTORY"),
    "repository": (
        {"targets": ["microsoft/resnet-50"]},
        "hub?\ndownload it first: hf download microsoft/resnet-50 --local-dir resnet-50\nthen: ",
    ),
    "weights": ({"weights": "imagnet"}, "unknown kind ''\ndid you mean: imagenet?\npossible: .saf"),
    "no weights": ({"weights": "none.pth"}, "no weights file none.pth"),
    "entry": ({"weights": "none.ckpt#model_ema"}, "no weights file none.ckpt"),
    "images": ({"images": [None, Path("none")]}, "no images at none: it does not exist"),
    "empty": ({"images": [Path("empty")]}, "no images in empty\nexpected files ending in .apng"),
    "labels": ({"labels": Path("none.txt")}, "cannot read none.txt"),
}


@pytest.fixture
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        (tmp_path / name).write_text("cat\n", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").touch()


@pytest.mark.usefixtures("_files")
@pytest.mark.parametrize("case", WRONG)
def test_each_mistake(case: str) -> None:
    given, said = WRONG[case]
    with pytest.raises(DeploykitError) as caught:
        require_call(**{"targets": ["resnet50"], **given})
    assert said in str(caught.value)


@pytest.mark.usefixtures("_files")
def test_what_is_there_passes() -> None:
    require_call(
        ["resnet18", "nets.py:make", "torchvision:resnet18", "photos"],
        weights="w.npz",
        images=[Path("photos"), None],
        labels=Path("labels.txt"),
    )
    require_call(["resnet50"], weights="imagenet")


COMMANDS = (
    ["export", "resnet50", "--weights", "imagnet"],
    ["export", "resnet5", "--fp16"],
    ["export", "resnet50", "--int8", "--calib", "none"],
    ["calibrate", "resnet50", "--data", "none"],
    ["inspect", "none.onnx", "--int8"],
    ["bench", "none.onnx"],
    ["build", "none"],
)


HEAVY = "[name for name in ('torch', 'onnx', 'onnxruntime') if name in sys.modules]"


def told(code: str, folder: Path, *given: str) -> list[Any]:
    """What a process of its own prints, a line of JSON for each call that it makes."""
    command = [sys.executable, "-c", code, *given]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_no_command_imports_torch_to_find_it(tmp_path: Path) -> None:
    code = (
        "import json, sys\n"
        "from contextlib import redirect_stderr\n"
        "from io import StringIO\n"
        "from deploykit.cli import main\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    with redirect_stderr(StringIO()) as said:\n"
        "        try:\n            main(command)\n"
        "        except SystemExit as end:\n            code = end.code\n"
        f"    print(json.dumps([code, {HEAVY}, said.getvalue()]))\n"
    )
    ends = told(code, tmp_path, json.dumps(COMMANDS))
    for command, (exit_code, heavy, said) in zip(COMMANDS, ends, strict=True):
        assert exit_code in (1, 2), command
        assert heavy == [], command
        assert said.startswith("Error: "), command


def test_nor_does_the_function_for_programs(tmp_path: Path) -> None:
    code = (
        "import json, sys, deploykit\n"
        "for given in json.loads(sys.argv[1]):\n"
        "    try:\n        deploykit.export('resnet50', **given)\n"
        "    except deploykit.DeploykitError:\n"
        f"        print(json.dumps({HEAVY}))\n"
    )
    wrong = [
        {"weights": "imagnet"},
        {"precision": "int9"},
        {"data": "none"},
        {"precision": "auto"},
    ]
    assert told(code, tmp_path, json.dumps(wrong)) == [[]] * len(wrong)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_library_that_is_not_installed(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingDependencyError, match=f"module {library}, which is not installed"):
        require_call([f"{library}:resnet18"])
