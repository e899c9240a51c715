from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import numpy as np
import pytest

from deploykit import images
from deploykit.backends.eager import EagerRunner
from deploykit.core.errors import DataError, ValidationError
from deploykit.core.progress import SilentProgress
from deploykit.core.specs import Preprocessing, StepTimes, TensorSpec
from deploykit.evaluation.labelled import EvaluatedModel, evaluate
from deploykit.heads._accuracy import ClassEvaluation, wilson_interval
from deploykit.images import ArrayImages
from deploykit.models import get
from deploykit.sources.weights import build_with_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from numpy.typing import NDArray

    from deploykit.core.specs import Array, Runner
    from tests.digits import Digits

PLAIN = Preprocessing(crop=(2, 2), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class TableRunner:
    """Looks its logits up: the first pixel of an image is the row of the table."""

    def __init__(self, table: NDArray[np.float32], batch: int | str = "batch") -> None:
        self.inputs = (TensorSpec("input", "float32", (batch, 3, 2, 2)),)
        self.outputs = (TensorSpec("logits", "float32", (batch, table.shape[1])),)
        self.batches: list[int] = []
        self._table = table

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        fed = feeds["input"].astype(np.float32)
        assert fed.shape[1:] == self.inputs[0].shape[1:]
        self.batches.append(len(fed))
        return {"logits": self._table[np.rint(fed[:, 0, 0, 0] * 255).astype(int)]}

    def run_timed(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], StepTimes]:
        return self.run(feeds), StepTimes(wall_ms=0.0)

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def numbered(count: int, labels: NDArray[np.int64] | None) -> ArrayImages:
    """Image ``i`` is all of grey ``i``."""
    pixels = np.broadcast_to(
        np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 2, 2, 3)
    )
    return ArrayImages(np.ascontiguousarray(pixels), labels)


