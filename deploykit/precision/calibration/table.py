"""Calibration table on disk: the ranges, what they were made for, where a table is kept."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping  # noqa: TC003  (read back by these types)
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deploykit.core.artifacts import sha256_of_bytes
from deploykit.core.atomic import write_whole
from deploykit.core.errors import DataError, UnknownNameError
from deploykit.core.serialization import Source, from_plain, known_fields, parse_json, to_plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


SCHEMA_VERSION: Final = 2

_RGB: Final = {"channel_order": "rgb"}
"""What tables do not say that were made before there was a choice."""

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
    """

    key: CalibrationKey
    images: int
    skipped: tuple[str, ...]
    amax: Mapping[str, Mapping[str, float]]
    created: str
    trial_amax: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

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
            DataError: missing, unreadable, or not a table.
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
    return json.dumps(_body(table), indent=1, sort_keys=True, allow_nan=False) + "\n"


def read_table(text: str, name: str) -> CalibrationTable:
    """Read the text of the file ``name``.

    Raises:
        DataError: not JSON, another schema version, a key is missing, unknown or of another type,
            or a range is not a positive number.
    """
    source = Source(name, remedy=_REMEDY)
    body = parse_json(text, source)
    version = body.get("schema_version") if isinstance(body, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{name} has schema version {version}, this deploykit reads {SCHEMA_VERSION}\n{_REMEDY}"
        )
    table = from_plain(CalibrationTable, known_fields(CalibrationTable, body), source)
    _require_positive(table, name)
    return table


def is_table(path: Path) -> bool:
    """Whether a file is a table, of this or of another schema version."""
    try:
        body = parse_json(path.read_text(encoding="utf-8"), Source(str(path)))
    except (OSError, UnicodeDecodeError, DataError):
        return False
    return isinstance(body, dict) and {"schema_version", "key", "amax"} <= body.keys()


def _body(table: CalibrationTable) -> dict[str, Any]:
    return {"schema_version": SCHEMA_VERSION, **to_plain(table)}


def _require_positive(table: CalibrationTable, name: str) -> None:
    for tensor, ranges in (*table.amax.items(), *table.trial_amax.items()):
        for method, amax in ranges.items():
            if not (isfinite(amax) and amax > 0):
                raise DataError(
                    f"{name} gives {tensor} the range {amax!r} by {method}\n"
                    "expected a positive number: calibrate again"
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
            return FoundTable(table, path, SAME)
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
