"""`deploykit eval`: how often a bundle is right, and how often it agrees with its reference."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from deploykit import images
from deploykit.backends.ort import OrtRunner
from deploykit.bundle import REFERENCE, Bundle
from deploykit.pipeline.runners import open_model
from deploykit.specs import Precision, Progress, SilentProgress
from deploykit.stages.evaluate import Evaluation, evaluate

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path


def evaluate_bundle(
    folder: Path,
    data: Path,
    *,
    reference: Path | None = None,
    batch: int = 32,
    progress: Progress | None = None,
) -> Evaluation:
    """Top-1 and top-5 of the bundle's ONNX on onnxruntime, and agreement with the FP32 graph.

    ``reference`` is another bundle or an ``.onnx`` file; by default it is the FP32 graph that the
    bundle keeps. An FP32 bundle without ``reference`` has nothing to agree with but itself.

    Raises:
        IntegrityError: the bundle is not as it was written.
        DataError: the images or their labels cannot be used.
    """
    bundle = Bundle.open(folder)
    bundle.require_intact()
    source = images.open_images(data)
    other = reference or _own_reference(bundle)
    with open_model(bundle) as runner, _open(other) as against:
        return evaluate(
            runner,
            source,
            bundle.manifest.preprocessing,
            batch=batch,
            reference=against,
            progress=progress or SilentProgress(),
        )


def _own_reference(bundle: Bundle) -> Path | None:
    kept = bundle.folder / REFERENCE
    if kept.is_file():
        return kept
    return bundle.model_path if bundle.manifest.precision is Precision.FP32 else None


def _open(path: Path | None) -> AbstractContextManager[OrtRunner | None]:
    if path is None:
        return nullcontext(None)
    return open_model(Bundle.open(path)) if path.is_dir() else OrtRunner(path)
