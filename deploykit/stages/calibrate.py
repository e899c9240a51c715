"""One pass over real images, and the range of every tensor by all methods."""

from __future__ import annotations

import json
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit import images, onnx_graph
from deploykit.artifacts import sha256_of_bytes
from deploykit.calibration import CalibrationKey, CalibrationTable
from deploykit.calibrators import METHODS, PERCENTILE
from deploykit.errors import DataError, UsageError
from deploykit.histograms import BINS, Histogram, RunningHistogram
from deploykit.images import FileImages
from deploykit.onnx_graph.expose import expose_named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from deploykit.artifacts import OnnxArtifact
    from deploykit.images import ImageSet
    from deploykit.specs import Array, Preprocessing, ProgressTask, Runner

    Batch = tuple[NDArray[np.float32], list[int]]

FEW_IMAGES: Final = 32
"""Fewer leave the ranges to chance."""

MAX_CORRUPT: Final = 0.01
"""Share of unreadable images above which something is wrong with the data, not with an image."""

HOLDOUT: Final = 0.2
"""Share of the images that methods are compared on, and that the ranges then do not come from."""


@dataclass(frozen=True)
class CalibrationData:
    """The images to calibrate with: which ones of ``source``, in order, and what is done to them.

    ``seed`` chose ``indices``; it is kept to say so.
    """

    source: ImageSet
    preprocessing: Preprocessing
    indices: Sequence[int]
    seed: int

    def key(self, model_sha256: str) -> CalibrationKey:
        """What a table of these images depends on.

        Raises:
            DataError: a file cannot be read.
        """
        settings = {
            "images": len(self.indices),
            "seed": self.seed,
            "choice": sha256_of_bytes(json.dumps(list(self.indices)).encode()),
            "methods": list(METHODS),
            "bins": BINS,
            "percentile": PERCENTILE,
        }
        preprocessing = self.preprocessing.to_dict()
        return CalibrationKey(model_sha256, self._digest(), preprocessing, settings)

    def _digest(self) -> str:
        # Of a large folder only the files that were chosen are read.
        if isinstance(self.source, FileImages):
            return FileImages(tuple(self.source.paths[index] for index in self.indices)).digest
        return self.source.digest

    def name_of(self, index: int) -> str:
        """How messages call an image: its file where it has one of its own."""
        if isinstance(self.source, FileImages):
            return str(self.source.paths[index])
        return f"image {index}"


def choose_images(available: int, wanted: int, seed: int) -> list[int]:
    """Indices of ``wanted`` images, or of all where there are fewer, in a random fixed order.

    A smaller choice with the same seed is the beginning of a larger one.

    >>> choose_images(10, 3, seed=0) == choose_images(10, 10, seed=0)[:3]
    True

    Raises:
        UsageError: fewer than one image is wanted.
    """
    if wanted < 1:
        raise UsageError(f"{wanted} calibration images were asked\nexpected at least 1")
    # Python promises the same numbers of random() in every version, of sample() it does not.
    random = Random(seed)  # noqa: S311 - a choice of images is no secret
    order = [random.random() for _ in range(available)]
    return sorted(range(available), key=order.__getitem__)[:wanted]


def split_holdout(indices: Sequence[int], share: float = HOLDOUT) -> tuple[list[int], list[int]]:
    """The images to calibrate with, and those to compare methods on; at least one in each.

    >>> split_holdout([4, 0, 3, 1, 2])
    ([4, 0, 3, 1], [2])

    Raises:
        DataError: fewer than two images.
    """
    if len(indices) < 2:  # noqa: PLR2004
        raise DataError(
            f"{len(indices)} image is too few to compare calibration methods on others\n"
            "give more images, or choose a method"
        )
    held = min(max(1, round(len(indices) * share)), len(indices) - 1)
    return list(indices[:-held]), list(indices[-held:])


def few_images_warning(count: int) -> str | None:
    """What to say where there are too few images for steady ranges."""
    if count >= FEW_IMAGES:
        return None
    return (
        f"only {count} calibration images: the ranges depend on chance; "
        f"give at least {FEW_IMAGES}, better 512"
    )


