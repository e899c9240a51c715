"""Outputs in the shapes that files write them in: without a batch, with axes of 1, beside others.

The right values are those of the file itself, on onnxruntime, for images that are decoded here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

import deploykit
from tests import cli
from tests.integration.test_heads import by_index, export, predict
from tests.small_tails import SIZE, network, original, pictures

if TYPE_CHECKING:
    from pathlib import Path

    from tests.graphs import Array


def of_one_image(model: Path) -> Path:
    """The same file with a batch of 1 written into it."""
    proto = onnx.load(model)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(proto, model)
    return model


def one_by_one(model: Path, images: list[Path]) -> list[Array]:
    """All outputs of the file for each image, which it takes alone."""
    return [np.asarray(original(model, [image])[0]) for image in images]


def softmax(row: Array) -> Array:
    exponentials = np.exp(row - row.max())
    return np.asarray(exponentials / exponentials.sum())


SINGLE: dict[str, tuple[str, str, str]] = {
    "logits": ("l = Gemm <transB = 1> (f, k5)  y = Squeeze (l)", "float[5] y", "multiclass"),
    "reshaped": ("l = Gemm <transB = 1> (f, k7)  y = Reshape (l, flat)", "float[7] y",
                 "multiclass"),
    "chances": ("l = Gemm <transB = 1> (f, k5)  s = Softmax <axis = 1> (l)  y = Squeeze (s, first)",
                "float[5] y", "multiclass"),
    "labels": ("l = Gemm <transB = 1> (f, k4)  s = Sigmoid (l)  y = Squeeze (s, first)",
               "float[4] y", "multilabel"),
    "yes": ("l = Gemm <transB = 1> (f, k1)  s = Sigmoid (l)  y = Squeeze (s)", "float y", "binary"),
    "best": (("l = Gemm <transB = 1> (f, k6)  z = Squeeze (l)"
              "  y = ArgMax <axis = 0, keepdims = 0> (z)"), "int64 y", "multiclass"),
    "depth": ("m = Conv (r, depth)  y = Squeeze (m)", f"float[{SIZE}, {SIZE}] y", "raw"),
}  # fmt: skip


@pytest.mark.parametrize("name", SINGLE)
def test_what_a_file_for_one_image_gives_without_a_batch(name: str, tmp_path: Path) -> None:
    """Five logits (5,) of one image are no five images with a yes or no each."""
    nodes, outputs, kind = SINGLE[name]
    depth = np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 16, 1, 1)
    axes = {"first": np.array([0]), "flat": np.array([-1])}
    model = network(nodes, outputs, tmp_path, name, depth=depth, **axes)
    images = pictures(tmp_path / "images", 3)
    found = export(of_one_image(model))
    assert found["head"]["kind"] == kind
    assert "'y' has no axis for the batch: it got one, of one image" in found["notes"]
    expected = one_by_one(model, images)
    answers = predict(model, *images)
    for top, row in zip(answers, expected, strict=True):
        if name == "best":
            assert [each["index"] for each in top] == [int(row)]
        elif kind == "raw":
            np.testing.assert_allclose(np.array(top[0]["values"]), row, rtol=1e-4, atol=1e-5)
        else:
            wanted = softmax(row) if name in ("logits", "reshaped") else row.ravel()
            assert by_index(top) == pytest.approx(wanted.tolist(), abs=1e-5)
    compared = cli.deploykit("validate", model.with_suffix(""), model, "--json")
    assert (compared.code, compared.data["passed"]) == (0, True)


RANKED_ALONE: dict[str, tuple[str, str]] = {
    "three": ("a, b = TopK (s, three)  v = Squeeze (a, first)  y = Squeeze (b, first)",
              "float[3] v, int64[3] y"),
    "best": (("b = ArgMax <axis = 1> (s)  a = ReduceMax (s, axes)  y = Squeeze (b)"
              "  v = Squeeze (a)"), "int64 y, float v"),
    "beside": (("a, b = TopK (s, three)  v = Squeeze (a, first)  y = Squeeze (b, first)"
                "  z = Squeeze (f, first)"), "float[16] z, int64[3] y, float[3] v"),
    "open": ("v, b = TopK (s, three)  y = Squeeze (b, first)", "float[1, 3] v, int64[3] y"),
}  # fmt: skip


@pytest.mark.parametrize("name", RANKED_ALONE)
def test_probabilities_beside_class_numbers_without_a_batch(name: str, tmp_path: Path) -> None:
    """Of a file for one image both get the axis; what does not belong to them stays as it is."""
    nodes, outputs = RANKED_ALONE[name]
    model = network(
        f"l = Gemm <transB = 1> (f, k6)  s = Softmax <axis = 1> (l)  {nodes}", outputs, tmp_path,
        name, three=np.array([3]), first=np.array([0]), axes=np.array([1]),
    )  # fmt: skip
    images = pictures(tmp_path / "images", 3)
    export(of_one_image(model), "--fp16")
    written = [value.name for value in onnx.load(model).graph.output]
    with deploykit.load(model.with_suffix(""), device="cpu") as loaded:
        shapes = {spec.name: len(spec.shape) for spec in loaded.outputs}
        loaded.self_test()
    assert list(shapes) == ["y", *(each for each in written if each != "y")]
    rank = 1 if name == "best" else 2
    assert (shapes["y"], shapes["v"], shapes.get("z", 1)) == (rank, rank, 1)
    for image, top in zip(images, predict(model, *images), strict=True):
        found = dict(zip(written, original(model, [image]), strict=True))
        assert [each["index"] for each in top] == found["y"].ravel().tolist()
        chances = [each["probability"] for each in top]
        assert chances == pytest.approx(found["v"].ravel().tolist(), abs=2e-3)
    for order in ([model.with_suffix(""), model], [model, model.with_suffix("")]):
        compared = cli.deploykit("validate", *order, "--json")
        assert (compared.code, compared.data["passed"]) == (0, True)


@pytest.mark.parametrize("batch", [None, 1, 4])
def test_probabilities_behind_axes_of_one_with_any_batch(batch: int | None, tmp_path: Path) -> None:
    """TensorFlow's (N, 1, 1, K) behind a Softmax are classes, also where the batch is fixed."""
    nodes = "l = Gemm <transB = 1> (f, k5)  s = Softmax <axis = 1> (l)  y = Unsqueeze (s, two)"
    model = network(nodes, "float[N, 1, 1, 5] y", tmp_path, two=np.array([1, 2]))
    images = pictures(tmp_path / "images", 4)
    expected = original(model, images)[0].reshape(4, 5)
    proto = onnx.load(model)
    if batch is not None:
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
        proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = batch
    onnx.save(proto, model)
    assert export(model)["head"]["kind"] == "multiclass"
    for top, row in zip(predict(model, *images), expected, strict=True):
        assert by_index(top) == pytest.approx(row.tolist(), abs=1e-5)


