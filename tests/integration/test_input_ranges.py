"""Pixels as a network was trained on them: the scale of mean and deviation, the channels' order.

The networks answer the channel whose mean is the largest. What they should see is computed by numpy
from the pixels of the files.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from deploykit import load
from tests.cli import deploykit
from tests.graphs import graph, run_ort, save

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
SIDE = 16


def write_network(path: Path) -> Path:
    """Twice the mean of each channel, three classes."""
    model = graph(
        f"""colours (float[N, 3, {SIDE}, {SIDE}] x) => (float[N, 3] y) {{
            c = Conv (x, w)  m = GlobalAveragePool (c)  y = Flatten (m)
        }}""",
        {"w": (2 * np.eye(3, dtype=np.float32)).reshape(3, 3, 1, 1)},
    )
    return save(model, path)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    for name, colour in COLOURS.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (SIDE, SIDE), colour).save(tmp_path / "data" / name / "1.png")
    return [tmp_path / "data" / name / "1.png" for name in COLOURS]


def expected(pictures: list[Path], mean: str, std: str, order: str, unit: float) -> NDArray[Any]:
    """Inputs (N, 3, H, W): what the training did to pixels that end at ``unit``."""
    pixels = np.stack([np.asarray(Image.open(path)) for path in pictures]) * (unit / 255)
    channels = pixels[..., ::-1] if order == "bgr" else pixels
    numbers = [np.array(text.split(","), np.float64) for text in (mean, std)]
    inputs = (channels - numbers[0]) / numbers[1]
    return np.ascontiguousarray(inputs.transpose(0, 3, 1, 2)).astype(np.float32)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize(
    ("mean", "std", "unit"),
    [
        ("123.675,116.28,103.53", "58.395,57.12,57.375", 255),
        ("127.5,127.5,127.5", "127.5,127.5,127.5", 255),
        ("103.939,116.779,123.68", "1,1,1", 255),
        ("0,0,0", "255,255,255", 255),
        ("0.5,0.5,0.5", "0.25,0.25,0.25", 1),
    ],
)
def test_pictures_are_seen_as_in_training(
    tmp_path: Path, pictures: list[Path], mean: str, std: str, unit: float, order: str
) -> None:
    network = write_network(tmp_path / "net.onnx")
    names = tmp_path / "names.txt"
    listed = list(COLOURS) if order == "rgb" else list(COLOURS)[::-1]
    names.write_text("\n".join(listed), encoding="utf-8")
    bundle = tmp_path / "bundle"
    called = deploykit(
        "export", network, "--mean", mean, "--std", std, "--channel-order", order,
        "--labels", names, "--resize", SIDE, "--data", tmp_path / "data",
        "--backend", "none", "-o", bundle, "--json",
    )  # fmt: skip
    assert called.code == 0, called.err
    inputs = expected(pictures, mean, std, order, unit)
    found = called.data["input_range"]
    assert found["images"] == 8
    assert (found["min"], found["max"]) == pytest.approx((inputs.min(), inputs.max()), rel=1e-5)
    assert any("are of pixels of 0 to 255" in note for note in called.data["notes"]) == (unit > 1)

    answers = deploykit("predict", bundle, *pictures, "--json").data["predictions"]
    assert [each["top"][0]["label"] for each in answers] == list(COLOURS)
    with load(bundle, device="cpu") as model:
        logits = model.run(inputs)
        top = model.predict(pictures, top_k=1)
    np.testing.assert_allclose(
        logits, run_ort(network.read_bytes(), {"x": inputs})["y"], rtol=1e-4, atol=1e-5
    )
    assert [each[0].label for each in top] == list(COLOURS)
    accuracy = deploykit("eval", bundle, "--data", tmp_path / "data", "--json").data
    assert accuracy["top1"] == 1
    assert deploykit("validate", bundle, network, "--data", tmp_path / "data").code == 0


def test_the_range_is_shown_and_an_unusual_one_is_a_note(tmp_path: Path) -> None:
    network = write_network(tmp_path / "net.onnx")
    plain = deploykit("inspect", network, "--mean", "0,0,0", "--std", "1,1,1")
    assert plain.code == 0, plain.err
    assert re.search(r"input: 0 to (1|0\.9\d+) on 8 images, RGB", plain.out)
    assert "a range that no training" not in plain.out
    odd = deploykit("inspect", network, "--mean", "0,0,0", "--std", ".017,.017,.017", "--json")
    assert odd.data["input_range"]["max"] == pytest.approx(1 / 0.017, rel=0.02)
    assert any("a range that no training is known to use" in note for note in odd.data["notes"])
    planned = deploykit("inspect", network, "--fp16", "--mean", "0,0,0", "--std", ".017,.017,.017")
    assert re.search(r"input: 0 to 5[78]\.\d+ on 8 images", planned.out)
    assert "a range that no training is known to use" in planned.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--mean", "123,117,104"), "of pixels of 0 to 1 it is --mean 0.482353,0.458824,0.407843"),
        (("--mean", "123,117,104", "--std", ".2,.2,.2"), "one is of pixels of 0 to 255, the other"),
        (("--std", "58,57,57"), "give --mean too, of the same pixels"),
        (("--channel-order", "bgrr"), "unknown channel order 'bgrr'"),
    ],
)
@pytest.mark.parametrize("command", ["export", "inspect", "calibrate"])
def test_what_cannot_be_meant_is_refused(
    tmp_path: Path, command: str, options: tuple[str, ...], said: str
) -> None:
    data = ("--data", "random") if command == "calibrate" else ()
    called = deploykit(command, write_network(tmp_path / "net.onnx"), *options, *data)
    assert called.code == 2
    assert said in called.err


def test_calibration_sees_the_order_of_the_network(tmp_path: Path) -> None:
    """Red is the third channel: 255 divided by a quarter."""
    network = write_network(tmp_path / "net.onnx")
    tables: dict[str, dict[str, object]] = {}
    for index in range(8):
        (tmp_path / "red").mkdir(exist_ok=True)
        Image.new("RGB", (SIDE, SIDE), (255, index, 0)).save(tmp_path / f"red/{index}.png")
    for order in ("bgr", "rgb", "bgr"):
        called = deploykit(
            "calibrate", network, "--data", tmp_path / "red", "--mean", "0,0,0", "--std", "1,1,.25",
            "--channel-order", order, "-o", tmp_path / "table.json", "--json",
        )  # fmt: skip
        assert called.code == 0, called.err
        tables.setdefault(order, called.data)
        text = (tmp_path / "table.json").read_text(encoding="utf-8")
        assert ("4.0" in text) == (order == "bgr")
        # Each order makes the table anew: the one of before is of other numbers.
        assert "used again" not in called.data["story"]
    assert tables["bgr"]["digest"] != tables["rgb"]["digest"]


@pytest.mark.parametrize(
    ("scaling", "std"),
    [
        ("a = Div (x, half) p = Sub (a, one)", "0.00392157"),
        ("a = Sub (x, middle) p = Div (a, middle)", "1"),
    ],
)
def test_a_graph_that_scales_pixels_itself_is_noted(
    scaling: str, std: str, pictures: list[Path], tmp_path: Path
) -> None:
    """With what the note says, the bundle answers what numpy's pixels give."""
    text = f"""g (float[N, 3, {SIDE}, {SIDE}] x) => (float[N, 3] y) {{
        {scaling} c = Conv (p, w) m = GlobalAveragePool (c) y = Flatten (m)
    }}"""
    numbers = {"half": 127.5, "one": 1, "middle": 0.5}
    constants = {
        name: np.array(value, np.float32) for name, value in numbers.items() if f"{name})" in text
    }
    constants["w"] = (2 * np.eye(3, dtype=np.float32)).reshape(3, 3, 1, 1)
    path = save(graph(text, constants), tmp_path / "own.onnx")
    given = ["--backend", "none", "--data", tmp_path / "data", "-o"]
    unsaid = deploykit("export", path, *given, tmp_path / "unsaid")
    words = " ".join((unsaid.out + unsaid.err).split())
    options = re.search(r"then give (--mean 0 --std \S+)", words)
    assert options is not None, words
    assert options[1].split()[-1] == std
    said = deploykit("export", path, *given, tmp_path / "said", *options[1].split())
    assert said.code == 0, said.err
    assert "the graph itself" not in said.out + said.err
    pixels = np.stack([np.asarray(Image.open(each), np.float32) for each in pictures])
    inputs = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)) / (1 if std != "1" else 255)
    wanted = run_ort(graph(text, constants), {"x": inputs.astype(np.float32)})["y"]
    with load(tmp_path / "said", device="cpu") as model:
        found = [model.predict(each, top_k=1)[0] for each in pictures]
    assert [each.index for each in found] == wanted.argmax(axis=1).tolist() == [0, 1, 2]
    logits = np.array([each.logit for each in found], np.float64)
    np.testing.assert_allclose(logits, wanted.max(axis=1), rtol=1e-4)
