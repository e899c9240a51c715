"""Every block of README.md and docs/ that can be run, as a reader would type it.

Each page is read from its top to its end in a folder that has what the pages speak of: small
networks, bundles and images. `resnet50` stands there for a network of two layers. What is left of
some pages' bundles is looked at by the tests of their kind of target.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.cli import Called, deploykit
from tests.documents import PAGES, ROOT, blocks, commands, name_of
from tests.pages import write_weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RAN = [name_of(page) for page in PAGES if any(block.is_run for block in blocks(page))]


@pytest.mark.parametrize("page", RAN)
def test_blocks_run_as_written(page: str, page_folder: Callable[[str], Path]) -> None:
    assert (ROOT / page).is_file()
    assert page_folder(page).is_dir()


# --- the output that README.md shows


def words_of(line: str) -> list[str]:
    """A line without figures, names of files, and what stands in brackets at its end."""
    return [word for word in line.partition("(")[0].split() if word.isalpha()]


def test_the_readme_shows_the_lines_that_an_export_prints(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (excerpt,) = (block for block in blocks(PAGES[0]) if block.text.startswith("$ deploykit"))
    monkeypatch.chdir(tmp_path)
    write_weights(tmp_path)
    shutil.copy(desk / "test.npz", tmp_path / "cifar10.npz")
    command, *lines = excerpt.text.splitlines()
    (arguments,) = commands(command)
    called: Called = deploykit(*arguments)
    assert called.code == 0, called.err
    # Weights that are not trained give the same answer to all images, which is said.
    printed = (called.out + called.err).replace("weakly verified", "verified")
    said = [words_of(line) for line in printed.splitlines()]
    shown = [words_of(line.partition("...")[0]) for line in lines]
    assert [one for one in shown if not any(one == line[: len(one)] for line in said)] == []
