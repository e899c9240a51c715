"""`export --finetune` from an .onnx file: kept where it pays, else the same graph to the byte."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

import deploykit as package
from deploykit.bundle.manifest import MANIFEST, MODEL
from deploykit.core.errors import UsageError
from deploykit.precision.finetuning import finetune, judging
from tests import graphs
from tests.cli import deploykit

if TYPE_CHECKING:
    from pathlib import Path

NETWORK = """net (float[n, 3, 16, 16] x) => (float[n, 16] y) {
    [stem] a = Conv <pads = [1,1,1,1], strides = [2,2]> (x, w1, b1) b = Relu (a)
    [depth] e = Conv <pads = [1,1,1,1], group = 16> (b, w3, b3) f = ACTIVATION (e)
    [project] g = Conv (f, w4, b4) h = Add (g, b)
    p = GlobalAveragePool (h) q = Flatten (p) [last] y = Gemm <transB = 1> (q, w5, b5) }"""

WEIGHTS = {
    "w1": graphs.normal(16, 3, 3, 3, seed=1, scale=0.3),
    "b1": graphs.normal(16, seed=2),
    "w3": graphs.normal(16, 1, 3, 3, seed=4, scale=0.4),
    "b3": graphs.normal(16, seed=5),
    "w4": graphs.normal(16, 16, 1, 1, seed=6, scale=0.3),
    "b4": graphs.normal(16, seed=7),
    "w5": graphs.normal(16, 16, seed=8, scale=0.3),
    "b5": graphs.normal(16, seed=9),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("finetune")
    for name, activation in (("net", "Relu"), ("odd", "Softsign")):
        graph = graphs.graph(NETWORK.replace("ACTIVATION", activation), WEIGHTS)
        graphs.save(graph, place / f"{name}.onnx")
    images = np.random.default_rng(0).integers(0, 256, (140, 16, 16, 3), np.uint8)
    np.savez(place / "images.npz", images=images)
    np.savez(place / "few.npz", images=images[:40])
    return place


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.chdir(folder)  # a project's calibration tables are kept in it
    monkeypatch.setattr(finetune, "BLOCK_STEPS", 15)
    monkeypatch.setattr(finetune, "DISTIL_STEPS", 40)


def exported(folder: Path, name: str, output: str, *options: str) -> dict[str, Any]:
    """The manifest of an INT8 bundle, of which no trial took the noise away."""
    called = deploykit(
        "export", folder / f"{name}.onnx", "--int8", "--calib", folder / "images.npz",
        "--method", "max", "--sensitive-layers", "int8", "--bias-correction", "off",
        "--backend", "none", "-o", folder / output, *options,
    )  # fmt: skip
    assert called.code == 0, called.err
    manifest = json.loads((folder / output / MANIFEST).read_text(encoding="utf-8"))
    assert isinstance(manifest, dict)
    return manifest


@pytest.fixture(scope="module")
def plain(folder: Path) -> bytes:
    manifest = exported(folder, "net", "plain")
    assert "finetuned" not in manifest["calibration"]
    return (folder / "plain" / MODEL).read_bytes()


def test_kept_where_it_pays_and_the_same_twice(folder: Path, plain: bytes) -> None:
    record = exported(folder, "net", "first", "--finetune")["calibration"]["finetuned"]
    assert record["kept"] is True
    judged = record["judged"]
    assert judged["images"] == record["images"]["judging"] == 28
    assert sum(record["images"].values()) == 140
    assert judged["distance"]["after"] < judged["distance"]["before"]
    assert judged["agreement_after"] >= judged["agreement_before"]
    assert 0 <= record["blocks_kept"] <= record["blocks"]
    first = (folder / "first" / MODEL).read_bytes()
    assert first != plain
    assert exported(folder, "net", "second", "--finetune")["calibration"]["finetuned"] == record
    assert (folder / "second" / MODEL).read_bytes() == first


def test_its_weights_are_int8_with_one_scale_a_channel(folder: Path) -> None:
    """As in the graph that is not fine-tuned: the same nodes, other numbers."""
    graphs_of = [onnx.load(folder / each / MODEL).graph for each in ("plain", "first")]
    ops = [[node.op_type for node in graph.node] for graph in graphs_of]
    assert ops[0] == ops[1]
    tensors = [
        {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
        for graph in graphs_of
    ]
    steps = {name: each for name, each in tensors[1].items() if each.dtype == np.int8 and each.ndim}
    assert len(steps) == 4
    assert any((each != tensors[0][name]).any() for name, each in steps.items())
    for name, each in steps.items():
        assert np.abs(each.astype(int)).max() == 127
        scale = name.replace("_quantized", "_scale")
        np.testing.assert_allclose(tensors[1][scale], tensors[0][scale], rtol=1e-6)


def test_the_same_graph_to_the_byte_where_it_does_not_pay(
    folder: Path, plain: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "SIGNIFICANCE", -1.0)
    record = exported(folder, "net", "unpaid", "--finetune")["calibration"]["finetuned"]
    assert record["kept"] is False
    assert (folder / "unpaid" / MODEL).read_bytes() == plain


def test_a_graph_without_gradients_stays_as_it_was(folder: Path) -> None:
    record = exported(folder, "odd", "odd", "--finetune")["calibration"]["finetuned"]
    assert record["kept"] is False
    assert "Softsign of node" in record["reason"]
    exported(folder, "odd", "odd-plain")
    found = [(folder / each / MODEL).read_bytes() for each in ("odd", "odd-plain")]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--fp16", "--finetune"], "--finetune is for --int8 and --fp8 only, not for fp16"),
        (["--int8", "--finetune"], "INT8 needs images to calibrate with: --calib PATH"),
        (
            ["--int8", "--finetune", "--calib", "random"],
            "--finetune needs real images, and --calib random is noise",
        ),
        (["--int8", "--finetune", "--calib", "FEW"], "--finetune has 40 images to fit to"),
        (
            ["--int8", "--finetune", "--calib", "ALL", "--calib-count", "99"],
            "--finetune has 99 images to fit to",
        ),
        (
            ["--precision", "auto", "--max-drop", "1%", "--finetune", "--calib", "ALL"],
            "--finetune is for one precision of eight bits, and --precision auto mixes them",
        ),
    ],
)
def test_what_cannot_be_is_said_at_once(folder: Path, arguments: list[str], said: str) -> None:
    places = {"FEW": folder / "few.npz", "ALL": folder / "images.npz"}
    given = [places.get(each, each) for each in arguments]
    called = deploykit("export", folder / "net.onnx", *given, "-o", folder / "none")
    assert called.code == 2
    assert said in called.err
    assert not (folder / "none").exists()


def test_a_program_is_told_by_its_arguments(folder: Path) -> None:
    with pytest.raises(UsageError, match=r'^finetune needs real images, and calib="random"'):
        package.export(
            str(folder / "net.onnx"), precision="int8", calib="random", finetune=True, quiet=True
        )
