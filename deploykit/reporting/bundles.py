"""One HTML page about bundles: what each is, how it answers, where it loses, what it was made of.

A function of bundles alone, so that it can be made of any that is there, at any time.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from deploykit._version import __version__
from deploykit.bundle.manifest import MODEL, REFERENCE
from deploykit.bundle.reading import read_bundles
from deploykit.core.atomic import write_whole
from deploykit.core.errors import UsageError
from deploykit.core.progress import Progress, SilentProgress
from deploykit.reporting.document import asset, document, require_report_name
from deploykit.reporting.measured import measure
from deploykit.reporting.recorded import record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from deploykit.bundle.manifest import Bundle

SCRIPTS: Final = ("overview.js", "layer_charts.js", "bundle_charts.js", "bundles.js")
_TEMPLATE: Final = "bundles.html"
_STYLE: Final = "bundles.css"
_KILOBYTES: Final = 1e6
"""Bytes below which a size is said in kB."""

_LEAST_SHARE: Final = 0.005
"""Of the arithmetic, for a precision to be named in the sentence."""


def write_report(
    bundles: Sequence[Path],
    file: Path,
    *,
    data: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write one page about the bundles in these folders, whole or not at all.

    ``data`` has the images on which answers and activations are compared with the FP32 graph that
    each bundle keeps; the photographs that come with deploykit without it.

    Raises:
        UsageError: no bundle, or a file that is no page.
        BundleError: a folder is no bundle; the file cannot be written.
        IntegrityError: a file of a bundle is not as it was written.
        DataError: the images cannot be read.
    """
    require_report_name(file)
    if not bundles:
        raise UsageError("a report of no bundle\nname at least one folder")
    told = report_data(bundles, data=data, progress=progress or SilentProgress())
    write_whole(file, page_of(told))
    return file


def report_data(
    bundles: Sequence[Path], *, data: Path | None, progress: Progress
) -> dict[str, Any]:
    """Everything on the page, as plain data."""
    folders = list(dict.fromkeys(bundles))

    def every(found: Mapping[Path, Bundle]) -> list[dict[str, Any]]:
        return [_of(found[folder], data, progress) for folder in folders]

    return {
        "deploykit": __version__,
        "created": f"{datetime.now(UTC):%Y-%m-%d %H:%M UTC}",
        "bundles": read_bundles(folders, every),
    }


def page_of(told: Mapping[str, Any]) -> str:
    """The page of `report_data`; nothing of it is read as HTML."""
    names = ", ".join(bundle["name"] for bundle in told["bundles"])
    return document(
        title=f"deploykit: {names}",
        template=asset(__package__, _TEMPLATE),
        scripts=[asset(__package__, name) for name in SCRIPTS],
        style=asset(__package__, _STYLE),
        data=told,
    )


def _of(bundle: Bundle, data: Path | None, progress: Progress) -> dict[str, Any]:
    told = record(bundle) | measure(bundle, data, progress)
    return {**told, "verdict": verdict_of(told)}


def verdict_of(told: Mapping[str, Any]) -> str:
    """One bundle in a sentence: its answers, its arithmetic, its size, its engines."""
    parts = (_answers_text(told), _arithmetic_text(told), _size_text(told), _engines_text(told))
    doubts = "".join(f" WEAK VERIFICATION: {reason}." for reason in told["doubts"])
    return "; ".join(part for part in parts if part) + f".{doubts}"


def _answers_text(told: Mapping[str, Any]) -> str:
    answers, checks = told["answers"], told["validation"]
    passed = sum(check["passed"] for check in checks)
    begin = f"{told['name']} passed {passed} of {len(checks)} checks of its export"
    if "reason" in answers:
        return begin
    images = answers["images"]
    if answers["measure"] == "error":
        error = f"{answers['error']:.2%}".replace("%", " %")
        return f"{begin} and gives the outputs of FP32 within {error} on {images} images"
    same = images - answers["count"]
    return f"{begin} and answers as FP32 does on {same} of {images} images"


def _arithmetic_text(told: Mapping[str, Any]) -> str:
    shares = {each["precision"]: each["share"] for each in told["layers"]["precisions"]}
    ordered = sorted(shares, key=lambda name: -shares[name])
    shown = [name for name in ordered if shares[name] >= _LEAST_SHARE]
    texts = (f"{_percent(shares[name])} {name.upper()}" for name in shown)
    return f"arithmetic {', '.join(texts)}" if shown else ""


def _percent(share: float) -> str:
    """A share in whole percents, which says 100 of all alone."""
    return f"{min(round(100 * share), 99 if share < 1 else 100)} %"


def _size_text(told: Mapping[str, Any]) -> str:
    sizes = {file["name"]: file["bytes"] for file in told["files"]}
    model, original = sizes.get(MODEL), sizes.get(REFERENCE)
    if model is None:
        return ""
    unit, name = (1e6, "MB") if max(model, original or 0) >= _KILOBYTES else (1e3, "kB")
    instead = "" if original is None else f" instead of {original / unit:.3g}"
    return f"graph {model / unit:.3g} {name}{instead}"


def _engines_text(told: Mapping[str, Any]) -> str:
    count = len(told["engines"])
    if not count:
        return "no engine yet"
    return "1 engine" if count == 1 else f"{count} engines"
