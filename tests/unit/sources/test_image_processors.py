"""What is written down of image processors, against the processors themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.core.errors import UsageError
from deploykit.images import preprocess, sample_images
from deploykit.sources.hugging_face import prepared_as, read_processor
from deploykit.sources.hugging_face_networks import quietly

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from deploykit.core.specs import Preprocessing

SIZES = ((150, 97), (97, 150), (120, 120), (64, 32))
"""Width and height of the photographs here: wide, tall, square, and smaller than the input.

None leaves three pixels over, or seven, ... when the centre is cut: see the test for those.
"""


def photographs() -> list[Image]:
    """Parts of the photographs that come with deploykit, quick to prepare."""
    samples = sample_images()
    return [
        samples.load(index).crop((40, 60, 40 + width, 60 + height))
        for index, (width, height) in enumerate(SIZES)
    ]


def processor_of(kind: str, **values: Any) -> Any:
    """As `AutoImageProcessor` makes it for Pillow from a file with ``values``."""
    import transformers

    with quietly():
        return getattr(transformers, f"{kind}ImageProcessorPil")(**values)


def prepared(kind: str, **values: Any) -> Preprocessing:
    return prepared_as(processor_of(kind, **values), "file")


def theirs(processor: Any, image: Image) -> NDArray[np.float32]:
    with quietly():
        pixels = processor(image, return_tensors="np")["pixel_values"]
    return np.asarray(pixels[0], np.float32)


SIDE_48 = {"size": {"height": 48, "width": 48}}
CUT_48 = {"size": {"shortest_edge": 56}, "crop_size": {"height": 48, "width": 48}}

CASES: list[tuple[str, dict[str, Any]]] = [
    ("ViT", {}),
    ("ViT", SIDE_48),
    ("ViT", {"size": 40, "resample": 0}),
    ("ViT", {"size": {"height": 32, "width": 48}, "resample": 3}),
    ("ViT", {**SIDE_48, "resample": 1}),
    ("ViT", {**SIDE_48, "do_normalize": False}),
    ("ViT", {**SIDE_48, "do_rescale": False, "image_mean": [120.0, 99, 3], "image_std": 60.0}),
    ("ViT", {**SIDE_48, "do_rescale": False, "do_normalize": False}),
    ("ViT", {**SIDE_48, "rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 0.5}),
    ("ViT", {"do_resize": False, "do_center_crop": True, "crop_size": 40}),
    ("DeiT", {"size": {"height": 64, "width": 64}, "crop_size": {"height": 56, "width": 56}}),
    ("Beit", {**SIDE_48, "do_reduce_labels": True}),
    ("Bit", CUT_48),
    ("CLIP", {"size": 48, "crop_size": 48}),
    ("Siglip", SIDE_48),
    ("Pvt", SIDE_48),
    ("Segformer", {"size": {"height": 64, "width": 64}}),
    ("MobileNetV1", CUT_48),
    ("MobileNetV2", CUT_48),
    ("ConvNext", {"size": {"shortest_edge": 56}}),
    ("ConvNext", {"size": {"shortest_edge": 48}, "crop_pct": 0.95}),
    ("ConvNext", {"size": {"shortest_edge": 384}}),
    ("Levit", {"size": {"shortest_edge": 56}, "crop_size": 56}),
    ("PoolFormer", {"size": {"shortest_edge": 48}, "crop_size": 48}),
    ("PoolFormer", {"size": {"height": 48, "width": 48}, "crop_size": 48, "crop_pct": 0.8}),
    ("PoolFormer", {"size": {"height": 32, "width": 48}, "crop_size": {"height": 33, "width": 48}}),
    ("EfficientNet", SIDE_48),
    ("EfficientNet", {**SIDE_48, "include_top": False}),
    ("EfficientNet", {**SIDE_48, "rescale_factor": 1 / 127.5, "rescale_offset": True}),
    ("MobileViT", CUT_48),
    ("MobileViT", {**CUT_48, "do_flip_channel_order": False}),
]


@pytest.mark.parametrize(("kind", "values"), CASES)
def test_prepares_as_the_processor_does(kind: str, values: dict[str, Any]) -> None:
    processor = processor_of(kind, **values)
    known = prepared_as(processor, "file")
    for image in photographs():
        expected = theirs(processor, image)
        found = preprocess(image, known)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5)


def test_the_centre_may_lie_one_pixel_further() -> None:
    """Of three pixels too many, torchvision cuts two in front, transformers one."""
    processor = processor_of("Bit", do_resize=False, crop_size={"height": 48, "width": 61})
    known = prepared_as(processor, "file")
    image = photographs()[3]
    np.testing.assert_allclose(
        preprocess(image.resize((64, 48)), known)[:, :, :-1],
        theirs(processor, image.resize((64, 48)))[:, :, 1:],
        rtol=1e-5,
        atol=2e-5,
    )


@pytest.mark.parametrize("kind", ["ConvNext", "ViT"])
def test_the_other_back_end_says_the_same(kind: str) -> None:
    import transformers

    with quietly():
        other = getattr(transformers, f"{kind}ImageProcessor")()
    assert prepared_as(other, "file") == prepared(kind)


@pytest.mark.parametrize(
    ("given", "model_type", "kind"),
    [
        ({"image_processor_type": "BitImageProcessorFast"}, "vit", "Bit"),
        ({"image_processor_type": "DeiTFeatureExtractor"}, "vit", "DeiT"),
        ({"feature_extractor_type": "BeitFeatureExtractor"}, "vit", "Beit"),
        ({}, "resnet", "ConvNext"),
    ],
)
def test_every_releases_names_are_understood(
    given: dict[str, str], model_type: str, kind: str
) -> None:
    assert read_processor(given, model_type, "file") == prepared(kind)


def test_a_file_that_names_no_processor_needs_a_known_network() -> None:
    with pytest.raises(UsageError, match=r"^file: no image_processor_type prepares images in its"):
        read_processor({}, "hgnet_v2", "file")


def test_an_unknown_processor_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        read_processor({"image_processor_type": "TextNetImageProcessor"}, "textnet", "file")
    assert str(caught.value) == (
        "file: TextNetImageProcessor prepares images in its own way\n"
        "deploykit scales, cuts the centre and normalises, with a fixed size at the end\n"
        "take the file away and say it yourself: --resize --interpolation --mean --std"
    )


@pytest.mark.parametrize(
    ("kind", "values", "reason"),
    [
        ("ViT", {"do_pad": True}, "do_pad fills images up"),
        ("ViT", {"size": {"shortest_edge": 48}}, r"neither scales to a height and width nor cuts"),
        ("ViT", {"do_resize": False}, r"neither scales to a height and width nor cuts"),
        (
            "Bit",
            {"size": {"shortest_edge": 48, "longest_edge": 96}},
            r"size \{'longest_edge': 96, 'shortest_edge': 48\} limits the longer side",
        ),
        ("Bit", {"size": {"max_height": 48, "max_width": 96}}, "limits the longer side"),
        ("ConvNext", {"size": {"height": 48, "width": 48}}, "says no side"),
        ("ViT", {"resample": 4}, "resample 4 is none of {0: 'nearest'"),
        ("ViT", {"image_mean": [0.5]}, r"image_mean \[0.5\] is not for red, green and blue"),
        ("ViT", {"image_std": [0.0, 1, 1]}, r"rescale_factor 0.0039\d+ with image_std \(0.0, 1"),
        ("ViT", {"rescale_factor": 0.0}, "rescale_factor 0.0 with image_std .* leaves no image"),
    ],
)
def test_what_cannot_be_said_is_refused(kind: str, values: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=f"file: .*{reason}"):
        prepared(kind, **values)


@pytest.mark.parametrize(
    ("kind", "values", "converted"),
    [
        ("CLIP", {"image_mean": [123.675, 116.28, 103.53], "image_std": [58.395, 57.12, 57.375]},
         "0.485,0.456,0.406 and 0.229,0.224,0.225 in that file, or do_rescale false"),
        ("Bit", {"image_mean": 127.5, "image_std": 127.5}, "0.5,0.5,0.5 and 0.5,0.5,0.5"),
        ("ConvNext", {"image_mean": [0, 0, 0], "image_std": [255, 255, 255]}, "0,0,0 and 1,1,1"),
    ],
)  # fmt: skip
def test_a_mean_of_0_to_255_behind_a_rescaling_is_refused(
    kind: str, values: dict[str, Any], converted: str
) -> None:
    processor = processor_of(kind, **{**CUT_48, **values})
    with pytest.raises(UsageError, match=r"file: image_mean .* do not fit pixels that") as caught:
        prepared_as(processor, "file")
    assert f"if they are of pixels of 0 to 255: {converted}" in str(caught.value)


def test_channels_that_change_places_after_they_are_normalised() -> None:
    """No processor of transformers does both today; the numbers are of the colours all the same."""
    processor = processor_of("Bit", **CUT_48, do_normalize=True)
    processor.do_flip_channel_order = True
    known, plain = prepared_as(processor, "file"), prepared("Bit")
    assert known.channel_order == "bgr"
    image = photographs()[0]
    flipped = theirs(processor_of("Bit", **CUT_48, do_normalize=True), image)[::-1]
    np.testing.assert_allclose(preprocess(image, known), flipped, rtol=1e-5, atol=2e-5)
    assert plain.channel_order == "rgb"
