"""`deploykit eval`: how often a bundle is right, and how it does beside another model."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit import images
from deploykit.backends import CPU, GraphOptions
from deploykit.backends._registry import graph_judge
from deploykit.bundle.manifest import REFERENCE, doubts_of
from deploykit.bundle.reading import read_bundle
from deploykit.comparison.forms import laid_out, meant_before_end
from deploykit.comparison.reference import ChannelsFirst
from deploykit.core.errors import DataError, UsageError
from deploykit.core.html_tables import html_table, paragraphs
from deploykit.core.progress import Progress, SilentProgress
from deploykit.core.sizes import are_channels_last
from deploykit.core.specs import Closing
from deploykit.evaluation.labelled import EvaluatedModel, evaluate
from deploykit.heads import head_of
from deploykit.runtime.loading import load_opened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from deploykit.bundle.manifest import Bundle
    from deploykit.core.specs import Runner, TensorSpec
    from deploykit.heads import Evaluation, Head
    from deploykit.images import ImageSet, LabelledData
    from deploykit.runtime.choice import Machine


@dataclass(frozen=True)
class AccuracyReport:
    """What was measured, names of the classes where they are known, and what ran.

    ``graph`` is the file that ran, ``device`` where, and ``choice`` both in words. ``blind_spots``
    say why these images do not tell a good model from a bad one, and ``doubts`` why the
    verification of the bundle could not have failed. ``threshold`` is the probability from which a
    yes was counted, where the head decides by one.
    """

    evaluation: Evaluation
    names: tuple[str, ...] | None
    graph: str
    device: str
    choice: str
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    blind_spots: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    threshold: float | None = None

    def _repr_html_(self) -> str:
        """The tables of the command line, as notebooks show them."""
        shown = self.evaluation.tables((self.graph, None))
        tables = (
            html_table(
                one.columns,
                one.rows,
                title=one.title,
                right=one.right,
                notes=() if one.note is None else (one.note,),
            )
            for one in shown
        )
        weak = (
            *(f"WEAK VERIFICATION: {reason}" for reason in self.doubts),
            *(f"WEAK EVALUATION: {reason}" for reason in self.blind_spots),
        )
        return "".join((*tables, paragraphs((self.choice, *self.notes, *weak))))

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
    device: str = CPU,
    threshold: float | None = None,
    progress: Progress | None = None,
    machine: Machine | None = None,
) -> AccuracyReport:
    """Top-1 and top-5 of the bundle, beside those of another model.

    ``reference`` is another bundle or an ``.onnx`` file that is fed what the bundle is fed; by
    default it is the FP32 graph that the bundle keeps. An FP32 bundle without ``reference`` has
    nothing to agree with but itself. ``compare`` is one to judge the bundle against: a bundle is
    fed by its own preprocessing. With ``fast`` bundles of lower precision run in plain FP32.

    ``device`` is that of `deploykit.load`: by default the graphs run on the CPU; on "cuda" the
    engine of each bundle does, which is what will serve. FP32 graphs and ``.onnx`` files, which
    have no engine, run on the CPU all the same. ``threshold`` is the probability from which a
    binary head says yes, of both models; by default the head's own. ``machine`` is what engines
    have to fit, for tests.

    Raises:
        IntegrityError: a bundle is not as it was written.
        EngineIncompatibleError: a bundle has no engine that runs on ``device``.
        UsageError: both ``reference`` and ``compare``, an ``.onnx`` that cannot be fed, a bundle
            that takes more than images, a ``threshold`` that the head has no use for, or an unknown
            device.
        DataError: the images or their labels cannot be used.
    """
    subjects = Subjects(
        folder, reference, compare, device, fast, threshold=threshold, machine=machine
    )
    # What a bundle keeps is opened with it: a later export may put another bundle there.
    with subjects.opened() as opened:
        source, classes = labelled_images(opened, data)
        own = opened.own
        found = evaluate(
            own,
            source,
            batch=batch,
            other=opened.other,
            progress=progress or SilentProgress(),
            head=opened.head,
        )
    return accuracy_report(found, opened, source, classes)


def labelled_images(
    opened: OpenedSubjects, data: LabelledData
) -> tuple[ImageSet, images.ModelClasses]:
    """The images of ``data`` for a bundle, and what is known of its classes.

    Raises:
        DataError: the images or their labels cannot be used.
    """
    subject = opened.subject
    count = opened.head.classes(subject.bundle.manifest.onnx.outputs[0].shape)
    classes = images.ModelClasses(count, _names_of(subject.labels, count))
    return images.open_labelled(data, classes), classes


def accuracy_report(
    found: Evaluation, opened: OpenedSubjects, source: ImageSet, classes: images.ModelClasses
) -> AccuracyReport:
    """What was counted, with what ran and what is to be said of the images."""
    skipped = source.skipped if isinstance(source, images.FileImages) else ()
    reduced = images.notes_on_reduced(source, opened.own.preprocessing)
    subject = opened.subject
    return AccuracyReport(
        found,
        _fitting_names(classes, source.classes),
        subject.graph,
        subject.device,
        subject.choice,
        skipped=tuple(map(str, skipped)),
        notes=(*images.notes_on_skipped(skipped), *reduced),
        blind_spots=tuple(_blind_spots(found, source)),
        doubts=tuple(doubts_of(subject.bundle.manifest.validation)),
        threshold=opened.head.threshold,
    )


def _blind_spots(found: Evaluation, source: ImageSet) -> list[str]:
    """Those of the counts, and whether all images are one, which they follow from."""
    spots = found.blind_spots()
    if spots and len(source) > 1 and _are_one(source):
        return [f"all {len(source)} images are the same one", *spots]
    return spots


def _are_one(source: ImageSet) -> bool:
    """Whether all images have the same pixels; ends at the first that differs."""
    try:
        first = np.asarray(source.load(0))
        rest = (np.asarray(source.load(at)) for at in range(1, len(source)))
        return all(np.array_equal(one, first) for one in rest)
    except DataError:  # changed since it was judged
        return False


@dataclass(frozen=True)
class OpenedSubjects:
    """A bundle that is loaded, and the model beside it, each with what happens to an image."""

    subject: _Opened
    head: Head
    own: EvaluatedModel
    other: EvaluatedModel | None

    @property
    def models(self) -> list[EvaluatedModel]:
        """One or both."""
        return [self.own] if self.other is None else [self.own, self.other]


@dataclass(frozen=True)
class Subjects:
    """A bundle and what it is held against, by their paths: to be opened here or elsewhere.

    ``threads`` are those of onnxruntime on a CPU, ``None`` for all cores. ``machine`` is what
    engines have to fit, for tests.
    """

    folder: Path
    reference: Path | None = None
    compare: Path | None = None
    device: str = CPU
    fast: bool = False
    threads: int | None = None
    threshold: float | None = None
    machine: Machine | None = None

    def head_in(self, bundle: Bundle) -> Head:
        """What a bundle's outputs mean, deciding by ``threshold`` where one was given.

        Raises:
            UsageError: the head decides nothing by a threshold, or it is not between 0 and 1.
        """
        head = head_of(bundle.manifest.head)
        return head if self.threshold is None else head.with_threshold(self.threshold)

    @contextmanager
    def opened(self) -> Iterator[OpenedSubjects]:
        """Both, loaded.

        Raises:
            DeploykitError: as `evaluate_bundle`.
        """
        if self.reference is not None and self.compare is not None:
            raise UsageError(
                "--reference and --compare are two models to hold this one against\n"
                "give one of them"
            )
        if self.threshold is not None:  # refused before anything is loaded
            read_bundle(self.folder, self.head_in)
        opening = _Opening(self.device, self.fast, self.threads, self.machine)
        with ExitStack() as stack:
            alone = self.reference is None and self.compare is None
            opened = stack.enter_context(_open_model(self.folder, opening, beside_reference=alone))
            bundle = opened.bundle
            head = self.head_in(bundle)
            own = EvaluatedModel(opened.runner, bundle.manifest.preprocessing)
            other = None if opened.reference is None else replace(own, runner=opened.reference)
            if self.reference is not None:
                other = _fed_as(bundle, _open_reference(self.reference, stack, opening))
            elif self.compare is not None:
                other = _open_other(self.compare, bundle, stack, opening)
            yield OpenedSubjects(opened, head, own, _judged_as(head, other))


@dataclass(frozen=True)
class _Opening:
    """How a bundle is opened: on which device, and whether a CPU leaves out the rounding."""

    device: str
    fast: bool
    threads: int | None
    machine: Machine | None


@dataclass(frozen=True)
class _Opened(Closing):
    """A bundle that is loaded, and the FP32 graph that it keeps, where that was asked.

    Its labels and the name of what runs are of the same moment: later another may be there.
    """

    bundle: Bundle
    labels: tuple[str, ...] | None
    graph: str
    device: str
    choice: str
    runner: Runner
    reference: Runner | None = None

    def close(self) -> None:
        self.runner.close()
        if self.reference is not None:
            self.reference.close()


def _open_model(folder: Path, opening: _Opening, *, beside_reference: bool = False) -> _Opened:
    def load(bundle: Bundle) -> _Opened:
        bundle.require_intact()
        _require_images_alone(bundle)
        with ExitStack() as stack:
            opened = stack.enter_context(_open_on(bundle, opening))
            kept = _own_reference(bundle) if beside_reference else None
            if kept is not None:
                options = GraphOptions(threads=opening.threads)
                reference = stack.enter_context(graph_judge().open(kept, options))
                opened = replace(opened, reference=reference)
            stack.pop_all()
        return opened

    return read_bundle(folder, load)


def _open_on(bundle: Bundle, opening: _Opening) -> _Opened:
    """The bundle's graph on the CPU, or what `deploykit.load` takes on another device."""
    if opening.device == CPU:
        graph = bundle.on_cpu(fast=opening.fast)
        choice = f"{graph.name} on onnxruntime"
        with ExitStack() as stack:
            runner = stack.enter_context(
                graph_judge().open_artifact(graph.artifact, threads=opening.threads)
            )
            stack.pop_all()
        return _Opened(bundle, bundle.labels, graph.name, CPU, choice, runner)
    model = load_opened(
        bundle,
        opening.device,
        fast=opening.fast,
        threads=opening.threads,
        machine=opening.machine,
    )
    runner = model.as_runner((model.outputs[0].name,))
    return _Opened(bundle, model.labels, model.file, model.device, model.choice, runner)


