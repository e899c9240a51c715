"""From what a command's TARGET says to what it names: a definition, a file or a bundle."""

from __future__ import annotations

import re
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deploykit.bundle.manifest import MANIFEST
from deploykit.core.artifacts import sha256_of
from deploykit.core.choices import DefinitionChoices
from deploykit.core.errors import UsageError
from deploykit.heads import head_named
from deploykit.models import get
from deploykit.sources.timm import timm_spec
from deploykit.sources.torchvision import torchvision_spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from deploykit.core.specs import ModelSpec

TORCHVISION: Final = "torchvision:"
TIMM: Final = "timm:"
HUGGING_FACE: Final = "config.json"
"""What a folder of the Hugging Face hub has, and a bundle has not."""

_PYTHON_FILE: Final = re.compile(r"(?P<path>.+\.py):(?P<factory>[^\W\d]\w*)")
_NOTHING_CHOSEN: Final = DefinitionChoices()


class Kind(StrEnum):
    """What a target is: a definition is exported by torch, the others are graphs already."""

    DEFINITION = "definition"
    ONNX = "onnx"
    BUNDLE = "bundle"


def kind_of(target: str) -> Kind:
    """What ``target`` names; nothing is opened, and a name that does not exist is a definition.

    >>> str(kind_of("resnet50")), str(kind_of("mine.onnx")), str(kind_of("nets.py:small"))
    ('definition', 'onnx', 'definition')
    """
    path = Path(target)
    if target.endswith(".onnx"):
        return Kind.ONNX
    is_hugging_face = (path / HUGGING_FACE).is_file() and not (path / MANIFEST).is_file()
    return Kind.BUNDLE if path.is_dir() and not is_hugging_face else Kind.DEFINITION


def name_of(target: str) -> str:
    """What a target is called in tables and in the names of folders.

    >>> name_of("torchvision:swin_t"), name_of("nets/mine.py:small"), name_of("mine.onnx")
    ('torchvision-swin_t', 'mine-small', 'mine')
    """
    named = _PYTHON_FILE.fullmatch(target)
    if named is not None:
        return f"{Path(named['path']).stem}-{named['factory']}"
    if target.startswith((TORCHVISION, TIMM)):
        return re.sub(r"[:/]", "-", target)
    path = Path(target)
    if kind_of(target) is Kind.ONNX:
        return path.stem
    return path.resolve().name if path.is_dir() else target


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
    if weights or choices.num_classes or choices.image_size or choices.arguments:
        raise UsageError(
            f"{target} brings its own weights, classes and size\n"
            "--weights, --num-classes, --input-size and --factory-args are for definitions only"
        )


def _refuse_head(target: str, choices: DefinitionChoices) -> None:
    if choices.head is not None:
        raise UsageError(
            f"--head is for an export, {target} is a bundle\n"
            "a bundle keeps what its outputs mean in its manifest"
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
    named = _PYTHON_FILE.fullmatch(target)
    if named is not None:
        return _digest(Path(named["path"]))
    path = Path(target)
    match kind_of(target):
        case Kind.BUNDLE:
            return _digest(path / MANIFEST)
        case Kind.ONNX:
            return _digest_of_graph(path)
        case _ if (path / HUGGING_FACE).is_file():
            from deploykit.sources import hugging_face as _hugging_face

            return _hugging_face.digest_with_weights(path)
        case _:
            return None


def _digest_of_graph(path: Path) -> str | None:
    """With what lies in other files, for which the onnx package is needed."""
    if not path.is_file():
        return None
    from deploykit import graph as onnx_graph

    return onnx_graph.read_artifact(path).sha256


def _digest(path: Path) -> str | None:
    return sha256_of(path) if path.is_file() else None


def find_definition(target: str, choices: DefinitionChoices = _NOTHING_CHOSEN) -> ModelSpec:
    """The spec of a definition, wherever it comes from.

    Raises:
        UnknownNameError: there is no network of this name.
        UsageError: the network does not take these choices, or a user's file is not usable.
        MissingDependencyError: the package that it comes from is not installed.
    """
    _refuse_side_inputs(target, choices)
    spec = _spec_of(target, choices)
    return spec if choices.head is None else replace(spec, head=head_named(choices.head).name)


def _spec_of(target: str, choices: DefinitionChoices) -> ModelSpec:
    named = _PYTHON_FILE.fullmatch(target)
    if named is not None:
        from deploykit.sources import python_file as _python_file

        return _python_file.python_file_spec(Path(named["path"]), named["factory"], choices)
    if choices.arguments is not None:
        raise UsageError(
            f"--factory-args is for a factory in a Python file, not for {target}\n"
            "expected path/to/file.py:factory"
        )
    if target.endswith(".py"):
        raise UsageError(f"{target} names no factory\nexpected {target}:FACTORY")
    if (Path(target) / HUGGING_FACE).exists():
        from deploykit.sources import hugging_face as _hugging_face

        return _hugging_face.hugging_face_spec(Path(target), choices)
    choose: Callable[..., ModelSpec] = get
    name = target
    if target.startswith(TORCHVISION):
        name, choose = target.removeprefix(TORCHVISION), torchvision_spec
    elif target.startswith(TIMM):
        name, choose = target.removeprefix(TIMM), timm_spec
    return choose(name, num_classes=choices.num_classes, image_size=choices.image_size)
