"""Plug points: the modules of a room, and those that installed packages add to it.

A package adds a module to a room by an entry point in the group ``deploykit.<room>``, under the
name that a file in the room would have::

    [project.entry-points."deploykit.backends"]
    openvino = "my_package.openvino_backend"

Nothing is imported before `import_plug` is called. An installed package is trusted as deploykit
itself is: files that a user names, a bundle among them, never add a module.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from deploykit.core.errors import (
    MissingDependencyError,
    UnknownNameError,
    UsageError,
    typed_first_line,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType


@cache
def plugs(room: str) -> Mapping[str, str]:
    """The dotted module of each plug of ``room`` by its name: our own first, then installed ones.

    A file whose name begins with an underscore is no plug.

    Raises:
        UsageError: two modules have one name.
    """
    package = f"deploykit.{room}"
    found = {name: f"{package}.{name}" for name in _files_of(package)}
    for point in sorted(entry_points(group=package), key=lambda point: point.name):
        other = found.setdefault(point.name, point.value)
        if other != point.value:
            raise UsageError(
                f"{other} and {point.value} are both called {point.name!r} in {package}\n"
                "a plug has one name: uninstall one of the two packages"
            )
    return MappingProxyType(found)


def import_plug(room: str, name: str) -> ModuleType:
    """The module of the plug ``name``, one of `plugs`.

    Raises:
        MissingDependencyError: an installed package's module cannot be imported.
    """
    module = plugs(room)[name]
    if module.startswith("deploykit."):
        return import_module(module)
    try:
        return import_module(module)
    except Exception as exc:  # another package's code, which may fail in any way
        raise MissingDependencyError(
            f"the plug-in {name!r} of deploykit.{room} cannot be imported\n"
            f"{module}: {typed_first_line(exc)}\n"
            "repair or uninstall the package that it comes from"
        ) from exc


def plug_object(room: str, name: str, attribute: str, kind: type) -> Any:
    """What the module of the plug ``name`` sets ``attribute`` to, an object of ``kind``.

    Raises:
        MissingDependencyError: an installed package's module cannot be imported, or sets it to
            something else.
    """
    found = getattr(import_plug(room, name), attribute, None)
    if not isinstance(found, kind):
        raise MissingDependencyError(
            f"the plug-in {name!r} of deploykit.{room} has no {attribute}\n"
            f"{plugs(room)[name]} must set {attribute} to an object of deploykit.{room}."
            f"{kind.__name__}"
        )
    return found


def plug_named(room: str, word: str, name: str, attribute: str, kind: type) -> Any:
    """As `plug_object`, for a ``name`` that somebody gave; ``word`` is what such a plug is called.

    Raises:
        UnknownNameError: neither deploykit nor an installed package has one.
        MissingDependencyError: as `plug_object`.
    """
    known = plugs(room)
    if name not in known:
        raise UnknownNameError(word, name, known, ", ".join(sorted(known)))
    return plug_object(room, name, attribute, kind)


def source_of(room: str, name: str) -> Path:
    """The source file of a plug, which is found without importing the plug itself.

    Raises:
        MissingDependencyError: the module is not there, or is no Python file.
    """
    module = plugs(room)[name]
    spec = find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise MissingDependencyError(
            f"the plug-in {name!r} of deploykit.{room} names {module}, which is no Python file\n"
            "repair or uninstall the package that it comes from"
        )
    return Path(spec.origin)


def _files_of(package: str) -> list[str]:
    spec = find_spec(package)
    folders = [] if spec is None else spec.submodule_search_locations or []
    return sorted(path.stem for folder in folders for path in Path(folder).glob("[!_]*.py"))
