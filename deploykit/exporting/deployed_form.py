"""The form that is deployed, made around a graph that is verified: bytes in, results out.

Both are put around the graph that is converted already, so that ranges, trials and comparisons are
those of the network itself. What is made is compared again: with bytes that the prepared images
were made of, and with what numpy makes of the answers that were expected before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from deploykit.backends import GraphOptions
from deploykit.backends._registry import graph_judge
from deploykit.comparison.converted import validate_converted
from deploykit.comparison.validation import outputs_of, validate
from deploykit.core.deployed import require_normalisation
from deploykit.core.precision import Precision
from deploykit.core.serialization import to_plain
from deploykit.graph import LoadedGraph, write_graph
from deploykit.graph.byte_input import take_bytes
from deploykit.graph.card import card_in
from deploykit.graph.results import end_in
from deploykit.heads import head_named
from deploykit.heads._results import End, end_for
from deploykit.images.byte_images import bytes_of, floats_of

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from deploykit.comparison.reference import Reference
    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.core.choices import PreprocessingChoices
    from deploykit.core.deployed import DeployedForm
    from deploykit.core.progress import Journal
    from deploykit.core.specs import ModelSpec, PixelInput, Preprocessing
    from deploykit.precision import Batches, Converted


def require_form(
    source: ModelSpec | Path, form: DeployedForm, choices: PreprocessingChoices
) -> None:
    """Refuse what the network cannot be deployed as, as far as it shows before it is built.

    Raises:
        UsageError: bytes for a network of which nobody said how they are normalised, or of other
            channels; a result that the head does not have.
        ModelFileError: an ``.onnx`` file cannot be read.
    """
    if form.pixels is not None:
        require_known_normalisation(source, choices)
        if not isinstance(source, Path):
            form.pixels_for(source.preprocessing)
    if form.result is not None and not isinstance(source, Path) and source.head is not None:
        end_for(head_named(source.head), source.outputs[0].shape, form.result)


def require_known_normalisation(source: ModelSpec | Path, choices: PreprocessingChoices) -> None:
    """As `require_normalisation`, for a definition or an ``.onnx`` file.

    Raises:
        UsageError: nobody said how pixels are normalised.
        ModelFileError: the file's own metadata are not as deploykit writes them.
    """
    if isinstance(source, Path):
        known = card_in(source).knows_normalisation
    else:
        known = not source.preprocessing_assumed
    require_normalisation(source.name, choices, known=known)


@dataclass(frozen=True, slots=True)
class Around:
    """What is put around a graph: bytes before it, an end behind it."""

    preprocessing: Preprocessing
    end: End
    before: str = "none"
    """The activation that the graph ends in without it."""

    behind: str = ""
    """The output that the end is put behind."""

    @classmethod
    def of(cls, reference: Reference, form: DeployedForm) -> Around:
        """For a verified graph.

        Raises:
            UsageError: the head has no such result, or the bytes are of other channels.
        """
        first = reference.artifact.outputs[0]
        wanted = form.result
        end = End("") if wanted is None else end_for(reference.head, first.shape, wanted)
        known = reference.preprocessing
        look = replace(known, pixels=form.pixels_for(known))
        return cls(look, end, reference.head.activation, first.name)

    @property
    def is_nothing(self) -> bool:
        """Whether the graph stays as it is."""
        return self.pixels is None and not self.end.operators

    @property
    def pixels(self) -> PixelInput | None:
        """How the graph takes bytes, if it does."""
        return self.preprocessing.pixels

    @property
    def words(self) -> str:
        """Of the graph with it, in a sentence."""
        parts = ["bytes"] if self.pixels is not None else []
        parts += [self.end.wanted] if self.end.operators else []
        return " and ".join(parts)

    def put(self, model: ir.Model) -> ir.Model:
        """A copy of ``model`` with both."""
        if self.pixels is not None:
            model = take_bytes(model, self.preprocessing)
        if self.end.operators:
            model = end_in(model, self.end.operators, self.end.names, self.end.count)
        return model

    def images(self, batches: Batches) -> Batches:
        """Prepared images as the graph takes them."""
        if self.pixels is None:
            return batches
        # Of another type, which whoever passes batches on does not look at.
        return cast("Batches", [bytes_of(batch, self.preprocessing) for batch in batches])

    def are_exact(self, batches: Batches, images: Batches) -> bool:
        """Whether prepared images are again made of ``images``, bit for bit."""
        return self.pixels is None or all(
            np.array_equal(floats_of(made, self.preprocessing), batch)
            for made, batch in zip(_bytes(images), batches, strict=True)
        )

    def outputs(self, outputs: Batches) -> Batches:
        """What the end makes of the values (N, ...) that it is put behind."""
        return self.end.first_of(outputs) if self.end.operators else outputs

    def as_written(self, artifact: OnnxArtifact) -> Around:
        """With the names that the end has in a graph, where others had taken those asked for."""
        names = tuple(spec.name for spec in artifact.outputs[: len(self.end.names)])
        return replace(self, end=replace(self.end, names=names))

    def record(self) -> dict[str, Any]:
        """For the manifest."""
        found: dict[str, Any] = {}
        if self.pixels is not None:
            found["input"] = to_plain(self.pixels)
        if self.end.wanted:
            found["result"] = {
                "asked": self.end.wanted,
                "before": self.before,
                "behind": self.behind,
                "added": list(self.end.operators),
                "outputs": list(self.end.names) if self.end.operators else [],
            }
        return found


def put_around(
    around: Around, reference: Reference, converted: Converted, journal: Journal
) -> tuple[Reference, Converted]:
    """Write both graphs again with what is put around them, and compare them.

    Raises:
        ValidationError: what is made is not the model any more.
    """
    if around.end.wanted and not around.end.operators:
        journal.notes.append(
            f"the graph ends in {around.end.wanted} already: nothing was put behind it"
        )
    if around.is_nothing:
        return reference, _recorded(converted, around)
    with journal.stage(f"put {around.words} around it"):
        whole = _expected(around, reference, reference.batches, reference.outputs)
        compared = _expected(around, reference, *converted.compared)
        shared = converted.artifact.path == reference.artifact.path
        given = converted.graph or LoadedGraph(converted.artifact)
        made = None if shared else _written(around, given)
        graph = _written(around, reference.graph)
        name = str(graph.artifact.outputs[0].name)
        reference = replace(
            reference,
            graph=graph,
            batches=whole[0],
            outputs=whole[1],
            preprocessing=around.preprocessing,
            head=reference.head.applied(around.end.activation)
            if around.end.operators
            else reference.head,
            output=name if around.end.operators else reference.output,
        )
        _require_same(reference, around)
        graph = graph if made is None else made
        report, notes = validate_converted(
            reference.runners,
            graph,
            compared,
            names=(f"the {graph.artifact.precision} graph of {around.words}", _judge(converted)),
            head=reference.head,
        )
        report.require_pass()
    journal.notes += notes
    # What these numbers cannot show was compared on the values before the end already.
    report = replace(report, blind_spots=())
    converted = replace(
        converted,
        artifact=graph.artifact,
        graph=graph,
        reports=(*converted.reports, report),
        compared=compared,
    )
    return reference, _recorded(converted, around.as_written(graph.artifact))


def _recorded(converted: Converted, around: Around) -> Converted:
    return replace(converted, conversion={**converted.conversion, **around.record()})


def _judge(converted: Converted) -> str:
    """Whose answers the conversion was compared with last."""
    return converted.reports[-1].reference


def _written(around: Around, graph: LoadedGraph) -> LoadedGraph:
    artifact = graph.artifact
    parents = (artifact.sha256, *artifact.parents)
    return write_graph(around.put(graph.model), artifact.path, artifact.precision, parents)


def _require_same(reference: Reference, around: Around) -> None:
    with reference.runners.open(reference.artifact.path) as runner:
        found = outputs_of(runner, reference.batches)
    names = f"the fp32 graph of {around.words}", reference.made_by
    judged = validate(
        found, reference.outputs, precision=Precision.FP32, names=names, head=reference.head
    )
    judged.require_pass()


def _expected(
    around: Around, reference: Reference, batches: Batches, outputs: Batches
) -> tuple[Batches, Batches]:
    """Images as the graph takes them, and what it must give for each.

    Where they are not those that the answers belong to (tensors that were never bytes, or values
    beside images, which are chosen by an image's content), the verified graph answers anew.
    """
    images = around.images(batches)
    side = reference.runners.side
    if not around.are_exact(batches, images) or (side.rows and around.pixels is not None):
        outputs = _answers(around, reference, images)
    return images, around.outputs(outputs)


def _answers(around: Around, reference: Reference, images: Batches) -> Batches:
    side = reference.runners.side
    with graph_judge().open(reference.artifact.path, GraphOptions()) as runner:
        feed, result = reference.artifact.inputs[0].name, reference.artifact.outputs[0].name
        return [
            runner.run({feed: floats_of(each, around.preprocessing), **side.beside(each)})[
                result
            ].astype(np.float32)
            for each in _bytes(images)
        ]


def _bytes(images: Batches) -> list[NDArray[np.uint8]]:
    """Images as `Around.images` gives them for a graph of bytes."""
    return cast("list[NDArray[np.uint8]]", images)