def random_case(count: int, classes: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    random = np.random.default_rng(count)
    # Few different values, so that there are ties to break.
    table = random.integers(0, 6, (count, classes)).astype(np.float32)
    return table, random.integers(0, classes, count)


def rank_of(row: NDArray[np.float32], label: int) -> int:
    """How many classes come before ``label``: larger ones, and equal ones with a lower number."""
    return sum(
        value > row[label] or (value == row[label] and other < label)
        for other, value in enumerate(row)
    )


def run_evaluate(
    runner: Runner, source: ArrayImages, batch: int = 8, reference: Runner | None = None
) -> ClassEvaluation:
    other = None if reference is None else EvaluatedModel(reference, PLAIN)
    subject = EvaluatedModel(runner, PLAIN)
    found = evaluate(subject, source, batch=batch, other=other, progress=SilentProgress())
    assert isinstance(found, ClassEvaluation)
    return found


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_shares_are_those_counted_image_by_image(batch: int) -> None:
    table, labels = random_case(50, 12)
    found = run_evaluate(TableRunner(table), numbered(50, labels), batch)
    ranks = [rank_of(row, label) for row, label in zip(table, labels, strict=True)]
    assert found.count == 50
    assert found.accuracy.top1 == sum(rank < 1 for rank in ranks) / 50
    assert found.accuracy.top5 == sum(rank < 5 for rank in ranks) / 50
    assert found.answers.top1.tolist() == table.argmax(axis=1).tolist()
    assert (found.agreement, found.other, found.comparison) == (None, None, None)


def test_equal_logits_are_told_apart_by_the_lower_class() -> None:
    flat = np.zeros((2, 7), np.float32)
    found = run_evaluate(TableRunner(flat), numbered(2, np.array([0, 1])))
    assert (found.accuracy.top1, found.accuracy.top5) == (0.5, 1.0)
    assert run_evaluate(TableRunner(flat), numbered(2, np.array([4, 5]))).accuracy.top5 == 0.5


@pytest.mark.parametrize(("classes", "has_top5"), [(2, False), (5, False), (6, True)])
def test_top5_needs_more_than_five_classes(classes: int, *, has_top5: bool) -> None:
    table, labels = random_case(20, classes)
    found = run_evaluate(TableRunner(table), numbered(20, labels))
    assert (found.accuracy.top5 is not None) is has_top5
    assert (found.accuracy.top5_interval is not None) is has_top5


def test_agreement_counts_equal_first_classes() -> None:
    table, labels = random_case(40, 10)
    other = table.copy()
    other[:10] = np.roll(other[:10], 1, axis=1)
    expected = float(np.mean(table.argmax(axis=1) == other.argmax(axis=1)))
    source = numbered(40, labels)
    found = run_evaluate(TableRunner(table), source, reference=TableRunner(other))
    assert 0 < expected < 1
    assert found.agreement == expected
    assert run_evaluate(TableRunner(table), source, reference=TableRunner(table)).agreement == 1.0


@pytest.mark.parametrize(("fixed", "asked"), [(4, 4), (4, 7), (16, 3), (1, 5)])
def test_a_fixed_batch_is_filled_up_and_the_filling_not_counted(fixed: int, asked: int) -> None:
    table, labels = random_case(21, 10)
    source = numbered(21, labels)
    runner, reference = TableRunner(table, fixed), TableRunner(table, 2)
    found = run_evaluate(runner, source, asked, reference)
    assert found == run_evaluate(TableRunner(table), source, asked, TableRunner(table))
    assert set(runner.batches) == {fixed}
    assert set(reference.batches) == {2}


class RecordedProgress:
    """Keeps what the stage says."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float | None]] = []

    @contextmanager
    def step(self, name: str) -> Iterator[Self]:
        yield self

    def update(self, done: float, total: float | None = None, detail: str = "") -> None:
        self.seen.append((done, total))


def test_progress_ends_at_the_number_of_images() -> None:
    table, labels = random_case(10, 6)
    source, runner, progress = numbered(10, labels), TableRunner(table), RecordedProgress()
    evaluate(EvaluatedModel(runner, PLAIN), source, batch=4, other=None, progress=progress)
    assert progress.seen == [(4, 10), (8, 10), (10, 10)]


def test_as_plain_data() -> None:
    table, labels = random_case(30, 10)
    found = run_evaluate(TableRunner(table), numbered(30, labels))
    top1, top5 = found.accuracy.top1, found.accuracy.top5
    assert top5 is not None
    assert found.to_dict() == {
        "count": 30,
        "top1": top1,
        "top5": top5,
        "top1_interval": wilson_interval(round(top1 * 30), 30),
        "top5_interval": wilson_interval(round(top5 * 30), 30),
        "agreement": None,
        "agreement_interval": None,
        "comparison": None,
    }


def test_a_comparison_as_plain_data() -> None:
    labels = np.arange(10)
    table = np.eye(10, dtype=np.float32)
    other = np.roll(table, 1, axis=1)
    other[:2] = table[:2]
    found = run_evaluate(TableRunner(table), numbered(10, labels), reference=TableRunner(other))
    data = found.to_dict()
    assert (data["agreement"], data["agreement_interval"]) == (0.2, wilson_interval(2, 10))
    compared = data["comparison"]
    # The other's label comes second wherever it is not first: of equal logits, all but label 0.
    ranks = [rank_of(row, label) for label, row in enumerate(other)]
    assert compared.pop("other") == {
        "top1": 0.2,
        "top5": sum(rank < 5 for rank in ranks) / 10,
        "top1_interval": wilson_interval(2, 10),
        "top5_interval": wilson_interval(sum(rank < 5 for rank in ranks), 10),
    }
    assert compared == {
        "both_right": 2, "only_this_right": 8, "only_other_right": 0, "both_wrong": 0,
        "p_value": 2 / 2**8, "better": "this",
    }  # fmt: skip
    swapped = run_evaluate(TableRunner(other), numbered(10, labels), reference=TableRunner(table))
    assert swapped.to_dict()["comparison"]["better"] == "other"
    assert found.agreement == swapped.agreement


def test_each_model_prepares_images_in_its_own_way() -> None:
    """The other one's deviation turns image i into row 2 i of its table."""
    table, labels = random_case(40, 10)
    doubled = np.repeat(table, 2, axis=0)[:40]
    half = Preprocessing(crop=(2, 2), mean=(0.0, 0.0, 0.0), std=(0.5, 0.5, 0.5))
    found = evaluate(
        EvaluatedModel(TableRunner(table), PLAIN),
        numbered(20, labels[:20]),
        batch=7,
        other=EvaluatedModel(TableRunner(doubled), half),
        progress=SilentProgress(),
    )
    assert isinstance(found, ClassEvaluation)
    assert found.agreement == 1.0
    assert found.other == found.accuracy


def test_models_of_different_classes_are_not_compared() -> None:
    table, labels = random_case(20, 6)
    other = TableRunner(np.pad(table, ((0, 0), (0, 1))))
    with pytest.raises(
        DataError, match=r"the models tell 6 and 7 classes apart\none label cannot mean the same"
    ):
        run_evaluate(TableRunner(table), numbered(20, labels), reference=other)


def test_images_without_labels_cannot_be_judged() -> None:
    runner = TableRunner(np.zeros((3, 4), np.float32))
    with pytest.raises(DataError, match=r"no labels\nexpected a folder per class, .*, a CSV"):
        run_evaluate(runner, numbered(3, None))
    assert runner.batches == []


def test_a_label_beyond_the_logits_is_found_with_the_first_batch() -> None:
    table, labels = random_case(40, 10)
    labels[33] = 10
    runner = TableRunner(table)
    with pytest.raises(
        DataError,
        match=r"image 33 has label 10, the model tells 10 classes apart\nexpected .* 0 to 9",
    ):
        run_evaluate(runner, numbered(40, labels), batch=4)
    assert runner.batches == [4]


@pytest.mark.parametrize("broken", ["model", "reference"])
def test_logits_that_are_not_numbers_are_no_result(broken: str) -> None:
    table, labels = random_case(40, 10)
    spoilt = table.copy()
    spoilt[[17, 18], 3] = np.nan
    model, reference = (spoilt, table) if broken == "model" else (table, spoilt)
    with pytest.raises(
        ValidationError, match=r"logits of image 17 and 1 more are not numbers\nvalues beyond"
    ):
        run_evaluate(TableRunner(model), numbered(40, labels), 8, reference=TableRunner(reference))


def test_trained_network_scores_what_torch_measured(digits: Digits) -> None:
    spec = get("resnet20", image_size=8)
    network, _ = build_with_weights(spec, str(digits.weights), 0)
    source = images.open_images(digits.test)
    with EagerRunner(network, spec.inputs, spec.outputs) as runner:
        subject = EvaluatedModel(runner, spec.preprocessing)
        found = evaluate(subject, source, batch=100, other=subject, progress=SilentProgress())
    assert isinstance(found, ClassEvaluation)
    low, high = found.accuracy.top1_interval
    assert found.count == len(source) == 597
    assert found.accuracy.top1 == pytest.approx(digits.accuracy, abs=1e-6)
    assert low < found.accuracy.top1 < high
    assert found.accuracy.top5 is not None
    assert found.accuracy.top5 >= found.accuracy.top1 >= 0.95
    assert found.agreement == 1.0
