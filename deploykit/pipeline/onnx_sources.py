"""A user's own ``.onnx`` file: what it takes, and the graph that later stages rely on."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from deploykit import onnx_graph
from deploykit.backends.ort import OrtRunner
from deploykit.errors import ModelFileError
from deploykit.pipeline.samples import BATCHES, sample_batches
from deploykit.pipeline.sources import Reference, require_equal
from deploykit.specs import Precision, Preprocessing
from deploykit.stages.validate import outputs_of

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.artifacts import OnnxArtifact
    from deploykit.pipeline.journal import Journal
    from deploykit.specs import TensorSpec

RGB: Final = 3
"""Channels of every image that deploykit prepares."""


def from_onnx(original: Path, path: Path, journal: Journal, *, data: Path | None) -> Reference:
    """Tidy a user's own FP32 classifier; onnxruntime on the untouched file is the reference.

    Raises:
        ModelFileError: not a readable FP32 model with one image input of fixed height and width.
        ValidationError: the tidied graph computes something else.
    """
    with journal.stage("read"):
        source = onnx_graph.read_artifact(original)
        image = require_image_classifier(source)
        preprocessing = assumed_preprocessing(image)
        sizes = BATCHES if isinstance(image.shape[0], str) else (image.shape[0],)
        batches = sample_batches(preprocessing, data, sizes)
        with OrtRunner(original) as runner:
            logits = outputs_of(runner, batches)
        artifact = tidied(source, path)
    journal.notes.append(
        f"preprocessing is assumed: {preprocessing.resize} px, crop {preprocessing.crop}, "
        "ImageNet mean and deviation"
    )
    return Reference(
        artifact=artifact,
        batches=batches,
        logits=logits,
        made_by="the original file",
        report=require_equal(artifact, batches, logits, "the original file", journal),
        model={"name": original.stem, "image_size": list(preprocessing.crop)},
        weights={"source": original.name, "sha256": source.sha256, "trained": True},
        preprocessing=preprocessing,
    )


def tidied(source: OnnxArtifact, path: Path) -> OnnxArtifact:
    """The graph of ``source`` in the form that later stages rely on, written to ``path``.

    An old opset is raised where that is possible; where not, FP16 may still work.
    """
    model = onnx_graph.read_model(source.path)
    with suppress(ModelFileError):
        model = onnx_graph.raise_opset(model)
    onnx_graph.tidy(model, rename=False)
    return onnx_graph.write_model(model, path, Precision.FP32, (source.sha256, *source.parents))


def require_image_classifier(source: OnnxArtifact) -> TensorSpec:
    """The image input of an FP32 classifier.

    Raises:
        ModelFileError: it is converted already, or takes something else than images.
    """
    if source.precision is not Precision.FP32:
        raise ModelFileError(
            f"{source.path.name} is already {source.precision}; "
            "deploykit converts from FP32: give it the FP32 model"
        )
    return require_image(source.path.name, source.inputs)


def require_image(name: str, inputs: tuple[TensorSpec, ...]) -> TensorSpec:
    """The one image input of a model that is called ``name``.

    Raises:
        ModelFileError: it takes something else.
    """
    if len(inputs) != 1 or not _is_image(inputs[0]):
        found = ", ".join(f"{t.name} {t.dtype} {t.shape}" for t in inputs) or "nothing"
        raise ModelFileError(
            f"{name} takes {found}\n"
            "possible is one float32 image input (batch, 3, H, W) of fixed height and width"
        )
    return inputs[0]


def _is_image(tensor: TensorSpec) -> bool:
    channels, *size = tensor.shape[1:] or (0,)
    fixed = len(size) == 2 and all(isinstance(dim, int) for dim in size)  # noqa: PLR2004
    return tensor.dtype == "float32" and channels == RGB and fixed


def assumed_preprocessing(image: TensorSpec) -> Preprocessing:
    """ImageNet's preprocessing at the size of ``image``, for files that do not say theirs."""
    height, width = (int(dim) for dim in image.shape[2:])
    # The published networks cut 224 out of 256; the same share holds for other sizes.
    return Preprocessing(crop=(height, width), resize=round(min(height, width) * 256 / 224))