def calibrate(
    artifact: OnnxArtifact,
    names: Sequence[str],
    data: CalibrationData,
    *,
    open_runner: Callable[[bytes], Runner],
    task: ProgressTask,
) -> CalibrationTable:
    """The range of every tensor of ``names`` by all methods, from one pass over ``data``.

    ``open_runner`` is given the graph with these tensors as outputs. Its threads should sleep
    while they wait: here they share the processor with those that count.

    Raises:
        DataError: no images, more than 1 % of them cannot be read, or a tensor is NaN or infinite.
        UsageError: the graph has no such tensor.
    """
    if not data.indices:
        raise DataError("there are no images to calibrate with\nexpected at least 1, better 512")
    key = data.key(artifact.sha256)
    skipped: list[int] = []
    # The graph is handed over, not kept: it would take its size in memory all along.
    with open_runner(expose_named(onnx_graph.read_model(artifact.path), names)) as runner:
        found = collect(
            runner,
            names,
            _readable(data, _fixed_batch(runner) or 1, skipped),
            task=task,
            total=len(data.indices),
            name_of=data.name_of,
        )
    return CalibrationTable(
        key=key,
        images=len(data.indices) - len(skipped),
        skipped=tuple(map(data.name_of, skipped)),
        amax=ranges(found),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def ranges(histograms: Mapping[str, Histogram]) -> dict[str, dict[str, float]]:
    """What every method of `METHODS` makes of each histogram."""
    return {
        name: {method: float(function(histogram)) for method, function in METHODS.items()}
        for name, histogram in histograms.items()
    }


def collect(
    runner: Runner,
    names: Iterable[str],
    batches: Iterable[Batch],
    *,
    task: ProgressTask,
    total: int | None = None,
    name_of: Callable[[int], str] = "image {}".format,
) -> dict[str, Histogram]:
    """Magnitudes of the model's input or outputs ``names``, over batches (N, C, H, W).

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
            values = {feed: inputs, **_run(runner, feed, inputs)}
            if pending is not None:
                pending.result()
            pending = pool.submit(_count, running, values, [name_of(i) for i in indices])
            done += len(indices)
            task.update(done, total, "images")
        if pending is not None:
            pending.result()
    return {name: histogram.freeze() for name, histogram in running.items()}


def _run(runner: Runner, feed: str, inputs: NDArray[np.float32]) -> dict[str, Array]:
    size = _fixed_batch(runner) or len(inputs)
    if size == len(inputs):
        return runner.run({feed: inputs})
    outputs = runner.run({feed: np.resize(inputs, (size, *inputs.shape[1:]))})
    return {name: values[: len(inputs)] for name, values in outputs.items()}


def _count(
    running: Mapping[str, RunningHistogram], values: Mapping[str, Array], of: Sequence[str]
) -> None:
    for name, histogram in running.items():
        try:
            histogram.add(values[name].astype(np.float32, copy=False))
        except DataError as exc:
            raise DataError(
                f"{name} is NaN or infinite for {_first_broken(values[name], of)}\n"
                "check the weights, and that images are preprocessed as in training"
            ) from exc


def _first_broken(values: Array, of: Sequence[str]) -> str:
    """Which of the images; any of them where the tensor does not lie image by image."""
    if len(values) != len(of):
        return f"one of {', '.join(of)}"
    rows = values.reshape(len(of), -1)
    return of[int(np.argmin(np.isfinite(rows).all(axis=1)))]


def _readable(data: CalibrationData, size: int, skipped: list[int]) -> Iterator[Batch]:
    """Batches of the images that can be read; the others are added to ``skipped``.

    Raises:
        DataError: too many cannot be read; raised with the first one that is too many.
    """
    waiting = deque(data.indices)
    for inputs, indices in images.batches(
        data.source, data.preprocessing, size, data.indices, on_corrupt="skip"
    ):
        for index in indices:
            while (expected := waiting.popleft()) != index:
                skipped.append(expected)
        _require_few(skipped, data)
        yield inputs, indices
    skipped.extend(waiting)
    _require_few(skipped, data)


def _require_few(skipped: Sequence[int], data: CalibrationData) -> None:
    if len(skipped) > MAX_CORRUPT * len(data.indices):
        named = ", ".join(map(data.name_of, skipped[:3]))
        raise DataError(
            f"{len(skipped)} of {len(data.indices)} images cannot be read: {named}"
            f"{' ...' if len(skipped) > 3 else ''}\n"  # noqa: PLR2004
            "at most 1 % may be corrupt: repair or remove them"
        )


def _fixed_batch(runner: Runner) -> int | None:
    first = runner.inputs[0].shape[0]
    return first if isinstance(first, int) else None
