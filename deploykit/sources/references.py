"""The verified FP32 graph of any target that is no bundle: what every conversion starts from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.sources.definition import from_definition
from deploykit.sources.onnx_file import from_onnx
from deploykit.sources.targets import Kind, find_definition, kind_of, refuse_definition_options

if TYPE_CHECKING:
    from deploykit.comparison.reference import Reference
    from deploykit.core.progress import Journal
    from deploykit.core.sizes import ShapeProfile
    from deploykit.core.specs import ModelSpec
    from deploykit.sources.definition import SourceOptions


def find_source(target: str, source_options: SourceOptions, journal: Journal) -> ModelSpec | Path:
    """The definition that ``target`` names, or the path of an ``.onnx`` file.

    Raises:
        UsageError: the target has no use for what it is told.
        DeploykitError: there is no such definition, see `targets.find_definition`.
    """
    if kind_of(target) is Kind.ONNX:
        refuse_definition_options(target, source_options.choices, source_options.weights)
        return Path(target)
    with journal.progress.step("look at the target"):  # a user's factory may take its time
        return find_definition(target, source_options.choices)


def make_reference(
    source: ModelSpec | Path,
    path: Path,
    journal: Journal,
    source_options: SourceOptions,
    profile: ShapeProfile | None = None,
) -> Reference:
    """Write the FP32 graph of ``source`` to ``path``, verified against what it was made from.

    ``profile`` has the sizes of what an ``.onnx`` leaves open.

    Raises:
        DeploykitError: the error of the stage that failed.
    """
    if isinstance(source, Path):
        return from_onnx(source, path, journal, source_options, profile)
    from deploykit.sources.autocast import without_autocast

    with without_autocast():
        return from_definition(source, path, journal, source_options)
