from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import pytest

from deploykit.core.errors import MissingDependencyError, UsageError
from deploykit.core.plugs import import_plug, plugs, source_of
from tests.plugins import install_plug

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _forget_plugs() -> Iterator[None]:
    """What a test installs is gone with its folder."""
    yield
    plugs.cache_clear()


def test_lists_the_files_of_a_room_without_importing_them() -> None:
    found = plugs("models")
    assert found["alexnet"] == "deploykit.models.alexnet"
    assert not [name for name in found if name.startswith("_")]
    assert "deploykit.models.nin" not in sys.modules or "torch" in sys.modules


def test_finds_what_a_package_installs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = install_plug(tmp_path, "backends", "toy", "ANSWER = 42\n", monkeypatch)
    assert plugs("backends")["toy"] == "plugged_toy"
    assert source_of("backends", "toy") == file
    assert "plugged_toy" not in sys.modules
    assert import_plug("backends", "toy").ANSWER == 42
    del sys.modules["plugged_toy"]


def test_a_name_belongs_to_one_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_plug(tmp_path, "backends", "ort", "", monkeypatch)
    with pytest.raises(UsageError, match=r"deploykit\.backends\.ort and plugged_ort are both call"):
        plugs("backends")


def test_a_broken_plug_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_plug(tmp_path, "backends", "broken", "raise RuntimeError('no licence')", monkeypatch)
    expected = re.escape("the plug-in 'broken' of deploykit.backends cannot be imported")
    with pytest.raises(MissingDependencyError, match=expected) as caught:
        import_plug("backends", "broken")
    assert "plugged_broken: RuntimeError: no licence" in str(caught.value)


def test_a_plug_without_source_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_plug(tmp_path, "models", "gone", "", monkeypatch).unlink()
    with pytest.raises(MissingDependencyError, match="names plugged_gone, which is no Python file"):
        source_of("models", "gone")
