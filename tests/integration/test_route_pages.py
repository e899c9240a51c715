"""Every command of the pages in docs/routes, as a reader would type it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import hugging_face, own_files
from tests.cli import deploykit

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGES = Path(__file__).parents[2] / "docs" / "routes"

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> Iterator[str]:
    for found, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if found == language:
            yield text


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_commands_run_as_written(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _write_targets(page, tmp_path)
    commands = [line for text in blocks(page, "sh") for line in text.splitlines()]
    assert commands, f"{page.name} has no command"
    for line in commands:
        program, *arguments = shlex.split(line, comments=True)
        assert program == "deploykit"
        called = deploykit(*arguments)
        assert called.code == 0, f"{line}\n{called.err}"


def _write_targets(page: Path, folder: Path) -> None:
    """What the pages say that the reader has, and the Python files that they print."""
    if page.stem == "onnx":
        (folder / "classifier.onnx").write_bytes(own_files.classifier().SerializeToString())
        (folder / "patients.onnx").write_bytes(own_files.patients().SerializeToString())
        own_files.write_values(folder / "values.npz")
    if page.stem == "hugging-face":
        processor = hugging_face.VIT_PROCESSOR
        hugging_face.make_folder(folder / "my-vit", processor=processor, num_hidden_layers=1)
    for source in blocks(page, "python"):
        named = re.match(r"# (\w+\.py)\n", source)
        if named is not None:
            (folder / named[1]).write_text(source, encoding="utf-8")
