from __future__ import annotations

import doctest
import importlib
import linecache
from pathlib import Path

import pytest

import deploykit


def modules_with_examples() -> list[str]:
    """Found in the text, so that collecting the tests imports nothing heavy."""
    root = Path(deploykit.__path__[0])
    paths = [path for path in root.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8")]
    parts = (path.relative_to(root.parent).with_suffix("").parts for path in sorted(paths))
    return [".".join(part for part in name if part != "__init__") for name in parts]


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_of_a_module_are_true(name: str) -> None:
    module = importlib.import_module(name)
    # doctest asks the disk about every file of which a line was ever read: after an export with
    # torch these are thousands.
    linecache.clearcache()
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_the_light_modules_have_examples() -> None:
    assert {"deploykit.core.errors", "deploykit.core.specs"} <= set(modules_with_examples())
