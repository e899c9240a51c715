"""What a budget is refused for before any work, and the images that judge."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.core.errors import DataError, UnknownNameError, UsageError
from deploykit.core.precision import Precision
from deploykit.images import GivenImages
from deploykit.precision.budget.request import (
    Budget,
    judges_of,
    parse_drop,
    require_budget,
    require_resolvable,
)
from deploykit.precision.calibration.data import CalibrationOptions, choose_images
from deploykit.precision.quantization.choice import Int8Choices
from deploykit.precision.quantization.request import QuantizationRequest

if TYPE_CHECKING:
    from pathlib import Path

INT8, FP8 = Precision.INT8, Precision.FP8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files with 400 and 150 images of 2x2 pixels."""
    for name, count in (("many", 400), ("few", 150)):
        pixels = np.random.default_rng(0).integers(0, 256, (count, 2, 2, 3), np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=pixels)
    return tmp_path


def calibration(path: Path | str, count: int = 100) -> CalibrationOptions:
    return CalibrationOptions(str(path), count)


def test_a_share_is_read_as_people_write_it() -> None:
    assert parse_drop("1%") == parse_drop("0.01") == parse_drop(" 1 % ") == 0.01


@pytest.mark.parametrize("text", ["1", "0", "0%", "100%", "-1%", "nan", "inf%", "a half", "", "%"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--max-drop is .*\nexpected a share above 0% and below"):
        parse_drop(text)


@pytest.mark.parametrize("drop", [0.0, 1.0, -0.1])
def test_no_budget_is_nothing_or_everything(drop: float) -> None:
    with pytest.raises(UsageError, match="cannot be promised\nexpected a share between 0 and 1"):
        Budget(drop)


def test_a_gpu_must_be_known_and_one() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown GPU 'H300 SXM'\ndid you mean: .*H200 SXM"):
        Budget(0.01, "H300 SXM")
    with pytest.raises(UsageError, match="'A100' may be several GPUs: A100 SXM 40GB, A100 PCIe"):
        Budget(0.01, "A100")
    assert Budget(0.01).peak.name == "A10"


@pytest.mark.parametrize(
    ("gpu", "targets", "expected"),
    [
        ("L4", (), (INT8, FP8)),
        ("NVIDIA H100 PCIe", (), (INT8, FP8)),
        ("A10", (), (INT8,)),
        ("L4", ("8.6", "8.9"), (INT8,)),
        ("Jetson Nano", (), ()),
        ("Tesla V100 SXM2", (), ()),
    ],
)
def test_a_gpu_leaves_out_what_it_does_not_gain_by(
    gpu: str, targets: tuple[str, ...], expected: tuple[Precision, ...]
) -> None:
    usable, notes = Budget(0.01, gpu, targets=targets).formats()
    assert usable == expected
    assert len(notes) == 2 - len(usable)
    if gpu == "A10":
        assert notes == ("no FP8: compute capability 8.6 has none",)
    if gpu == "Jetson Nano":
        assert notes[0] == "no INT8: Jetson Nano has none"
    if gpu == "Tesla V100 SXM2":
        assert notes[0] == "no INT8: Tesla V100 SXM2 is not faster in it than in FP16"


def request_of(path: Path | str, **fixed: Any) -> QuantizationRequest:
    rest = fixed.pop("rest", Precision.FP16)
    return QuantizationRequest(calibration(path), Int8Choices(**fixed), rest=rest)


def test_images_are_needed_and_no_noise() -> None:
    with pytest.raises(UsageError, match="measures the loss of each format on images: --calib"):
        require_budget(Budget(0.01), None)
    with pytest.raises(UsageError, match="cannot judge a loss on noise"):
        require_budget(Budget(0.01), request_of("random"))


@pytest.mark.parametrize(
    ("fixed", "option"),
    [({"sensitive_layers": "keep"}, "--sensitive-layers"), ({"rest": Precision.FP32}, "--rest")],
)
def test_what_the_budget_decides_cannot_be_fixed(
    folder: Path, fixed: dict[str, Any], option: str
) -> None:
    with pytest.raises(UsageError, match=f"{option} fixes what --precision auto decides"):
        require_budget(Budget(0.01), request_of(folder / "many.npz", **fixed))


def test_layers_are_left_to_the_groups(folder: Path) -> None:
    request, judges = require_budget(Budget(0.01), request_of(folder / "many.npz"))
    assert request.int8_choices.sensitive_layers == request.int8_choices.first_layer == "int8"
    assert judges.resolution.startswith("the loss is judged on 300 images: no changed answer")
    assert "0.99% possible" in judges.resolution


def test_those_that_the_calibration_sees_do_not_judge(folder: Path) -> None:
    options = calibration(folder / "many.npz")
    judges = judges_of(Budget(0.01), options)
    assert len(judges.indices) == 300
    assert set(judges.indices).isdisjoint(choose_images(400, 100, options.seed))
    few = require_resolvable(Budget(0.1), options)
    assert list(few.indices) == list(judges.indices[: 4 * 29])


def test_other_images_judge_all_of_them(folder: Path) -> None:
    budget = Budget(0.02, data=folder / "few.npz")
    assert len(judges_of(budget, calibration(folder / "many.npz")).indices) == 150
    same = Budget(0.01, data=folder / "many.npz")
    assert len(judges_of(same, calibration(folder / "many.npz")).indices) == 300
    given = replace(calibration("x"), data=GivenImages([np.zeros((2, 2, 3), np.uint8)] * 120))
    assert len(judges_of(Budget(0.1), given).indices) == 20


def test_too_few_images_are_refused_with_the_number_that_is_needed(folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        require_resolvable(Budget(0.005), calibration(folder / "many.npz"))
    assert str(caught.value) == (
        "--max-drop 0.5% needs 598 images to judge it, there are 300 of --calib beside the 100 of "
        "the calibration: they leave 0.99% possible when no answer changes\n"
        "give 298 more, lower --calib-count, or judge on others: --data PATH; or allow more: "
        "--max-drop"
    )
    with pytest.raises(DataError, match="needs 299 images to judge it, there are 150 of --data"):
        require_resolvable(Budget(0.01, data=folder / "few.npz"), calibration("unused"))
    with pytest.raises(DataError, match=r"are 0 of --calib .* they leave everything possible"):
        require_resolvable(Budget(0.01), calibration(folder / "few.npz", 512))
