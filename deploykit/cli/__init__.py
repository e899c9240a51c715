"""The command line: each file parses the options of one command, calls one verb and shows it.

Command files import nothing heavy at their top, so that ``deploykit --help`` answers at once.
"""

from __future__ import annotations

import gc
from importlib import import_module
from typing import Final

import click

from deploykit._version import __version__
from deploykit.cli._command import examples

COMMANDS: Final = (
    "list",
    "inspect",
    "export",
    "build",
    "check",
    "package",
    "sign",
    "verify",
    "validate",
    "calibrate",
    "eval",
    "predict",
    "serve",
    "bench",
    "visualize",
    "estimate",
    "run",
    "doctor",
    "completion",
)
"""In the order of use; the file of each one has its name, and holds its ``command``."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f"deploykit.cli.{name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            from deploykit.core.errors import UnknownNameError

            unknown = UnknownNameError("command", args[0], COMMANDS, "deploykit --help")
            raise click.UsageError(str(unknown), ctx)
        return super().resolve_command(ctx, args)


COLLECT_AFTER: Final = (50_000, 20, 50)
"""Python's own 700 objects look for cycles a thousand times in an export: a fifth of its time."""


@click.group(
    cls=_Commands,
    epilog=examples("deploykit export resnet50 --fp16", "deploykit check engines/resnet50-fp16"),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="deploykit")
def main() -> None:
    """From a PyTorch image classifier to a verified, measured TensorRT engine."""
    gc.set_threshold(*COLLECT_AFTER)
