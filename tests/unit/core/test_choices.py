"""What users say of a model's preprocessing."""

from __future__ import annotations

import re
from typing import Any

import pytest

from deploykit.core.choices import PreprocessingChoices
from deploykit.core.deployed import DeployedForm
from deploykit.core.errors import UnknownNameError, UsageError
from deploykit.core.specs import PixelInput, Preprocessing

KNOWN = Preprocessing(crop=(224, 224), resize=232, interpolation="bicubic")


def test_what_is_chosen_replaces_what_is_known() -> None:
    chosen = PreprocessingChoices(resize=(224, 224), std=(1.0, 1.0, 1.0)).applied_to(KNOWN)
    assert chosen.resize == (224, 224)
    assert chosen.std == (1.0, 1.0, 1.0)
    assert (chosen.interpolation, chosen.mean) == (KNOWN.interpolation, KNOWN.mean)


def test_nothing_chosen_changes_nothing() -> None:
    assert PreprocessingChoices().applied_to(KNOWN) == KNOWN


def test_what_nobody_said_is_named_with_its_option() -> None:
    (note,) = PreprocessingChoices(mean=(0, 0, 0), std=(1, 1, 1)).assumptions(KNOWN)
    assert note == (
        "preprocessing is assumed: resize 232, interpolation bicubic, channel order rgb; as in "
        "training? --resize --interpolation --channel-order"
    )


@pytest.mark.parametrize(
    ("mean", "std", "of_unit"),
    [
        # mmpretrain's ImageNet, TensorFlow's -1 to 1, Caffe's mean alone, a division alone.
        (
            (123.675, 116.28, 103.53),
            (58.395, 57.12, 57.375),
            ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ),
        ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5), ((0.5,) * 3, (0.5,) * 3)),
        (
            (104, 117, 123),
            (1, 1, 1),
            ((104 / 255, 117 / 255, 123 / 255), (1 / 255, 1 / 255, 1 / 255)),
        ),
        ((0, 0, 0), (255, 255, 255), ((0, 0, 0), (1, 1, 1))),
        ((0, 0, 200), (60, 1, 60), ((0, 0, 200 / 255), (60 / 255, 1 / 255, 60 / 255))),
    ],
)
def test_numbers_of_0_to_255_are_converted_and_said(
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    of_unit: tuple[tuple[float, float, float], tuple[float, float, float]],
) -> None:
    choices = PreprocessingChoices(mean=mean, std=std)
    applied = choices.applied_to(KNOWN)
    assert applied.mean == pytest.approx(of_unit[0], rel=1e-9)
    assert applied.std == pytest.approx(of_unit[1], rel=1e-9)
    (note,) = choices.conversions()
    assert note.startswith(f"mean {mean[0]:g},{mean[1]:g},{mean[2]:g} and std ")
    assert "are of pixels of 0 to 255: taken as" in note


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0, 0, 0), (1, 1, 1)), ((0.485, 0.456, 0.406), None), (None, (0.5, 0.5, 0.5)), (None, None)],
)
def test_numbers_of_0_to_1_stay(mean: object, std: object) -> None:
    choices = PreprocessingChoices(mean=mean, std=std)  # type: ignore[arg-type]
    assert choices.conversions() == []
    assert choices.applied_to(KNOWN).mean == (mean or KNOWN.mean)
    assert choices.applied_to(KNOWN).std == (std or KNOWN.std)


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        (
            (123.675, 116.28, 103.53),
            None,
            "and no std is given\\ngive --std too, .* it is --mean 0.485,0.456,0.406",
        ),
        (None, (51, 51, 51), "no mean is given\\ngive --mean too, .* it is --std 0.2,0.2,0.2"),
        (
            (123.675, 116.28, 103.53),
            (0.229, 0.224, 0.225),
            "one is of pixels of 0 to 255, .* --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225",
        ),
        ((0.5, 0.5, 0.5), (127.5,) * 3, "they are --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5"),
        (
            (3e4, 3e4, 3e4),
            (1e4, 1e4, 1e4),
            "too large even for 0 to 255",
        ),
    ],
)
def test_numbers_of_two_scales_are_refused_with_the_converted_ones(
    mean: tuple[float, float, float] | None, std: tuple[float, float, float] | None, said: str
) -> None:
    with pytest.raises(UsageError, match=re.compile(said, re.DOTALL)):
        PreprocessingChoices(mean=mean, std=std)


