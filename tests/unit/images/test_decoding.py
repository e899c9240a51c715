from __future__ import annotations

from contextlib import suppress
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deploykit import images
from deploykit.core.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

ORIENTATION = 0x0112

PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> NDArray[np.uint8]:
    image = images.decode(data)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_kinds_keep_every_pixel(kind: str) -> None:
    np.testing.assert_array_equal(decoded(encoded(Image.fromarray(PIXELS), kind)), PIXELS)


def test_lossless_webp_keeps_every_pixel() -> None:
    data = encoded(Image.fromarray(PIXELS), "WEBP", lossless=True)
    np.testing.assert_array_equal(decoded(data), PIXELS)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, PIXELS),
        (2, PIXELS[:, ::-1]),
        (3, PIXELS[::-1, ::-1]),
        (4, PIXELS[::-1]),
        (5, PIXELS.transpose(1, 0, 2)),
        (6, np.rot90(PIXELS, -1)),
        (7, np.rot90(PIXELS, 2).transpose(1, 0, 2)),
        (8, np.rot90(PIXELS, 1)),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation_is_applied_once(
    kind: str, orientation: int, upright: NDArray[np.uint8]
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    np.testing.assert_array_equal(
        decoded(encoded(Image.fromarray(PIXELS), kind, exif=exif)), upright
    )


def test_greyscale_repeats_its_channel() -> None:
    grey = PIXELS[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(decoded(encoded(Image.fromarray(grey), "PNG")), expected)


def test_black_and_white_becomes_0_and_255() -> None:
    bits = Image.fromarray(PIXELS[..., 0]).convert("1", dither=Image.Dither.NONE)
    assert set(np.unique(decoded(encoded(bits, "PNG"))).tolist()) == {0, 255}


def test_palette_is_resolved() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert decoded(encoded(image, "PNG")).tolist() == [[[10, 20, 30], [200, 100, 50]]]


def test_a_transparent_palette_entry_shows_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    data = encoded(image, "PNG", transparency=0)
    assert decoded(data).tolist() == [[[255, 255, 255], [200, 100, 50]]]


def test_a_transparent_colour_shows_white() -> None:
    data = encoded(Image.fromarray(PIXELS), "PNG", transparency=tuple(PIXELS[0, 0].tolist()))
    result = decoded(data)
    assert result[0, 0].tolist() == [255, 255, 255]
    np.testing.assert_array_equal(result[1:], PIXELS[1:])


def test_alpha_is_blended_with_white() -> None:
    rgba = np.dstack([PIXELS, np.full((4, 6), 102, np.uint8)])
    expected = PIXELS * 0.4 + 255 * 0.6
    np.testing.assert_allclose(decoded(encoded(Image.fromarray(rgba), "PNG")), expected, atol=1)


def test_opaque_alpha_changes_nothing() -> None:
    rgba = np.dstack([PIXELS, np.full((4, 6), 255, np.uint8)])
    np.testing.assert_array_equal(decoded(encoded(Image.fromarray(rgba), "PNG")), PIXELS)


def test_cmyk_is_converted() -> None:
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = decoded(encoded(cmyk, "JPEG", quality=95))[4, 4].astype(int)
    assert red[0] > 240
    assert red[1:].max() < 15


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_greyscale_is_scaled_not_clipped(kind: str) -> None:
    values = np.array([[0, 128, 129, 257, 1000, 32768, 65535]], np.uint16)
    expected = np.round(values[0] / 257).astype(int).tolist()
    data = encoded(Image.fromarray(values), kind)
    assert decoded(data)[0, :, 0].tolist() == expected == [0, 0, 1, 1, 4, 128, 255]


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (3, 2), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decoded(data)[0, 0].tolist() == [255, 0, 0]


def test_a_file_decodes_like_its_bytes(tmp_path: Path) -> None:
    file = tmp_path / "photo.JPG"
    file.write_bytes(encoded(Image.fromarray(PIXELS), "JPEG"))
    np.testing.assert_array_equal(np.asarray(images.decode(file)), decoded(file.read_bytes()))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.array([[0.5]], np.float32), "floating-point pixels have no fixed range"),
        (np.array([[70000]], np.int32), "more than 16 bits have no fixed range"),
        (np.array([[-1]], np.int32), "more than 16 bits have no fixed range"),
        # Small values too: as 16 bits they would be nearly black.
        (np.array([[0, 255]], np.int32), "more than 16 bits have no fixed range"),
    ],
)
def test_pixels_without_a_range_are_refused(values: NDArray[Any], reason: str) -> None:
    data = encoded(Image.fromarray(values), "TIFF")
    with pytest.raises(DataError, match=reason):
        images.decode(data)
    with pytest.raises(DataError, match=reason):
        images.to_rgb(Image.open(BytesIO(data)))


def test_wide_greyscale_of_no_file_is_judged_by_its_values() -> None:
    with pytest.raises(DataError, match="more than 16 bits have no fixed range"):
        images.to_rgb(Image.fromarray(np.array([[70000]], np.int32)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none\.png\nFileNotFoundError"):
        images.decode(tmp_path / "none.png")


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "half.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), "JPEG")
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"cannot read .*half\.jpg\nOSError: .*truncated"):
        images.decode(file)


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(DataError, match="cannot read the image\nUnidentifiedImageError"):
        images.decode(b"not an image")


def test_a_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(PIXELS), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"6 x 4 = 24 pixels, the limit is 10\n"):
        images.decode(data)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(kind=st.sampled_from(["JPEG", "PNG", "TIFF", "GIF", "BMP", "WEBP"]), data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_damage_never_escapes_as_a_foreign_error(kind: str, data: st.DataObject) -> None:
    damaged = bytearray(encoded(Image.fromarray(PIXELS), kind))
    places = st.integers(0, len(damaged) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=8)):
        damaged[place] = data.draw(st.integers(0, 255))
    with suppress(DataError):
        assert images.decode(bytes(damaged)).mode == "RGB"


def test_a_format_that_runs_another_program_is_refused(tmp_path: Path) -> None:
    """Pillow hands EPS to Ghostscript; a name that ends in .jpg must not lead there."""
    path = tmp_path / "innocent.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n%%EOF\n")
    with pytest.raises(DataError, match="UnidentifiedImageError"):
        images.decode(path)


def test_an_open_image_becomes_what_its_file_becomes_and_stays_as_it_is() -> None:
    data = encoded(Image.fromarray(PIXELS).convert("LA"), "PNG")
    opened = Image.open(BytesIO(data))
    np.testing.assert_array_equal(
        np.asarray(images.to_rgb(opened)), np.asarray(images.decode(data))
    )
    assert opened.mode == "LA"


def test_an_open_image_whose_file_is_truncated() -> None:
    opened = Image.open(BytesIO(encoded(Image.fromarray(PIXELS), "PNG")[:-30]))
    with pytest.raises(DataError, match=r"cannot read the image\n.*: .*\nexpected a complete JPEG"):
        images.to_rgb(opened)
