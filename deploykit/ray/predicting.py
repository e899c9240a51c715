"""Predictions for all images of a source, on a Ray cluster: decoded on CPUs, answered in actors."""

from __future__ import annotations

import pickle
import re
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from deploykit import images
from deploykit.bundle.manifest import MANIFEST, Bundle
from deploykit.core import errors
from deploykit.core.artifacts import sha256_of
from deploykit.core.environment import require
from deploykit.core.errors import DataError, DeploykitError, UsageError, typed_first_line
from deploykit.core.gpu_choice import ENGINE_DEVICE, split_device
from deploykit.ray.cluster import Cluster, cluster
from deploykit.ray.parts import PartsFolder
from deploykit.ray.predictor import PreparedPredictor, plain
from deploykit.ray.sources import Part, listing_of, read_part
from deploykit.runtime.classifier import require_top_k

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.bundle.manifest import Manifest
    from deploykit.core.progress import ProgressTask
    from deploykit.core.specs import Preprocessing

_PART_BYTES: Final = 64 * 2**20
"""Of the pixels of a part: several of them are under way in each worker."""
_MOST_IMAGES: Final = 1024
_FLOAT: Final = 4
_AUTO: Final = "auto"
_OWN: Final = re.compile(r"^deploykit\.core\.errors\.(\w+): (.*)\Z", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class ClusterChoices:
    """How a run is done: ``workers`` are the actors that answer, chosen if not given."""

    address: str | None = None
    workers: int | None = None
    device: str = _AUTO
    top_k: int = 5
    threshold: float | None = None
    max_pixels: int | None = None


@dataclass(frozen=True)
class ClusterReport:
    """What is in the output now: ``rows`` of all parts, of which ``resumed`` were there before."""

    output: Path
    rows: int
    failed: int
    named: tuple[tuple[str, str], ...]
    parts: int
    resumed: int
    workers: int
    gpus_each: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "output": str(self.output),
            "rows": self.rows,
            "failed": self.failed,
            "unanswered": [{"image": image, "reason": why} for image, why in self.named],
            "parts": self.parts,
            "resumed_parts": self.resumed,
            "workers": self.workers,
            "gpus_per_worker": self.gpus_each,
        }


def predict_on_cluster(
    bundle: Path, source: str, output: Path, choices: ClusterChoices, task: ProgressTask
) -> ClusterReport:
    """Answer for every image of ``source`` and write Parquet to the folder ``output`` as it goes.

    An interrupted run is begun again with the same call, and goes on. An image without an answer is
    a row with its reason.

    Raises:
        UsageError: the bundle takes more than images, or no cluster answers.
        DataError: there are no images.
        BundleError: the output holds something else, or cannot be written.
        DeploykitError: what an actor raised, as where no engine of the bundle runs on the cluster.
    """
    require_top_k(choices.top_k)
    manifest = require_images_alone(Bundle.open(bundle).manifest)
    bundle = bundle.resolve()
    listing = listing_of(source, images_of_a_part(manifest))
    sha256 = sha256_of(bundle / MANIFEST)
    plan = {
        "bundle": sha256,
        "source": listing.digest,
        "top_k": choices.top_k,
        "threshold": choices.threshold,
        "max_pixels": choices.max_pixels,
    }
    folder = PartsFolder(output, plan)
    with folder.opened() as done:
        left = [part for part in listing.parts if part.number not in done]
        placed = (0, 0.0)
        if left:
            with cluster(choices.address) as connected:
                workers = Workers.of(connected, manifest, choices)
                placed = (workers.count, workers.gpus)
                images_done = listing.count - sum(len(part.names) for part in left)
                task.update(images_done, listing.count)
                sizes = {part.number: len(part.names) for part in left}
                flow = _answered(connected, workers, bundle, sha256, left, choices)
                # Where a part cannot be written, the actors end now, not with the traceback.
                with closing(flow) as answered:
                    for number, content in answered:
                        folder.commit(number, content)
                        images_done += sizes[number]
                        task.update(images_done, listing.count)
        rows, failed, named = folder.summary()
    if rows != listing.count:
        raise DataError(
            f"{output} has {rows} rows for {listing.count} images\n"
            "a part was removed or changed meanwhile: run the same again"
        )
    resumed = len(listing.parts) - len(left)
    return ClusterReport(output, rows, failed, named, len(listing.parts), resumed, *placed)


