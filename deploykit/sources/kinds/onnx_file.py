"""A user's own ``.onnx`` file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from deploykit.core.errors import ModelFileError, UsageError
from deploykit.sources.kinds._kind import TargetKind

if TYPE_CHECKING:
    from deploykit.core.choices import DefinitionChoices
    from deploykit.core.specs import ModelSpec

_SUFFIX: Final = ".onnx"


class OnnxFile(TargetKind):
    """A graph already: the file is the target."""

    is_graph = True

    def takes(self, target: str) -> bool:
        """Whether a file of this kind is named, which may not exist."""
        return target.endswith(_SUFFIX)

    def short_name(self, target: str) -> str:
        """The file's."""
        return Path(target).stem

    def digest(self, target: str) -> str | None:
        """With what lies in other files, for which the onnx package is needed."""
        path = Path(target)
        if not path.is_file():
            return None
        from deploykit import graph

        return graph.read_artifact(path).sha256

    def require(self, target: str) -> None:
        """Whether the file is there.

        Raises:
            ModelFileError: it is not.
        """
        if not Path(target).exists():
            raise ModelFileError(f"there is no file {target}")

    def spec(self, target: str, choices: DefinitionChoices) -> ModelSpec:  # noqa: ARG002 - a graph
        """Refused: there is no definition behind a graph.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            f"{target} is a graph, not a definition\n"
            "expected a name, a Python file with its factory or a folder of Hugging Face"
        )


KIND = OnnxFile()
