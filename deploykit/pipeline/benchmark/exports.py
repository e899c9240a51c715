"""Exports that are kept for the next run, under the rules of `deploykit export`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from deploykit import environment
from deploykit.artifacts import made_of
from deploykit.bundle import Bundle
from deploykit.errors import BundleError
from deploykit.pipeline.calibrate import RANDOM, CalibrationOptions
from deploykit.pipeline.export import ExportOptions, export
from deploykit.pipeline.int8 import Int8Request
from deploykit.pipeline.int8_choice import Wishes
from deploykit.pipeline.targets import name_of
from deploykit.specs import Precision

if TYPE_CHECKING:
    from pathlib import Path

NOISE_IMAGES: Final = 8


def exported(target: str, precision: Precision, work: Path, digest: str | None) -> Bundle:
    """The bundle of ``target`` in ``work``, without an engine; ``digest`` is that of its files.

    An export of before is used again if the target and the installed packages are the same.

    Raises:
        DeploykitError: the error of the stage that failed.
    """
    place = work / f"{name_of(target)}-{precision}"
    known = _usable(place, digest)
    if known is not None:
        return known
    table = work / f"{place.name}.calibration.npz"
    options = ExportOptions(
        precision=precision,
        backend="none",
        output=place,
        int8=_noise(table) if precision is Precision.INT8 else None,
    )
    return export(target, options).bundle


def _noise(table: Path) -> Int8Request:
    """Ranges that cost nothing: every layer in INT8 that can be, nothing tried out."""
    wishes = Wishes("max", "int8", "int8", "int8", "off")
    return Int8Request(CalibrationOptions(RANDOM, NOISE_IMAGES, 0, table), wishes)


def _usable(place: Path, digest: str | None) -> Bundle | None:
    """The bundle of an earlier export, unless it was made from or by something else."""
    try:
        bundle = Bundle.open(place)
        bundle.require_unchanged(bundle.model_path.name)
    except BundleError:  # nothing there, or damaged: the export replaces it, or says why not
        return None
    here = environment.describe()
    same_tools = bundle.manifest.packages == {"deploykit": here.deploykit, **here.packages}
    manifest = bundle.manifest
    source = manifest.model.get("source_sha256")
    both = made_of(str(source), manifest.weights.get("sha256"))
    sources = (*manifest.onnx.parents, source, both)
    same_source = digest is None or digest in sources
    return bundle if same_tools and same_source else None
