from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from deploykit.graph.first_layer import first_filters
from deploykit.visualization.first_layer import FirstLayer, filters_sheet
from deploykit.visualization.pictures import GREY, cut, heat, png, scaled_to, sheet, signed
from deploykit.visualization.receptive_field import Box
from tests.graphs import graph, normal


def test_a_crop_lies_on_its_tile_as_in_the_whole_field() -> None:
    image = np.random.default_rng(0).integers(0, 256, (10, 12, 3), np.uint8)
    inside = cut(image, Box(2, 3, 6, 7), (5, 5))
    np.testing.assert_array_equal(inside, image[2:7, 3:8])
    # A field of 5 x 5 at the upper left corner: two rows and one column of it are outside.
    corner = cut(image, Box(0, 0, 2, 3), (5, 5))
    np.testing.assert_array_equal(corner[2:, 1:], image[:3, :4])
    assert (corner[:2] == GREY).all()
    assert (corner[:, 0] == GREY).all()
    other = cut(image, Box(7, 9, 9, 11), (5, 5))
    np.testing.assert_array_equal(other[:3, :3], image[7:, 9:])
    assert (other[3:] == GREY).all()
    np.testing.assert_array_equal(cut(image, Box(0, 0, 9, 11), (10, 12)), image)


def test_png_is_what_it_was_made_of() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    with Image.open(io.BytesIO(png(pixels))) as read:
        np.testing.assert_array_equal(np.asarray(read), pixels)


def test_a_large_picture_is_made_smaller_a_small_one_larger() -> None:
    assert scaled_to(np.zeros((100, 50, 3), np.uint8), 10, 40).shape == (40, 20, 3)
    assert scaled_to(np.zeros((20, 30, 3), np.uint8), 10, 40).shape == (20, 30, 3)


def test_a_sheet_has_its_tiles_in_rows() -> None:
    tiles = [np.full((3, 4, 3), value, np.uint8) for value in (1, 2, 3)]
    whole = sheet(tiles, 2)
    assert whole.shape == (8, 10, 3)
    assert (whole[:3, :4] == 1).all()
    assert (whole[:3, 6:] == 2).all()
    assert (whole[5:, :4] == 3).all()


def test_signed_values_of_nothing_are_grey() -> None:
    assert (signed(np.zeros((3, 2, 2))) == GREY).all()
    assert signed(np.ones((3, 2, 2)), 2.0)[0, 0].tolist() == [192] * 3
    assert signed(np.ones((1, 2, 4)), 2.0).tolist() == signed(np.ones((2, 4)), 2.0).tolist()


def test_heat_is_warm_above_0_and_blue_below() -> None:
    grey = np.full((4, 4, 3), 100, np.uint8)
    values = np.array([[1.0, -1.0], [0.0, 0.0]], np.float32).repeat(2, 0).repeat(2, 1)
    shown = heat(grey, values, 1.0).astype(int)
    warm, cool = shown[0, 0], shown[0, 3]
    assert warm[0] > warm[2]
    assert cool[2] > cool[0]
    assert shown[3, 3].tolist() == [100] * 3


@pytest.mark.parametrize(("inputs", "tiles"), [(3, 4), (1, 4), (2, 8)])
def test_all_filters_share_a_scale(inputs: int, tiles: int) -> None:
    filters = np.zeros((4, inputs, 3, 3), np.float32)
    filters[1] = 0.5
    filters[2, 0, 0, 0] = -1
    whole = filters_sheet(FirstLayer("conv", filters))
    px = 36
    assert whole.shape == (px, tiles * (px + 2) - 2, 3)
    first, second = (whole[px // 2, at] for at in (px // 2, (tiles // 4) * (px + 2) + px // 2))
    assert first.tolist() == [GREY] * 3
    assert second.tolist() == [192] * 3
    black = whole[0, 2 * (tiles // 4) * (px + 2)]
    assert black[0] == 0


def test_filters_of_a_network_that_takes_bgr_are_turned() -> None:
    filters = np.zeros((1, 3, 3, 3), np.float32)
    filters[0, 0] = 1
    layer = FirstLayer("conv", filters)
    assert filters_sheet(layer)[5, 5].tolist() == [255, 128, 128]
    assert filters_sheet(layer, channel_order="bgr")[5, 5].tolist() == [128, 128, 255]


NET = "n (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {{ {body} }}"
WEIGHT = normal(4, 3, 3, 3)


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("[a] y = Conv <pads = [1,1,1,1]> (x, w)", {"w": WEIGHT}),
        ("v = Cast <to = 1> (w) [a] y = Conv <pads = [1,1,1,1]> (x, v)", {"w": WEIGHT}),
    ],
    ids=["plain", "cast"],
)
def test_the_filters_of_a_graph(body: str, constants: dict[str, np.ndarray]) -> None:
    import onnx_ir as ir

    found = first_filters(ir.from_proto(graph(NET.format(body=body), constants)))
    assert found is not None
    assert found[0] == "a"
    np.testing.assert_allclose(found[1], WEIGHT)


@pytest.mark.parametrize("per_channel", [True, False])
def test_quantized_filters_are_real_numbers_again(per_channel: bool) -> None:
    import onnx_ir as ir
    from onnx.reference import ReferenceEvaluator

    stored = np.random.default_rng(0).integers(-127, 128, (4, 3, 3, 3), np.int8)
    scale = np.array([0.1, 0.2, 0.3, 0.4], np.float32) if per_channel else np.float32(0.1)
    zero = np.zeros(4, np.int8) if per_channel else np.int8(3)
    body = "[d] v = DequantizeLinear <axis = 0> (w, s, z) [a] y = Conv <pads = [1,1,1,1]> (x, v)"
    proto = graph(NET.format(body=body), {"w": stored, "s": np.array(scale), "z": np.array(zero)})
    found = first_filters(ir.from_proto(proto))
    assert found is not None
    only = graph(
        "g (int8[4, 3, 3, 3] w) => (float[4, 3, 3, 3] v) "
        "{ v = DequantizeLinear <axis = 0> (w, s, z) }",
        {"s": np.array(scale), "z": np.array(zero)},
    )
    (wanted,) = ReferenceEvaluator(only).run(None, {"w": stored})
    np.testing.assert_allclose(found[1], np.asarray(wanted, np.float32), rtol=1e-6)


def test_a_graph_without_filters() -> None:
    import onnx_ir as ir

    proto = graph("n (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) { y = Relu (x) }")
    assert first_filters(ir.from_proto(proto)) is None
    computed = "v = Mul (w, t) [a] y = Conv <pads = [1,1,1,1]> (x, v)"
    proto = graph(NET.format(body=computed), {"w": WEIGHT, "t": np.array(2, np.float32)})
    assert first_filters(ir.from_proto(proto)) is None
