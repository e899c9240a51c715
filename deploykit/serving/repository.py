"""Bundles that a service loads, by their names and versions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from deploykit.bundle.folders import MANIFEST, bundles_in, way_to_bundle
from deploykit.core.errors import BundleError, UsageError, ValidationError
from deploykit.serving.refusals import Reason, RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from deploykit.runtime.classifier import Classifier
    from deploykit.serving.served_model import ServingModel

FIRST_VERSION: Final = "1"
"""The version of a bundle that stands alone."""


@dataclass(frozen=True, slots=True)
class BundlePlace:
    """A bundle's folder with its name, ``None`` for the bundle's own, and its version."""

    folder: Path
    name: str | None = None
    version: str = FIRST_VERSION


def places_in(paths: Iterable[Path]) -> list[BundlePlace]:
    """The bundles to load: each path is one, or a folder of versions ``NAME/1``, ``NAME/2``.

    Raises:
        BundleError: a path is neither.
    """
    return [place for path in paths for place in _places(path)]


def _places(path: Path) -> list[BundlePlace]:
    if (path / MANIFEST).is_file() or not path.is_dir():
        return [BundlePlace(path)]  # what is wrong with it is said when it is loaded
    found = bundles_in(path)
    versions = [each for each in found if _is_version(each.name)]
    if not versions:
        raise BundleError(
            f"{path} is no bundle and has no versions of one (1, 2, ...)\n{way_to_bundle(path)}"
        )
    if len(versions) < len(found):
        others = ", ".join(each.name for each in found if each not in versions)
        raise BundleError(
            f"{path} has bundles that are no versions beside its versions: {others}\n"
            "name them 1, 2, ..., or give them one by one"
        )
    return [BundlePlace(each, path.resolve().name, each.name) for each in versions]


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdecimal() and not name.startswith("0") and len(name) < 10  # noqa: PLR2004


def require_golden(model: Classifier, name: str) -> Classifier:
    """The model, once its golden sample agrees.

    Raises:
        DeploykitError: it does not, or there is none.
    """
    try:
        model.self_test()
    except (BundleError, ValidationError) as error:
        raise type(error)(f"{name} is not served: {error}") from error
    return model


def require_distinct(named: Iterable[tuple[str, BundlePlace]]) -> None:
    """Refuse two bundles of one name and version; the names are those they are served under.

    Raises:
        UsageError: there are two, or one bundle was given twice.
    """
    seen: dict[tuple[str, str], Path] = {}
    for name, place in named:
        key = (name, place.version)
        if key in seen:
            raise UsageError(
                f"two bundles are called {name}, version {place.version}: {seen[key]} and "
                f"{place.folder}\n"
                f"put versions of one model into {name}/1 and {name}/2, and give {name}\n"
                "put another model into OTHER/1, and give OTHER: its name is then that"
            )
        seen[key] = place.folder


class BundleRepository:
    """Loaded models by name and version; `require_distinct` found no two of one name."""

    def __init__(self, models: Iterable[ServingModel]) -> None:
        self._models: dict[str, dict[str, ServingModel]] = {}
        self._in_order = tuple(models)
        for each in self._in_order:
            self._models.setdefault(each.name, {})[each.version] = each

    @property
    def in_order(self) -> tuple[ServingModel, ...]:
        """All models, in the order in which they were given."""
        return self._in_order

    def versions_of(self, name: str) -> list[str]:
        """Versions of a model, the lowest first."""
        return sorted(self._models[name], key=int)

    def find(self, name: str, version: str = "") -> ServingModel:
        """A model; without a version the highest.

        Raises:
            RefusedError: there is none.
        """
        versions: Mapping[str, ServingModel] | None = self._models.get(name)
        if versions is None:
            known = ", ".join(self._models)
            raise RefusedError(
                Reason.UNKNOWN, f"there is no model {name!r:.80}, there are: {known:.400}"
            )
        found = versions.get(version or self.versions_of(name)[-1])
        if found is None:
            known = ", ".join(self.versions_of(name))
            raise RefusedError(
                Reason.UNKNOWN, f"{name} has no version {version!r:.40}, it has: {known:.400}"
            )
        return found
