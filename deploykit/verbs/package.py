"""`deploykit package`: what a bundle needs to be served elsewhere, in one folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path  # noqa: TC003 - of a dataclass
from typing import TYPE_CHECKING, Any, Final

from deploykit._version import __version__
from deploykit.bundle.keys import trust_of
from deploykit.bundle.listing import is_bundle
from deploykit.bundle.manifest import MANIFEST, Bundle
from deploykit.bundle.reading import read_bundle
from deploykit.core.artifacts import sha256_of
from deploykit.core.atomic import staged_folder
from deploykit.core.errors import BundleError, one_line
from deploykit.core.progress import Progress, SilentProgress
from deploykit.packaging import PackageChoices, Packed, ShippingPlace, place_named
from deploykit.packaging._place import require_choices

if TYPE_CHECKING:
    import os

    from deploykit.bundle.signature import Trust

RECORD: Final = "deploykit-package.json"
"""In every package: what it was made from. A folder without it is never replaced."""

_FEW: Final = 4
"""Names in a message; of more the rest is counted."""


@dataclass(frozen=True)
class PackageReport:
    """A package that was written: where, for which place, and its files."""

    folder: Path
    place: str
    bundle: str
    files: tuple[str, ...]
    packed: Packed

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "package": str(self.folder),
            "place": self.place,
            "bundle": self.bundle,
            "files": list(self.files),
            **self.packed.facts,
            "notes": list(self.packed.notes),
        }


def package(  # noqa: PLR0913 - the options of `deploykit package`
    bundle: Path,
    place: str,
    output: Path,
    choices: PackageChoices | None = None,
    *,
    replace: bool = False,
    trust: Trust | str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> PackageReport:
    """Write the package of ``bundle`` for ``place`` to the folder ``output``, whole or not at all.

    Every file of the bundle that goes into it is compared with its hash. ``replace`` allows a
    package to be replaced, if every file in it is as deploykit wrote it; another folder with
    something in it never is. A wheel in ``wheel/`` is taken over. With ``trust`` the bundle has to
    be signed.

    Raises:
        UnknownNameError: there is no such place.
        UsageError: the choices do not go with the place.
        BundleError: ``output`` is taken, lies in a bundle or another package, has files that
            deploykit did not write, or cannot be written; there is no bundle, or the place cannot
            serve it.
        IntegrityError: a file of the bundle is not as it was written.
        SignatureError: nobody whom ``trust`` believes signed the bundle.
    """
    choices = choices or PackageChoices()
    found = place_named(place)
    require_choices(place, found, choices)
    _require_apart(output)
    choices = found.carried(output, choices) if replace else choices
    require_free = partial(_require_free, output, replace=replace, kept=choices.wheel)
    require_free()
    trusted = None if trust is None else trust_of(trust)
    Bundle.open(bundle, trusted)  # what is no bundle is said before anything is written
    with (
        (progress or SilentProgress()).step(f"package for {place}"),
        staged_folder(output, RECORD, require_free) as stage,
    ):
        packed, source = read_bundle(
            bundle, lambda read: _write(read, found, stage, choices), trusted
        )
        files = _files_of(stage)
        record = _record(place, source, stage, files)
        (stage / RECORD).write_text(record, encoding="utf-8")
    return PackageReport(output, place, str(bundle), (*files, RECORD), packed)


def _require_apart(output: Path) -> None:
    """Refuse a place in a bundle or in another package: both hold what their record names alone."""
    for folder in output.resolve().parents:
        is_package = (folder / RECORD).is_file()
        if is_package or is_bundle(folder):
            kind, record = ("package", RECORD) if is_package else ("bundle", MANIFEST)
            raise BundleError(
                f"{output} lies in the {kind} {folder}, which would have files that {record} does "
                "not name\nchoose a folder outside of it with -o"
            )


def _require_free(output: Path, *, replace: bool, kept: Path | None) -> None:
    """Refuse a place that holds something, unless it is a package that may be replaced.

    The file ``kept`` goes into the new package, so that it may be anybody's.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / RECORD).is_file():
        raise BundleError(
            f"{output} exists and is not a package, so it is not replaced\nchoose another with -o"
        )
    if not replace:
        raise BundleError(
            f"{output} holds a package already\nchoose another with -o, or replace it: --replace"
        )
    others = [name for name in _not_written_by_us(output) if not _is_file(output / name, kept)]
    if others:
        more = f" and {len(others) - _FEW} more" if len(others) > _FEW else ""
        raise BundleError(
            f"{output} has files that deploykit did not write, or that changed since: "
            f"{', '.join(map(one_line, others[:_FEW]))}{more}\n"
            "move them away, or choose another folder with -o"
        )


def _not_written_by_us(folder: Path) -> list[str]:
    """The files of a package that its record lacks, or has with another hash."""
    record = folder / RECORD
    try:
        written = json.loads(record.read_text(encoding="utf-8"))["files"]
        expected = {str(name): str(digest) for name, digest in written.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as exc:
        raise BundleError(
            f"cannot read {record}, so which files deploykit wrote is not known\n"
            "choose another folder with -o, or move this one away"
        ) from exc
    return [
        name
        for name in _files_of(folder)
        if name != RECORD and (name not in expected or expected[name] != _digest_of(folder / name))
    ]


def _digest_of(path: Path) -> str | None:
    """Of a regular file that may be read; a pipe would have to be waited for."""
    try:
        return sha256_of(path) if path.is_file() and not path.is_symlink() else None
    except OSError:
        return None


def _is_file(path: Path, other: Path | None) -> bool:
    return other is not None and path.resolve() == other.resolve()


def _write(
    bundle: Bundle, place: ShippingPlace, stage: Path, choices: PackageChoices
) -> tuple[Packed, Bundle]:
    # Whatever an earlier attempt wrote is of a bundle that was replaced meanwhile.
    for path in stage.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    bundle.require_unchanged(bundle.model_path.name)
    return place.write(bundle, stage, choices), bundle


def _files_of(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _record(place: str, bundle: Bundle, folder: Path, files: list[str]) -> str:
    """What the package was made from, and the hash of each of its files."""
    plain = {
        "place": place,
        "deploykit": __version__,
        "bundle": bundle.manifest.name,
        "created": bundle.manifest.created,
        "signed_by": bundle.signed_by,
        MANIFEST: sha256_of(bundle.folder / MANIFEST),
        "files": {name: sha256_of(folder / name) for name in files},
    }
    return json.dumps(plain, indent=2) + "\n"
