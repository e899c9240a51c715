"""One pass over the images, and the range of every tensor by all methods."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from deploykit import images, onnx_graph
from deploykit.calibration import CalibrationTable
from deploykit.calibrators import METHODS
from deploykit.errors import DataError
from deploykit.onnx_graph.expose import expose_named
from deploykit.stages.calibrate.collection import collect, fixed_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from deploykit.artifacts import OnnxArtifact
    from deploykit.histograms import RunningHistogram
    from deploykit.specs import ProgressTask, Runner, SplitGraph
    from deploykit.stages.calibrate.collection import Batch
    from deploykit.stages.calibrate.data import CalibrationData

MAX_CORRUPT: Final = 0.01
"""Share of unreadable images above which something is wrong with the data, not with an image."""


def calibrate(
    artifact: OnnxArtifact,
    names: Sequence[str],
    data: CalibrationData,
    *,
    open_runner: Callable[[SplitGraph], Runner],
    task: ProgressTask,
) -> CalibrationTable:
    """The range of every tensor of ``names`` by all methods, from one pass over ``data``.

    The pass stops for a moment before the held-out images: what was seen until then gives the
    trial ranges, and all of it the final ones.

    ``open_runner`` is given the graph with these tensors as outputs. Its threads should sleep
    while they wait: here they share the processor with those that count.

    Raises:
        DataError: no images, more than 1 % of them cannot be used, or a tensor is NaN or infinite.
        UsageError: the graph has no such tensor.
    """
    if not data.indices:
        raise DataError("there are no images to calibrate with\nexpected at least 1, better 512")
    key = data.key(artifact.sha256)
    skipped: list[int] = []
    parts: list[dict[str, RunningHistogram]] = []
    # The graph is handed over, not kept: it would take its size in memory all along.
    with open_runner(expose_named(onnx_graph.read_model(artifact.path), names)) as runner:
        for indices, before in ((data.indices, 0), (data.held_out, len(data.indices))):
            readable = _readable(data, indices, fixed_batch(runner) or 1, skipped)
            steps = _Steps(task, before, len(data.every_index))
            parts.append(collect(runner, names, readable, steps=steps, name_of=data.name_of))
    seen, held_out = parts
    trial = ranges(seen) if data.held_out else {}
    for name, histogram in seen.items():
        histogram.merge(held_out[name])
    return CalibrationTable(
        key=key,
        images=len(data.every_index) - len(skipped),
        skipped=tuple(map(data.name_of, skipped)),
        amax=ranges(seen),
        trial_amax=trial,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def ranges(histograms: Mapping[str, RunningHistogram]) -> dict[str, dict[str, float]]:
    """What every method of `METHODS` makes of each histogram, as it is now."""
    frozen = {name: histogram.freeze() for name, histogram in histograms.items()}
    return {
        name: {method: float(function(histogram)) for method, function in METHODS.items()}
        for name, histogram in frozen.items()
    }


@dataclass(frozen=True)
class _Steps:
    """Progress of one part of the images, shown as that of all."""

    task: ProgressTask
    before: int
    total: int

    def update(self, done: float, total: float | None = None, detail: str = "") -> None:
        """``total`` is that of all parts, whatever the part's own is."""
        del total
        self.task.update(self.before + done, self.total, detail)


def _readable(
    data: CalibrationData, indices: Sequence[int], size: int, skipped: list[int]
) -> Iterator[Batch]:
    """Batches of the images that can be used; the others are added to ``skipped``.

    Raises:
        DataError: too many cannot be used; raised with the first one that is too many.
    """
    waiting = deque(indices)
    for inputs, found in images.batches(
        data.source, data.preprocessing, size, indices, on_corrupt="skip", pad=False
    ):
        for index in found:
            while (expected := waiting.popleft()) != index:
                skipped.append(expected)
        _require_few(skipped, data)
        yield inputs, found
    skipped.extend(waiting)
    _require_few(skipped, data)


def _require_few(skipped: Sequence[int], data: CalibrationData) -> None:
    if len(skipped) > MAX_CORRUPT * len(data.every_index):
        named = ", ".join(map(data.name_of, skipped[:3]))
        raise DataError(
            f"{len(skipped)} of {len(data.every_index)} images cannot be used: {named}"
            f"{' ...' if len(skipped) > 3 else ''}\n"  # noqa: PLR2004
            f"the first one: {_why_not(data, skipped[0])}\n"
            "at most 1 % may be corrupt: repair or remove them"
        )


def _why_not(data: CalibrationData, index: int) -> str:
    try:
        images.preprocess(data.source.load(index), data.preprocessing, pad=False)
    except DataError as exc:
        return str(exc).splitlines()[0]
    return "it could not be read before, now it can"
