"""Files of a bundle with anything in them: a right answer, or an error of ours, and no other."""

from __future__ import annotations

import copy
import json
import random
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit import load
from deploykit.benchmarking.report.page import write_reports
from deploykit.benchmarking.results import read_run, write_run
from deploykit.bundle.manifest import GOLDEN, MANIFEST, MODEL, Bundle
from deploykit.core.artifacts import sha256_of, sha256_of_bytes
from deploykit.core.errors import DeploykitError
from deploykit.sources.hugging_face import read_processor
from deploykit.verbs.check import check
from deploykit.verbs.inspect import inspect
from tests.bundles import SIZE, engine_record, write_bundle
from tests.unit.benchmarking.report.reported import gpu_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 10**30, -1.5, 1e308, float("nan"), float("inf"), "", "a", "N",
    "float32", "fp16", "model.onnx", "\ud800", "\x1b[2J", "x" * 5000, [], [0], [-1, -1], ["N"],
    [[]], [None], {}, {"": {}}, {"a": [1]}, [1, 2, 3], [{}],
)  # fmt: skip
"""What JSON can hold in place of something else."""


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def places(value: Any) -> Iterator[tuple[Any, ...]]:
    """The way to each value within plain data."""
    if not isinstance(value, dict | list):
        return
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield (key,)
        yield from ((key, *way) for way in places(inner))


def mutated(body: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Plain data with one or two of their values replaced or removed."""
    changed = copy.deepcopy(body)
    for _ in range(rng.choice((1, 1, 2))):
        *way, last = rng.choice(list(places(changed)))
        holder: Any = changed
        for key in way:
            holder = holder[key]
        kind = rng.random()
        if kind < 0.2:
            del holder[last]
        else:
            holder[last] = rng.choice(VALUES)
    if changed and rng.random() < 0.03:
        changed[rng.choice(list(changed))] = nested(rng.choice((50, 950)))
    return changed


def write_signed(folder: Path, body: dict[str, Any]) -> None:
    """As somebody does who knows how the digest is made."""
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    text = json.dumps({**body, "manifest_sha256": sha256_of_bytes(canonical.encode())})
    (folder / MANIFEST).write_text(text, encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With all that a manifest may have."""
    return write_bundle(
        tmp_path / "colours",
        engine_record(),
        calibration={"source": "random noise", "images": 8},
        conversion={"kept_heavy": 1, "kept_fp32": {"a": "its squares overflow"}, "kept": {}},
        validation=({"passed": True, "batches": [{"max_abs": 1e-4}]},),
        model={"name": "colours", "num_classes": 3, "image_size": [8, 8], "source_sha256": None},
    )


def outcome(use: Callable[[], object]) -> str:
    try:
        use()
    except DeploykitError as error:
        return type(error).__name__
    return "right"


def use_everywhere(folder: Path) -> list[str]:
    """What each of the commands that read a bundle makes of it."""

    def serve() -> None:
        with load(folder, device="cpu") as model:
            model.predict([np.zeros((SIZE, SIZE, 3), np.uint8)])
            model.self_test()

    uses = (serve, lambda: check(folder), lambda: inspect(str(folder)), lambda: load(folder))
    return [outcome(use) for use in uses]


def test_manifests_with_other_values(folder: Path) -> None:
    rng = random.Random(0)  # noqa: S311
    body = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    del body["manifest_sha256"]
    seen = set()
    for _ in range(400):
        changed = mutated(body, rng)
        try:
            write_signed(folder, changed)
        except RecursionError:
            continue  # no tool of python's could have written it
        seen.update(use_everywhere(folder))
    assert {"right", "BundleError"} <= seen


def test_manifests_with_other_bytes(folder: Path) -> None:
    rng = random.Random(1)  # noqa: S311
    content = (folder / MANIFEST).read_bytes()
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 2, 30))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (folder / MANIFEST).write_bytes(damaged[: rng.choice((len(damaged), rng.randrange(9)))])
        if outcome(lambda: Bundle.open(folder)) == "right":  # blanks between the values
            assert json.loads((folder / MANIFEST).read_bytes()) == json.loads(content)


