"""How much a command says, and errors of the system as it says them."""

from __future__ import annotations

import errno
import os
import tempfile
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner

from deploykit.cli._command import Answer, Command, DetailedCommand
from deploykit.cli._show import progress
from deploykit.core.errors import DeploykitError
from deploykit.core.progress import LineProgress, SilentProgress
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


@click.command("detailed", cls=DetailedCommand)
def detailed() -> Answer:
    return Answer(
        {},
        lambda out: out.print("figures"),
        details=lambda out: out.print("more figures"),
        verdict="good \x1b[31m",
    )


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        ([], "figures\n"),
        (["-v"], "figures\n\nmore figures\n"),
        (["--verbose"], "figures\n\nmore figures\n"),
        (["-q"], "good \\x1b[31m\n"),
        (["--quiet"], "good \\x1b[31m\n"),
        (["-q", "--json"], "{}\n"),
    ],
)
def test_as_much_is_shown_as_was_asked_for(words: list[str], printed: str) -> None:
    result = CliRunner().invoke(detailed, words)
    assert (result.exit_code, result.stdout) == (0, printed)


def test_quiet_and_verbose_exclude_each_other() -> None:
    result = CliRunner().invoke(detailed, ["-q", "-v"])
    assert result.exit_code == 2
    assert "--quiet and --verbose exclude each other: give one of the two" in result.stderr


@pytest.mark.parametrize(("words", "kind"), [([], LineProgress), (["-q"], SilentProgress)])
def test_without_a_terminal_progress_is_lines(words: list[str], kind: type) -> None:
    seen = []

    @click.command("slow", cls=Command)
    def slow() -> Answer:
        seen.append(type(progress()))
        return Answer({}, lambda out: out.print("done"))

    assert CliRunner().invoke(slow, words).stdout == "done\n"
    assert seen == [kind]
