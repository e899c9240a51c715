"""`export --input uint8` and `--result`, judged by the original file, Pillow and numpy.

The oracle shares no code with deploykit: it scales and crops with Pillow, normalises in FP64, runs
the original file, and makes probabilities of its logits.
"""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

import deploykit as library
from deploykit.core.errors import UsageError
from tests import own_files
from tests.bundles import write_classifier
from tests.cli import Called, deploykit
from tests.graphs import graph, normal, save
from tests.services import served

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

pytestmark = pytest.mark.usefixtures("own_folder")

HEIGHT, WIDTH = 16, 12
RESIZE = 20
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LOOK = (
    "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225", "--resize", RESIZE,
    "--interpolation", "bilinear", "--channel-order", "rgb",
)  # fmt: skip
PHOTOS = sorted((Path(library.__file__).parent / "samples").glob("*.jpg"))[:4]
HAS_RTX = find_spec("tensorrt_rtx") is not None


def pixels_of(path: Path) -> Array:
    """What a camera would give the graph: scaled and cropped by Pillow, (H, W, 3)."""
    image = Image.open(path).convert("RGB")
    width, height = image.size
    longer = int(RESIZE * max(width, height) / min(width, height))
    image = image.resize((RESIZE, longer) if width <= height else (longer, RESIZE), 2)
    left, top = round((image.width - WIDTH) / 2), round((image.height - HEIGHT) / 2)
    return np.asarray(image.crop((left, top, left + WIDTH, top + HEIGHT)))


def run(path: Path, **feeds: Array) -> list[Array]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: list[Array] = session.run(None, feeds)
    return found


def logits_of(original: Path, bytes_: Array, *, bgr: bool = False) -> Array:
    """Logits of the untouched file for pixels (N, H, W, 3) of red, green and blue."""
    normalised = (bytes_ / 255 - np.array(MEAN)) / np.array(STD)
    if bgr:
        normalised = normalised[..., ::-1]
    (found,) = run(original, input=normalised.transpose(0, 3, 1, 2).astype(np.float32))
    return found


def soft(logits: Array) -> Array:
    powers = np.exp(logits.astype(np.float64))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def export(original: Path, folder: Path, *more: object, look: tuple[object, ...] = LOOK) -> Called:
    return deploykit(
        "export", original, "--backend", "none", "-o", folder, "--json", *look, *more
    )  # fmt: skip


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(
        tmp_path_factory.mktemp("original") / "net.onnx", image=f"{HEIGHT}, {WIDTH}"
    )


@pytest.fixture(scope="module")
def photos() -> Array:
    return np.stack([pixels_of(path) for path in PHOTOS])


FORMS = [
    ("--fp32", (), 1e-5),
    ("--fp32", ("--input-layout", "nchw"), 1e-5),
    ("--fp32", ("--input-order", "bgr"), 1e-5),
    ("--fp16", ("--input-layout", "nchw", "--input-order", "bgr"), 2e-3),
    ("--bf16", (), 2e-2),
    ("--int8", ("--calib", "random", "--calib-count", 8), 5e-2),
]


@pytest.mark.parametrize(("precision", "form", "limit"), FORMS)
def test_bytes_give_what_the_original_gives(
    original: Path,
    photos: Array,
    tmp_path: Path,
    precision: str,
    form: tuple[object, ...],
    limit: float,
) -> None:
    folder = tmp_path / "made"
    more = () if precision == "--fp32" else (precision,)
    called = export(original, folder, *more, "--input", "uint8", *form)
    assert called.code == 0, called.err
    given = photos[..., ::-1] if "bgr" in form else photos
    given = given.transpose(0, 3, 1, 2) if "nchw" in form else given
    model = folder / ("model.onnx" if precision == "--fp32" else "model.cpu.onnx")
    (found,) = run(model, input=np.ascontiguousarray(given))
    wanted = logits_of(original, photos)
    np.testing.assert_allclose(found, wanted, atol=limit * np.abs(wanted).max())
    shape = onnx.load(model).graph.input[0].type.tensor_type
    assert shape.elem_type == onnx.TensorProto.UINT8


