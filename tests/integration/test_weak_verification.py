"""A verification that could not have failed, and an evaluation that cannot: every command says so.

The bundle's logits are the mean of each colour. What is expected is written down by hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

import deploykit
from tests import cli
from tests.bundles import SIZE, write_bundle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

REASON = "all 8 images are of class 2"
SAID = f"WEAK VERIFICATION: {REASON}"
COLOURS = {"red": (230, 20, 10), "green": (10, 220, 30), "blue": (15, 25, 240)}


@pytest.fixture
def weak(tmp_path: Path) -> Path:
    recorded = {"batches": [], "blind_spots": [REASON]}
    return write_bundle(tmp_path / "weak", validation=(recorded, recorded))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.new("RGB", (SIZE, SIZE), COLOURS["red"]).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def labelled(folder: Path, *shown: tuple[str, int]) -> Path:
    """An .npz of images of one colour each, with their labels."""
    pixels = [np.full((SIZE, SIZE, 3), COLOURS[colour], np.uint8) for colour, _ in shown]
    labels = np.array([label for _, label in shown])
    np.savez(folder / "labelled.npz", images=np.stack(pixels), labels=labels)
    return folder / "labelled.npz"


def test_every_command_on_a_bundle_repeats_it(weak: Path, image: Path) -> None:
    data = labelled(image.parent, ("red", 0), ("blue", 2))
    calls: tuple[tuple[object, ...], ...] = (
        ("check", weak),
        ("inspect", weak),
        ("inspect", weak, "--precision"),
        ("predict", weak, image),
        ("eval", weak, "--data", data),
    )
    for call in calls:
        called = cli.deploykit(*call)
        assert called.code == 0, called.err
        assert called.out.count(SAID) == 1, call
        assert cli.deploykit(*call, "--json").data["doubts"] == [REASON]
    with deploykit.load(weak, device="cpu") as model:
        assert model.doubts == (REASON,)


def test_a_quiet_check_says_it_too(weak: Path) -> None:
    called = cli.deploykit("check", weak, "--quiet")
    assert called.out.rstrip().endswith("the golden sample agrees; its verification was weak")


def test_a_sound_bundle_says_nothing(tmp_path: Path, image: Path) -> None:
    sound = write_bundle(tmp_path / "sound")
    data = labelled(tmp_path, ("red", 0), ("blue", 2))
    for call in (("check", sound), ("predict", sound, image), ("eval", sound, "--data", data)):
        called = cli.deploykit(*call)
        assert "WEAK" not in called.out + called.err
        assert cli.deploykit(*call, "--json").data["doubts"] == []
    assert "doubts" in cli.deploykit("inspect", sound, "--json").data
    assert "doubts" not in cli.deploykit("inspect", sound / "model.onnx", "--json").data


RIGHT = [("red", 0), ("green", 1), ("blue", 2)]
ONE_LABEL = "all 2 images are labelled class 0: a model that gives no other answer is always right"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (RIGHT, []),
        ([("red", 0), ("blue", 0)], [ONE_LABEL]),
        ([("red", 0)], ["one image alone was judged"]),
        ([("red", 0), ("red", 0)], ["all 2 images are the same one", ONE_LABEL]),
        (
            [("red", 0), ("red", 1)],
            ["all 2 images are the same one", "all 2 images get the answer class 0"],
        ),
    ],
)
def test_what_the_images_of_an_evaluation_cannot_tell(
    tmp_path: Path, shown: list[tuple[str, int]], expected: list[str]
) -> None:
    sound, data = write_bundle(tmp_path / "sound"), labelled(tmp_path, *shown)
    called = cli.deploykit("eval", sound, "--data", data)
    said = [line for line in called.out.splitlines() if line.startswith("WEAK")]
    assert said == [f"WEAK EVALUATION: {reason}" for reason in expected]
    assert cli.deploykit("eval", sound, "--data", data, "--json").data["blind_spots"] == expected


def constant(batch: np.ndarray) -> np.ndarray:
    return np.tile(np.array([[0.0, 3.0, 1.0]], np.float32), (len(batch), 1))


def test_one_answer_for_different_images(tmp_path: Path) -> None:
    source = """constant (float[{batch}, 3, {image}] input) => (float[{batch}, 3] logits)
    <float[3] bias = {{0, 3, 1}}> {{
    mean = GlobalAveragePool(input)  flat = Flatten(mean)  none = Sub(flat, flat)
    logits = Add(none, bias) }}"""
    answers: Callable[[np.ndarray], np.ndarray] = constant
    bundle = write_bundle(tmp_path / "constant", source=source, answers=answers)
    data = labelled(tmp_path, *RIGHT)
    found = cli.deploykit("eval", bundle, "--data", data, "--json").data
    assert found["blind_spots"] == ["all 3 images get the answer class 1"]
    html = deploykit.evaluate(bundle, data, quiet=True)._repr_html_()
    assert "WEAK EVALUATION: all 3 images get the answer class 1" in html
