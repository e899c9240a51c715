"""`deploykit completion`: real shells complete with what it prints."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploykit.cli import COMMANDS
from deploykit.cli.completion import MARK, script_of
from tests.cli import deploykit


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    return tmp_path


def answers(words: str, cword: int, tmp_path: Path) -> set[str]:
    """What the program answers to the script's question, as bash puts it."""
    done = subprocess.run(
        [sys.executable, "-m", "deploykit"],
        env={
            **os.environ,
            "_DEPLOYKIT_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(cword),
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    return {line.partition(",")[2] for line in done.stdout.splitlines()}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_asks_for_our_program(shell: str) -> None:
    called = deploykit("completion", shell)
    assert called.code == 0
    assert f"_DEPLOYKIT_COMPLETE={shell}_complete" in called.out
    assert called.out.strip() == script_of(shell).strip()


def test_commands_and_options_are_the_answers(tmp_path: Path) -> None:
    assert answers("deploykit ", 1, tmp_path) == set(COMMANDS)
    assert answers("deploykit ex", 1, tmp_path) == {"export"}
    assert {"--fp16", "--fp8"} <= answers("deploykit export --fp", 2, tmp_path)


def test_bash_reads_the_script(home: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    assert deploykit("completion", "bash", "--install").code == 0
    done = subprocess.run(
        [bash, "--norc", "-c", f". {home / '.bashrc'} && complete -p deploykit"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip().endswith("deploykit")


@pytest.mark.parametrize(("shell", "start"), [("bash", ".bashrc"), ("zsh", ".zshrc")])
def test_installing_adds_one_line_once(home: Path, shell: str, start: str) -> None:
    (home / start).write_text("alias ll='ls -l'", encoding="utf-8")
    first = deploykit("completion", shell, "--install", "--json").data
    again = deploykit("completion", shell, "--install", "--json").data
    script = home / ".local" / "share" / "deploykit" / f"completion.{shell}"
    assert script.read_text(encoding="utf-8") == script_of(shell)
    assert first["changed"] == [str(script), str(home / start)]
    assert again["changed"] == [str(script)]
    lines = (home / start).read_text(encoding="utf-8").splitlines()
    assert lines == ["alias ll='ls -l'", f"[ -f {script} ] && . {script}  {MARK}"]


def test_fish_needs_one_file(home: Path) -> None:
    called = deploykit("completion", "fish", "--install")
    assert [path.name for path in home.rglob("*") if path.is_file()] == ["deploykit.fish"]
    assert "deploykit.fish" in called.out


def test_an_unknown_shell_is_a_wrong_call() -> None:
    called = deploykit("completion", "csh")
    assert called.code == 2
    assert "'csh' is not one of 'bash', 'zsh', 'fish'" in called.err


def test_a_start_file_that_cannot_be_written(home: Path) -> None:
    (home / ".bashrc").mkdir()
    called = deploykit("completion", "bash", "--install")
    assert called.code == 1
    assert called.err.startswith("Error: the system refuses it")
