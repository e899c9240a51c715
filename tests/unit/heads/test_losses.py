"""What an image loses against its reference, of each head."""

from __future__ import annotations

import numpy as np
import pytest

from deploykit.heads.binary import BINARY
from deploykit.heads.multiclass import MULTICLASS
from deploykit.heads.multilabel import MULTILABEL
from deploykit.heads.raw import RAW

NAN = float("nan")


def rows(*values: object) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.array(values, np.float32)


def test_a_class_is_the_same_or_another() -> None:
    wanted = rows([3, 1, 0], [0, 2, 1], [1, 0, 0], [5, 0, 0])
    got = rows([9, 8, 0], [3, 2, 1], [0.4, 0.3, 0.3], [NAN, 0, 0])
    assert MULTICLASS.losses(got, wanted).tolist() == [0, 1, 0, 1]
    assert MULTICLASS.loss_measure == "answers"
    assert MULTICLASS.right_answers(got, np.array([0, 1, 0, 0])).tolist() == [1, 0, 1, 0]


def test_class_numbers_are_compared_as_they_are() -> None:
    head = MULTICLASS.applied("argmax")
    assert head.losses(rows(3, 4), rows(3, 7)).tolist() == [0, 1]
    assert head.right_answers(rows(3, 4), np.array([3, 3])).tolist() == [True, False]


def test_labels_count_one_by_one() -> None:
    wanted = rows([4, -4, 4, -4], [4, 4, 4, 4], [1, 1, 1, 1])
    got = rows([4, 4, 4, -4], [-1, -1, -1, -1], [NAN, 1, 1, 1])
    assert MULTILABEL.losses(got, wanted).tolist() == [0.25, 1, 1]
    assert MULTILABEL.loss_measure == "decisions"
    assert MULTILABEL.right_answers(got, np.array([0, 1, 2])) is None


def test_a_yes_stays_a_yes() -> None:
    wanted, got = rows([2], [-2], [1]), rows([1], [1], [-1])
    assert BINARY.losses(got, wanted).tolist() == [0, 1, 1]
    assert BINARY.right_answers(got, np.array([1, 0, 0])).tolist() == [True, False, True]
    assert BINARY.loss_measure == "answers"


def test_values_of_any_meaning_lose_by_their_error() -> None:
    wanted = rows([3, 4], [3, 4], [3, 4], [0, 0], [0, 0], [3, 4])
    got = rows([3, 4], [3.3, 4.4], [-9, -9], [0, 0], [0, 1], [NAN, 4])
    assert RAW.losses(got, wanted) == pytest.approx([0, 0.1, 1, 0, 1, 1], rel=1e-5)
    assert RAW.loss_measure == "error"
    assert RAW.losses(np.zeros((2, 0), np.float32), np.zeros((2, 0), np.float32)).tolist() == [0, 0]
