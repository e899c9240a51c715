"""Files that are small on the disk and large in memory, for `faults.py`.

Each command that meets one is a process of its own: the kernel tells the peak of its memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from onnx import TensorProto, helper

from benchmarks.faults_files import fitted
from benchmarks.faults_service import hostile_uploads
from deploykit.bundle.manifest import GOLDEN, MODEL
from tests.bundles import SIZE, write_bundle, write_classifier

if TYPE_CHECKING:
    from benchmarks.faults_judge import Row

BOMB_MIB: Final = 1024
"""Bound for a command that meets a bomb; each of them would take 2 GiB or more."""


def pixel_bombs(folder: Path, _count: int, row: Row) -> None:
    """`predict` of images that are small on disk and large in memory."""
    place = write_bundle(folder / "colours")
    for at, upload in enumerate(hostile_uploads()):
        (folder / f"{at}.png").write_bytes(upload.body)
        code = 0 if upload.status == 200 else 1  # noqa: PLR2004 - HTTP's
        bounded(row, upload.name, ("predict", place, folder / f"{at}.png"), code)


def npz_bombs(folder: Path, _count: int, row: Row) -> None:
    """2 MB of `.npz` that unpack to 2 GiB, wherever arrays are read."""
    bomb = folder / "bomb.npz"
    _write_npz_bomb(bomb)
    place, graph = write_bundle(folder / "colours"), write_classifier(folder / "g.onnx")
    (place / GOLDEN).write_bytes(bomb.read_bytes())
    fitted(place, GOLDEN)
    good = write_bundle(folder / "good")
    for arguments in (
        ("check", place),
        ("inspect", place),
        ("eval", good, "--data", bomb),
        ("calibrate", graph, "--data", bomb),
        ("validate", graph, graph, "--data", bomb),
        ("export", graph, "--side-inputs", bomb, "--backend", "none"),
        ("export", "resnet20", "--weights", bomb, "--backend", "none"),
    ):
        # `inspect` opens no golden sample.
        bounded(row, str(arguments[0]), arguments, 0 if arguments[0] == "inspect" else None)


def _write_npz_bomb(path: Path) -> None:
    rows = 2**31 // (3 * SIZE * SIZE)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in ("images", "labels", "input", "logits"):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                count = rows if name == "images" else 4
                head = {"descr": "|u1", "fortran_order": False, "shape": (count, 3, SIZE, SIZE)}
                np.lib.format.write_array_header_1_0(file, head)
                for _ in range(count * 3 * SIZE * SIZE // 2**20 or 1):
                    file.write(bytes(2**20 if name == "images" else 4 * 3 * SIZE * SIZE))


def graph_bombs(folder: Path, _count: int, row: Row) -> None:
    """A graph that doubles a value 30 times, and configurations with 10^9 classes."""
    bomb, good = folder / "bomb.onnx", write_classifier(folder / "good.onnx")
    for axis in (0, 1, 2):
        bomb.write_bytes(_doubling(axis))
        for name, more in (
            ("export", ("--backend", "none")),
            ("inspect", ()),
            ("validate", (good,)),
        ):
            bounded(row, f"Concat of axis {axis}, {name}", (name, bomb, *more), None)
        place = write_bundle(folder / f"b{axis}")
        (place / MODEL).write_bytes(_doubling(axis))
        fitted(place, MODEL)
        bounded(row, f"Concat of axis {axis}, check", ("check", place), 1)
    for at, config in enumerate(
        ({"num_labels": 10**9}, {"hidden_size": 10**9}, {"image_size": 10**9})
    ):
        vit = folder / f"vit{at}"
        vit.mkdir()
        body = {"model_type": "vit", "architectures": ["ViTForImageClassification"], **config}
        (vit / "config.json").write_text(json.dumps(body), encoding="utf-8")
        (vit / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
        bounded(row, f"a configuration with {config}", ("export", vit, "--backend", "none"), None)


def _doubling(axis: int) -> bytes:
    names = ["input", *(f"d{at}" for at in range(30))]
    nodes = [helper.make_node("Concat", [a, a], [b], axis=axis) for a, b in pairwise(names)]
    nodes.append(helper.make_node("ReduceMean", [names[-1]], ["logits"], axes=[2, 3], keepdims=0))
    x = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])
    y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["M", "C"])
    graph = helper.make_graph(nodes, "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    return bytes(model.SerializeToString())


_POLL_S: Final = 0.01


def _peak_mib(pid: int) -> float:
    """The most memory that a process has held, by the system's own mark; 0 where it is gone.

    The figure of `os.wait4` would not do: it is never below what the process that started it held.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    marks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(marks[0]) / 1024 if marks else 0.0


def bounded(row: Row, what: str, arguments: tuple[object, ...], code: int | None) -> None:
    """Run a command as a process: its seconds, its memory, and that it says why in words.

    ``code`` is the right exit status; ``None``: a refusal.
    """
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "deploykit", *map(str, arguments)],
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        peak_mib = 0.0
        while process.poll() is None:
            peak_mib = max(peak_mib, _peak_mib(process.pid))
            if time.monotonic() - start >= row.bound_s:
                process.kill()
            time.sleep(_POLL_S)
        errors.seek(0)
        said = errors.read()
    seconds = time.monotonic() - start
    outcome = "survived"
    if seconds >= row.bound_s:
        outcome = "hung"
    elif "Traceback" in said or process.returncode not in {0, 1, 2}:
        outcome = "traceback"
    elif peak_mib > BOMB_MIB:
        outcome = "swelled"
    elif process.returncode not in ({1, 2} if code is None else {code}):
        outcome = "lied"
    row.refused += process.returncode in {1, 2}
    what = f"{what}: exit {process.returncode}, {peak_mib:.0f} MiB: {said[-300:]}"
    row.add(outcome, what, seconds)
