"""Options of an engine's profiles: one for each place, and what is given once for all of them."""

from __future__ import annotations

import pytest

from deploykit.cli._options import _read_profiles
from deploykit.core.errors import UsageError
from deploykit.core.sizes import ShapeProfile, SizeRange

SMALL, LARGE = SizeRange(160, 224, 320), SizeRange(512, 512, 512)


@pytest.mark.parametrize(
    ("batch", "height", "width", "expected"),
    [
        ((), (), (), [ShapeProfile(1, 8, 32)]),
        (("4",), (), (), [ShapeProfile(4, 4, 4)]),
        (("1", "8,16,32"), (), (), [ShapeProfile(1, 1, 1), ShapeProfile(8, 16, 32)]),
        (("1", "1"), (), (), [ShapeProfile(1, 1, 1)]),
        (
            ("1", "8"),
            ("160,224,320",),
            (),
            [ShapeProfile(1, 1, 1, SMALL), ShapeProfile(8, 8, 8, SMALL)],
        ),
        (
            ("1", "8"),
            ("512", "160,224,320"),
            ("512", "160,224,320"),
            [ShapeProfile(1, 1, 1, LARGE, LARGE), ShapeProfile(8, 8, 8, SMALL, SMALL)],
        ),
        (
            (),
            ("160,224,320", "512"),
            ("512",),
            [ShapeProfile(1, 8, 32, SMALL, LARGE), ShapeProfile(1, 8, 32, LARGE, LARGE)],
        ),
    ],
)
def test_a_profile_for_each_place(
    batch: tuple[str, ...],
    height: tuple[str, ...],
    width: tuple[str, ...],
    expected: list[ShapeProfile],
) -> None:
    assert _read_profiles(batch, height, width) == ShapeProfile.of(expected)


@pytest.mark.parametrize(
    ("batch", "height", "said"),
    [
        (
            ("1", "2", "3"),
            ("8", "16"),
            "--height is given 2 times, and another of .* 3\n.*as often",
        ),
        (("1", "2"), ("8", "16", "24"), "--batch is given 2 times, and another of .* 3"),
        (("1", "8:32"), (), "cannot read the batch profile '8:32'\nexpected MIN,OPT,MAX or one"),
        (("1", "8,4,2"), (), "batch profile 8,4,2 is not in order"),
        (("0", "8"), (), "batch profile 0,0,0 is not in order"),
        (("",), (), "cannot read the batch profile ''"),
        ((), ("160", "x"), "cannot read --height 'x'"),
    ],
)
def test_places_that_do_not_go_together(
    batch: tuple[str, ...], height: tuple[str, ...], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        _read_profiles(batch, height, ())
