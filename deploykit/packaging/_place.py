"""The interface of a place to ship to, and the registry of places."""

from __future__ import annotations

import re
import shutil
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path  # noqa: TC003 - of a dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from deploykit.bundle.manifest import MANIFEST, OPTIONAL, REFERENCE, SIGNATURE
from deploykit.core.artifacts import WEIGHTS_SUFFIX
from deploykit.core.errors import UsageError
from deploykit.core.plugs import plug_named, plugs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.bundle.manifest import Bundle

_ROOM: Final = "packaging"


@dataclass(frozen=True)
class PackageChoices:
    """What a user may say beside the bundle and the place; ``None`` where nothing was said.

    ``image`` is a container image, ``storage_uri`` the address that a model folder is uploaded to,
    ``server`` the program that serves it, ``wheel`` the file of deploykit that is installed.
    """

    image: str | None = None
    storage_uri: str | None = None
    server: str | None = None
    wheel: Path | None = None

    @property
    def given(self) -> frozenset[str]:
        """Names of the choices that were made."""
        return frozenset(f.name for f in fields(self) if getattr(self, f.name) is not None)


@dataclass(frozen=True)
class Packed:
    """What a place says of its package: ``facts`` as plain data, ``notes`` as sentences."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class ShippingPlace(ABC):
    """One place to ship to."""

    summary: ClassVar[str]
    """What its package is, for the help page."""
    choices: ClassVar[frozenset[str]] = frozenset()
    """Names of the `PackageChoices` that it takes; others are refused."""

    def require(self, choices: PackageChoices) -> None:  # noqa: B027 - for places that need some
        """Refuse what the call alone shows to be wrong.

        Raises:
            UsageError: a choice is missing, or not possible.
        """

    def carried(self, before: Path, choices: PackageChoices) -> PackageChoices:  # noqa: ARG002 - for places that keep something
        """The choices, with what the user put into the package ``before`` that is replaced."""
        return choices

    @abstractmethod
    def write(self, bundle: Bundle, folder: Path, choices: PackageChoices) -> Packed:
        """Fill an empty ``folder``; every file of the bundle is compared with its hash first.

        It may be called again with another folder, where the bundle is replaced meanwhile.

        Raises:
            IntegrityError: a file of the bundle is not as it was written.
            BundleError: this place cannot serve the bundle.
        """


def place_names() -> list[str]:
    """The names of all places, ours and those of installed packages."""
    return sorted(plugs(_ROOM))


def place_named(name: str) -> ShippingPlace:
    """The place of this name.

    Raises:
        UnknownNameError: neither deploykit nor an installed package has one.
        MissingDependencyError: an installed package's module cannot be used.
    """
    place: ShippingPlace = plug_named(_ROOM, "place", name, "PLACE", ShippingPlace)
    return place


def require_choices(name: str, place: ShippingPlace, choices: PackageChoices) -> None:
    """Refuse choices that ``place`` has no use for, then what it refuses itself.

    Raises:
        UsageError: there is one, or one is missing or not possible.
    """
    others = sorted(choices.given - place.choices)
    if others:
        option = f"--{others[0].replace('_', '-')}"
        takes = ", ".join(f"--{each.replace('_', '-')}" for each in sorted(place.choices))
        raise UsageError(
            f"{option} is not for --to {name}\nit takes {takes or 'no such option'}: leave it out"
        )
    place.require(choices)


# --- what several places share


def asset(file: str, /, **values: str) -> str:
    """A file of ``assets/`` with ``values`` in the places of ``@NAME@``."""
    text = resources.files(__package__).joinpath("assets", file).read_text("utf-8")
    # One pass: a value that contains such a mark itself stays as it is.
    return re.sub(r"@([A-Z_]+)@", lambda found: values[found[1].lower()], text)


def copy_file(bundle: Bundle, name: str, target: Path) -> None:
    """Copy a file that the manifest names, and the weights beside a graph, after their hashes.

    Raises:
        IntegrityError: one is not as it was written.
    """
    bundle.require_unchanged(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(bundle.folder / name, target)
    weights = name + WEIGHTS_SUFFIX
    if weights in bundle.manifest.files:
        # The graph names this file, so it keeps its name.
        shutil.copyfile(bundle.folder / weights, target.with_name(weights))


def copy_bundle(bundle: Bundle, folder: Path) -> None:
    """Copy what serving needs: the manifest, its signature and its files but the FP32 graph.

    Raises:
        IntegrityError: a file is not as it was written.
    """
    folder.mkdir(parents=True)
    for name in bundle.expected_files():
        may_be_missing = name in OPTIONAL and not (bundle.folder / name).exists()
        if name != REFERENCE and not name.endswith(WEIGHTS_SUFFIX) and not may_be_missing:
            copy_file(bundle, name, folder / name)
    for name in (MANIFEST, SIGNATURE):
        if (bundle.folder / name).is_file():
            shutil.copyfile(bundle.folder / name, folder / name)
