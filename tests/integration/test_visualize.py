"""`deploykit visualize` from the call to the folder: a trained network, bundles, refusals."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import deploykit as package
from deploykit.core.errors import UnknownNameError, UsageError
from deploykit.models import get
from deploykit.visualization import page
from tests.bundles import write_bundle, write_classifier
from tests.cli import deploykit
from tests.graphs import graph, normal, save
from tests.reported_bundles import IMAGES, make_reported

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.digits import Digits

Made = dict[str, Any]


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def prepared(pixels: np.ndarray) -> np.ndarray:
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)
    batch: np.ndarray = ((pixels.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
    return batch


# --- a trained network


@pytest.fixture(scope="module")
def looked_into(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Made]:
    folder = tmp_path_factory.mktemp("digits") / "out"
    methods = ["filters", "top", "deconvnet", "guided", "maximise", "gradcam", "occlusion"]
    called = deploykit(
        *("visualize", "resnet20", "--weights", digits.weights, "--input-size", 8),
        *("--images", digits.test, "--filters", 2, "--layer", "layer1"),
        *(part for method in methods for part in ("--method", method)),
        *("-o", folder, "--json"),
    )
    assert called.code == 0, called.err
    return folder, called.data


def test_the_folder_has_the_page_and_every_picture(looked_into: tuple[Path, Made]) -> None:
    folder, told = looked_into
    assert files_of(folder) == {*told["files"], "visualization.json"}
    assert json.loads((folder / "visualization.json").read_text("utf-8")) == told
    for name in told["files"]:
        if name.endswith(".png"):
            with Image.open(folder / name) as picture:
                picture.verify()
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == len(told["files"]) - 1
    assert 'http-equiv="Content-Security-Policy" content="default-src \'none\'' in text
    assert told["methods"] == [
        *("filters", "top", "deconvnet", "guided", "maximise", "gradcam", "occlusion")
    ]


def test_the_numbers_are_those_of_torch(looked_into: tuple[Path, Made], digits: Digits) -> None:
    _, told = looked_into
    module = get("resnet20", image_size=8).build()
    with np.load(digits.weights) as weights:
        module.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights})
    with np.load(digits.test) as test, torch.no_grad():
        images = torch.from_numpy(prepared(test["images"]))
        maps = module.layer1(module.relu(module.bn1(module.conv1(images))))  # type: ignore[operator]
        answers = module(images).argmax(1).tolist()
    first = told["layers"][0]
    assert (first["name"], first["shape"], first["whole_image"]) == ("layer1", [16, 8, 8], True)
    assert first["receptive_field"] == [8, 8]
    for shown in first["filters"]:
        strongest = maps[:, shown["filter"]].amax((1, 2))
        wanted = strongest.sort(descending=True).values[:9].tolist()
        found = [each["activation"] for each in shown["images"]]
        assert found == pytest.approx(wanted, abs=1e-4)
        for each in shown["images"]:
            value = maps[each["index"], shown["filter"], each["row"], each["column"]]
            assert float(value) == pytest.approx(each["activation"], abs=1e-4)
        assert shown["maximised"]["after"] > shown["maximised"]["before"]
    assert told["images"] == {"seen": len(answers), "unreadable": 0}
    assert {cam["layer"] for cam in told["gradcam"]} == {"layer1"}
    assert all(cam["answer"] == answers[cam["index"]] for cam in told["gradcam"])
    assert all(each["answer"] == answers[each["index"]] for each in told["occlusion"]["maps"])
    assert told["first_layer"]["largest_weight"] == pytest.approx(
        float(module.conv1.weight.detach().abs().max())  # type: ignore[operator, union-attr]
    )


# --- modules of a program


class Gated(nn.Module):
    """SiLU, for which DeconvNet has no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.act = nn.SiLU()
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.act(self.conv(x)).mean((2, 3)))
        return found


