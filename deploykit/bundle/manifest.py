"""A bundle on disk: its manifest, and the files that the manifest answers for.

A manifest carries a digest of itself. It guards against slips (an edit by hand, a torn copy), not
against somebody who means harm: an engine is executable. Against these there are signatures, see
`deploykit.bundle.signature`.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Mapping  # noqa: TC003  (read back by these types)
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path  # noqa: TC003
from typing import TYPE_CHECKING, Any, Final, Required, Self, TypedDict

from deploykit._version import __version__
from deploykit.bundle.files import BundleFiles, require_one_line, require_plain_names, stamp_of
from deploykit.bundle.folders import MANIFEST as MANIFEST  # noqa: PLC0414 - others read it here
from deploykit.bundle.folders import way_to_bundle
from deploykit.core.artifacts import (
    ENGINE_SUFFIX,
    WEIGHTS_SUFFIX,
    EngineRecord,
    OnnxArtifact,
)
from deploykit.core.errors import BundleError, IntegrityError
from deploykit.core.html_tables import html_table
from deploykit.core.precision import Precision  # noqa: TC001
from deploykit.core.regular_files import open_regular
from deploykit.core.serialization import (
    Source,
    artifact_to_plain,
    digest_of,
    engine_to_plain,
    from_plain,
    known_fields,
    parse_json,
    to_plain,
)
from deploykit.core.specs import DEFAULT_HEAD, HeadRecord, Preprocessing

if TYPE_CHECKING:
    from collections.abc import Iterable
    from io import BufferedReader

    from deploykit.bundle.files import Stamp
    from deploykit.bundle.signature import Trust

SCHEMA_VERSION: Final = 2
"""Of what is written. A release that knows schema 1 alone would pass over the order of the channels
and the head, and answer wrongly: it refuses this one."""
_READ: Final = (1, SCHEMA_VERSION)
MODEL: Final = "model.onnx"
REFERENCE: Final = "reference.onnx"
"""The FP32 graph that a converted model came from: for `eval` and `validate`, never for serving."""
CPU_MODEL: Final = "model.cpu.onnx"
"""The model for CPUs, which rounds where an engine rounds; not in a bundle of FP32."""
GOLDEN: Final = "golden.npz"
LABELS: Final = "labels.txt"
CALIBRATION: Final = "calibration.json"
SIDE_INPUTS: Final = "side_inputs.npz"
SIGNATURE: Final = "model.sig"
"""The signature of the manifest, where there is one; the manifest cannot have its hash."""

OPTIONAL: Final = (REFERENCE, CPU_MODEL)
"""Files that may be deleted before a bundle is shipped."""

_NEXT: Final = f".{MANIFEST}.next"
_BEFORE: Final = f".{MANIFEST}.before"
"""Manifests after and before a build, there as long as it may leave engines that no other names."""

_MOST_BYTES: Final = 64 * 2**20
"""Of a manifest; that of a network of some thousand layers has less than one."""

_DIGEST = "manifest_sha256"
_REMEDY: Final = "use the deploykit that wrote it, or export the bundle again"
_VERSION: Final = re.compile(r"[0-9][0-9A-Za-z.+!-]{0,40}")
"""So that nothing else out of a stranger's file gets into a command to be copied."""


class _Model(TypedDict, total=False):
    """What is read again of the record of a model; others may be beside."""

    name: Required[str]
    num_classes: int | None
    image_size: list[int]
    height: tuple[int, int, int]
    width: tuple[int, int, int]
    source_sha256: str | None
    side_inputs: str


class _Weights(TypedDict, total=False):
    source: str
    sha256: str | None
    trained: bool | None


class _Conversion(TypedDict, total=False):
    kept_heavy: int
    kept_fp32: dict[str, str]
    kept: dict[str, str]


class _Calibration(TypedDict, total=False):
    source: str


_RECORDS: Final[Mapping[str, Any]] = {
    "model": _Model,
    "weights": _Weights,
    "conversion": _Conversion,
    "calibration": _Calibration | None,
}


@dataclass(frozen=True)
class Manifest:
    """Everything that is known of a bundle; ``files`` gives the sha256 of each one but engines.

    ``precision`` is what was asked for, or what a budget chose; each engine's record says what was
    proven. ``head`` says what the outputs mean; older bundles have its kind alone, or nothing:
    logits of classes.
    """

    name: str
    model: Mapping[str, Any]
    weights: Mapping[str, Any]
    preprocessing: Preprocessing
    precision: Precision
    onnx: OnnxArtifact
    files: Mapping[str, str]
    validation: tuple[Mapping[str, Any], ...]
    conversion: Mapping[str, Any]
    engines: tuple[EngineRecord, ...]
    packages: Mapping[str, str]
    created: str
    calibration: Mapping[str, Any] | None = field(default=None)
    head: HeadRecord = field(default_factory=HeadRecord)

    def with_engine(self, engine: EngineRecord) -> Self:
        """The manifest with an engine added; one of the same compiler and GPU is replaced."""
        others = tuple(known for known in self.engines if known.label != engine.label)
        return replace(self, engines=(*others, engine))


