"""Steps that are finished, kept in a file beside the bundles, and what each was made from."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from deploykit._version import __version__
from deploykit.bundle.manifest import MANIFEST, Bundle
from deploykit.core.artifacts import sha256_of, sha256_of_bytes
from deploykit.core.atomic import write_whole
from deploykit.core.environment import package_version
from deploykit.core.errors import BundleError, DeploykitError
from deploykit.core.serialization import digest_of as digest_of_plain
from deploykit.sources.kinds import kind_for
from deploykit.sources.targets import digest_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.recipes.planning import Step

_FORMAT: Final = 1
_ABSENT: Final = "absent"
_CHECK: Final = "check"
_LISTS: Final = frozenset({".csv"})


class Finished(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A finished step: the digest of its inputs, what it made, and what it found.

    ``wrote`` are the files that it wrote beside its bundle, as seen from there.
    """

    inputs: str
    made: str | None
    at: str
    seconds: float
    found: dict[str, Any]
    wrote: tuple[str, ...] = ()


class State(msgspec.Struct, forbid_unknown_fields=True):
    """The content of the file; ``steps`` by their names."""

    format: int = _FORMAT
    steps: dict[str, Finished] = {}


class _Form(msgspec.Struct):
    """What every state begins with, whatever release wrote it."""

    format: int


def state_file(folder: Path, recipe: Path) -> Path:
    """Where the state of a recipe is kept, as ``engines/recipe.state.json``."""
    return folder / f"{recipe.stem}.state.json"


def read_state(path: Path) -> State:
    """The state in a file; an empty one where there is none.

    Raises:
        BundleError: it is there and cannot be read, or is in the format of another release.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return State()
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error
    try:
        written = msgspec.json.decode(content, type=_Form).format
        if written == _FORMAT:
            return msgspec.json.decode(content, type=State)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BundleError(
            f"{path} is no state of a recipe: {error}\n"
            "remove it, or write over it with --again: every step is done again then"
        ) from error
    raise BundleError(
        f"{path} has format {written}, deploykit {__version__} reads {_FORMAT}\n"
        "use the deploykit that wrote it, give another folder with -o, or write over it with "
        "--again: every step is done again then"
    )


def write_state(path: Path, state: State) -> None:
    """Write the file, whole or not at all; figures that are no finite number become null.

    Raises:
        BundleError: the place cannot be written to.
    """
    content = msgspec.json.encode(state, order="sorted")  # with null for NaN and infinity
    write_whole(path, msgspec.json.format(content, indent=2).decode() + "\n")


def finished(
    step: Step, inputs: str, seconds: float, found: dict[str, Any], files: Sequence[str]
) -> Finished:
    """A step that has just ended well, and has written ``files`` beside its bundle."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    wrote = tuple(os.path.relpath(file, step.bundle) for file in files)
    return Finished(inputs, made_by(step), now, round(seconds, 3), found, wrote)


def done_before(step: Step, state: State) -> Finished | None:
    """What is known of a finished step, if its output is there and its inputs are the same.

    Nothing is known of a check: it is there to look at the files as they are now.
    """
    known = None if step.command == _CHECK else state.steps.get(step.name)
    if known is None or not all(_is_there(file, step) for file in known.wrote):
        return None
    if known.inputs != inputs_of(step) or known.made == _ABSENT:
        return None
    return known if known.made == made_by(step) else None


def _is_there(file: str, step: Step) -> bool:
    # Not by way of the bundle, which may be a link to elsewhere.
    return Path(os.path.normpath(step.bundle / file)).is_file()


def made_by(step: Step) -> str:
    """Identity of what a step made: of an export its graph, of the others their bundle as it is.

    An export has made nothing while a file of its bundle is missing or is not the one that the
    manifest names, whatever the manifest says of the graph. An engine that is added to a bundle
    later does not undo its export; what was found about the bundle holds for one as it was.
    """
    try:
        if step.target is None:
            return sha256_of(step.bundle / MANIFEST)
        bundle = Bundle.open(step.bundle)
        is_intact = not bundle.changed_files()
    except (OSError, BundleError):
        return _ABSENT
    if not is_intact:
        return _ABSENT
    # Another export may have made the same graph with another preprocessing, or other names.
    content = json.loads((step.bundle / MANIFEST).read_text(encoding="utf-8"))
    for changing in ("engines", "manifest_sha256"):
        content.pop(changing, None)
    return digest_of_plain(content)


def inputs_of(step: Step) -> str:
    """SHA-256 of what a step is made from: its options, the files that it reads, the release."""
    reads = {key: fingerprint(path) for key, path in step.reads.items()}
    target = None if step.target is None else _target(step.target)
    plain = {
        "release": __version__,
        "command": step.command,
        "said": step.said,
        "reads": reads,
        "target": target,
        "library": None if step.target is None else _library(step.target),
    }
    return sha256_of_bytes(json.dumps(plain, sort_keys=True, default=str).encode())


def _target(target: str) -> str | None:
    try:
        return digest_of(target)
    except DeploykitError:  # the export says what is wrong with it
        return None


def _library(target: str) -> str | None:
    """The library that defines a network, with its version; ``None`` of what needs none."""
    name = kind_for(target).library
    return None if name is None else f"{name} {package_version(name)}"


def fingerprint(path: Path) -> str:
    """What changes when a file, or a file in a folder, does.

    Of a file its hash; of a folder, and of the images of a list, names, sizes and times.
    """
    if path.is_dir():
        return _listed(sorted(one for one in path.rglob("*") if one.is_file()), path)
    if path.is_file():
        return f"{sha256_of(path)} {_listed(_named_in(path), path.parent)}"
    file = Path(str(path).partition("#")[0])  # FILE#ENTRY of weights
    return sha256_of(file) if file.is_file() else _ABSENT


def _named_in(path: Path) -> tuple[Path, ...]:
    if path.suffix.lower() not in _LISTS:
        return ()
    from deploykit.images import FileImages, open_images

    try:
        found = open_images(path)
    except DeploykitError:  # a table of something else
        return ()
    return found.paths if isinstance(found, FileImages) else ()


def _listed(files: Sequence[Path], base: Path) -> str:
    """Of names as seen from ``base``: where the command runs makes no difference."""
    facts = []
    for one in files:
        found = one.stat()
        facts.append((os.path.relpath(one, base), found.st_size, found.st_mtime_ns))
    return sha256_of_bytes(json.dumps(facts).encode())
