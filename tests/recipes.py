"""Commands that a recipe can name, without a command line: they note their calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.core.errors import UsageError
from deploykit.recipes.options import CommandOption, Form, Ran, Use
from tests.bundles import write_bundle

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def _takes_all(_: str) -> None:
    """No text is refused."""


def _small(text: str) -> None:
    if int(text) > 9:
        raise ValueError(f"{text} is above 9")


def option(name: str, form: Form = Form.TEXT, metavar: str = "", **changes: Any) -> CommandOption:
    return CommandOption(name, (f"--{name}",), form, _takes_all, metavar, **changes)


OPTIONS: dict[str, tuple[CommandOption, ...]] = {
    "export": (
        option("fp16", Form.SWITCH),
        option("int8", Form.SWITCH),
        option("precision", metavar="NAME"),
        option("calib", Form.PATH, words=("random",), use=Use.QUANTIZED),
        option("max-drop", use=Use.BUDGET),
        option("batch", metavar="MIN,OPT,MAX", is_repeated=True),
        option("labels", Form.PATH),
        CommandOption("level", ("--level",), Form.INTEGER, _small),
        option("output", Form.PATH, is_written=True),
    ),
    "check": (option("device"),),
    "eval": (option("data", Form.PATH, is_required=True), option("batch", Form.INTEGER)),
    "bench": (option("batch", metavar="1,8,32"), option("ab"), option("output", Form.PATH)),
}


@dataclass
class NotedCommands:
    """Exports write a bundle; ``answers`` and ``failing`` say what the others find, by command."""

    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    failing: dict[str, Exception] = field(default_factory=dict)
    refusing: dict[str, str] = field(default_factory=dict)
    called: list[tuple[str, ...]] = field(default_factory=list)

    def options(self, command: str) -> Mapping[str, CommandOption]:
        return {each.name: each for each in OPTIONS[command]}

    def require(self, command: str, arguments: Sequence[str]) -> None:
        if command in self.refusing:
            raise UsageError(self.refusing[command])

    def run(self, command: str, arguments: Sequence[str]) -> Ran:
        self.called.append((command, *arguments))
        for name in (f"{command} {arguments[-1]}", command):
            if name in self.failing:
                raise self.failing[name]
        if command == "export":
            folder = Path(arguments[arguments.index("-o") + 1])
            folder.parent.mkdir(parents=True, exist_ok=True)
            write_bundle(folder)
            return Ran(self.answers.get(command, {"engines": [], "validation": []}))
        data = self.answers.get(command, {"results": []})
        return Ran(data, failed=bool(data.get("problems")))
