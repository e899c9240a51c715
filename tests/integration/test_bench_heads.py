"""`deploykit bench` of networks whose outputs need a word: they are validated before they run."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploykit.benchmarking.matrix.preparing import prepare_graph
from deploykit.bundle.manifest import Bundle
from deploykit.core.choices import DefinitionChoices
from deploykit.core.precision import Precision
from tests.bundles import write_bundle
from tests.cli import Called, deploykit
from tests.graphs import graph, normal, save
from tests.small_tails import network

TWO = "a = Gemm <transB = 1> (f, k7)  b = Gemm <transB = 1> (f, k2)"


@pytest.fixture(autouse=True)
def here(
    tmp_path: Path, known_peak: None, steps_here: None, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """An empty folder to work in, on a CPU whose peak need not be measured."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bench(*arguments: object) -> Called:
    short = ("--duration", 0.1, "--warmup", 0, "--min-samples", 20, "--batch", 1)
    return deploykit("bench", *arguments, *short, "--backend", "ort", "--json")


def test_two_heads_are_measured_with_a_word(here: Path) -> None:
    model = network(TWO, "float[N, 7] a, float[N, 2] b", here)
    called = bench(model, "--fp16")
    assert called.code == 1
    (failure,) = called.data["failures"]
    assert "say which: --head-output a, or --head raw" in failure["reason"]
    for options in (("--head-output", "b"), ("--head", "raw")):
        called = bench(model, "--fp16", *options)
        assert called.code == 0, called.err
    bundles = [Bundle.open(each) for each in Path("engines/bench").glob("net-fp16-head-*")]
    heads = {(one.manifest.head.kind, one.manifest.head.output) for one in bundles}
    assert heads == {("multiclass", "b"), ("raw", "a")}


def test_an_export_by_another_head_is_not_taken_for_this_one(here: Path) -> None:
    model = network("y = Gemm <transB = 1> (f, k4)", "float[N, 4] y", here)
    for head in (None, "multilabel", None):
        found = prepare_graph(
            str(model), Precision.FP32, here / "work", batches=(1,), peaks={},
            choices=DefinitionChoices(head=head),
        )  # fmt: skip
        kind = Bundle.open(Path(found.path).parent).manifest.head.kind
        assert kind == (head or "multiclass")
    kinds = [Bundle.open(each).manifest.head.kind for each in (here / "work").glob("net*")]
    assert sorted(kinds) == ["multiclass", "multilabel"]


def test_what_is_not_converted_has_no_use_for_it(here: Path) -> None:
    folder = write_bundle(here / "given")
    called = bench(folder, "--head", "raw")
    assert called.code == 2
    assert "--head is for an export, " in called.err
    conv = "y = Conv <pads = [1,1,1,1]> (x, w)"
    text = f"g (float16[N,3,8,8] x) => (float16[N,4,8,8] y) {{ {conv} }}"
    half = save(graph(text, {"w": normal(4, 3, 3, 3).astype("float16")}), here / "half.onnx")
    called = bench(half, "--head-output", "y")
    assert called.code == 2
    assert "half.onnx is fp16 already: it is measured as it is" in called.err
    called = bench("resnet20", "--head-output", "x")
    assert called.code == 2
    assert "--head-output x is for an .onnx or a Python file, not for resnet20" in called.err
    called = bench(network(TWO, "float[N, 7] a, float[N, 2] b", here), "--head", "rav")
    assert called.code == 2
    assert "unknown head 'rav'" in called.err
