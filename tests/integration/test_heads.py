"""What outputs mean, through the commands; the right values are those of the file itself."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import deploykit
from tests import cli
from tests.graphs import normal
from tests.small_tails import SIZE, network, original, pictures

if TYPE_CHECKING:
    from tests.graphs import Array


def export(model: Path, *options: object, size: int = SIZE) -> dict[str, Any]:
    """Pixels from 0 to 1 as they are are what the model gets of an image of its ``size``."""
    given = ("--mean", "0,0,0", "--std", "1,1,1", "--resize", f"{size}x{size}", *options)
    place = model.with_suffix("")
    called = cli.deploykit("export", model, "--backend", "none", "-o", place, "--json", *given)
    assert called.code == 0, called.err
    return called.data


def predict(model: Path, *options: object) -> list[list[dict[str, Any]]]:
    called = cli.deploykit(
        "predict", model.with_suffix(""), *options, "--top-k", "9", "--device", "cpu", "--json"
    )
    assert called.code == 0, called.err
    return [each["top"] for each in called.data["predictions"]]


def by_index(top: list[dict[str, Any]]) -> list[float]:
    return [each["probability"] for each in sorted(top, key=lambda each: each["index"])]


# Means that are weighted by probabilities

AGES = np.arange(9, dtype=np.float32)
MEANS = {
    "product": ("y = MatMul (p, ages)", "float[N, 1] y", {"ages": AGES[:, None]}),
    "vector": ("y = MatMul (p, ages)", "float[N] y", {"ages": AGES}),
    "layer": ("y = Gemm <transB = 1> (p, ages, b)", "float[N, 1] y",
              {"ages": AGES[None], "b": AGES[1:2]}),
    "sum": ("z = Mul (p, ages)  y = ReduceSum <keepdims = 1> (z, axis)", "float[N, 1] y",
            {"ages": AGES, "axis": np.array([1])}),
    "unit": ("z = MatMul (p, ages)  y = Squeeze (z, axis)", "float[N] y",
             {"ages": AGES[:, None] / 8, "axis": np.array([1])}),
    "einsum": ('y = Einsum <equation = "nk,k->n"> (p, ages)', "float[N] y", {"ages": AGES / 8}),
    "scaled": ("z = MatMul (p, ages)  y = Mul (z, ten)", "float[N, 1] y",
               {"ages": AGES[:, None], "ten": np.array(10, np.float32)}),
}  # fmt: skip


@pytest.mark.parametrize("name", MEANS)
def test_a_mean_of_ages_is_no_probability(name: str, tmp_path: Path) -> None:
    end, outputs, constants = MEANS[name]
    nodes = f"l = Gemm <transB = 1> (f, k9)  p = Softmax <axis = 1> (l)  {end}"
    model = network(nodes, outputs, tmp_path, "age", **constants)
    images = pictures(tmp_path / "images", 3)
    found = export(model)
    assert found["head"]["kind"] == "raw"
    said = "is a mean weighted by probabilities: taken as it is; where it is the probability of a"
    assert any(said in note and note.endswith("--head binary") for note in found["notes"])
    with deploykit.load(model.with_suffix(""), device="cpu") as loaded:
        batch = np.stack([np.asarray(Image.open(path), np.float32) for path in images])
        values = loaded.run(batch.transpose(0, 3, 1, 2) / np.float32(255))
    np.testing.assert_allclose(values.ravel(), original(model, images)[0].ravel(), rtol=1e-5)
    assert export(model, "--head", "binary", "--replace")["head"]["kind"] == "binary"


@pytest.mark.parametrize("wanted", [[1, 0, 0, 1, 0, 0, 0, 0, 1], [0, 1, 0, 0, 0, 0, 0, 0, 0]])
def test_some_classes_together_are_a_probability(wanted: list[float], tmp_path: Path) -> None:
    nodes = "l = Gemm <transB = 1> (f, k9)  p = Softmax <axis = 1> (l)  y = MatMul (p, some)"
    some = np.array(wanted, np.float32)[:, None]
    model = network(nodes, "float[N, 1] y", tmp_path, "some", some=some)
    images = pictures(tmp_path / "images", 3)
    assert export(model)["head"]["kind"] == "binary"
    found = [top[0]["probability"] for top in predict(model, *images)]
    assert found == pytest.approx(original(model, images)[0].ravel().tolist(), abs=1e-5)


# Inputs of public reports


@pytest.fixture
def case(pytestconfig: pytest.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    shared = pytestconfig.getoption("--shared")
    if shared is None:
        pytest.skip("needs --shared DIR")
    cases = tmp_path / "cases"
    shutil.copytree(Path(shared) / "cases", cases)

    def make(name: str) -> Path:
        monkeypatch.chdir(cases / name)
        monkeypatch.syspath_prepend(str(cases))
        runpy.run_path("make.py")
        return cases / name

    return make


@pytest.mark.parametrize("name", ["sigmoid", "logit"])
def test_cats_and_dogs(case: Any, name: str) -> None:
    folder = case("07-binary")
    images = [folder / "data" / kind / "0.png" for kind in ("cat", "dog")]
    model = folder / f"{name}.onnx"
    called = cli.deploykit("export", model, "--backend", "none", "-o", folder / name, "--json")
    assert (called.code, called.data["head"]["kind"]) == (0, "binary")
    (cat,), (dog,) = predict(model, *images)
    assert (cat["index"], dog["index"]) == (0, 1)
    assert cat["probability"] == pytest.approx(6e-7, rel=0.1)
    assert dog["probability"] == pytest.approx(0.99999, abs=1e-5)
    found = cli.deploykit("eval", folder / name, "--data", folder / "data", "--json").data
    assert (found["top1"], found["count"]) == (1.0, 8)


@pytest.mark.parametrize("name", ["keras", "yolo"])
def test_probabilities_stay_the_models_own(case: Any, name: str) -> None:
    folder = case("10-softmax-tail")
    data = export(folder / f"{name}.onnx", size=32)
    assert data["head"] == {"kind": "multiclass", "output": "output0", "activation": "softmax"}
    (top,) = predict(folder / f"{name}.onnx", folder / "red.png")
    assert by_index(top) == pytest.approx([0.9646631, 0.01766842, 0.01766842], abs=1e-6)


def test_labels_by_themselves(case: Any) -> None:
    folder = case("10-softmax-tail")
    assert export(folder / "multi.onnx", size=32)["head"]["kind"] == "multilabel"
    (top,) = predict(folder / "multi.onnx", folder / "red.png")
    assert by_index(top) == pytest.approx([0.98201376, 0.5, 0.5], abs=1e-6)


def test_an_embedding_is_not_the_logits(case: Any) -> None:
    folder = case("15-embedding")
    data = export(folder / "e.onnx")
    assert data["head"] == {"kind": "multiclass", "output": "logits", "activation": "none"}
    (folder / "five.txt").write_text("a\nb\nc\nd\ne\n")
    assert export(folder / "e.onnx", "--labels", folder / "five.txt")["head"]["output"] == "logits"
    data = export(folder / "e.onnx", "--head-output", "embedding")
    assert data["head"] == {"kind": "raw", "output": "embedding", "activation": "none"}


# Other operators, shapes and names


MULTICLASS = {
    "written": (("l = Gemm <transB = 1> (f, k4)  e = Exp (l)  one = Constant <value_ints = [1]> ()"
                "  t = ReduceSum (e, one)  p = Div (e, t)"), "float[N, 4] p", "softmax"),
    "pooled": (("t = Constant <value_ints = [5, 16, 1, 1]> ()  q = Reshape (k5, t)"
               "  m = Conv (g, q)  p = Softmax <axis = 1> (m)"), "float[N, 5, 1, 1] p", "softmax"),
    "before": (("l = Gemm <transB = 1> (f, k4)  t = Constant <value_ints = [-1, 1, 4]> ()"
                "  q = Reshape (l, t)  p = Softmax (q)"), "float[N, 1, 4] p", "softmax"),
    "tensorflow": (("l = Gemm <transB = 1> (f, k4)  t = Constant <value_ints = [-1, 1, 1, 4]> ()"
                    "  q = Reshape (l, t)  p = Softmax (q)"), "float[N, 1, 1, 4] p", "softmax"),
    "mean": (("a = Gemm <transB = 1> (f, k3)  b = Softmax (a)  h = Neg (a)  d = Softmax (h)"
             "  s = Add (b, d)  two = Constant <value_float = 2.0> ()  p = Div (s, two)"),
             "float[N, 3] p", "softmax"),
}  # fmt: skip


@pytest.mark.parametrize("name", MULTICLASS)
def test_multiclass_probabilities(tmp_path: Path, name: str) -> None:
    nodes, outputs, activation = MULTICLASS[name]
    model, images = network(nodes, outputs, tmp_path, name), pictures(tmp_path / "images", 3)
    data = export(model, "--fp16")
    assert (data["head"]["kind"], data["head"]["activation"]) == ("multiclass", activation)
    (wanted,) = original(model, images)
    for top, row in zip(predict(model, *images), wanted.reshape(3, -1), strict=True):
        assert by_index(top) == pytest.approx(row.tolist(), abs=2e-3)


def test_log_softmax_gives_probabilities(tmp_path: Path) -> None:
    nodes = "l = Gemm <transB = 1> (f, k6)  y = LogSoftmax (l)"
    model, images = network(nodes, "float[N, 6] y", tmp_path), pictures(tmp_path / "images", 2)
    assert export(model)["head"]["activation"] == "log_softmax"
    (wanted,) = original(model, images)
    for top, row in zip(predict(model, *images), wanted, strict=True):
        assert by_index(top) == pytest.approx(np.exp(row).tolist(), abs=1e-6)


BINARY: dict[str, Any] = {
    "flat": (("l = Gemm <transB = 1> (f, k1)  s = Sigmoid (l)  o = Constant <value_ints = [1]> ()"
             "  p = Squeeze (s, o)"), "float[N] p", lambda row: row),
    "map": ("t = Constant <value_ints = [1, 16, 1, 1]> ()  q = Reshape (k1, t)  p = Conv (g, q)",
            "float[N, 1, 1, 1] p", lambda row: 1 / (1 + np.exp(-row))),
    "written": (("l = Gemm <transB = 1> (f, k1)  m = Neg (l)  e = Exp (m)"
                "  o = Constant <value_float = 1.0> ()  t = Add (e, o)  p = Div (o, t)"),
                "float[N, 1] p", lambda row: row),
}  # fmt: skip


@pytest.mark.parametrize("name", BINARY)
def test_binary_is_the_positive_classs_probability(tmp_path: Path, name: str) -> None:
    nodes, outputs, probability = BINARY[name]
    model, images = network(nodes, outputs, tmp_path, name), pictures(tmp_path / "images", 4)
    data = export(model, "--fp16")
    assert data["head"]["kind"] == "binary"
    fp16 = data["validation"][1]["batches"][0]
    assert {"max_error", "agreement"} <= fp16.keys()
    (wanted,) = original(model, images)
    chances = [float(probability(row)) for row in wanted.reshape(-1)]
    for (found,), chance in zip(predict(model, *images), chances, strict=True):
        assert found["probability"] == pytest.approx(chance, abs=2e-3)
    middle = (min(chances) + max(chances)) / 2
    decided = predict(model, *images, "--threshold", middle)
    assert [one["index"] for (one,) in decided] == [int(chance >= middle) for chance in chances]


PARTS = {
    "column": (("l = Gemm <transB = 1> (f, k2)  s = Softmax (l)  o = Constant <value_int = 1> ()"
                "  p = Gather <axis = 1> (s, o)"), "float[N] p"),
    "slice": (("l = Gemm <transB = 1> (f, k5)  s = Softmax (l)  a = Constant <value_ints = [3]> ()"
               "  b = Constant <value_ints = [4]> ()  o = Constant <value_ints = [1]> ()"
               "  p = Slice (s, a, b, o)"), "float[N, 1] p"),
    "rest": (("l = Gemm <transB = 1> (f, k1)  s = Sigmoid (l)  o = Constant <value_float = 1.0> ()"
              "  p = Sub (o, s)"), "float[N, 1] p"),
    "group": (("l = Gemm <transB = 1> (f, k5)  s = Softmax (l)  a = Constant <value_ints = [1, 3]> "
               "()  q = Gather <axis = 1> (s, a)  o = Constant <value_ints = [1]> ()"
               "  p = ReduceSum <keepdims = 1> (q, o)"), "float[N, 1] p"),
}  # fmt: skip


@pytest.mark.parametrize("options", [(), ("--head", "binary")])
@pytest.mark.parametrize("name", PARTS)
def test_part_of_the_probabilities_is_one(
    tmp_path: Path, name: str, options: tuple[str, ...]
) -> None:
    nodes, outputs = PARTS[name]
    model, images = network(nodes, outputs, tmp_path, name), pictures(tmp_path / "images", 4)
    assert export(model, "--fp16", *options)["head"]["kind"] == "binary"
    (wanted,) = original(model, images)
    for (found,), chance in zip(predict(model, *images), wanted.reshape(-1), strict=True):
        assert found["probability"] == pytest.approx(float(chance), abs=2e-3)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_classes_without_their_background(tmp_path: Path, kind: str) -> None:
    nodes = """l = Gemm <transB = 1> (f, k6)  s = Softmax (l)  o = Constant <value_ints = [1]> ()
        e = Constant <value_ints = [9]> ()  p = Slice (s, o, e, o)"""
    model, images = network(nodes, "float[N, 5] p", tmp_path), pictures(tmp_path / "images", 3)
    assert export(model, "--fp16", "--head", kind)["head"]["kind"] == kind
    (wanted,) = original(model, images)
    for top, row in zip(predict(model, *images), wanted, strict=True):
        assert by_index(top) == pytest.approx(row.tolist(), abs=2e-3)


LABELS = {
    "linear": "l = Gemm <transB = 1> (f, k7)  p = Sigmoid (l)",
    "pooled": "m = Conv (r, maps)  q = GlobalAveragePool (m)  l = Flatten (q)  p = Sigmoid (l)",
    "mean": "m = Conv (r, maps)  l = ReduceMean <keepdims = 0> (m, axes)  p = Sigmoid (l)",
}


@pytest.mark.parametrize("name", LABELS)
def test_logits_and_their_sigmoid(tmp_path: Path, name: str) -> None:
    model = network(
        LABELS[name], "float[N, 7] l, float[N, 7] p", tmp_path,
        maps=normal(7, 16, 1, 1, seed=4, scale=3.0), axes=np.array([2, 3]),
    )  # fmt: skip
    images = pictures(tmp_path / "images", 3)
    assert export(model, "--fp16")["head"]["kind"] == "multilabel"
    _, wanted = original(model, images)
    for top, row in zip(predict(model, *images), wanted, strict=True):
        assert by_index(top) == pytest.approx(row.tolist(), abs=2e-3)


MULTILABEL = {
    "joined": (("a = Gemm <transB = 1> (f, k2)  b = Gemm <transB = 1> (f, k3)  s = Sigmoid (a)"
               "  t = Sigmoid (b)  p = Concat <axis = 1> (s, t)"), "float[N, 5] p", ()),
    "hard": ("l = Gemm <transB = 1> (f, k4)  p = HardSigmoid (l)", "float[N, 4] p", ()),
    "logits": ("l = Gemm <transB = 1> (f, k7)", "float[N, 7] l", ("--head", "multilabel")),
}  # fmt: skip


@pytest.mark.parametrize("name", MULTILABEL)
def test_each_label_by_itself(tmp_path: Path, name: str) -> None:
    nodes, outputs, options = MULTILABEL[name]
    model, images = network(nodes, outputs, tmp_path, name), pictures(tmp_path / "images", 3)
    data = export(model, "--fp16", *options)
    assert data["head"]["kind"] == "multilabel"
    assert "label_agreement" in data["validation"][1]
    (wanted,) = original(model, images)
    if options:
        wanted = 1 / (1 + np.exp(-wanted))
    for top, row in zip(predict(model, *images), wanted, strict=True):
        assert by_index(top) == pytest.approx(row.tolist(), abs=2e-3)
        assert [each["present"] for each in top] == [each["probability"] >= 0.5 for each in top]


NUMBERS = {
    "best": ("l = Gemm <transB = 1> (f, k8)  y = ArgMax <axis = 1, keepdims = 0> (l)",
             "int64[N] y", "argmax"),
    "column": ("l = Gemm <transB = 1> (f, k8)  s = Softmax (l)  y = ArgMax <axis = 1> (s)",
               "int64[N, 1] y", "argmax"),
    "float": (("l = Gemm <transB = 1> (f, k8)  i = ArgMax <axis = 1, keepdims = 0> (l)"
               "  y = Cast <to = 1> (i)"), "float[N] y", "argmax"),
    "three": (("l = Gemm <transB = 1> (f, k8)  n = Constant <value_ints = [3]> ()"
              "  v, y = TopK (l, n)"), "int64[N, 3] y", "top_k"),
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_class_numbers_are_shown_as_they_are(tmp_path: Path, name: str) -> None:
    nodes, outputs, activation = NUMBERS[name]
    model, images = network(nodes, outputs, tmp_path, name), pictures(tmp_path / "images", 3)
    data = export(model, "--fp16")
    assert (data["head"]["kind"], data["head"]["activation"]) == ("multiclass", activation)
    assert data["validation"][0]["batches"][0]["max_kl"] is None
    (wanted,) = original(model, images)
    for top, row in zip(predict(model, *images), wanted.reshape(3, -1), strict=True):
        assert [each["index"] for each in top] == row.tolist()
        assert {each["probability"] for each in top} == {None}


def test_two_heads_need_a_word(tmp_path: Path) -> None:
    nodes = "a = Gemm <transB = 1> (f, k7)  b = Gemm <transB = 1> (f, k2)"
    model = network(nodes, "float[N, 7] a, float[N, 2] b", tmp_path)
    called = cli.deploykit("export", model, "--backend", "none", "-o", tmp_path / "none")
    assert called.code == 2
    assert "say which: --head-output a, or --head raw" in called.err
    assert export(model, "--head-output", "b")["head"]["output"] == "b"


# Networks that are no classifiers, end to end


def raw(top: list[dict[str, Any]]) -> dict[str, Array]:
    return {each["output"]: np.array(each["values"], np.float32) for each in top}


DETECTOR = """
    t = Constant <value_ints = [0, 4, -1]> ()  b = Conv <pads = [1, 1, 1, 1]> (r, wb)
    boxes = Reshape (b, t)  s = Conv <pads = [1, 1, 1, 1]> (r, ws)  scores = Sigmoid (s)"""
ENCODER = """
    l = Gemm <transB = 1> (f, k9)  o = Constant <value_ints = [1]> ()
    n = ReduceL2 <keepdims = 1> (l, o)  e = Div (l, n)"""
CTC = """
    h = AveragePool <kernel_shape = [16, 1]> (r)  o = Constant <value_ints = [2]> ()
    q = Squeeze (h, o)  m = MatMul (kc, q)  a = Transpose <perm = [2, 0, 1]> (m)
    p = Softmax <axis = 2> (a)"""


def other_network(name: str, folder: Path) -> Path:
    given = np.random.default_rng(7)
    wb, ws = (given.normal(size=(n, 16, 3, 3)).astype(np.float32) / 4 for n in (4, 3))
    kc = given.normal(size=(9, 16)).astype(np.float32)
    nodes, outputs = {
        "dense": (DETECTOR, "float[N, 4, 256] boxes, float[N, 3, 16, 16] scores"),
        "encoder": (ENCODER, "float[N, 9] e"),
        "ctc": (CTC, "float[16, N, 9] p"),
    }[name]
    return network(nodes, outputs, folder, name, wb=wb, ws=ws, kc=kc)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("name", ["dense", "encoder", "ctc"])
def test_any_network_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, precision: str
) -> None:
    monkeypatch.chdir(tmp_path)  # a table of calibration goes to the project's folder for them
    model, images = other_network(name, tmp_path), pictures(tmp_path / "images", 12)
    calibration = ("--calib", tmp_path / "images") if precision == "int8" else ()
    data = export(model, f"--{precision}", *calibration)
    assert data["head"]["kind"] == "raw"
    assert all(report["passed"] for report in data["validation"])
    wanted = original(model, images[:3])
    if name == "ctc":
        wanted = [wanted[0].swapaxes(0, 1)]
        assert any("was transposed" in note for note in data["notes"])
    folder = model.with_suffix("")
    assert len(data["validation"]) == 2 + (name == "dense")
    assert cli.deploykit("check", folder).code == 0
    assert cli.deploykit("validate", folder).code == 0
    bound = 2e-2 if precision == "fp16" else 0.3
    for at, top in enumerate(predict(model, *images[:3])):
        for got, expected in zip(raw(top).values(), wanted, strict=True):
            assert got.shape == expected[at].shape
            error = np.linalg.norm(got - expected[at]) / np.linalg.norm(expected[at])
            assert error < bound


def test_arrays_in_files(tmp_path: Path) -> None:
    model, images = other_network("dense", tmp_path), pictures(tmp_path / "images", 2)
    export(model)
    tops = predict(model, *images, "-o", tmp_path / "arrays")
    for at, (top, wanted) in enumerate(
        zip(tops, zip(*original(model, images), strict=True), strict=True)
    ):
        for each, expected in zip(top, wanted, strict=True):
            assert "values" not in each
            np.testing.assert_allclose(np.load(each["file"]), expected, rtol=1e-4, atol=1e-5)
            assert f"{at:04d}-{images[at].stem}-{each['output']}.npy" in each["file"]


def test_the_library_gives_all_outputs(tmp_path: Path) -> None:
    model, images = other_network("dense", tmp_path), pictures(tmp_path / "images", 3)
    export(model)
    batch = np.stack([np.asarray(Image.open(p), np.float32) / 255 for p in images])
    with deploykit.load(model.with_suffix(""), device="cpu") as loaded:
        found: dict[str, Any] = dict(loaded.run_all(batch.transpose(0, 3, 1, 2).copy()))
        assert loaded.self_test().max_abs < 1e-5
    for got, expected in zip(found.values(), original(model, images), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_a_planted_fault_is_found_in_any_output(tmp_path: Path) -> None:
    model = other_network("dense", tmp_path)
    export(model)
    for at, (name, size) in enumerate((("wb", 4), ("ws", 3))):
        other = np.random.default_rng(99).normal(size=(size, 16, 3, 3)).astype(np.float32) / 4
        given = np.random.default_rng(7)
        weights = {n: given.normal(size=(k, 16, 3, 3)).astype(np.float32) / 4
                   for n, k in (("wb", 4), ("ws", 3))}  # fmt: skip
        outputs = "float[N, 4, 256] boxes, float[N, 3, 16, 16] scores"
        faulty = network(DETECTOR, outputs, tmp_path, f"faulty{at}", **{**weights, name: other})
        called = cli.deploykit("validate", faulty, model.with_suffix(""), "--json")
        assert called.code == 1
        assert called.data["passed"] is False


# A verification that cannot fail


def test_one_class_is_said_loudly(tmp_path: Path) -> None:
    nodes = "l = Gemm <transB = 1> (f, k1)  y = Softmax (l)"
    model = network(nodes, "float[N, 1] y", tmp_path)
    for report in export(model)["validation"]:
        assert "there is one class" in report["blind_spots"][0]
    called = cli.deploykit("validate", model.with_suffix(""), model)
    assert "WEAK VERIFICATION: there is one class" in called.out


def test_constant_outputs_and_equal_images(tmp_path: Path) -> None:
    nodes = "z = Sub (f, f)  l = Gemm <transB = 1> (z, k4, b)"
    bias = np.array([0, 3, 1, 2], np.float32)
    model = network(nodes, "float[N, 4] l", tmp_path, b=bias)
    (report,) = export(model)["validation"]
    assert "the logits are the same for all 8 images" in report["blind_spots"]
    other = network("l = Gemm <transB = 1> (f, k4)", "float[N, 4] l", tmp_path, "other")
    image = pictures(tmp_path / "images", 1)[0]
    for at in range(8):
        shutil.copy(image, tmp_path / "images" / f"copy{at}.png")
    (report,) = export(other, "--data", tmp_path / "images")["validation"]
    assert report["blind_spots"][0] == "all 8 images are the same one"


def test_a_sound_verification_says_nothing(tmp_path: Path) -> None:
    nodes = "l = Gemm <transB = 1> (f, k9)  n = GlobalAveragePool (x)  y = Flatten (n)"
    model = network(nodes, "float[N, 3] y", tmp_path)
    images = tmp_path / "images"
    images.mkdir()
    for at, colour in enumerate(("red", "lime", "blue") * 3):
        Image.new("RGB", (16, 16), colour).save(images / f"{at}.png")
    data = export(model, "--head", "multiclass", "--data", images)
    assert [report["blind_spots"] for report in data["validation"]] == [[]]


# What makes no sense is refused


def test_a_threshold_for_classes(tmp_path: Path) -> None:
    model = network("l = Gemm <transB = 1> (f, k4)", "float[N, 4] l", tmp_path)
    export(model)
    folder, image = model.with_suffix(""), pictures(tmp_path / "images", 1)[0]
    called = cli.deploykit("predict", folder, image, "--threshold", "0.3")
    assert called.code == 2
    assert "--threshold 0.3 is for binary and multilabel heads" in called.err
    called = cli.deploykit("predict", folder, image, "-o", tmp_path / "arrays")
    assert called.code == 2
    assert "is for arrays, which a multiclass head has none of" in called.err


def test_a_threshold_that_is_no_probability(tmp_path: Path) -> None:
    model = network("l = Gemm <transB = 1> (f, k1)", "float[N, 1] l", tmp_path)
    export(model)
    image = pictures(tmp_path / "images", 1)[0]
    called = cli.deploykit("predict", model.with_suffix(""), image, "--threshold", "50")
    assert called.code == 2
    assert "--threshold is 50\nexpected a probability between 0 and 1" in called.err
    (tmp_path / "three.txt").write_text("a\nb\nc\n")
    called = cli.deploykit(
        "export",
        model,
        "--backend",
        "none",
        "-o",
        tmp_path / "b",
        "--labels",
        tmp_path / "three.txt",
    )
    assert "there are 3 labels, the model says yes or no" in called.err


@pytest.mark.parametrize("target", ["resnet20", "torchvision:resnet18"])
def test_a_definition_with_one_output(target: str) -> None:
    called = cli.deploykit("export", target, "--head-output", "x")
    assert called.code == 2
    assert f"--head-output x is for an .onnx or a Python file, not for {target}" in called.err


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    model, (image,) = other_network("encoder", tmp_path), pictures(tmp_path / "images", 1)
    export(model)
    called = cli.deploykit("predict", model.with_suffix(""), image, "-o", image / "arrays")
    assert called.code == 1
    assert f"cannot write to {image / 'arrays'}: " in called.err


SQUASHED = {
    "inverted": "l = Gemm <transB = 1> (f, k4)  s = Sigmoid (l)  y = Sub (one, s)",
    "percent": "l = Gemm <transB = 1> (f, k4)  s = Softmax (l)  y = Mul (s, hundred)",
    "scaled": "l = Gemm <transB = 1> (f, k4)  s = Sigmoid (l)  y = Mul (s, hundred)",
}


@pytest.mark.parametrize("name", SQUASHED)
def test_probabilities_that_were_changed_are_no_logits(tmp_path: Path, name: str) -> None:
    """A softmax on top of 1 - p would turn every answer round."""
    ones = "one = Constant <value_float = 1.0> ()  hundred = Constant <value_float = 100.0> ()  "
    model = network(ones + SQUASHED[name], "float[N, 4] y", tmp_path, name)
    images = pictures(tmp_path / "images", 2)
    data = export(model)
    assert data["head"]["kind"] == "raw"
    assert any("and other operators behind it: taken as it is" in note for note in data["notes"])
    (wanted,) = original(model, images)
    for (answer,), row in zip(predict(model, *images), wanted, strict=True):
        assert answer["values"] == pytest.approx(row.tolist(), abs=1e-4)


@pytest.mark.parametrize("flags", ["sorted = 0", "largest = 0"])
def test_a_top_k_that_is_no_ranking_is_handed_over(tmp_path: Path, flags: str) -> None:
    nodes = (
        "l = Gemm <transB = 1> (f, k6)  three = Constant <value_ints = [3]> ()"
        f"  v, y = TopK <{flags}> (l, three)"
    )
    model = network(nodes, "int64[N, 3] y", tmp_path, "topk")
    data = export(model)
    assert data["head"]["kind"] == "raw"


DECIDED = {
    "map": (
        "m = Conv <pads = [1, 1, 1, 1]> (r, wm)  y = ArgMax <axis = 1, keepdims = 0> (m)",
        "int64[N, 16, 16] y",
        "has class numbers for several places of an image",
    ),
    "shifted": (
        """l = Gemm <transB = 1> (f, k8)  a = ArgMax <axis = 1, keepdims = 0> (l)
        o = Constant <value_ints = [1]> ()  y = Add (a, o)""",
        "int64[N] y",
        "has int64 numbers that are computed further",
    ),
    "pair": (
        """l = Gemm <transB = 1> (f, k8)  a = ArgMax <axis = 1> (l)
        o = Constant <value_ints = [4]> ()  d = Div (a, o)  q = Mul (d, o)  s = Sub (a, q)
        y = Concat <axis = 1> (d, s)""",
        "int64[N, 2] y",
        "has int64 numbers that are computed further",
    ),
    "threshold": (
        """l = Gemm <transB = 1> (f, k4)  s = Sigmoid (l)  h = Constant <value_float = 0.5> ()
        yes = Greater (s, h)  y = Cast <to = 1> (yes)""",
        "float[N, 4] y",
        "is decided by a Greater",
    ),
    "flags": (
        """l = Gemm <transB = 1> (f, k4)  s = Sigmoid (l)  h = Constant <value_float = 0.5> ()
        y = Less (s, h)""",
        "bool[N, 4] y",
        "has decisions without their probabilities",
    ),
    "best": (
        "l = Gemm <transB = 1> (f, k4)  s = Softmax (l)  y = ReduceMax <keepdims = 0> (s, one)",
        "float[N] y",
        "has the largest values without their classes",
    ),
}


@pytest.mark.parametrize("name", DECIDED)
def test_why_the_head_is_raw_is_said(tmp_path: Path, name: str) -> None:
    nodes, outputs, said = DECIDED[name]
    weights = {"wm": np.random.default_rng(1).normal(size=(5, 16, 3, 3)).astype(np.float32)}
    model = network(nodes, outputs, tmp_path, name, **weights, one=np.array([1]))
    images = pictures(tmp_path / "images", 4)
    data = export(model)
    assert data["head"]["kind"] == "raw"
    assert any(said in note for note in data["notes"])
    (wanted,) = original(model, images)
    for (answer,), row in zip(predict(model, *images), wanted, strict=True):
        np.testing.assert_allclose(np.array(answer["values"], float), row.astype(float), atol=1e-5)
    asked = export(model, "--head", "raw", "--replace")
    assert not any(said in note for note in asked["notes"])