def test_every_command_agrees(original: Path, photos: Array, tmp_path: Path) -> None:
    folder, names = tmp_path / "made", tmp_path / "names.txt"
    names_of = ("ant", "bee", "cat", "dog")
    names.write_text("\n".join(names_of), encoding="utf-8")
    called = export(
        original, folder, "--fp16", "--input", "uint8", "--result", "topk:2", "--labels", names
    )
    assert called.code == 0, called.err
    chances = soft(logits_of(original, photos))
    best = np.argsort(-chances, axis=1)[:, :2]
    answer = deploykit("predict", folder, *PHOTOS, "--json")
    assert answer.code == 0, answer.err
    for row, one, chance in zip(best, answer.data["predictions"], chances, strict=True):
        assert [each["index"] for each in one["top"]] == row.tolist()
        assert [each["label"] for each in one["top"]] == [names_of[at] for at in row]
        assert [each["probability"] for each in one["top"]] == pytest.approx(
            chance[row].tolist(), abs=2e-3
        )
    for path, (first, _) in zip(PHOTOS, best, strict=True):
        (tmp_path / "set" / names_of[first]).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "set" / names_of[first])
    data = ("--data", tmp_path / "set", "--json")
    others: list[tuple[object, ...]] = [(), ("--reference", original), ("--compare", original)]
    for other in others:
        judged = deploykit("eval", folder, *other, *data)
        assert judged.code == 0, judged.err
        assert judged.data["top1"] == 1.0
    assert deploykit("check", folder, "--json").data["ok"] is True
    for second in ((), (original,)):
        compared = deploykit("validate", folder, *second, "--json")
        assert compared.code == 0, compared.err
        assert compared.data["validation"]["passed"] is True
    assert deploykit("inspect", folder, "--json").code == 0
    with library.load(folder, device="cpu") as model:
        assert model.run(photos).tolist() == best.tolist()
        assert model.self_test().non_finite == 0
        with pytest.raises(UsageError, match="the graph takes pixels of 0 to 255, and normalises"):
            model.run(photos.astype(np.float32))
        with pytest.raises(UsageError, match=r"its layout is \(N, C, H, W\), turn it"):
            model.run(photos.transpose(0, 3, 1, 2))
        with pytest.raises(UsageError, match="one image lacks the batch dimension"):
            model.run(photos[0])
        with pytest.raises(UsageError, match="the batch is empty"):
            model.run(photos[:0])
        with pytest.raises(UsageError, match="resizes and crops images as the model needs it"):
            model.run(photos[:, :5])


