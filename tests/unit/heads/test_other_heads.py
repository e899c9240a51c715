"""Binary, multilabel, raw, and multiclass behind an activation: figures by numpy and torch."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from deploykit.core.errors import DataError, UsageError, ValidationError
from deploykit.core.precision import Precision
from deploykit.core.specs import HeadRecord
from deploykit.heads import head_named, head_of
from deploykit.heads.binary import BINARY
from deploykit.heads.multiclass import MULTICLASS
from deploykit.heads.multilabel import MULTILABEL
from deploykit.heads.raw import RAW
from tests.graphs import normal

if TYPE_CHECKING:
    from deploykit.heads import Head
    from tests.graphs import Array

FP32, FP16, INT8 = (Precision(each).facts.limits for each in ("fp32", "fp16", "int8"))
OWN = (BINARY, MULTICLASS, MULTILABEL, RAW)


def test_each_is_found_by_its_name() -> None:
    assert [head_named(head.name).name for head in OWN] == [head.name for head in OWN]
    found = head_of(HeadRecord("multilabel", "y", "sigmoid"))
    assert (found.name, found.activation, MULTILABEL.activation) == (
        "multilabel",
        "sigmoid",
        "none",
    )


def softmax(values: Array) -> Array:
    return np.asarray(torch.softmax(torch.from_numpy(values).double(), 1).numpy(), np.float32)


def test_kl_from_probabilities_as_they_are() -> None:
    first, second = normal(6, 9), normal(6, 9, seed=1)
    p, q = (torch.softmax(torch.from_numpy(x).double(), 1) for x in (second, first))
    expected = float((p * (p / q).log()).sum(1).max())
    heads = {"none": (first, second), "softmax": (softmax(first), softmax(second))}
    heads["log_softmax"] = tuple(np.log(softmax(x)) for x in (first, second))  # type: ignore[assignment]  # two
    for activation, (got, wanted) in heads.items():
        found = MULTICLASS.applied(activation).compare(got, wanted)
        assert found.max_kl == pytest.approx(expected, rel=1e-4), activation


def test_a_softmax_of_a_softmax_would_hide_the_difference() -> None:
    wanted, got = np.array([[0.99, 0.005, 0.005]]), np.array([[0.6, 0.3, 0.1]])
    right = MULTICLASS.applied("softmax").compare(got.astype("f4"), wanted.astype("f4")).max_kl
    wrong = MULTICLASS.compare(got.astype("f4"), wanted.astype("f4")).max_kl
    assert right is not None
    assert wrong is not None
    assert right > 5 * wrong


def test_class_numbers_are_judged_over_all_batches() -> None:
    head = MULTICLASS.applied("argmax")
    wanted = np.array([1, 2, 3, 4], np.float32)
    one, two = np.array([1, 2, 3, 5], np.float32), np.array([1, 2, 0, 5], np.float32)
    assert head.problems([head.compare(one, wanted)], FP16) == []
    assert head.problems([head.compare(two, wanted)], FP16) == [
        "2 of 4 images get another class, limit 1"
    ]
    nan = np.full(4, np.nan, np.float32)
    assert head.problems([head.compare(nan, wanted)], FP16) == ["4 values are NaN or infinite"]


@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_binary_compares_probabilities_and_decisions(shape: tuple[int, ...]) -> None:
    wanted = np.array([-3, -0.1, 0.2, 2, 14], np.float32).reshape(shape)
    got = np.array([-3, 0.1, 0.2, 2, 14], np.float32).reshape(shape)
    found = BINARY.compare(got, wanted)
    chance = torch.sigmoid(torch.tensor([-0.1, 0.1]).double())
    assert found.max_error == pytest.approx(float(chance[1] - chance[0]), rel=1e-6)
    assert found.agreement == pytest.approx(0.8)
    assert found.flipped_margins == pytest.approx((0.5 - float(chance[0]),), rel=1e-6)
    (said,) = BINARY.problems_of(found, FP16)
    assert said.startswith("the probability of the positive class is 0.0500 off at batch 5")


def test_a_wrong_logit_behind_a_saturated_sigmoid_is_seen() -> None:
    wanted, got = np.array([[14.0], [-14.0]], np.float32), np.array([[20.0], [-20.0]], np.float32)
    (said,) = BINARY.problems_of(BINARY.compare(got, wanted), FP16)
    assert said.startswith("largest error is 4.29e-01 of the largest value")


def test_a_logit_near_zero_is_no_fault() -> None:
    wanted, got = np.array([[1e-4]], np.float32), np.array([[3e-4]], np.float32)
    assert BINARY.problems_of(BINARY.compare(got, wanted), FP32) == []


def test_multilabel_names_the_label() -> None:
    wanted = np.full((2, 4), 0.9, np.float32)
    got = wanted.copy()
    got[1, 2] = 0.4
    head = MULTILABEL.applied("sigmoid")
    found = head.compare(got, wanted)
    assert (found.worst_label, found.flips, found.agreement) == (2, {"2": 1}, 0.5)
    assert head.summary_of([found, head.compare(wanted, wanted)])["label_agreement"] == {"2": 0.75}
    said = head.problems_of(found, INT8)
    assert said == ["the probability of label 2 is 0.5000 off at batch 2, limit 0.25"]
    many = np.repeat(wanted, 60, axis=0), np.repeat(got, 60, axis=0)
    assert (
        "equal decisions on 50.00% of the images" in head.problems_of(head.compare(*many), INT8)[-1]
    )


@pytest.mark.parametrize("head", [BINARY, MULTILABEL])
@pytest.mark.parametrize("activation", ["none", "sigmoid"])
def test_probabilities_are_torchs(head: Head, activation: str) -> None:
    logits = normal(4, 1 if head is BINARY else 6, scale=4)
    chances = torch.sigmoid(torch.from_numpy(logits).double()).numpy()
    given = logits if activation == "none" else chances.astype(np.float32)
    found = head.applied(activation).answers(given, None, 9)
    for row, expected in zip(found, chances, strict=True):
        got = [each.probability for each in row]
        np.testing.assert_allclose(got, np.sort(expected)[::-1], rtol=1e-6)
        assert all((each.logit is None) == (activation == "sigmoid") for each in row)


def test_the_threshold() -> None:
    values = np.array([[0.3], [0.5], [0.7]], np.float32)
    head = BINARY.applied("sigmoid")
    assert [one.index for (one,) in head.answers(values, None, 1)] == [0, 1, 1]
    strict = head.with_threshold(0.6)
    assert [one.index for (one,) in strict.answers(values, ("no", "yes"), 1)] == [0, 0, 1]
    assert [one.label for (one,) in strict.answers(values, ("sick",), 1)] == [
        "not sick", "not sick", "sick",
    ]  # fmt: skip
    for wrong in (0.0, 1.0, 50.0, float("nan")):
        with pytest.raises(UsageError, match=r"--threshold is .*\nexpected a probability between"):
            BINARY.with_threshold(wrong)
    with pytest.raises(UsageError, match=r"--threshold 0\.3 is for binary and multilabel heads"):
        RAW.with_threshold(0.3)


def test_labels_of_a_yes_or_no() -> None:
    assert BINARY.fitting_labels(("cat", "dog"), None, (1, 1)) == ("cat", "dog")
    assert BINARY.fitting_labels(("sick",), None, (1, 1)) == ("sick",)
    with pytest.raises(DataError, match="there are 3 labels, the model says yes or no"):
        BINARY.fitting_labels(("a", "b", "c"), None, (1, 1))
    with pytest.raises(DataError, match="there are 1 labels, the model has 4 labels"):
        MULTILABEL.fitting_labels(("a",), None, (1, 4))
    with pytest.raises(DataError, match=r"2 labels, the model has 4 labels\n.*--labels FILE"):
        MULTILABEL.fitting_labels(None, ("a", "b"), (1, 4))
    with pytest.raises(DataError, match=r"2 labels, the model has 4 classes\n.*--labels FILE"):
        MULTICLASS.fitting_labels(None, ("a", "b"), (1, 4))


@pytest.mark.parametrize("head", OWN)
def test_no_answer_is_made_of_nan(head: Head) -> None:
    with pytest.raises(ValidationError, match="that are NaN or infinite"):
        head.answers(np.full((2, 1), np.nan, np.float32), None, 1)
    found = head.compare(np.full((2, 1), np.nan, np.float32), np.ones((2, 1), np.float32))
    assert "NaN or infinite" in head.problems([found], FP16)[0]


# Any values


SHAPES = [(4, 32), (4, 3, 6, 6), (4, 7, 5)]


@pytest.mark.parametrize("shape", SHAPES)
def test_raw_figures_are_of_the_worst_image(shape: tuple[int, ...]) -> None:
    wanted = normal(*shape)
    got = wanted.copy()
    got[2] += normal(*shape[1:], seed=5, scale=0.1)
    found = RAW.compare(got, wanted)
    a, b = (torch.from_numpy(x[2].ravel()).double() for x in (got, wanted))
    assert found.rms_relative == pytest.approx(float((a - b).norm() / b.norm()))
    assert found.max_image_relative == pytest.approx(float((a - b).abs().max() / b.abs().max()))
    assert found.min_cosine == pytest.approx(float(torch.cosine_similarity(a, b, dim=0)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("limits", [FP32, FP16, INT8])
def test_planted_faults_are_beyond_every_limit(shape: tuple[int, ...], limits: object) -> None:
    wanted = normal(*shape)
    faults = {
        "other images": np.roll(wanted, 1, axis=0),
        "one image is zero": wanted * np.array([1, 1, 0, 1]).reshape(-1, *[1] * (len(shape) - 1)),
        "a sign": -wanted,
        "a channel is lost": np.where(np.arange(shape[1]).reshape(-1, *[1] * (len(shape) - 2)) == 0,
                                      0, wanted),
        "twice as large": wanted * 2,
    }  # fmt: skip
    for name, got in faults.items():
        if name == "a channel is lost" and limits is INT8 and len(shape) == 2:
            continue  # one value of 32
        found = RAW.compare(got.astype(np.float32), wanted)
        assert RAW.problems_of(found, limits), name  # type: ignore[arg-type]  # limits


def test_values_near_zero_are_no_scale() -> None:
    wanted = np.array([[5.0], [1e-5]], np.float32)
    assert RAW.problems_of(RAW.compare(wanted + np.float32(1e-4), wanted), FP32) == []


def test_maps_of_class_numbers_are_compared_as_such() -> None:
    head = RAW.applied("argmax")
    wanted = np.random.default_rng(0).integers(0, 20, (2, 10, 10)).astype(np.float32)
    got = wanted.copy()
    got[0, 0, 0] += 19
    assert head.problems_of(head.compare(got, wanted), FP16) == []
    got[0, 0, :5] += 3
    found = head.compare(got, wanted)
    (said,) = head.problems_of(found, FP16)
    assert said == "5.00% of an image's class numbers changed at batch 2, limit 2.00%"
    shown = dict(zip(head.comparison_columns, head.worst_row([asdict(found)]), strict=True))
    assert shown == {"batch": "2", "worst image: changed": "5.00%"}


def test_ten_of_a_thousand_class_numbers_are_too_many_in_fp32() -> None:
    head, wanted = RAW.applied("argmax"), np.zeros((1, 1024), np.float32)
    for changed, passes in ((0, True), (1, True), (2, False), (10, False)):
        got = wanted.copy()
        got[0, :changed] = 1
        assert (head.problems_of(head.compare(got, wanted), FP32) == []) is passes


def test_one_near_tie_of_few_places_is_no_fault() -> None:
    """Of 17 key points one is 5.9 %."""
    head = RAW.applied("argmax")
    wanted = np.random.default_rng(0).integers(0, 200, (3, 17)).astype(np.float32)
    got = wanted.copy()
    got[1, 4] += 1
    assert head.problems_of(head.compare(got, wanted), FP16) == []
    got[1, 5] += 1
    (said,) = head.problems_of(head.compare(got, wanted), FP16)
    assert said.startswith("11.76% of an image's class numbers changed")


def test_answers_of_several_outputs() -> None:
    outputs = {"a": normal(2, 3), "b": normal(2, 4, 4), "boxes": normal(7, 6)}
    first, second = RAW.answers_of_all(outputs, 2)
    assert [(one.output, one.shape) for one in first] == [("a", (3,)), ("b", (4, 4))]
    np.testing.assert_array_equal(second[1].values, outputs["b"][1])
    (alone,) = RAW.answers_of_all({"boxes": normal(7, 6)}, 1)
    assert alone[0].shape == (7, 6)
    with pytest.raises(NotImplementedError, match="multiclass answers by one output"):
        MULTICLASS.answers_of_all(outputs, 2)


# Comparisons that cannot fail


@pytest.mark.parametrize(
    ("head", "outputs", "said"),
    [
        (MULTICLASS.applied("softmax"), np.ones((3, 1)), "there is one class"),
        (MULTICLASS, np.tile([1.0, 3.0], (3, 1)), "the logits are the same for all 3 images"),
        (MULTICLASS, np.array([[1, 30], [2, 20]]), "all 2 images are of class 1"),
        (BINARY, np.array([[-3.0], [-2.0]]), "all 2 images are negative"),
        (MULTILABEL, np.array([[-3.0, 2], [-2.0, 1]]), "all 2 images have the same decisions"),
        (RAW, np.full((2, 3), 4.0), "the outputs are the same for all 2 images"),
        (RAW, np.ones((1, 3)), "one image alone was compared"),
        (RAW, 1000 + np.eye(2), "each image could have the outputs of another and still pass"),
    ],
)
def test_blind_spots(head: Head, outputs: Array, said: str) -> None:
    found = head.blind_spots([outputs.astype(np.float32)], FP16)
    assert any(said in one for one in found)


@pytest.mark.parametrize("head", OWN)
def test_different_answers_leave_no_blind_spot(head: Head) -> None:
    width = 1 if head is BINARY else 4
    outputs = np.array([np.full(width, 5.0), np.full(width, -5.0)]) + np.arange(width) * [[1], [-1]]
    assert head.blind_spots([outputs.astype(np.float32)], FP16) == []
