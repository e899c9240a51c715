"""Steps of a recipe: which command makes which bundle, with which arguments, from which files."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deploykit.bundle.folders import bundles_in
from deploykit.bundle.listing import is_bundle
from deploykit.bundle.manifest import MANIFEST
from deploykit.core.artifacts import sha256_of_bytes
from deploykit.core.errors import DeploykitError
from deploykit.core.precision import AUTO, OWN, Precision, precisions
from deploykit.recipes.options import Form, ValueRefusedError, arguments_of, placed
from deploykit.recipes.reading import EXPORT, OUTPUT, TARGET, with_keys
from deploykit.sources.kinds import kind_for

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from deploykit.recipes.options import CommandOption, Commands
    from deploykit.recipes.reading import ExportTable, Problems, Recipe

BENCH: Final = "bench"


@dataclass(frozen=True)
class Step:
    """One command on one bundle.

    ``place`` is the bundle's path as seen from the folder of all bundles, which no other bundle
    has. ``said`` is what the recipe says of it, with paths as they are written; ``reads`` are the
    files and folders that it reads beside the bundle, ``target`` the network of an export.
    """

    table: str
    command: str
    bundle: Path
    place: str
    precision: str
    arguments: tuple[str, ...]
    said: Mapping[str, Any]
    reads: Mapping[str, Path] = field(default_factory=dict)
    target: str | None = None

    @property
    def name(self) -> str:
        """What it is called in the state and in messages."""
        return f"{self.place} {self.command}"

    @property
    def command_line(self) -> str:
        """For a shell."""
        return shlex.join(("deploykit", self.command, *self.arguments))


def plan_steps(recipe: Recipe, commands: Commands, problems: Problems) -> tuple[Step, ...]:
    """All steps in their order: each bundle with what follows its export.

    What a command would refuse is added to ``problems``.
    """
    steps: list[Step] = []
    exports: dict[Path, Step] = {}
    options = commands.options(EXPORT)
    for entry in recipe.entries:
        for made in _exports(entry, recipe, options, problems):
            first = exports.setdefault(_real(made.bundle), made)
            if first is not made:
                problems.add(
                    entry.table,
                    OUTPUT,
                    f"{made.bundle} is the bundle of {first.table} already; give one of "
                    "them an output of its own",
                )
                continue
            steps += [made, *_after(made, recipe, commands)]
    for folder, made in exports.items():
        problem = _overlap(folder, exports, recipe) or _overlap_on_disk(folder)
        if problem is not None:
            problems.add(made.table, OUTPUT, f"{made.bundle} {problem}; choose another output")
    for step in steps:
        _require(step, commands, problems)
    return tuple(steps)


def _real(path: Path) -> Path:
    """One spelling of a folder, with links followed."""
    return Path(os.path.realpath(path))


def _overlap(folder: Path, exports: Mapping[Path, Step], recipe: Recipe) -> str | None:
    """Why a bundle cannot be in ``folder`` beside what else the recipe writes."""
    for other, made in exports.items():
        if other in folder.parents:
            return f"lies in {made.bundle}, the bundle of {made.table}"
    kept = [recipe.output, *([recipe.output / BENCH] if BENCH in recipe.after else [])]
    for place in kept:
        real = _real(place)
        if folder == real or folder in real.parents:
            return f"would hold {place}, where results of all bundles are kept"
    return None


def _overlap_on_disk(folder: Path) -> str | None:
    """Why an export cannot put a bundle in ``folder`` as the disk is now."""
    for above in folder.parents:
        if is_bundle(above):
            return f"lies in the bundle {above}"
    inside: Iterable[Path] = bundles_in(folder)
    if is_bundle(folder):  # few files, where another folder may have millions
        inside = (one.parent for one in folder.rglob(MANIFEST) if one.parent != folder)
    inner = next(filter(is_bundle, inside), None)
    return None if inner is None else f"holds the bundle {inner}"


def _require(step: Step, commands: Commands, problems: Problems) -> None:
    try:
        commands.require(step.command, step.arguments)
    except DeploykitError as error:
        problems.add(step.table, "", "; ".join(with_keys(str(error)).splitlines()))


def _exports(
    entry: ExportTable, recipe: Recipe, options: Mapping[str, CommandOption], problems: Problems
) -> Iterator[Step]:
    _note_idle(entry, options, problems)
    is_one = len(entry.targets) == len(entry.precisions) == 1
    for written in entry.targets:
        target = target_seen_from(written, recipe.base)
        for asked in entry.precisions:
            precision = asked or str(Precision.FP32)
            name = f"{kind_for(target).short_name(target)}-{precision}"
            parent = recipe.output
            if entry.output is not None:
                parent = Path(placed(entry.output, recipe.outputs_base))
            bundle = parent if is_one and entry.output is not None else parent / name
            values = {
                key: value for key, value in entry.values.items() if options[key].is_for(asked)
            }
            try:
                arguments, reads = _given(values, options, recipe.base)
            except ValueRefusedError:  # said when the recipe was read: the rest cannot be judged
                _require_target(target, entry, problems)
                continue
            yield Step(
                entry.table,
                EXPORT,
                bundle,
                os.path.relpath(bundle, recipe.output),
                precision,
                (*_asking(asked), *arguments, "-o", str(bundle), *_operand(target)),
                {"target": written, "precision": asked, **values},
                reads,
                target,
            )


def _operand(text: str) -> tuple[str, str]:
    """An argument that is no option, whatever it begins with."""
    return "--", text


def _require_target(target: str, entry: ExportTable, problems: Problems) -> None:
    try:
        kind_for(target).require(target)
    except DeploykitError as error:
        problems.add(entry.table, TARGET, "; ".join(str(error).splitlines()))


def _note_idle(
    entry: ExportTable, options: Mapping[str, CommandOption], problems: Problems
) -> None:
    """Note keys of the entry itself that none of its precisions has a use for."""
    asked = ", ".join(each or str(Precision.FP32) for each in entry.precisions)
    for key in entry.values:
        option = options[key]
        if key in entry.own and not any(map(option.is_for, entry.precisions)):
            fitting = [each for each in (*precisions(), AUTO) if option.is_for(each)]
            problems.add(entry.table, key, f"is for {', '.join(fitting)}, not for {asked}")


def _asking(precision: str | None) -> tuple[str, ...]:
    if precision is None:
        return ()
    return (f"--{precision}",) if precision in OWN else ("--precision", precision)


def _given(
    values: Mapping[str, Any], options: Mapping[str, CommandOption], base: Path
) -> tuple[list[str], dict[str, Path]]:
    """Arguments, and the paths that they read."""
    arguments: list[str] = []
    reads: dict[str, Path] = {}
    for key, value in values.items():
        option = options[key]
        arguments += arguments_of(option, value, base)
        is_read = option.form is Form.PATH and not option.is_written
        if is_read and isinstance(value, str) and value not in option.words:
            reads[key] = Path(placed(value, base))
    return arguments, reads


def _after(made: Step, recipe: Recipe, commands: Commands) -> Iterator[Step]:
    for command, values in recipe.after.items():
        try:
            arguments, reads = _given(values, commands.options(command), recipe.base)
        except ValueRefusedError:
            continue  # said when the recipe was read
        if command == BENCH:
            arguments += _places_of_bench(made, recipe, values)
        yield Step(
            f"[{command}]",
            command,
            made.bundle,
            made.place,
            made.precision,
            (*arguments, *_operand(str(made.bundle))),
            values,
            reads,
        )


def _places_of_bench(made: Step, recipe: Recipe, values: Mapping[str, Any]) -> list[str]:
    """Results beside the bundles, and beside them what the next measurement uses again.

    A bundle elsewhere has its results here too, under its name and a digest of its path: a
    bundle of the same name may be here.
    """
    folder = recipe.output / BENCH
    work = [] if "work" in values else ["--work", str(folder)]
    name = made.place
    if os.pardir in Path(name).parts:
        name = f"{made.bundle.name}-{sha256_of_bytes(name.encode())[:8]}"
    return [*work, "-o", str(folder / f"{name}.json")]


def target_seen_from(target: str, base: Path) -> str:
    """A TARGET whose path is relative to ``base``; a name stays as it is."""
    beside = placed(target, base)
    if kind_for(beside).takes(beside):
        return beside
    is_named = kind_for(target).takes(target)
    return beside if not is_named and Path(beside).exists() else target
