"""From what a command's TARGET says to what it names: a definition, a graph or a bundle.

The kinds of definitions and graphs are in `deploykit.sources.kinds`; a bundle is what none of them
takes and is a folder.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deploykit.bundle.manifest import MANIFEST, is_folder
from deploykit.core.choices import DefinitionChoices
from deploykit.core.errors import UsageError
from deploykit.heads import head_named
from deploykit.sources.kinds import kind_for
from deploykit.sources.kinds._kind import digest_of_file, name_of_folder, refuse_arguments

if TYPE_CHECKING:
    from deploykit.core.specs import ModelSpec

_NOTHING_CHOSEN: Final = DefinitionChoices()


class Kind(StrEnum):
    """What a target is: a definition is exported by torch, the others are graphs already."""

    DEFINITION = "definition"
    ONNX = "onnx"
    BUNDLE = "bundle"


def kind_of(target: str) -> Kind:
    """What ``target`` names; nothing is opened, and a name that does not exist is a definition.

    A bundle that an interrupted export set aside is put back.

    >>> str(kind_of("resnet50")), str(kind_of("mine.onnx")), str(kind_of("nets.py:small"))
    ('definition', 'onnx', 'definition')
    """
    kind = kind_for(target)
    if kind.is_graph:
        return Kind.ONNX
    is_bundle = is_folder(Path(target)) and not kind.takes(target)
    return Kind.BUNDLE if is_bundle else Kind.DEFINITION


def name_of(target: str) -> str:
    """What a target is called in tables and in the names of folders.

    >>> name_of("torchvision:swin_t"), name_of("nets/mine.py:small"), name_of("mine.onnx")
    ('torchvision-swin_t', 'mine-small', 'mine')
    """
    if kind_of(target) is Kind.BUNDLE:
        return name_of_folder(target)
    return kind_for(target).short_name(target)


def refuse_definition_options(
    target: str, choices: DefinitionChoices, weights: str | None = None
) -> None:
    """Stop where a file or bundle is told what only a definition has a use for.

    Raises:
        UsageError: weights, classes, a size or arguments are given, or side inputs for a bundle.
    """
    if kind_of(target) is not Kind.ONNX:
        _refuse_side_inputs(target, choices)
        _refuse_head(target, choices)
    given = {
        "--weights": weights,
        "--num-classes": choices.num_classes,
        "--input-size": choices.image_size,
        "--factory-args": choices.arguments,
        "--height and --width": choices.open_size,
    }
    needless = [option for option, value in given.items() if value]
    is_size_of_file = choices.image_size and kind_of(target) is Kind.ONNX
    if needless:
        raise UsageError(
            f"{target} brings its own weights, classes and size\n"
            f"leave out what is for definitions only: {', '.join(needless)}"
            + ("\nwhere it leaves its size open: --height and --width" if is_size_of_file else "")
        )


def _refuse_head(target: str, choices: DefinitionChoices) -> None:
    if choices.head is not None or choices.head_output is not None:
        option = "--head" if choices.head is not None else "--head-output"
        raise UsageError(
            f"{option} is for an export, {target} is a bundle\n"
            "a bundle keeps what its outputs mean in its manifest"
        )


def _refuse_output(target: str, choices: DefinitionChoices) -> None:
    if choices.head_output is not None:
        raise UsageError(
            f"--head-output {choices.head_output} is for an .onnx or a Python file, not for "
            f"{target}\nit has one output: leave it out"
        )


def _refuse_side_inputs(target: str, choices: DefinitionChoices) -> None:
    if choices.side_inputs is not None:
        raise UsageError(
            f"--side-inputs is for an .onnx that takes more than images, not for {target}\n"
            "a bundle keeps those of its export; a definition takes images alone"
        )


def digest_of(target: str) -> str | None:
    """SHA-256 of the file or files that ``target`` is made from; of a bundle its manifest's.

    ``None`` for a definition that comes with deploykit or a package, whose version says it all.
    """
    if kind_of(target) is Kind.BUNDLE:
        return digest_of_file(Path(target) / MANIFEST)
    return kind_for(target).digest(target)


def find_definition(target: str, choices: DefinitionChoices = _NOTHING_CHOSEN) -> ModelSpec:
    """The spec of a definition, wherever it comes from.

    Raises:
        UnknownNameError: there is no network of this name.
        UsageError: the network does not take these choices, or a user's file is not usable.
        MissingDependencyError: the package that it comes from is not installed.
    """
    _refuse_side_inputs(target, choices)
    if choices.open_size is not None:
        raise UsageError(
            "--height and --width are for an .onnx that leaves its size open\n"
            f"leave them out for {target}; its size: --input-size PX"
        )
    kind = kind_for(target)
    if not kind.takes_arguments:
        refuse_arguments(target, choices)
        _refuse_output(target, choices)
    spec = kind.spec(target, choices)
    return spec if choices.head is None else replace(spec, head=head_named(choices.head).name)
