"""A user's own ``.onnx`` file: what it takes, and the graph that later stages rely on."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from deploykit.comparison.reference import Reference, Runners
from deploykit.comparison.validation import require_numbers, validate
from deploykit.core.deployed import PROBABILITIES
from deploykit.core.errors import ModelFileError, UsageError, ValidationError
from deploykit.core.precision import Precision
from deploykit.core.sizes import GREY, RGB, ShapeProfile, are_channels_last, are_images, image_among
from deploykit.core.specs import Preprocessing
from deploykit.graph import (
    LoadedGraph,
    declare_ranks,
    first_look,
    fold,
    fuse_written_out,
    mended_of,
    open_batch,
    plain,
    put_channels_first,
    put_first,
    put_image_first,
    raise_opset,
    read_graph,
    read_tails,
    require_usable,
    tidy,
    write_graph,
)
from deploykit.graph.card import card_of
from deploykit.graph.own_scaling import own_scaling
from deploykit.heads.multiclass import MULTICLASS
from deploykit.images.batching import BATCHES, sample_batches
from deploykit.images.side_inputs import SideInputs, require_per_image
from deploykit.sources.cards import (
    as_written,
    notes_on_card,
    notes_on_scaling,
    require_channels,
    require_floats,
    wished,
)
from deploykit.sources.definition import notes_on_images
from deploykit.sources.head_choice import choose_output
from deploykit.sources.image_sizes import (
    note_of_sizes,
    other_sizes,
    preferred_size,
    recorded_sizes,
    sample_other_sizes,
)
from deploykit.sources.onnx_outputs import (
    answers_of,
    answers_one_by_one,
    other_problems,
    outputs_in,
    settled,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import onnx_ir as ir
    from onnx_ir import Model

    from deploykit.comparison.validation import ValidationReport
    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.core.progress import Journal
    from deploykit.core.specs import Runner, SplitGraph, TensorSpec
    from deploykit.graph import ChannelsMoved, Tail
    from deploykit.graph.card import Card
    from deploykit.heads import Head
    from deploykit.sources.definition import SourceOptions
    from deploykit.sources.head_choice import OutputChoice, Wish
    from deploykit.sources.onnx_outputs import Answers, Images


ORIGINAL = "the original file"


@dataclass(frozen=True)
class StepCheck:
    """Images, and what the untouched original answers to them in all of its outputs."""

    batches: list[Images]
    answers: list[Answers]
    output: str
    """The output that is judged, and what it means."""
    head: Head = MULTICLASS

    @property
    def expected(self) -> list[Images]:
        """The judged output of each batch."""
        return outputs_in(self.answers, self.output)


@dataclass
class OwnGraph:
    """A user's graph on its way: the last form that was proven, which lies at ``path``."""

    model: ir.Model
    open_original: Callable[[], Runner]
    path: Path
    parents: tuple[str, ...]
    compared: StepCheck
    runners: Runners
    graph: LoadedGraph = field(init=False)
    report: ValidationReport = field(init=False)
    done: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.graph, self.report = self._proven(self.model, self.compared)

    @property
    def artifact(self) -> OnnxArtifact:
        """The file of that form."""
        return self.graph.artifact

    def attempt(
        self,
        name: str,
        step: Callable[[ir.Model], ir.Model],
        journal: Journal,
        compared: StepCheck | None = None,
    ) -> bool:
        """Go on with what ``step`` makes of the graph, if it computes what the original does.

        ``compared`` are other images than before. Where the step cannot be done or is wrong, the
        graph stays as it was, and a note says why.
        """
        wanted = compared or self.compared
        try:
            with journal.stage(name):
                changed = step(self.model)
                if changed is self.model:
                    return False
                tidy(changed, rename=False)
                found = self._proven(changed, wanted)
        except (ModelFileError, ValidationError) as exc:
            reason = " ".join(str(exc).splitlines())
            journal.notes.append(f"{name} was left out: {reason}")
            self.graph = write_graph(self.model, self.path, Precision.FP32, self.parents)
            return False
        self.done.append(f"{name} ({_difference(self.model, changed, wanted)})")
        self.model, self.compared = changed, wanted
        self.graph, self.report = found
        return True

    def notes(self) -> list[str]:
        """What was done to the file, for the user."""
        return [f"done to the graph, and proven: {', '.join(self.done)}"] if self.done else []

    def _proven(self, model: ir.Model, compared: StepCheck) -> tuple[LoadedGraph, ValidationReport]:
        graph = write_graph(model, self.path, Precision.FP32, self.parents)
        with self.runners.open(self.path) as runner:
            answers = answers_of(runner, compared.batches)
        got = outputs_in(answers, compared.output)
        names = ("the fp32 graph", ORIGINAL)
        report = validate(
            got, compared.expected, precision=Precision.FP32, names=names, head=compared.head
        )
        report.require_pass()
        problems = other_problems(answers, compared.answers, compared.output)
        if problems:
            raise ValidationError(
                f"the fp32 graph does not compute what {ORIGINAL} computes:\n{problems[0]}"
            )
        return graph, report


