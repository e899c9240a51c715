"""First outputs for labelled images, on a Ray cluster: what `deploykit eval --ray` counts."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.bundle.manifest import MANIFEST, Bundle
from deploykit.core.artifacts import sha256_of
from deploykit.core.errors import DataError, UsageError, ValidationError, one_line
from deploykit.ray.cluster import cluster
from deploykit.ray.predicting import (
    RowDecoder,
    Workers,
    images_of_a_part,
    require_images_alone,
    results_of,
)
from deploykit.ray.predictor import PreparedPredictor
from deploykit.ray.sources import Part

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.core.progress import ProgressTask
    from deploykit.ray.predicting import ClusterChoices

_NAMED: Final = 3
"""Images that a message names."""


def outputs_on_cluster(
    bundle: Path, files: Sequence[Path], choices: ClusterChoices, task: ProgressTask
) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
    """The places of some images among ``files``, and the model's first outputs (N, K) for them.

    Each image comes once, in any order. Images that cannot be read end it, once it is known how
    many there are: a share of fewer images than were given would be another number.

    Raises:
        DataError: images cannot be read.
        ValidationError: outputs that are not numbers.
        UsageError: the bundle takes more than images, or no cluster answers.
    """
    manifest = require_images_alone(Bundle.open(bundle).manifest)
    image = manifest.onnx.inputs[0]
    if image.dtype != "float32":
        raise UsageError(
            f"{manifest.name} takes {image.dtype} images, and eval --ray feeds float32 ones\n"
            "leave --ray out, or count what predict --ray answers"
        )
    bundle, size = bundle.resolve(), images_of_a_part(manifest)
    parts = [
        Part(number, tuple(str(path.resolve()) for path in files[at : at + size]))
        for number, at in enumerate(range(0, len(files), size))
    ]
    decoder = RowDecoder(manifest.preprocessing, choices.max_pixels, takes_floats=True)
    sha256, done = sha256_of(bundle / MANIFEST), 0
    unreadable: dict[int, str] = {}
    with cluster(choices.address) as found:
        workers = Workers.of(found, manifest, choices)
        actor = (_Outputs, {"bundle": str(bundle), "sha256": sha256, "device": choices.device})
        for row in results_of(found, workers, parts, decoder, actor):
            # From an actor of this very run.
            reasons, outputs = pickle.loads(row["outputs"])  # noqa: S301
            start = int(row["part"]) * size
            count = len(parts[int(row["part"])].files)
            unreadable |= {start + at: why for at, why in reasons.items()}
            done += count
            task.update(done, len(files), "images")
            if not unreadable:
                indices = list(range(start, start + count))
                yield indices, _numbers(outputs, indices)
    if unreadable:
        raise _of_all(unreadable, files)


def _numbers(outputs: NDArray[np.float32], indices: Sequence[int]) -> NDArray[np.float32]:
    wrong = np.flatnonzero(np.isnan(outputs).any(axis=1))
    if wrong.size:
        raise ValidationError(
            f"the outputs of image {indices[wrong[0]]} and {wrong.size - 1} more are not numbers\n"
            "values beyond the range of FP16 are the usual reason: does the FP32 model do it too?"
        )
    return outputs


def _of_all(unreadable: dict[int, str], files: Sequence[Path]) -> DataError:
    named = [
        f"{one_line(files[at])}: {why.splitlines()[0]}" for at, why in sorted(unreadable.items())
    ]
    return DataError(
        f"{len(unreadable)} of {len(files)} images cannot be read: {'; '.join(named[:_NAMED])}\n"
        "every image counts: repair or remove them"
    )


class _Outputs:
    """The actor: the model's first outputs for a part."""

    def __init__(self, *, bundle: str, sha256: str, device: str) -> None:
        self._predictor = PreparedPredictor(bundle, sha256, device, 1, None)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        # From a task of this very run.
        _, reasons, given = pickle.loads(row["payload"])  # noqa: S301
        # Of a part with an unreadable image nothing is counted.
        outputs = None if reasons else self._predictor.first_outputs(given)
        return {"part": row["part"], "outputs": pickle.dumps((reasons, outputs))}