def _require_images_alone(bundle: Bundle) -> None:
    """Refuse a model whose answers depend on what no folder of images has."""
    others = bundle.manifest.onnx.inputs[1:]
    if others:
        named = ", ".join(f"{spec.name} {spec.dtype} {spec.shape_text}" for spec in others)
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
    if REFERENCE in bundle.manifest.files and kept.is_file():
        return kept
    return bundle.model_path if bundle.manifest.precision.facts.is_source else None


def _fed_as(bundle: Bundle, other: EvaluatedModel | Runner) -> EvaluatedModel:
    """A model that is given what ``bundle`` is given: prepared images where it takes no bytes."""
    if isinstance(other, EvaluatedModel):
        pixels = other.preprocessing.pixels
        look = replace(bundle.manifest.preprocessing, pixels=pixels)
        return replace(other, preprocessing=look)
    look = bundle.manifest.preprocessing
    if other.inputs[0].dtype == "float32" and are_channels_last(other.inputs[0].shape):
        other = ChannelsFirst(other, other.inputs[0].name)
    before = meant_before_end(bundle.manifest, other.outputs)
    other = laid_out(other, other.outputs, before or bundle.manifest.onnx.outputs[0])
    takes = other.inputs[0].dtype
    if look.pixels is not None and takes != look.pixels.dtype:
        look = look.as_floats
    head = _head_of_file(bundle, other.outputs[0], is_original=before is not None)
    return EvaluatedModel(other, look, head)