ARRAYS: tuple[Any, ...] = (
    np.float32(1), np.zeros(0, np.float32), np.zeros((2, 3), np.float32), np.zeros((2, 3), "U3"),
    np.zeros((2, 3, SIZE, SIZE), np.complex64), np.zeros((2, 3, SIZE, SIZE), bool),
    np.full((2, 3, SIZE, SIZE), np.nan, np.float32), np.zeros((0, 3, SIZE, SIZE), np.float32),
    np.zeros((2, 3, SIZE, SIZE), np.float64), np.zeros((2, 3, SIZE, SIZE), "M8[s]"),
    np.zeros((2, 3, SIZE, SIZE), [("a", "f4")]), np.zeros((2, 3, SIZE + 1, SIZE), np.float32),
    np.zeros((2, 3), np.int64), np.zeros((3, 3), np.float32), np.array(["x"] * 6).reshape(2, 3),
)  # fmt: skip


def test_golden_samples_with_other_arrays(folder: Path) -> None:
    with np.load(folder / GOLDEN) as arrays:
        right = dict(arrays)
    body = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    del body["manifest_sha256"]
    for name in (*right, "beside images: input", "another"):
        for array in ARRAYS:
            np.savez(folder / GOLDEN, **{**right, name: array})
            body["files"][GOLDEN] = sha256_of(folder / GOLDEN)
            write_signed(folder, body)
            found = use_everywhere(folder)
            assert name == "another" or found[0] != "right" or array.shape == right[name].shape


def test_golden_samples_with_other_bytes(folder: Path) -> None:
    rng = random.Random(2)  # noqa: S311
    content = (folder / GOLDEN).read_bytes()
    body = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    del body["manifest_sha256"]
    for _ in range(100):
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 5, 100))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (folder / GOLDEN).write_bytes(damaged)
        body["files"][GOLDEN] = sha256_of(folder / GOLDEN)
        write_signed(folder, body)
        use_everywhere(folder)


def test_graphs_with_other_bytes(folder: Path) -> None:
    rng = random.Random(3)  # noqa: S311
    content = (folder / MODEL).read_bytes()
    body = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    del body["manifest_sha256"]
    for _ in range(100):
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 1, 3))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (folder / MODEL).write_bytes(damaged)
        body["files"][MODEL] = body["onnx"]["sha256"] = sha256_of(folder / MODEL)
        write_signed(folder, body)
        use_everywhere(folder)


def test_results_with_other_values(tmp_path: Path) -> None:
    """A file of results is read, or refused; what is read has a report."""
    rng = random.Random(4)  # noqa: S311
    path = tmp_path / "run.json"
    write_run(path, gpu_run())
    body = json.loads(path.read_text(encoding="utf-8"))
    body["results"] = body["results"][:2]
    for result in body["results"]:
        result["samples"] = {
            name: values[:40] if isinstance(values, list) else values
            for name, values in result["samples"].items()
        }
    seen = set()
    for _ in range(300):
        changed = mutated(body, rng)
        path.write_text(json.dumps(changed), encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a latency of 1e308 ms has no variance
            seen.add(outcome(lambda: write_reports(read_run(path), path)))
    assert seen == {"right", "DataError"}


def test_image_processors_with_other_values() -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    rng = random.Random(5)  # noqa: S311
    body = {
        "image_processor_type": "ConvNextImageProcessor",
        "crop_pct": 0.875,
        "do_resize": True,
        "do_normalize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "size": {"shortest_edge": 224},
    }
    seen = set()
    for _ in range(400):
        changed = mutated(body, rng)
        seen.add(outcome(partial(read_processor, changed, "convnext", "file")))
    assert {"right", "UsageError"} <= seen
