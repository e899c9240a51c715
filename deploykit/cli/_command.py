"""Base of all commands: one answer, shown as a table or as JSON, and one way to fail."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any, Final

import click

from deploykit.cli._printable import printable
from deploykit.core.errors import DeploykitError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from rich.console import Console


_QUIET: Final = "No progress and no notes; of an answer with a verdict, that alone."
_IS_QUIET: Final = "deploykit.quiet"
"""Where click's context keeps it for the running command."""


@dataclass(frozen=True)
class Answer:
    """What a command found: plain data for ``--json``, and how to show it to a person.

    ``details`` are what ``--verbose`` adds, see `DetailedCommand`; ``verdict`` is the line that
    ``--quiet`` leaves, where the rest can be missed.
    """

    data: dict[str, Any]
    show: Callable[[Console], None]
    failed: bool = False
    details: Callable[[Console], None] | None = None
    verdict: str | None = None


def examples(*lines: str) -> str:
    """The end of a help page, a line for each call."""
    # The backspace keeps click from joining the lines.
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


class CommandFailure(click.ClickException):
    """One message in place of a traceback."""

    def format_message(self) -> str:
        """The message, harmless for a terminal."""
        return printable(self.message)


class CallFailure(CommandFailure):
    """The call itself was wrong, as with an unknown option."""

    exit_code = 2


class Command(click.Command):
    """A command whose function returns an `Answer`; adds ``--json``, ``--quiet``, ``--debug``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # click's own signature
        super().__init__(*args, **kwargs)
        self.params += [
            click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object."),
            click.Option(["-q", "--quiet"], is_flag=True, help=_QUIET),
            click.Option(["--debug"], is_flag=True, help="Show the traceback of an error."),
        ]

    def invoke(self, ctx: click.Context) -> None:
        """Run the function, print its answer, turn errors into a message and an exit code."""
        as_json, debug = ctx.params.pop("as_json"), ctx.params.pop("debug")
        quiet, verbose = ctx.params.pop("quiet"), ctx.params.pop("verbose", False)
        if quiet and verbose:
            raise CallFailure("--quiet and --verbose exclude each other: give one of the two")
        ctx.meta[_IS_QUIET] = quiet
        try:
            with _nothing_else_on_stdout(as_json):
                answer: Answer = self._answer(ctx)
        except DeploykitError as error:
            if debug:
                raise
            if as_json:
                click.echo(to_json({"error": _describe(error)}))
            failure = CallFailure if isinstance(error, UsageError) else CommandFailure
            raise failure(str(error)) from error
        if as_json:
            click.echo(to_json(answer.data))
        else:
            _show(answer, quiet=quiet, verbose=verbose)
        if answer.failed:
            ctx.exit(1)

    def _answer(self, ctx: click.Context) -> Answer:
        try:
            answer: Answer = super().invoke(ctx)
        except ModuleNotFoundError as error:  # the base installation cannot do everything
            from deploykit.core.environment import missing_dependency

            missing = missing_dependency(error)
            if missing is None:
                raise
            raise missing from error
        except OSError as error:  # a full disk for temporary files, a name that no file can have
            where = "" if error.filename is None else f": {str(error.filename)!r:.200}"
            raise DeploykitError(
                f"the system refuses it, {error.strerror or error}{where}\n"
                "look at the name, the permissions and the space left, also where temporary files "
                "go (TMPDIR); --debug shows which step it was"
            ) from error
        return answer


class DetailedCommand(Command):
    """A command whose answer has ``details``; adds ``--verbose``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # click's own signature
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(["-v", "--verbose"], is_flag=True, help="Show every figure.")
        )


def is_quiet() -> bool:
    """Whether the running command was told ``--quiet``."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(_IS_QUIET))


def _show(answer: Answer, *, quiet: bool, verbose: bool) -> None:
    from deploykit.cli._show import console

    if quiet and answer.verdict is not None:
        click.echo(printable(answer.verdict))
        return
    out = console()
    answer.show(out)
    if verbose and answer.details is not None:
        out.print("")
        answer.details(out)


def _nothing_else_on_stdout(as_json: bool) -> AbstractContextManager[object]:  # noqa: FBT001
    """A user's own definition may print; one JSON object is all that a machine wants to read."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()


def to_json(data: Mapping[str, Any]) -> str:
    """One object on one line; NaN and infinity, which JSON does not have, become null.

    >>> to_json({"kl": float("nan"), "batches": [1.5]})
    '{"kl": null, "batches": [1.5]}'
    """
    return json.dumps(_finite(data), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _describe(error: DeploykitError) -> dict[str, Any]:
    described: dict[str, Any] = {"kind": type(error).__name__, "message": str(error)}
    return described | ({"details": error.details} if error.details else {})
