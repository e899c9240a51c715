"""`deploykit eval`: how often a bundle is right, and how it does beside another model."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploykit import images
from deploykit.backends import GraphOptions
from deploykit.backends._registry import graph_judge
from deploykit.bundle.manifest import REFERENCE, Bundle
from deploykit.core.errors import UsageError
from deploykit.core.progress import Progress, SilentProgress
from deploykit.evaluation.labelled import EvaluatedModel, evaluate
from deploykit.heads import head_of

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from deploykit.core.specs import Preprocessing, Runner, TensorSpec
    from deploykit.heads import Evaluation
    from deploykit.images import LabelledData


@dataclass(frozen=True)
class AccuracyReport:
    """What was measured, names of the classes where they are known, which graph ran, on what."""

    evaluation: Evaluation
    names: tuple[str, ...] | None
    graph: str
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def per_class(self) -> list[dict[str, Any]]:
        """Every class that has images, the worst first."""
        return self.evaluation.per_class(self.names)

    def confusions(self, most: int) -> list[dict[str, Any]]:
        """The most frequent wrong answers."""
        return self.evaluation.confusions(most, self.names)


def evaluate_bundle(  # noqa: PLR0913 - the options of `deploykit eval`
    folder: Path,
    data: LabelledData,
    *,
    reference: Path | None = None,
    compare: Path | None = None,
    batch: int = 32,
    fast: bool = False,
    progress: Progress | None = None,
) -> AccuracyReport:
    """Top-1 and top-5 of the bundle's ONNX on onnxruntime, beside those of another model.

    ``reference`` is another bundle or an ``.onnx`` file that is fed what the bundle is fed; by
    default it is the FP32 graph that the bundle keeps. An FP32 bundle without ``reference`` has
    nothing to agree with but itself. ``compare`` is one to judge the bundle against: a bundle is
    fed by its own preprocessing. With ``fast`` bundles of lower precision run in plain FP32.

    Raises:
        IntegrityError: a bundle is not as it was written.
        UsageError: both ``reference`` and ``compare``, an ``.onnx`` that cannot be fed, or a bundle
            that takes more than images.
        DataError: the images or their labels cannot be used.
    """
    if reference is not None and compare is not None:
        raise UsageError(
            "--reference and --compare are two models to hold this one against\ngive one of them"
        )
    bundle = _open_intact(folder)
    head = head_of(bundle.manifest.head)
    count = head.classes(bundle.manifest.onnx.outputs[0].shape)
    classes = images.ModelClasses(count, _names_of(bundle.labels, count))
    source = images.open_labelled(data, classes)
    own = bundle.manifest.preprocessing
    if compare is None:
        fed, opened = own, _open_reference(reference or _own_reference(bundle), fast=fast)
    else:
        fed, opened = _open_other(compare, own, fast=fast)
    with _open_model(bundle, fast=fast) as runner, opened as other:
        found = evaluate(
            EvaluatedModel(runner, own),
            source,
            batch=batch,
            other=None if other is None else EvaluatedModel(other, fed),
            progress=progress or SilentProgress(),
            head=head,
        )
    skipped = source.skipped if isinstance(source, images.FileImages) else ()
    return AccuracyReport(
        found,
        _fitting_names(classes, source.classes),
        bundle.on_cpu(fast=fast).name,
        skipped=tuple(map(str, skipped)),
        notes=tuple(images.notes_on_skipped(skipped)),
    )


def _open_intact(folder: Path) -> Bundle:
    bundle = Bundle.open(folder)
    bundle.require_intact()
    _require_images_alone(bundle)
    return bundle


def _open_model(bundle: Bundle, *, fast: bool) -> Runner:
    return graph_judge().open_artifact(bundle.on_cpu(fast=fast).artifact)


def _require_images_alone(bundle: Bundle) -> None:
    """Refuse a model whose answers depend on what no folder of images has."""
    others = bundle.manifest.onnx.inputs[1:]
    if others:
        named = ", ".join(f"{spec.name} {spec.dtype} {spec.shape}" for spec in others)
        raise UsageError(
            f"{bundle.manifest.name} takes {named} beside the images, which eval does not have\n"
            "count in a program: deploykit.load(...).run({name: array, ...})"
        )


def _names_of(labels: tuple[str, ...] | None, count: int | None) -> tuple[str, ...] | None:
    """The labels where they name every class; the name of a positive class alone does not."""
    return labels if labels is None or count in (None, len(labels)) else None


def _fitting_names(
    model: images.ModelClasses, given: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    for names in (model.names, given):
        if names is not None and len(names) == model.count:
            return names
    return None


def _own_reference(bundle: Bundle) -> Path | None:
    kept = bundle.folder / REFERENCE
    if kept.is_file():
        return kept
    return bundle.model_path if bundle.manifest.precision.facts.is_source else None


def _open_reference(path: Path | None, *, fast: bool) -> AbstractContextManager[Runner | None]:
    if path is None:
        return nullcontext(None)
    if path.is_dir():
        return _open_model(_open_intact(path), fast=fast)
    # Weights beside what a link leads to are found there; in a cache of links, beside the link.
    real = path.resolve()
    return graph_judge().open(path if real.parent.name == "blobs" else real, GraphOptions())


def _open_other(path: Path, own: Preprocessing, *, fast: bool) -> tuple[Preprocessing, Runner]:
    """A model to compare with; an ``.onnx`` file does not say how it is fed: as the bundle is."""
    if path.is_dir():
        bundle = _open_intact(path)
        return bundle.manifest.preprocessing, _open_model(bundle, fast=fast)
    from deploykit import graph

    artifact = graph.read_artifact(path)
    if len(artifact.inputs) != 1 or not _takes(artifact.inputs[0], (3, *own.crop)):
        found = ", ".join(f"{one.name} {one.dtype} {one.shape}" for one in artifact.inputs)
        raise UsageError(
            f"{path.name} takes {found or 'nothing'}, the bundle float32 images (3, "
            f"{own.crop[0]}, {own.crop[1]})\n"
            "an .onnx is fed as the bundle is: export it, and compare with its own bundle"
        )
    return own, graph_judge().open_artifact(artifact)


def _takes(tensor: TensorSpec, image: tuple[int, ...]) -> bool:
    sizes = tensor.shape[1:]
    fits = (
        isinstance(has, str) or has == wanted for has, wanted in zip(sizes, image, strict=False)
    )
    return tensor.dtype == "float32" and len(sizes) == len(image) and all(fits)
