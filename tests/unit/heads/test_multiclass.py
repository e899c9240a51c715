from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.core.precision import Precision
from deploykit.heads._results import judged_beside
from deploykit.heads.multiclass import MULTICLASS, BatchComparison, compare
from tests.graphs import normal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def logits(*rows: Sequence[float]) -> NDArray[np.float32]:
    return np.array(rows, np.float32)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_the_figures_are_those_of_torch(scale: float) -> None:
    reference = normal(16, 10, scale=scale)
    candidate = reference + normal(16, 10, seed=1, scale=scale / 10)
    left, right = (torch.from_numpy(x).double() for x in (candidate, reference))
    kl = torch.nn.functional.kl_div(
        left.log_softmax(1), right.log_softmax(1), reduction="none", log_target=True
    ).sum(1)
    top = right.topk(2).values
    flipped = left.argmax(1) != right.argmax(1)
    found = compare(candidate, reference)
    assert found.batch == 16
    assert found.max_abs == pytest.approx(float((left - right).abs().max()))
    assert found.mean_abs == pytest.approx(float((left - right).abs().mean()))
    assert found.max_relative == pytest.approx(found.max_abs / float(right.abs().max()))
    cosine = torch.nn.functional.cosine_similarity(left, right)
    assert found.min_cosine == pytest.approx(float(cosine.min()))
    assert found.max_kl == pytest.approx(float(kl.max()))
    assert found.agreement == pytest.approx(1 - float(flipped.double().mean()))
    margins = (top[:, 0] - top[:, 1])[flipped]
    assert found.flipped_margins == pytest.approx(margins.tolist())
    assert found.non_finite == 0


def test_figures_worked_out_by_hand() -> None:
    found = compare(logits([1, 0], [0, 2]), logits([1, 0], [0, 4]))
    p = 1 / (1 + math.exp(-4))
    q = 1 / (1 + math.exp(-2))
    expected_kl = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert (found.max_abs, found.mean_abs, found.max_relative) == (2.0, 0.5, 0.5)
    assert found.min_cosine == pytest.approx(1)
    assert found.max_kl == pytest.approx(expected_kl)
    assert (found.agreement, found.flipped_margins) == (1.0, ())


def test_equal_logits_have_no_difference() -> None:
    found = compare(normal(3, 5), normal(3, 5))
    assert (found.max_abs, found.max_relative, found.max_kl, found.agreement) == (0, 0, 0, 1)
    assert found.min_cosine == 1.0


def test_flips_give_the_lead_of_the_reference() -> None:
    reference = logits([5, 4.75, 0], [1, 0, 0], [0, 3, 2])
    candidate = logits([4.75, 5, 0], [1, 0, 0], [0, 2, 3])
    found = compare(candidate, reference)
    assert found.agreement == pytest.approx(1 / 3)
    assert found.flipped_margins == (0.25, 1.0)


@pytest.mark.parametrize(
    ("candidate", "reference", "cosine", "relative"),
    [
        ([0, 0], [0, 0], 1.0, 0.0),
        ([0, 0], [3, 4], 0.0, 4 / 4),
        ([3, 4], [0, 0], 0.0, 4.0),
        ([-3, -4], [3, 4], -1.0, 2.0),
    ],
)
def test_zero_and_opposite_vectors(
    candidate: list[float], reference: list[float], cosine: float, relative: float
) -> None:
    found = compare(logits(candidate), logits(reference))
    assert found.min_cosine == pytest.approx(cosine)
    assert found.max_relative == pytest.approx(relative)


def test_large_logits_do_not_overflow() -> None:
    found = compare(logits([3e38, -3e38]), logits([3e38, -3e38]))
    assert (found.max_abs, found.max_kl, found.non_finite) == (0, 0, 0)
    assert found.min_cosine == pytest.approx(1)


def test_a_single_class_cannot_flip() -> None:
    found = compare(logits([1.0], [-2.0]), logits([1.5], [2.0]))
    assert (found.agreement, found.flipped_margins, found.max_kl) == (1.0, (), 0.0)


def test_outputs_of_any_rank_are_flattened_per_image() -> None:
    reference = normal(2, 3, 2, 2)
    assert compare(reference * np.float32(1.5), reference).agreement == 1.0


@settings(max_examples=50, deadline=None, database=None)
@given(st.lists(st.tuples(*[st.floats(-1e4, 1e4, width=32)] * 6), min_size=1, max_size=6))
def test_the_figures_stay_in_their_ranges(rows: list[tuple[float, ...]]) -> None:
    values: NDArray[np.float32] = np.array(rows, np.float32)
    found = compare(values[:, :3], values[:, 3:])
    assert found.max_abs >= found.mean_abs >= 0
    assert -1 - 1e-9 <= found.min_cosine <= 1 + 1e-9
    assert found.max_kl is not None
    assert found.max_kl >= 0
    assert len(found.flipped_margins) == round((1 - found.agreement) * len(rows))
    assert all(margin >= 0 for margin in found.flipped_margins)


@pytest.mark.parametrize(
    ("precision", "images", "changed", "problem"),
    [
        (Precision.FP32, 8, 0, None),
        (Precision.FP32, 8, 1, "1 of 8 images get another class, limit 0"),
        (Precision.FP16, 8, 1, None),
        (Precision.FP16, 8, 2, "2 of 8 images get another class, limit 1"),
        (Precision.FP16, 200, 4, None),
        (Precision.FP16, 200, 5, "5 of 200 images get another class, limit 4"),
    ],
)
def test_class_numbers_alone_may_be_near_ties_where_values_are_rounded(
    precision: Precision, images: int, changed: int, problem: str | None
) -> None:
    head = MULTICLASS.applied("argmax")
    reference = np.arange(images, dtype=np.float32)[:, None]
    candidate = reference + (np.arange(images)[:, None] < changed)
    batches = [
        head.compare(candidate[at : at + 4].astype(np.float32), reference[at : at + 4])
        for at in range(0, images, 4)
    ]
    assert head.problems(batches, precision.facts.limits) == [problem] * (problem is not None)


def test_the_largest_probabilities_are_compared_with_the_rest_as_one_class() -> None:
    (head,) = judged_beside(MULTICLASS.applied("top_k"), {"probabilities": "v"}).values()
    reference, candidate = logits([0.6, 0.3], [0.5, 0.1]), logits([0.6, 0.3], [0.4, 0.15])
    wanted, got = (torch.tensor(rows) for rows in ([0.5, 0.1, 0.4], [0.4, 0.15, 0.45]))
    kl = torch.nn.functional.kl_div(got.log(), wanted, reduction="sum")
    found = head.compare(candidate, reference)
    assert isinstance(found, BatchComparison)
    assert found.image_kl == pytest.approx([0, float(kl)], abs=1e-7)
    assert found.agreement == 1
    assert head.undecided(reference) == []
    limits = Precision.FP16.facts.limits
    assert head.problems([head.compare(reference, reference)], limits) == []
    assert head.problems([found], limits)


def test_sums_over_one_leave_no_rest() -> None:
    """Those of a sigmoid are of labels, each by itself."""
    (head,) = judged_beside(MULTICLASS.applied("top_k"), {"probabilities": "v"}).values()
    rows = logits([0.9, 0.8])
    found = head.compare(rows, rows)
    assert isinstance(found, BatchComparison)
    assert found.max_kl == 0
