"""Calls the command line in this process and reads what it printed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from click.testing import CliRunner

from deploykit.cli import main

if TYPE_CHECKING:
    from deploykit.core.specs import Preprocessing


@dataclass(frozen=True)
class Called:
    code: int
    out: str
    err: str

    @property
    def data(self) -> dict[str, Any]:
        """The one JSON object on standard output."""
        parsed = json.loads(self.out)
        assert isinstance(parsed, dict)
        return parsed


def deploykit(*arguments: object) -> Called:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Called(result.exit_code, result.stdout, result.stderr)


def options_of(preprocessing: Preprocessing, size: int) -> tuple[str, ...]:
    """For an ``.onnx`` that was made from a definition: what the definition says by itself."""
    mean, std = (",".join(map(str, each)) for each in (preprocessing.mean, preprocessing.std))
    return ("--mean", mean, "--std", std, "--resize", f"{size}x{size}")
