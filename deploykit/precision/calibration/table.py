"""Calibration table on disk: the ranges, what they were made for, where a table is kept.

A table carries a digest of all that it says, as a manifest does. It finds accidents: ranges decide
how a model computes, and another digit of one is as good a number as the right one.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping  # noqa: TC003  (read back by these types)
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deploykit.core.artifacts import sha256_of_bytes
from deploykit.core.atomic import write_whole
from deploykit.core.errors import DataError, UnknownNameError
from deploykit.core.serialization import (
    Source,
    digest_of,
    from_plain,
    known_fields,
    parse_json,
    to_plain,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


SCHEMA_VERSION: Final = 2

_RGB: Final = {"channel_order": "rgb"}
"""What tables do not say that were made before there was a choice."""

_DIGEST: Final = "table_sha256"

NO_DIGEST: Final = "an older deploykit made it, without a digest: changes of it would not be found"

_SMALLEST: Final = 127 * 2.0**-126
"""Its 127th part, the scale, is the smallest normal number of FP32."""

_LARGEST: Final = (2 - 2**-23) * 2.0**127
"""The largest number of FP32, in which the ranges were measured."""

_REMEDY: Final = "calibrate again: deploykit calibrate MODEL --data FOLDER"


@dataclass(frozen=True)
class CalibrationKey:
    """What a table depends on; ``settings`` are plain data: number and choice of images, bins."""

    model_sha256: str
    data_digest: str
    preprocessing: Mapping[str, Any]
    settings: Mapping[str, Any]

    def difference(self, other: CalibrationKey) -> str:
        """The first thing in which ``other`` differs, as a sentence; empty where nothing does."""
        if other.model_sha256 != self.model_sha256:
            return "the model is another one"
        if other.data_digest != self.data_digest:
            return "the images are others"
        if _plain({**_RGB, **other.preprocessing}) != _plain({**_RGB, **self.preprocessing}):
            return "the preprocessing is another one"
        changed = _differing(_plain(self.settings), _plain(other.settings))
        return f"the settings differ: {', '.join(changed)}" if changed else ""


@dataclass(frozen=True)
class CalibrationTable:
    """The range of each tensor by every method.

    ``amax`` maps a tensor's name to method and range, ``amax["input"]["entropy"]``; the scale of a
    tensor is its range divided by 127. ``images`` were seen, ``skipped`` could not be used.
    ``trial_amax`` is the same without the images that were held out to compare candidates on.
    ``half_octaves`` are the histograms, see `calibrators.half_octaves`: for people, nothing is
    computed from them.
    ``has_digest`` is false of one that was read from a file of before there was a digest.
    """

    key: CalibrationKey
    images: int
    skipped: tuple[str, ...]
    amax: Mapping[str, Mapping[str, float]]
    created: str
    trial_amax: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    half_octaves: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    has_digest: bool = field(default=True, compare=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the table's content; the time it was made does not count."""
        body = _body(self)
        del body["created"]
        return sha256_of_bytes(json.dumps(body, sort_keys=True).encode())

    def select(self, method: str) -> dict[str, float]:
        """The range of every tensor by one method.

        Raises:
            UnknownNameError: the table was made without this method.
        """
        known = sorted({name for ranges in self.amax.values() for name in ranges})
        if method not in known:
            raise UnknownNameError("calibration method", method, known, ", ".join(known))
        return {tensor: ranges[method] for tensor, ranges in self.amax.items()}

    def select_trial(self, method: str) -> dict[str, float]:
        """The same without the held-out images, for a trial on these.

        Raises:
            UnknownNameError: the table was made without this method.
        """
        return replace(self, amax=self.trial_amax or self.amax).select(method)

    def matches(self, key: CalibrationKey, tensors: Iterable[str] = ()) -> str:
        """Why the table cannot be used for ``key`` and ``tensors``; empty where it can."""
        lacking = [name for name in tensors if name not in self.amax]
        difference = self.key.difference(key)
        return difference or (f"it has no range for {lacking[0]}" if lacking else "")

    def require_model(self, sha256: str) -> None:
        """Refuse to be used with another model than the one that was calibrated.

        Raises:
            DataError: names both models' hashes.
        """
        if sha256 != self.key.model_sha256:
            raise DataError(
                "this calibration table belongs to another model\n"
                f"it was made for sha256 {self.key.model_sha256}, this model has {sha256}\n"
                "calibrate this model: deploykit calibrate MODEL --data FOLDER"
            )

    def save(self, path: Path) -> None:
        """Write to ``path``, whole or not at all; folders are made where they are missing.

        Raises:
            BundleError: the place cannot be written to.
        """
        write_whole(path, table_text(self))

    @staticmethod
    def load(path: Path) -> CalibrationTable:
        """Read a table that `save` wrote.

        Raises:
            DataError: missing, unreadable, not a table, or changed since.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as exc:
            raise DataError(
                f"there is no calibration table {path}\n"
                "make one: deploykit calibrate MODEL --data FOLDER"
            ) from exc
        except (OSError, UnicodeDecodeError) as exc:
            raise DataError(f"cannot read {path}: {exc}") from exc
        return read_table(text, path.name)


def table_text(table: CalibrationTable) -> str:
    """The file's text."""
    body = _plain(_body(table))
    digested = body | {_DIGEST: digest_of(body)}
    return json.dumps(digested, indent=1, sort_keys=True, allow_nan=False) + "\n"


