"""Labels and class folders of many hands: encodings of lists, and numbers in names of folders."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tests.cli import deploykit
from tests.graphs import graph, save

if TYPE_CHECKING:
    from pathlib import Path

CLASSES = 12


@pytest.fixture
def reds(tmp_path: Path) -> Path:
    """Class k is the red of 20 k; the network finds the nearest: the least square difference."""
    levels = np.arange(CLASSES, dtype=np.float32) * 20 / 255
    weights = np.stack([2 * levels, 0 * levels, 0 * levels], 1) * 100
    model = graph(
        """reds (float[N, 3, 8, 8] x) => (float[N, 12] y) {
            m = GlobalAveragePool (x)  f = Flatten (m)  y = Gemm <transB = 1> (f, k, b)
        }""",
        {"k": weights.astype(np.float32), "b": -levels * levels * 100},
    )
    for number in range(CLASSES):
        (tmp_path / f"data/{number}").mkdir(parents=True)
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(tmp_path / f"data/{number}/a.png")
    return save(model, tmp_path / "reds.onnx")


def exported(network: Path, *more: object) -> Path:
    folder = network.parent / "bundle"
    called = deploykit(
        "export", network, "--mean", "0,0,0", "--std", "1,1,1", "--backend", "none", "-o", folder,
        *more,
    )  # fmt: skip
    assert called.code == 0, called.err
    return folder


def test_class_folders_with_two_orders(reds: Path) -> None:
    bundle, data = exported(reds), reds.parent / "data"
    called = deploykit("eval", bundle, "--data", data)
    assert called.code == 1
    assert "have two orders: 0, 1, 2 ... as numbers, 0, 1, 10 ... as text" in called.err
    natural = deploykit("eval", bundle, "--data", data, "--class-order", "natural", "--json")
    assert natural.data["top1"] == 1
    text = deploykit("eval", bundle, "--data", data, "--class-order", "text", "--json").data
    assert text["top1"] == pytest.approx(2 / 12)  # 0 and 1 have their places


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_list_numbers_class_folders(reds: Path, encoding: str) -> None:
    listed = reds.parent / "classes.txt"
    listed.write_text("\r\n".join(map(str, range(CLASSES))), encoding=encoding, newline="")
    data = reds.parent / "data"
    bundle = exported(reds)
    called = deploykit("eval", bundle, "--data", data, "--classes", listed, "--json")
    assert called.data["top1"] == 1
    bundle = exported(reds, "--labels", listed)
    assert deploykit("eval", bundle, "--data", data, "--json").data["top1"] == 1
    names = deploykit("predict", bundle, data / "11/a.png", "--json").data["predictions"]
    assert names[0]["top"][0]["label"] == "11"


def test_labels_in_another_encoding(reds: Path) -> None:
    listed = reds.parent / "latin1.txt"
    listed.write_bytes("\n".join(f"Grün {k}" for k in range(CLASSES)).encode("latin-1"))
    called = deploykit("export", reds, "--backend", "none", "--labels", listed)
    assert called.code == 1
    assert "latin1.txt: line 1 is not UTF-8 (byte 0xfc)" in called.err
    assert "expected UTF-8 text, or UTF-16 with a byte order mark" in called.err


def test_a_list_of_images_from_a_spreadsheet(reds: Path) -> None:
    lines = [f"data/{k}/a.png,{k}" for k in range(CLASSES)]
    listed = reds.parent / "list.csv"
    listed.write_bytes("\r\n".join(["file,label", *lines]).encode("utf-16"))
    called = deploykit("eval", exported(reds), "--data", listed, "--json")
    assert called.data["top1"] == 1