PLACES = "q = Conv (r, k)  n = Reshape (q, rows)  t = Transpose <perm = [0, 2, 1]> (n)"
"""Values of 7 classes for each of 256 places of an image."""

SEVERAL: dict[str, tuple[str, str]] = {
    "best": (f"{PLACES}  v, y = TopK (t, one)", "int64[N, 256, 1] y"),
    "squeezed": (f"{PLACES}  v, i = TopK (t, one)  y = Squeeze (i, two)", "int64[N, 256] y"),
    "flat": (f"{PLACES}  v, i = TopK (t, three)  y = Reshape (i, flat)", "int64[N, 768] y"),
    "before the transpose": (
        f"{PLACES}  v, i = TopK <axis = 1> (n, one)  y = Squeeze (i, one)", "int64[N, 256] y"
    ),
    "over the places": (f"{PLACES}  v, y = TopK <axis = 1> (t, three)", "int64[N, 3, 7] y"),
    "int32": (f"{PLACES}  v, i = TopK (t, one)  y = Cast <to = 6> (i)", "int32[N, 256, 1] y"),
}  # fmt: skip


@pytest.mark.parametrize("batch", [None, 1])
@pytest.mark.parametrize("name", SEVERAL)
def test_rankings_of_several_places_are_no_ranking_of_the_image(
    name: str, batch: int | None, tmp_path: Path
) -> None:
    """The class of each pixel by a TopK of 1, as by an ArgMax: an image has none of its own."""
    nodes, outputs = SEVERAL[name]
    constants = {"one": [1], "two": [2], "three": [3], "rows": [0, 7, -1], "flat": [0, -1]}
    weights = {"k": np.random.default_rng(0).normal(size=(7, 16, 1, 1)).astype(np.float32)}
    weights |= {key: np.array(value) for key, value in constants.items()}
    model = network(nodes, outputs, tmp_path, "net", **weights)
    images = pictures(tmp_path / "images", 3)
    expected = one_by_one(model, images)
    found = export(model if batch is None else of_one_image(model))
    assert (found["head"]["kind"], found["head"]["activation"]) == ("raw", "argmax")
    assert any("class numbers for several places of an image" in note for note in found["notes"])
    for (top,), row in zip(predict(model, *images), expected, strict=True):
        np.testing.assert_array_equal(np.array(top["values"]), row[0])
    asked = cli.deploykit("export", model, "--head", "multiclass", "--backend", "none")
    assert asked.code == 1
    assert "expected a float32 output (batch, classes)" in asked.err