@pytest.fixture
def pixels(tmp_path: Path) -> Path:
    drawn = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "pixels.npz", images=drawn)
    return tmp_path / "pixels.npz"


def test_a_module_without_rules_gets_guided_backpropagation(
    tmp_path: Path, pixels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = Gated().train()
    found = package.visualize(module, pixels, input_size=16, output=tmp_path / "out", filters=2)
    assert found.numbers["methods"] == ["filters", "top", "guided", "gradcam"]
    assert any(
        note == "DeconvNet has no rule for SiLU: guided backpropagation instead"
        for note in found.notes
    )
    assert any(note.startswith("guided backpropagation: there is no ReLU") for note in found.notes)
    assert found.page.is_file()
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert "note: DeconvNet has no rule" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"DeconvNet has no rule for SiLU, which is before 'act'"):
        package.visualize(
            module, pixels, input_size=16, method="deconvnet", output=tmp_path / "x", quiet=True
        )
    assert not (tmp_path / "x").exists()


def test_without_images_the_filters_and_what_else_there_is(tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = package.visualize(Gated(), input_size=16, output=out, quiet=True)
    assert found.numbers["methods"] == ["filters"]
    assert files_of(out) == {"index.html", "filters.png", "visualization.json"}
    assert any("with --images PATH also: top, deconvnet, gradcam" in note for note in found.notes)


def test_the_same_seed_makes_the_same_picture(tmp_path: Path) -> None:
    module = Gated()

    def made(name: str, seed: int) -> bytes:
        found = package.visualize(
            module, method="maximise", layer="last", filters=1, seed=seed,
            input_size=16, output=tmp_path / name, quiet=True,
        )  # fmt: skip
        return (found.folder / "last" / "0-maximise.png").read_bytes()

    assert made("a", 1) == made("b", 1) != made("c", 2)


def test_an_output_that_is_there_is_not_replaced_by_itself(tmp_path: Path) -> None:
    module, out = Gated(), tmp_path / "out"
    package.visualize(module, input_size=16, output=out, quiet=True)
    before = {name: (out / name).read_bytes() for name in files_of(out)}
    with pytest.raises(UsageError, match=r"holds pictures of before\nreplace them with replace"):
        package.visualize(module, input_size=16, output=out, quiet=True)
    assert {name: (out / name).read_bytes() for name in files_of(out)} == before
    found = package.visualize(
        module, input_size=16, method="maximise", layer="last", output=out, replace=True, quiet=True
    )
    assert files_of(out) == {"visualization.json", *found.numbers["files"]}
    assert "filters.png" not in files_of(out)


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="is no output of deploykit visualize"):
        page.require_free(tmp_path, replace=True)
    page.require_free(tmp_path / "new", replace=False)