def _judged_as(head: Head, other: EvaluatedModel | None) -> EvaluatedModel | None:
    """The model beside a bundle; of the same kind, it says yes from the same probability up."""
    if other is None or other.head is None or other.head.name != head.name:
        return other
    if head.threshold is None:
        return other
    return replace(other, head=other.head.with_threshold(head.threshold))


def _head_of_file(bundle: Bundle, output: TensorSpec, *, is_original: bool) -> Head | None:
    """What a file gives: as the bundle, or as the bundle did before its result was put behind it.

    ``None`` is the bundle's own head.
    """
    found = bundle.manifest.conversion.get("result", {})
    if not found.get("added") or (output.name in found["outputs"] and not is_original):
        return None
    return head_of(bundle.manifest.head).applied(found.get("before", "none"))


def _open_reference(path: Path, stack: ExitStack, opening: _Opening) -> EvaluatedModel | Runner:
    if path.is_dir():
        return _evaluated(stack.enter_context(_open_model(path, opening)))
    # Weights beside what a link leads to are found there; in a cache of links, beside the link.
    real = path.resolve()
    graph = path if real.parent.name == "blobs" else real
    return stack.enter_context(graph_judge().open(graph, GraphOptions(threads=opening.threads)))


def _evaluated(opened: _Opened) -> EvaluatedModel:
    """A bundle with its own preprocessing and its own head."""
    manifest = opened.bundle.manifest
    return EvaluatedModel(opened.runner, manifest.preprocessing, head_of(manifest.head))