def test_predict_makes_no_floats_of_bytes(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export(original, tmp_path / "made", "--input", "uint8").code == 0
    with library.load(tmp_path / "made", device="cpu") as model:
        seen: list[Array] = []
        inner = model.runner.run

        def watched(feeds: Any) -> Any:
            seen.append(feeds["input"])
            return inner(feeds)

        monkeypatch.setattr(model.runner, "run", watched)
        model.predict(PHOTOS)
        model.predict(PHOTOS[0])
    assert [each.dtype for each in seen] == [np.uint8, np.uint8]
    assert seen[0].tolist() == np.stack([pixels_of(path) for path in PHOTOS]).tolist()
    assert seen[1].tolist() == pixels_of(PHOTOS[0])[None].tolist()


ENDS = [
    ("probabilities", "softmax", ["probabilities"]),
    ("classes", "argmax", ["classes"]),
    ("topk:3", "top_k", ["classes", "probabilities"]),
]


@pytest.mark.parametrize(("result", "activation", "outputs"), ENDS)
def test_results_of_prepared_images(
    original: Path, photos: Array, tmp_path: Path, result: str, activation: str, outputs: list[str]
) -> None:
    folder = tmp_path / "made"
    called = export(original, folder, "--result", result)
    assert called.code == 0, called.err
    head = {"kind": "multiclass", "output": outputs[0], "activation": activation}
    assert called.data["head"] == head
    prepared = ((photos / 255 - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32)
    found = dict(zip(outputs, run(folder / "model.onnx", input=prepared), strict=True))
    chances = soft(logits_of(original, photos))
    order = np.argsort(-chances, axis=1)
    match result:
        case "probabilities":
            np.testing.assert_allclose(found["probabilities"], chances, atol=1e-6)
        case "classes":
            assert found["classes"].tolist() == order[:, 0].tolist()
        case _:
            assert found["classes"].tolist() == order[:, :3].tolist()
            best = np.take_along_axis(chances, order[:, :3], axis=1)
            np.testing.assert_allclose(found["probabilities"], best, atol=1e-6)


def test_nothing_is_put_behind_an_end_that_is_there(original: Path, tmp_path: Path) -> None:
    ended = own_ended(tmp_path, "p = Softmax <axis = 1> (logits)")
    called = export(ended, tmp_path / "made", "--result", "probabilities")
    assert called.code == 0, called.err
    assert "the graph ends in probabilities already: nothing was put behind it" in str(
        called.data["notes"]
    )
    kinds = [node.op_type for node in onnx.load(tmp_path / "made" / "model.onnx").graph.node]
    assert kinds.count("Softmax") == 1
    assert called.data["head"]["output"] == "p"
    again = export(original, tmp_path / "plain", "--result", "topk:1")
    assert again.code == 0


def own_ended(folder: Path, end: str, outputs: str = "float[N,4] p") -> Path:
    model = graph(
        f"g (float[N,3,{HEIGHT},{WIDTH}] input) => ({outputs}) {{"
        f" c = Conv <pads = [1,1,1,1]> (input, w) m = GlobalAveragePool (c) f = Flatten (m)"
        f" logits = Gemm <transB = 1> (f, v) {end} }}",
        {"w": normal(16, 3, 3, 3), "v": normal(4, 16, seed=1)},
    )
    return save(model, folder / "ended.onnx")


def test_labels_that_do_not_exclude_each_other(
    original: Path, photos: Array, tmp_path: Path
) -> None:
    folder = tmp_path / "made"
    options = ("--head", "multilabel", "--input", "uint8", "--result", "probabilities")
    called = export(original, folder, *options)
    assert called.code == 0, called.err
    assert called.data["head"]["activation"] == "sigmoid"
    (found,) = run(folder / "model.onnx", input=photos)
    wanted = 1 / (1 + np.exp(-logits_of(original, photos)))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_network_of_bgr_takes_bytes_of_rgb(original: Path, photos: Array, tmp_path: Path) -> None:
    look = (*LOOK[:-1], "bgr")
    called = export(original, tmp_path / "made", "--input", "uint8", look=look)
    assert called.code == 0, called.err
    (found,) = run(tmp_path / "made" / "model.onnx", input=photos)
    # The mean and deviation are given in the order of the network: blue first.
    normalised = (photos[..., ::-1] / 255 - np.array(MEAN)) / np.array(STD)
    (wanted,) = run(original, input=normalised.transpose(0, 3, 1, 2).astype(np.float32))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_fixed_batch(photos: Array, tmp_path: Path) -> None:
    fixed = write_classifier(tmp_path / "f.onnx", image=f"{HEIGHT}, {WIDTH}", batch="2")
    called = export(
        fixed, tmp_path / "made", "--batch", 2, "--input", "uint8", "--result", "classes"
    )
    assert called.code == 0, called.err
    manifest = json.loads((tmp_path / "made" / "manifest.json").read_text())
    (given,) = manifest["onnx"]["inputs"]
    assert given == {"name": "input", "dtype": "uint8", "shape": [2, HEIGHT, WIDTH, 3]}
    with library.load(tmp_path / "made", device="cpu") as model:
        assert len(model.run(photos[:2])) == 2


def test_open_heights_need_the_channels_first(tmp_path: Path) -> None:
    opened = write_classifier(tmp_path / "o.onnx", image="H, W")
    sizes = ("--height", "8,16,20", "--width", "8,12,20")
    for given in (sizes, ("--height", "16", "--width", "12")):
        refused = export(opened, tmp_path / "made", "--input", "uint8", *given)
        assert refused.code != 0
        assert "--height and --width of a graph of bytes need its channels first" in refused.err
        assert "add --input-layout nchw" in refused.err
        # Without sizes such a file is refused too.
        assert "leave the sizes out" not in refused.err
    without = export(opened, tmp_path / "made", "--input", "uint8", "--input-layout", "nchw")
    assert "its sizes must be known here: --height MIN,OPT,MAX" in without.err
    called = export(opened, tmp_path / "made", "--input", "uint8", "--input-layout", "nchw", *sizes)
    assert called.code == 0, called.err
    assert deploykit("check", tmp_path / "made", "--json").data["ok"] is True


def test_only_the_image_of_several_inputs_becomes_bytes(tmp_path: Path) -> None:
    source = own_files.patients()
    values = own_files.write_values(tmp_path / "values.npz")
    (tmp_path / "mine.onnx").write_bytes(source.SerializeToString())
    called = export(
        tmp_path / "mine.onnx", tmp_path / "made", "--input", "uint8", "--side-inputs", values,
    )  # fmt: skip
    assert called.code == 0, called.err
    made = json.loads((tmp_path / "made" / "manifest.json").read_text())["onnx"]["inputs"]
    kept = {value.name for value in source.graph.input}
    assert {each["name"] for each in made} == kept
    assert [each["dtype"] for each in made].count("uint8") == 1
    assert made[0]["dtype"] == "uint8"
    assert deploykit("check", tmp_path / "made", "--json").data["ok"] is True
    compared = deploykit("validate", tmp_path / "made", tmp_path / "mine.onnx")
    assert "beside images, which one of them takes as bytes" in compared.err


def test_the_manifest_says_what_is_left_outside(original: Path, tmp_path: Path) -> None:
    assert export(original, tmp_path / "made", "--input", "uint8").code == 0
    manifest = json.loads((tmp_path / "made" / "manifest.json").read_text())
    assert manifest["preprocessing"]["pixels"] == {
        "dtype": "uint8", "layout": "nhwc", "order": "rgb", "outside": ["decode", "resize", "crop"],
    }  # fmt: skip
    assert manifest["onnx"]["inputs"] == [
        {"name": "input", "dtype": "uint8", "shape": ["N", HEIGHT, WIDTH, 3]}
    ]


def test_the_file_says_what_its_user_must_know(original: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\ncat\ndog\n", encoding="utf-8")
    assert export(original, tmp_path / "first", "--labels", names).code == 0
    file = tmp_path / "first" / "model.onnx"
    said = {each.key: each.value for each in onnx.load(file).metadata_props}
    assert json.loads(said["deploykit.classes"]) == ["ant", "bee", "cat", "dog"]
    assert json.loads(said["deploykit.preprocessing"])["mean"] == list(MEAN)
    assert json.loads(said["deploykit.head"])["kind"] == "multiclass"
    assert said["deploykit.version"] == library.__version__
    # As a TARGET: nothing has to be said again, and what is said stands in its place.
    called = export(file, tmp_path / "second", "--input", "uint8", "--std", "0.5,0.5,0.5", look=())
    assert called.code == 0, called.err
    notes = called.data["notes"]
    version = f"written by deploykit {library.__version__}"
    assert f"model.onnx says its preprocessing, head, class names, {version}" in notes
    assert "in place of what model.onnx says: --std" in notes
    made = json.loads((tmp_path / "second" / "manifest.json").read_text())["preprocessing"]
    assert (made["mean"], made["std"], made["resize"]) == (list(MEAN), [0.5] * 3, RESIZE)
    assert (tmp_path / "second" / "labels.txt").read_text() == names.read_text()


def test_ranges_measured_on_a_bundle_serve_a_later_export(original: Path, tmp_path: Path) -> None:
    """The card that is added to a file does not make another graph of it."""
    assert export(original, tmp_path / "first").code == 0
    table, noise = tmp_path / "t.json", ("--calib-count", 8)
    given = ("--data", "random", *noise)
    found = deploykit("calibrate", tmp_path / "first", *given, "-o", table)
    assert found.code == 0, found.err
    later = ("--int8", "--calib", "random", *noise, "--calib-table", table)
    called = export(original, tmp_path / "second", *later, "--input", "uint8")
    assert called.code == 0, called.err
    refused = deploykit("calibrate", tmp_path / "second", *given)
    assert "was exported with --input: its graphs are no longer those that ranges are of" in (
        refused.err
    )


def test_two_forms_that_cannot_be_compared(original: Path, tmp_path: Path) -> None:
    kinds = {
        "rgb": ("--input", "uint8"),
        "bgr": ("--input", "uint8", "--input-order", "bgr"),
        "top": ("--result", "topk:2"),
        "one": ("--result", "classes"),
    }
    for name, options in kinds.items():
        assert export(original, tmp_path / name, *options).code == 0
    pairs = {
        ("rgb", "bgr"): "the two take bytes in other forms",
        ("top", "one"): "'classes' of --result topk:2 and 'classes' of --result classes",
    }
    for (left, right), said in pairs.items():
        assert said in deploykit("validate", tmp_path / left, tmp_path / right).err
    layers = deploykit("validate", tmp_path / "rgb", original, "--layers")
    assert "have not the same form" in layers.err


BAD: list[tuple[tuple[object, ...], str]] = [
    (("--input-layout", "nchw"), "--input-layout nchw is for bytes"),
    (("--input-order", "bgr"), "--input-order bgr is for bytes"),
    (("--input", "uint16"), "'uint16' is not one of"),
    (("--result", "topk:0"), "--result is 'topk:0'\npossible: probabilities, classes or topk:K"),
    (("--result", "topk:x"), "--result is 'topk:x'"),
    (("--result", "top5"), "--result is 'top5'"),
    (("--result", "topk:" + "9" * 5000), "possible: probabilities, classes or topk:K"),
    (("--result", "topk:5"), "--result topk:5 for 4 classes\npossible: topk:1 to topk:4"),
    (
        ("--result", "classes", "--result", "topk:2"),
        "--result is given 2 times: classes, topk:2\na graph ends in one of them",
    ),
    (("--result", "classes", "--head", "raw"), "--result classes for raw outputs"),
    (
        ("--result", "classes", "--head", "multilabel"),
        "the head is multilabel: a yes or no depends on a threshold",
    ),
]


@pytest.mark.parametrize(("options", "said"), BAD)
def test_bad_input(original: Path, tmp_path: Path, options: tuple[object, ...], said: str) -> None:
    called = export(original, tmp_path / "made", *options)
    assert called.code != 0
    assert said in called.err
    assert not (tmp_path / "made").exists()


def test_bytes_need_a_normalisation_that_somebody_said(original: Path, tmp_path: Path) -> None:
    said: dict[tuple[str, ...], tuple[str, str]] = {
        (): ("that of net.onnx is not known", "say it: --mean and --std, as in training"),
        LOOK[:2]: ("only --mean is given", "--std is missing: add it, as in training"),
        LOOK[2:4]: ("only --std is given", "--mean is missing: add it, as in training"),
    }
    for look, words in said.items():
        called = export(original, tmp_path / "made", "--input", "uint8", look=look)
        assert called.code != 0
        assert "--input uint8 puts the normalisation into the graph, and" in called.err
        for each in words:
            assert each in " ".join(called.err.split())
    with pytest.raises(UsageError, match="only mean is given\nstd is missing: add it"):
        library.export(original, mean=0.5, input="uint8", quiet=True)


def test_files_that_bytes_cannot_be_put_before(original: Path, tmp_path: Path) -> None:
    assert export(original, tmp_path / "first", "--input", "uint8").code == 0
    again = export(tmp_path / "first" / "model.onnx", tmp_path / "second", look=())
    assert "model.onnx takes bytes already: it was exported with --input uint8" in again.err
    # One that keeps its FP32 graph, which has no card.
    assert export(original, tmp_path / "half", "--fp16", "--input", "uint8").code == 0
    again = export(tmp_path / "half" / "reference.onnx", tmp_path / "second", look=())
    assert "reference.onnx takes bytes already: it was exported with --input uint8" in again.err
    assert "let it begin after the division" not in again.err
    table = graph("g (float[N,7] x) => (float[N,4] y) { y = MatMul (x, w) }", {"w": normal(7, 4)})
    save(table, tmp_path / "table.onnx")
    called = export(tmp_path / "table.onnx", tmp_path / "third", "--input", "uint8", look=())
    assert "expected images, float32 (batch, 3, H, W)" in called.err
    other = graph(
        "g (uint8[N,8,8,3] x) => (float[N,4] y) { f = Cast <to = 1> (x)"
        " m = ReduceMean <keepdims = 0> (f, a) y = MatMul (m, w) }",
        {"w": normal(3, 4), "a": np.array([1, 2])},
    )
    save(other, tmp_path / "other.onnx")
    called = export(tmp_path / "other.onnx", tmp_path / "third", "--input", "uint8", look=())
    assert "x uint8 (N, 8, 8, 3)\nexpected images, float32 (batch, 3, H, W)" in called.err
    assert "let it begin after the division by 255" in called.err


CLASS_NUMBERS = [
    ("p = ArgMax <axis = 1, keepdims = 0> (logits)", "int64[N] p", "topk:2", "as classes makes"),
    ("q, p = TopK <axis = 1> (logits, two)", "int64[N,2] p", "classes", "as topk:2 makes them"),
]


@pytest.mark.parametrize(("end", "outputs", "result", "said"), CLASS_NUMBERS)
def test_class_numbers_become_nothing_else(
    tmp_path: Path, end: str, outputs: str, result: str, said: str
) -> None:
    path = own_ended(tmp_path, end, outputs)
    model = onnx.load(path)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2]), "two"))
    save(model, path)
    called = export(path, tmp_path / "made", "--result", result)
    assert "the graph ends in class numbers already" in called.err
    assert said in called.err


