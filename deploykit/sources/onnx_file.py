"""A user's own ``.onnx`` file: the graph that later stages rely on."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from deploykit.comparison.reference import Reference, Runners, WithBatch, with_batch
from deploykit.comparison.validation import require_numbers, validate
from deploykit.core.errors import ModelFileError, ValidationError
from deploykit.core.precision import Precision
from deploykit.core.sizes import ShapeProfile
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
from deploykit.images.batching import BATCHES, batch_sizes, sample_batches
from deploykit.sources.cards import (
    as_written,
    notes_on_card,
    notes_on_scaling,
    require_floats,
    wished,
)
from deploykit.sources.definition import notes_on_images
from deploykit.sources.head_choice import choose_output
from deploykit.sources.image_sizes import (
    note_of_sizes,
    other_sizes,
    recorded_sizes,
    sample_other_sizes,
)
from deploykit.sources.onnx_inputs import (
    assumed_preprocessing,
    require_image_classifier,
    side_inputs_of,
)
from deploykit.sources.onnx_outputs import (
    answers_of,
    answers_one_by_one,
    fixed_batch_of,
    notes_on_batches,
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
    from deploykit.core.specs import Preprocessing, Runner, SplitGraph, TensorSpec
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
    on_batches: list[str] | None = None
    """What is to be said of images that change one another's answers; found with the first form."""

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
        """What was done to the file, for the user, and how images change one another's answers."""
        done = [f"done to the graph, and proven: {', '.join(self.done)}"] if self.done else []
        return [*done, *(self.on_batches or [])]

    def _proven(self, model: ir.Model, compared: StepCheck) -> tuple[LoadedGraph, ValidationReport]:
        graph = write_graph(model, self.path, Precision.FP32, self.parents)
        with self.runners.open(self.path) as runner:
            answers = answers_of(runner, compared.batches)
            if self.on_batches is None:
                asked = compared.batches, answers, compared.head
                self.on_batches = notes_on_batches(runner, *asked)
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
        compared, choice, ranks = asked
        if is_last:
            moved = put_channels_first(model, image.name)
            journal.notes.append(_note_of_channels(source, image, moved))
        declare_ranks(model, ranks)
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
        conversion={"steps": own.done, **choice.beside},
        runners=runners,
        head=choice.head,
        output=choice.name,
    )


def _put_meant_first(model: Model, choice: OutputChoice) -> None:
    for name in [str(value.name) for value in reversed(model.graph.outputs)]:
        # In this order the outputs are at their places again.
        put_first(model, name, flatten=False, single=name in choice.lone)
    put_first(
        model,
        choice.name,
        flatten=not choice.flat,
        batch_axis=choice.batch_axis,
        single=choice.single,
    )


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
    few = BATCHES[1] if fixed is None else fixed
    sizes = other_sizes(image, profile)
    return [
        *sample_batches(preprocessing, data, batch_sizes(fixed), max_pixels),
        *sample_other_sizes(sizes, preprocessing, data, few, max_pixels),
    ]


def _ask_original(
    name: str,
    opened: Runner,
    tails: Mapping[str, Tail],
    batches: list[Images],
    wish: Wish,
) -> tuple[StepCheck, OutputChoice, dict[str, int]]:
    """What the original answers to ``batches``, which of its outputs is meant, and their ranks."""
    with opened as runner:
        answers = answers_of(runner, batches)
        fixed = fixed_batch_of(runner, batches[0], answers[0])
        choice = choose_output(name, runner.outputs, answers, tails, wish, fixed)
    ranks = {name: got.ndim for name, got in answers[0].items()}
    found = settled([with_batch(one, choice.lone) for one in answers], choice)
    compared = StepCheck(batches, found, choice.name, choice.head)
    require_numbers(compared.expected, ORIGINAL)
    return compared, choice, ranks


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
        with WithBatch(own.open_original(), choice.lone) as runner:
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
