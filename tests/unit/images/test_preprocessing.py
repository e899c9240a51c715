from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from deploykit import images
from deploykit.core.choices import GREY_ORDER
from deploykit.core.errors import DataError, UnknownNameError, UsageError
from deploykit.core.specs import Preprocessing
from deploykit.images.preprocessing import resized_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

PREPROCESSING = Preprocessing(crop=(224, 224), resize=256)


def of_torchvision(image: Image.Image, steps: Preprocessing) -> NDArray[np.float32]:
    """What torchvision's evaluation transforms make of the image, grey before anything else."""
    from torchvision import transforms
    from torchvision.transforms import InterpolationMode

    mode = InterpolationMode(steps.interpolation)
    resize = [] if steps.resize is None else [transforms.Resize(steps.resize, mode, antialias=True)]
    chain = transforms.Compose(
        [
            *([transforms.Grayscale(1)] if len(steps.mean) == 1 else []),
            *resize,
            transforms.CenterCrop(steps.crop),
            transforms.ToTensor(),
            transforms.Normalize(steps.mean, steps.std),
        ]
    )
    array: NDArray[np.float32] = chain(image).numpy()
    return array


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def assert_as_torchvision(image: Image.Image, steps: Preprocessing) -> None:
    result = images.preprocess(image, steps)
    assert result.dtype == np.float32
    assert result.shape == (len(steps.mean), *steps.crop)
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, of_torchvision(image, steps))


@pytest.mark.parametrize("size", [(40, 60), (64, 48), (20, 20)])
def test_a_pair_is_an_exact_size(size: tuple[int, int]) -> None:
    assert_as_torchvision(noise(90, 50), replace(PREPROCESSING, resize=size, crop=(32, 40)))


@pytest.mark.parametrize("resize", [0, (0, 20), (20, -1)])
def test_no_size_is_refused(resize: int | tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="leaves no image"):
        images.preprocess(noise(40, 40), replace(PREPROCESSING, resize=resize))


@pytest.mark.parametrize("interpolation", images.INTERPOLATIONS)
def test_photographs_come_out_as_from_torchvision(interpolation: str) -> None:
    photos = images.sample_images()
    steps = replace(PREPROCESSING, interpolation=interpolation)
    for index in range(len(photos)):
        assert_as_torchvision(photos.load(index), steps)


@pytest.mark.parametrize(
    ("width", "height"), [(301, 200), (200, 301), (33, 47), (47, 33), (7, 500), (1, 1), (256, 256)]
)
@pytest.mark.parametrize("resize", [None, 31, 32, 64])
@pytest.mark.parametrize("crop", [(32, 32), (31, 45), (46, 33)])
def test_odd_sizes_come_out_as_from_torchvision(
    width: int, height: int, resize: int | None, crop: tuple[int, int]
) -> None:
    assert_as_torchvision(noise(width, height), Preprocessing(crop=crop, resize=resize))


def test_other_mean_and_std_are_used() -> None:
    steps = Preprocessing(crop=(8, 8), mean=(0.5, 0.4, 0.3), std=(0.25, 0.5, 1.0))
    assert_as_torchvision(noise(9, 9), steps)


