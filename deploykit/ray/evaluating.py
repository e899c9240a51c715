"""Labelled images through models on a Ray cluster, and what was counted of them as Parquet."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.core.artifacts import sha256_of_bytes
from deploykit.core.environment import require
from deploykit.core.errors import DataError, one_line
from deploykit.ray.cluster import cluster
from deploykit.ray.parts import PartsFolder
from deploykit.ray.predicting import Workers, images_of_a_part, prepared_or_reason, results_of
from deploykit.ray.sources import Part, read_part

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.bundle.manifest import Manifest
    from deploykit.core.progress import ProgressTask
    from deploykit.core.specs import Preprocessing
    from deploykit.ray.predicting import ClusterChoices

    Outputs = NDArray[np.float32]
    Columns = Mapping[str, NDArray[np.int64]]

_NAMED: Final = 3
"""Images that a message names."""


class LabelledParts:
    """Files of labelled images in parts, each a whole number of batches but for the last.

    So a batch holds the same images as on one machine, and its outputs are the same numbers.
    """

    def __init__(
        self, files: Sequence[Path], labels: NDArray[np.int64], manifest: Manifest, batch: int
    ) -> None:
        self.manifest = manifest
        self.size = max(batch, images_of_a_part(manifest) // batch * batch)
        self.files = tuple(str(path.resolve()) for path in files)
        self.labels = labels
        self.parts = [
            Part(number, self.files[at : at + self.size])
            for number, at in enumerate(range(0, len(self.files), self.size))
        ]

    @property
    def digest(self) -> str:
        """SHA-256 over names and labels, in their order, and the images of a part."""
        text = "\n".join([str(self.size), *self.files, *map(str, self.labels.tolist())])
        return sha256_of_bytes(text.encode("utf-8", "surrogateescape"))

    def indices(self, part: Part) -> list[int]:
        """The places of a part's images among all."""
        start = part.number * self.size
        return list(range(start, start + len(part.files)))


def outputs_on_cluster(
    labelled: LabelledParts,
    left: Sequence[Part],
    kinds: Sequence[Preprocessing],
    actor: tuple[type, Mapping[str, Any]],
    choices: ClusterChoices,
    task: ProgressTask,
) -> Generator[tuple[Part, list[Outputs]]]:
    """Each part of ``left`` with what the ``actor`` computes of it, in any order.

    The actor is called with ``part`` and a ``payload``: the pickled inputs (N, C, H, W) of each of
    ``kinds``, or ``None``. It returns ``part`` and ``outputs``, pickled. Images that cannot be read
    end it, once it is known how many there are: a share of fewer images than were given would be
    another number.

    Raises:
        DataError: images cannot be read.
        UsageError: no cluster answers.
        DeploykitError: what an actor raised.
    """
    by_number = {part.number: part for part in left}
    done = len(labelled.files) - sum(len(part.files) for part in left)
    unreadable: dict[int, str] = {}
    with cluster(choices.address) as found:
        workers = Workers.of(found, labelled.manifest, choices)
        decoder = _Decoder(kinds, choices.max_pixels)
        for row in results_of(found, workers, left, decoder, actor):
            part = by_number[int(row["part"])]
            done += len(part.files)
            task.update(done, len(labelled.files))
            # From an actor of this very run.
            reasons, outputs = pickle.loads(row["outputs"])  # noqa: S301
            start = labelled.indices(part)[0]
            unreadable |= {start + at: why for at, why in reasons.items()}
            if not reasons:
                yield part, outputs
    if unreadable:
        raise _of_all(unreadable, labelled.files)


def _of_all(unreadable: Mapping[int, str], files: Sequence[str]) -> DataError:
    named = [
        f"{one_line(files[at])}: {why.splitlines()[0]}" for at, why in sorted(unreadable.items())
    ]
    return DataError(
        f"{len(unreadable)} of {len(files)} images cannot be read: {'; '.join(named[:_NAMED])}\n"
        "every image counts: repair or remove them"
    )


class _Decoder:
    """Prepares the images of a part for each kind of preprocessing; of an unreadable part nothing.

    ``payload`` are the reasons by place, and the inputs.
    """

    def __init__(self, kinds: Sequence[Preprocessing], max_pixels: int | None) -> None:
        self._kinds = tuple(kinds)
        self._max_pixels = max_pixels

    def decode(self, row: dict[str, Any]) -> dict[str, Any]:
        """As `PartDecoder.decode`."""
        contents = list(read_part(Part.from_text(row["text"])))
        reasons: dict[int, str] = {}
        inputs: list[Any] = []
        for steps in self._kinds:
            made = [prepared_or_reason(each, steps, self._max_pixels) for each in contents]
            reasons |= {at: each for at, each in enumerate(made) if isinstance(each, str)}
            inputs.append(None if reasons else np.stack(made))
        payload = pickle.dumps((reasons, inputs), protocol=pickle.HIGHEST_PROTOCOL)
        return {"part": row["part"], "payload": payload}


class CountsFolder:
    """A folder of Parquet with what was counted of each image, which an interrupted run goes on in.

    The columns are ``image``, ``bytes`` of its file, ``label``, and those of the tallies.
    """

    def __init__(self, folder: Path, labelled: LabelledParts, plan: Mapping[str, Any]) -> None:
        self.parts = PartsFolder(folder, {**plan, "images": labelled.digest})
        self._labelled = labelled

    def commit(self, part: Part, columns: Columns) -> None:
        """Write what was counted of a part, whole or not at all.

        Raises:
            BundleError: the disk refuses it; the parts before stay.
        """
        arrow, parquet = require("pyarrow"), require("pyarrow.parquet")
        labels = self._labelled.labels[self._labelled.indices(part)]
        table = {"image": list(part.files), "bytes": _sizes(part), "label": labels, **columns}
        sink = arrow.BufferOutputStream()
        parquet.write_table(arrow.table(table), sink)
        self.parts.commit(part.number, bytes(sink.getvalue().to_pybytes()))

    def counted(self, part: Part) -> Columns | None:
        """What was counted before; ``None`` where an image or the file is not as it was."""
        parquet = require("pyarrow.parquet")
        try:
            table = parquet.read_table(self.parts.path(part.number)).to_pydict()
        except (OSError, ValueError):  # damaged: it is counted again
            return None
        if table.pop("image") != list(part.files) or table.pop("bytes") != _sizes(part):
            return None
        return {name: np.array(values, np.int64) for name, values in table.items()}


def _sizes(part: Part) -> list[int]:
    """Bytes of each file; -1 where it is gone."""
    return [_size(file) for file in part.files]


def _size(file: str) -> int:
    try:
        return Path(file).stat().st_size
    except OSError:
        return -1
