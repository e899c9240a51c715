from __future__ import annotations

import json

import pytest

from deploykit.core.errors import UsageError
from deploykit.core.serialization import Source, from_plain, profile_to_plain
from deploykit.core.sizes import ShapeProfile, SizeRange, filled, shape_text
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
