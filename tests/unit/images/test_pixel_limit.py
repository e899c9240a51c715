"""Limits of pixels: by the header, before anything is decoded, and of many threads together."""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from deploykit import images
from deploykit.core.errors import DataError, ImageError, TooManyPixelsError, UsageError
from deploykit.core.specs import Preprocessing
from deploykit.images import decoding
from deploykit.images.batching import within_limit
from deploykit.images.sets import FileImages
from deploykit.runtime.classifier import PreparedImages

SMALL = Preprocessing((8, 8), 8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png_header(width: int, height: int, depth: int = 16, colour: int = 0) -> bytes:
    """A PNG of that size whose pixels are missing: enough for whoever reads the header alone."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    rows = zlib.compress(b"")
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("colour", [0, 2, 6], ids=["grey", "rgb", "rgba"])
def test_a_large_image_is_refused_with_the_numbers(colour: int) -> None:
    with pytest.raises(DataError) as caught:
        images.decode(png_header(13300, 13300, colour=colour), 50_000_000)
    assert str(caught.value) == (
        "the image has 13300 x 13300 = 176,890,000 pixels, the limit is 50,000,000\n"
        "scale it down; or, if you trust it, raise the limit: max_pixels=176890000, or "
        "--max-pixels of predict, eval, calibrate and export"
    )


@pytest.mark.parametrize(("width", "height"), [(20_000, 5_000), (1, 2**31 - 1), (100_000, 100_000)])
def test_without_a_model_the_limit_is_pillows(width: int, height: int) -> None:
    with pytest.raises(DataError, match="the limit is 89,478,485\n"):
        images.decode(png_header(width, height))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "JPEG2000"])
def test_the_limit_is_exact_in_every_format(kind: str) -> None:
    data = encoded(Image.new("RGB", (40, 30), "red"), kind)
    assert images.pixels_of(data) == images.pixels_of(data, 1200) == 1200
    assert images.decode(data, 1200).size == (40, 30)
    with pytest.raises(DataError, match=r"40 x 30 = 1,200 pixels, the limit is 1,199"):
        images.decode(data, 1199)


def test_a_limit_above_pillows_holds_without_a_warning() -> None:
    data = encoded(Image.new("L", (9500, 9500)), "PNG")
    assert images.decode(data, 10**8).size == (9500, 9500)


def test_a_lower_limit_of_pillows_still_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match="the limit is 10\n"):
        images.decode(encoded(Image.new("RGB", (4, 4)), "PNG"))


def icon(*sizes: tuple[int, int]) -> bytes:
    """An .ico whose directory says 16 x 16 of each image."""
    files = [png_header(*size, depth=8, colour=6) for size in sizes]
    offset, entries = 6 + 16 * len(files), b""
    for file in files:
        entries += struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(file), offset)
        offset += len(file)
    return struct.pack("<HHH", 0, 1, len(files)) + entries + b"".join(files)


@pytest.mark.parametrize("sizes", [[(13000, 13000)], [(16, 16), (30000, 400)]])
def test_an_icon_counts_by_what_is_in_it(sizes: list[tuple[int, int]]) -> None:
    width, height = max(sizes)
    with pytest.raises(DataError, match=f"{width} x {height} = {width * height:,} pixels"):
        images.decode(icon(*sizes), 10**6)
    assert images.pixels_of(icon(*sizes)) == width * height


def test_an_icon_of_bitmaps_is_read() -> None:
    data = encoded(Image.new("RGBA", (32, 32), "red"), "ICO", bitmap_format="bmp")
    assert images.pixels_of(data) == 32 * 64  # with its mask
    assert images.decode(data).getpixel((3, 3)) == (255, 0, 0)


def test_a_tile_larger_than_its_tiff_counts() -> None:
    tags = [(256, 8), (257, 8), (258, 8), (259, 8), (262, 1), (322, 12000), (323, 12000)]
    tags += [(324, 200), (325, 10)]
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + bytes(200)
    with pytest.raises(DataError, match="12000 x 12000 = 144,000,000 pixels"):
        images.decode(data, 10**6)


@pytest.mark.parametrize("suffix", [".icns", ".blp", ".iim"])
def test_wrappers_of_other_formats_are_not_read(suffix: str) -> None:
    assert suffix not in images.image_suffixes()


def test_a_limit_that_lets_nothing_through() -> None:
    with pytest.raises(UsageError, match="max_pixels=0 lets no image through\nexpected 1 or more"):
        images.decode(b"", 0)


# --- which limit


@pytest.mark.parametrize(
    ("preprocessing", "expected"),
    [
        (Preprocessing((224, 224), 256), 50_000_000),
        (Preprocessing((32, 32)), 50_000_000),
        (Preprocessing((480, 480), (512, 512)), 256 * 512 * 512),
        (Preprocessing((600, 400)), 256 * 600 * 400),
        (Preprocessing((224, 224), 1024), 89_478_485),
    ],
)
def test_the_default_follows_from_what_the_model_sees(
    preprocessing: Preprocessing, expected: int
) -> None:
    assert images.default_max_pixels(preprocessing) == expected


def test_sets_take_the_models_limit_unless_they_have_one(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(png_header(8000, 8000))
    with pytest.raises(DataError, match="the limit is 50,000,000"):
        list(images.batches(images.open_images(path), SMALL, 1))
    with pytest.raises(DataError, match="the limit is 60,000,000"):
        list(images.batches(images.open_images(path, 60_000_000), SMALL, 1))
    with pytest.raises(DataError, match="the limit is 63,999,999"):
        images.prepare(FileImages((path,), max_pixels=63_999_999), 0, SMALL)
    assert within_limit(images.sample_images(), SMALL).labels is None


def test_skipping_what_cannot_be_read_skips_large_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_header(8000, 8000))
    (tmp_path / "b.png").write_bytes(encoded(Image.new("RGB", (9, 9)), "PNG"))
    found = list(images.batches(images.open_images(tmp_path), SMALL, 2, on_corrupt="skip"))
    assert [indices for _, indices in found] == [[1]]


def test_a_narrow_image_is_not_blown_up_on_the_way() -> None:
    wide = Preprocessing((224, 224), (224, 224))
    with pytest.raises(DataError, match="would be scaled to 224 x 600000\nexpected at most"):
        images.preprocess(Image.new("RGB", (2, 600_000)), wide)


def test_a_crop_that_no_memory_holds() -> None:
    with pytest.raises(DataError, match=r"crop \(100000, 100000\) has 10,000,000,000 pixels"):
        images.preprocess(Image.new("RGB", (8, 8)), Preprocessing((100_000, 100_000)))


# --- the same pixels as before


def before(data: bytes) -> np.ndarray[Any, Any]:
    """Pillow and numpy on the whole image at once."""
    image = ImageOps.exif_transpose(Image.open(BytesIO(data)))
    if image.mode.startswith("I"):
        values = np.round(np.asarray(image).astype(np.float64) / 257).astype(np.uint8)
        return np.repeat(values[..., None], 3, axis=2)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "P with alpha"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_strips_give_what_the_whole_gives(mode: str, orientation: int) -> None:
    random = np.random.default_rng(1)
    size = (1400, 800)  # two strips
    rgba = Image.fromarray(random.integers(0, 256, (*size, 4), np.uint8))
    options: dict[str, Any] = {}
    if mode == "I;16":
        image = Image.fromarray(random.integers(0, 65536, size, np.uint16))
    elif mode == "P with alpha":
        image = Image.fromarray(random.integers(0, 16, size, np.uint8)).convert("P")
        image.putpalette(random.integers(0, 256, 48, np.uint8).tobytes())
        options = {"transparency": bytes(range(0, 160, 10))}
    else:
        image = rgba.convert(mode)
    exif = Image.Exif()
    exif[0x112] = orientation
    data = encoded(image, "PNG", exif=exif, compress_level=1, **options)
    np.testing.assert_array_equal(np.asarray(images.decode(data)), before(data))


@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
def test_16_bit_tiffs_of_both_byte_orders(byte_order: str) -> None:
    values = np.random.default_rng(2).integers(0, 65536, (1200, 1000), np.uint16)
    tags = [(256, 1000), (257, 1200), (258, 16), (259, 1), (262, 1), (273, 200), (278, 1200)]
    tags += [(279, values.nbytes)]
    order = byte_order[0]
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    body = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    data = (start + body).ljust(200, b"\0") + values.astype(byte_order).tobytes()
    found = np.asarray(images.decode(data))
    np.testing.assert_array_equal(found[..., 1], np.round(values / 257).astype(np.uint8))


MEASURE = """
import sys
from pathlib import Path
from deploykit import images
from deploykit.core.specs import Preprocessing
from tests.peak_memory import peak_bytes
wanted = Preprocessing((64, 64), 64)
images.preprocess(images.decode(Path(sys.argv[1]), reduce_for=wanted), wanted)  # all loaded once
before = peak_bytes()
try:
    images.preprocess(images.decode(Path(sys.argv[2]), 25_000_000, reduce_for=wanted), wanted)
except images.decoding.DataError:
    pass
print(peak_bytes() - before)
"""


@pytest.mark.parametrize(
    ("mode", "bytes_per_pixel"), [("I;16", 8), ("RGBA", 11), ("RGB", 6), ("LA", 11)]
)
def test_memory_of_a_decoded_image(tmp_path: Path, mode: str, bytes_per_pixel: int) -> None:
    """9 million pixels: widening copies of the whole would take 24 or more bytes for each."""
    grown = memory_of(tmp_path, encoded(Image.new(mode, (3000, 3000)), "PNG", compress_level=1))
    assert grown < bytes_per_pixel * 9_000_000


def test_memory_of_a_refused_image(tmp_path: Path) -> None:
    image = Image.new("I;16", (6000, 6000))
    data = encoded(image, "PNG", compress_level=1)
    assert memory_of(tmp_path, data) < 20 * 2**20


def memory_of(folder: Path, data: bytes) -> int:
    small, large = folder / "small.png", folder / "large.png"
    small.write_bytes(encoded(Image.new("LA", (1100, 1100)), "PNG"))
    large.write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, small, large],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


# --- JPEGs, which are decoded at a part of their size


def photograph(width: int, height: int) -> Image.Image:
    """Waves of many lengths: every frequency that a reduction could turn into another one."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    channels = [127 + 60 * np.sin(x * y / scale) + 60 * np.cos(x / 7) for scale in (9e3, 3e3, 1e3)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


@pytest.mark.parametrize(
    ("limit", "size"),
    [(960_000, (1200, 800)), (959_999, (600, 400)), (240_000, (600, 400)), (60_000, (300, 200))],
)
def test_a_jpeg_above_the_limit_is_decoded_at_a_part_of_its_size(
    limit: int, size: tuple[int, int]
) -> None:
    data = encoded(photograph(1200, 800), "JPEG", quality=90)
    assert images.pixels_of(data, limit, reduce_for=SMALL) == size[0] * size[1]
    assert images.decode(data, limit, reduce_for=SMALL).size == size


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_the_emptiest_jpeg_is_not_taken_for_a_small_one(mode: str) -> None:
    """One colour, by codes that are made for it: hardly more than two bits for a block."""
    data = encoded(Image.new(mode, (4096, 4096)), "JPEG", optimize=True)
    limit = 4096 * 4096 - 1
    assert len(data) < limit // 64
    assert decoding.is_reduced(data, limit, SMALL)


def test_a_file_that_is_too_small_for_the_limit_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(photograph(400, 300), "JPEG"))
    opened: list[Path] = []
    monkeypatch.setattr(decoding, "_opened", opened.append)
    assert not decoding.is_reduced(path, None, SMALL)
    assert not decoding.is_reduced(tmp_path / "none.jpg", None, SMALL)
    assert opened == []


