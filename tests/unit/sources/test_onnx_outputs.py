"""The answers of a user's file as they are judged, and whether all outputs agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.core.errors import ModelFileError
from deploykit.core.specs import TensorSpec
from deploykit.heads.multiclass import MULTICLASS
from deploykit.heads.raw import RAW
from deploykit.sources.head_choice import OutputChoice
from deploykit.sources.onnx_outputs import (
    answers_one_by_one,
    other_problems,
    outputs_in,
    settled,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deploykit.core.specs import Array, StepTimes

PLAIN = OutputChoice(MULTICLASS, "y")


class FixedRunner:
    """Takes four images at a time and returns their sums, with what it was given beside them."""

    inputs = (TensorSpec("x", "float32", (4, 3, 2, 2)),)
    outputs = (TensorSpec("y", "float32", (4, 1)),)

    def __init__(self, *, whole: bool = False) -> None:
        self.whole = whole

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        images = feeds["x"]
        assert images.shape == (4, 3, 2, 2)
        total = images.sum(axis=(1, 2, 3), keepdims=True)[:, :, 0, 0]
        return {"y": total.sum(axis=0) if self.whole else total}

    def run_timed(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], StepTimes]:
        raise NotImplementedError

    def close(self) -> None: ...

    def __enter__(self) -> FixedRunner:
        return self

    def __exit__(self, *_: object) -> None: ...


def batches(*sizes: int) -> Sequence[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    noise = np.random.default_rng(0)
    return [noise.normal(size=(size, 3, 2, 2)).astype(np.float32) for size in sizes]


def test_a_fixed_batch_is_asked_in_groups() -> None:
    images = batches(1, 2, 5)
    found = answers_one_by_one(FixedRunner(), images, 4, PLAIN)
    assert [one["y"].shape for one in found] == [(1, 1), (2, 1), (5, 1)]
    for one, given in zip(found, images, strict=True):
        expected = given.sum(axis=(1, 2, 3))
        np.testing.assert_allclose(one["y"][:, 0].astype(np.float32), expected, rtol=1e-5)


def test_a_fixed_batch_with_one_answer_for_all() -> None:
    with pytest.raises(ModelFileError, match=r"output 'y' \(1,\) has no batch of its own"):
        answers_one_by_one(FixedRunner(whole=True), batches(1, 2, 5), 4, PLAIN)


def test_an_output_gets_its_final_form() -> None:
    given: list[dict[str, Array]] = [{"y": np.zeros((2, 10, 1, 1)), "other": np.zeros(3)}]
    (found,) = settled(given, OutputChoice(MULTICLASS, "y", flat=False))
    assert (found["y"].shape, found["other"].shape) == ((2, 10), (3,))
    turned = settled([{"y": np.zeros((7, 2, 4))}], OutputChoice(RAW, "y", batch_axis=1))
    assert turned[0]["y"].shape == (2, 7, 4)
    assert outputs_in(turned, "y")[0].dtype == np.float32


def test_outputs_beside_the_logits_are_compared() -> None:
    expected = {"y": np.ones((2, 3), np.float32), "map": np.ones((2, 4), np.float32)}
    assert other_problems([expected], [expected], "y") == []
    wrong = {**expected, "map": np.full((2, 4), 2, np.float32)}
    (problem,) = other_problems([wrong], [expected], "y")
    assert problem.startswith("output 'map': largest error is 1.00e+00 of the largest")
    longer = {**expected, "map": np.ones((2, 5), np.float32)}
    assert other_problems([longer], [expected], "y") == [
        "output 'map': shape (2, 5) instead of (2, 4)"
    ]


def test_whole_numbers_beside_the_logits_must_be_equal() -> None:
    expected = {"y": np.ones((2, 3), np.float32), "label": np.array([1, 2])}
    assert other_problems([expected], [expected], "y") == []
    wrong = {**expected, "label": np.array([1, 0])}
    assert other_problems([wrong], [expected], "y") == ["output 'label': int64 values differ"]


def test_a_number_beside_the_logits_is_not_compared_by_image() -> None:
    expected: dict[str, Array] = {
        "y": np.ones((2, 3), np.float32),
        "scale": np.array(3, np.float32),
    }
    assert other_problems([expected], [expected], "y") == []
