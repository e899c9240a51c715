"""The ends that heads have, and what numpy makes of values by them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.core.deployed import Result
from deploykit.core.errors import UsageError
from deploykit.heads._results import chances_of, end_for
from deploykit.heads.binary import BINARY
from deploykit.heads.multiclass import MULTICLASS
from deploykit.heads.multilabel import MULTILABEL
from deploykit.heads.raw import RAW

if TYPE_CHECKING:
    from deploykit.heads import Head

SHAPE = ("N", 4)
ENDS: list[tuple[Head, str, tuple[str, ...], str]] = [
    (MULTICLASS, "probabilities", ("Softmax",), "softmax"),
    (MULTICLASS.applied("softmax"), "probabilities", (), "softmax"),
    (MULTICLASS.applied("log_softmax"), "probabilities", ("Exp",), "softmax"),
    (MULTICLASS.applied("sigmoid"), "probabilities", (), "sigmoid"),
    (MULTICLASS.applied("softmax"), "classes", ("ArgMax",), "argmax"),
    (MULTICLASS.applied("argmax"), "classes", (), "argmax"),
    (MULTICLASS.applied("log_softmax"), "topk:2", ("Exp", "TopK"), "top_k"),
    (MULTICLASS.applied("top_k"), "topk:4", (), "top_k"),
    (MULTILABEL, "probabilities", ("Sigmoid",), "sigmoid"),
    (BINARY.applied("sigmoid"), "probabilities", (), "sigmoid"),
]


@pytest.mark.parametrize(("head", "wanted", "operators", "activation"), ENDS)
def test_the_end_of_a_head(
    head: Head, wanted: str, operators: tuple[str, ...], activation: str
) -> None:
    end = end_for(head, SHAPE, Result.parse(wanted))
    assert end.operators == operators
    if operators:
        assert end.activation == activation


REFUSED: list[tuple[Head, str, str]] = [
    (RAW, "probabilities", "--result probabilities for raw outputs, of which nobody knows"),
    (BINARY, "topk:1", "--result topk:1 is for classes that exclude each other, the head is bin"),
    (MULTICLASS, "topk:5", "--result topk:5 for 4 classes\npossible: topk:1 to topk:4"),
    (MULTICLASS.applied("argmax"), "topk:1", "ends in class numbers already, as classes makes"),
    (MULTICLASS.applied("top_k"), "topk:2", "ends in class numbers already, as topk:4 makes"),
]


@pytest.mark.parametrize(("head", "wanted", "said"), REFUSED)
def test_ends_that_a_head_has_not(head: Head, wanted: str, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        end_for(head, SHAPE, Result.parse(wanted))


def test_what_an_end_makes_of_values() -> None:
    values = np.log(np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.15, 0.05]], np.float32))
    found = end_for(MULTICLASS, SHAPE, Result.parse("topk:2")).applied_to(values)
    assert found["classes"].tolist() == [[3, 2], [0, 2]]
    np.testing.assert_allclose(found["probabilities"], [[0.4, 0.3], [0.7, 0.15]], atol=1e-6)
    far = np.array([[-900, 0, 3000, -300]], np.float32)  # three probabilities of 0 in FP32
    ranked = end_for(MULTICLASS, SHAPE, Result.parse("topk:4")).applied_to(far)
    assert ranked["classes"].tolist() == [[2, 1, 3, 0]]
    chosen = end_for(MULTICLASS, SHAPE, Result.parse("classes")).applied_to(values)
    assert chosen["classes"].tolist() == [3, 0]
    yes = end_for(MULTILABEL, SHAPE, Result.parse("probabilities")).applied_to(values)
    np.testing.assert_allclose(yes["probabilities"], 1 / (1 + np.exp(-values)), atol=1e-6)


def test_where_the_probabilities_of_class_numbers_are() -> None:
    top = MULTICLASS.applied("top_k")
    made = {"result": {"outputs": ["classes", "probabilities"]}}
    assert chances_of(top, made) == "probabilities"
    assert chances_of(top, {}) is None
    assert chances_of(top, {"result": {"outputs": []}}) is None
    assert chances_of(MULTICLASS, made) is None