@pytest.mark.parametrize("limit", [959_999, 60_000])
def test_nothing_is_reduced_for_a_caller_who_does_not_say_what_comes_next(limit: int) -> None:
    data = encoded(photograph(1200, 800), "JPEG")
    assert images.pixels_of(data, limit) == 960_000
    with pytest.raises(TooManyPixelsError, match="has 1200 x 800 = 960,000 pixels") as caught:
        images.decode(data, limit)
    assert caught.value.pixels == 960_000


@pytest.mark.parametrize(
    ("resize", "limit", "size"),
    [
        (None, 100_000, None),  # the crop would show four times the area
        (100, 100_000, None),
        (75, 100_000, (200, 150)),
        (76, 100_000, None),
        (37, 8_000, (100, 75)),
        (38, 8_000, None),  # a quarter would be less than twice what is needed
        ((50, 75), 100_000, (200, 150)),
        ((50, 76), 100_000, None),  # EXIF could exchange the sides
        (128, 8_000, None),
    ],
)
def test_a_jpeg_keeps_twice_what_the_resize_needs_or_is_refused(
    resize: int | tuple[int, int] | None, limit: int, size: tuple[int, int] | None
) -> None:
    steps, data = Preprocessing((32, 32), resize), encoded(photograph(400, 300), "JPEG")
    if size is not None:
        assert images.decode(data, limit, reduce_for=steps).size == size
        return
    assert images.pixels_of(data, limit, reduce_for=steps) == 120_000
    with pytest.raises(DataError, match="has 400 x 300 = 120,000 pixels, the limit is"):
        images.decode(data, limit, reduce_for=steps)


