"""The commands as steps of a recipe: click's parameters as options, a call without a shell."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from importlib import import_module
from traceback import format_exception
from typing import TYPE_CHECKING, Final

import click

from deploykit.cli._command import DEBUG, ONLY_CHECKS, QUIET, Command
from deploykit.cli._option_types import BudgetOption, PathOr, QuantizingOption, Target
from deploykit.cli._printable import printable
from deploykit.core.errors import UsageError
from deploykit.recipes.options import CommandOption, Form, Ran, Use

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_OWN: Final = frozenset({"json", "debug", "help", "quiet", "report", "verbose"})
"""Options that say how a command answers, not what it does; `run` has them itself."""

_WRITTEN: Final = frozenset({"output", "work"})


class ClickCommands:
    """All commands that a recipe may name."""

    def options(self, command: str) -> Mapping[str, CommandOption]:
        """All options of a command by their names, in the order of its help."""
        return _options(command)

    def require(self, command: str, arguments: Sequence[str]) -> None:
        """Judge a call, and do nothing.

        Raises:
            DeploykitError: the command would refuse it before it begins.
        """
        with _context(command, arguments) as ctx:
            ctx.meta[ONLY_CHECKS] = True
            _command(command).answer(ctx)

    def run(self, command: str, arguments: Sequence[str]) -> Ran:
        """Do it.

        Raises:
            DeploykitError: the error of the step that failed.
        """
        with _context(command, arguments) as ctx, _traceback_shown(ctx):
            answer = _command(command).answer(ctx)
        return Ran(answer.data, answer.failed)


COMMANDS: Final = ClickCommands()


@contextmanager
def _traceback_shown(ctx: click.Context) -> Iterator[None]:
    """With ``--debug``, print where an error comes from; the recipe goes on with the others."""
    try:
        yield
    except Exception as error:
        if ctx.meta[DEBUG]:
            click.echo(printable("".join(format_exception(error))), err=True)
        raise


def _command(name: str) -> Command:
    command: Command = import_module(f"deploykit.cli.{name}").command
    return command


def _context(command: str, arguments: Sequence[str]) -> click.Context:
    outer = click.get_current_context(silent=True)
    try:
        made = _command(command).make_context(command, list(arguments))
    except click.ClickException as error:
        raise UsageError(error.format_message()) from error
    except click.exceptions.Exit as error:  # --help, which has been printed by now
        raise UsageError(
            f"{command} was asked for its help, and does nothing\nleave out --help"
        ) from error
    for key in (QUIET, DEBUG):
        made.meta[key] = outer is not None and outer.meta.get(key, False)
    return made


@cache
def _options(command: str) -> Mapping[str, CommandOption]:
    found = [_option(each) for each in _command(command).params if isinstance(each, click.Option)]
    return {each.name: each for each in found if each.name not in _OWN}


def _option(option: click.Option) -> CommandOption:
    flags = [flag for flag in option.opts if flag.startswith("--")]
    flags += [flag for flag in option.secondary_opts if flag.startswith("--")]
    name = flags[0].removeprefix("--")
    is_choice = isinstance(option.type, click.Choice)
    return CommandOption(
        name=name,
        flags=tuple(flags),
        form=_form(option),
        require=lambda text: _require(option, text),
        metavar="" if is_choice else option.metavar or "",
        is_repeated=option.multiple,
        is_required=option.required,
        is_written=name in _WRITTEN,
        words=option.type.words if isinstance(option.type, PathOr) else (),
        use=_use(option),
    )


def _form(option: click.Option) -> Form:
    if option.is_flag:
        return Form.SWITCH
    if isinstance(option.type, click.Path | PathOr | Target):
        return Form.PATH
    if isinstance(option.type, click.types.IntParamType):
        return Form.INTEGER
    return Form.NUMBER if isinstance(option.type, click.types.FloatParamType) else Form.TEXT


def _use(option: click.Option) -> Use:
    if isinstance(option, BudgetOption):
        return Use.BUDGET
    return Use.QUANTIZED if isinstance(option, QuantizingOption) else Use.ALL


def _require(option: click.Option, text: str) -> None:
    """Refuse what click refuses.

    Raises:
        ValueError: it does.
    """
    try:
        option.type.convert(text, option, None)
    except click.BadParameter as error:
        raise ValueError(error.message) from error
