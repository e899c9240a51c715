"""From a TARGET of the command line to a verified FP32 graph with its reference outputs."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from deploykit import onnx_graph
from deploykit.backends.ort import OrtRunner
from deploykit.errors import DeploykitError, ExportError, ModelFileError, ValidationError
from deploykit.pipeline.samples import BATCHES, sample_batches
from deploykit.specs import ModelSpec, Precision, Preprocessing
from deploykit.stages.validate import outputs_of, validate

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from deploykit.artifacts import OnnxArtifact
    from deploykit.pipeline.journal import Journal
    from deploykit.specs import TensorSpec
    from deploykit.stages.validate import ValidationReport

RGB: Final = 3
"""Channels of every image that deploykit prepares."""


@dataclass(frozen=True)
class Reference:
    """A verified FP32 graph, the batches it was verified on, and what the original made of them."""

    artifact: OnnxArtifact
    batches: list[NDArray[np.float32]]
    logits: list[NDArray[np.float32]]
    made_by: str
    report: ValidationReport
    model: dict[str, Any]
    weights: dict[str, Any]
    preprocessing: Preprocessing
    labels: tuple[str, ...] | None = None
    conversion: dict[str, Any] = field(default_factory=dict)


def from_definition(
    spec: ModelSpec,
    path: Path,
    journal: Journal,
    *,
    weights: str | None,
    seed: int,
    data: Path | None,
) -> Reference:
    """Build, load and export a registered definition; eager torch is the reference.

    Raises:
        WeightsError: the weights cannot be used.
        ExportError: no exporter takes the definition.
        ValidationError: what they export computes something else.
    """
    with journal.stage("definition"):
        from deploykit.backends.eager import EagerRunner
        from deploykit.models import build_with_weights

        module, record = build_with_weights(spec, weights, seed)
        preprocessing = record.preprocessing or spec.preprocessing
        batches = sample_batches(preprocessing, data)
        with EagerRunner(module, spec.inputs, spec.outputs) as runner:
            logits = outputs_of(runner, batches)
    if not record.trained:
        journal.notes.append(f"weights: {record.source}; its answers mean nothing")
    artifact, report, exporter = _export_verified(spec, module, path, journal, (batches, logits))
    return Reference(
        artifact=artifact,
        batches=batches,
        logits=logits,
        made_by="torch eager",
        report=report,
        model=_describe(spec),
        weights={
            "source": record.source,
            "sha256": record.sha256,
            "trained": record.trained,
        },
        preprocessing=preprocessing,
        labels=record.labels or spec.labels,
        conversion={"exporter": exporter},
    )


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
        report=_require_equal(artifact, batches, logits, "the original file", journal),
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


def _export_verified(
    spec: ModelSpec,
    module: nn.Module,
    path: Path,
    journal: Journal,
    expected: tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]],
) -> tuple[OnnxArtifact, ValidationReport, str]:
    from deploykit.stages.export import EXPORTERS, export

    failures: list[DeploykitError] = []
    for exporter in EXPORTERS:
        try:
            with journal.stage("export"):
                artifact = export(spec, module, path, exporter)
            report = _require_equal(artifact, *expected, "torch eager", journal)
        except (ExportError, ModelFileError, ValidationError) as exc:
            failures.append(exc)
            journal.notes.append(f"{exporter} was not used: {' '.join(str(exc).splitlines())}")
        else:
            return artifact, report, exporter
    # A wrong graph says more than a refusal: it comes with figures.
    raise next((exc for exc in failures if isinstance(exc, ValidationError)), failures[-1])


def _require_equal(
    artifact: OnnxArtifact,
    batches: list[NDArray[np.float32]],
    logits: list[NDArray[np.float32]],
    made_by: str,
    journal: Journal,
) -> ValidationReport:
    with journal.stage(f"validate {artifact.precision}"):
        with OrtRunner(artifact.path) as runner:
            outputs = outputs_of(runner, batches)
        names = (f"the {artifact.precision} graph", made_by)
        report = validate(outputs, logits, precision=artifact.precision, names=names)
        report.require_pass()
    return report


def _describe(spec: ModelSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "title": spec.title,
        "paper": spec.paper,
        "year": spec.year,
        "num_classes": spec.num_classes,
        "image_size": list(spec.inputs[0].shape[2:]),
    }


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