def test_a_network_without_a_convolution(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    with pytest.raises(UsageError, match=r"nothing to show of sequential\nfilters: the network"):
        package.visualize(module, input_size=16, output=tmp_path / "out", quiet=True)
    with pytest.raises(UsageError, match="no layer that returns a map"):
        package.visualize(
            module, input_size=16, method="maximise", output=tmp_path / "out", quiet=True
        )


def test_grad_cam_without_a_map(tmp_path: Path, pixels: Path) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    with pytest.raises(UsageError, match="Grad-CAM needs a layer that returns a map"):
        package.visualize(
            module, pixels, input_size=16, method="gradcam", output=tmp_path / "out", quiet=True
        )


# --- bundles and graphs


@pytest.fixture(scope="module")
def bundles(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    return made_once("reported_bundles", make_reported)


def answers_of(bundles: Path, file: str) -> np.ndarray:
    """By onnxruntime and numpy alone: logits of all images."""
    with np.load(bundles / IMAGES) as kept:
        resized = [
            np.asarray(Image.fromarray(p).resize((9, 9), Image.Resampling.BILINEAR))[:8, :8]
            for p in kept["images"]
        ]
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(bundles / "int8" / file, options)
    (logits,) = session.run(None, {session.get_inputs()[0].name: prepared(np.stack(resized))})
    found: np.ndarray = logits
    return found


def test_a_bundle_beside_its_fp32_graph(bundles: Path, tmp_path: Path) -> None:
    called = deploykit(
        *("visualize", bundles / "int8", "--images", bundles / IMAGES),
        *("-o", tmp_path / "out", "--json"),
    )
    assert called.code == 0, called.err
    told = called.data
    wanted, got = (answers_of(bundles, name) for name in ("reference.onnx", "model.cpu.onnx"))
    changed = np.flatnonzero(wanted.argmax(1) != got.argmax(1)).tolist()
    assert told["methods"] == ["filters", "occlusion"]
    assert told["occlusion"]["images"] == 96
    assert told["occlusion"]["changed"] == len(changed) >= 1
    maps = told["occlusion"]["maps"]
    assert [each["index"] for each in maps] == changed[:8]
    for each in maps:
        assert each["answers"] == {
            "FP32": wanted[each["index"]].argmax(),
            "INT8": got[each["index"]].argmax(),
        }
        assert -1 <= each["map_cosine"] <= 1
    first = told["first_layer"]
    assert first["FP32"]["filters"] == first["INT8"]["filters"] == 64
    assert 0 < first["relative_difference"] < 0.02
    assert {"filters.png", "filters-1.png"} <= files_of(tmp_path / "out")


def test_without_a_changed_answer_those_that_differ_most(bundles: Path, tmp_path: Path) -> None:
    called = deploykit(
        *("visualize", bundles / "fp16", "--images", bundles / IMAGES, "-o", tmp_path / "out"),
        *("--method", "occlusion"),
    )
    assert called.code == 0, called.err
    assert "answers other than FP32's: 0 of 96 images" in called.out
    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "none of 96 answers changed; shown are those whose scores differ most" in text


def test_a_file_by_brute_force(tmp_path: Path, pixels: Path) -> None:
    body = """net (float[N, 3, 16, 16] x) => (float[N, 4] y) {
        [a] b = Conv <pads = [1,1,1,1]> (x, w) c = Relu (b) d = GlobalAveragePool (c)
        y = Flatten (d) }"""
    proto = graph(body, {"w": normal(4, 3, 3, 3)})
    save(proto, tmp_path / "net.onnx")
    found = package.visualize(tmp_path / "net.onnx", pixels, output=tmp_path / "out", quiet=True)
    told = found.numbers["occlusion"]
    assert told["square"] == [2, 1]
    assert [each["index"] for each in told["maps"]] == [0, 2, 3, 5, 6, 8, 9, 11]
    assert found.numbers["first_layer"]["net"]["filters"] == 4
    assert any(note.startswith("preprocessing is assumed") for note in found.notes)


DETECTOR = """net (float[N, 3, 16, 16] x, float[N, 2] z) => (float[N, 4, 16, 16] y, float[N, 2] v) {
    [a] y = Conv <pads = [1,1,1,1]> (x, w)
    v = Relu (z) }"""


def test_a_file_without_scores_has_its_filters(tmp_path: Path, pixels: Path) -> None:
    save(graph(DETECTOR, {"w": normal(4, 3, 3, 3)}), tmp_path / "net.onnx")
    found = package.visualize(tmp_path / "net.onnx", pixels, output=tmp_path / "out", quiet=True)
    assert found.numbers["methods"] == ["filters"]
    assert "occlusion" not in found.numbers
    noise, no_occlusion = found.notes[1:]
    assert noise == "z: noise; values of yours: --side-inputs FILE"
    assert no_occlusion.startswith("no occlusion: net gives float32 (1, 4, 16, 16): occlusion")
    with pytest.raises(UsageError, match=r"net gives float32 \(1, 4, 16, 16\)"):
        package.visualize(tmp_path / "net.onnx", pixels, method="occlusion", output=tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_images_that_cannot_be_read_are_noted(tmp_path: Path) -> None:
    write_bundle(tmp_path / "colours")
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "b.png").write_bytes(b"no image")
    found = package.visualize(
        tmp_path / "colours", tmp_path / "images", output=tmp_path / "out", quiet=True
    )
    assert found.numbers["methods"] == ["occlusion"]
    assert "1 of 2 images cannot be read" in found.notes


def test_a_bundle_that_is_fp32_has_nothing_beside_it(tmp_path: Path, pixels: Path) -> None:
    write_bundle(tmp_path / "colours")
    found = package.visualize(
        tmp_path / "colours", pixels, method="occlusion", output=tmp_path / "out", quiet=True
    )
    assert "keeps no reference.onnx to compare with: it is FP32 itself" in found.notes[0]
    assert list(found.numbers["occlusion"]["maps"][0]["answers"]) == ["FP32"]
    with pytest.raises(UsageError, match="there is no convolution of constant filters"):
        package.visualize(
            tmp_path / "colours", method="filters", output=tmp_path / "none", quiet=True
        )


BYTES: dict[str, tuple[str, Made]] = {
    "nchw, rgb": ("fp32", {"input_layout": "nchw"}),
    "nhwc, bgr": ("fp16", {"input_order": "bgr"}),
}


@pytest.mark.parametrize("form", BYTES)
def test_bytes_show_what_floats_show(tmp_path: Path, pixels: Path, form: str) -> None:
    """A bundle of the same network that takes prepared images is the right value."""
    network = write_classifier(tmp_path / "net.onnx")
    precision, how = BYTES[form]
    # Means and deviations of whole pixels: the square is the very colour in bytes too.
    look: Made = {"mean": (0.4, 0.6, 0.2), "std": (0.2, 0.3, 0.25)}

    def shown(name: str, more: Made) -> tuple[Path, Made]:
        made = package.export(
            network, precision=precision, backend="none", quiet=True,
            output=tmp_path / name, **look, **more,
        )  # fmt: skip
        found = package.visualize(made, pixels, output=tmp_path / f"{name}-shown", quiet=True)
        return found.folder, found.numbers

    floats, wanted = shown("floats", {})
    folder, got = shown("bytes", {"input": "uint8", **how})
    assert files_of(folder) == files_of(floats)
    for name in files_of(folder):
        if name.endswith("-image.png") or name.startswith("filters"):
            assert (folder / name).read_bytes() == (floats / name).read_bytes()
    maps, expected = got["occlusion"]["maps"], wanted["occlusion"]["maps"]
    assert [each["index"] for each in maps] == [each["index"] for each in expected]
    limit = 1e-4 if precision == "fp32" else 5e-3
    for one, other in zip(maps, expected, strict=True):
        assert one["answers"] == other["answers"]
        assert one["largest"] == pytest.approx(other["largest"], rel=limit, abs=limit)
        for file in sorted(files_of(folder)):
            if file.startswith(f"occlusion/{one['index']}-"):
                pictures = [np.asarray(Image.open(at / file), np.int16) for at in (folder, floats)]
                assert np.abs(pictures[0] - pictures[1]).max() <= 4


@pytest.mark.parametrize("form", ["float32", "uint8"])
def test_a_file_is_taken_at_its_word(tmp_path: Path, pixels: Path, form: str) -> None:
    """What it says of itself: numbers of its bundle, answers of the original by onnxruntime."""
    mean, std = np.array([[0.4, 0.6, 0.2], [0.2, 0.3, 0.25]])
    network = write_classifier(tmp_path / "net.onnx", image="16, 16")
    made = package.export(
        network, backend="none", quiet=True, output=tmp_path / "made", mean=(0.4, 0.6, 0.2),
        std=(0.2, 0.3, 0.25), resize=16, channel_order="bgr", labels=["ant", "bee", "cat", "dog"],
        input=form,
    )  # fmt: skip
    shown = [
        package.visualize(target, pixels, output=tmp_path / name, quiet=True)
        for name, target in (("bundle", made), ("file", tmp_path / "made" / "model.onnx"))
    ]
    told = [each.numbers["occlusion"]["maps"] for each in shown]
    assert [each["largest"]["FP32"] for each in told[0]] == pytest.approx(
        [each["largest"]["model"] for each in told[1]], rel=1e-4
    )
    with np.load(pixels) as kept:
        given = ((kept["images"][..., ::-1] / 255 - mean) / std).transpose(0, 3, 1, 2)
    (logits,) = ort.InferenceSession(network).run(None, {"input": given.astype(np.float32)})
    assert [each["answer"] for each in told[1]] == [
        logits[each["index"]].argmax() for each in told[1]
    ]
    for name in ("filters.png", "occlusion/0-image.png"):
        pictures = [(each.folder / name).read_bytes() for each in shown]
        assert pictures[0] == pictures[1]
    assert shown[1].notes[0].startswith("model.onnx says its preprocessing, class names")
    page_text = (tmp_path / "file" / "index.html").read_text(encoding="utf-8")
    assert f"covered up for {('ant', 'bee', 'cat', 'dog')[told[1][0]['answer']]}" in page_text


# --- what the call alone shows to be wrong

REFUSED: dict[str, tuple[list[str], str]] = {
    "no images": (["resnet20", "--method", "top"], "top: which images?\ngive them with --images"),
    "no such images": (["resnet20", "--images", "nowhere"], "no images at nowhere"),
    "an empty folder": (["resnet20", "--images", "empty"], "no images in empty\nexpected files"),
    "no such network": (["resnet21"], "unknown architecture 'resnet21'"),
    "no such weights": (["resnet20", "--weights", "none.npz"], "none.npz"),
    "no such file": (["none.onnx"], "none.onnx"),
    "gradients of a file": (
        ["net.onnx", "--method", "gradcam", "--method", "occlusion"],
        "gradcam: net is an .onnx file, a graph without gradients or modules",
    ),
    "a layer of a file": (["net.onnx", "--layer", "a"], "--layer a: net is an .onnx file, which"),
    "gradients of a bundle": (
        ["colours", "--method", "deconvnet"],
        (
            "deconvnet: colours is a bundle, a graph without gradients or modules\n"
            "possible for it: --method filters and --method occlusion"
        ),
    ),
    "weights of a bundle": (["colours", "--weights", "imagenet"], "brings its own weights"),
    "output": (["resnet20", "-o", "full"], "exists and is no output of deploykit visualize"),
}


RELU = "n (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) { y = Relu (x) }"


@pytest.mark.parametrize("case", REFUSED)
def test_a_call_that_cannot_be(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, message = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    write_bundle(tmp_path / "colours")
    save(graph(RELU), tmp_path / "net.onnx")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine", encoding="utf-8")
    before = files_of(tmp_path)
    # Nothing that takes seconds is imported for it.
    monkeypatch.setattr("deploykit.verbs.visualize._of_definition", _never)
    called = deploykit("visualize", *arguments)
    assert called.code != 0
    assert message in called.err
    assert files_of(tmp_path) == before


def _never(*_: object) -> None:
    raise AssertionError("the call should have been refused before")


def test_an_unknown_method_from_python(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown method 'gradcan'\ndid you mean: gradcam"):
        package.visualize("resnet20", method="gradcan", output=tmp_path / "out", quiet=True)


def test_refusing_imports_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys, deploykit\n"
        "try:\n    deploykit.visualize('resnet20', method='top', quiet=True)\n"
        "except ValueError as error:\n    print(error)\n"
        "print(sorted({'torch', 'onnx'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.startswith("top: which images?\ngive them with images")
    assert "torch" not in done.stdout.splitlines()[-1]
