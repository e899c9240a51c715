from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from deploykit.benchmarking.results import BenchmarkRun, CellFailure
from deploykit.benchmarking.statistics.comparing import key_of, pair
from deploykit.core.errors import DataError
from deploykit.core.precision import Precision
from tests.unit.benchmarking.statistics.noise import SUBJECT, SWITCHES, result_of

if TYPE_CHECKING:
    from deploykit.benchmarking.results import BenchmarkResult


def measured(model: str, scenario: str = "single-stream", **subject: Any) -> BenchmarkResult:
    return result_of(
        [4.0] * 20,
        subject=replace(SUBJECT, model=model, **subject),
        switches=replace(SWITCHES, scenario=scenario),
    )


def failed(model: str, kind: str = "error") -> CellFailure:
    return CellFailure(model, Precision.FP16, "tensorrt", 8, kind, "no driver", 0.5)


def test_the_key_is_the_cell_and_its_scenario() -> None:
    assert key_of(measured("nin", "offline")) == "nin/tensorrt/fp16/b8/offline"


def test_results_are_matched_whatever_their_order() -> None:
    old = BenchmarkRun((measured("a"), measured("b"), measured("c")))
    new = BenchmarkRun((measured("d"), measured("c"), measured("a")))
    pairs = pair(old, new)
    assert pairs.common == (
        (old.results[0], new.results[2]),
        (old.results[2], new.results[1]),
    )
    assert pairs.only_old == (old.results[1],)
    assert pairs.only_new == (new.results[0],)
    assert [pairs.lost, pairs.failed_old, pairs.failed_new] == [(), (), ()]


@pytest.mark.parametrize(
    "subject",
    [{"precision_asked": Precision.FP32}, {"backend": "ort"}, {"batch": 1}, {"model": "b"}],
)
def test_another_cell_is_no_match(subject: dict[str, Any]) -> None:
    old, new = measured("a"), measured(**{"model": "a", **subject})
    pairs = pair(BenchmarkRun((old,)), BenchmarkRun((new,)))
    assert (pairs.common, pairs.only_old, pairs.only_new) == ((), (old,), (new,))


def test_scenarios_are_matched_apart() -> None:
    one, many = measured("a"), measured("a", "offline")
    pairs = pair(BenchmarkRun((one, many)), BenchmarkRun((many,)))
    assert pairs.common == ((many, many),)
    assert pairs.only_old == (one,)


def test_the_precision_that_was_proven_does_not_matter() -> None:
    new = measured("a", precision_proven=None)
    assert len(pair(BenchmarkRun((measured("a"),)), BenchmarkRun((new,))).common) == 1


def test_a_cell_that_fails_now_is_lost() -> None:
    old = BenchmarkRun((measured("a"), measured("b"), measured("a", "offline")))
    new = BenchmarkRun((measured("b"),), (failed("a", "time limit"),))
    pairs = pair(old, new)
    lost = [(key_of(result), failure.kind) for result, failure in pairs.lost]
    assert lost == [
        ("a/tensorrt/fp16/b8/single-stream", "time limit"),
        ("a/tensorrt/fp16/b8/offline", "time limit"),
    ]
    assert [pairs.only_old, pairs.failed_new] == [(), ()]


def test_failures_of_one_run_alone_are_listed() -> None:
    old = BenchmarkRun((), (failed("both"), failed("repaired"), failed("old")))
    new = BenchmarkRun((measured("repaired"),), (failed("new"), failed("both")))
    pairs = pair(old, new)
    assert pairs.failed_old == (failed("old"),)
    assert pairs.failed_new == (failed("new"),)
    assert pairs.only_new == (new.results[0],)
    assert pairs.lost == ()


@pytest.mark.parametrize("which", ["old", "new"])
def test_two_results_for_a_key_are_refused(which: str) -> None:
    double, single = BenchmarkRun((measured("a"), measured("a"))), BenchmarkRun((measured("a"),))
    runs = (double, single) if which == "old" else (single, double)
    expected = rf"the {which} run has two results for a/tensorrt/fp16/b8/single-stream\nso it is"
    with pytest.raises(DataError, match=expected):
        pair(*runs)
