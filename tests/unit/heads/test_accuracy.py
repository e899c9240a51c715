from __future__ import annotations

import importlib
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.heads._accuracy import (
    Answers,
    ClassAccuracy,
    Confusion,
    blind_spots,
    compare_answers,
    confusions,
    label_ranks,
    mcnemar_p_value,
    per_class,
    wilson_interval,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


def answers(labels: Sequence[int], top1: Sequence[int]) -> Answers:
    ranks = [0 if label == answer else 1 for label, answer in zip(labels, top1, strict=True)]
    return Answers(np.array(labels, np.int64), np.array(top1, np.int64), np.array(ranks, np.int64))


@pytest.mark.parametrize(
    ("hits", "count", "expected"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3; he prints four digits.
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)),
     (1, 29, (0.0061, 0.1718))],
)  # fmt: skip
def test_wilson_interval_as_published(hits: int, count: int, expected: tuple[float, float]) -> None:
    assert wilson_interval(hits, count) == pytest.approx(expected, abs=6e-5)


@pytest.mark.parametrize("count", [1, 2, 7, 50, 1000, 50_000])
def test_wilson_interval_is_scipys(count: int) -> None:
    from scipy import stats

    for hits in {0, 1, count // 3, count // 2, count - 1, count}:
        expected = stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
        assert wilson_interval(hits, count) == pytest.approx(
            (expected.low, expected.high), abs=1e-7
        )


def test_wilson_interval_stays_within_0_and_1() -> None:
    for count in (1, 3, 1000):
        low, high = wilson_interval(0, count)[0], wilson_interval(count, count)[1]
        assert 0 <= low == pytest.approx(0, abs=1e-12)
        assert 1 >= high == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("first", "second"),
    [*product(range(7), range(7)), (30, 12), (101, 100), (700, 812), (4000, 4321)],
)
def test_mcnemar_is_scipys_binomial_test(first: int, second: int) -> None:
    from scipy import stats

    tosses = first + second
    expected = stats.binomtest(first, tosses, 0.5).pvalue if tosses else 1.0
    assert mcnemar_p_value(first, second) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_counts_every_outcome_of_the_tosses() -> None:
    """As likely as (2, 7) or less so, of all 2 ** 9 sequences of heads and tails."""
    extreme = [heads for tosses in product((0, 1), repeat=9) if not 2 < (heads := sum(tosses)) < 7]
    assert mcnemar_p_value(2, 7) == len(extreme) / 2**9


def test_mcnemar_of_a_difference_beyond_doubt_is_0() -> None:
    assert mcnemar_p_value(0, 30_000) == 0.0


def test_ranks_are_those_of_a_stable_sort() -> None:
    random = np.random.default_rng(0)
    # Few different values, so that there are ties to break.
    logits = random.integers(0, 4, (200, 9)).astype(np.float32)
    labels = random.integers(0, 9, 200)
    order = np.argsort(-logits, axis=1, kind="stable")
    expected = [list(row).index(label) for row, label in zip(order, labels, strict=True)]
    assert label_ranks(logits, labels).tolist() == expected


def test_hits_count_the_first_classes() -> None:
    found = Answers(np.zeros(5, np.int64), np.zeros(5, np.int64), np.array([0, 1, 4, 5, 0]))
    assert (found.hits(1), found.hits(2), found.hits(5)) == (2, 3, 4)


def test_a_comparison_counts_image_by_image() -> None:
    labels = [0, 0, 0, 0, 1, 1, 1, 2]
    first = answers(labels, [0, 0, 1, 1, 1, 1, 2, 0])
    second = answers(labels, [0, 1, 0, 1, 1, 1, 0, 0])
    found = compare_answers(first, second)
    assert (found.both_right, found.only_first, found.only_second) == (3, 1, 1)
    assert found.both_wrong == 3
    assert found.agreeing == 5  # the same wrong answer is one too
    assert found.p_value == 1.0
    assert found.better is None