OF_IMAGES: dict[str, tuple[str, str]] = {
    "best": ("y = ArgMax <axis = 0, keepdims = 0> (l)", "int64[5] y"),
    "ranked": ("v, y = TopK <axis = 0> (l, one)", "int64[1, 5] y"),
    "largest": ("y = ReduceMax <keepdims = 0> (l, none)", "float[5] y"),
}


@pytest.mark.parametrize("name", OF_IMAGES)
def test_rankings_of_the_images_of_a_batch_are_no_classes(name: str, tmp_path: Path) -> None:
    """Five numbers whatever the batch: the image that is most of each class."""
    nodes, outputs = OF_IMAGES[name]
    constants = {"one": np.array([1]), "none": np.array([0])}
    model = network(
        f"l = Gemm <transB = 1> (f, k5)  {nodes}", outputs, tmp_path, "net", **constants
    )
    asked = "multiclass" if name != "largest" else "binary"
    called = cli.deploykit("export", model, "--head", asked, "--backend", "none")
    assert called.code == 1
    assert "in which the batch is at no place of its own: not" in called.err
    export(model, "--head", "raw")
    images = pictures(tmp_path / "images", 2)
    found = cli.deploykit("predict", model.with_suffix(""), *images, "--device", "cpu")
    assert found.code == 2
    assert "no output has an entry per image of 2: 'y'" in found.err
    assert cli.deploykit("predict", model.with_suffix(""), images[0], "--device", "cpu").code == 0


@pytest.mark.parametrize("batch", [None, 1, 4])
def test_a_ranking_behind_axes_of_one(batch: int | None, tmp_path: Path) -> None:
    """Of a network with channels last, (N, 1, 1, 3)."""
    nodes = """l = Gemm <transB = 1> (f, k5)  s = Softmax <axis = 1> (l)
               u = Unsqueeze (s, middle)  v, y = TopK (u, three)"""
    outputs = "int64[N, 1, 1, 3] y, float[N, 1, 1, 3] v"
    constants = {"middle": np.array([1, 2]), "three": np.array([3])}
    model = network(nodes, outputs, tmp_path, "net", **constants)
    images = pictures(tmp_path / "images", 4)
    wanted, _ = original(model, images)
    proto = onnx.load(model)
    if batch is not None:
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    onnx.save(proto, model)
    assert export(model)["head"]["kind"] == "multiclass"
    for top, row in zip(predict(model, *images), wanted.reshape(4, 3), strict=True):
        assert [each["index"] for each in top] == row.tolist()


def test_class_numbers_beside_the_probabilities_of_another_layer(tmp_path: Path) -> None:
    """Of two tasks with as many classes nobody knows which one is meant."""
    nodes = """l = Gemm <transB = 1> (f, k5)  y = ArgMax <axis = 1, keepdims = 0> (l)
               o = Gemm <transB = 1> (f, k)  p = Softmax <axis = 1> (o)"""
    weights = {"k": np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)}
    model = network(nodes, "float[N, 5] p, int64[N] y", tmp_path, "net", **weights)
    called = cli.deploykit("export", model, "--backend", "none")
    assert called.code == 2
    assert "nothing tells whether 'p' or 'y' is the answer" in called.err
    assert export(model, "--head-output", "y")["head"]["output"] == "y"