def read_table(text: str, name: str) -> CalibrationTable:
    """Read the text of the file ``name``.

    Raises:
        DataError: not JSON, another schema version, the content does not have the digest that it
            gives, a key is missing, unknown or of another type, or a number that cannot be.
    """
    source = Source(name, remedy=_REMEDY)
    body = parse_json(text, source)
    version = body.get("schema_version") if isinstance(body, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{name} has schema version {version}, this deploykit reads {SCHEMA_VERSION}\n{_REMEDY}"
        )
    recorded = body.pop(_DIGEST, None)
    _require_digest(recorded, body, name)
    known = {"half_octaves": {}, **known_fields(CalibrationTable, body)}
    known["has_digest"] = recorded is not None
    table = from_plain(CalibrationTable, known, source)
    _require_possible(table, name)
    return table


def _require_digest(recorded: Any, body: dict[str, Any], name: str) -> None:
    try:
        found = digest_of(body)
    except RecursionError as exc:
        raise DataError(f"{name} is nested too deep to be a table\n{_REMEDY}") from exc
    unknown = sorted(body.keys() - known_fields(CalibrationTable, body).keys() - {"schema_version"})
    if recorded is None and unknown:  # perhaps the name of the digest is what was changed
        raise DataError(
            f"{name} was changed after it was written\n"
            f"it has {unknown[0]!r:.60}, but no digest: no older table has that\n{_REMEDY}"
        )
    if recorded not in (None, found):
        raise DataError(
            f"{name} was changed after it was written\n"
            f"it gives sha256 {recorded!s:.64}, its content has {found}\n{_REMEDY}"
        )


def is_table(path: Path) -> bool:
    """Whether a file is a table, of this or of another schema version."""
    try:
        body = parse_json(path.read_text(encoding="utf-8"), Source(str(path)))
    except (OSError, UnicodeDecodeError, DataError):
        return False
    return isinstance(body, dict) and {"schema_version", "key", "amax"} <= body.keys()


def _body(table: CalibrationTable) -> dict[str, Any]:
    body = {"schema_version": SCHEMA_VERSION, **to_plain(table)}
    del body["has_digest"]
    if not table.half_octaves:  # as in tables of before these were kept
        del body["half_octaves"]
    return body


def _require_possible(table: CalibrationTable, name: str) -> None:
    asked = table.key.settings.get("images")
    most = asked if isinstance(asked, int) else None
    if table.images < 1 or (most is not None and table.images > most):
        expected = "1 or more" if most is None else f"1 to {most}"
        raise DataError(
            f"{name} says that it is of {table.images} images\nexpected {expected}: calibrate again"
        )
    for tensor, ranges in (*table.amax.items(), *table.trial_amax.items()):
        for method, amax in ranges.items():
            if not _SMALLEST <= amax <= _LARGEST:
                raise DataError(
                    f"{name} gives {tensor} the range {amax!r} by {method}\n"
                    f"expected a positive number from {_SMALLEST:.2g} to {_LARGEST:.2g}, as FP32 "
                    "has them: calibrate again"
                )


def _plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from JSON: tuples are lists."""
    return dict(json.loads(json.dumps(dict(data))))


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


SAME: Final = "used again: same model, images, preprocessing and settings"

_PROJECT_FOLDER: Final = Path("calib")


@dataclass(frozen=True)
class FoundTable:
    """A table that fits; without one ``path`` is where a new one goes. ``story`` says why."""

    table: CalibrationTable | None
    path: Path
    story: str


def places_of_table(name: str, bundle: Path | None) -> list[Path]:
    """Where the table of the model ``name`` is kept, and then where else it may lie."""
    stem = re.sub(r"[/\\]", "-", name)
    if is_project(Path()):
        return [_PROJECT_FOLDER / f"{stem}.json"]
    here = Path(f"{stem}.calibration.json")
    return [here] if bundle is None else list(dict.fromkeys([_folder_of(bundle) / here, here]))


def is_project(folder: Path) -> bool:
    """Whether ``folder`` has a ``pyproject.toml`` with a table ``[tool.deploykit]``."""
    try:
        body = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or none that can be read: other tools complain of it
        return False
    tools = body.get("tool")
    return isinstance(tools, dict) and isinstance(tools.get("deploykit"), dict)


def same_story(table: CalibrationTable) -> str:
    """What to say of a table that fits."""
    return SAME if table.has_digest else f"{SAME}; {NO_DIGEST}"


def find_table(places: Sequence[Path], difference: Callable[[CalibrationTable], str]) -> FoundTable:
    """The first table at ``places`` without a ``difference``; a new one goes to the first place.

    Raises:
        DataError: a new one is needed, and its place has a file that is no table.
    """
    reasons = {}
    for path in filter(Path.exists, places):
        try:
            table = CalibrationTable.load(path)
            reasons[path] = difference(table)
        except DataError as exc:
            reasons[path] = str(exc).splitlines()[0]
            continue
        if not reasons[path]:
            return FoundTable(table, path, same_story(table))
    _require_replaceable(places[0])
    return FoundTable(None, places[0], _why_new(places[0], reasons))


def _why_new(place: Path, reasons: dict[Path, str]) -> str:
    if place in reasons:
        return f"made anew: {reasons[place]}"
    for other, reason in reasons.items():
        return f"made now, {other} does not fit: {reason}"
    return "made now, there was none"


def _require_replaceable(place: Path) -> None:
    if place.exists() and not is_table(place):
        raise DataError(
            f"{place} exists and is not a calibration table, so it is not replaced\n"
            "move it, or name another place: deploykit calibrate TARGET --data PATH -o FILE\n"
            "an export then takes that table: --calib-table FILE"
        )


def _folder_of(bundle: Path) -> Path:
    """The folder that a bundle lies in, also of one that is named by a dot.

    >>> str(_folder_of(Path("engines/net"))), _folder_of(Path()) == Path.cwd().parent
    ('engines', True)
    """
    return bundle.parent if bundle.name not in {"", ".."} else bundle.resolve().parent