def require_images_alone(manifest: Manifest) -> Manifest:
    """Refuse a bundle that takes more than images.

    Raises:
        UsageError: it does.
    """
    others = manifest.onnx.inputs[1:]
    if others:
        named = ", ".join(repr(spec.name) for spec in others)
        raise UsageError(
            f"{manifest.name} takes {named} beside the images, which --ray does not have\n"
            "answer in a program: deploykit.load(...).run({name: array, ...}) in map_batches"
        )
    return manifest


def images_of_a_part(manifest: Manifest) -> int:
    """Images that are read, answered and written as a whole, by the size of their pixels."""
    height, width = manifest.preprocessing.crop
    return max(1, min(_MOST_IMAGES, _PART_BYTES // (3 * height * width * _FLOAT)))


def prepared_or_reason(
    content: bytes | str, steps: Preprocessing, max_pixels: int | None
) -> NDArray[Any] | str:
    """The input (C, H, W) of an encoded image, or why there is none; a reason stays what it is."""
    if isinstance(content, str):
        return content
    limit = images.default_max_pixels(steps) if max_pixels is None else max_pixels
    try:
        return images.preprocess(images.decode(content, limit, reduce_for=steps), steps)
    except DataError as error:
        return str(error)


@dataclass(frozen=True)
class Workers:
    """The actors: how many, and what of the cluster each of them takes.

    ``cpus`` and ``gpus`` are those of one actor.
    """

    count: int
    cpus: float
    gpus: float

    @classmethod
    def of(cls, found: Cluster, manifest: Manifest, choices: ClusterChoices) -> Workers:
        """A GPU for each where the bundle's engine needs one, and enough CPUs left to decode.

        Raises:
            UsageError: a GPU was asked for, and the cluster has none.
        """
        name, _ = split_device(choices.device)
        on_gpu = name == ENGINE_DEVICE or (
            name == _AUTO and bool(manifest.engines) and found.gpus >= 1
        )
        if on_gpu and found.gpus < 1:
            raise UsageError(
                f"--device {choices.device}: the cluster has no GPU\n"
                "leave it out to run the bundle's graph on CPUs"
            )
        usual = int(found.gpus) if on_gpu else max(1, int(found.cpus) // 2)
        count = choices.workers or usual
        # What decodes needs processors too: half of them at least.
        cpus = min(0.9, found.cpus / (2 * count))
        return cls(count, cpus, float(on_gpu))


def _answered(
    found: Cluster,
    workers: Workers,
    bundle: Path,
    sha256: str,
    parts: Sequence[Part],
    choices: ClusterChoices,
) -> Generator[tuple[int, bytes]]:
    """The Parquet file of each part, as it is finished, in any order."""
    manifest = Bundle.open(bundle).manifest
    takes_floats = manifest.onnx.inputs[0].dtype == "float32"
    decoder = RowDecoder(manifest.preprocessing, choices.max_pixels, takes_floats=takes_floats)
    arguments = {
        "bundle": str(bundle),
        "sha256": sha256,
        "device": choices.device,
        "top_k": choices.top_k,
        "threshold": choices.threshold,
    }
    for row in results_of(found, workers, parts, decoder, (_Answer, arguments)):
        yield int(row["part"]), row["content"]


def results_of(
    found: Cluster,
    workers: Workers,
    parts: Sequence[Part],
    decoder: PartDecoder,
    actor: tuple[type, Mapping[str, Any]],
) -> Iterator[dict[str, Any]]:
    """What an ``actor``, a class with its arguments, makes of each part, in any order.

    Raises:
        DeploykitError: as the actor raised it, or because of what Ray says.
    """
    rows = [{"part": part.number, "text": part.to_text()} for part in parts]
    kind, arguments = actor
    # A block for each part: a block is what Ray does again when a worker is lost.
    flow = (
        found.data.from_items(rows, override_num_blocks=len(rows))
        .map(decoder.decode, num_cpus=1)
        .map(
            kind,
            fn_constructor_kwargs=dict(arguments),
            compute=found.data.ActorPoolStrategy(size=workers.count),
            num_cpus=workers.cpus,
            num_gpus=workers.gpus,
        )
    )
    try:
        yield from flow.iter_rows()
    except DeploykitError:
        raise
    except Exception as exc:  # Ray has an error for each way to lose a worker
        raise _translated(exc) from exc


def _translated(error: BaseException) -> DeploykitError:
    """The error of ours that an actor raised, or what Ray says of it."""
    seen: set[int] = set()
    reason: BaseException | None = error
    while reason is not None and id(reason) not in seen:
        seen.add(id(reason))
        if isinstance(reason, DeploykitError):
            return reason
        reason = getattr(reason, "cause", None) or reason.__cause__
    # Of an actor that failed before its first call Ray keeps the traceback alone, as a text.
    told = _OWN.search(str(error))
    kind = getattr(errors, told[1], None) if told else None
    if told and isinstance(kind, type) and issubclass(kind, DeploykitError):
        own = kind.__new__(kind)  # a kind may have a constructor of its own
        own.args = (told[2].rstrip(),)
        return own
    return DeploykitError(
        f"the cluster could not go on: {typed_first_line(error)}\n"
        "the parts that are there are whole: run the same again to go on"
    )


class PartDecoder(Protocol):
    """Reads and decodes the images of a part, in a task on a CPU."""

    def decode(self, row: dict[str, Any]) -> dict[str, Any]:
        """``part``, and what the actor needs of it, for a row with ``part`` and ``text``."""


class RowDecoder:
    """Reads and decodes the images of a part, in a task on a CPU."""

    def __init__(
        self, preprocessing: Preprocessing, max_pixels: int | None, *, takes_floats: bool
    ) -> None:
        self._steps = preprocessing
        self._takes_floats = takes_floats
        self._max_pixels = max_pixels

    def decode(self, row: dict[str, Any]) -> dict[str, Any]:
        """What the actor needs of a part: names, reasons, and the inputs of the other images."""
        part = Part.from_text(row["text"])
        reasons: dict[int, str] = {}
        good: list[Any] = []
        for at, content in enumerate(read_part(part)):
            made: Any = content  # the bytes, where the model prepares them
            if self._takes_floats:
                made = prepared_or_reason(content, self._steps, self._max_pixels)
            if isinstance(made, str):
                reasons[at] = made
            else:
                good.append(made)
        given = np.stack(good) if good and self._takes_floats else good
        payload = pickle.dumps((part.names, reasons, given), protocol=pickle.HIGHEST_PROTOCOL)
        return {"part": row["part"], "payload": payload}


class _Answer:
    """The actor: answers for a part, as the bytes of a Parquet file."""

    def __init__(
        self, *, bundle: str, sha256: str, device: str, top_k: int, threshold: float | None
    ) -> None:
        self._predictor = PreparedPredictor(bundle, sha256, device, top_k, threshold)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        # From a task of this very run.
        names, reasons, given = pickle.loads(row["payload"])  # noqa: S301
        if not len(given):
            answers: Iterator[Any] = iter(())
        elif isinstance(given, np.ndarray):
            answers = iter(self._predictor.prepared(given))
        else:
            answers = iter(self._predictor.encoded(given))
        outcomes = [reasons[at] if at in reasons else next(answers) for at in range(len(names))]
        content = parquet_of(names, outcomes, self._predictor.answer_fields)
        return {"part": row["part"], "content": content}


def parquet_of(
    names: Sequence[str], outcomes: Sequence[list[Any] | str], answer_fields: Mapping[str, str]
) -> bytes:
    """A Parquet file with ``image``, ``answers`` (a list of structures) and ``error``."""
    arrow, parquet = require("pyarrow"), require("pyarrow.parquet")
    kinds = {
        "int": arrow.int64(),
        "float": arrow.float64(),
        "bool": arrow.bool_(),
        "str": arrow.string(),
        "ints": arrow.list_(arrow.int64()),
        "floats": arrow.list_(arrow.float32()),
    }
    answer = arrow.struct([(name, kinds[kind]) for name, kind in answer_fields.items()])
    schema = arrow.schema(
        [("image", arrow.string()), ("answers", arrow.list_(answer)), ("error", arrow.string())]
    )
    columns = {
        "image": list(names),
        "answers": [
            None if isinstance(o, str) else [_cells(plain(each), answer_fields) for each in o]
            for o in outcomes
        ],
        "error": [o if isinstance(o, str) else None for o in outcomes],
    }
    sink = arrow.BufferOutputStream()
    parquet.write_table(arrow.table(columns, schema=schema), sink)
    return bytes(sink.getvalue().to_pybytes())


def _cells(answer: Mapping[str, Any], kinds: Mapping[str, str]) -> dict[str, Any]:
    """An answer whose fields of no other kind are texts."""
    return {
        name: str(value) if kinds[name] == "str" and value is not None else value
        for name, value in answer.items()
    }
