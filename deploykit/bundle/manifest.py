"""A bundle on disk: its manifest, and the files that the manifest answers for.

A manifest carries a digest of itself. It guards against slips (an edit by hand, a torn copy), not
against somebody who means harm: an engine is executable, load bundles from trusted places only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping  # noqa: TC003  (read back by these types)
from dataclasses import dataclass, field, replace
from pathlib import Path  # noqa: TC003
from typing import Any, Final, Self

from deploykit._version import __version__
from deploykit.core.artifacts import (
    WEIGHTS_SUFFIX,
    EngineRecord,
    OnnxArtifact,
    sha256_of,
    sha256_of_bytes,
)
from deploykit.core.errors import BundleError, IntegrityError
from deploykit.core.precision import Precision  # noqa: TC001
from deploykit.core.serialization import (
    Source,
    artifact_to_plain,
    engine_to_plain,
    from_plain,
    known_fields,
    parse_json,
    to_plain,
)
from deploykit.core.specs import DEFAULT_HEAD, HeadRecord, Preprocessing

SCHEMA_VERSION: Final = 2
"""Of what is written. A release that knows schema 1 alone would pass over the order of the channels
and the head, and answer wrongly: it refuses this one."""
_READ: Final = (1, SCHEMA_VERSION)
MANIFEST: Final = "manifest.json"
MODEL: Final = "model.onnx"
REFERENCE: Final = "reference.onnx"
"""The FP32 graph that a converted model came from: for `eval` and `validate`, never for serving."""
CPU_MODEL: Final = "model.cpu.onnx"
"""The model for CPUs, which rounds where an engine rounds; not in a bundle of FP32."""
GOLDEN: Final = "golden.npz"
LABELS: Final = "labels.txt"
CALIBRATION: Final = "calibration.json"
SIDE_INPUTS: Final = "side_inputs.npz"

OPTIONAL: Final = (REFERENCE, CPU_MODEL)
"""Files that may be deleted before a bundle is shipped."""

_DIGEST = "manifest_sha256"
_REMEDY: Final = "use the deploykit that wrote it, or export the bundle again"
_VERSION: Final = re.compile(r"[0-9][0-9A-Za-z.+!-]{0,40}")
"""So that nothing else out of a stranger's file gets into a command to be copied."""


@dataclass(frozen=True)
class Manifest:
    """Everything that is known of a bundle; ``files`` gives the sha256 of each one but engines.

    ``precision`` is what was asked for; each engine's record says what was proven. ``head`` says
    what the outputs mean; older bundles have its kind alone, or nothing: logits of classes.
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
        """The manifest with an engine added; one of the same file name is replaced."""
        others = tuple(known for known in self.engines if known.file != engine.file)
        return replace(self, engines=(*others, engine))


def manifest_text(manifest: Manifest) -> str:
    """The file's text, its own digest included."""
    body = _body(manifest)
    return json.dumps(body | {_DIGEST: _digest(body)}, indent=2, sort_keys=True) + "\n"