@pytest.mark.parametrize(
    ("only_first", "only_second", "better"),
    # 0 of 5 one-sided is 2/32 = 0.0625, 0 of 6 is 2/64 = 0.03125: the border lies between.
    [(5, 0, None), (6, 0, "first"), (0, 6, "second"), (0, 5, None), (0, 0, None)],
)
def test_the_better_one_is_named_from_5_percent(
    only_first: int, only_second: int, better: str | None
) -> None:
    labels = [1] * (only_first + only_second + 1)
    first = answers(labels, [1] * only_first + [0] * only_second + [1])
    second = answers(labels, [0] * only_first + [1] * only_second + [1])
    assert compare_answers(first, second).better == better


def test_classes_come_with_the_worst_first() -> None:
    found = per_class(answers([3, 3, 0, 0, 0, 5, 1, 1, 1], [3, 0, 0, 0, 0, 1, 1, 0, 0]))
    counted = [(one.index, one.right, one.count) for one in found]
    assert counted == [(5, 0, 1), (1, 1, 3), (3, 1, 2), (0, 3, 3)]
    assert found[1] == ClassAccuracy(1, 3, 1, wilson_interval(1, 3))
    assert found[1].top1 == 1 / 3


def test_equal_classes_rank_by_images_then_by_number() -> None:
    found = per_class(answers([4, 2, 2, 0], [0, 0, 0, 1]))
    assert [one.index for one in found] == [2, 0, 4]


def test_tables_are_those_of_scikit_learn() -> None:
    metrics: Any = importlib.import_module("sklearn.metrics")
    random = np.random.default_rng(1)
    labels, top1 = random.integers(0, 6, 300), random.integers(0, 6, 300)
    matrix = metrics.confusion_matrix(labels, top1)
    found = answers(labels.tolist(), top1.tolist())
    for one in per_class(found):
        assert (one.count, one.right) == (matrix[one.index].sum(), matrix[one.index, one.index])
    pairs = confusions(found, 1000)
    assert len(pairs) == np.count_nonzero(matrix - np.diag(np.diag(matrix)))
    assert all(one.count == matrix[one.label, one.predicted] for one in pairs)
    assert [one.count for one in pairs] == sorted((one.count for one in pairs), reverse=True)
    assert confusions(found, 4) == pairs[:4]


def test_equal_confusions_rank_by_class() -> None:
    found = confusions(answers([2, 0, 0, 1, 1, 1], [0, 2, 1, 0, 0, 1]), 3)
    assert found == (Confusion(1, 0, 2), Confusion(0, 1, 1), Confusion(0, 2, 1))


def test_a_model_that_is_always_right_confuses_nothing() -> None:
    assert confusions(answers([0, 1], [0, 1]), 5) == ()


# --- labels in another order than the classes


def test_answers_that_fit_the_labels_in_another_order_are_said() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 12, 600)
    # "class10" comes before "class2" where folders are sorted as text.
    order = np.array([int(each) for each in sorted(map(str, range(12)))])
    top1 = np.where(random.random(600) < 0.9, order[labels], random.integers(0, 12, 600))
    fitting, right = int((order[labels] == top1).sum()), int((labels == top1).sum())
    said = blind_spots(answers(labels.tolist(), top1.tolist()))
    assert len(said) == 1
    assert said[0].startswith(
        f"{fitting} of 600 images would be right, not {right}, if label 2 were class 10, "
        "3 class 11, 4 class 2, ...: the order of the classes may be another one"
    )


@pytest.mark.parametrize("classes", [2, 5, 100])
def test_a_model_that_is_right_guesses_or_always_errs_alike_is_not_suspected(classes: int) -> None:
    random = np.random.default_rng(1)
    for count in (10, 60, 1000):
        labels = random.integers(0, classes, count)
        good = np.where(random.random(count) < 0.6, labels, random.integers(0, classes, count))
        guess = random.integers(0, classes, count)
        for top1 in (good, guess, np.minimum(labels + 1, classes - 1)):
            said = blind_spots(answers(labels.tolist(), top1.tolist()))
            assert not any("would be right" in sentence for sentence in said), said
