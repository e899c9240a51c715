from __future__ import annotations

import json

import pytest

from deploykit.core.errors import DataError, UsageError
from deploykit.core.serialization import Source, from_plain, profile_to_plain
from deploykit.core.sizes import (
    ShapeProfile,
    SizeRange,
    are_channels_last,
    are_images,
    filled,
    image_among,
    shape_text,
)
from deploykit.core.specs import TensorSpec

HEIGHT = SizeRange(160, 224, 320)

SOURCE = Source("profile")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("160,224,320", (160, 224, 320)), ("8", (8, 8, 8)), (" 1, 1 ,2", (1, 1, 2))],
)
def test_a_range_is_read_from_text(text: str, expected: tuple[int, int, int]) -> None:
    sizes = SizeRange.parse(text, "--height")
    assert (sizes.min, sizes.opt, sizes.max) == expected
    assert SizeRange.parse(str(sizes), "--height") == sizes
    assert sizes.is_fixed == (sizes.min == sizes.max)


@pytest.mark.parametrize("text", ["", "a", "1,2", "1,2,3,4", "1,,3", "1.5", "224x224"])
def test_text_that_is_no_range(text: str) -> None:
    with pytest.raises(
        UsageError, match=r"cannot read --width .*\nexpected MIN,OPT,MAX .* --width 160,224,320"
    ):
        SizeRange.parse(text, "--width")


@pytest.mark.parametrize("text", ["0", "-1", "320,224,160", "160,224,200", "0,1,2"])
def test_a_range_out_of_order(text: str) -> None:
    with pytest.raises(UsageError, match="are not in order\nexpected 1 <= MIN <= OPT <= MAX"):
        SizeRange.parse(text, "--width")


def test_what_a_range_contains() -> None:
    assert [size in HEIGHT for size in (159, 160, 224, 320, 321)] == [
        False,
        True,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    "profile",
    [
        ShapeProfile(1, 8, 32),
        ShapeProfile(1, 8, 32, height=HEIGHT),
        ShapeProfile(1, 8, 32, HEIGHT, SizeRange(64, 64, 64)),
        ShapeProfile.of([ShapeProfile(8, 8, 8), ShapeProfile(1, 1, 1)]),
        ShapeProfile.of(
            [ShapeProfile(1, 1, 1, HEIGHT), ShapeProfile(2, 4, 8, SizeRange(512, 512, 512))]
        ),
    ],
)
def test_a_profile_survives_json(profile: ShapeProfile) -> None:
    assert (
        from_plain(ShapeProfile, json.loads(json.dumps(profile_to_plain(profile))), SOURCE)
        == profile
    )


def test_a_profile_of_a_fixed_image_is_written_and_read_as_ever() -> None:
    old = {"min_batch": 1, "opt_batch": 8, "max_batch": 32}
    assert profile_to_plain(ShapeProfile(1, 8, 32)) == old
    assert from_plain(ShapeProfile, old, SOURCE) == ShapeProfile(1, 8, 32)


def test_a_profile_by_axis() -> None:
    profile = ShapeProfile(1, 8, 32, HEIGHT, SizeRange(64, 96, 128))
    assert profile.smallest == {0: 1, 2: 160, 3: 64}
    assert profile.preferred == {0: 8, 2: 224, 3: 96}
    assert profile.largest == {0: 32, 2: 320, 3: 128}
    assert ShapeProfile(1, 8, 32).ranges == {0: SizeRange(1, 8, 32)}


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (("N", 3, "h", "w"), (4, 3, 6, 7)),
        ((-1, 3, 8, -1), (4, 3, 8, 7)),
        ((2, 3), (2, 3)),
        ((), ()),
        (("N", "channels", 1, 1), None),
    ],
)
def test_open_dimensions_are_filled(
    shape: tuple[int | str, ...], expected: tuple[int, ...] | None
) -> None:
    assert filled(shape, {0: 4, 2: 6, 3: 7}) == expected


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (("N", 3, 224, 224), "(N, 3, 224, 224)"),
        ((None, 3, "x_2", 8), "(?, 3, ?, 8)"),
        (("x_0",), "(?,)"),
        ((), "()"),
    ],
)
def test_a_shape_in_a_message(shape: tuple[int | str | None, ...], said: str) -> None:
    if None not in shape:
        assert TensorSpec("x", "float32", shape).shape_text == said  # type: ignore[arg-type]
    assert shape_text("?" if dim in ("x_0", "x_2") else dim for dim in shape) == said


# Several profiles


ONE, SOME, MANY = ShapeProfile(1, 1, 1), ShapeProfile(1, 8, 16), ShapeProfile(8, 32, 64)


def test_several_profiles_are_enclosed_by_what_an_older_reader_sees() -> None:
    found = ShapeProfile.of([SOME, ONE, MANY])
    assert found.profiles == found.parts == (SOME, ONE, MANY)
    assert (found.min_batch, found.opt_batch, found.max_batch) == (1, 8, 64)
    plain = profile_to_plain(found)
    parts = plain.pop("parts")
    assert plain == {"min_batch": 1, "opt_batch": 8, "max_batch": 64}
    assert parts[2] == {"min_batch": 8, "opt_batch": 32, "max_batch": 64}
    assert str(found) == "batch 1,8,16; batch 1; batch 8,32,64"


