"""A bundle that needs no export: its logits are the mean of each colour."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.bundle.manifest import GOLDEN, LABELS, MANIFEST, MODEL, Manifest, manifest_text
from deploykit.core.artifacts import EngineRecord, OnnxArtifact, sha256_of, sha256_of_bytes
from deploykit.core.precision import Precision
from deploykit.core.sizes import ShapeProfile
from deploykit.core.specs import Preprocessing, TensorSpec
from tests.graphs import graph, normal, save

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

SIZE = 8
COLOURS = """colours (float[{batch}, 3, {image}] input) => (float[{batch}, 3] logits)
{{ mean = GlobalAveragePool(input)  logits = Flatten(mean) }}"""
PLAIN = Preprocessing(crop=(SIZE, SIZE), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
"""Pixels from 0 to 1."""


def colours_of(batch: NDArray[Any]) -> NDArray[np.float32]:
    """What the model computes, (N, 3, H, W) to (N, 3)."""
    means: NDArray[np.float32] = batch.mean(axis=(2, 3), dtype=np.float32)
    return means


def engine_record(file: str = "tensorrt-11.4.0.106-sm90.engine", **changes: Any) -> EngineRecord:
    record = EngineRecord(
        file=file,
        sha256=sha256_of_bytes(file.encode()),
        bytes=len(file),
        compiler="tensorrt",
        compiler_version="11.4.0.106",
        compute_capabilities=("9.0",),
        profile=ShapeProfile(1, 2, 4),
        precision=Precision.FP32,
        precision_census={"CONVOLUTION FLOAT": 1},
        build_s=0.5,
    )
    return replace(record, **changes)


def write_bundle(
    folder: Path,
    *engines: EngineRecord,
    batch: str = "N",
    image: str = f"{SIZE}, {SIZE}",
    source: str = COLOURS,
    answers: Callable[[Any], Any] = colours_of,
    **changes: Any,
) -> Path:
    """The bundle in ``folder``; the content of each engine's file is its own name.

    ``source`` is another graph, and ``answers`` what it gives for the golden sample.
    """
    folder.mkdir(exist_ok=True)
    save(graph(source.format(batch=batch, image=image)), folder / MODEL)
    (folder / LABELS).write_text("red\ngreen\nblue\n", encoding="utf-8")
    sample = normal(2, 3, SIZE, SIZE)
    np.savez(folder / GOLDEN, input=sample, logits=answers(sample))
    for engine in engines:
        (folder / engine.file).write_text(engine.file, encoding="utf-8")
    sizes = (int(size) if size.isdecimal() else size for size in image.split(", "))
    manifest = _manifest(folder, tuple(sizes))
    if "files" in changes:
        changes["files"] = {MODEL: manifest.files[MODEL], **changes["files"]}
    manifest = replace(manifest, engines=engines, **changes)
    (folder / MANIFEST).write_text(manifest_text(manifest), encoding="utf-8")
    return folder


def _manifest(folder: Path, sizes: tuple[int | str, ...]) -> Manifest:
    files = {name: sha256_of(folder / name) for name in (MODEL, LABELS, GOLDEN)}
    image = TensorSpec("input", "float32", ("N", 3, *sizes))
    logits = TensorSpec("logits", "float32", ("N", 3))
    graph_of = OnnxArtifact(
        folder / MODEL, files[MODEL], Precision.FP32, 20, (image,), (logits,), ()
    )
    return Manifest(
        name="colours-fp32",
        model={"name": "colours", "num_classes": 3},
        weights={"source": "none", "sha256": None, "trained": True},
        preprocessing=PLAIN,
        precision=Precision.FP32,
        onnx=graph_of,
        files=files,
        validation=(),
        conversion={},
        engines=(),
        packages={"numpy": "2.0"},
        created="2026-01-01T00:00:00+00:00",
    )


def write_classifier(
    path: Path, image: str = "8, 8", batch: str = "N", channels: int = 16, colours: int = 3
) -> Path:
    """A small FP32 classifier of 8x8 images, as a user brings one: two layers, 4 classes."""
    model = graph(
        f"g (float[{batch},{colours},{image}] input) => (float[{batch},4] logits)"
        """ {
            c = Conv <pads = [1, 1, 1, 1]> (input, w)
            r = Relu (c)
            m = GlobalAveragePool (r)
            f = Flatten (m)
            logits = Gemm <transB = 1> (f, v)
        }""",
        {"w": normal(channels, colours, 3, 3), "v": normal(4, channels, seed=1)},
    )
    return save(model, path)
