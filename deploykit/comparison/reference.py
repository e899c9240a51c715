"""A verified FP32 graph with its answers, and the runners that open it and what is made of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.backends import GraphOptions
from deploykit.backends._registry import graph_judge
from deploykit.core.sizes import CHANNELS_LAST
from deploykit.core.specs import Closing
from deploykit.heads.multiclass import MULTICLASS
from deploykit.images.side_inputs import SideInputs, with_side_inputs

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.comparison.validation import ValidationReport
    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.core.specs import (
        Array,
        Preprocessing,
        Runner,
        SplitGraph,
        StepTimes,
        TensorSpec,
    )
    from deploykit.graph import LoadedGraph
    from deploykit.heads import Head

    Graph = Path | SplitGraph


class ChannelsFirst(Closing):
    """A runner that is fed images (N, C, H, W), of a model that takes ``image`` (N, H, W, C)."""

    def __init__(self, runner: Runner, image: str) -> None:
        self._runner = runner
        self._image = image

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs that the caller feeds."""
        return tuple(
            spec.channels_first() if spec.name == self._image else spec
            for spec in self._runner.inputs
        )

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Specs of the arrays that ``run`` returns."""
        return self._runner.outputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name for one batch."""
        return self._runner.run(self._turned(feeds))

    def run_timed(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], StepTimes]:
        """As ``run``, with the duration of each step."""
        return self._runner.run_timed(self._turned(feeds))

    def _turned(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        images = np.transpose(feeds[self._image], CHANNELS_LAST)
        return {**feeds, self._image: np.ascontiguousarray(images)}

    def close(self) -> None:
        """Close the runner below."""
        self._runner.close()


def with_batch(outputs: Mapping[str, Array], names: Collection[str]) -> dict[str, Array]:
    """The outputs with an axis for the one image in those of ``names``."""
    return {name: each[None] if name in names else each for name, each in outputs.items()}


class WithBatch(Closing):
    """A runner of a file for one image that gives its outputs ``names`` with an axis for it."""

    def __init__(self, runner: Runner, names: Collection[str]) -> None:
        self._runner = runner
        self._names = names

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs that the caller feeds."""
        return self._runner.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Specs of the arrays that ``run`` returns."""
        return tuple(
            replace(spec, shape=(1, *spec.shape)) if spec.name in self._names else spec
            for spec in self._runner.outputs
        )

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name for one image."""
        return with_batch(self._runner.run(feeds), self._names)

    def run_timed(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], StepTimes]:
        """As ``run``, with the duration of each step."""
        outputs, times = self._runner.run_timed(feeds)
        return with_batch(outputs, self._names), times

    def close(self) -> None:
        """Close the runner below."""
        self._runner.close()


@dataclass(frozen=True)
class Runners:
    """Opens all forms of one model, so that they have to be fed nothing but images.

    They run on the backend by which graphs are judged, whatever else is installed.
    """

    side: SideInputs = field(default_factory=SideInputs)

    def open(self, graph: Graph) -> Runner:
        """Run an FP32 or FP16 graph."""
        return self._open(graph, GraphOptions())

    def open_channels_last(self, graph: Graph, image: str) -> Runner:
        """Run a graph whose input ``image`` is (N, H, W, C), fed as all the others."""
        opened = graph_judge().open(graph, GraphOptions())
        # The values beside an image are chosen by its content as the caller has it.
        return with_side_inputs(ChannelsFirst(opened, image), self.side)

    def open_unoptimised(self, graph: Graph) -> Runner:
        """Run a Q/DQ graph as the standard has it.

        onnxruntime's default optimisations compute something else than TensorRT does: integer
        kernels with other rounding, and bias scales that underflow.
        """
        return self._open(graph, GraphOptions(optimise=False))

    def measuring(self, graph: Graph) -> Runner:
        """Run a graph that reduces each value to a number right behind it, and lets go of it."""
        return self._open(graph, GraphOptions(in_order=True))

    def measuring_unoptimised(self, graph: Graph) -> Runner:
        """As `measuring`, for a graph with Q/DQ pairs."""
        return self._open(graph, GraphOptions(in_order=True, optimise=False))

    def of_artifact(self, artifact: OnnxArtifact) -> Runner:
        """Run a graph in the way that fits its precision."""
        return with_side_inputs(graph_judge().open_artifact(artifact), self.side)

    def _open(self, graph: Graph, options: GraphOptions) -> Runner:
        return with_side_inputs(graph_judge().open(graph, options), self.side)

    @property
    def recorded(self) -> dict[str, Any]:
        """What the manifest says of a model's side inputs; nothing where it has none."""
        return {"side_inputs": self.side.source} if self.side.rows else {}


@dataclass(frozen=True)
class Reference:
    """A verified FP32 graph, the batches it was verified on, and what the original made of them.

    ``graph`` is handed from stage to stage, read or not; ``runners`` open it and what is made of
    it. ``head`` says what its first output means, which the original calls ``output``.
    """

    graph: LoadedGraph
    batches: list[NDArray[np.float32]]
    outputs: list[NDArray[np.float32]]
    made_by: str
    report: ValidationReport
    model: dict[str, Any]
    weights: dict[str, Any]
    preprocessing: Preprocessing
    labels: tuple[str, ...] | None = None
    conversion: dict[str, Any] = field(default_factory=dict)
    runners: Runners = field(default_factory=Runners)
    head: Head = MULTICLASS
    output: str | None = None

    @property
    def artifact(self) -> OnnxArtifact:
        """The file of the graph."""
        return self.graph.artifact
