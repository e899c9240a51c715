"""`predict` on image files: order, names, and what cannot be read."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

import deploykit as api
from deploykit.bundle.manifest import MANIFEST, Bundle, manifest_text
from deploykit.core.artifacts import sha256_of
from deploykit.core.errors import DataError, UsageError, ValidationError
from deploykit.core.specs import HeadRecord
from deploykit.verbs.predict import predict
from tests.bundles import PLAIN, SIZE, write_bundle
from tests.cli import deploykit
from tests.graphs import graph, save

if TYPE_CHECKING:
    from pathlib import Path

RED, GREEN, BLUE = (200, 20, 10), (20, 200, 10), (10, 20, 200)


def picture(path: Path, colour: tuple[int, int, int]) -> Path:
    path.parent.mkdir(exist_ok=True)
    pixels = np.full((SIZE, SIZE, 3), colour, np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Its logits are the means of red, green and blue."""
    return write_bundle(tmp_path / "colours")


def test_each_image_in_the_order_given(bundle: Path, tmp_path: Path) -> None:
    paths = [
        picture(tmp_path / f"{name}.png", colour)
        for name, colour in (("b", BLUE), ("a", RED), ("c", GREEN))
    ]
    report = predict(bundle, paths, top_k=1, device="cpu")
    found = [(image, [top.label for top in tops]) for image, tops in report.predictions]
    assert found == [
        (str(paths[0]), ["blue"]),
        (str(paths[1]), ["red"]),
        (str(paths[2]), ["green"]),
    ]
    assert report.unreadable == ()
    assert (report.bundle, report.device) == (str(bundle), "cpu")


def test_a_folder_stands_for_its_images(bundle: Path, tmp_path: Path) -> None:
    one, two = (picture(tmp_path / "in" / name, RED) for name in ("1.png", "2.bmp"))
    (tmp_path / "in" / "notes.txt").write_text("no image")
    report = predict(bundle, [tmp_path / "in"], device="cpu")
    assert [image for image, _ in report.predictions] == [str(one), str(two)]


def test_chances_are_the_softmax_of_the_means(bundle: Path, tmp_path: Path) -> None:
    path = picture(tmp_path / "red.png", RED)
    ((_, tops),) = predict(bundle, [path], top_k=3, device="cpu").predictions
    means = np.array(RED) / 255
    chances = np.exp(means) / np.exp(means).sum()
    assert [top.index for top in tops] == [0, 1, 2]
    shown = [value for top in tops for value in vars_of(top) if isinstance(value, float)]
    assert any(abs(value - chances[0]) < 1e-5 for value in shown)


def vars_of(prediction: object) -> list[object]:
    from dataclasses import asdict

    return list(asdict(prediction).values())  # type: ignore[call-overload]  # a dataclass