def test_an_entry_that_deploykit_did_not_write(original: Path, tmp_path: Path) -> None:
    model = onnx.load(original)
    onnx.helper.set_model_props(model, {"deploykit.preprocessing": "{"})
    save(model, tmp_path / "odd.onnx")
    called = export(tmp_path / "odd.onnx", tmp_path / "made")
    assert "the metadata of odd.onnx: deploykit.preprocessing: it is not JSON" in called.err


def test_an_output_that_the_file_names_and_does_not_have(original: Path, tmp_path: Path) -> None:
    model = onnx.load(original)
    said = {"kind": "multilabel", "output": "scores", "activation": "none"}
    onnx.helper.set_model_props(model, {"deploykit.head": json.dumps(said)})
    save(model, tmp_path / "odd.onnx")
    called = export(tmp_path / "odd.onnx", tmp_path / "made")
    assert called.code == 0, called.err
    assert (
        "odd.onnx says that its head is output 'scores', which it does not have (it has logits): "
        "only the kind, multilabel, is taken from there"
    ) in called.data["notes"]
    head = json.loads((tmp_path / "made" / "manifest.json").read_text())["head"]
    assert (head["kind"], head["output"]) == ("multilabel", "logits")
    own = export(tmp_path / "odd.onnx", tmp_path / "own", "--head", "multiclass")
    assert not any("does not have" in note for note in own.data["notes"])


