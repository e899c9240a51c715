"""Nouns as plain data for JSON, and back.

msgspec checks what comes back, and its errors are translated here, once. An object must have
exactly the fields of its dataclass: an unknown or missing one is refused, as is a value of another
type. The exceptions are named below.

The text itself goes through `json`: that writes every file, digests are taken of its numbers, and
it lets NaN pass to the check that names the field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import cache, reduce
from operator import or_
from pathlib import PurePath
from types import UnionType
from typing import (
    Any,
    Final,
    Literal,
    Protocol,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec

from deploykit.core.artifacts import EngineRecord, OnnxArtifact, sha256_of_bytes
from deploykit.core.errors import DataError, DeploykitError, UsageError
from deploykit.core.precision import Precision, precisions
from deploykit.core.sizes import ShapeProfile, SizeRange
from deploykit.core.specs import HeadRecord, PixelInput, Preprocessing, TensorSpec

Noun = TypeVar("Noun")

_ARRAYS: Final = frozenset({SizeRange})
"""Nouns that are an array of their fields, ``[160, 224, 320]``."""

_OPTIONAL: Final[Mapping[type, frozenset[str]]] = {
    ShapeProfile: frozenset(field.name for field in fields(ShapeProfile)),
    PixelInput: frozenset({"dtype", "outside"}),
    Preprocessing: frozenset({"channel_order", "pixels"}),
    EngineRecord: frozenset({"ran_on", "optimization_level", "hardware_compatibility"}),
    OnnxArtifact: frozenset({"has_bf16"}),
}
"""Fields that may be missing where they have a default: what files of before do not say."""

MAY_BE_MISSING: Final = {"may be missing": True}
"""Metadata of a field with a default that files of before do not have: as those of `_OPTIONAL`."""

_EXTENSIBLE: Final = frozenset({HeadRecord, OnnxArtifact, PixelInput, Preprocessing, TensorSpec})
"""Nouns in which fields of a later release are passed over."""

_PARTS: Final = "parts"
"""Of a `ShapeProfile`: its own kind, see `_form_of`."""

_LINES: Final = 3


@dataclass(frozen=True, slots=True)
class Source:
    """What is read, ``run.json: result 3``; the error to raise, and what to do about it."""

    name: str
    error: type[DeploykitError] = DataError
    remedy: str = ""

    def refusal(self, reason: str) -> DeploykitError:
        """The error for this source."""
        lines = f"{self.name}: {reason}".splitlines()
        if self.remedy and len(lines) < _LINES:
            lines.append(self.remedy)
        return self.error("\n".join(lines))


def to_plain(noun: Any) -> Any:
    """Dataclasses as dictionaries, arrays as lists, keys, precisions and paths as text.

    >>> to_plain(TensorSpec("input", "float32", ("batch", 3)))
    {'name': 'input', 'dtype': 'float32', 'shape': ('batch', 3)}

    Raises:
        TypeError: something is none of these.
    """
    return msgspec.to_builtins(noun, str_keys=True, enc_hook=_plain_leaf)


def profile_to_plain(profile: ShapeProfile) -> dict[str, Any]:
    """Plain data; without the axes that the model fixes, with ``parts`` where there are several.

    >>> profile_to_plain(ShapeProfile(1, 8, 32, height=SizeRange(160, 224, 320)))
    {'min_batch': 1, 'opt_batch': 8, 'max_batch': 32, 'height': [160, 224, 320]}
    """
    plain = to_plain(replace(profile, parts=())).items()
    found = {
        name: list(value.values()) if isinstance(value, dict) else value
        for name, value in plain
        if name != _PARTS and value is not None
    }
    parts = {_PARTS: list(map(profile_to_plain, profile.parts))} if profile.parts else {}
    return {**found, **parts}


class Compiled(Protocol):
    """A dataclass about an engine, with the profile that it was built for."""

    @property
    def profile(self) -> ShapeProfile:
        """What the engine accepts."""


def engine_to_plain(engine: Compiled) -> dict[str, Any]:
    """Plain data of an engine's record, without the choices that were left as they are.

    Releases that do not know such a choice yet read the engines that were built without it.
    """
    plain = {**to_plain(engine), "profile": profile_to_plain(engine.profile)}
    optional = _OPTIONAL.get(type(engine), ())
    known = fields(engine)  # type: ignore[arg-type]  # a dataclass, which no protocol can say
    left = {each.name for each in known if getattr(engine, each.name) == each.default}
    return {name: value for name, value in plain.items() if name not in left.intersection(optional)}


def artifact_to_plain(artifact: OnnxArtifact) -> dict[str, Any]:
    """Plain data of an ONNX file, without its folder."""
    plain = {**to_plain(artifact), "path": artifact.path.name}
    if not artifact.has_bf16:  # as in manifests of before there was a choice
        del plain["has_bf16"]
    return plain


def from_plain(kind: type[Noun], data: Any, source: Source) -> Noun:
    """The noun that `to_plain` made ``data`` of, after a trip through JSON.

    Raises:
        DeploykitError: ``source.error`` where a field is missing, unknown, of another type or
            holds something that the noun refuses; names its place.
    """
    try:
        form = msgspec.convert(data, _form(kind), dec_hook=_leaf, str_keys=True)
        noun: Noun = _noun(form)
    except (msgspec.ValidationError, UsageError, OverflowError, RecursionError) as exc:
        raise source.refusal(str(exc)) from exc
    except UnicodeEncodeError as exc:  # JSON may have half of a character
        raise source.refusal(f"text that is no Unicode, {exc.object!a:.40}") from exc
    return noun


def known_fields(kind: type, data: Any) -> Any:
    """``data`` without what the dataclass ``kind`` does not have; all of it where it is no object.

    >>> known_fields(SizeRange, {"min": 1, "opt": 2, "max": 3, "colour": "blue"})
    {'min': 1, 'opt': 2, 'max': 3}
    """
    if not isinstance(data, Mapping):
        return data
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in data.items() if name in names}


def parse_json(text: str | bytes, source: Source) -> Any:
    """Plain data of the text of ``source``.

    Raises:
        DeploykitError: ``source.error`` where it is not JSON, or nested too deep.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        lines = [f"{source.name} is not JSON, perhaps cut off: {exc}"]
        raise source.error("\n".join([*lines, source.remedy] if source.remedy else lines)) from exc