def test_an_unreadable_image_does_not_stop_the_others(bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    good = picture(tmp_path / "good.png", GREEN)
    report = predict(bundle, [broken, good, tmp_path / "none.png"], device="cpu")
    assert [image for image, _ in report.predictions] == [str(good)]
    assert [image for image, _ in report.unreadable] == [str(broken), str(tmp_path / "none.png")]
    assert all(reason for _, reason in report.unreadable)


def test_plain_data_says_where_the_weights_come_from(tmp_path: Path) -> None:
    weights = {"source": "untrained, seed 0", "sha256": None, "trained": False}
    folder = write_bundle(tmp_path / "untrained", weights=weights)
    data = predict(folder, [picture(tmp_path / "r.png", RED)], top_k=2, device="cpu").to_dict()
    assert data["weights"] == {"source": "untrained, seed 0", "trained": False}
    assert [top["label"] for top in data["predictions"][0]["top"]] == ["red", "green"]
    assert data["unreadable"] == []


def test_a_folder_without_images(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no images in .*empty"):
        predict(bundle, [tmp_path / "empty"], device="cpu")


def test_an_unknown_device(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^unknown device 'tpu'"):
        predict(bundle, [picture(tmp_path / "r.png", RED)], device="tpu")


NAN_FOR_BLUE = """net (float[N, 3, {size}, {size}] input) => ({outputs}) {{
    mean = GlobalAveragePool (input)  means = Flatten (mean)
    half = Constant <value_float = 0.5> ()  axis = Constant <value_ints = [1]> ()
    two = Constant <value_ints = [2]> ()  three = Constant <value_ints = [3]> ()
    blue = Slice (means, two, three, axis)
    left = Sub (half, blue)  root = Sqrt (left)
    logits = Add (means, root)  top = ReduceMax <keepdims = 0> (means)
}}"""


@pytest.mark.parametrize("kind", ["multiclass", "raw"])
def test_an_image_that_gives_nan_does_not_stop_the_others(tmp_path: Path, kind: str) -> None:
    """The root of 0.5 - blue is NaN for blue images alone."""
    more = ", float top" if kind == "raw" else ""
    folder = write_bundle(tmp_path / "colours", head=HeadRecord(kind))
    text = NAN_FOR_BLUE.format(size=SIZE, outputs=f"float[N, 3] logits{more}")
    save(graph(text), folder / "model.onnx")
    sign(folder)
    colours = [RED, BLUE, GREEN, BLUE, *[RED] * 9, BLUE]
    given = [picture(tmp_path / f"{at}.png", colour) for at, colour in enumerate(colours)]
    (tmp_path / "broken.png").write_bytes(b"no image")
    called = deploykit(
        "predict", folder, *given, tmp_path / "broken.png", "--device", "cpu", "--json"
    )
    assert called.code == 1
    blue = [str(path) for path, colour in zip(given, colours, strict=True) if colour == BLUE]
    answered = [each["image"] for each in called.data["predictions"]]
    assert answered == [str(path) for path in given if str(path) not in blue]
    failed = {each["image"]: each["reason"] for each in called.data["failed"]}
    assert list(failed) == [*blue, str(tmp_path / "broken.png")]
    assert "NaN or infinite" in failed[blue[0]]
    assert failed[blue[1]].startswith("image 3: the model gave ")
    unreadable = [each["image"] for each in called.data["unreadable"]]
    assert unreadable == [str(tmp_path / "broken.png")]
    shown = deploykit("predict", folder, *given, "--device", "cpu")
    assert shown.code == 1
    assert all(f"problem: {path}, image" in " ".join(shown.out.split()) for path in blue)
    with api.load(folder, device="cpu") as model:
        with pytest.raises(ValidationError, match=r"^image 1: the model gave .* NaN"):
            model.predict(given)
        assert all(isinstance(one, DataError) for one in model.predict_each([given[1]] * 3))


def sign(folder: Path) -> None:
    """Make the manifest fit the graph that lies there."""
    manifest = Bundle.open(folder).manifest
    digest = sha256_of(folder / "model.onnx")
    changed = replace(
        manifest,
        files={**manifest.files, "model.onnx": digest},
        onnx=replace(manifest.onnx, sha256=digest),
    )
    (folder / MANIFEST).write_text(manifest_text(changed), encoding="utf-8")


REDUCED = (
    "2 of 3 images were decoded at a half or a quarter of their width and height: a JPEG above "
    "the limit of 119,999 pixels; --max-pixels raises it"
)


@pytest.mark.parametrize(("limit", "note"), [(None, []), (119_999, [REDUCED])])
def test_a_note_says_what_was_decoded_at_a_part_of_its_size(
    tmp_path: Path, limit: int | None, note: list[str]
) -> None:
    bundle = write_bundle(tmp_path / "resizing", preprocessing=replace(PLAIN, resize=SIZE))
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name, size in (("a", (400, 300)), ("b", (40, 30)), ("c", (300, 400))):
        Image.new("RGB", size, RED).save(folder / f"{name}.jpg")
    report = predict(bundle, [folder], device="cpu", max_pixels=limit)
    assert list(report.notes) == note
    assert len(report.predictions) == 3
    assert report.to_dict()["notes"] == note
