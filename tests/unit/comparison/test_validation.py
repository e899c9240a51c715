from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.comparison.validation import (
    ValidationReport,
    outputs_of,
    require_numbers,
    validate,
)
from deploykit.core.errors import ValidationError
from deploykit.core.precision import Precision
from deploykit.core.specs import TensorSpec
from deploykit.heads.multiclass import (
    MIN_IMAGES_FOR_AGREEMENT,
    MULTICLASS,
    BatchComparison,
    problems_of,
)
from tests.graphs import normal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

NAMES = ("the fp16 graph", "torch eager")


def logits(*rows: Sequence[float]) -> NDArray[np.float32]:
    return np.array(rows, np.float32)


def report_of(
    candidate: NDArray[np.float32],
    reference: NDArray[np.float32],
    precision: Precision = Precision.FP16,
) -> ValidationReport:
    return validate([candidate], [reference], precision=precision, names=NAMES)


def test_the_nearest_flip_of_a_report_is_the_smallest_margin() -> None:
    reference = logits([5, 4.75, 0], [1, 0, 0], [0, 3, 2])
    candidate = logits([4.75, 5, 0], [1, 0, 0], [0, 2, 3])
    assert report_of(candidate, reference).to_dict()["smallest_flipped_margin"] == 0.25


# NaN and infinity


def test_a_reference_that_gives_infinities_is_refused_with_the_number_of_images() -> None:
    masked = logits([1, -math.inf, 2], [3, -math.inf, 4], [1, 2, 3])
    refused = r"^the original file itself gives NaN or infinity for 2 of 5 images\noutputs must be"
    with pytest.raises(ValidationError, match=refused):
        require_numbers([masked, normal(2, 3)], "the original file")
    require_numbers([normal(2, 3), np.empty((0, 4), np.float32)], "the original file")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_one_value_that_is_not_finite_fails(value: float, side: int) -> None:
    pair = [normal(2, 3), normal(2, 3)]
    pair[side][1, 2] = value
    report = report_of(pair[0], pair[1])
    assert report.batches[0].non_finite == 1
    assert report.to_dict()["batches"][0]["agreement"] == 0
    assert math.isnan(report.batches[0].max_abs)
    assert report.problems == ("1 values are NaN or infinite at batch 2",)
    assert report.to_dict()["smallest_flipped_margin"] is None


# The judgement


def comparison(**changes: Any) -> BatchComparison:
    figures: dict[str, Any] = {
        "batch": 200,
        "max_abs": 0.0,
        "mean_abs": 0.0,
        "max_relative": 0.0,
        "min_cosine": 1.0,
        "max_kl": 0.0,
        "agreement": 1.0,
        "flipped_margins": (),
        "non_finite": 0,
    }
    return BatchComparison(**(figures | changes))


@pytest.mark.parametrize(
    ("figure", "beyond", "words"),
    [
        ("max_relative", 0.0201, "largest error is 2.01e-02 of the largest logit .* limit 2e-02"),
        ("min_cosine", 0.9989, "cosine 0.998900 at batch 200, limit 0.999"),
        ("max_kl", 0.0101, "KL divergence 1.01e-02 nats at batch 200, limit 1e-02"),
        ("agreement", 0.975, "top-1 agreement 97.50% at batch 200, limit 0.98"),
    ],
)
def test_each_limit_holds_at_its_edge(figure: str, beyond: float, words: str) -> None:
    limits = Precision.FP16.facts.limits
    name = {"agreement": "min_agreement"}.get(figure, figure)
    at_the_edge = comparison(**{figure: getattr(limits, name)})
    assert problems_of(at_the_edge, limits) == []
    (problem,) = problems_of(comparison(**{figure: beyond}), limits)
    assert pytest.approx(beyond) != getattr(limits, name)
    with pytest.raises(ValidationError, match=words):
        ValidationReport(*NAMES, Precision.FP16, (at_the_edge,), (problem,)).require_pass()


def test_agreement_is_judged_from_a_hundred_images_on() -> None:
    limits = Precision.FP16.facts.limits
    few = comparison(batch=MIN_IMAGES_FOR_AGREEMENT - 1, agreement=0.5)
    enough = comparison(batch=MIN_IMAGES_FOR_AGREEMENT, agreement=0.5)
    assert problems_of(few, limits) == []
    assert len(problems_of(enough, limits)) == 1


def test_fp32_is_judged_more_strictly_than_fp16() -> None:
    reference = normal(4, 10)
    candidate = reference * np.float32(1.005)
    assert report_of(candidate, reference, Precision.FP16).passed
    assert not report_of(candidate, reference, Precision.FP32).passed


def test_a_pass_raises_nothing_and_a_failure_gives_all_figures() -> None:
    reference = normal(4, 10)
    report_of(reference, reference).require_pass()
    failed = report_of(-reference, reference)
    with pytest.raises(
        ValidationError,
        match=r"^the fp16 graph does not compute what torch eager computes:\nlargest .*; cosine",
    ) as caught:
        failed.require_pass()
    assert caught.value.details == failed.to_dict()
    assert len(str(caught.value).splitlines()) == 2


