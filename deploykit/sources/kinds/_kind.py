"""The interface of a kind of TARGET, and which kind a target is of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from deploykit.core.artifacts import sha256_of
from deploykit.core.environment import require_installed
from deploykit.core.errors import UsageError
from deploykit.core.plugs import plug_object, plugs

if TYPE_CHECKING:
    from deploykit.core.choices import DefinitionChoices
    from deploykit.core.specs import ModelSpec

ROOM: Final = "sources.kinds"

FALLBACK: Final = "registered"
"""The kind of a target that no other one takes: it says which names there are."""


class TargetKind(ABC):
    """One way to name a network on the command line."""

    is_graph: ClassVar[bool] = False
    """Whether the target is the path of an ``.onnx`` file; otherwise torch exports it."""
    takes_arguments: ClassVar[bool] = False
    """Whether ``--factory-args`` reaches it."""
    library: ClassVar[str | None] = None
    """The package that its networks come from, whose version is a part of them."""

    @abstractmethod
    def takes(self, target: str) -> bool:
        """Whether ``target`` is of this kind; nothing is opened or imported to find out."""

    def short_name(self, target: str) -> str:
        """What ``target`` is called in tables and in the names of folders."""
        return target

    def digest(self, target: str) -> str | None:  # noqa: ARG002 - for kinds that have files
        """SHA-256 of the files that ``target`` is made from.

        ``None`` where a package brings them, whose version says it all.
        """
        return None

    def require(self, target: str) -> None:  # noqa: B027 - for kinds that can tell
        """Refuse what is seen to be wrong without a heavy import: a missing file, an unknown name.

        Raises:
            DeploykitError: as `spec`, or whatever reads the target, would later.
        """

    @abstractmethod
    def spec(self, target: str, choices: DefinitionChoices) -> ModelSpec:
        """The network with its choices made.

        Its ``published`` fetches what ``--weights imagenet`` asks for.

        Raises:
            UnknownNameError: there is no network of this name.
            UsageError: the network does not take these choices.
            MissingDependencyError: the package that it comes from is not installed.
        """


class LibraryKind(TargetKind):
    """A network of a library, by its name there behind a prefix."""

    library: ClassVar[str]

    @property
    def prefix(self) -> str:
        """The library's name and a colon."""
        return f"{self.library}:"

    def takes(self, target: str) -> bool:
        """Whether the prefix is there."""
        return target.startswith(self.prefix)

    def short_name(self, target: str) -> str:
        """The target with what a folder's name may have."""
        return target.replace(":", "-").replace("/", "-")

    def require(self, target: str) -> None:  # noqa: ARG002 - its names are known to the library
        """Whether the library is there, which takes seconds to import.

        Raises:
            MissingDependencyError: it is not installed.
        """
        require_installed(self.library)


def kind_for(target: str) -> TargetKind:
    """The first kind that takes ``target``, ours before those of installed packages."""
    for name in plugs(ROOM):
        kind = _load(name)
        if kind.takes(target):
            return kind
    return _load(FALLBACK)


def _load(name: str) -> TargetKind:
    kind: TargetKind = plug_object(ROOM, name, "KIND", TargetKind)
    return kind


def digest_of_file(path: Path) -> str | None:
    """SHA-256 of a file, ``None`` where there is none."""
    return sha256_of(path) if path.is_file() else None


def name_of_folder(target: str) -> str:
    """What a folder is called, or the target itself where there is no such folder."""
    path = Path(target)
    return path.resolve().name if path.is_dir() else target


def refuse_arguments(target: str, choices: DefinitionChoices) -> None:
    """Stop where a target without a factory is given arguments for one.

    Raises:
        UsageError: it is.
    """
    if choices.arguments is not None:
        raise UsageError(
            f"--factory-args is for a factory in a Python file, not for {target}\n"
            "expected path/to/file.py:factory"
        )