def doubts_of(validation: Iterable[Mapping[str, Any]]) -> list[str]:
    """Why a comparison of an export could not have failed, each reason once."""
    return list(dict.fromkeys(each for one in validation for each in one.get("blind_spots", ())))


def manifest_text(manifest: Manifest) -> str:
    """The file's text, its own digest included."""
    body = _body(manifest)
    return json.dumps(body | {_DIGEST: digest_of(body)}, indent=2, sort_keys=True) + "\n"


def _body(manifest: Manifest) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        **to_plain(manifest),
        "onnx": artifact_to_plain(manifest.onnx),
        "engines": [engine_to_plain(engine) for engine in manifest.engines],
    }


def is_folder(path: Path) -> bool:
    """Whether a folder is there; one that an interrupted export set aside is put back.

    Where a system cannot swap two folders, an export takes two renames, and there is a moment, or
    the time until the next command, without a folder.

    Raises:
        BundleError: it cannot be put back.
    """
    try:
        if path.is_dir():
            return True
        # Reading a bundle, which a service does, needs no locks.
        from deploykit.core.atomic import restore

        restore(path)
        return path.is_dir()
    except (OSError, ValueError):  # no name that a file could have, or not allowed to look at
        return False


def read_manifest(text: str, folder: Path) -> Manifest:
    """Read the text of a manifest in ``folder``; fields of a later release are passed over.

    One of schema 1 may lack the head (logits of classes, or its kind alone) and the order of the
    channels (red first).

    Raises:
        BundleError: not JSON, another schema version, or a field is missing or of another type.
        IntegrityError: the content does not have the digest that it gives.
    """
    source = Source(f"{folder.name}/{MANIFEST}", BundleError, _REMEDY)
    body = _checked_version(parse_json(text, source), source.name)
    recorded = body.pop(_DIGEST, None)
    try:
        digest = digest_of(body)
    except RecursionError as exc:  # writing takes more of the stack than reading
        raise source.refusal("it is nested too deep") from exc
    if recorded != digest:
        raise IntegrityError(
            f"{source.name} was changed after it was written\n"
            f"it gives sha256 {recorded}, its content has {digest}\n"
            "export the bundle again; manifests are not edited by hand"
        )
    known = {"head": DEFAULT_HEAD, **known_fields(Manifest, body)}
    if isinstance(known["head"], str):
        known["head"] = to_plain(HeadRecord(known["head"]))
    manifest = from_plain(Manifest, known, source)
    for name, form in _RECORDS.items():
        from_plain(form, known[name], replace(source, name=f"{source.name}: {name}"))
    require_one_line({"name": manifest.name, "created": manifest.created}, source)
    _require_plain_files(manifest, source)
    return replace(manifest, onnx=replace(manifest.onnx, path=folder / manifest.onnx.path))


def manifest_content(folder: Path) -> tuple[bytes, Stamp]:
    """The bytes of the manifest in ``folder``, and the stamp of the file that they were read from.

    Raises:
        BundleError: no bundle there, or a manifest that cannot be read or is too large.
    """
    try:
        with _open_manifest(folder) as file:
            content, stamp = file.read(_MOST_BYTES + 1), stamp_of(file.fileno())
    except (FileNotFoundError, NotADirectoryError) as exc:
        what = f"not a bundle: it has no {MANIFEST}"
        if folder.is_file():
            is_part = (folder.parent / MANIFEST).is_file()
            what = f"a file{' of a bundle' if is_part else ''}, expected the bundle"
        raise BundleError(f"{folder} is {what}\n{way_to_bundle(folder)}") from exc
    except OSError as exc:
        raise BundleError(f"cannot read {folder / MANIFEST}: {exc.strerror}") from exc
    if len(content) > _MOST_BYTES:
        raise BundleError(
            f"{folder / MANIFEST} has more than {_MOST_BYTES} bytes, which no manifest has"
        )
    return content, stamp


def _open_manifest(folder: Path) -> BufferedReader:
    try:
        return open_regular(folder / MANIFEST)
    except FileNotFoundError:
        if not is_folder(folder):
            raise
    return open_regular(folder / MANIFEST)