def test_one_bad_batch_of_several_fails_the_whole() -> None:
    good, bad = normal(2, 5), normal(3, 5)
    report = validate([good, -bad], [good, bad], precision=Precision.FP16, names=NAMES)
    assert not report.passed
    assert all("at batch 3" in problem for problem in report.problems)


def test_the_report_is_plain_data() -> None:
    report = report_of(normal(2, 5), normal(2, 5, seed=1))
    data = json.loads(json.dumps(report.to_dict()))
    assert data["candidate"] == "the fp16 graph"
    assert data["precision"] == "fp16"
    assert data["passed"] is False
    assert data["batches"][0]["batch"] == 2
    assert data["limits"]["max_relative"] == 2e-2
    assert data["smallest_flipped_margin"] is not None
    assert data["head"] == "multiclass"


# What cannot be compared


def test_different_shapes() -> None:
    with pytest.raises(
        ValidationError, match=r"^the fp16 graph returns shape \(2, 5\), torch eager .* \(2, 6\)$"
    ):
        report_of(normal(2, 5), normal(2, 6))


@pytest.mark.parametrize("outputs", [[], [np.zeros((0, 5), np.float32)]])
def test_nothing_to_compare(outputs: list[NDArray[np.float32]]) -> None:
    with pytest.raises(ValidationError, match="there is no output of torch eager to compare the"):
        validate(outputs, outputs, precision=Precision.FP32, names=NAMES)


def test_a_batch_that_is_missing_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="longer"):
        validate([], [normal(1, 2)], precision=Precision.FP32, names=NAMES)


class TwoOutputs:
    """A runner whose first output counts."""

    inputs = (TensorSpec("image", "float32", ("batch", 3)), TensorSpec("other", "float32", (1,)))
    outputs = (TensorSpec("logits", "float16", ("batch", 3)), TensorSpec("aux", "float32", (1,)))

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {"aux": np.zeros(1), "logits": (feeds["image"] + 1).astype(np.float16)}


def test_outputs_are_the_first_output_as_fp32() -> None:
    batches = [np.zeros((2, 3), np.float32), np.ones((1, 3), np.float32)]
    found = outputs_of(TwoOutputs(), batches)  # type: ignore[arg-type]  # enough of a runner
    assert [value.dtype for value in found] == [np.float32, np.float32]
    np.testing.assert_array_equal(found[0], np.ones((2, 3)))
    np.testing.assert_array_equal(found[1], np.full((1, 3), 2))


# A share of the images within the limits


def of_images(kls: list[float], cosine: float = 1.0) -> BatchComparison:
    return comparison(
        batch=len(kls),
        max_kl=max(kls),
        min_cosine=cosine,
        image_kl=tuple(kls),
        image_cosine=(cosine,) + (1.0,) * (len(kls) - 1),
    )


@pytest.mark.parametrize(
    ("kls", "passes"),
    [
        ([0.03] * 19 + [1.2], True),
        ([0.03] * 18 + [1.2, 5.0], True),
        ([0.03] * 17 + [1.2, 1.1, 5.0], False),
        ([0.03] * 8 + [1.2], False),
        ([1.2] * 20, False),
    ],
)
def test_int8_may_miss_one_image_in_ten(kls: list[float], *, passes: bool) -> None:
    limits = Precision.INT8.facts.limits
    # In two batches: the images of all count together.
    batches = [of_images(kls[:3]), of_images(kls[3:])]
    assert (MULTICLASS.problems(batches, limits) == []) is passes
    assert MULTICLASS.problems([of_images([0.0] * 10 + [0.02])], Precision.FP16.facts.limits)


def test_a_refusal_says_how_many_images_and_which() -> None:
    batches = [of_images([0.1, 2.0]), of_images([0.1] * 6 + [3.0, 4.0], cosine=0.9)]
    (problem,) = MULTICLASS.problems(batches, Precision.INT8.facts.limits)
    assert re.match(
        r"4 of 10 images are beyond KL 1 nats or cosine 0.95, 1 may be; the 90% quantile is "
        r"KL 3.1, cosine 0.99.. \(image 1: KL 2 nats; image 2: cosine 0.9000; image 8: KL 3 nats\)",
        problem,
    )


def test_the_images_beyond_are_reported_where_the_rest_passes() -> None:
    reference = normal(20, 10, seed=5) * 3
    candidate = reference + normal(20, 10, seed=6) * np.float32(0.01)
    candidate[7] = reference[7][::-1]
    candidate *= np.float32(0.9)
    report = validate([candidate], [reference], precision=Precision.INT8, names=NAMES)
    assert list(report.images_beyond) == [7]
    assert list(report.to_dict()["images_beyond"]) == ["7"]
    assert not any("image_kl" in batch for batch in report.to_dict()["batches"])
    assert not any("quantile" in problem for problem in report.problems)


def test_values_that_are_not_finite_are_never_let_through() -> None:
    reference = normal(20, 10)
    candidate = reference.copy()
    candidate[0, 0] = np.nan
    report = validate([candidate], [reference], precision=Precision.INT8, names=NAMES)
    assert report.problems == ("1 values are NaN or infinite at batch 20",)