def test_from_python(original: Path, photos: Array, tmp_path: Path) -> None:
    made = library.export(
        original, mean=MEAN, std=STD, resize=RESIZE, input="uint8", input_order="bgr",
        result="topk:1", backend="none", output=tmp_path / "made", quiet=True,
    )  # fmt: skip
    with library.load(made, device="cpu") as model:
        found = model.run(np.ascontiguousarray(photos[..., ::-1]))
    assert found[:, 0].tolist() == logits_of(original, photos).argmax(axis=1).tolist()
    with pytest.raises(UsageError, match='input_layout="nchw" is for bytes'):
        library.export(original, input_layout="nchw", quiet=True)
    for wrong in ({"input": "int8"}, {"input": "uint8", "input_layout": "hwc"}):
        with pytest.raises(UsageError, match="unknown input"):
            library.export(original, quiet=True, **wrong)  # type: ignore[arg-type]


def test_a_recipe_takes_the_same_keys(original: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'backend = "none"\ninput = "uint8"\ninput-layout = "nchw"\nresult = "topk:2"\n'
        "mean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\nfp16 = true\n\n"
        f'[[export]]\ntarget = "{original}"\n',
        encoding="utf-8",
    )
    shown = deploykit("run", recipe, "--dry-run")
    assert shown.code == 0, shown.err
    assert "--input uint8 --input-layout nchw --result topk:2" in shown.out