@pytest.mark.parametrize("profiles", [[ONE], [ONE, ONE], [SOME, SOME, SOME]])
def test_the_same_profile_counts_once(profiles: list[ShapeProfile]) -> None:
    assert ShapeProfile.of(profiles) == profiles[0]
    assert profiles[0].profiles == (profiles[0],)
    assert ShapeProfile.of([ShapeProfile.of([*profiles, MANY]), *profiles]).parts == (
        profiles[0],
        MANY,
    )


@pytest.mark.parametrize(
    ("profiles", "batch", "place"),
    [
        ([SOME, ONE, MANY], 1, 1),
        ([SOME, ONE, MANY], 2, 0),
        ([SOME, ONE, MANY], 12, 0),
        ([SOME, ONE, MANY], 17, 2),
        ([ONE, MANY], 4, None),
        ([ONE, MANY], 65, None),
        # The same range: the one that is tuned for the nearer.
        ([ShapeProfile(1, 1, 32), ShapeProfile(1, 32, 32)], 2, 0),
        ([ShapeProfile(1, 1, 32), ShapeProfile(1, 32, 32)], 16, 1),
        ([ShapeProfile(1, 1, 32), ShapeProfile(1, 32, 32)], 5, 0),
        ([ShapeProfile(1, 1, 32), ShapeProfile(1, 32, 32)], 6, 1),
        ([SOME], 16, 0),
        ([SOME], 17, None),
    ],
)
def test_the_narrowest_profile_of_a_batch(
    profiles: list[ShapeProfile], batch: int, place: int | None
) -> None:
    whole = ShapeProfile.of(profiles)
    assert whole.narrowest({0: batch}) == place
    assert whole.takes({0: batch}) is (place is not None)


SMALL, LARGE = SizeRange(160, 224, 256), SizeRange(256, 512, 640)


@pytest.mark.parametrize(
    ("sizes", "place"),
    [
        ({0: 1, 2: 512, 3: 300}, 1),
        ({0: 8, 2: 224, 3: 160}, 0),
        ({0: 1, 2: 256, 3: 256}, 0),
        ({0: 8, 2: 256, 3: 256}, 0),
        ({0: 8, 2: 512, 3: 512}, None),
        ({0: 1, 2: 224, 3: 512}, None),
        ({2: 512}, 1),
    ],
)
def test_batches_and_sizes_belong_together(sizes: dict[int, int], place: int | None) -> None:
    whole = ShapeProfile.of(
        [ShapeProfile(1, 4, 8, SMALL, SMALL), ShapeProfile(1, 1, 1, LARGE, LARGE)]
    )
    assert whole.largest == {0: 8, 2: 640, 3: 640}
    assert whole.height == SizeRange(160, 224, 640)
    # Both take one image of 256 x 256: 8 * 97 * 97 shapes of the first, 385 * 385 of the second.
    assert whole.narrowest(sizes) == place


def test_profiles_that_do_not_go_together() -> None:
    with pytest.raises(UsageError, match="1 of 2 profiles say the height\nsay it for each, or fo"):
        ShapeProfile.of([ONE, ShapeProfile(2, 2, 2, HEIGHT)])
    with pytest.raises(UsageError, match="needs at least one profile"):
        ShapeProfile.of([])


@pytest.mark.parametrize(
    "plain",
    [
        {"min_batch": 1, "opt_batch": 1, "max_batch": 4, "parts": [{"max_batch": 8}]},
        {
            "min_batch": 1,
            "opt_batch": 8,
            "max_batch": 32,
            "parts": [{"parts": [{"max_batch": 32}]}],
        },
    ],
)
def test_a_record_whose_parts_are_not_its_own(plain: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"profile batch .* does not enclose its parts batch 1,8"):
        from_plain(ShapeProfile, plain, SOURCE)
    with pytest.raises(DataError, match=r"got `str` - at `\$.parts\[0\].min_batch"):
        from_plain(ShapeProfile, {"parts": [{"min_batch": "x"}]}, SOURCE)


@pytest.mark.parametrize(
    ("shape", "is_first", "is_last"),
    [
        (("n", 1, 28, 28), True, False),
        (("n", 28, 28, 1), False, True),
        (("n", 1, "h", "w"), True, False),
        (("n", 1, 100, 3), False, True),  # images in colours of one row, as before there was grey
        (("n", 3, 100, 1), True, False),
        (("n", 1, 1, 512), False, False),  # a mask of tokens
        (("n", 512, 1, 1), False, False),
        (("n", 2, 28, 28), False, False),
        (("n", 1, 28), False, False),
    ],
)
def test_shapes_of_images(shape: tuple[int | str, ...], is_first: bool, is_last: bool) -> None:
    assert (are_images(shape), are_channels_last(shape)) == (is_first, is_last)


def test_colours_are_taken_before_grey_and_channels_first_before_last() -> None:
    shapes = {"a": ("n", 8, 8, 1), "b": ("n", 1, 8, 8), "c": ("n", 8, 8, 3), "d": ("n", 3, 8, 8)}
    while shapes:
        last = list(shapes)[-1]
        assert image_among(shapes) == last
        del shapes[last]
    assert image_among({}) is None


def test_a_mask_beside_others_is_no_grey_image() -> None:
    mask, image = ("n", 1, 8, 8), ("n", 8, 8, 1)
    assert image_among({"pixel_mask": mask, "x": image}) == "x"
    assert image_among({"pixel_mask": mask, "ids": ("n", 8)}) is None
    assert image_among({"Mask": mask}) == "Mask"  # a network that takes masks alone
    assert image_among({"mask": ("n", 3, 8, 8), "ids": ("n", 8)}) == "mask"