def _open_other(path: Path, bundle: Bundle, stack: ExitStack, opening: _Opening) -> EvaluatedModel:
    """A model to compare with; an ``.onnx`` file does not say how it is fed: as the bundle is."""
    if path.is_dir():
        return _evaluated(stack.enter_context(_open_model(path, opening)))
    from deploykit import graph

    own = bundle.manifest.preprocessing
    artifact = graph.read_artifact(path)
    same = artifact.inputs[:1] and _is_fed_alike(artifact.inputs[0], bundle)
    takes = [_takes(tensor, own.image_shape) for tensor in artifact.inputs]
    if not (takes == [True] or (same and len(takes) == 1)):
        found = ", ".join(f"{one.name} {one.dtype} {one.shape_text}" for one in artifact.inputs)
        raise UsageError(
            f"{path.name} takes {found or 'nothing'}, the bundle float32 images "
            f"{own.image_shape}\n"
            "an .onnx is fed as the bundle is: export it, and compare with its own bundle"
        )
    runner = graph_judge().open_artifact(artifact, threads=opening.threads)
    return _fed_as(bundle, stack.enter_context(runner))


def _is_fed_alike(tensor: TensorSpec, bundle: Bundle) -> bool:
    """Whether a file takes bytes as the bundle does."""
    pixels, own = bundle.manifest.preprocessing.pixels, bundle.manifest.onnx.inputs[0]
    return pixels is not None and (tensor.dtype, tensor.shape[1:]) == (own.dtype, own.shape[1:])


def _takes(tensor: TensorSpec, image: tuple[int, ...]) -> bool:
    """Whether it takes images (C, H, W) in floats, with the channels first or last."""
    if are_channels_last(tensor.shape):
        tensor = tensor.channels_first()
    sizes = tensor.shape[1:]
    fits = (
        isinstance(has, str) or has == wanted for has, wanted in zip(sizes, image, strict=False)
    )
    return tensor.dtype == "float32" and len(sizes) == len(image) and all(fits)
