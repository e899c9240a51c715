"""Bundles of a folder, by their manifests."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from deploykit.bundle.folders import bundles_in, way_to_bundle
from deploykit.bundle.manifest import MANIFEST, Bundle
from deploykit.core.errors import BundleError, IntegrityError, first_line

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class ListedBundle:
    """What a manifest says of its bundle, or why it cannot be read.

    ``size_bytes`` is of all files that lie in the folder, ``age_s`` since the export.
    """

    folder: Path
    size_bytes: int
    model: str = ""
    precision: str = ""
    engines: tuple[str, ...] = ()
    created: str = ""
    age_s: float = 0.0
    problem: str | None = None


def is_bundle(folder: Path) -> bool:
    """Whether its manifest is one of deploykit: web pages and others have files of that name."""
    if not (folder / MANIFEST).is_file():
        return False
    try:
        Bundle.open(folder)
    except IntegrityError:
        return True
    except BundleError:
        return False
    return True


def list_bundles(folder: Path) -> tuple[ListedBundle, ...]:
    """The bundles in ``folder`` by name, or the one that it is itself.

    Raises:
        BundleError: there is none.
    """
    found = bundles_in(folder)
    if not found and (folder / MANIFEST).is_file():
        found = (folder,)
    if not found and not folder.exists():
        there = way_to_bundle(folder)
        way = (
            there
            if there.startswith("did you mean")
            else (
                "expected a folder of bundles, as engines, or a bundle; without one, the "
                "architectures are listed: deploykit list"
            )
        )
        raise BundleError(f"there is no folder {folder}\n{way}")
    if not found:
        raise BundleError(f"there are no bundles in {folder}\n{way_to_bundle(folder)}")
    return tuple(map(_listed, found))


def listed_to_plain(listed: ListedBundle) -> dict[str, Any]:
    """Plain data for ``--json``."""
    return {
        "bundle": str(listed.folder),
        "model": listed.model,
        "precision": listed.precision,
        "engines": list(listed.engines),
        "bytes": listed.size_bytes,
        "created": listed.created,
        "problem": listed.problem,
    }


def _listed(folder: Path) -> ListedBundle:
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    try:
        manifest = Bundle.open(folder).manifest
    except (BundleError, IntegrityError) as error:
        return ListedBundle(folder, size, problem=first_line(error))
    return ListedBundle(
        folder,
        size,
        str(manifest.model["name"]),
        str(manifest.precision),
        tuple(engine.file for engine in manifest.engines),
        manifest.created,
        _age_s(manifest.created),
    )


def _age_s(created: str) -> float:
    """Since a time in ISO 8601; 0 where it is none."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return 0.0
    return (datetime.now(UTC) - moment).total_seconds() if moment.tzinfo else 0.0
