"""The file of a recipe: what it says, and everything that is wrong with it at once.

One file because the rules of each table are read side by side with what they make of it.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deploykit.bundle.folders import DEFAULT_FOLDER
from deploykit.core.errors import UsageError, one_line
from deploykit.core.option_names import quoted, with_other_names
from deploykit.core.precision import AUTO, precisions
from deploykit.recipes.options import ValueRefusedError, arguments_of, placed, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from deploykit.recipes.options import CommandOption, Commands

EXPORT: Final = "export"
AFTER: Final = ("check", "eval", "bench")
"""Commands that are run on every bundle that was made, in this order."""

TARGET: Final = "target"
PRECISION: Final = "precision"
OUTPUT: Final = "output"

SAID_BY_THE_RECIPE: Final[Mapping[str, frozenset[str]]] = {
    "bench": frozenset(
        {"all", "models", "compare", "fail-above", "force", "ab", "rounds", "output"}
    ),
}
"""Options that name what is measured, and where to: the recipe does that."""

_TOP: Final = "the top"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: in which table, at which key."""

    table: str
    key: str
    text: str

    def line(self, file: str) -> str:
        """A line of the message."""
        where = ", ".join(filter(None, (file, self.table, self.key)))
        return f"{where}: {self.text}"


@dataclass
class Problems:
    """What was found to be wrong with a recipe; it is all said together."""

    file: Path
    found: list[Problem] = field(default_factory=list)

    def add(self, table: str, key: str, text: str) -> None:
        """Note one, once."""
        problem = Problem(table, key, text)
        if problem not in self.found:
            self.found.append(problem)

    def require_none(self) -> None:
        """Stop if there are some.

        Raises:
            UsageError: all of them.
        """
        if self.found:
            lines = [problem.line(self.file.name) for problem in self.found]
            count = f"{len(lines)} problems" if len(lines) > 1 else "a problem"
            raise UsageError("\n".join((f"{self.file} has {count}, nothing was done", *lines)))


@dataclass(frozen=True)
class ExportTable:
    """One ``[[export]]``; a precision that is ``None`` is the network's own, as none was asked."""

    table: str
    targets: tuple[str, ...]
    precisions: tuple[str | None, ...]
    values: Mapping[str, Any]
    own: frozenset[str]
    output: str | None = None


@dataclass(frozen=True)
class Recipe:
    """What a file says; ``after`` has the options of each command that follows an export.

    ``outputs_base`` is what the ``output`` of an ``[[export]]`` is relative to.
    """

    path: Path
    output: Path
    outputs_base: Path
    entries: tuple[ExportTable, ...]
    after: Mapping[str, Mapping[str, Any]]

    @property
    def base(self) -> Path:
        """What paths are relative to."""
        return self.path.parent


def read_recipe(
    path: Path, commands: Commands, problems: Problems, output: Path | None = None
) -> Recipe:
    """The recipe in the file at ``path``; ``output`` in place of the folder that it names.

    An ``output`` that is given here is also what the outputs of ``[[export]]`` tables are relative
    to; without it, that is the recipe's own folder.

    What is wrong with single keys is added to ``problems``, and left out of the recipe.

    Raises:
        UsageError: there is no such file, or it is no TOML.
    """
    said = _read(path)
    options = commands.options(EXPORT)
    defaults = {key: value for key, value in said.items() if key not in (EXPORT, *AFTER, OUTPUT)}
    _require_keys(_TOP, defaults, options, problems, beside=(EXPORT, *AFTER))
    tables = said.get(EXPORT, [])
    entries = _entries(tables, defaults, options, problems)
    after = {
        command: table
        for command in AFTER
        if (table := _after(command, said.get(command, False), commands, problems)) is not None
    }
    outputs_base = path.parent if output is None else output
    return Recipe(path, _output(path, said, problems, output), outputs_base, entries, after)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin with a mark
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise UsageError(
            f"there is no recipe {path}\nexpected a .toml file; how one is written: "
            "deploykit run --help"
        ) from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} is no TOML: {one_line(error)}") from error


def _output(path: Path, said: Mapping[str, Any], problems: Problems, told: Path | None) -> Path:
    if told is not None:
        return told
    given = said.get(OUTPUT, str(DEFAULT_FOLDER))
    if not isinstance(given, str):
        problems.add(_TOP, OUTPUT, f"is {shown(given)}, expected the folder of all bundles")
        given = str(DEFAULT_FOLDER)
    return Path(placed(given, path.parent))


def _entries(
    tables: object,
    defaults: Mapping[str, Any],
    options: Mapping[str, CommandOption],
    problems: Problems,
) -> tuple[ExportTable, ...]:
    if isinstance(tables, dict):
        tables = [tables]
    if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
        problems.add(_TOP, EXPORT, f"is {shown(tables)}, expected tables [[{EXPORT}]]")
        return ()
    if not tables:
        text = f'there is no [[{EXPORT}]], so nothing to do; as: [[{EXPORT}]] target = "resnet50"'
        problems.add("", "", text)
    found = [
        _entry(f"[[{EXPORT}]] {number}" if len(tables) > 1 else f"[[{EXPORT}]]", *given)
        for number, table in enumerate(tables, 1)
        for given in [(table, defaults, options, problems)]
    ]
    return tuple(entry for entry in found if entry is not None)


