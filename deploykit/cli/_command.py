"""Base of all commands: one answer, shown as a table or as JSON, and one way to fail."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from deploykit.cli._printable import printable
from deploykit.core.errors import DeploykitError, UsageError, typed_first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from rich.console import Console

_JSON: Final = "deploykit.json"
DEBUG: Final = "deploykit.debug"
QUIET: Final = "deploykit.quiet"
_VERBOSE: Final = "deploykit.verbose"
ONLY_CHECKS: Final = "deploykit.only_checks"
"""In a context's ``meta``: the options are to be judged, and nothing is to be done."""


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


_LESS: Final = "No progress and no notes; of an answer with a verdict, that alone."

NOTHING_DONE: Final = Answer({}, lambda _: None)
"""The answer of a command whose options were judged, and nothing else."""


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
            click.Option(["-q", "--quiet"], is_flag=True, help=_LESS),
            click.Option(["--debug"], is_flag=True, help="Show the traceback of an error."),
        ]

    def invoke(self, ctx: click.Context) -> None:
        """Run the function, print its answer, turn errors into a message and an exit code."""
        as_json, debug = ctx.params["as_json"], ctx.params["debug"]
        quiet, verbose = ctx.params["quiet"], ctx.params.get("verbose", False)
        if quiet and verbose:
            raise CallFailure("--quiet and --verbose exclude each other: give one of the two")
        ctx.meta.update({_JSON: as_json, DEBUG: debug, QUIET: quiet, _VERBOSE: verbose})
        try:
            with _nothing_else_on_stdout(as_json):
                answer = self.answer(ctx)
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
            show_answer(answer)
        if answer.failed:
            ctx.exit(1)

    def answer(self, ctx: click.Context) -> Answer:
        """What the function returns; nothing is printed.

        Raises:
            DeploykitError: what it raises, or what the system or a missing package means.
        """
        for own in ("as_json", "debug", "quiet", "verbose"):
            ctx.params.pop(own, None)
        with _translated():
            answer: Answer = super().invoke(ctx)
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
    return context is not None and bool(context.meta.get(QUIET))


def show_answer(answer: Answer) -> None:
    """Print as much of an answer as the running command was told to."""
    from deploykit.cli._terminal import console

    asked = click.get_current_context().meta
    if asked.get(QUIET) and answer.verdict is not None:
        click.echo(printable(answer.verdict))
        return
    out = console()
    answer.show(out)
    if asked.get(_VERBOSE) and answer.details is not None:
        out.print("")
        answer.details(out)


@contextmanager
def _translated() -> Iterator[None]:
    """Turn what is no fault of deploykit's into one of its errors."""
    try:
        yield
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


def end_process(error: DeploykitError, *, as_json: bool) -> NoReturn:
    """End this process as a failed command does, from any thread and whatever others still do."""
    if as_json:  # where a command runs, sys.stdout leads to standard error
        click.echo(to_json({"error": _describe(error)}), file=sys.__stdout__)
    CommandFailure(str(error)).show()
    # sys.exit would end this thread alone, and the interpreter's own end waits for all others.
    os._exit(1)


def is_json() -> bool:
    """Whether the running command prints one JSON object and nothing else."""
    return bool(click.get_current_context().meta.get(_JSON))


def only_checks() -> bool:
    """Whether the running command is only to say what is wrong with its options.

    A recipe asks for that before any work; the command answers `NOTHING_DONE` before it begins.
    """
    return bool(click.get_current_context().meta.get(ONLY_CHECKS))


@dataclass
class Failure:
    """How one of several works failed, as plain data; ``None`` while it has not."""

    error: dict[str, Any] | None = None


@contextmanager
def surviving(name: str) -> Iterator[Failure]:
    """Say how the block fails, under its ``name``, in place of ending the command.

    With ``--debug`` the error goes on, and so does an interruption.
    """
    failure = Failure()
    try:
        with _translated():
            yield failure
    except Exception as error:
        if click.get_current_context().meta.get(DEBUG):
            raise
        told = error if isinstance(error, DeploykitError) else _unexpected(error)
        failure.error = _describe(told)
        lines = printable(str(told)).splitlines()
        click.echo("\n  ".join([f"Error: {printable(name)}: {lines[0]}", *lines[1:]]), err=True)


def _unexpected(error: Exception) -> DeploykitError:
    return DeploykitError(
        f"an unexpected {typed_first_line(error)}\n"
        "a fault of deploykit, or of what it was given; --debug shows where"
    )


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
