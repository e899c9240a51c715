"""Folders with bundles in them, and the way from a path that is none to a bundle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

MANIFEST: Final = "manifest.json"

DEFAULT_FOLDER: Final = Path("engines")
"""Where an export puts bundles if it is not told."""

_SHOWN: Final = 3
"""Bundles that a message names."""


def bundles_in(folder: Path) -> tuple[Path, ...]:
    """Folders in ``folder`` that have a manifest, by name; hidden ones are unfinished or set aside.

    Empty where the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    except (OSError, ValueError):  # ValueError for a name with a null character
        return ()
    return tuple(folder / name for name in names if _is_file(folder / name / MANIFEST))


def way_to_bundle(path: Path) -> str:
    """What to give, or to do, in place of ``path``, which is no bundle."""
    if _is_file(path):
        if _is_file(path.parent / MANIFEST):
            return f"give the folder that it lies in: {path.parent}"
        is_graph = path.suffix == ".onnx"
        return f"make a bundle of it: deploykit export {path}" if is_graph else "give the folder"
    inside = bundles_in(path)
    if inside:
        more = f" and {len(inside) - _SHOWN} more" if len(inside) > _SHOWN else ""
        return f"it holds bundles, give one: {', '.join(map(str, inside[:_SHOWN]))}{more}"
    there = DEFAULT_FOLDER / path
    if not path.is_absolute() and _is_file(there / MANIFEST):
        return f"did you mean: {there}"
    return "make a bundle with: deploykit export ARCHITECTURE"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long for the system, or with a null character
        return False
