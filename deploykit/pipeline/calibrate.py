"""`deploykit calibrate`: the ranges of a model's activations on real images, kept for later."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit import images, onnx_graph
from deploykit.bundle import MODEL, REFERENCE, Bundle
from deploykit.calibration import CalibrationTable
from deploykit.errors import DataError, UsageError
from deploykit.onnx_graph.qdq import QdqPolicy, plan_qdq
from deploykit.pipeline.journal import Journal
from deploykit.pipeline.references import find_source, make_reference
from deploykit.pipeline.runners import Runners
from deploykit.pipeline.targets import Kind, kind_of, refuse_definition_options
from deploykit.specs import Precision, Preprocessing, Progress, SilentProgress
from deploykit.stages.calibrate import (
    CalibrationData,
    calibrate,
    choose_images,
    few_images_warning,
    split_holdout,
)

if TYPE_CHECKING:
    from deploykit.artifacts import OnnxArtifact
    from deploykit.images import ImageSet
    from deploykit.pipeline.sources import SourceOptions

RANDOM: Final = "random"
"""In place of images: for trying out sizes and speed. The ranges then mean nothing."""

TABLES: Final = Path("calib")
"""Where tables are kept for the next export of the same model."""


_SAME: Final = "used again: same model, images, preprocessing and settings"


@dataclass(frozen=True)
class CalibrationOptions:
    """Which images, and how many; ``table`` is where the result is kept and looked for.

    ``data`` is a path, `RANDOM`, or any `ImageSet`: `images.GivenImages` makes one of an iterable.
    With ``must_fit`` the table there is used or refused, never made anew.
    """

    data: str | ImageSet
    count: int = 512
    seed: int = 0
    table: Path | None = None
    must_fit: bool = False


@dataclass(frozen=True)
class Calibrated:
    """A table, where it lies, which images it saw, and why it was made or used again."""

    table: CalibrationTable
    path: Path
    data: CalibrationData
    story: str
    source: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the manifest and ``--json``."""
        return {
            "table": str(self.path.name),
            "source": self.source,
            "digest": self.table.digest,
            "images": self.table.images,
            "skipped": list(self.table.skipped),
            "data_digest": self.table.key.data_digest,
            "tensors": len(self.table.amax),
            "story": self.story,
        }


def calibrate_graph(
    artifact: OnnxArtifact,
    name: str,
    preprocessing: Preprocessing,
    options: CalibrationOptions,
    journal: Journal,
    runners: Runners,
) -> Calibrated:
    """One pass over the images, or the table of an earlier pass where its key matches.

    A fifth of the images is held out, for comparing methods on what trial ranges did not see.

    Raises:
        UsageError: the model takes something beside images of which there is only noise.
        DataError: the images cannot be used, or give NaN; a table that must fit does not.
        ModelFileError: the graph is quantized already.
    """
    if runners.side.is_noise and options.data != RANDOM:
        raise UsageError(
            f"ranges need real values of what {name} takes beside the images: "
            f"{', '.join(runners.side.rows)}\n"
            "give some: --side-inputs FILE.npz, an array for each input by its name"
        )
    source = open_calibration_images(options, preprocessing)
    chosen = choose_images(len(source), options.count, options.seed)
    if (warning := few_images_warning(len(chosen))) is not None:
        journal.notes.append(warning)
    seen, held_out = split_holdout(chosen)
    data = CalibrationData(source, preprocessing, seen, options.seed, held_out, runners.side)
    path = options.table or TABLES / f"{name}.json"
    # Every value that could ever be quantized, so that a table serves all policies.
    tensors = plan_qdq(onnx_graph.read_model(artifact.path), QdqPolicy()).tensors
    with journal.stage("calibrate") as task:
        find = _required if options.must_fit else _reusable
        table, story = find(path, data, artifact, tensors)
        if table is None:
            table = calibrate(artifact, tensors, data, open_runner=runners.sharing, task=task)
            table.save(path)
    if table.skipped:
        named = ", ".join(table.skipped[:3])
        journal.notes.append(f"{len(table.skipped)} images could not be used: {named}")
    journal.notes.append(f"calibration table {path}: {story}")
    if options.data == RANDOM:
        journal.notes.append(
            "calibrated on noise: for sizes and speed only, its answers mean nothing"
        )
    return Calibrated(table, path, data, story, _source_of(options))


