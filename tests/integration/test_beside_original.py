"""A bundle beside the file it was made of, and beside one that computes something else.

Right and wrong are known by how the files are made: the wrong one has another weight behind the
output that counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.cli import Called, deploykit
from tests.graphs import graph, normal, run_ort, save

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("own_folder")

SIDE, CLASSES = 8, 10
BYTES = ("--input", "uint8", "--mean", 0.5, "--std", 0.5)
LOGITS = "logits = Gemm <transB = 1> (f, v)"
AUX = "aux = Gemm <transB = 1> (f, u)"


@dataclass(frozen=True)
class Case:
    """``last`` nodes make ``outputs`` of features (batch, 16); ``wrong`` is the weight changed."""

    last: str
    outputs: str
    options: tuple[object, ...]
    batch: str = "n"
    wrong: str = "v"


CASES = {
    "the meant output is the second, of probabilities": Case(
        f"{AUX} {LOGITS}",
        f"float[n,{CLASSES}] aux, float[n,{CLASSES}] logits",
        (*BYTES, "--head-output", "logits", "--result", "probabilities"),
    ),
    "the meant output is the second, of three classes": Case(
        f"{AUX} {LOGITS}",
        f"float[n,{CLASSES}] aux, float[n,{CLASSES}] logits",
        ("--head-output", "logits", "--result", "topk:3"),
    ),
    "several raw outputs, of bytes": Case(
        f"{LOGITS} {AUX}",
        f"float[n,{CLASSES}] logits, float[n,{CLASSES}] aux",
        (*BYTES, "--head", "raw"),
        wrong="u",
    ),
    "probabilities beside the classes": Case(
        LOGITS, f"float[n,{CLASSES}] logits", (*BYTES, "--result", "topk:3")
    ),
    "as many images as classes": Case(
        LOGITS, f"float[{CLASSES},{CLASSES}] logits", (), batch=str(CLASSES)
    ),
    "an output called as the result": Case(
        LOGITS.replace("logits", "probabilities"),
        f"float[n,{CLASSES}] probabilities",
        ("--result", "probabilities"),
    ),
    "dimensions of 1 behind the classes": Case(
        f"{LOGITS} maps = Unsqueeze (logits, behind)",
        f"float[n,{CLASSES},1,1] maps",
        ("--result", "topk:3"),
    ),
    "one number an image": Case(
        "one = Gemm <transB = 1> (f, v1) z = Squeeze (one, last)",
        "float[n] z",
        ("--head", "binary", "--result", "probabilities"),
        wrong="v1",
    ),
    "another output is called as a part of the result": Case(
        f"{AUX.replace('aux', 'probabilities')} {LOGITS}",
        f"float[n,{CLASSES}] probabilities, float[n,{CLASSES}] logits",
        ("--head-output", "logits", "--result", "topk:3"),
    ),
    "the batch behind a dimension with a name": Case(
        f"{LOGITS} rows = Unsqueeze (logits, last) t = Transpose <perm = [1,0,2]> (rows)",
        "float[s,n,1] t",
        ("--head", "raw"),
    ),
    "a ranking of its own": Case(
        f"{LOGITS} best, order = TopK (logits, three)",
        "int64[n,3] order, float[n,3] best",
        (),
    ),
    "a ranking of its own, by probabilities": Case(
        f"{LOGITS} chances = Softmax (logits) best, order = TopK (chances, three)",
        "float[n,3] best, int64[n,3] order",
        (),
    ),
    "the best class, and how likely it is": Case(
        f"{LOGITS} chances = Softmax (logits) best = ReduceMax <keepdims = 0> (chances, last)"
        " order = ArgMax <axis = 1, keepdims = 0> (chances)",
        "int64[n] order, float[n] best",
        (),
    ),
    "the best class by its logit, and its probability": Case(
        f"{LOGITS} chances = Softmax (logits) best = ReduceMax <keepdims = 0> (chances, last)"
        " order = ArgMax <axis = 1, keepdims = 0> (logits)",
        "int64[n] order, float[n] best",
        (),
    ),
    "the best class, and the logarithm of its probability": Case(
        f"{LOGITS} logs = LogSoftmax (logits) best = ReduceMax <keepdims = 0> (logs, last)"
        " order = ArgMax <axis = 1, keepdims = 0> (logs)",
        "int64[n] order, float[n] best",
        (),
    ),
    "one image, and no dimension for it": Case(
        f"{LOGITS} flat = Squeeze (logits, before)",
        f"float[{CLASSES}] flat",
        (*BYTES, "--result", "topk:3"),
        batch="1",
    ),
}


def network(case: Case) -> onnx.ModelProto:
    constants = {
        "w": normal(16, 3, 3, 3), "v": normal(CLASSES, 16, seed=1),
        "u": normal(CLASSES, 16, seed=2), "behind": np.array([2, 3]), "before": np.array([0]),
        "v1": normal(1, 16, seed=3), "last": np.array([-1]),
        "three": np.array([3]),
    }  # fmt: skip
    return graph(
        f"""g (float[{case.batch},3,{SIDE},{SIDE}] x) => ({case.outputs}) {{
            c = Conv <pads = [1,1,1,1], strides = [2,2]> (x, w)
            r = Relu (c)
            p = GlobalAveragePool (r)
            f = Flatten (p)
            {case.last}
        }}""",
        {
            name: value
            for name, value in constants.items()
            if re.search(rf"\b{name}\b", f"w {case.last}")
        },
    )


def changed(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """With three times the weight ``name``: the order of classes stays, nothing else does."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(3 * numpy_helper.to_array(tensor), name))
    return model


