"""A graph on disk that stays in memory while stages work on it, so that it is read once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.core.artifacts import WEIGHTS_SUFFIX
from deploykit.graph.external_weights import split
from deploykit.graph.files import read_described, read_model, write_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import onnx_ir as ir

    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.core.precision import Precision
    from deploykit.core.specs import SplitGraph


class LoadedGraph:
    """An ONNX file and its model in memory, which is read when it is first needed.

    The file is what counts: the model is what was written to it or read from it, and nobody
    changes it. Whoever needs the memory calls ``release``; the next use reads the file again.
    """

    def __init__(self, artifact: OnnxArtifact, model: ir.Model | None = None) -> None:
        self.artifact = artifact
        self._model = model

    @property
    def model(self) -> ir.Model:
        """The model, not to be changed: clone it, weights are shared.

        Raises:
            ModelFileError: the file cannot be read any more.
        """
        if self._model is None:
            self._model = read_model(self.artifact.path)
        return self._model

    def release(self) -> None:
        """Let go of the model, which takes its size in memory; the file stays."""
        self._model = None

    def described(self, artifact: OnnxArtifact) -> LoadedGraph:
        """The same graph with another description of its file, in memory or not as this one."""
        return LoadedGraph(artifact, self._model)

    def split(self) -> SplitGraph:
        """The model for a runner, which shares its weights until it has loaded them.

        Raises:
            ModelFileError: it is larger than a message can be, even without its weights.
        """
        return split(self.model, self.artifact.path.name)


def read_graph(path: Path) -> LoadedGraph:
    """Read a file once, for its description and its model.

    Raises:
        ModelFileError: as `files.read_artifact`.
    """
    return LoadedGraph(*read_described(path))


def write_graph(
    model: ir.Model, path: Path, precision: Precision, parents: Sequence[str] = ()
) -> LoadedGraph:
    """Write ``model`` as `files.write_model` does; it must not be changed from then on.

    A model whose weights went to a file of their own is not kept: read again, these are mapped
    from that file, and take no memory that others could use.

    Raises:
        ModelFileError: ``onnx.checker`` refuses the graph, or it is too large without its weights.
    """
    artifact = write_model(model, path, precision, parents)
    is_apart = path.with_name(path.name + WEIGHTS_SUFFIX).exists()
    return LoadedGraph(artifact, None if is_apart else model)
