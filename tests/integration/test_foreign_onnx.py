"""Files of other converters, as they are, through every command that takes one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from deploykit.benchmarking.matrix.preparing import prepare_graph
from deploykit.core.precision import Precision
from tests.bundles import write_classifier
from tests.cli import deploykit
from tests.graphs import graph, normal, save

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.graphs import Array

SIZES = ("--height", 32, "--width", 32)
BENCH = ("--duration", 0.1, "--warmup", 0, "--min-samples", 10, "--backend", "ort", "--batch", 2)


@pytest.fixture(scope="session")
def cases(shared_data: Path, made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """Small files of public reports, which a script makes."""
    source = shared_data.parent / "cases"
    if not source.is_dir():
        pytest.skip("needs the folder cases/ in --shared DIR")

    def make(folder: Path) -> None:
        shutil.copytree(source, folder, copy_function=shutil.copyfile)
        folder.chmod(0o755)
        for case in ("13-unsorted", "20-dims"):
            (folder / case).chmod(0o755)
            subprocess.run([sys.executable, "make.py"], cwd=folder / case, check=True)

    return made_once("cases", make)


def answers(path: Path, images: Array) -> Array:
    session = onnxruntime.InferenceSession(str(path))
    return np.asarray(session.run(None, {session.get_inputs()[0].name: images})[0])


def use_every_command(
    path: Path,
    clean: Path,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    *sizes: object,
    bench: bool = False,
) -> None:
    """What is open is open: a batch of 3 gives what the ``clean`` file gives for it."""
    bundle = place / "bundle"
    called = deploykit(
        "export", path, "--fp16", "--backend", "none", "-o", bundle, *sizes, "--json"
    )
    assert called.code == 0, called.err
    images = normal(3, 3, 32, 32)
    np.testing.assert_allclose(
        answers(bundle / "reference.onnx", images), answers(clean, images), rtol=1e-4, atol=1e-4
    )
    size = ("--input-size", 32) if sizes else ()
    shown = deploykit("inspect", path, *size, "--json")
    assert shown.code == 0, shown.err
    expected = deploykit("inspect", clean, "--json")
    for key in ("multiply_adds", "parameters", "input_mb"):
        assert shown.data[key] == expected.data[key] > 0
    plan = deploykit("inspect", path, "--fp16", *size, "--json")
    assert plan.code == 0, plan.err
    compared = deploykit("validate", path, path if sizes else clean, *sizes, "--json")
    assert compared.code == 0, compared.err
    table = place / "table.json"
    called = deploykit("calibrate", path, "--data", "random", "-o", table, *sizes)
    assert called.code == 0, called.err
    if not bench:  # it asks for the bundle where height and width are open
        return
    monkeypatch.chdir(place)
    measured = deploykit("bench", path, *BENCH, "--json")
    assert measured.code == 0, measured.err
    assert [row["batch"] for row in measured.data["results"]] == [2]


@pytest.mark.usefixtures("known_peak", "steps_here")
@pytest.mark.parametrize("name", ["minus", "zero"])
def test_a_batch_written_as_a_number(
    cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = cases / "20-dims"
    path, clean = folder / f"{name}.onnx", folder / "minus.onnx"
    use_every_command(path, clean, tmp_path, monkeypatch, bench=name == "zero")


@pytest.mark.parametrize("name", ["same", "noshape", "nameless"])
def test_everything_open(
    cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = cases / "20-dims"
    path, clean = folder / f"{name}.onnx", folder / "minus.onnx"
    use_every_command(path, clean, tmp_path, monkeypatch, *SIZES)


def test_nodes_out_of_order(cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cases / "13-unsorted"
    path, clean = folder / "u.onnx", folder / "sorted.onnx"
    use_every_command(path, clean, tmp_path, monkeypatch)
    called = deploykit("export", path, "--backend", "none", "-o", tmp_path / "again")
    assert "the nodes of u.onnx are not in order: sorted" in " ".join(called.out.split())


@pytest.mark.parametrize("name", ["bn5", "dropout"])
def test_training_mode_is_refused(cases: Path, tmp_path: Path, name: str) -> None:
    path = cases / "20-dims" / f"{name}.onnx"
    called = deploykit("export", path, "--backend", "none", "-o", tmp_path / "bundle")
    assert called.code == 1
    assert "exported in training mode" in called.err
    assert not (tmp_path / "bundle").exists()


def with_batch(path: Path, batch: int | str) -> Path:
    proto = onnx.load(path)
    for value in (proto.graph.input[0], proto.graph.output[0]):
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        value.CopyFrom(
            helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, [batch, *dims[1:]])
        )
    return save(proto, path.with_name(f"odd{batch}.onnx"))


@pytest.mark.parametrize("batch", [-1, 0, "?"])
def test_an_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int | str) -> None:
    clean = write_classifier(tmp_path / "clean.onnx", "32, 32")
    use_every_command(with_batch(clean, batch), clean, tmp_path, monkeypatch)


def test_a_cache_of_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = write_classifier(tmp_path / "clean.onnx", "32, 32")
    blobs, snapshot = (tmp_path / "models--a--b" / each for each in ("blobs", "snapshots/abc"))
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    onnx.save(
        onnx.load(clean),
        blobs / "model.onnx",
        save_as_external_data=True,
        location="model.onnx_data",
        size_threshold=0,
    )
    for name, blob in (("model.onnx", "1f"), ("model.onnx_data", "2e")):
        (blobs / name).rename(blobs / blob)
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    use_every_command(snapshot / "model.onnx", clean, tmp_path, monkeypatch)


@pytest.mark.parametrize("data", ["model.onnx_data", "sub/weights"])
def test_a_link_to_a_file_with_its_weights_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str
) -> None:
    clean = write_classifier(tmp_path / "clean.onnx", "32, 32")
    store = tmp_path / "store"
    (store / data).parent.mkdir(parents=True)
    onnx.save(
        onnx.load(clean),
        store / "model.onnx",
        save_as_external_data=True,
        location=data,
        size_threshold=0,
    )
    (tmp_path / "mine").mkdir()
    link = tmp_path / "mine" / "net.onnx"
    link.symlink_to("../store/model.onnx")
    use_every_command(link, clean, tmp_path, monkeypatch)


# Converted by others


HALF = "y = Conv <pads = [1, 1, 1, 1]> (x, w)"
PAIRS = """
    s = Constant <value_float = 0.02> ()  z = Constant <value = int8 {0}> ()
    q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)
    e = QuantizeLinear (w, s, z)  v = DequantizeLinear (e, s, z)
    y = Conv <pads = [1, 1, 1, 1]> (d, v)"""


@pytest.mark.usefixtures("known_peak", "steps_here")
@pytest.mark.parametrize(("batch", "precision"), [(0, "int8"), (-1, "fp16"), ("?", "fp16")])
def test_a_converted_file_is_measured_at_the_batch_that_is_asked(
    tmp_path: Path, precision: str, batch: int | str
) -> None:
    kind, text = ("float16", HALF) if precision == "fp16" else ("float", PAIRS)
    weights = normal(8, 3, 3, 3).astype(np.float16 if precision == "fp16" else np.float32)
    proto = graph(f"g ({kind}[N,3,8,8] x) => ({kind}[N,8,8,8] y) {{ {text} }}", {"w": weights})
    for value in (proto.graph.input[0], proto.graph.output[0]):
        dim = value.type.tensor_type.shape.dim[0]
        dim.Clear()
        setattr(dim, "dim_param" if isinstance(batch, str) else "dim_value", batch)
    path = save(proto, tmp_path / "given.onnx")
    found = prepare_graph(
        str(path), Precision(precision), tmp_path / "work", batches=(1, 5), peaks={}
    )
    said = any("read as (?, 3, 8, 8)" in note for note in found.notes)
    assert said is isinstance(batch, int)
    session = onnxruntime.InferenceSession(found.path)
    for count in (1, 5):
        images = normal(count, 3, 8, 8, seed=2).astype(weights.dtype)
        (got,) = session.run(None, {"x": images})
        assert got.shape == (count, 8, 8, 8)
    if batch == -1:  # measured as the others: its graph is as open as theirs
        return
    short = ("--duration", 0.1, "--warmup", 0, "--min-samples", 10, "--backend", "ort")
    out = ("-o", tmp_path / "r.json", "--work", tmp_path / "work", "--json")
    called = deploykit("bench", path, *short, "--batch", "1,5", *out)
    assert called.code == 0, called.out
    rows = called.data["results"]
    assert [(row["precision"], row["batch"]) for row in rows] == [(precision, 1), (precision, 5)]
