"""`deploykit validate` on bundles that `deploykit export` made, and on files beside them."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from deploykit.bundle.manifest import REFERENCE
from tests.cli import deploykit
from tests.graphs import graph, normal, save

if TYPE_CHECKING:
    from pathlib import Path

    from tests.digits import Digits


def corrupted(source: Path, path: Path, node_name: str) -> Path:
    """A copy of a graph with the output channels of one layer in the wrong order."""
    model = onnx.load(source)
    (node,) = [n for n in model.graph.node if n.name == node_name]
    (weight,) = [t for t in model.graph.initializer if t.name == node.input[1]]
    wrong = np.ascontiguousarray(numpy_helper.to_array(weight)[::-1])
    weight.CopyFrom(numpy_helper.from_array(wrong, weight.name))
    return save(model, path)


def test_a_bundle_against_the_graph_that_it_keeps(fp16_bundle: Path, digits: Digits) -> None:
    called = deploykit("validate", fp16_bundle, "--data", digits.test, "--json")
    assert called.code == 0, called.err
    data = called.data
    assert data["passed"] is True
    assert data["candidate"] == str(fp16_bundle)
    assert data["reference"] == str(fp16_bundle / REFERENCE)
    assert [batch["batch"] for batch in data["validation"]["batches"]] == [1, 2, 5]
    assert data["layers"] is None
    sample, arithmetic = data["notes"]
    assert re.fullmatch(r"8 of the \d+ images of .+/test\.npz were compared", sample)
    assert arithmetic == f"the CPU rounds where an engine rounds in {fp16_bundle}"


def test_agreement_is_judged_on_a_large_batch(fp16_bundle: Path, digits: Digits) -> None:
    arguments = ("validate", fp16_bundle, "--data", digits.test, "--batch", 200)
    (batch,) = deploykit(*arguments, "--json").data["validation"]["batches"]
    assert batch["batch"] == 200
    assert batch["agreement"] >= 0.99
    assert "within the limits of fp16" in deploykit(*arguments).out


def test_every_activation_of_a_sound_bundle(fp16_bundle: Path) -> None:
    layers = deploykit("validate", fp16_bundle, "--layers", "--json").data["layers"]
    assert layers["first_fault"] is None
    assert layers["matched"] == layers["of_reference"] == layers["of_candidate"] > 50
    assert layers["candidate_only"] == layers["reference_only"] == []
    assert layers["images"] == 8
    assert all(value["sqnr_db"] > 40 for value in layers["values"])


def test_the_table_shows_the_worst_and_with_all_every_value(fp16_bundle: Path) -> None:
    shown = deploykit("validate", fp16_bundle, "--layers")
    assert shown.code == 0
    assert "no value goes wrong" in shown.out
    assert "matched 54 of 54 activations" in shown.out
    every = deploykit("validate", fp16_bundle, "--layers", "--all").out
    assert every.count("Conv") > shown.out.count("Conv")
    assert "layer2.1.conv2/Conv_output_0" in every


@pytest.mark.parametrize("reference_is_second", [True, False])
def test_names_the_layer_that_was_corrupted(
    fp16_bundle: Path, tmp_path: Path, reference_is_second: bool
) -> None:
    node = "layer2.1.conv2/Conv"
    broken = corrupted(fp16_bundle / "model.onnx", tmp_path / "broken.onnx", node)
    pair = (broken, fp16_bundle / REFERENCE)
    pair = pair if reference_is_second else (pair[1], pair[0])
    data = deploykit("validate", *pair, "--layers", "--json").data
    assert data["candidate"] == str(broken)  # the FP32 graph is the reference in either order
    fault = data["layers"]["first_fault"]
    assert (fault["node"], fault["op_type"], fault["kind"]) == (node, "Conv", "sqnr")
    assert [each["node"] for each in fault["inputs"]] == ["layer2.1.relu/Relu"]
    assert not any("assumed" in note for note in data["notes"])  # the file says its preprocessing


def test_says_where_to_look(fp16_bundle: Path, tmp_path: Path) -> None:
    broken = corrupted(fp16_bundle / "model.onnx", tmp_path / "b.onnx", "layer2.1.conv2/Conv")
    shown = deploykit("validate", broken, fp16_bundle / REFERENCE, "--layers")
    assert shown.code == 1
    for line in (
        "it begins at layer2.1.conv2/Conv (Conv)",
        "its input layer2.1.relu/Relu_output_0: SQNR ",
        "try: the weights or attributes of layer2.1.conv2/Conv differ",
    ):
        assert line in shown.out
    without = deploykit("validate", broken, fp16_bundle / REFERENCE)
    assert without.code == 1
    assert "to see where it begins, add --layers" in without.out
    assert "problem: " in without.out


def test_a_fault_of_the_first_node(fp16_bundle: Path, tmp_path: Path) -> None:
    broken = corrupted(fp16_bundle / REFERENCE, tmp_path / "b.onnx", "conv1/Conv")
    shown = deploykit("validate", broken, fp16_bundle / REFERENCE, "--layers").out
    assert "it begins at conv1/Conv (Conv)" in shown
    assert "its input is the graph's own" in shown


def test_values_that_one_side_alone_has_are_named(tmp_path: Path) -> None:
    text = "net (float[N,3,8,8] x) => (float[N,3,8,8] y) { [a] a = Abs (x) [y] y = Relu (a) }"
    fewer = save(graph(text), tmp_path / "fewer.onnx")
    longer = text.replace("(a) }", "(b) }").replace("[y]", "[b] b = Neg (a) [y]")
    more = save(graph(longer), tmp_path / "more.onnx")
    shown = deploykit("validate", more, fewer, "--layers")
    assert "matched 2 of 2 activations" in shown.out
    assert f"only in {more}: b" in shown.out


# What cannot be compared


def one_layer(folder: Path, name: str, shape: str) -> Path:
    text = f"net (float[{shape}] x) => (float[{shape}] y) {{ y = Relu (x) }}"
    return save(graph(text), folder / f"{name}.onnx")


def refused(*arguments: object, code: int) -> str:
    called = deploykit("validate", *arguments)
    assert called.code == code, called.out
    return called.err


def test_a_file_needs_a_second_one(tmp_path: Path) -> None:
    alone = one_layer(tmp_path, "alone", "N,3,8,8")
    said = refused(alone, code=2)
    assert f"there is nothing to compare {alone} with" in said
    assert "deploykit validate A B" in said


def test_a_bundle_without_its_reference(fp16_copy: Path) -> None:
    (fp16_copy / REFERENCE).unlink()
    said = refused(fp16_copy, code=1)
    assert f"{fp16_copy} keeps no {REFERENCE}" in said
    assert f"deploykit validate {fp16_copy} OTHER" in said


@pytest.mark.parametrize("name", ["model.onnx", REFERENCE])
def test_a_file_that_was_changed_is_not_run(fp16_copy: Path, name: str) -> None:
    with (fp16_copy / name).open("ab") as file:
        file.write(b"\0")
    assert f"{name} has sha256 " in refused(fp16_copy, code=1)


def test_two_networks(tmp_path: Path) -> None:
    small, large = (one_layer(tmp_path, str(px), f"N,3,{px},{px}") for px in (8, 16))
    said = refused(small, large, code=2)
    assert "8.onnx takes images of (3, 8, 8)" in said
    assert "16.onnx of (3, 16, 16)\nexpected two artifacts of one network" in said


def test_something_else_than_images(tmp_path: Path) -> None:
    rows, image = one_layer(tmp_path, "rows", "N,3"), one_layer(tmp_path, "image", "N,3,8,8")
    said = refused(rows, image, code=1)
    assert "rows.onnx takes x float32 (N, 3)\nexpected images, float32 (batch, 3, H, W)" in said
    text = "net () => (float[4] y) { y = Abs (a) }"
    nothing = save(graph(text, {"a": normal(4)}), tmp_path / "nothing.onnx")
    assert "nothing.onnx takes nothing" in refused(nothing, image, code=1)


@pytest.mark.parametrize(
    ("first", "second", "options"),
    [("2", "3", ()), ("2", "N", ("--batch", 4))],
)
def test_batches_that_do_not_fit(
    tmp_path: Path, first: str, second: str, options: tuple[Any, ...]
) -> None:
    pair = [one_layer(tmp_path, f"{size}-{i}", f"{size},3,8,8") for i, size in
            enumerate((first, second))]  # fmt: skip
    said = refused(*pair, *options, code=2)
    assert "no batch fits both, " in said
    assert ("asked: 4" in said) is bool(options)


def test_a_fixed_batch_is_kept(tmp_path: Path) -> None:
    fixed, free = one_layer(tmp_path, "a", "4,3,8,8"), one_layer(tmp_path, "b", "N,3,8,8")
    data = deploykit("validate", fixed, free, "--layers", "--json").data
    assert [batch["batch"] for batch in data["validation"]["batches"]] == [4, 4]
    assert data["layers"]["values"][0]["shape"] == [4, 3, 8, 8]


def test_outputs_of_another_length(tmp_path: Path) -> None:
    first = one_layer(tmp_path, "a", "N,3,8,8")
    text = "net (float[N,3,8,8] x) => (float[N,192] y) { y = Flatten (x) }"
    second = save(graph(text), tmp_path / "flat.onnx")
    assert "returns shape (1, 3, 8, 8)" in refused(first, second, code=1)


def test_a_bundle_may_be_compared_with_a_copy_of_its_graph(fp16_copy: Path) -> None:
    kept = shutil.copy(fp16_copy / REFERENCE, fp16_copy.parent / "kept.onnx")
    assert deploykit("validate", fp16_copy, kept, "--json").data["passed"] is True
