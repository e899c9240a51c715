"""A build folder for a container with deploykit's own service."""

from __future__ import annotations

import re
import shutil
import zipfile
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Final

from deploykit._version import __version__
from deploykit.core.errors import UsageError, one_line
from deploykit.packaging._place import (
    PackageChoices,
    Packed,
    ShippingPlace,
    asset,
    copy_bundle,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from deploykit.bundle.manifest import Bundle

_RUNTIMES: Final[Mapping[str, str]] = {"tensorrt-rtx": "rtx", "tensorrt": "tensorrt"}
"""Extras of deploykit by the compiler whose engines they run."""

_PINS: Final[Mapping[str, str]] = {
    "tensorrt-rtx": "tensorrt-rtx-cu13=={}",
    "tensorrt": "tensorrt=={}.*",  # some releases are 10.13.3.9.post1 for pip alone
}
"""What pip is held to, by compiler: the distribution of its extra, at the engines' version."""

_PLAIN_VERSION: Final = re.compile(r"[0-9]+(\.[0-9]+)*")
"""So that nothing else out of a manifest gets into a file that pip obeys."""

_CONSTRAINTS: Final = "constraints.txt"

_IGNORED: Final = f"*\n!bundle\n!{_CONSTRAINTS}\n!wheel/*.whl\n"


class Docker(ShippingPlace):
    """The Dockerfile, the bundle, and the wheel of deploykit where it is given."""

    summary = "a build folder for a container with deploykit's own service"
    choices: ClassVar[frozenset[str]] = frozenset({"wheel"})

    def require(self, choices: PackageChoices) -> None:
        """Refuse what is no wheel of deploykit.

        Raises:
            UsageError: it is.
        """
        if choices.wheel is not None:
            _require_wheel(choices.wheel)

    def carried(self, before: Path, choices: PackageChoices) -> PackageChoices:
        """With the wheel of ``before``, where it has one of ours and no other is named."""
        wheels = list((before / "wheel").glob("*.whl"))
        if choices.wheel is not None or len(wheels) != 1 or not _is_our_wheel(wheels[0]):
            return choices
        return replace(choices, wheel=wheels[0])

    def write(self, bundle: Bundle, folder: Path, choices: PackageChoices) -> Packed:
        """Fill ``folder``."""
        copy_bundle(bundle, folder / "bundle")
        extra = ",".join(("serve", *_runtimes(bundle)))
        tag, has_engine = _tag(bundle.manifest.name), bool(_runtimes(bundle))
        values = {"tag": tag, "extra": extra}
        values["run"] = _run_options(has_engine=has_engine)
        (folder / "Dockerfile").write_text(asset("Dockerfile", **values), encoding="utf-8")
        (folder / ".dockerignore").write_text(_IGNORED, encoding="utf-8")
        (folder / "wheel").mkdir()
        pins, notes = _pins(bundle)
        lines = ["# The engines load in the runtime of their own version alone.", *pins]
        (folder / _CONSTRAINTS).write_text("\n".join(lines) + "\n", encoding="utf-8")
        if choices.wheel is None:
            notes.append(
                "put the wheel of deploykit into wheel/ before the image is built: "
                "python -m build --wheel, in a checkout; or --wheel FILE.whl"
            )
        else:
            shutil.copyfile(choices.wheel, folder / "wheel" / choices.wheel.name)
        if not has_engine:
            notes.append("the bundle has no engine: the service runs its graph on the CPU")
        text = asset(
            "docker.md",
            **values,
            name=bundle.manifest.name,
            version=__version__,
            created=bundle.manifest.created,
            precision=str(bundle.manifest.precision),
            engines=_engines(bundle),
            notes="".join(f"\nNote: {note}.\n" for note in notes),
        )
        (folder / "README.md").write_text(text, encoding="utf-8")
        return Packed({"extra": extra, "tag": tag, "pinned": pins}, tuple(notes))


def _require_wheel(path: Path) -> None:
    """Our own wheel is meant, with which everything else is installed."""
    if not _is_our_wheel(path):
        raise UsageError(
            f"--wheel {path} is no wheel of deploykit\n"
            "it is made in a checkout: python -m build --wheel, and lies in dist/ then"
        )


def _is_our_wheel(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as opened:
            return path.suffix == ".whl" and "deploykit/_version.py" in opened.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def _runtimes(bundle: Bundle) -> list[str]:
    """The extras that run the bundle's engines; TensorRT's own first, which `load` prefers."""
    compilers = {engine.compiler for engine in bundle.manifest.engines}
    return sorted((_RUNTIMES[each] for each in compilers & _RUNTIMES.keys()), reverse=True)


def _pins(bundle: Bundle) -> tuple[list[str], list[str]]:
    """Lines that hold pip to the version of the engines, and notes where there is no such one."""
    pins, notes = [], []
    for compiler, line in _PINS.items():
        engines = [each for each in bundle.manifest.engines if each.compiler == compiler]
        versions = sorted({each.compiler_version for each in engines})
        if len(versions) == 1 and _PLAIN_VERSION.fullmatch(versions[0]):
            pins.append(line.format(versions[0]))
        elif versions:
            notes.append(
                f"the version of {compiler} is not pinned, for the engines are of "
                f"{one_line(', '.join(versions))}: name one in {_CONSTRAINTS}"
            )
    return pins, notes


def _tag(name: str) -> str:
    """The bundle's name as a container may be called: lower case, and few characters."""
    return re.sub(r"[^a-z0-9_.-]+", "-", name.lower()).strip("._-") or "model"


def _run_options(*, has_engine: bool) -> str:
    gpus = "--gpus all " if has_engine else ""
    return f"--rm {gpus}--read-only --tmpfs /tmp --cap-drop ALL -p 8000:8000 -p 8001:8001"


def _engines(bundle: Bundle) -> str:
    rows = [
        f"- `{engine.file}`: {engine.compiler} {engine.compiler_version}, compute capability "
        f"{engine.targets}"
        for engine in bundle.manifest.engines
    ]
    return "\n".join(map(one_line, rows)) or "- none: the service runs the graph on the CPU"


PLACE = Docker()
