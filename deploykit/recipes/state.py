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
from deploykit.core.errors import BundleError, DeploykitError, IntegrityError
from deploykit.sources.targets import digest_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.recipes.planning import Step

_FORMAT: Final = 1
_ABSENT: Final = "absent"
_LISTS: Final = frozenset({".csv"})


class Finished(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A finished step: the digest of its inputs, what it made, and what it found."""

    inputs: str
    made: str | None
    at: str
    seconds: float
    found: dict[str, Any]


class State(msgspec.Struct, forbid_unknown_fields=True):
    """The content of the file; ``steps`` by their names."""

    format: int = _FORMAT
    steps: dict[str, Finished] = {}


def state_file(folder: Path, recipe: Path) -> Path:
    """Where the state of a recipe is kept, as ``engines/recipe.state.json``."""
    return folder / f"{recipe.stem}.state.json"


def read_state(path: Path) -> State:
    """The state in a file; an empty one where there is none, or one of another release.

    Raises:
        BundleError: it is there and cannot be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return State()
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error
    try:
        found = msgspec.json.decode(content, type=State)
    except msgspec.MsgspecError as error:
        raise BundleError(
            f"{path} is no state of a recipe: {error}\n"
            "remove it, or write over it with --again: every step is done again then"
        ) from error
    return found if found.format == _FORMAT else State()


def write_state(path: Path, state: State) -> None:
    """Write the file, whole or not at all.

    Raises:
        BundleError: the place cannot be written to.
    """
    write_whole(path, json.dumps(msgspec.to_builtins(state), indent=2, sort_keys=True) + "\n")


def finished(step: Step, inputs: str, seconds: float, found: dict[str, Any]) -> Finished:
    """A step that has just ended well."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Finished(inputs, made_by(step), now, round(seconds, 3), found)


def done_before(step: Step, state: State) -> Finished | None:
    """What is known of a finished step, if its output is there and its inputs are the same."""
    known = state.steps.get(step.name)
    if known is None or known.made != made_by(step) or known.made == _ABSENT:
        return None
    return known if known.inputs == inputs_of(step) else None


def made_by(step: Step) -> str:
    """Identity of what a step made: of an export its graph, of the others their bundle as it is.

    An engine that is added to a bundle later does not undo its export; what was found about the
    bundle holds for one as it was.
    """
    try:
        if step.target is None:
            return sha256_of(step.bundle / MANIFEST)
        return Bundle.open(step.bundle).manifest.onnx.sha256
    except (OSError, BundleError, IntegrityError):
        return _ABSENT


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
    }
    return sha256_of_bytes(json.dumps(plain, sort_keys=True, default=str).encode())


def _target(target: str) -> str | None:
    try:
        return digest_of(target)
    except DeploykitError:  # the export says what is wrong with it
        return None


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