def _difference(before: ir.Model, after: ir.Model, compared: StepCheck) -> str:
    opsets = [model.graph.opset_imports.get("", 0) for model in (before, after)]
    if opsets[0] != opsets[1]:
        return f"from {opsets[0]} to {opsets[1]}"
    if before.graph.inputs[0].shape != after.graph.inputs[0].shape:
        sizes = ", ".join(str(len(batch)) for batch in compared.batches)
        return f"run at batches {sizes}, image by image"
    return f"{len(before.graph)} nodes became {len(after.graph)}"


_OPENING: Final = "opening the batch"


def from_onnx(
    original: Path,
    path: Path,
    journal: Journal,
    source_options: SourceOptions,
    profile: ShapeProfile | None = None,
) -> Reference:
    """A user's own FP32 network in the form that conversions rely on, written to ``path``.

    An old opset is raised, a fixed batch opened and constants are folded; onnxruntime on the
    untouched file is the reference of each step, and a step that cannot be proven is left out.
    ``profile`` says the sizes of what is open; a batch that is fixed at its only one stays. What
    the file takes beside images is as ``source_options``, or noise.

    Raises:
        ModelFileError: not a readable FP32 model with one image input, or one that TensorRT
            cannot compile.
        UsageError: height or width is open and ``profile`` does not say its size, or is fixed and
            it does; or nobody can guess what an input beside the images takes.
        DataError: the values for these inputs do not fit.
        ValidationError: the graph computes something else once it is tidied.
    """
    with journal.stage("read"):
        source, model, runnable, card = _read(original, journal)
        image, is_last = require_image_classifier(source)
        known = as_written(card, assumed_preprocessing(original.name, image, profile))
        profile = profile or ShapeProfile()
        preprocessing = source_options.choices.preprocessing.applied_to(known)
        runners = Runners(side_inputs_of(source, image, source_options.choices.side_inputs))
        batches = _sample(image, preprocessing, source_options, profile)
        opener = partial(runners.open_channels_last, image=image.name) if is_last else runners.open
        open_original = partial(opener, runnable)
        wish = wished(source_options.wish, card, source)
        asked = _ask_original(original.name, open_original(), read_tails(model), batches, wish)
        compared, choice = asked
        if is_last:
            moved = put_channels_first(model, image.name)
            journal.notes.append(_note_of_channels(source, image, moved))
        declare_ranks(model, {name: got.ndim for name, got in compared.answers[0].items()})
        put_image_first(model, image.name)
        _put_meant_first(model, choice)
    with journal.stage("validate fp32"):
        parents = (source.sha256, *source.parents)
        own = OwnGraph(model, open_original, path, parents, compared, runners)
        own.done += ["putting the channels first"] if is_last else []
    journal.notes += notes_on_images(source_options, preprocessing)
    journal.notes += notes_on_card(card, original.name, source_options, preprocessing, source)
    journal.notes += notes_on_scaling(card, source_options, own_scaling(model, image.name))
    journal.notes += [*note_of_sizes(image, profile), *runners.side.notes(), *choice.notes()]
    own.attempt("raising the opset", raise_opset, journal)
    single = sample_batches(preprocessing, source_options.data, BATCHES, source_options.max_pixels)
    _open_batch(own, image, single, profile, journal, choice)
    own.attempt("folding constants", fold, journal)
    own.attempt("fusing written-out operators", fuse_written_out, journal)
    journal.notes += own.notes()
    return Reference(
        graph=own.graph,
        batches=own.compared.batches,
        outputs=own.compared.expected,
        made_by=ORIGINAL,
        report=own.report,
        model={
            "name": original.stem,
            "image_size": list(preprocessing.crop),
            **recorded_sizes(image, profile),
            **runners.recorded,
        },
        weights={"source": original.name, "sha256": source.sha256, "trained": True},
        preprocessing=preprocessing,
        labels=card.classes,
        conversion={"steps": own.done} | _recorded_chances(choice),
        runners=runners,
        head=choice.head,
        output=choice.name,
    )