def _entry(
    name: str,
    table: Mapping[str, Any],
    defaults: Mapping[str, Any],
    options: Mapping[str, CommandOption],
    problems: Problems,
) -> ExportTable | None:
    own = {key: value for key, value in table.items() if key not in (TARGET, OUTPUT)}
    _require_keys(name, own, options, problems, beside=(TARGET,))
    targets = _strings(table.get(TARGET))
    if not targets:
        text = f"is {shown(table[TARGET])}" if TARGET in table else "is missing"
        problems.add(name, TARGET, f'{text}, expected a text or a list: "resnet50", "mine.onnx"')
        return None
    output = table.get(OUTPUT)
    if output is not None and not isinstance(output, str):
        problems.add(name, OUTPUT, f"is {shown(output)}, expected the folder of the bundle")
        return None
    asked = _precisions(name, own, problems) or _inherited(own, defaults, problems) or (None,)
    plain = {**defaults, **own}
    values = {key: plain[key] for key in plain if key in options and not _is_precision(key)}
    return ExportTable(name, targets, asked, values, frozenset(own), output)


def _is_precision(key: str) -> bool:
    return key == PRECISION or key in precisions()


def _inherited(
    own: Mapping[str, Any], defaults: Mapping[str, Any], problems: Problems
) -> tuple[str | None, ...]:
    """The precisions of the top but for those that the table turns off, as ``fp16 = false``."""
    top = _precisions(_TOP, defaults, problems)
    return tuple(each for each in top if each is None or own.get(each) is not False)


def _precisions(
    table: str, values: Mapping[str, Any], problems: Problems
) -> tuple[str | None, ...]:
    """Those that a table asks for, by name or by switches, each once."""
    asked: list[str] = [str(each) for each in precisions() if values.get(str(each)) is True]
    if PRECISION in values:
        known = (*map(str, precisions()), AUTO)
        named = _strings(values[PRECISION])
        wrong = [each for each in named or () if each not in known]
        if not named or wrong:
            what = wrong[0] if wrong else values[PRECISION]
            text = f"is {shown(what)}, which is none{_possible(str(what), known)}"
            problems.add(table, PRECISION, text)
        for each in named or ():
            if values.get(each) is False:
                problems.add(table, each, f"is false, and {PRECISION} names it: leave one out")
        asked += [each for each in named or () if each in known]
    return tuple(dict.fromkeys(asked))


def _after(
    command: str, given: object, commands: Commands, problems: Problems
) -> Mapping[str, Any] | None:
    """The options of a command on every bundle; ``None`` where it is not asked for."""
    table = f"[{command}]"
    if given is False:
        return None
    if given is True:
        given = {}
    if not isinstance(given, dict):
        problems.add(table, "", f"is {shown(given)}, expected a table of options, or true")
        return None
    options = commands.options(command)
    taken = {
        name: each
        for name, each in options.items()
        if name not in SAID_BY_THE_RECIPE.get(command, frozenset())
    }
    _require_keys(table, given, taken, problems)
    for name, option in taken.items():
        if option.is_required and name not in given:
            problems.add(table, name, f"is missing, expected {option.form}")
    return {key: value for key, value in given.items() if key in taken}


def _require_keys(
    table: str,
    values: Mapping[str, Any],
    options: Mapping[str, CommandOption],
    problems: Problems,
    beside: Iterable[str] = (),
) -> None:
    """Note keys that no option has, and values that their option does not take.

    ``beside`` the options of an export are the keys of its table; its precisions are read apart.
    """
    for key, value in values.items():
        if beside and key == PRECISION:
            continue
        if key not in options:
            problems.add(table, key, f"is no key{_possible(key, (*options, *beside))}")
        else:
            try:
                arguments_of(options[key], value, Path())
            except ValueRefusedError as error:
                problems.add(table, key, str(error))


def _possible(word: str, known: Iterable[str]) -> str:
    names = list(dict.fromkeys(known))
    close = get_close_matches(word.replace("_", "-"), names, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else f"; possible: {', '.join(names)}"


def _strings(given: object) -> tuple[str, ...]:
    """A text or a list of texts, each once; nothing for anything else."""
    several = given if isinstance(given, list) else [given]
    if not all(isinstance(each, str) and each for each in several):
        return ()
    return tuple(dict.fromkeys(several))


def with_keys(message: str) -> str:
    """The message of a command with keys in place of its options.

    >>> with_keys("INT8 needs images: --calib PATH, or --calib random")
    'INT8 needs images: calib = PATH, or calib = "random"'
    """
    return with_other_names(
        message, lambda name, value: name if value is None else f"{name} = {quoted(value)}"
    )