@pytest.mark.skipif(not HAS_RTX, reason="needs TensorRT for RTX: tensorrt-rtx-cu13")
@pytest.mark.parametrize("precision", ["--fp16", "--int8"])
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_it_compiles_for_every_gpu_from_ampere_on(
    original: Path, tmp_path: Path, precision: str, layout: str
) -> None:
    given = ("--calib", "random", "--calib-count", 8) if precision == "--int8" else ()
    called = deploykit(
        "export", original, precision, *given, *LOOK, "--backend", "tensorrt-rtx", "--input",
        "uint8", "--input-layout", layout, "--input-order", "bgr", "--result", "topk:3", "-o",
        tmp_path / "made", "--json",
    )  # fmt: skip
    assert called.code == 0, called.err
    (engine,) = called.data["engines"]
    assert engine["compute_capabilities"][0] == "8.0"
    assert engine["compute_capabilities"][-2:] == ["12.0", "12.1"]
    assert engine["precision"] == precision.removeprefix("--")


def classified(client: Any, pixels: Array, output: str, count: int) -> list[list[list[str]]]:
    """``[value, index, label]`` of each image, by Triton's own client."""
    kind = pytest.importorskip("tritonclient.http")
    given = kind.InferInput("input", pixels.shape, "UINT8")
    given.set_data_from_numpy(pixels)
    wanted = kind.InferRequestedOutput(output, class_count=count)
    found = client.infer("net", [given], outputs=[wanted]).as_numpy(output)
    return [[each.decode().split(":") for each in row] for row in found]