def _put_meant_first(model: Model, choice: OutputChoice) -> None:
    put_first(
        model,
        choice.name,
        flatten=not choice.flat,
        batch_axis=choice.batch_axis,
        single=choice.single,
    )


def _recorded_chances(choice: OutputChoice) -> dict[str, str]:
    return {} if choice.chances is None else {PROBABILITIES: choice.chances}


def _read(original: Path, journal: Journal) -> tuple[OnnxArtifact, Model, Path | SplitGraph, Card]:
    """The description of the file, its graph without functions and constant branches, and itself.

    The third is what a runner opens: the file, or its graph with the dimensions that it was read
    with where a runtime would take those of the file literally. The last is what the file says of
    itself.
    """
    first_look(original)
    read = read_graph(original)
    card = card_of(read.model.metadata_props, original.name)
    require_floats(original.name, card, read.model)
    mended = mended_of(read.model)
    journal.notes += mended.notes
    require_usable(read.model, original.name)
    runnable = read.artifact.path if mended.runs_as_written else read.split()
    return read.artifact, plain(read.model, original.name), runnable, card


def _sample(
    image: TensorSpec,
    preprocessing: Preprocessing,
    source_options: SourceOptions,
    profile: ShapeProfile,
) -> list[Images]:
    """Images in the batches that the file takes, and of other sizes where it takes these."""
    fixed = image.fixed_batch
    data, max_pixels = source_options.data, source_options.max_pixels
    counts = BATCHES if fixed is None else (fixed,)
    few = BATCHES[1] if fixed is None else fixed
    sizes = other_sizes(image, profile)
    return [
        *sample_batches(preprocessing, data, counts, max_pixels),
        *sample_other_sizes(sizes, preprocessing, data, few, max_pixels),
    ]


def _ask_original(
    name: str,
    opened: Runner,
    tails: Mapping[str, Tail],
    batches: list[Images],
    wish: Wish,
) -> tuple[StepCheck, OutputChoice]:
    """What the original answers to ``batches``, and which of its outputs is meant."""
    with opened as runner:
        answers = answers_of(runner, batches)
        fixed = runner.inputs[0].fixed_batch
        choice = choose_output(name, runner.outputs, answers, tails, wish, fixed)
    compared = StepCheck(batches, settled(answers, choice), choice.name, choice.head)
    require_numbers(compared.expected, ORIGINAL)
    return compared, choice


def _open_batch(
    own: OwnGraph,
    image: TensorSpec,
    batches: list[Images],
    profile: ShapeProfile,
    journal: Journal,
    choice: OutputChoice,
) -> None:
    """Let a fixed batch take any number of images, held against the original image by image."""
    fixed = image.fixed_batch
    if fixed is None:
        return
    if fixed == profile.min_batch == profile.max_batch:
        journal.notes.append(f"the batch stays {fixed}, as --batch {fixed} asks")
        return
    try:
        with own.open_original() as runner:
            answers = answers_one_by_one(runner, batches, fixed, choice)
    except ModelFileError as exc:
        opened = False
        journal.notes.append(f"{_OPENING} was left out: {exc}")
    else:
        compared = StepCheck(batches, answers, own.compared.output, own.compared.head)
        opened = own.attempt(_OPENING, open_batch, journal, compared)
    if not opened:
        journal.notes.append(f"the batch stays {fixed}: every call takes so many images at once")


def _note_of_channels(source: OnnxArtifact, image: TensorSpec, moved: ChannelsMoved) -> str:
    written = next(spec for spec in source.inputs if spec.name == image.name)
    done = "its Transpose in front is dropped" if moved.dropped else "it had no Transpose to drop"
    if moved.transposed:
        first, *others = moved.transposed
        more = f" and {len(others)} more" if others else ""
        done += f", one was put before {first}{more}"
    return (
        f"{source.path.name} takes images {written.shape_text}, with channels last: "
        f"the graph takes {image.shape_text}, {done}"
    )


def require_image_classifier(source: OnnxArtifact) -> tuple[TensorSpec, bool]:
    """The image input (N, C, H, W) of an FP32 classifier, and whether its channels are last there.

    Raises:
        ModelFileError: it is converted already, or takes no images.
    """
    if not source.precision.facts.is_source:
        raise ModelFileError(
            f"{source.path.name} is already {source.precision}; "
            "deploykit converts from FP32: give it the FP32 model"
        )
    return laid_image(source.path.name, source.inputs)