@pytest.mark.parametrize(
    ("size", "limit"), [((20_000, 3), 10_000), ((3, 20_000), 10_000), ((15_000, 5), 7_499)]
)
def test_a_thin_jpeg_is_refused_by_its_real_size(size: tuple[int, int], limit: int) -> None:
    data, (width, height) = encoded(Image.new("RGB", size), "JPEG"), size
    steps = Preprocessing((1, 1), 1)
    with pytest.raises(DataError, match=f"has {width} x {height} = {width * height:,} pixels"):
        images.decode(data, limit, reduce_for=steps)


@pytest.mark.parametrize("size", [1, 17, 224, 300, (224, 224), (64, 300)])
def test_by_the_default_limit_every_photograph_may_be_reduced(
    size: int | tuple[int, int],
) -> None:
    """Between 1 and 16 times the limit; by the header alone, whose numbers are planted."""
    steps = Preprocessing((1, 1), size)
    limit = images.default_max_pixels(steps)
    data = encoded(Image.new("RGB", (16, 16)), "JPEG")
    at = data.index(b"\xff\xc0") + 5
    for times in (1.01, 3.9, 4.1, 15.9):
        height = int((limit * times * 2 / 3) ** 0.5)
        planted = data[:at] + struct.pack(">HH", height, height * 3 // 2) + data[at + 4 :]
        assert images.pixels_of(planted, limit, reduce_for=steps) <= limit


@pytest.mark.parametrize("limit", [None, 119_999, 7_500])
def test_notes_count_the_reduced_images(tmp_path: Path, limit: int | None) -> None:
    photograph(400, 300).save(tmp_path / "a.jpg")
    photograph(400, 300).save(tmp_path / "b.png")
    photograph(40, 30).save(tmp_path / "c.jpg")
    (tmp_path / "d.jpg").write_bytes(b"junk")
    photograph(400, 300).save(tmp_path / "e.jpg")
    source = images.open_images(tmp_path, limit)
    at_a_part = (
        "decoded at a half or a quarter of {} width and height: a JPEG above the limit of {}"
    )
    two = f"2 of 5 images were {at_a_part} pixels; --max-pixels raises it"
    one = f"1 of 3 photographs was {at_a_part} pixels; --max-pixels raises it"
    expected = {
        None: [],
        119_999: [two.format("their", "119,999")],
        7_500: [one.format("its", "7,500")],
    }
    chosen, what = ([0, 1, 2], "photographs") if limit == 7_500 else (None, "images")
    assert images.notes_on_reduced(source, SMALL, chosen, what) == expected[limit]
    assert images.notes_on_reduced(source, Preprocessing((8, 8), None), chosen) == []


@pytest.mark.parametrize("resize", [None, 200])
def test_a_classifiers_answer_is_of_the_whole_crop_or_none(resize: int | None) -> None:
    """Where a reduction would change what the model sees, the image has no answer."""
    data = encoded(photograph(400, 300), "JPEG")
    steps = Preprocessing((64, 64), resize)
    (found,) = PreparedImages([data], steps, 100_000).prepared(1)
    assert isinstance(found, DataError)
    assert str(found).startswith("image 0: the image has 400 x 300 = 120,000 pixels")


def test_the_sender_of_an_image_is_told_nothing_of_the_programs_options() -> None:
    with pytest.raises(ImageError) as large:
        images.decode(png_header(13300, 13300), 10**6)
    assert large.value.for_sender == (
        "the image has 13300 x 13300 = 176,890,000 pixels, the limit is 1,000,000\nscale it down"
    )
    with pytest.raises(ImageError) as junk:
        images.decode(b"junk")
    assert junk.value.for_sender.endswith(
        "expected a complete JPEG, PNG, WebP, TIFF or other image"
    )


@pytest.mark.parametrize("limit", [240_000, 60_000])
def test_a_reduced_jpeg_shows_the_model_what_the_whole_shows(limit: int) -> None:
    """Compared with Pillow's own decoding and antialiased scaling of every pixel."""
    data = encoded(photograph(1200, 800), "JPEG", quality=90)
    whole = np.asarray(Image.open(BytesIO(data)).resize((48, 32), Image.Resampling.BILINEAR))
    decoded = images.decode(data, limit, reduce_for=SMALL)
    reduced = np.asarray(decoded.resize((48, 32), Image.Resampling.BILINEAR))
    assert np.abs(whole.astype(int) - reduced).max() <= 3


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_reduced_jpeg_of_any_kind_of_pixel_is_upright_rgb(mode: str) -> None:
    exif = Image.Exif()
    exif[274] = 6  # the camera was held upright
    data = encoded(Image.new(mode, (401, 300)), "JPEG", exif=exif)
    found = images.decode(data, 401 * 300 // 4 + 400, reduce_for=SMALL)
    assert found.size == (150, 201)
    assert found.mode == "RGB"


def split_scans(data: bytes) -> bytes:
    """A JPEG of several colours that says of its first scan that it has one of them."""
    at = data.index(b"\xff\xda")
    return data[:at] + b"\xff\xda\0\x08\1" + data[at + 5 :]


BUFFERED = {
    "progressive": encoded(photograph(400, 300), "JPEG", progressive=True),
    "several scans": split_scans(encoded(photograph(400, 300), "JPEG")),
    "more than 16 times the limit": encoded(photograph(400, 300), "JPEG"),
    "segments without end": b"\xff\xd8"
    + b"\xff\xe5\0\2" * 20_000
    + encoded(photograph(400, 300), "JPEG")[2:],
}


@pytest.mark.parametrize("kind", BUFFERED)
def test_a_jpeg_that_needs_memory_at_any_size_is_refused(kind: str) -> None:
    limit = 7_400 if kind.startswith("more") else 100_000
    assert images.pixels_of(BUFFERED[kind], limit, reduce_for=SMALL) == 120_000
    with pytest.raises(DataError, match="has 400 x 300 = 120,000 pixels, the limit is"):
        images.decode(BUFFERED[kind], limit, reduce_for=SMALL)


def test_memory_of_a_reduced_jpeg(tmp_path: Path) -> None:
    """Decoded at a quarter; the whole would take 318 MB before it is scaled."""
    grown = memory_of(tmp_path, encoded(Image.new("RGB", (10300, 10300)), "JPEG"))
    assert grown < 6 * 10300 * 10300 // 16


# --- many at once


def test_threads_together_stay_within_the_budget() -> None:
    budget, lock = images.PixelBudget(100), threading.Lock()
    held, most = [0], [0]

    def take(pixels: int) -> None:
        for _ in range(50):
            with budget.hold(pixels):
                with lock:
                    held[0] += min(pixels, 100)
                    most[0] = max(most[0], held[0])
                with lock:
                    held[0] -= min(pixels, 100)

    threads = [threading.Thread(target=take, args=(n,)) for n in (10, 40, 60, 99, 100, 500)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 < most[0] <= 100
    assert held == [0]


def test_a_budget_is_given_back_after_an_error() -> None:
    budget = images.PixelBudget(10)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), budget.hold(10):
            raise ZeroDivisionError
    with budget.hold(10):
        pass
