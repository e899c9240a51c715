"""What a head refuses where it says nothing of its own, and figures of any outputs."""

from __future__ import annotations

import numpy as np
import pytest

from deploykit.core.errors import DataError, UsageError, ValidationError
from deploykit.heads import Evaluation, Head, figures_of, head_named, require_finite


class Bare(Head):
    name = "bare"
    layout = "(batch, any)"
    form = "any"

    def fits(self, shape: object) -> bool:
        return True

    def problems_of(self, figures: object, limits: object) -> list[str]:
        return []

    def answers(self, outputs: object, labels: object, top_k: int) -> list[list[object]]:
        return []

    def answer_row(self, answer: object) -> tuple[str, ...]:
        return ()


class BareEvaluation(Evaluation):
    def to_dict(self) -> dict[str, object]:
        return {}

    def tables(self, names: object) -> list[object]:  # type: ignore[override]  # none
        return []


def test_the_default_head_is_found_by_its_name() -> None:
    head = head_named("multiclass")
    assert (head.name, head.fits((2, 10)), head.fits((2,))) == ("multiclass", True, False)


def test_labels_and_classes_are_refused_by_default() -> None:
    assert Bare().fitting_labels(None, ("cat",), (1, 2)) is None
    with pytest.raises(DataError, match="bare outputs have no classes to name, 1 labels"):
        Bare().fitting_labels(("cat",), None, (1, 2))
    with pytest.raises(UsageError, match="bare outputs cannot be judged by the classes"):
        Bare().tally(np.zeros(1, np.int64))
    with pytest.raises(NotImplementedError, match="bare has a tally and no evaluation"):
        Bare().evaluation(None, None)
    with pytest.raises(UsageError, match="--per-class is for models whose answer is a class"):
        BareEvaluation().per_class(None)
    with pytest.raises(UsageError, match="--confusion 3 is for models whose answer is a class"):
        BareEvaluation().confusions(3, None)


def test_advice_of_a_head_without_its_own() -> None:
    assert Bare().advice(has_floats=True) == "end the graph in (batch, any)"
    assert Bare().advice(has_floats=False) == "let it end in float32 values"


def test_figures_of_any_shape() -> None:
    reference = np.array([[[1.0, 0.0]], [[0.0, 4.0]]], np.float32)
    found = Bare().compare(reference * np.float32(0.5), reference)
    assert (found.batch, found.max_abs, found.max_relative, found.min_cosine) == (2, 2.0, 0.5, 1.0)
    assert figures_of(reference * np.float32(np.nan), reference).non_finite == 4
    assert Bare().summary_of([found]) == {}


def test_values_that_are_none() -> None:
    require_finite(np.zeros(2), "values")
    with pytest.raises(ValidationError, match="the model gave values that are NaN or infinite"):
        require_finite(np.array([np.inf]), "values")
