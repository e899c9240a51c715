"""One pass over calibration images: histograms of every tensor, and its range by all methods."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from math import gcd, inf, prod
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit import images
from deploykit.core.errors import DataError
from deploykit.graph.activations import expose_named
from deploykit.images.side_inputs import all_inputs
from deploykit.precision.calibration.calibrators import (
    ALL_ZERO_BELOW,
    METHODS,
    RunningHistogram,
    half_octaves,
)
from deploykit.precision.calibration.table import CalibrationTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from deploykit.core.progress import ProgressTask
    from deploykit.core.specs import Array, Runner, SplitGraph
    from deploykit.graph import LoadedGraph
    from deploykit.precision.calibration.data import CalibrationData

    Batch = tuple[NDArray[np.float32], list[int]]


COUNTED: Final = 32768
"""Values of a tensor that are counted for each image; of a larger one, evenly spaced ones.

Of ResNet-50's 10.6 million values 1.2 are counted, which takes a quarter of the time. 600 million
values of 512 images leave no doubt where the shape of a distribution is, and the maximum is always
that of all values.
"""


def collect(
    runner: Runner,
    names: Iterable[str],
    batches: Iterable[Batch],
    *,
    steps: ProgressTask,
    name_of: Callable[[int], str] = "image {}".format,
) -> dict[str, RunningHistogram]:
    """Magnitudes of the model's inputs or outputs ``names``, over batches (N, C, H, W).

    Each batch comes with the numbers of its images. Memory does not grow with their count: a
    batch is counted in a second thread while the next one is computed, and then let go. A batch
    that is smaller than the model's fixed one is filled up, and the filling not counted.

    Raises:
        DataError: a value is NaN or infinite; says of which tensor and image.
    """
    feed = runner.inputs[0].name
    running = {name: RunningHistogram() for name in names}
    done = 0
    with ThreadPoolExecutor(1, thread_name_prefix="deploykit-histograms") as pool:
        pending: Future[None] | None = None
        for inputs, indices in batches:
            values = {**all_inputs(runner, inputs), **_run(runner, feed, inputs)}
            if pending is not None:
                pending.result()
            pending = pool.submit(_count, running, values, [name_of(i) for i in indices])
            done += len(indices)
            steps.update(done, None, "images")
        if pending is not None:
            pending.result()
    return running


def _run(runner: Runner, feed: str, inputs: NDArray[np.float32]) -> dict[str, Array]:
    size = runner.inputs[0].fixed_batch or len(inputs)
    if size == len(inputs):
        return runner.run({feed: inputs})
    outputs = runner.run({feed: np.resize(inputs, (size, *inputs.shape[1:]))})
    return {name: values[: len(inputs)] for name, values in outputs.items()}


def _count(
    running: Mapping[str, RunningHistogram], values: Mapping[str, Array], of: Sequence[str]
) -> None:
    for name, histogram in running.items():
        value = values[name].astype(np.float32, copy=False)
        try:
            for image in value if len(value) == len(of) else (value,):
                histogram.add(image, spacing(image.shape))
        except DataError as exc:
            raise DataError(
                f"{name} is NaN or infinite for {_first_broken(values[name], of)}\n"
                "check the weights, and that images are preprocessed as in training"
            ) from exc


def spacing(shape: Sequence[int]) -> int:
    """Every so-manieth value of an image's tensor is counted, `COUNTED` at most.

    >>> spacing((64, 112, 112)), spacing((512, 7, 7))
    (25, 1)

    It has no factor in common with the tensor's last dimension: every column is seen.
    """
    every = max(1, -(-prod(shape) // COUNTED))
    while shape and gcd(every, shape[-1]) > 1:
        every += 1
    return every


def _first_broken(values: Array, of: Sequence[str]) -> str:
    """Which of the images; any of them where the tensor does not lie image by image."""
    if len(values) != len(of):
        return f"one of {', '.join(of)}"
    rows = values.reshape(len(of), -1)
    return of[int(np.argmin(np.isfinite(rows).all(axis=1)))]


MAX_CORRUPT: Final = 0.01
"""Share of unreadable images above which something is wrong with the data, not with an image."""


def calibrate(
    graph: LoadedGraph,
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
    key = data.key(graph.artifact.sha256)
    skipped: list[int] = []
    parts: list[dict[str, RunningHistogram]] = []
    with open_runner(_handed_over(graph, names)) as runner:
        for indices, before in ((data.indices, 0), (data.held_out, len(data.indices))):
            readable = _readable(data, indices, runner.inputs[0].fixed_batch or 1, skipped)
            steps = _Steps(task, before, len(data.every_index))
            parts.append(collect(runner, names, readable, steps=steps, name_of=data.name_of))
    seen, held_out = parts
    trial = ranges(seen) if data.held_out else {}
    for name, histogram in seen.items():
        histogram.merge(held_out[name])
    shape = {name: half_octaves(histogram.freeze()) for name, histogram in seen.items()}
    return CalibrationTable(
        key=key,
        images=len(data.every_index) - len(skipped),
        skipped=tuple(map(data.name_of, skipped)),
        amax=ranges(seen),
        trial_amax=trial,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        half_octaves=shape,
    )


PROBED_PIXELS: Final = 4 * 224 * 224
"""Of the images by which a table that was kept is judged; one of them at least."""

FURTHEST: Final = 2.0**16
"""Between a range and the largest value of a few images; a calibrator's bins end at 2**11."""