def exported(source: Path, bundle: Path, *options: object) -> Called:
    called = deploykit("export", source, "--fp16", *options, "--backend", "none", "-o", bundle)
    assert called.code == 0, called.err
    return called


@pytest.mark.parametrize("name", CASES)
def test_the_right_file_passes_and_a_wrong_one_fails(name: str, tmp_path: Path) -> None:
    case, bundle = CASES[name], tmp_path / "bundle"
    right = save(network(case), tmp_path / "right.onnx")
    wrong = save(changed(network(case), case.wrong), tmp_path / "wrong.onnx")
    exported(right, bundle, *case.options)
    called = deploykit("validate", bundle, right)
    assert called.code == 0, called.out + called.err
    assert deploykit("validate", right, bundle).code == 0
    assert deploykit("validate", wrong, bundle).code == 1
    called = deploykit("validate", bundle, wrong)
    assert called.code == 1, called.out + called.err
    assert "problem: " in called.out
    # Where the two differ in form, --layers is refused, and not spoken of.
    is_alike = not {"--input", "--result"}.intersection(map(str, case.options))
    assert ("add --layers" in called.out) is is_alike
    # The graph that the bundle keeps has its form.
    assert deploykit("validate", bundle).code == 0


def test_eval_counts_the_output_that_is_meant(tmp_path: Path) -> None:
    case = CASES["the meant output is the second, of probabilities"]
    source = save(network(case), tmp_path / "source.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (20, SIDE, SIDE, 3), np.uint8)
    images = ((pixels / 255 - 0.5) / 0.5).transpose(0, 3, 1, 2).astype(np.float32)
    given = run_ort(network(case), {"x": images})
    labels, others = (given[name].argmax(axis=1) for name in ("logits", "aux"))
    assert (labels != others).any()
    np.savez(tmp_path / "images.npz", images=pixels, labels=labels)
    options = ("--mean", 0.5, "--std", 0.5, "--resize", f"{SIDE}x{SIDE}")
    exported(source, tmp_path / "bundle", "--head-output", "logits", *options)
    asked = ("eval", tmp_path / "bundle", "--data", tmp_path / "images.npz", "--json")
    found = deploykit(*asked, "--reference", source).data
    assert found["top1"] == found["agreement"] == 1
    compared = deploykit(*asked, "--compare", source).data["comparison"]
    assert compared["both_right"] == len(labels)


def test_outputs_that_one_of_the_two_has_alone_are_named(tmp_path: Path) -> None:
    few, more = CASES["as many images as classes"], CASES["several raw outputs, of bytes"]
    first = save(network(few), tmp_path / "few.onnx")
    second = save(network(more), tmp_path / "more.onnx")
    for pair in ((first, second), (second, first)):
        called = deploykit("validate", *pair, "--json")
        assert called.code == 0, called.err
        assert f"'aux' of {second} alone: not compared" in called.data["notes"]


def test_of_an_fp32_bundle_either_may_be_named_first(tmp_path: Path) -> None:
    case = CASES["the meant output is the second, of three classes"]
    right = save(network(case), tmp_path / "right.onnx")
    wrong = save(changed(network(case), "u"), tmp_path / "wrong.onnx")
    bundle = tmp_path / "bundle"
    named = ("--fp32", "--head-output", "logits", "--backend", "none", "-o", bundle)
    assert deploykit("export", right, *named).code == 0
    for file, code in ((right, 0), (wrong, 1)):
        assert deploykit("validate", bundle, file).code == code
        assert deploykit("validate", file, bundle).code == code


def test_all_outputs_of_two_fp32_files_are_judged(tmp_path: Path) -> None:
    case = CASES["several raw outputs, of bytes"]
    first = save(network(case), tmp_path / "first.onnx")
    second = save(changed(network(case), "u"), tmp_path / "second.onnx")
    assert deploykit("validate", first, first).code == 0
    called = deploykit("validate", first, second)
    assert called.code == 1
    assert "of an image's values" in called.out


RANKING = "the best class, and how likely it is"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_two_files_rank_classes_by_is_judged(precision: str, tmp_path: Path) -> None:
    bundle, right = tmp_path / "bundle", save(network(CASES[RANKING]), tmp_path / "right.onnx")
    wrong = save(changed(network(CASES[RANKING]), "v"), tmp_path / "wrong.onnx")
    named = (f"--{precision}", "--backend", "none", "-o", bundle)
    assert deploykit("export", right, *named).code == 0
    assert deploykit("validate", bundle / "model.onnx", right).code == 0
    called = deploykit("validate", bundle / "model.onnx", wrong)
    assert called.code == 1, called.out
    assert "output 'best'" in called.out


def test_outputs_of_two_files_are_paired_by_their_names(tmp_path: Path) -> None:
    case = CASES["several raw outputs, of bytes"]
    right, wrong = network(case), changed(network(case), "v")
    for model in (right, wrong):
        ordered = list(model.graph.output)[::-1]
        del model.graph.output[:]
        model.graph.output.extend(ordered)
    first = save(network(case), tmp_path / "first.onnx")
    for model, code in ((right, 0), (wrong, 1)):
        second = save(model, tmp_path / "second.onnx")
        assert deploykit("validate", first, second).code == code
        assert deploykit("validate", second, first).code == code


def test_two_bundles_that_prepare_images_otherwise_say_so(tmp_path: Path) -> None:
    source = save(network(CASES["as many images as classes"]), tmp_path / "source.onnx")
    first, second = tmp_path / "first", tmp_path / "second"
    exported(source, first, "--mean", 0.5, "--std", 0.5)
    exported(source, second, "--mean", 0.5, "--std", 0.25, "--channel-order", "bgr")
    for left, right in ((first, second), (second, first)):
        called = deploykit("validate", left, right, "--json")
        assert called.code == 0, called.err
        (note,) = [each for each in called.data["notes"] if "otherwise" in each]
        assert note.endswith(f"both are given them as {left} prepares them")
        assert "std " in note
        assert "channel_order " in note
        assert "mean " not in note
    same = deploykit("validate", first, first, "--json").data["notes"]
    assert not [each for each in same if "otherwise" in each]


def last(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network, of images with channels last."""
    (image,) = model.graph.input
    dims = image.type.tensor_type.shape.dim
    sizes = [model.graph.input[0].type.tensor_type.shape.dim[at].dim_value for at in (2, 3, 1)]
    for dim, size in zip(list(dims)[1:], sizes, strict=True):
        dim.dim_value = size
    (first,) = [node for node in model.graph.node if node.op_type == "Conv"]
    first.input[0] = "first"
    moved = onnx.helper.make_node("Transpose", ["x"], ["first"], perm=[0, 3, 1, 2])
    model.graph.node.insert(0, moved)
    return model


def test_eval_takes_channels_last_on_either_side(tmp_path: Path) -> None:
    case = CASES["as many images as classes"]
    source = save(network(case), tmp_path / "source.onnx")
    other = save(last(network(case)), tmp_path / "last.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (10, SIDE, SIDE, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels, labels=np.arange(10))
    options = ("--mean", 0.5, "--std", 0.5, "--resize", f"{SIDE}x{SIDE}")
    exported(source, tmp_path / "bundle", *options)
    asked = ("eval", tmp_path / "bundle", "--data", tmp_path / "images.npz", "--json")
    assert deploykit(*asked, "--reference", other).data["agreement"] == 1
    called = deploykit(*asked, "--compare", other)
    assert called.code == 0, called.err
    assert called.data["comparison"]["only_this_right"] == 0


def test_channels_last_are_compared_in_fp32_alone(tmp_path: Path) -> None:
    model = last(network(CASES["as many images as classes"]))
    for tensor in model.graph.initializer:
        half = numpy_helper.to_array(tensor).astype(np.float16)
        model.graph.node.insert(
            0, onnx.helper.make_node("Cast", [f"{tensor.name}16"], [tensor.name], to=1)
        )
        tensor.CopyFrom(numpy_helper.from_array(half, f"{tensor.name}16"))
    first = save(last(network(CASES["as many images as classes"])), tmp_path / "first.onnx")
    called = deploykit("validate", save(model, tmp_path / "half.onnx"), first)
    assert called.code == 2
    assert "half.onnx is fp16 and takes images with channels last, (N, H, W, C)" in called.err
    assert "compare the FP32 file that it was made from" in called.err


def test_ranks_behind_the_first_are_judged_in_every_precision(tmp_path: Path) -> None:
    """The wrong one has the same best class, and other classes behind it."""
    right = network(CASES["a ranking of its own"])
    wrong = network(CASES["a ranking of its own"])
    wrong.graph.node[-1].output[1] = "found"
    wrong.graph.node.extend(
        [
            onnx.helper.make_node("Add", ["found", "more"], ["others"]),
            onnx.helper.make_node("Mod", ["others", "count"], ["order"]),
        ]
    )
    for name, value in (("more", [[0, 3, 3]]), ("count", [CLASSES])):
        wrong.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    first, second = (
        save(model, tmp_path / f"{name}.onnx") for name, model in (("r", right), ("w", wrong))
    )
    for precision in ("fp32", "fp16", "bf16"):
        bundle = tmp_path / precision
        named = (f"--{precision}", "--backend", "none", "-o", bundle)
        assert deploykit("export", first, *named).code == 0
        assert deploykit("validate", bundle, first).code == 0
        called = deploykit("validate", bundle, second)
        assert called.code == 1, called.out
        assert "class numbers behind the first are" in called.out


def test_probabilities_of_a_result_are_compared_in_either_order(tmp_path: Path) -> None:
    case, bundle = CASES["the meant output is the second, of three classes"], tmp_path / "bundle"
    right = save(network(case), tmp_path / "right.onnx")
    wrong = save(changed(network(case), case.wrong), tmp_path / "wrong.onnx")
    named = ("--fp32", *case.options, "--backend", "none", "-o", bundle)
    assert deploykit("export", right, *named).code == 0
    for file, code in ((right, 0), (wrong, 1)):
        assert deploykit("validate", bundle, file).code == code
        assert deploykit("validate", file, bundle).code == code


def test_a_file_that_ends_in_another_result_is_refused(tmp_path: Path) -> None:
    """It says so itself: without that its probabilities would get a Softmax."""
    source = save(network(CASES["as many images as classes"]), tmp_path / "source.onnx")
    first, second = tmp_path / "first", tmp_path / "second"
    exported(source, first, "--result", "topk:3")
    exported(source, second, "--result", "probabilities")
    for pair in ((first, second / "model.onnx"), (second / "model.onnx", first)):
        called = deploykit("validate", *pair)
        assert called.code == 2
        assert "end in different results" in called.err
    same = tmp_path / "same"
    exported(source, same)
    assert deploykit("validate", first, same / "model.onnx").code == 0


def test_bytes_are_normalised_by_each_itself(tmp_path: Path) -> None:
    source = save(network(CASES["as many images as classes"]), tmp_path / "source.onnx")
    floats, other, bytes_ = (tmp_path / name for name in ("floats", "other", "bytes"))
    exported(source, floats, "--mean", 0.5, "--std", 0.5)
    exported(source, other, "--mean", 0.1, "--std", 0.25)
    exported(source, bytes_, *BYTES)
    for left, right, code in (
        (bytes_, floats, 0), (floats, bytes_, 0), (bytes_, other, 1), (other, bytes_, 1),
    ):  # fmt: skip
        called = deploykit("validate", left, right, "--json")
        assert called.code == code, called.out + called.err
        notes = [each for each in called.data["notes"] if "otherwise" in each]
        assert len(notes) == code
        assert all(each.endswith("each normalises them itself") for each in notes)


def test_numbers_that_nobody_judges_are_noted(tmp_path: Path) -> None:
    case = Case(
        f"{LOGITS} {AUX} order = ArgMax <axis = 1> (aux)",
        f"float[n,{CLASSES}] logits, int64[n,1] order",
        (),
        wrong="u",
    )
    model, bundle = network(case), tmp_path / "bundle"
    right = save(model, tmp_path / "right.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == "u":
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), "u"))
    wrong = save(model, tmp_path / "wrong.onnx")
    exported(right, bundle, "--head-output", "logits")
    for file, expected in ((right, []), (wrong, ["8 of 8 numbers changed; not judged"])):
        notes = deploykit("validate", bundle, file, "--json").data["notes"]
        assert [
            each.partition("graph: ")[2] for each in notes if "numbers changed" in each
        ] == expected


@pytest.mark.parametrize(
    ("last", "outputs"),
    [
        ("flat = Squeeze (logits, before)", f"float[{CLASSES}] flat"),
        ("s = Softmax <axis = 1> (logits) flat = Squeeze (s, before)", f"float[{CLASSES}] flat"),
        ("flat = ArgMax <axis = 1, keepdims = 0> (logits) k = Squeeze (flat, before)", "int64 k"),
    ],
)
def test_two_files_for_one_image_need_no_axis_for_it(
    last: str, outputs: str, tmp_path: Path
) -> None:
    case = Case(f"{LOGITS} {last}", outputs, (), batch="1")
    model = network(case)
    right, same = (save(model, tmp_path / f"{name}.onnx") for name in ("right", "same"))
    for tensor in model.graph.initializer:
        if tensor.name == "v":
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), "v"))
    wrong = save(model, tmp_path / "wrong.onnx")
    called = deploykit("validate", right, same)
    assert called.code == 0, called.err
    called = deploykit("validate", right, wrong, "--json")
    assert called.code == 1, called.err
    assert called.data["validation"]["head"] == "multiclass"


@pytest.mark.parametrize("factor", [-1.0, 0.5])
def test_values_beside_the_logits_that_a_conversion_left_near_fp32_are_judged(
    factor: float, tmp_path: Path
) -> None:
    """An embedding of a classifier: its opposite is no rounding."""
    text = f"{LOGITS} e = Mul (f, factor)"
    outputs = f"float[n,{CLASSES}] logits, float[n,k] e"
    files = []
    for name, number in (("right", 1.0), ("wrong", factor)):
        model = network(Case(text, outputs, (), wrong="factor"))
        model.graph.initializer.append(
            numpy_helper.from_array(np.array(number, np.float32), "factor")
        )
        files.append(save(model, tmp_path / f"{name}.onnx"))
    right, wrong = files
    bundle = tmp_path / "bundle"
    exported(right, bundle)
    assert deploykit("validate", bundle, right).code == 0
    for pair in ((bundle, wrong), (wrong, bundle)):
        called = deploykit("validate", *pair)
        assert called.code == 1
        assert "output 'e' of the fp16 graph" in called.out + called.err
