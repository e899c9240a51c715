"""What the documents promise is there: commands, options, links, and the command that CI runs."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import click
import pytest

from deploykit.cli import COMMANDS, main
from tests.documents import PAGES, RUN, blocks, commands, headings, name_of, spans

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not {".venv", "build", ".pytest_cache"} & set(path.relative_to(ROOT).parts)
)
TEST_COMMAND = ".venv/bin/pip install -e '.[dev]' && .venv/bin/pytest"

FOREIGN = {
    "trtexec": {
        "--fp16",
        "--int8",
        "--bf16",
        "--fp8",
        "--int4",
        "--best",
        "--calib",
        "--exposeDMA",
    },
    "gunicorn and uvicorn": {"--preload", "--workers"},
    "docker": {"--build-arg"},
}
"""Options of other programs that the documents name."""


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


# --- links


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    lost = []
    for file, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", text):
        target = document.parent / file if file else document
        if not target.exists() or (anchor and anchor not in headings(target)):
            lost.append(f"{file}#{anchor}")
    assert lost == []


def test_an_anchor_is_made_as_github_makes_it(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# What's *new*, `x`?\n```\n# no heading\n```\n## A [b](c.md) - d\n")
    assert headings(page) == {"whats-new-x", "a-b---d"}


# --- commands


def known(name: str) -> tuple[click.Command, click.Context]:
    command: click.Command = import_module(f"deploykit.cli.{name}").command
    return command, click.Context(command, parent=click.Context(main), info_name=name)


def wrong_with(arguments: list[str], *, metavars: bool = False) -> str | None:
    """What click says to the call; nothing is run, and no file has to be there."""
    name, *rest = arguments
    if name.startswith("-"):
        return None
    if name not in COMMANDS:
        return f"no command {name!r}"
    command, context = known(name)
    try:
        values, extra, order = command.make_parser(context).parse_args(rest)
        for param in order:
            if isinstance(param.type, click.Choice) and param.name and not metavars:
                given = values[param.name]
                for value in given if isinstance(given, list) else [given]:
                    param.type.convert(value, param, context)
    except click.UsageError as error:
        return error.format_message()
    return f"unexpected {extra}" if extra else None


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_has_the_options_that_it_names(page: Path) -> None:
    found = [arguments for block in blocks(page) for arguments in commands(block.text)]
    assert [(one, wrong) for one in found if (wrong := wrong_with(one))] == []
    inline = [re.sub(r"[\[\]]|\.\.\.", "", span) for span in spans(page)]
    calls = [arguments for span in inline for arguments in commands(span)]
    assert [(one, wrong) for one in calls if (wrong := wrong_with(one, metavars=True))] == []


def test_every_option_within_a_sentence_exists() -> None:
    ours = {option for name in COMMANDS for param in known(name)[0].params for option in param.opts}
    ours |= {f"--no-{option[2:]}" for option in ours} | {"--help", "--no-..."}
    foreign = set().union(*FOREIGN.values())
    lost = {
        f"{name_of(page)}: {word}"
        for page in PAGES
        for span in spans(page)
        if span.startswith("--")
        for word in re.findall(r"(?:^|\s)(--[^\s,=]+)", span)
        if word not in ours | foreign
    }
    assert lost == set()


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["export", "resnet50", "--fp61"], "No such option"),
        (["exprot", "resnet50"], "no command"),
        (["export", "a", "--rest", "int9"], "is not one of"),
        (["doctor", "now"], "unexpected"),
    ],
)
def test_what_the_test_would_find(arguments: list[str], wrong: str) -> None:
    assert wrong in str(wrong_with(arguments))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_block_of_commands_is_run_or_says_why_not(page: Path) -> None:
    silent = [
        block.text
        for block in blocks(page)
        if block.not_run is None
        and block.language not in RUN
        and (list(commands(block.text)) or re.search(r"^(pip|python3?) ", block.text, re.MULTILINE))
    ]
    assert silent == []


def test_readme_names_every_command_and_no_other() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"`deploykit ([a-z]+)\b", readme))
    assert shown == set(COMMANDS)
