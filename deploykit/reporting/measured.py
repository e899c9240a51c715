"""Facts of a report that are computed: layers, their errors, changed answers.

The FP32 graph that the bundle keeps is the reference. Everything runs on the CPU, in the arithmetic
of an engine, as `deploykit validate --layers` does it.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.backends._registry import graph_judge
from deploykit.bundle.golden import runners_of_bundle
from deploykit.bundle.manifest import REFERENCE
from deploykit.comparison.converted import open_as_engine
from deploykit.comparison.layerwise import compare_layers
from deploykit.core.errors import UsageError, ValidationError
from deploykit.graph import read_graph, read_model, tidy
from deploykit.graph.node_precisions import Known, read_precision
from deploykit.graph.shapes import fix_image_size
from deploykit.heads import head_of
from deploykit.images import (
    batches,
    name_of,
    open_images,
    pixels_before,
    sample_images,
    sample_indices,
)
from deploykit.images.byte_images import floats_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.bundle.manifest import Bundle
    from deploykit.comparison.reference import Runners
    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.core.progress import Progress, ProgressTask
    from deploykit.core.specs import Preprocessing
    from deploykit.graph.node_precisions import GraphPrecision
    from deploykit.heads import Head

    Images = NDArray[np.float32]

MOST_IMAGES: Final = 256
"""Images on which answers are compared at most, spread evenly over those given."""

LAYER_IMAGES: Final = 4
"""Of these, the ones whose activations are compared: each shows all of them."""

MOST_PICTURES: Final = 24
"""Changed answers with a picture: a page stays some hundred kB."""

PICTURE_PX: Final = 128
_BATCH: Final = 16
_ANSWERS: Final = 3


@dataclass(frozen=True)
class PreparedSet:
    """Prepared images (N, C, H, W), what each is called, and where they come from."""

    prepared: Images
    names: tuple[str, ...]
    source: str


def read_images(data: Path | None, preprocessing: Preprocessing) -> PreparedSet:
    """At most `MOST_IMAGES`, prepared; the photographs that come with deploykit without ``data``.

    Raises:
        DataError: they cannot be read.
    """
    found = sample_images() if data is None else open_images(data)
    chosen = sample_indices(len(found), MOST_IMAGES)
    prepared = [batch for batch, _ in batches(found, preprocessing, _BATCH, indices=chosen)]
    source = "photographs that come with deploykit" if data is None else f"images of {data.name}"
    names = tuple(name_of(found, index).rpartition("/")[2] for index in chosen)
    return PreparedSet(np.concatenate(prepared), names, source)


def layers_of(bundle: Bundle) -> GraphPrecision:
    """The precision of each node, with the reasons that the export wrote down."""
    manifest = bundle.manifest
    model = read_model(bundle.model_path)
    tidy(model, rename=False)
    fix_image_size(model, manifest.preprocessing.crop)
    kept = {**manifest.conversion.get("kept_fp32", {}), **manifest.conversion.get("kept", {})}
    batch = manifest.onnx.inputs[0].fixed_batch or 1
    return read_precision(model, manifest.precision, batch, Known(kept), graph_judge().run_once)


def measure(bundle: Bundle, data: Path | None, progress: Progress) -> dict[str, Any]:
    """Plain data: ``layers``, ``errors``, ``answers``; of the last two a ``reason`` for a lack."""
    bundle.require_unchanged(bundle.model_path.name)
    with progress.step(f"layers of {bundle.manifest.name}"):
        layers = layers_of(bundle)
    kept = _reference(bundle)
    if kept is None:
        lacks = {"reason": f"the bundle keeps no {REFERENCE} to compare with: it is FP32 itself"}
        if not bundle.manifest.precision.facts.is_source:
            lacks = {"reason": f"{REFERENCE} was deleted, with which answers are compared"}
        return {"layers": _layers(layers), "errors": lacks, "answers": lacks}
    images = read_images(data, bundle.manifest.preprocessing)
    runners = runners_of_bundle(bundle)
    with progress.step(f"answers of {bundle.manifest.name}"):
        answers = _answers(bundle, kept, images, runners)
    with progress.step(f"errors of {bundle.manifest.name}") as task:
        errors = _errors(bundle, kept, images, runners, task)
    return {"layers": _layers(layers), "errors": errors, "answers": answers}


def _reference(bundle: Bundle) -> OnnxArtifact | None:
    path = bundle.folder / REFERENCE
    if REFERENCE not in bundle.manifest.files or not path.is_file():
        return None
    bundle.require_unchanged(REFERENCE)
    return read_graph(path).artifact


def _layers(found: GraphPrecision) -> dict[str, Any]:
    """Nodes with multiply-adds, the heaviest first, and how much is in each precision."""
    told = found.to_dict()
    heavy = [node for node in told["nodes"] if node["multiply_adds"]]
    wanted = ("name", "op_type", "precision", "multiply_adds", "share", "reason")
    counts = found.heavy_in
    return {
        "precisions": [
            {"precision": str(each), "layers": counts.get(each, 0), "share": found.share(adds)}
            for each, adds in found.multiply_adds_in.items()
        ],
        "nodes": [
            {name: node[name] for name in wanted}
            for node in sorted(heavy, key=lambda node: -node["multiply_adds"])
        ],
        "casts": told["casts"],
        "qdq_pairs": told["qdq_pairs"],
    }


def _errors(
    bundle: Bundle,
    reference: OnnxArtifact,
    images: PreparedSet,
    runners: Runners,
    task: ProgressTask,
) -> dict[str, Any]:
    fixed = bundle.manifest.onnx.inputs[0].fixed_batch
    size, count = fixed or 1, LAYER_IMAGES
    shown = np.resize(images.prepared, (max(size, count), *images.prepared.shape[1:]))
    cut = [shown[at : at + size] for at in range(0, len(shown) - size + 1, size)]
    try:
        found = compare_layers(
            bundle.manifest.onnx,
            reference,
            cut,
            open_runner=runners.open_unoptimised,
            task=task,
        )
    except (ValidationError, UsageError) as exc:
        return {"reason": str(exc).splitlines()[0]}
    tolerance, first = found.precision.facts.tolerance, found.first_fault
    return {
        "images": found.images,
        "healthy_db": tolerance.healthy_db,
        "fault": None if first is None else first.value.name,
        "fault_reason": None if first is None else first.reason,
        "values": [
            {
                "name": value.name,
                "node": value.node,
                "op_type": value.op_type,
                "sqnr_db": value.sqnr_db,
                "equal": value.sqnr_db == np.inf,
                "cosine": value.cosine,
                "drop_db": found.drop_of(value),
            }
            for value in found.values
        ],
    }


def _answers(
    bundle: Bundle, reference: OnnxArtifact, images: PreparedSet, runners: Runners
) -> dict[str, Any]:
    head = head_of(bundle.manifest.head)
    size = bundle.manifest.onnx.inputs[0].fixed_batch or _BATCH
    with (
        open_as_engine(runners, bundle.manifest.onnx) as candidate,
        runners.of_artifact(reference) as original,
    ):
        got, wanted = (_outputs(each, images.prepared, size) for each in (candidate, original))
    losses = head.losses(got, wanted)
    facts = {"images": len(wanted), "source": images.source, "measure": head.loss_measure}
    if head.loss_measure == "error":
        return {**facts, "error": float(losses.mean()), "changed": []}
    changed = np.flatnonzero(losses > 0)
    pictures = [
        {
            "name": images.names[at],
            "picture": picture_of(images.prepared[at], bundle.manifest.preprocessing),
            "reference": _text(head, wanted[at : at + 1], bundle.labels),
            "candidate": _text(head, got[at : at + 1], bundle.labels),
        }
        for at in changed[:MOST_PICTURES].tolist()
    ]
    return {**facts, "count": len(changed), "changed": pictures}


def _outputs(runner: Any, images: Images, size: int) -> NDArray[np.float32]:
    """The first output on all images, in batches of ``size``, the last filled up."""
    feed, first = runner.inputs[0].name, runner.outputs[0].name
    found = []
    for at in range(0, len(images), size):
        batch = images[at : at + size]
        full = np.resize(batch, (size, *batch.shape[1:]))
        found.append(runner.run({feed: full})[first][: len(batch)])
    return np.concatenate(found)


def _text(head: Head, output: NDArray[np.float32], labels: tuple[str, ...] | None) -> str:
    """The best answer to one image; of several labels the likeliest ones."""
    count = 1 if head.loss_measure == "answers" else _ANSWERS
    try:
        (best,) = head.answers(output, labels, count)
    except ValidationError:
        return "NaN or infinite"
    return "; ".join(" ".join(head.answer_row(answer)) for answer in best)


def picture_of(image: Images, preprocessing: Preprocessing) -> str:
    """A data URI of a small PNG of a prepared image (C, H, W), its pixels as they were before.

    An image of bytes is as ``preprocessing.pixels`` has it.
    """
    from PIL import Image

    if preprocessing.pixels is not None:
        image = floats_of(image[None], preprocessing)[0]
    shown = Image.fromarray(pixels_before(image, preprocessing))
    shown.thumbnail((PICTURE_PX, PICTURE_PX))
    file = io.BytesIO()
    shown.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