def calibrate_target(
    target: str,
    options: CalibrationOptions,
    told: SourceOptions,
    progress: Progress | None = None,
) -> tuple[Calibrated, Journal]:
    """Calibrate a definition, an FP32 ``.onnx`` file, or the FP32 graph of a bundle.

    Torch is needed for a definition only, which is exported as `deploykit export` does it.

    Raises:
        UsageError: ``target`` has no use for what it is told.
        DataError: the images cannot be used.
    """
    journal = Journal(progress or SilentProgress())
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder) / MODEL
        artifact, name, preprocessing, runners = _fp32_graph(target, scratch, told, journal)
        calibrated = calibrate_graph(artifact, name, preprocessing, options, journal, runners)
    return calibrated, journal


def open_calibration_images(options: CalibrationOptions, preprocessing: Preprocessing) -> ImageSet:
    """The images that ``options.data`` names; noise only where it was asked for by name."""
    if not isinstance(options.data, str):
        return options.data
    if options.data != RANDOM:
        return images.open_images(Path(options.data))
    noise = np.random.default_rng(options.seed)
    shape = (options.count, *preprocessing.crop, 3)
    return images.ArrayImages(noise.integers(0, 256, shape, np.uint8))


def _source_of(options: CalibrationOptions) -> str:
    if not isinstance(options.data, str):
        return "images given by a program"
    return "random noise" if options.data == RANDOM else Path(options.data).name


def _reusable(
    path: Path, data: CalibrationData, artifact: OnnxArtifact, tensors: tuple[str, ...]
) -> tuple[CalibrationTable | None, str]:
    if not path.exists():
        return None, "made now, there was none"
    try:
        table = CalibrationTable.load(path)
    except DataError as exc:
        return None, f"made now: {str(exc).splitlines()[0]}"
    difference = table.matches(data.key(artifact.sha256), tensors)
    if difference:
        return None, f"made anew: {difference}"
    return table, _SAME


def _required(
    path: Path, data: CalibrationData, artifact: OnnxArtifact, tensors: tuple[str, ...]
) -> tuple[CalibrationTable, str]:
    table = CalibrationTable.load(path)
    table.require_model(artifact.sha256)
    difference = table.matches(data.key(artifact.sha256), tensors)
    if difference:
        raise DataError(
            f"the calibration table {path} does not fit: {difference}\n"
            "give what it was made from, or calibrate anew: leave --calib-table out"
        )
    return table, _SAME


def _fp32_graph(
    target: str, scratch: Path, told: SourceOptions, journal: Journal
) -> tuple[OnnxArtifact, str, Preprocessing, Runners]:
    if kind_of(target) is Kind.BUNDLE:
        refuse_definition_options(target, told.choices, told.weights)
        bundle = Bundle.open(Path(target))
        fp32 = bundle.manifest.precision is Precision.FP32
        artifact = onnx_graph.read_artifact(bundle.folder / (MODEL if fp32 else REFERENCE))
        preprocessing = told.choices.preprocessing.applied_to(bundle.manifest.preprocessing)
        name, runners = str(bundle.manifest.model["name"]), Runners.of_bundle(bundle)
        return artifact, name, preprocessing, runners
    # Prepared as an export does it, so that the table fits the graph of a later export.
    reference = make_reference(find_source(target, told, journal), scratch, journal, told)
    name = str(reference.model["name"])
    return reference.artifact, name, reference.preprocessing, reference.runners