def test_values_over_their_sum_are_probabilities(tmp_path: Path) -> None:
    """Sigmoids that are made to sum to 1 are no vector of length 1."""
    nodes = """l = Gemm <transB = 1> (f, k5)  s = Sigmoid (l)
               t = ReduceSum <keepdims = 1> (s, axis)  y = Div (s, t)"""
    model = network(nodes, "float[N, 5] y", tmp_path, "net", axis=np.array([1]))
    images = pictures(tmp_path / "images", 2)
    head = export(model)["head"]
    assert (head["kind"], head["activation"]) == ("multiclass", "softmax")
    for top, row in zip(predict(model, *images), original(model, images)[0], strict=True):
        assert by_index(top) == pytest.approx(row.tolist(), abs=1e-5)


@pytest.mark.parametrize("more", ["TopK", "Sigmoid"])
def test_several_outputs_of_one_image_beside_their_own_file(more: str, tmp_path: Path) -> None:
    """(T, 1, C): an export leaves several of them as they are, and so are they compared."""
    nodes = f"{PLACES}  u = Transpose <perm = [1, 0, 2]> (t)"
    ends = {
        "TopK": ("v, y = TopK (u, three)", "float[256, 1, 3] v, int64[256, 1, 3] y"),
        "Sigmoid": ("v = Sigmoid (u)  y = Neg (u)", "float[256, 1, 7] v, float[256, 1, 7] y"),
    }
    end, outputs = ends[more]
    weights = {"k": np.random.default_rng(0).normal(size=(7, 16, 1, 1)).astype(np.float32)}
    weights |= {"three": np.array([3]), "rows": np.array([0, 7, -1])}
    model = of_one_image(network(f"{nodes}  {end}", outputs, tmp_path, "net", **weights))
    export(model, "--head", "raw")
    proto = onnx.load(model)
    for each in proto.graph.initializer:
        if each.name == "k":
            each.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(each), "k"))
    onnx.save(proto, tmp_path / "wrong.onnx")
    bundle = model.with_suffix("")
    for other, code in ((model, 0), (tmp_path / "wrong.onnx", 1)):
        for pair in ((bundle, other), (other, bundle)):
            assert cli.deploykit("validate", *pair).code == code


def test_boxes_that_are_found_stay_a_list(tmp_path: Path) -> None:
    """A network of several raw outputs is left as it is."""
    nodes = "l = Gemm <transB = 1> (f, k9)  a = Reshape (l, three)  b = Squeeze (l)"
    model = network(nodes, "float[3, 3] a, float[9] b", tmp_path, "boxes", three=np.array([3, 3]))
    found = export(of_one_image(model), "--head", "raw")
    assert not any("axis for the batch" in note for note in found["notes"])
    (top,) = predict(model, *pictures(tmp_path / "images", 1))
    assert [each["output"] for each in top] == ["a", "b"]