def laid_image(name: str, inputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, bool]:
    """As `require_image`, also of a model that takes images (N, H, W, C), and whether it does.

    Raises:
        ModelFileError: it takes no images.
    """
    image = _image_among(inputs)
    if image is not None and are_channels_last(image.shape):
        return image.channels_first(), True
    return require_image(name, inputs), False


def _image_among(inputs: tuple[TensorSpec, ...]) -> TensorSpec | None:
    # With the others, so that a mask beside the numbers of words is no image.
    shapes = {spec.name: spec.shape if spec.dtype == "float32" else () for spec in inputs}
    name = image_among(shapes)
    return next((spec for spec in inputs if spec.name == name), None)


def require_image(name: str, inputs: tuple[TensorSpec, ...]) -> TensorSpec:
    """The image input of a model that is called ``name``; the first where there are several.

    Of images in colours and grey ones it is the former.

    Raises:
        ModelFileError: it takes no images.
    """
    image = _image_among(inputs)
    if image is not None and are_images(image.shape):
        return image
    found = ", ".join(f"{t.name} {t.dtype} {t.shape_text}" for t in inputs) or "nothing"
    raise ModelFileError(
        f"{name} takes {found}\nexpected images, float32 (batch, 3, H, W), or grey (batch, 1, H, W)"
        f"{_advice(inputs)}"
    )


def image_of(name: str, inputs: tuple[TensorSpec, ...], known: Preprocessing | None) -> TensorSpec:
    """As `require_image`, or the bytes of a file that is ``known`` to take them, channels first.

    Raises:
        ModelFileError: it takes no images.
    """
    pixels = None if known is None else known.pixels
    if pixels is not None and inputs and inputs[0].dtype == pixels.dtype:
        first, is_last = inputs[0], pixels.layout == "nhwc"
        if is_last and are_channels_last(first.shape):
            return first.channels_first()
        if not is_last and are_images(first.shape):
            return first
    return require_image(name, inputs)


def preprocessing_of(card: Card, name: str, image: TensorSpec) -> Preprocessing:
    """What the file says, at the size of ``image`` (N, C, H, W); else what is assumed.

    Raises:
        UsageError: height or width is open, and the file does not say its size either.
        ModelFileError: what it says is for another number of channels.
    """
    if card.preprocessing is not None and any(isinstance(dim, str) for dim in image.shape[2:]):
        require_channels(card.preprocessing, image.shape[1])
        return card.preprocessing
    return as_written(card, assumed_preprocessing(name, image))


def side_inputs_of(source: OnnxArtifact, image: TensorSpec, given: Path | None) -> SideInputs:
    """Values for what ``source`` takes beside its images: those of a file, or noise.

    Raises:
        ModelFileError: they have not one entry for each image.
        UsageError: a file is given for a model of images alone; or there is none, and nobody can
            guess the values.
        DataError: the file does not fit.
    """
    require_per_image(source.inputs, image)
    if given is None:
        return SideInputs.noise(source.inputs, image)
    if len(source.inputs) == 1:
        raise UsageError(
            f"{source.path.name} takes images alone\n"
            f"leave out --side-inputs {given}: it is for models of several inputs"
        )
    return SideInputs.read(given, source.inputs, image)


def _advice(inputs: tuple[TensorSpec, ...]) -> str:
    """What to do about inputs that are no images, one line; nothing where nobody can tell."""
    for tensor in inputs:
        if tensor.dtype == "uint8":
            return "\nlet it begin after the division by 255: deploykit prepares the images itself"
        if tensor.dtype != "float32":
            return f"\nexport it with a float32 input, {tensor.name} is {tensor.dtype}"
        if are_channels_last(tensor.shape):
            return (
                "\nits channels are last; deploykit export makes a graph of it that takes them "
                "first: compare that"
            )
        if len(tensor.shape) == 3:  # noqa: PLR2004 - channels, height, width
            ends = [dim for dim in (tensor.shape[0], tensor.shape[-1]) if dim in (GREY, RGB)]
            missing, channels = ("batch", ends[0]) if ends else ("channel", GREY)
            like = f"torch.zeros(1, {channels}, H, W)"
            return f"\nit has no {missing} axis; export it with one: {like}"
    return ""


def assumed_preprocessing(
    name: str, image: TensorSpec, profile: ShapeProfile | None = None
) -> Preprocessing:
    """`Preprocessing.assumed` at the size of ``image``, for files that do not say theirs.

    ``profile`` says the size that an open height or width is prepared to.

    Raises:
        UsageError: one is open, and nothing says its size.
    """
    channels = GREY if image.shape[1] == GREY else RGB
    return Preprocessing.assumed(preferred_size(name, image, profile), channels)
