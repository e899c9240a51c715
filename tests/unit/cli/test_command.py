"""Errors of the system, as a command says them."""

from __future__ import annotations

import errno
import os
import tempfile
from typing import TYPE_CHECKING

import pytest

from deploykit.core.errors import DeploykitError
from tests.bundles import write_classifier
from tests.cli import deploykit

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_no_place_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_args: object, **_options: object) -> str:
        raise OSError(number, os.strerror(number), "/there/abc")

    path = write_classifier(tmp_path / "mine.onnx")
    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    called = deploykit("inspect", path, "--fp16")
    assert called.code == 1
    said = f"Error: the system refuses it, {os.strerror(number)}: '/there/abc'"
    assert called.err.startswith(said)
    assert "temporary files go (TMPDIR)" in " ".join(called.err.split())
    as_json = deploykit("inspect", path, "--fp16", "--json")
    assert as_json.data["error"]["message"].startswith("the system refuses it")
    with pytest.raises(DeploykitError, match=os.strerror(number)) as caught:
        deploykit("inspect", path, "--fp16", "--debug")
    assert isinstance(caught.value.__cause__, OSError)