def test_an_unknown_channel_order_suggests_the_right_one() -> None:
    with pytest.raises(UnknownNameError, match="unknown channel order 'brg'"):
        PreprocessingChoices(channel_order="brg")


def test_known_numbers_follow_their_colours_and_chosen_ones_their_channels() -> None:
    of_bgr = PreprocessingChoices(channel_order="bgr")
    turned = of_bgr.applied_to(KNOWN)
    assert (turned.mean, turned.std) == (KNOWN.mean[::-1], KNOWN.std[::-1])
    assert of_bgr.applied_to(turned) == turned
    chosen = PreprocessingChoices(mean=(0.1, 0.2, 0.3), channel_order="bgr").applied_to(KNOWN)
    assert (chosen.mean, chosen.std) == ((0.1, 0.2, 0.3), KNOWN.std[::-1])
    assert PreprocessingChoices(channel_order="rgb").applied_to(turned) == KNOWN


GREY = Preprocessing.assumed((32, 100), 1)


def test_grey_is_assumed_to_be_scaled_whole_to_between_minus_one_and_one() -> None:
    assert (GREY.resize, GREY.mean, GREY.std) == ((32, 100), (0.5,), (0.5,))
    (note,) = PreprocessingChoices().assumptions(GREY)
    assert note == (
        "preprocessing is assumed: resize 32x100, interpolation bilinear, mean 0.5, std 0.5; as "
        "in training? --resize --interpolation --mean --std"
    )
    assert Preprocessing.assumed((224, 224), 3) == Preprocessing((224, 224), 256)


def test_one_number_is_that_of_every_channel() -> None:
    one = PreprocessingChoices(mean=(0.1307,), std=(0.3081,))
    assert one.applied_to(KNOWN).mean == (0.1307,) * 3
    assert one.applied_to(GREY).std == (0.3081,)
    bytes_ = PreprocessingChoices(mean=(127.5,), std=(255.0,), channel_order="grey")
    assert (bytes_.applied_to(GREY).mean, bytes_.applied_to(GREY).std) == ((0.5,), (1.0,))
    assert bytes_.conversions() == [
        "mean 127.5 and std 255 are of pixels of 0 to 255: taken as 0.5 and 1 of pixels of 0 to 1"
    ]


@pytest.mark.parametrize(
    ("choices", "known", "said"),
    [
        ({"channel_order": "rgb"}, GREY, "takes images of 1 channel, grey\\npossible: grey; left"),
        (
            {"channel_order": "grey"},
            KNOWN,
            "of 3 channels, in colours\\npossible: rgb or bgr; left",
        ),
        ({"mean": (0.1, 0.2, 0.3)}, GREY, "--mean 0.1,0.2,0.3 is of 3 channels.*grey\\ngive one"),
        ({"std": (0.1, 0.2, 0.3)}, GREY, "--std 0.1,0.2,0.3 is of 3.*\\n.*as --std 0.3081"),
    ],
)
def test_choices_for_another_number_of_channels_are_refused(
    choices: dict[str, Any], known: Preprocessing, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        PreprocessingChoices(**choices).applied_to(known)


@pytest.mark.parametrize(
    ("order", "known", "said"),
    [
        ("rgb", GREY, "--input-order rgb, and the network takes images in grey\\npossible: grey;"),
        ("grey", KNOWN, "--input-order grey, .* in rgb\\npossible: rgb or bgr; left out it is rgb"),
    ],
)
def test_bytes_of_another_number_of_channels_are_refused(
    order: str, known: Preprocessing, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        DeployedForm.of("uint8", order=order).pixels_for(known)


def test_bytes_of_a_grey_network_are_grey() -> None:
    found = DeployedForm.of("uint8").pixels_for(GREY)
    assert found == PixelInput("nhwc", "grey", outside=("decode", "grey", "resize", "crop"))
    assert DeployedForm.of("uint8", order="bgr").pixels_for(KNOWN) == PixelInput("nhwc", "bgr")
    assert DeployedForm.of().pixels_for(GREY) is None
