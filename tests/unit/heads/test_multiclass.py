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
from deploykit.heads.raw import RAW
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
    assert len(found.flipped_margins) == round((1 - (found.agreement or 0)) * len(rows))
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
    assert found.agreement is None
    assert head.undecided(reference) == []
    limits = Precision.FP16.facts.limits
    assert head.problems([head.compare(reference, reference)], limits) == []
    assert head.problems([found], limits)


def test_the_largest_probabilities_of_a_sigmoid_are_compared_each_by_itself() -> None:
    (head,) = judged_beside(MULTICLASS.applied("top_k"), {"probabilities": "v"}).values()
    wanted, got = torch.tensor([0.9, 0.8]), torch.tensor([0.7, 0.85])
    kl = torch.distributions.kl_divergence(
        torch.distributions.Bernoulli(wanted), torch.distributions.Bernoulli(got)
    ).sum()
    found = head.compare(logits(got.tolist()), logits(wanted.tolist()))
    assert isinstance(found, BatchComparison)
    assert found.max_kl == pytest.approx(float(kl), abs=1e-6)


def test_the_logarithm_of_a_sure_answer_is_judged_as_its_probability() -> None:
    """-1e-6 for -1e-9 is a thousand times as much, and the same answer."""
    numbers = MULTICLASS.applied("argmax")
    (head,) = judged_beside(numbers, {"log_probabilities": "v"}).values()
    limits = Precision.FP16.facts.limits
    assert head.problems([head.compare(logits([-1e-6]), logits([-1e-9]))], limits) == []
    assert head.problems([head.compare(logits([-1.5]), logits([-0.5]))], limits)


def test_a_score_near_0_is_judged_beside_those_of_other_images() -> None:
    (head,) = judged_beside(MULTICLASS.applied("argmax"), {"scores": "v"}).values()
    limits = Precision.FP16.facts.limits
    reference = logits([1e-3], [-2.0], [5.0])
    near, far = (reference + np.float32(by) for by in (0.01, 0.2))
    assert head.problems([head.compare(near, reference)], limits) == []
    assert head.problems([head.compare(far, reference)], limits)


@pytest.mark.parametrize("kind", ["probabilities", "scores"])
def test_beside_raw_outputs_nothing_is_known(kind: str) -> None:
    assert judged_beside(RAW.applied("argmax"), {kind: "v"}) == {}
    assert judged_beside(MULTICLASS, {kind: "v"}) == {}


def ranking(*columns: int) -> NDArray[np.float32]:
    """Eight images whose five classes are in the same order."""
    return np.tile(np.array(columns, np.float32), (8, 1))


@pytest.mark.parametrize(
    ("candidate", "fp32", "fp16"),
    [
        (ranking(1, 2, 3, 4, 5), None, None),
        (ranking(1, 2, 4, 3, 5), "16 of 32 class numbers behind the first are at another", None),
        (ranking(1, 12, 13, 14, 15), "32 of 32", "32 of 32 class numbers behind the first"),
        (ranking(1, 2, 3, 4, 15), "8 of 32", "8 of 32"),
    ],
)
def test_classes_behind_the_first_are_judged(
    candidate: NDArray[np.float32], fp32: str | None, fp16: str | None
) -> None:
    head, reference = MULTICLASS.applied("top_k"), ranking(1, 2, 3, 4, 5)
    for precision, problem in ((Precision.FP32, fp32), (Precision.FP16, fp16)):
        batches = [head.compare(candidate, reference)]
        found = head.problems(batches, precision.facts.limits)
        assert [each.startswith(problem or "none") for each in found] == [True] * bool(problem)


@pytest.mark.parametrize(
    ("precision", "lost", "passes"),
    [
        (Precision.FP16, 1, True),
        (Precision.FP16, 2, False),
        (Precision.BF16, 4, True),
        (Precision.BF16, 5, False),
        (Precision.INT8, 8, True),
    ],
)
def test_the_last_place_of_a_ranking_may_go_to_the_next_class(
    precision: Precision, lost: int, *, passes: bool
) -> None:
    reference = ranking(1, 2, 3, 4, 5)
    candidate = reference.copy()
    candidate[:lost, -1] = 6
    head = MULTICLASS.applied("top_k")
    found = head.problems([head.compare(candidate, reference)], precision.facts.limits)
    assert (found == []) is passes
