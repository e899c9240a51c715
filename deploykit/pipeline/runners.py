"""How the pipeline runs graphs on onnxruntime."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.backends.ort import OrtRunner

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.bundle import Bundle
    from deploykit.specs import SplitGraph


def open_judge(model: Path | SplitGraph) -> OrtRunner:
    """Run a Q/DQ graph as the standard has it.

    onnxruntime's default optimisations compute something else than TensorRT does: integer kernels
    with other rounding, and bias scales that underflow.
    """
    return OrtRunner(model, optimise=False)


def open_model(bundle: Bundle) -> OrtRunner:
    """The graph of a bundle, in the way that fits its precision."""
    return OrtRunner.of_artifact(bundle.manifest.onnx)