def test_what_a_crop_lacks_is_black_before_normalising() -> None:
    steps = Preprocessing(crop=(4, 4), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    white = images.preprocess(Image.new("RGB", (2, 2), "white"), steps)
    expected = np.full((3, 4, 4), -2, np.float32)
    expected[:, 1:3, 1:3] = 2
    np.testing.assert_array_equal(white, expected)


def test_an_array_comes_out_as_its_image() -> None:
    pixels = np.asarray(noise(40, 30))
    steps = Preprocessing(crop=(16, 16), resize=20)
    result = images.preprocess_array(pixels, steps)
    np.testing.assert_array_equal(result, images.preprocess(noise(40, 30), steps))


GREY = Preprocessing((31, 45), 40, mean=(0.1307,), std=(0.3081,), channel_order=GREY_ORDER)


@pytest.mark.parametrize("resize", [None, 31, 64, (20, 60), (31, 45)])
@pytest.mark.parametrize("interpolation", images.INTERPOLATIONS)
def test_grey_comes_out_as_from_torchvision(
    resize: int | tuple[int, int] | None, interpolation: str
) -> None:
    steps = replace(GREY, resize=resize, interpolation=interpolation)
    assert_as_torchvision(images.sample_images().load(0), steps)
    for size in ((301, 200), (47, 33), (1, 1)):
        assert_as_torchvision(noise(*size), steps)


@pytest.mark.parametrize("place", [1, 2])
def test_where_an_image_becomes_grey_matters_for_colours_alone(place: int) -> None:
    """Behind Resize or CenterCrop it is the same for grey files, and a rounding for others."""
    from torchvision import transforms

    def later(image: Image.Image) -> NDArray[np.float32]:
        steps: list[Any] = [transforms.Resize(40), transforms.CenterCrop(GREY.crop)]
        steps.insert(place, transforms.Grayscale(1))
        ends = [transforms.ToTensor(), transforms.Normalize(GREY.mean, GREY.std)]
        array: NDArray[np.float32] = transforms.Compose([*steps, *ends])(image).numpy()
        return array

    photo = noise(90, 60)
    plain = photo.convert("L").convert("RGB")
    np.testing.assert_array_equal(images.preprocess(plain, GREY), later(plain))
    apart = np.abs(images.preprocess(photo, GREY) - later(photo)) * GREY.std[0] * 255
    assert 0.5 < apart.max() < 1.5


def test_grey_arrays_are_images() -> None:
    pixels = np.asarray(noise(40, 30).convert("L"))
    for steps in (GREY, replace(PREPROCESSING, crop=(16, 16))):
        expected = images.preprocess(Image.fromarray(pixels).convert("RGB"), steps)
        for given in (pixels, pixels[..., None]):
            np.testing.assert_array_equal(images.preprocess_array(given, steps), expected)


def test_the_pixels_of_a_grey_image_come_back_in_three_equal_channels() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    steps = replace(GREY, crop=(16, 16), resize=None)
    back = images.pixels_before(images.preprocess_array(pixels, steps), steps)
    np.testing.assert_array_equal(back, np.stack([pixels] * 3, axis=-1))


def test_grey_has_one_mean_and_no_colours_to_doubt() -> None:
    with pytest.raises(UsageError, match=r"has 3 numbers, images in grey need 1: one"):
        Preprocessing((8, 8), channel_order=GREY_ORDER)
    with pytest.raises(UsageError, match=r"std \(1,\) has 1 numbers, images in rgb need 3"):
        Preprocessing((8, 8), std=(1,))
    assert images.doubts(GREY) == []


def test_the_image_is_not_changed() -> None:
    image = noise(40, 30)
    images.preprocess(image, PREPROCESSING)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(noise(40, 30)))


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(500, 375, (341, 256)), (375, 500, (256, 341)), (300, 300, (256, 256))],
)
def test_the_longer_side_is_rounded_down(
    width: int, height: int, expected: tuple[int, int]
) -> None:
    assert resized_size(width, height, 256) == expected


def test_an_unknown_interpolation_suggests_the_right_one() -> None:
    steps = replace(PREPROCESSING, interpolation="bilinaer")
    with pytest.raises(UnknownNameError, match=r"unknown interpolation 'bilinaer'\n.*bilinear"):
        images.preprocess(noise(9, 9), steps)


@pytest.mark.parametrize("changes", [{"resize": 0}, {"crop": (0, 5)}, {"crop": (5, -1)}])
def test_sizes_below_one_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"leaves no image\nexpected sizes of at least 1 pixel"):
        images.preprocess(noise(9, 9), replace(PREPROCESSING, **changes))


def test_a_std_of_zero_is_refused() -> None:
    with pytest.raises(UsageError, match=r"std \(0.2, 0.0, 0.2\) divides by zero"):
        images.preprocess(noise(9, 9), replace(PREPROCESSING, std=(0.2, 0.0, 0.2)))


def test_another_mode_than_rgb_is_refused() -> None:
    with pytest.raises(UsageError, match="an image of mode 'L' was given\nexpected 'RGB'"):
        images.preprocess(noise(9, 9).convert("L"), PREPROCESSING)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4,), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
    ids=lambda pixels: f"{pixels.dtype}{pixels.shape}",
)
def test_another_array_than_pixels_is_refused(pixels: NDArray[Any]) -> None:
    with pytest.raises(UsageError, match=r"was given\nexpected uint8 \(H, W, 3\), RGB"):
        images.preprocess_array(pixels, PREPROCESSING)


def test_a_thread_of_an_image_is_not_blown_up() -> None:
    with pytest.raises(DataError, match=r"1 x 9000 would be scaled to 256 x 2304000\nexpected"):
        images.preprocess(Image.new("RGB", (1, 9000)), PREPROCESSING)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_network_of_bgr_sees_blue_first(seed: int) -> None:
    """As OpenCV reads a file: blue, green, red, each with its own mean and deviation."""
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), np.uint8)
    mean, std = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)
    steps = Preprocessing(
        crop=(9, 7),
        mean=(mean[0] / 255, mean[1] / 255, mean[2] / 255),
        std=(std[0] / 255, std[1] / 255, std[2] / 255),
        channel_order="bgr",
    )
    expected = (pixels[:, :, ::-1].astype(np.float64) - mean) / std
    found = images.preprocess_array(pixels, steps)
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), atol=1e-5)
    assert found.flags.c_contiguous


