"""A function of a Python file that returns a module: ``path/to/nets.py:small``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deploykit.core.errors import UsageError
from deploykit.sources.kinds._kind import TargetKind, digest_of_file, refuse_arguments

if TYPE_CHECKING:
    from deploykit.core.choices import DefinitionChoices
    from deploykit.core.specs import ModelSpec

_SUFFIX: Final = ".py"
_FORM: Final = re.compile(r"(?P<path>.+\.py):(?P<factory>[^\W\d]\w*)")


class PythonFile(TargetKind):
    """A factory in a file that the user trusts: the file is run."""

    takes_arguments = True

    def takes(self, target: str) -> bool:
        """Whether a Python file is named, with its factory or without."""
        return _FORM.fullmatch(target) is not None or target.endswith(_SUFFIX)

    def short_name(self, target: str) -> str:
        """The file's and the factory's."""
        named = _FORM.fullmatch(target)
        return target if named is None else f"{Path(named['path']).stem}-{named['factory']}"

    def digest(self, target: str) -> str | None:
        """Of the file, not of what it imports."""
        named = _FORM.fullmatch(target)
        return None if named is None else digest_of_file(Path(named["path"]))

    def require(self, target: str) -> None:
        """Whether a factory is named, and the file is there.

        Raises:
            UsageError: not.
        """
        path, _ = _parts(target)
        if not path.is_file():
            raise UsageError(f"there is no file {path}\nexpected path/to/file.py:factory")

    def spec(self, target: str, choices: DefinitionChoices) -> ModelSpec:
        """Of what the factory returns, which is called for it."""
        if _FORM.fullmatch(target) is None:
            refuse_arguments(target, choices)
        path, factory = _parts(target)
        from deploykit.sources.python_file import python_file_spec

        return python_file_spec(path, factory, choices)


def _parts(target: str) -> tuple[Path, str]:
    named = _FORM.fullmatch(target)
    if named is None:
        raise UsageError(f"{target} names no factory\nexpected {target}:FACTORY")
    return Path(named["path"]), named["factory"]


KIND = PythonFile()
