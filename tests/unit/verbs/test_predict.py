"""`predict` on image files: order, names, and what cannot be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from deploykit.core.errors import DataError, UsageError
from deploykit.verbs.predict import predict
from tests.bundles import SIZE, write_bundle

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
