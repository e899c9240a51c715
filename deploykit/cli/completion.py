"""`deploykit completion`: the script by which a shell completes commands and options."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from deploykit.cli._command import Answer, Command, examples

if TYPE_CHECKING:
    from rich.console import Console

PROGRAM: Final = "deploykit"
START_FILES: Final = {"bash": ".bashrc", "zsh": ".zshrc"}
"""Start-up files, below the home folder, in which the script has to be named; fish needs none."""
MARK: Final = "# completion of deploykit"


@click.command(
    "completion",
    cls=Command,
    epilog=examples("deploykit completion bash", "deploykit completion zsh --install"),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.option("--install", is_flag=True, help="Write the script where SHELL finds it.")
def command(shell: str, *, install: bool) -> Answer:
    """Print or install what completes commands and options in SHELL.

    --install writes one file below the home folder. For bash and zsh it also adds one line to
    .bashrc or .zshrc, once. A shell that is started afterwards completes.
    """
    script = script_of(shell)
    changed = _install(shell, script) if install else []
    data = {"shell": shell, "script": script, "changed": [str(path) for path in changed]}
    return Answer(data, lambda out: _show(out, script, changed))


def script_of(shell: str) -> str:
    """What click makes for ``shell``: it asks deploykit itself for the words."""
    from click.shell_completion import BashComplete, get_completion_class

    from deploykit.cli import main

    kind = get_completion_class(shell)
    assert kind is not None, shell  # noqa: S101 - click knows the shells of the choice above
    complete = kind(main, {}, PROGRAM, f"_{PROGRAM.upper()}_COMPLETE")
    if isinstance(complete, BashComplete):  # its own `source` runs bash to see which version it is
        return str(complete.source_template % complete.source_vars())
    return complete.source()


def _install(shell: str, script: str) -> list[Path]:
    """Write the script and name it where that is needed; the files that changed."""
    from deploykit.core.atomic import write_whole

    home = Path.home()
    if shell == "fish":
        path = home / ".config" / "fish" / "completions" / f"{PROGRAM}.fish"
    else:
        path = home / ".local" / "share" / PROGRAM / f"completion.{shell}"
    write_whole(path, script)
    if shell not in START_FILES:
        return [path]
    start = home / START_FILES[shell]
    known = start.read_bytes() if start.exists() else b""  # of any encoding
    if MARK.encode() in known:
        return [path]
    begin = "" if known.endswith(b"\n") or not known else "\n"
    quoted = shlex.quote(str(path))
    with start.open("a", encoding="utf-8") as file:
        file.write(f"{begin}[ -f {quoted} ] && . {quoted}  {MARK}\n")
    return [path, start]


def _show(out: Console, script: str, changed: list[Path]) -> None:
    if not changed:
        click.echo(script)
        return
    for path in changed:
        out.print(f"written: {path}", markup=False, soft_wrap=True)
    out.print("a shell that is started from now on completes", markup=False)
