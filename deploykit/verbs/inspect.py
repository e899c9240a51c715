"""`deploykit inspect`: the layers of a definition, an ``.onnx`` file or a bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deploykit.bundle.manifest import Bundle
from deploykit.core.choices import DefinitionChoices
from deploykit.sources.targets import Kind, find_definition, kind_of, refuse_definition_options

if TYPE_CHECKING:
    from deploykit.costs.summary import ModelSummary

_NOTHING_CHOSEN: Final = DefinitionChoices()


def inspect(
    target: str, choices: DefinitionChoices = _NOTHING_CHOSEN, *, batch: int = 1
) -> ModelSummary:
    """Rows per layer and totals; an architecture is shown as PyTorch modules, a file as nodes.

    Raises:
        UnknownNameError: ``target`` is neither a file, nor a bundle, nor an architecture.
        ModelFileError: the file cannot be read.
        UsageError: options for definitions are given with a file.
    """
    kind = kind_of(target)
    if kind is Kind.DEFINITION:
        return _inspect_definition(target, choices, batch)
    if kind is Kind.ONNX:
        return _inspect_file(target, Path(target), choices, batch, None)
    bundle = Bundle.open(Path(target))
    crop = bundle.manifest.preprocessing.crop
    return _inspect_file(target, bundle.model_path, choices, batch, crop)


def _inspect_definition(name: str, choices: DefinitionChoices, batch: int) -> ModelSummary:
    spec = find_definition(name, choices)
    from deploykit.sources.module_layers import inspect_definition

    return inspect_definition(spec.build, spec.inputs[0].with_batch(batch), spec.name)


def _inspect_file(
    target: str,
    path: Path,
    choices: DefinitionChoices,
    batch: int,
    crop: tuple[int, int] | None,
) -> ModelSummary:
    """An open height or width is what the user asks for, or the bundle's ``crop``."""
    from deploykit import graph
    from deploykit.graph.shapes import fix_image_size

    model, asked = graph.read_model(path), choices.image_size
    size = crop if asked is None else (asked, asked)
    was_open = size is not None and fix_image_size(model, size)
    refuse_definition_options(target, replace(choices, image_size=None) if was_open else choices)
    return graph.describe_layers(model, path.name, batch)