def test_a_service_names_the_classes_of_class_numbers(
    original: Path, photos: Array, tmp_path: Path
) -> None:
    kind = pytest.importorskip("tritonclient.http")
    utils = pytest.importorskip("tritonclient.utils")
    names = ("ant", "bee", "cat", "dog")
    (tmp_path / "names.txt").write_text("\n".join(names), encoding="utf-8")
    for version, result in (("1", "classes"), ("2", "topk:3")):
        called = export(
            original, tmp_path / "net" / version, "--input", "uint8", "--result", result,
            "--labels", tmp_path / "names.txt",
        )  # fmt: skip
        assert called.code == 0, called.err
    chances = soft(logits_of(original, photos))
    best = np.argsort(-chances, axis=1)
    with served(tmp_path / "net") as running:
        client = kind.InferenceServerClient(urlsplit(running.http).netloc)
        for output, count in (("classes", 2), ("probabilities", 3)):
            found = classified(client, photos, output, count)
            for row, order, chance in zip(found, best[:, :count], chances, strict=True):
                assert [(index, name) for _, index, name in row] == [
                    (str(at), names[at]) for at in order
                ]
                values = [float(value) for value, _, _ in row]
                assert values == pytest.approx(chance[order].tolist(), abs=1e-5)
        given = kind.InferInput("input", photos.shape, "UINT8")
        given.set_data_from_numpy(photos)
        wanted = [kind.InferRequestedOutput("classes", class_count=1)]
        with pytest.raises(
            utils.InferenceServerException, match="'classes' is class numbers already"
        ) as refused:
            client.infer("net", [given], model_version="1", outputs=wanted)
        assert refused.value.status() == "400"
        client.close()
