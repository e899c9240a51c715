"""`deploykit inspect`: the layers of a definition, an ``.onnx`` file or a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.bundle import Bundle
from deploykit.errors import UsageError

if TYPE_CHECKING:
    from deploykit.summary import ModelSummary


def inspect(
    target: str, *, num_classes: int | None = None, image_size: int | None = None, batch: int = 1
) -> ModelSummary:
    """Rows per layer and totals; an architecture is shown as PyTorch modules, a file as nodes.

    Raises:
        UnknownNameError: ``target`` is neither a file, nor a bundle, nor an architecture.
        ModelFileError: the file cannot be read.
        UsageError: options for architectures are given with a file.
    """
    path = Path(target)
    if target.endswith(".onnx") or path.is_dir():
        if num_classes or image_size:
            raise UsageError(
                f"{target} has its own classes and size\n"
                "--num-classes and --input-size are for architectures only"
            )
        model = Bundle.open(path).model_path if path.is_dir() else path
        return _inspect_file(model, batch)
    return _inspect_architecture(target, num_classes, image_size, batch)


def _inspect_architecture(
    name: str, num_classes: int | None, image_size: int | None, batch: int
) -> ModelSummary:
    from deploykit.pipeline.targets import find_definition

    spec = find_definition(name, num_classes=num_classes, image_size=image_size)
    from deploykit.stages.inspect import inspect_definition

    return inspect_definition(spec.build, spec.inputs[0].with_batch(batch), spec.name)


def _inspect_file(path: Path, batch: int) -> ModelSummary:
    from deploykit import onnx_graph

    return onnx_graph.describe_layers(onnx_graph.read_model(path), path.name, batch)
