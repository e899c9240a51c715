"""Plug-ins as another package installs them: one Python file and the entry point that names it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from deploykit.core.plugs import plugs

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def install_plug(
    folder: Path, room: str, name: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Put a module and its package's metadata on the path, also of processes started later."""
    module = f"plugged_{name.replace('-', '_')}"
    file = folder / f"{module}.py"
    file.write_text(source)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[deploykit.{room}]\n{name} = {module}\n")
    # Another test's plug-in may have had this name.
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
    plugs.cache_clear()
    return file