def _require_plain_files(manifest: Manifest, source: Source) -> None:
    """Refuse a manifest that would have a file opened that it does not answer for."""
    engines = [engine.file for engine in manifest.engines]
    names = [*manifest.files, *engines]
    require_plain_names([*names, str(manifest.onnx.path)], source)
    if MANIFEST in names or len(set(names)) < len(names):
        twice = MANIFEST if MANIFEST in names else next(n for n in names if names.count(n) > 1)
        raise source.refusal(f"it names {twice!r} as a file of the bundle twice")
    onnx = manifest.onnx
    if not onnx.inputs or not onnx.outputs or not onnx.inputs[0].shape:
        raise source.refusal("its graph has no image as its first input, or no output")
    if str(manifest.onnx.path) not in manifest.files:
        raise source.refusal(
            f"its graph is {str(manifest.onnx.path)!r:.80}, which is none of its files"
        )


def _checked_version(body: Any, name: str) -> dict[str, Any]:
    version = body.get("schema_version") if isinstance(body, dict) else None
    if version not in _READ:
        raise BundleError(
            f"{name} has schema version {version}, deploykit {__version__} reads "
            f"{' and '.join(map(str, _READ))}\n{_remedy(body, version)}"
        )
    return dict(body)


@dataclass(frozen=True, slots=True)
class CpuGraph:
    """What a CPU runs of a bundle, and in which arithmetic: words for a sentence, or nothing."""

    artifact: OnnxArtifact
    arithmetic: str

    @property
    def name(self) -> str:
        """The file, with its arithmetic."""
        name = self.artifact.path.name
        return f"{name} ({self.arithmetic})" if self.arithmetic else name