NARROWEST: Final = 2
"""How far a value may pass the maximum of all images; other machines round differently."""


def contradiction(
    table: CalibrationTable,
    graph: LoadedGraph,
    names: Sequence[str],
    data: CalibrationData,
    *,
    open_runner: Callable[[SplitGraph], Runner],
) -> str:
    """Why a table cannot be of these images, by the values of a few; empty where nothing says so.

    A range that is off by less passes: only calibrating again would tell.

    Raises:
        DataError: an image cannot be used.
    """
    height, width = data.preprocessing.crop
    count = max(1, PROBED_PIXELS // (height * width))
    largest = dict.fromkeys(names, 0.0)
    with open_runner(_handed_over(graph, names)) as runner:
        feed, size = runner.inputs[0].name, runner.inputs[0].fixed_batch or 1
        some = data.indices[:count]
        for inputs, _ in images.batches(
            data.source, data.preprocessing, size, some, on_corrupt="skip", pad=False
        ):
            values = {**all_inputs(runner, inputs), **_run(runner, feed, inputs)}
            for name in names:
                # NaN, once found, stays, and fits no range.
                largest[name] = float(np.maximum(largest[name], np.abs(values[name]).max()))
    return next(filter(None, (_range_beside(table, name, largest[name]) for name in names)), "")


def _range_beside(table: CalibrationTable, name: str, largest: float) -> str:
    """What is wrong with the ranges of a tensor that was seen to reach ``largest``."""
    whole = table.amax[name].get("max", inf)
    if largest > whole * NARROWEST:
        return f"its images reach {largest:.3g} at {name}, it gives {whole:.3g} as the maximum"
    if largest < ALL_ZERO_BELOW:  # other images may have values there
        return ""
    for method, amax in (*table.amax[name].items(), *table.trial_amax.get(name, {}).items()):
        if not largest / FURTHEST <= amax <= largest * FURTHEST:
            return f"its images reach {largest:.3g} at {name}, {method} gives {amax:.3g}"
    return ""


def _handed_over(graph: LoadedGraph, names: Sequence[str]) -> SplitGraph:
    # Kept beside the runner's own, the graph would take its size in memory all along.
    shown = expose_named(graph.model, names)
    graph.release()
    return shown


def ranges(histograms: Mapping[str, RunningHistogram]) -> dict[str, dict[str, float]]:
    """What every method of `METHODS` makes of each histogram, as it is now.

    As many histograms at a time as there are cores: numpy lets other threads run while it counts.
    """
    methods = dict(METHODS)

    def by_every_method(histogram: RunningHistogram) -> dict[str, float]:
        frozen = histogram.freeze()
        return {method: float(function(frozen)) for method, function in methods.items()}

    with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="deploykit-ranges") as pool:
        found = pool.map(by_every_method, histograms.values())
        return dict(zip(histograms, found, strict=True))


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
        DataError: too many cannot be used; says of all images how many.
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
    if len(skipped) <= MAX_CORRUPT * len(data.every_index):
        return
    # All of them are looked at, so that they can be mended in one go.
    found = images.Unusable.of(data.source, data.preprocessing, data.every_index, pad=False)
    if not found.errors:
        raise DataError(
            f"{data.name_of(skipped[0])} could not be read, now it can\ncalibrate once more"
        )
    raise found.error(data.source, "at most 1 % may be corrupt: repair or remove them")
