"""What the documents promise is there: commands, links, and the command that CI runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploykit.cli import COMMANDS

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not {".venv", "build", ".pytest_cache"} & set(path.relative_to(ROOT).parts)
)
TEST_COMMAND = ".venv/bin/pip install -e '.[dev]' && .venv/bin/pytest"


def test_readme_begins_with_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert (
        "python3 -m venv .venv && .venv/bin/pip install -e '.[export]' "
        "&& .venv/bin/deploykit export resnet50 --fp16\n"
        f"{TEST_COMMAND}\n" in readme
    )


def test_ci_runs_the_test_command_of_the_readme() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    places = [lines.index(part) for part in TEST_COMMAND.split(" && ")]  # a line each
    assert len(places) == 2
    assert places == sorted(places)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_readme_names_every_command_and_no_other() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"`?deploykit ([a-z]+)\b", readme))
    assert shown >= set(COMMANDS)
    assert shown <= {*COMMANDS, "converts", "defines"}