def _body(manifest: Manifest) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        **to_plain(manifest),
        "onnx": artifact_to_plain(manifest.onnx),
        "engines": [engine_to_plain(engine) for engine in manifest.engines],
    }


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
    if recorded != _digest(body):
        raise IntegrityError(
            f"{source.name} was changed after it was written\n"
            f"it gives sha256 {recorded}, its content has {_digest(body)}\n"
            "export the bundle again; manifests are not edited by hand"
        )
    known = {"head": DEFAULT_HEAD, **known_fields(Manifest, body)}
    if isinstance(known["head"], str):
        known["head"] = to_plain(HeadRecord(known["head"]))
    manifest = from_plain(Manifest, known, source)
    return replace(manifest, onnx=replace(manifest.onnx, path=folder / manifest.onnx.path))


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
    """A folder with its manifest, read and trusted to be the one that was written."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the manifest of ``folder``; the other files are not touched, see `changed_files`.

        Raises:
            BundleError: no bundle there, or a manifest that cannot be read.
            IntegrityError: the manifest was edited.
        """
        try:
            text = (folder / MANIFEST).read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise BundleError(
                f"{folder} is not a bundle: it has no {MANIFEST}\n"
                "make one with: deploykit export ARCHITECTURE"
            ) from exc
        except (OSError, UnicodeDecodeError) as exc:
            raise BundleError(f"cannot read {folder / MANIFEST}: {exc}") from exc
        return cls(folder, read_manifest(text, folder))

    @property
    def model_path(self) -> Path:
        """The ONNX file that the engines were compiled from."""
        return self.manifest.onnx.path

    def on_cpu(self, *, fast: bool = False) -> CpuGraph:
        """The graph that a CPU runs; with ``fast`` the model itself, whatever a CPU makes of it."""
        model = self.manifest.onnx
        if self.manifest.precision.facts.is_source:
            return CpuGraph(model, "")
        if fast:
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
        try:
            text = (self.folder / LABELS).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise BundleError(f"cannot read {self.folder / LABELS}: {exc}") from exc
        return tuple(text.removesuffix("\n").split("\n"))

    def expected_files(self) -> dict[str, str]:
        """The sha256 of every file that the manifest names."""
        engines = {engine.file: engine.sha256 for engine in self.manifest.engines}
        return {**self.manifest.files, **engines}

    def changed_files(self) -> list[str]:
        """One sentence for each file that is missing or has another hash."""
        problems = []
        for name, expected in self.expected_files().items():
            path = self.folder / name
            if name.removesuffix(WEIGHTS_SUFFIX) in OPTIONAL and not path.exists():
                continue  # documented as safe to delete before shipping
            problem = _difference(path, expected)
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
            IntegrityError: names the first that changed, and both hashes.
        """
        expected = self.expected_files()
        beside = [name + WEIGHTS_SUFFIX for name in names if name + WEIGHTS_SUFFIX in expected]
        for name in (*names, *beside):
            problem = _difference(self.folder / name, expected[name])
            if problem:
                raise IntegrityError(
                    f"{self.folder.name}: {name} {problem}\ncopy or export the bundle again"
                )

    def with_engine(self, engine: EngineRecord, staged: Path) -> Bundle:
        """Move the engine file ``staged`` in, then the manifest that names it.

        Raises:
            BundleError: the folder cannot be written to, or its manifest no longer be read.
        """
        # Reading a bundle, which a service does, needs no locks.
        from deploykit.core.atomic import exclusive, translated_write_errors

        with translated_write_errors(self.folder), exclusive(self.folder):
            # Read again: another build may have added its engine meanwhile.
            current = Bundle.open(self.folder).manifest.with_engine(engine)
            staged.replace(self.folder / engine.file)
            fresh = self.folder / f".{MANIFEST}.part"
            fresh.write_text(manifest_text(current), encoding="utf-8")
            fresh.replace(self.folder / MANIFEST)
        return Bundle(self.folder, current)


def _difference(path: Path, expected: str) -> str | None:
    try:
        found = sha256_of(path)
    except (FileNotFoundError, IsADirectoryError):
        return "is missing"
    except OSError as exc:
        return f"cannot be read: {exc.strerror}"
    return None if found == expected else f"has sha256 {found}, the manifest gives {expected}"


def _remedy(body: Any, version: object) -> str:
    """What to do about a manifest of another schema."""
    if not isinstance(version, int) or version < SCHEMA_VERSION:
        return _REMEDY
    packages = body.get("packages")
    writer = packages.get("deploykit") if isinstance(packages, dict) else None
    if isinstance(writer, str) and writer != __version__ and _VERSION.fullmatch(writer):
        return f"deploykit {writer} wrote it: pip install -U 'deploykit>={writer}'"
    return "a newer deploykit wrote it: pip install -U deploykit"


def _digest(body: Mapping[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return sha256_of_bytes(canonical.encode())