ROWS = {
    "tokens": ("l = Gemm <transB = 1> (f, k5)  y = Unsqueeze (l, one)", "float[N, 1, 5] y"),
    "pixels": ("l = Gemm <transB = 1> (f, k5)  y = Unsqueeze (l, two)", "float[N, 1, 1, 5] y"),
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("said", ["head", "labels"])
def test_classes_behind_axes_of_one_are_taken_at_the_users_word(
    name: str, said: str, tmp_path: Path
) -> None:
    nodes, outputs = ROWS[name]
    axes = {"one": np.array([1]), "two": np.array([1, 2])}
    model, images = network(nodes, outputs, tmp_path, name, **axes), pictures(tmp_path / "i", 3)
    (note,) = [each for each in export(model)["notes"] if "may be a sequence" in each]
    assert note.endswith("taken as it is; where it is a classifier: --head multiclass")
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\nd\ne\n", encoding="utf-8")
    words = ["--head", "multiclass"] if said == "head" else ["--labels", names]
    found = export(model, *words, "--replace")
    assert found["head"]["kind"] == "multiclass"
    for top, row in zip(predict(model, *images), original(model, images)[0], strict=True):
        assert by_index(top) == pytest.approx(softmax(row.ravel()).tolist(), abs=1e-5)


RANKED: dict[str, tuple[str, str, int | None]] = {
    "three": ("s = Softmax <axis = 1> (l)  v, y = TopK (s, three)",
              "float[N, 3] v, int64[N, 3] y", 0),
    "yes": ("s = Sigmoid (l)  v, y = TopK (s, three)", "int64[N, 3] y, float[N, 3] v", 1),
    "best": (("s = Softmax <axis = 1> (l)  y = ArgMax <axis = 1, keepdims = 0> (s)"
             "  v = ReduceMax <keepdims = 0> (s, one)"), "int64[N] y, float[N] v", 1),
    "logits": ("v, y = TopK (l, three)", "int64[N, 3] y, float[N, 3] v", None),
    "gathered": (("s = Softmax <axis = 1> (l)  y = ArgMax <axis = 1> (s)"
                  "  v = GatherElements <axis = 1> (s, y)"), "float[N, 1] v, int64[N, 1] y", 0),
    "three_gathered": (("s = Softmax <axis = 1> (l)  a, y = TopK (s, three)"
                        "  v = GatherElements <axis = 1> (s, y)"),
                       "int64[N, 3] y, float[N, 3] v", 1),
    "unsure": (("s = Softmax <axis = 1> (l)  y = ArgMax <axis = 1> (s)"
                "  a = GatherElements <axis = 1> (s, y)  v = Sub (yes, a)"),
               "float[N, 1] v, int64[N, 1] y", None),
    "some": ("a, y = TopK (l, three)  v = Softmax (a)", "float[N, 3] v, int64[N, 3] y", None),
    "some_by_themselves": ("a, y = TopK (l, three)  v = Sigmoid (a)",
                           "int64[N, 3] y, float[N, 3] v", None),
    "best_by_itself": (("y = ArgMax <axis = 1> (l)  m = ReduceMax (l, one)"
                            "  v = Sigmoid (m)"), "float[N, 1] v, int64[N, 1] y", None),
    "another": (("s = Softmax <axis = 1> (l)  y = ArgMax <axis = 1> (s)  m = Sigmoid (l)"
                "  v = ReduceMax (m, one)"), "int64[N, 1] y, float[N, 1] v", None),
}  # fmt: skip


@pytest.mark.parametrize("name", RANKED)
def test_class_numbers_have_the_probabilities_beside_them(name: str, tmp_path: Path) -> None:
    nodes, outputs, place = RANKED[name]
    model = network(
        f"l = Gemm <transB = 1> (f, k6)  {nodes}", outputs, tmp_path, name,
        three=np.array([3]), one=np.array([1]), yes=np.array(1, np.float32),
    )  # fmt: skip
    images = pictures(tmp_path / "images", 3)
    export(model)
    found = original(model, images)
    numbers = next(each for each in found if each.dtype == np.int64).reshape(3, -1)
    for at, top in enumerate(predict(model, *images)):
        assert [each["index"] for each in top] == numbers[at].tolist()
        chances = [each["probability"] for each in top]
        if place is None:
            assert set(chances) == {None}
        else:
            assert chances == pytest.approx(found[place][at].ravel().tolist(), abs=1e-5)


COMPUTED: dict[str, tuple[str, str]] = {
    "table": ("a = ArgMax <axis = 1, keepdims = 0> (l)  y = Gather (ids, a)", "int64[N] y"),
    "ranked": ("v, a = TopK (l, three)  b = Gather (ids, a)  y = Cast <to = 6> (b)",
               "int32[N, 3] y"),
    "least": ("a = ArgMin <axis = 1> (l)  y = Add (a, many)", "int64[N, 1] y"),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPUTED)
def test_numbers_of_classes_are_near_to_no_others(name: str, tmp_path: Path) -> None:
    """Of numbers about 100000 one that is three too large is another class, in any precision."""
    nodes, outputs = COMPUTED[name]
    made = {}
    for word, least in (("right", 100_000), ("wrong", 100_003)):
        made[word] = network(
            f"l = Gemm <transB = 1> (f, k6)  {nodes}", outputs, tmp_path, word,
            three=np.array([3]), ids=np.arange(6) + least, many=np.array([least]),
        )  # fmt: skip
    assert export(made["right"], "--fp16")["head"]["activation"] == "argmax"
    images = pictures(tmp_path / "images", 3)
    (expected,) = original(made["right"], images)
    for top, row in zip(predict(made["right"], *images), expected, strict=True):
        assert np.ravel(top[0]["values"]).tolist() == row.ravel().tolist()
    for first in (made["right"], made["right"].with_suffix("")):
        found = cli.deploykit("validate", first, made["wrong"], "--json")
        assert (found.code, found.data["passed"]) == (1, False)
    found = cli.deploykit("validate", made["right"].with_suffix(""), made["right"], "--json")
    assert (found.code, found.data["passed"]) == (0, True)


FORMS: dict[str, tuple[str, str, list[str]]] = {
    "flattened": ("l = Gemm <transB = 1> (f, k5)  y = Unsqueeze (l, axes)", "float[N, 5, 1, 1] y",
                  []),
    "second": ("z = Gemm <transB = 1> (f, k5)  y = Gemm <transB = 1> (f, k4)",
               "float[N, 5] z, float[N, 4] y", ["--head-output", "y"]),
    "alike": ("z = Gemm <transB = 1> (f, k5)  m = Neg (z)  y = Gemm <transB = 1> (m, k)",
              "float[N, 5] z, float[N, 5] y", ["--head-output", "y"]),
    "sequence": (("m = ReduceMean <keepdims = 0> (r, row)  t = Transpose <perm = [2, 0, 1]> (m)"
                 "  y = MatMul (t, signs)"), f"float[{SIZE}, N, 6] y", []),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_a_bundle_is_compared_with_the_file_it_came_from(name: str, tmp_path: Path) -> None:
    nodes, outputs, words = FORMS[name]
    rng = np.random.default_rng(3)
    constants: dict[str, Array] = {
        "axes": np.array([2, 3]),
        "row": np.array([2]),
        "k": rng.standard_normal((5, 5)).astype(np.float32),
        "signs": rng.standard_normal((16, 6)).astype(np.float32),
    }
    model = network(nodes, outputs, tmp_path, name, **constants)
    export(model, "--fp16", *words)
    for order in ([model.with_suffix(""), model], [model, model.with_suffix("")]):
        found = cli.deploykit("validate", *order, "--json")
        assert (found.code, found.data["passed"]) == (0, True)
    broken = onnx.load(model)
    (last,) = [node for node in broken.graph.node if "y" in node.output]
    last.output[0] = "before"
    broken.graph.node.append(onnx.helper.make_node("Neg", ["before"], ["y"]))
    onnx.save(broken, tmp_path / "broken.onnx")
    found = cli.deploykit("validate", model.with_suffix(""), tmp_path / "broken.onnx", "--json")
    assert (found.code, found.data["passed"]) == (1, False)


def test_a_lone_half_beside_a_bundle_of_its_original(tmp_path: Path) -> None:
    """What is flattened in the bundle is not in the file, which is the one that rounds."""
    nodes = "l = Gemm <transB = 1> (f, k5)  y = Unsqueeze (l, axes)"
    model = network(nodes, "float[N, 5, 1, 1] y", tmp_path, "whole", axes=np.array([2, 3]))
    export(model)
    half = onnx.load(model)
    for tensor in half.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            changed = onnx.numpy_helper.from_array(array.astype(np.float16), tensor.name)
            tensor.CopyFrom(changed)
    for node in half.graph.node:
        node.input[:] = ["xh" if name == "x" else name for name in node.input]
        node.output[:] = ["yh" if name == "y" else name for name in node.output]
    half.graph.node.insert(0, onnx.helper.make_node("Cast", ["x"], ["xh"], to=10))
    half.graph.node.append(onnx.helper.make_node("Cast", ["yh"], ["y"], to=1))
    onnx.save(half, tmp_path / "half.onnx")
    found = cli.deploykit("validate", tmp_path / "half.onnx", model.with_suffix(""), "--json")
    assert (found.code, found.data["passed"]) == (0, True)
    assert any("rounds where an engine rounds" in note for note in found.data["notes"])