@dataclass(frozen=True)
class Bundle:
    """A folder with its manifest, read and trusted to be the one that was written.

    ``signed_by`` is the key or certificate of its signature, where that was verified.
    """

    folder: Path
    manifest: Manifest
    signed_by: str | None = None

    def __fspath__(self) -> str:
        """The folder: whatever takes the path of a bundle takes the bundle."""
        return str(self.folder)

    def __repr__(self) -> str:
        engines = ", ".join(engine.file for engine in self.manifest.engines) or "no engine"
        return f"<Bundle {str(self.folder)!r}: {self.manifest.precision}, {engines}>"

    def _repr_html_(self) -> str:
        """A table of what matters, as notebooks show it."""
        manifest = self.manifest
        engines = ", ".join(engine.file for engine in manifest.engines) or "none"
        rows = {
            "bundle": str(self.folder),
            "precision": str(manifest.precision),
            "weights": str(manifest.weights.get("source")),
            "output": manifest.head.kind,
            "engines": engines,
            "created": manifest.created,
        }
        return html_table(("", manifest.name), rows.items())

    @classmethod
    def open(cls, folder: Path, trust: Trust | None = None) -> Self:
        """Read the manifest of ``folder``; the other files are not touched, see `changed_files`.

        With ``trust`` its bytes are compared with the signature before they are looked into.

        Raises:
            BundleError: no bundle there, or a manifest that cannot be read.
            IntegrityError: the manifest was edited.
            SignatureError: nobody whom ``trust`` believes signed it as it is.
        """
        content, stamp = manifest_content(folder)
        signed_by = None if trust is None else trust.require(content, folder)
        try:
            text = content.decode()
        except UnicodeDecodeError as exc:
            raise BundleError(f"cannot read {folder / MANIFEST}: {exc}") from exc
        bundle = cls(folder, read_manifest(text, folder), signed_by)
        bundle.files.stamps[MANIFEST] = stamp
        return bundle

    @cached_property
    def files(self) -> BundleFiles:
        """The files that the manifest names, to be read and compared."""
        engines = {engine.file: engine.sha256 for engine in self.manifest.engines}
        return BundleFiles(self.folder, {**self.manifest.files, **engines})

    @property
    def model_path(self) -> Path:
        """The ONNX file that the engines were compiled from."""
        return self.manifest.onnx.path

    def on_cpu(self, *, fast: bool = False) -> CpuGraph:
        """The graph that a CPU runs; with ``fast`` the model itself, whatever a CPU makes of it.

        Where only engines have kernels for the model, it is the form for CPUs always.
        """
        model, facts = self.manifest.onnx, self.manifest.precision.facts
        if facts.is_source:
            return CpuGraph(model, "")
        if fast and not model.needs_cpu_form:
            return CpuGraph(model, "in FP32 arithmetic, as asked")
        path = self.folder / CPU_MODEL
        if CPU_MODEL not in self.manifest.files or not path.is_file():
            return CpuGraph(model, f"in FP32 arithmetic, for the bundle has no {CPU_MODEL}")
        return CpuGraph(replace(model, path=path), "rounds where an engine rounds")

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the classes by index, or ``None`` where the bundle has none.

        Raises:
            BundleError: the manifest names a file of labels that cannot be read.
        """
        if LABELS not in self.manifest.files:
            return None
        content = self.files.read(LABELS)
        try:
            text = content.decode()
        except UnicodeDecodeError as exc:
            raise BundleError(f"cannot read {self.folder / LABELS}: {exc}") from exc
        return tuple(text.removesuffix("\n").split("\n"))

    def expected_files(self) -> dict[str, str]:
        """The sha256 of every file that the manifest names."""
        return dict(self.files.expected)

    def changed_files(self) -> list[str]:
        """One sentence for each file that is missing or has another hash."""
        problems = []
        for name in self.files.expected:
            if name.removesuffix(WEIGHTS_SUFFIX) in OPTIONAL and not (self.folder / name).exists():
                continue  # documented as safe to delete before shipping
            problem = self.files.difference(name)
            if problem:
                problems.append(f"{name} {problem}")
        return problems

    def require_intact(self) -> None:
        """Raise unless every file is as it was written.

        Raises:
            IntegrityError: names the first file that changed, and both hashes.
        """
        problems = self.changed_files()
        if problems:
            raise IntegrityError(f"{self.folder.name}: {problems[0]}\nexport the bundle again")

    def require_unchanged(self, *names: str) -> None:
        """Raise unless these files, which the manifest names, are as they were written.

        The weights beside a large graph are looked at with it.

        Raises:
            IntegrityError: names the first that changed, and both hashes; or weights that the
                manifest does not name.
        """
        for name in names:
            self.files.require(name)

    def with_engine(self, engine: EngineRecord, staged: Path) -> Bundle:
        """Move the engine file ``staged`` in, then the manifest that names it.

        The second rename is what adds it: until then the bundle is the old one. An engine of the
        same compiler, version and GPUs is replaced; a new one has a name of its own, so that the
        old one is whole as long as its manifest is. A signature is not of the new manifest, and is
        removed after it: whoever verifies in between, or what a crash leaves, is refused.

        Raises:
            BundleError: the folder cannot be written to, or its manifest no longer be read.
        """
        # Reading a bundle, which a service does, needs no locks.
        from deploykit.core.atomic import exclusive, sync, translated_write_errors

        with translated_write_errors(self.folder), exclusive(self.folder):
            # Read again: another build may have added its engine meanwhile.
            bundle = Bundle.open(self.folder)
            bundle.remove_leftovers()
            current = bundle.manifest.with_engine(engine)
            fresh = self.folder / _NEXT
            try:
                before = (self.folder / MANIFEST).read_bytes()
                (self.folder / _BEFORE).write_bytes(before)
                fresh.write_text(manifest_text(current), encoding="utf-8")
                staged.replace(self.folder / engine.file)
                sync(self.folder)
                fresh.replace(self.folder / MANIFEST)
                (self.folder / SIGNATURE).unlink(missing_ok=True)
                sync(self.folder, whole=False)
            finally:
                with suppress(BundleError):  # the next build removes them
                    Bundle.open(self.folder).remove_leftovers()
        return Bundle(self.folder, current)

    def _remove_engine(self, name: str) -> None:
        """Remove an engine that no manifest names, and the kernels that were cached for it."""
        stem = name.removesuffix(ENGINE_SUFFIX)
        if stem != name:
            for cache in self.folder.glob(f"{glob.escape(stem)}-sm*.cache"):
                cache.unlink(missing_ok=True)
            (self.folder / name).unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        """Remove what unfinished builds left: engines of their manifests that this one lacks.

        Only under the folder's lock, see `atomic.exclusive`.
        """
        for left in (_NEXT, _BEFORE):
            path = self.folder / left
            engines: set[str] = set()
            with suppress(FileNotFoundError, UnicodeDecodeError, BundleError):
                manifest = read_manifest(path.read_text(encoding="utf-8"), self.folder)
                engines = {each.file for each in manifest.engines}
            with suppress(OSError):  # then the next build tries again
                for engine in engines - self.files.expected.keys():
                    self._remove_engine(engine)
                path.unlink(missing_ok=True)


def _remedy(body: Any, version: object) -> str:
    """What to do about a manifest of another schema."""
    if not isinstance(version, int) or version < SCHEMA_VERSION:
        return _REMEDY
    packages = body.get("packages")
    writer = packages.get("deploykit") if isinstance(packages, dict) else None
    if isinstance(writer, str) and writer != __version__ and _VERSION.fullmatch(writer):
        return f"deploykit {writer} wrote it: install that version or a later one"
    return "a newer deploykit wrote it: install a later version"
