"""`deploykit validate`: whether one artifact computes what another does, or where it departs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from deploykit import graph
from deploykit.backends import CPU
from deploykit.bundle.golden import floats_beside, limits_for, runners_of_bundle
from deploykit.bundle.manifest import REFERENCE
from deploykit.bundle.reading import read_bundles
from deploykit.comparison.converted import notes_on_every_value, open_as_engine
from deploykit.comparison.forms import Deployed, Forms, laid_out, with_first
from deploykit.comparison.layerwise import LayerReport, compare_layers
from deploykit.comparison.reference import Runners
from deploykit.comparison.validation import (
    ValidationReport,
    notes_on_samples,
    outputs_of,
    same_images,
    validate,
)
from deploykit.core.errors import BundleError, UsageError
from deploykit.core.html_tables import html_table
from deploykit.core.progress import Progress, SilentProgress
from deploykit.core.sizes import ShapeProfile
from deploykit.graph import mended_of
from deploykit.graph.card import card_of
from deploykit.graph.foreign import Mended
from deploykit.heads import head_of
from deploykit.images import notes_on_data
from deploykit.images.batching import batch_sizes, sample_batches
from deploykit.images.side_inputs import with_side_inputs
from deploykit.runtime.loading import load_opened, machine_for
from deploykit.sources.image_sizes import other_sizes, sample_other_sizes
from deploykit.sources.onnx_inputs import (
    assumed_preprocessing,
    comparable_image,
    image_of,
    preprocessing_of,
    side_inputs_of,
)
from deploykit.sources.onnx_outputs import heads_of_file, judge_others

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from deploykit.bundle.manifest import Bundle, Manifest
    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.core.specs import Preprocessing, Runner, TensorSpec
    from deploykit.heads import Head
    from deploykit.runtime.choice import Machine

    Batches = list[NDArray[np.float32]]


@dataclass(frozen=True)
class ComparisonReport:
    """The outputs of two artifacts, and if it was asked for each of their activations."""

    candidate: str
    reference: str
    outputs: ValidationReport
    layers: LayerReport | None
    notes: tuple[str, ...]
    others: tuple[ValidationReport, ...] = ()
    has_layers: bool = True
    """Whether the activations of the two can be compared: not where they differ in form."""

    @property
    def passed(self) -> bool:
        """Whether the outputs are within the limits of the candidate's precision."""
        return self.outputs.passed and all(one.passed for one in self.others)

    def _repr_html_(self) -> str:
        """The verdict and the figures of each batch, as notebooks show them."""
        verdict = "passed" if self.passed else "; ".join(self.outputs.problems)
        rows = (
            (str(one.batch), f"{one.min_cosine:.6f}", f"{one.max_relative:.2e}")
            for one in self.outputs.batches
        )
        return html_table(
            ("images", "least cosine", "largest relative error"),
            rows,
            title=f"{self.candidate} against {self.reference}: {verdict}",
            right=("images", "least cosine", "largest relative error"),
            notes=self.notes,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "candidate": self.candidate,
            "reference": self.reference,
            "passed": self.passed,
            "validation": self.outputs.to_dict(),
            "other_outputs": [one.to_dict() for one in self.others],
            "layers": None if self.layers is None else self.layers.to_dict(),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class ComparisonOptions:
    """What two artifacts are run on, and if their activations are compared too.

    ``batch`` images are run at once; by default 1, 2 and 5, and with ``layers`` one by one.
    ``side_inputs`` is an ``.npz`` with what the network takes beside images. ``fast`` leaves out an
    engine's rounding: a CPU computes in FP32. ``sizes`` has the height and width that both leave
    open: they are compared at all of them, their activations at the preferred one. ``device`` is
    that of `deploykit.load`: on "cuda" the candidate's engine is compared, and not its graph on the
    CPU; the reference runs on the CPU.
    """

    data: Path | None = None
    side_inputs: Path | None = None
    batch: int | None = None
    layers: bool = False
    fast: bool = False
    sizes: ShapeProfile = field(default_factory=ShapeProfile)
    device: str = CPU


def compare_artifacts(
    first: Path,
    second: Path | None,
    options: ComparisonOptions,
    progress: Progress | None = None,
    machine: Machine | None = None,
) -> ComparisonReport:
    """Run two bundles or ``.onnx`` files of one network on the same images.

    The one of the higher precision is the reference; of equals, ``second``. ``second`` is by
    default the FP32 graph that the bundle ``first`` keeps. Images are prepared as a bundle says,
    for two files as ImageNet's are. What the network takes beside images is as the options or a
    bundle have it, or noise.

    Raises:
        UsageError: nothing to compare with, two different networks, an impossible batch, or nobody
            can guess what they take beside images; or a device on which a lone file, or its
            activations, cannot be had.
        EngineIncompatibleError: the candidate has no engine that runs on the device.
        DataError: the values for what they take beside images do not fit.
        IntegrityError: a file of a bundle is not as it was written.
        ModelFileError: a file cannot be read or run, or takes no images.
        ValidationError: the outputs have different shapes, or no activation is in both.
    """
    shown = progress or SilentProgress()
    folders = [path for path in dict.fromkeys((first, second)) if path and path.is_dir()]
    if options.layers and options.device != CPU:
        raise UsageError(
            f"--layers with --device {options.device}: an engine shows none of its activations\n"
            "leave out one of the two"
        )
    here = machine_for(options.device, machine)
    return read_bundles(folders, lambda found: _compare(first, second, options, found, shown, here))


def _compare(
    first: Path,
    second: Path | None,
    options: ComparisonOptions,
    bundles: Mapping[Path, Bundle],
    shown: Progress,
    machine: Machine,
) -> ComparisonReport:
    candidate = _open(first, bundles)
    reference = _own_reference(first, bundles) if second is None else _open(second, bundles)
    sides = candidate, reference = _in_order(candidate, reference)
    names = candidate.name, reference.name
    _require_one_network(candidate, reference)
    forms = Forms.of([_deployed(side) for side in sides], layers=options.layers)
    counts = _counts(candidate, reference, options.batch)
    preprocessing, notes = _preprocessing(candidate, reference, options.sizes)
    preprocessing = replace(preprocessing, pixels=forms.pixels)
    runners = _runners(candidate, reference, options.side_inputs)
    of_files = (*candidate.mended.notes, *reference.mended.notes, *runners.side.notes())
    of_data = notes_on_data(options.data, compared=sum(counts))
    notes = (*notes, *forms.notes_on_images(), *of_files, *of_data)
    forms.require_images_alone(runners.side)
    _require_layers_alike(sides, options)
    precision = limits_for(candidate.artifact.precision, options.device)
    open_candidate = _opener(candidate, runners, options, machine)
    open_reference = partial(_runner, reference, runners, fast=options.fast)
    with shown.step("outputs"):
        batches = sample_batches(preprocessing, options.data, counts)
        usual = _smallest(batches, candidate, reference)
        batches += _of_other_sizes(candidate, preprocessing, options, counts)
        opened, is_laid_out = _laid_out(sides, forms, (open_candidate(), open_reference()))
        outputs = _alike(forms, opened, batches, preprocessing)
        head, beside, outputs = _meaning(sides, forms, outputs)
        compared = validate(*outputs, precision=precision, names=names, head=head)
        compared = compared.doubted(same_images(batches))
        openers = forms.openers((open_candidate, open_reference), preprocessing)
        others, more, _ = judge_others(
            reference.artifact,
            forms.meant_first(candidate.artifact),
            batches,
            compared.head,
            openers,
            known=_known_outputs(candidate, beside),
        )
        more += forms.notes_on_outputs()
        pair = (batches, outputs[1]) if forms.are_alike and not is_laid_out else None
        more += _notes_on_run(sides, runners, pair, compared, options)
        more += notes_on_samples(compared) if options.data is None else []
    found = None
    if options.layers:
        with shown.step("layers") as task:
            found = compare_layers(
                candidate.artifact,
                reference.artifact,
                usual,
                open_runner=runners.open_unoptimised,
                task=task,
            )
    has_layers = forms.are_alike and not any(side.is_last for side in sides)
    return ComparisonReport(*names, compared, found, (*notes, *more), others, has_layers)


def _known_outputs(candidate: _Side, beside: Mapping[str, Head]) -> dict[str, Head | None]:
    """What judges outputs beside the first: all, by their values, where nothing is converted.

    Of a conversion those values that it left near FP32.
    """
    if candidate.artifact.precision.facts.is_source:
        return {**dict.fromkeys(spec.name for spec in candidate.artifact.outputs), **beside}
    near = [] if candidate.bundle is None else floats_beside(candidate.bundle)
    return {**dict.fromkeys(near), **beside}


@dataclass(frozen=True)
class _Side:
    """One of the two, with its images as (N, C, H, W); a file may not say how it prepares them."""

    name: str
    artifact: OnnxArtifact
    image: TensorSpec
    is_last: bool = False
    """Whether its file takes images (N, H, W, C)."""
    bundle: Bundle | None = None
    manifest: Manifest | None = None
    """Of the bundle, also for the FP32 graph that it keeps, which has its form."""

    mended: Mended = field(default_factory=Mended)
    preprocessing: Preprocessing | None = None
    activation: str | None = None
    """What a file says that it ends in."""

    @property
    def others(self) -> list[str]:
        return sorted(spec.name for spec in self.artifact.inputs if spec.name != self.image.name)


def _deployed(side: _Side) -> Deployed:
    outputs = side.artifact.outputs
    return Deployed(side.name, side.preprocessing, outputs, side.manifest, side.activation)


def _open(path: Path, bundles: Mapping[Path, Bundle]) -> _Side:
    bundle = bundles.get(path)
    if bundle is None:
        read = graph.read_graph(path)
        card = card_of(read.model.metadata_props, path.name)
        side = _image_model(str(path), read.artifact, card.preprocessing)
        if card.preprocessing is not None:
            side = replace(side, preprocessing=preprocessing_of(card, path.name, side.image))
        activation = None if card.head is None else card.head.activation
        return replace(side, mended=mended_of(read.model), activation=activation)
    bundle.require_unchanged(bundle.model_path.name)
    manifest = bundle.manifest
    return _image_model(str(path), manifest.onnx, manifest.preprocessing, bundle)


def _own_reference(first: Path, bundles: Mapping[Path, Bundle]) -> _Side:
    bundle = bundles.get(first)
    if bundle is None:
        raise UsageError(
            f"there is nothing to compare {first} with\n"
            "name a second bundle or .onnx file: deploykit validate A B"
        )
    kept = bundle.folder / REFERENCE
    if not kept.is_file() or REFERENCE not in bundle.manifest.files:
        raise BundleError(
            f"{first} keeps no {REFERENCE}: it is FP32 itself, or the file was deleted\n"
            f"name what to compare it with: deploykit validate {first} OTHER"
        )
    bundle.require_unchanged(REFERENCE)
    # It has the form of the bundle, and no card that says so.
    artifact = graph.read_artifact(kept)
    kept_one = _image_model(str(kept), artifact, bundle.manifest.preprocessing)
    return replace(kept_one, manifest=bundle.manifest)


def _image_model(
    name: str, artifact: OnnxArtifact, known: Preprocessing | None, bundle: Bundle | None = None
) -> _Side:
    is_float = known is None or known.pixels is None
    if bundle is None and is_float:
        image, is_last = comparable_image(name, artifact)
    else:
        image, is_last = image_of(name, artifact.inputs, known), False
    manifest = None if bundle is None else bundle.manifest
    return _Side(name, artifact, image, is_last, bundle, manifest, preprocessing=known)


def _runners(candidate: _Side, reference: _Side, side_inputs: Path | None) -> Runners:
    """Both sides get the same values: those given, or those that one of them keeps."""
    bundles = [side.bundle for side in (candidate, reference) if side.bundle is not None]
    if side_inputs is None and bundles:
        return runners_of_bundle(bundles[0])
    return Runners(side_inputs_of(candidate.artifact, candidate.image, side_inputs))


def _in_order(first: _Side, second: _Side) -> tuple[_Side, _Side]:
    """Candidate and reference."""
    left, right = (side.artifact.precision.facts.weight_bits for side in (first, second))
    return (first, second) if left <= right else (second, first)


def _require_one_network(candidate: _Side, reference: _Side) -> None:
    here, there = shapes = candidate.image.shape[1:], reference.image.shape[1:]
    # What an open dimension is called is each file's own business.
    sizes = {tuple(dim if isinstance(dim, int) else None for dim in shape) for shape in shapes}
    if len(sizes) > 1:
        raise UsageError(
            f"{candidate.name} takes images of {here}, {reference.name} of {there}\n"
            "expected two artifacts of one network"
        )
    if candidate.others != reference.others:
        raise UsageError(
            f"beside images {candidate.name} takes {candidate.others or 'nothing'}, "
            f"{reference.name} {reference.others or 'nothing'}\n"
            "expected two artifacts of one network"
        )


def _require_layers_alike(sides: tuple[_Side, _Side], options: ComparisonOptions) -> None:
    last = [side.name for side in sides if side.is_last]
    if options.layers and last:
        raise UsageError(
            f"--layers: {last[0]} takes images with channels last, and so are its activations\n"
            "leave --layers out; or export it in FP32, and compare with that bundle"
        )


def _counts(candidate: _Side, reference: _Side, batch: int | None) -> tuple[int, ...]:
    fixed = {side.image.fixed_batch for side in (candidate, reference)} - {None}
    if len(fixed) > 1 or (batch is not None and fixed and fixed != {batch}):
        each = [f"{s.name}: {s.image.fixed_batch or 'any'}" for s in (candidate, reference)]
        asked = "" if batch is None else f"; asked: {batch}"
        raise UsageError(
            f"no batch fits both, {', '.join(each)}{asked}\n"
            "export them with a dynamic batch, or leave --batch out if one is fixed"
        )
    return batch_sizes(next(iter(fixed), None)) if batch is None else (batch,)


def _preprocessing(
    candidate: _Side, reference: _Side, sizes: ShapeProfile
) -> tuple[Preprocessing, tuple[str, ...]]:
    known = candidate.preprocessing or reference.preprocessing
    if known is not None and not sizes.has_image_sizes:
        return known, ()
    assumed = assumed_preprocessing(candidate.name, candidate.image, sizes)
    if known is not None:
        return replace(known, crop=assumed.crop, resize=assumed.resize), ()
    note = f"preprocessing is assumed: {assumed.resize} px, crop {assumed.crop}"
    return assumed, (f"{note}, ImageNet mean and deviation",)


def _meaning(
    sides: tuple[_Side, _Side], forms: Forms, outputs: list[Batches]
) -> tuple[Head, dict[str, Head], list[Batches]]:
    """What the first output means, what judges those that say how likely its classes are, and both.

    As a bundle has them; of two lone files they are read from the reference.
    """
    for side in sides:
        if side.bundle is not None:
            return head_of(side.bundle.manifest.head), forms.beside, outputs
    return heads_of_file(sides[1].name, sides[1].artifact, outputs)


def _alike(
    forms: Forms, opened: tuple[Runner, Runner], batches: Batches, preprocessing: Preprocessing
) -> list[Batches]:
    """The outputs of both, each fed in its own form, with the end that the other one has."""
    found = []
    for place, one in enumerate(opened):
        with forms.fed(place, one, preprocessing) as runner:
            found.append(forms.outputs(place, outputs_of(runner, batches)))
    return found


def _laid_out(
    sides: tuple[_Side, _Side], forms: Forms, opened: tuple[Runner, Runner]
) -> tuple[tuple[Runner, Runner], bool]:
    """Both sides; a lone file beside a bundle gives the output that is meant in the bundle's form.

    One beside another file gives first what is first there. Also whether that changes the
    candidate.
    """
    if not any(side.bundle for side in sides):
        wanted = sides[1].artifact.outputs[0].name
        first = with_first(opened[0], sides[0].artifact.outputs, wanted)
        return (first, opened[1]), first is not opened[0]
    found = []
    for place, (side, other) in enumerate((sides, sides[::-1])):
        runner = opened[place]
        if side.bundle is None and other.bundle is not None:
            runner = laid_out(runner, side.artifact.outputs, forms.wanted(place))
        found.append(runner)
    first, second = found
    return (first, second), first is not opened[0]


def _opener(
    side: _Side, runners: Runners, options: ComparisonOptions, machine: Machine
) -> Callable[[], Runner]:
    """How the candidate is opened where it is to run."""
    if options.device == CPU:
        return lambda: _runner(side, runners, fast=options.fast)
    bundle = side.bundle
    if bundle is None:
        raise UsageError(
            f"{side.name} is a file, which has no engine to run with --device {options.device}\n"
            f"export it, and compare its bundle: deploykit export {side.name}"
        )

    def opened() -> Runner:
        model = load_opened(bundle, options.device, fast=options.fast, machine=machine)
        return with_side_inputs(model.as_runner(), runners.side)

    return opened


def _runner(side: _Side, runners: Runners, *, fast: bool) -> Runner:
    if side.is_last:
        split = graph.read_graph(side.artifact.path).split()
        return runners.open_channels_last(split, side.image.name)
    if side.mended.runs_as_written:
        return open_as_engine(runners, side.artifact, fast=fast)
    as_read = graph.read_graph(side.artifact.path)
    if side.artifact.needs_cpu_form:
        return open_as_engine(runners, as_read.artifact)
    quantized = side.artifact.precision.facts.quantized
    return (runners.open_unoptimised if quantized else runners.open)(as_read.split())


def _of_other_sizes(
    candidate: _Side,
    preprocessing: Preprocessing,
    options: ComparisonOptions,
    counts: tuple[int, ...],
) -> Batches:
    """A batch of each size beside the preferred one that the options ask for."""
    if not options.sizes.has_image_sizes:
        return []
    others = other_sizes(candidate.image, options.sizes)
    return sample_other_sizes(others, preprocessing, options.data, counts[len(counts) // 2])


def _notes_on_run(
    sides: tuple[_Side, _Side],
    runners: Runners,
    compared: tuple[Batches, Batches] | None,
    report: ValidationReport,
    options: ComparisonOptions,
) -> list[str]:
    """On what the candidate ran, in which arithmetic, and where an engine may compute otherwise.

    The last only of what was ``compared`` as the file gives it.
    """
    candidate, reference = sides
    if options.device != CPU:
        return [f"the engine of {candidate.name} ran, the reference on the CPU"]
    if candidate.artifact.precision.facts.is_source:
        return []
    if options.fast and not candidate.artifact.needs_cpu_form:
        return [f"the CPU computes in FP32, as asked, in {candidate.name}"]
    notes = [f"the CPU rounds where an engine rounds in {candidate.name}"]
    is_source = reference.artifact.precision.facts.is_source
    if is_source and candidate.mended.runs_as_written and compared is not None:
        loaded = graph.LoadedGraph(candidate.artifact)
        notes += notes_on_every_value(runners, loaded, compared, report)
    return notes


def _smallest(batches: Batches, *sides: _Side) -> Batches:
    """One image at a time, as long as no graph insists on more: it takes the least memory."""
    if any(side.image.fixed_batch for side in sides):
        return batches
    return [batch[at : at + 1] for batch in batches for at in range(len(batch))]
