"""What the comparison with other tools counts, and what it feeds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks.int8_peers import count_int8, networks_in
from benchmarks.peer_quantize import OneByOne, read_images
from tests.graphs import graph

if TYPE_CHECKING:
    from pathlib import Path

SCALES = {
    "scale": np.float32(0.1),
    "scale16": np.float16(0.1),
    "zero": np.int8(0),
    "weight": np.zeros((4, 4, 1, 1), np.int8),
    "plain": np.zeros((4, 4, 1, 1), np.float32),
}
WANTED = {
    "preprocessing": {
        "crop": [2, 4],
        "resize": None,
        "mean": [0.5, 0.25, 0.0],
        "std": [1.0, 0.5, 0.25],
    }
}


PAIRS = """
    xq = QuantizeLinear(x, scale, zero)
    xd = DequantizeLinear(xq, scale, zero)
    weightd = DequantizeLinear(weight, scale, zero)
"""


def counts(nodes: str) -> tuple[int, int, int]:
    text = f"g (float[1, 4, 2, 2] x) => (float[1, 4, 2, 2] y) {{ {PAIRS} {nodes} }}"
    return count_int8(graph(text, {name: np.asarray(value) for name, value in SCALES.items()}))


def test_a_layer_is_in_int8_when_both_its_data_and_its_weight_are() -> None:
    assert counts("y = Conv(xd, weightd)") == (1, 1, 1)
    assert counts("y = Conv(xd, plain)") == (0, 1, 1)
    assert counts("y = Conv(x, weightd)") == (0, 1, 1)


def test_every_kind_of_layer_counts_and_nothing_else_does() -> None:
    nodes = """
        a = Conv(xd, weightd)
        b = MatMul(xd, weightd)
        c = Gemm(xd, weightd, xd)
        d = Add(xd, weightd)
        y = Sum(a, b, c, d)
    """
    assert counts(nodes) == (3, 3, 1)


def test_a_boundary_of_precision_or_a_turned_weight_hides_nothing() -> None:
    nodes = """
        x16 = Cast <to = 10> (xd)
        weight16 = Cast <to = 10> (weightd)
        turned = Transpose(weight16)
        y = Conv(x16, turned)
    """
    assert counts(nodes) == (1, 1, 1)


def test_an_activation_counts_once_and_a_weight_does_not() -> None:
    nodes = """
        plainq = QuantizeLinear(plain, scale, zero)
        made = Constant <value = float {1.0}> ()
        madeq = QuantizeLinear(made, scale, zero)
        x16 = Cast <to = 10> (x)
        again = QuantizeLinear(x16, scale16, zero)
        y = Conv(xd, weightd)
    """
    assert counts(nodes) == (1, 1, 1)


def test_networks_are_found_by_their_weights(tmp_path: Path) -> None:
    for name in ("resnet56_cifar10.npz", "resnet20_cifar10.npz", "cifar10_calib512.npz"):
        (tmp_path / name).touch()
    assert networks_in(tmp_path) == ["resnet20", "resnet56"]


def test_peers_are_fed_what_the_manifest_says(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 2, 4, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels)
    images = read_images(WANTED, tmp_path / "images.npz")
    alike = read_images(
        {"preprocessing": WANTED["preprocessing"] | {"resize": 2}}, tmp_path / "images.npz"
    )
    np.testing.assert_array_equal(alike, images)
    assert images.dtype == np.float32
    assert images.shape == (3, 3, 2, 4)
    assert images[2, 1, 0, 3] == pytest.approx((pixels[2, 0, 3, 1] / 255 - 0.25) / 0.5, rel=1e-6)

    reader = OneByOne("input", images)
    fed = [reader.get_next() for _ in range(4)]
    assert fed[3] is None
    together = np.concatenate([feed["input"] for feed in fed[:3] if feed is not None])
    np.testing.assert_array_equal(together, images)


def test_images_that_would_have_to_be_scaled_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=np.zeros((1, 4, 4, 3), np.uint8))
    with pytest.raises(SystemExit, match=r"images of \(4, 4\) would have to be scaled"):
        read_images(WANTED, tmp_path / "images.npz")
