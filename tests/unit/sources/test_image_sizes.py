from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit import graph
from deploykit.bundle.manifest import Bundle
from deploykit.core.choices import DefinitionChoices
from deploykit.core.errors import UsageError
from deploykit.core.sizes import ShapeProfile, SizeRange
from deploykit.core.specs import Preprocessing, TensorSpec
from deploykit.exporting.engines import profile_of_bundle
from deploykit.graph.shapes import fix_image_size
from deploykit.sources.image_sizes import (
    note_of_sizes,
    other_sizes,
    preferred_size,
    recorded_sizes,
    require_known_sizes,
    sample_other_sizes,
)
from deploykit.verbs.inspect import inspect
from tests.bundles import write_bundle, write_classifier

if TYPE_CHECKING:
    from pathlib import Path

HEIGHT, WIDTH = SizeRange(24, 32, 48), SizeRange(16, 32, 40)
PROFILE = ShapeProfile(1, 2, 4, HEIGHT, WIDTH)


def image(*size: int | str) -> TensorSpec:
    return TensorSpec("input", "float32", ("N", 3, *size))


OPEN, FIXED, SQUARE = image("h", "w"), image(8, 8), image("size", "size")


def test_the_size_that_images_are_prepared_for() -> None:
    assert preferred_size("m", OPEN, PROFILE) == (32, 32)
    assert preferred_size("m", image("h", 20), replace(PROFILE, width=None)) == (32, 20)
    assert preferred_size("m", FIXED) == preferred_size("m", FIXED, ShapeProfile()) == (8, 8)


def test_an_open_size_that_nobody_gives() -> None:
    with pytest.raises(UsageError, match="m takes images whose height and width may be anything"):
        preferred_size("m", OPEN, ShapeProfile())
    for use in (preferred_size, require_known_sizes):
        with pytest.raises(UsageError, match="nothing here says their height and width\nexport it"):
            use("m", OPEN)
    require_known_sizes("m", TensorSpec("tokens", "int64", ("N", "length")))


def test_a_size_for_what_is_fixed() -> None:
    with pytest.raises(UsageError, match="--height 24,32,48 for m: its height is fixed to 8"):
        preferred_size("m", FIXED, PROFILE)


def test_other_sizes_are_the_corners() -> None:
    assert other_sizes(OPEN, PROFILE) == ((24, 16), (48, 40), (24, 40), (48, 16))
    assert other_sizes(image("h", 20), PROFILE) == ((24, 20), (48, 20))
    one = SizeRange(32, 32, 32)
    assert other_sizes(OPEN, replace(PROFILE, height=one, width=one)) == ()
    assert other_sizes(FIXED, ShapeProfile()) == ()


def test_height_and_width_of_one_name_are_squares() -> None:
    same = replace(PROFILE, width=HEIGHT)
    assert preferred_size("m", SQUARE, same) == (32, 32)
    assert other_sizes(SQUARE, same) == ((24, 24), (48, 48))
    with pytest.raises(UsageError, match=r"m calls .* 'size': it takes squares only\n.* differ"):
        preferred_size("m", SQUARE, PROFILE)


def test_samples_of_other_sizes_are_whole_photographs() -> None:
    preprocessing = Preprocessing((32, 32), resize=37)
    tall, wide = sample_other_sizes(((48, 16), (16, 40)), preprocessing, None, 2)
    assert tall.shape == (2, 3, 48, 16)
    assert wide.shape == (2, 3, 16, 40)
    assert all(np.ptp(batch) > 1 for batch in (tall, wide))


def test_what_the_manifest_and_the_user_are_told() -> None:
    assert recorded_sizes(OPEN, PROFILE) == {"height": [24, 32, 48], "width": [16, 32, 40]}
    assert recorded_sizes(FIXED, ShapeProfile()) == {}
    sizes = "32 x 32, 24 x 16, 48 x 40, 24 x 40, 48 x 16"
    said = f"open: height and width; compared with the original at {sizes}"
    assert note_of_sizes(OPEN, PROFILE) == [said]
    assert note_of_sizes(FIXED, ShapeProfile()) == []


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    model = {"name": "colours", "height": [6, 8, 12], "width": [8, 8, 16]}
    return Bundle.open(write_bundle(tmp_path / "open", image="h, w", model=model))