def digest_of(data: Any) -> str:
    """Hex digest of plain data, whatever its order of keys and its whitespace.

    >>> digest_of({"a": 1.0, "b": []}) == digest_of(json.loads('{ "b": [], "a": 1.00 }'))
    True

    Raises:
        RecursionError: it is nested too deep.
    """
    return sha256_of_bytes(json.dumps(data, sort_keys=True, separators=(",", ":")).encode())


class _PrecisionName(str):
    """Stands for a precision until the whole object was checked."""

    __slots__ = ()


def _plain_leaf(value: Any) -> Any:
    if isinstance(value, str | PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):  # of numpy, which need not be imported for this
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not plain data")


def _leaf(kind: Any, value: Any) -> Any:
    if not isinstance(value, str):
        raise TypeError(f"Expected `str`, got `{type(value).__name__}`")
    if issubclass(kind, _PrecisionName):
        return _precision_name(value)
    return kind(value)


def _precision_name(value: str) -> _PrecisionName:
    try:
        return _PrecisionName(Precision(value))
    except ValueError as exc:
        known = ", ".join(precisions())
        raise ValueError(f"unknown precision {value!r:.40}, known: {known}") from exc


@cache
def _form_of(kind: type) -> Any:
    """What msgspec checks for the dataclass ``kind``: its fields, and no others."""
    hints = get_type_hints(kind)
    forms = {
        # msgspec looks a name up among the attributes of the form when it is there.
        name: tuple["Itself", ...] if hint == tuple[kind, ...] else _form(hint)  # type: ignore[valid-type,name-defined]  # noqa: F821
        for name, hint in hints.items()
    }
    form = msgspec.defstruct(
        kind.__name__,
        [_field(kind, field, forms[field.name]) for field in fields(kind)],
        namespace={"noun": kind},
        array_like=kind in _ARRAYS,
        forbid_unknown_fields=kind not in _EXTENSIBLE,
        kw_only=kind not in _ARRAYS,
    )
    form.Itself = form  # type: ignore[attr-defined]
    return form


def _field(kind: type, field: Any, form: Any) -> Any:
    missing = field.name in _OPTIONAL.get(kind, ()) or "may be missing" in field.metadata
    optional = missing and field.default is not MISSING
    return (field.name, form, field.default) if optional else (field.name, form)


def _form(hint: Any) -> Any:
    """The hint with every noun in it by its form."""
    if isinstance(hint, type) and is_dataclass(hint):
        return _form_of(hint)
    if hint is Precision:
        return _PrecisionName
    origin = get_origin(hint)
    if origin in (None, Literal):
        return hint
    if origin.__name__ == "ndarray":
        return list[float]
    parts = tuple(map(_form, get_args(hint)))
    return reduce(or_, parts) if origin in (Union, UnionType) else origin[parts]


def _noun(form: Any) -> Any:
    """The noun of a form, made by its constructor, which may refuse what it holds."""
    if isinstance(form, msgspec.Struct):
        values = {name: _noun(getattr(form, name)) for name in form.__struct_fields__}
        return form.noun(**values)  # type: ignore[attr-defined]  # set by `_form_of`
    if isinstance(form, _PrecisionName):
        return Precision(str(form))
    if isinstance(form, dict):
        return {name: _noun(value) for name, value in form.items()}
    if isinstance(form, tuple | frozenset):
        return type(form)(map(_noun, form))
    return form
