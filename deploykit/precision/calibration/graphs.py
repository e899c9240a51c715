"""`deploykit calibrate`: the ranges of a model's activations on real images, kept for later."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from deploykit import images
from deploykit.core.errors import DataError, UsageError
from deploykit.core.precision import RANDOM
from deploykit.graph.qdq import calibration_tensors
from deploykit.precision.calibration.collection import calibrate, contradiction
from deploykit.precision.calibration.data import (
    CalibrationData,
    CalibrationOptions,
    _source_of,
    choose_images,
    few_images_warning,
    open_calibration_images,
    split_holdout,
)
from deploykit.precision.calibration.table import (
    CalibrationTable,
    FoundTable,
    find_table,
    places_of_table,
    same_story,
)

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.comparison.reference import Runners
    from deploykit.core.progress import Journal
    from deploykit.core.specs import Preprocessing
    from deploykit.graph import LoadedGraph


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


def calibrate_graph(  # noqa: PLR0913 - each comes from another stage
    graph: LoadedGraph,
    name: str,
    preprocessing: Preprocessing,
    options: CalibrationOptions,
    journal: Journal,
    runners: Runners,
    *,
    tensors: tuple[str, ...] | None = None,
) -> Calibrated:
    """One pass over the images, or the table of an earlier pass where its key matches.

    A fifth of the images is held out, for comparing methods on what trial ranges did not see.
    ``graph`` is not in memory during the pass. ``tensors`` are by default what INT8 may need.

    Raises:
        UsageError: the model takes something beside images of which there is only noise.
        DataError: the images cannot be used, or give NaN; a table that must fit does not, or says
            what a few of its images refute; the table's place has a file that is no table.
        ModelFileError: the graph is quantized already.
    """
    if runners.side.is_noise and options.data != RANDOM:
        raise UsageError(
            f"ranges need real values of what {name} takes beside the images: "
            f"{', '.join(runners.side.rows)}\n"
            "give some: --side-inputs FILE.npz, an array for each input by its name"
        )
    source = open_calibration_images(options, preprocessing)
    if isinstance(source, images.FileImages):
        journal.notes += images.notes_on_skipped(source.skipped)
    chosen = choose_images(len(source), options.count, options.seed)
    if (warning := few_images_warning(len(chosen))) is not None:
        journal.notes.append(warning)
    seen, held_out = split_holdout(chosen)
    data = CalibrationData(source, preprocessing, seen, options.seed, held_out, runners.side)
    # Of all policies: which layers are kept is decided later, on these ranges.
    if tensors is None:
        tensors = calibration_tensors(graph.model)
    with journal.stage("calibrate") as task:
        found = _find(name, options, data, graph, tensors, runners)
        table = found.table
        if table is None:
            table = calibrate(graph, tensors, data, open_runner=runners.open, task=task)
            table.save(found.path)
    journal.notes += images.notes_on_reduced(
        source, preprocessing, data.every_index, "calibration images"
    )
    if table.skipped:
        named = ", ".join(table.skipped[:3])
        journal.notes.append(f"{len(table.skipped)} images could not be used: {named}")
    journal.notes.append(f"calibration table {found.path}: {found.story}")
    if options.data == RANDOM:
        journal.notes.append(
            "calibrated on noise: for sizes and speed only, its answers mean nothing"
        )
    return Calibrated(table, found.path, data, found.story, _source_of(options))


def _find(
    name: str,
    options: CalibrationOptions,
    data: CalibrationData,
    graph: LoadedGraph,
    tensors: tuple[str, ...],
    runners: Runners,
) -> FoundTable:
    sha256 = graph.artifact.sha256
    key = cache(lambda: data.key(sha256))  # reads all images, if there is a table at all

    def difference(table: CalibrationTable) -> str:
        return table.matches(key(), tensors) or contradiction(
            table, graph, tensors, data, open_runner=runners.open
        )

    if options.table is None:
        return find_table(places_of_table(name, options.bundle), difference)
    if not options.must_fit:
        return find_table([options.table], difference)
    table = CalibrationTable.load(options.table)
    table.require_model(sha256)
    if differs := difference(table):
        raise DataError(
            f"the calibration table {options.table} does not fit: {differs}\n"
            "give what it was made from, or calibrate anew: leave --calib-table out"
        )
    return FoundTable(table, options.table, same_story(table))