def test_a_build_takes_the_sizes_of_the_export(bundle: Bundle) -> None:
    exported = ShapeProfile(1, 2, 4, SizeRange(6, 8, 12), SizeRange(8, 8, 16))
    assert profile_of_bundle(bundle, ShapeProfile(1, 2, 4)) == exported
    other = replace(exported, width=SizeRange(4, 8, 8))
    assert profile_of_bundle(bundle, ShapeProfile(1, 2, 4, width=other.width)) == other


def test_each_profile_of_a_build_takes_the_sizes_of_the_export(bundle: Bundle) -> None:
    one, many = ShapeProfile(1, 1, 1), ShapeProfile(4, 8, 16)
    height, width = SizeRange(6, 8, 12), SizeRange(8, 8, 16)
    found = profile_of_bundle(bundle, ShapeProfile.of([one, many]))
    assert found.parts == tuple(replace(e, height=height, width=width) for e in (one, many))
    tall = replace(one, height=SizeRange(12, 12, 12), width=SizeRange(8, 8, 8))
    wide = replace(one, height=SizeRange(8, 8, 8), width=SizeRange(12, 12, 16))
    with pytest.raises(
        UsageError,
        match="no profile has the 8 x 8, to which colours-fp32 prepares images: batch 1,",
    ):
        profile_of_bundle(bundle, ShapeProfile.of([tall, wide]))


def test_the_preferred_sizes_of_further_profiles_are_compared_too() -> None:
    small = ShapeProfile(1, 1, 1, SizeRange(24, 28, 32), SizeRange(16, 20, 24))
    found = other_sizes(OPEN, ShapeProfile.of([PROFILE, small]))
    assert found == ((24, 16), (48, 40), (24, 40), (48, 16), (28, 20))


def test_a_build_needs_the_size_that_the_bundle_prepares(bundle: Bundle) -> None:
    asked = ShapeProfile(height=SizeRange(10, 12, 16))
    with pytest.raises(
        UsageError,
        match="--height 10,12,16 is without 8, to which colours-fp32 prepares images",
    ):
        profile_of_bundle(bundle, asked)


def test_a_build_of_fixed_images_takes_no_sizes(tmp_path: Path) -> None:
    fixed = Bundle.open(write_bundle(tmp_path / "fixed"))
    assert profile_of_bundle(fixed, ShapeProfile(1, 2, 4)) == ShapeProfile(1, 2, 4)
    with pytest.raises(UsageError, match="--width 8 for colours-fp32: its width is fixed to 8"):
        profile_of_bundle(fixed, ShapeProfile(width=SizeRange(8, 8, 8)))


def test_open_sizes_are_filled_for_counting(tmp_path: Path) -> None:
    model = graph.read_model(write_classifier(tmp_path / "open.onnx", "h, 8"))
    assert fix_image_size(model, (12, 99))
    assert str(model.graph.inputs[0].shape) == "[N,3,12,8]"
    assert not fix_image_size(model, (5, 5))


def test_inspect_shows_the_size_of_the_bundle_or_the_one_that_is_asked(bundle: Bundle) -> None:
    assert inspect(str(bundle.folder)).input_shape == (1, 3, 8, 8)
    assert inspect(str(bundle.folder), DefinitionChoices(image_size=9)).input_shape == (1, 3, 9, 9)
    path = str(bundle.model_path)
    assert inspect(path, DefinitionChoices(image_size=9)).input_shape == (1, 3, 9, 9)
    with pytest.raises(UsageError, match="give its height and width, for example --height 224"):
        inspect(path)


def test_inspect_of_a_fixed_size_cannot_be_asked_for_another(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "fixed")
    for target in (folder, folder / "model.onnx"):
        with pytest.raises(
            UsageError, match=r"brings its own weights, .* size\nleave .*: --input-size"
        ):
            inspect(str(target), DefinitionChoices(image_size=9))