def test_an_unknown_channel_order_suggests_the_right_one() -> None:
    with pytest.raises(UnknownNameError, match="unknown channel order 'bggr'"):
        images.preprocess(noise(8, 8), replace(PREPROCESSING, channel_order="bggr"))


def test_numbers_of_0_to_255_are_refused_with_the_converted_ones() -> None:
    wrong = replace(PREPROCESSING, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
    said = (
        "mean 123.675,116.28,103.53, std 58.395,57.12,57.375 are not of pixels of 0 to 1\\n"
        "if they are of 0 to 255: mean 0.485,0.456,0.406 and std 0.229,0.224,0.225\\n"
    )
    with pytest.raises(UsageError, match=said):
        images.preprocess(noise(8, 8), wrong)
    with pytest.raises(UsageError, match=r"mean 0\.485,0\.456,0\.406 and std 0\.229,0.224,0.225"):
        images.batches(images.GivenImages([]), replace(PREPROCESSING, mean=wrong.mean), 1)


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), None),
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), None),
        ((0.48, 0.45, 0.4), (0.05, 0.05, 0.05), None),
        ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255), None),
        ((0.4, 0.46, 0.5), (0.22, 0.22, 0.22), None),
        ((0.485, 0.456, 0.406), (0.017, 0.017, 0.017), "-28.5 to 34.9, a range that no training"),
        ((-1.2, 0.0, 0.0), (1.0, 1.0, 1.0), "becomes 0 to 2.2, a range that no training"),
        ((0.0, 0.0, 0.0), (1.4, 1.4, 1.4), "becomes 0 to 0.714, a range that no training"),
        ((0.0, 0.0, 0.0), (0.001, 0.001, 0.001), "0 to 1e\\+03, a range that no training"),
        ((0.406, 0.456, 0.485), (0.225, 0.224, 0.229), "red, 0.406, is ImageNet's of blue"),
    ],
)
def test_what_no_training_does_is_a_doubt(
    mean: tuple[float, float, float], std: tuple[float, float, float], said: str | None
) -> None:
    found = images.doubts(replace(PREPROCESSING, mean=mean, std=std))
    if said is None:
        assert found == []
    else:
        (doubt,) = found
        assert re.search(said, doubt)


@pytest.mark.parametrize(
    ("mean", "std", "ends"),
    [
        (1, 1, "-1 to 0"),
        (1, 0.25, "-4 to 0"),
        (0, 0.25, "0 to 4"),
        (0, 0.5, "0 to 2"),
        (0, -1, "-1 to 0"),
        (1, -0.25, "0 to 4"),
        (1.2, 0.5, "-2.4 to -0.4"),
        (0.5, 0.5, None),
        (0.5, 1, None),
        (0.13, 0.31, None),
        (0.9, 0.25, None),
        (0, 1, None),
        (1, -1, None),
        (0, 1 / 255, None),
        (0.45, 1 / 255, None),
        (0.5, 0.05, None),
    ],
)
def test_ends_that_no_training_has(mean: float, std: float, ends: str | None) -> None:
    """The ends are those of a white and a black image, as numpy makes them."""
    steps = replace(PREPROCESSING, mean=(mean,) * 3, std=(std,) * 3)
    pixels = (np.array([0.0, 1.0]) - mean) / std + 0.0
    found = images.doubts(steps)
    if ends is None:
        assert found == []
    else:
        assert ends == f"{pixels.min():.3g} to {pixels.max():.3g}"
        assert f"black to white becomes {ends}, a range that no training" in found[0]


def test_a_mean_of_rgb_for_a_network_of_bgr_is_a_doubt() -> None:
    (doubt,) = images.doubts(replace(PREPROCESSING, channel_order="bgr"))
    assert "the mean of blue, 0.485, is ImageNet's of red: with --channel-order bgr" in doubt


@pytest.mark.parametrize(
    ("resize", "crop", "said"),
    [
        (200, (224, 224), "scaled to 200 pixels (the shorter side) and cut to 224 x 224"),
        ((224, 200), (224, 224), "scaled to 224 x 200 and cut to 224 x 224"),
        (28, (32, 48), "scaled to 28 pixels (the shorter side) and cut to 32 x 48"),
        (224, (224, 224), None),
        (32, (32, 48), None),
        ((224, 224), (224, 224), None),
        (None, (224, 224), None),
    ],
)
def test_images_that_are_scaled_below_the_crop(
    resize: int | tuple[int, int] | None, crop: tuple[int, int], said: str | None
) -> None:
    steps = replace(PREPROCESSING, resize=resize, crop=crop)
    found = [each for each in images.doubts(steps) if "black" in each]
    assert len(found) == (said is not None)
    if said is not None:
        assert said in found[0]
        white = Image.new("RGB", (600, 500), "white")
        pixels = images.preprocess(white, replace(steps, mean=(0, 0, 0), std=(1, 1, 1)))
        assert pixels.min() == 0  # the edge is black indeed
