from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.benchmarking.report.two_runs import (
    CompareReport,
    compare_files,
    comparison_to_plain,
    parse_share,
)
from deploykit.benchmarking.results import BenchmarkRun, CellFailure, write_run
from deploykit.benchmarking.statistics.comparing import ratio_of_medians
from deploykit.core.errors import DataError, UsageError
from deploykit.core.precision import Precision
from tests.unit.benchmarking.statistics.noise import (
    ENVIRONMENT,
    SUBJECT,
    SWITCHES,
    independent,
    result_of,
    samples_of,
)

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.benchmarking.results import BenchmarkResult, Switches

OFFLINE = replace(SWITCHES, scenario="offline", streams=2)
SERVER = replace(SWITCHES, scenario="server", rate_per_s=100.0)


def noisy(milliseconds: float, seed: int, **changes: Any) -> BenchmarkResult:
    """100 queries of about so many ms."""
    rng = np.random.default_rng(seed)
    return result_of(independent(rng, 100, 0.02) * milliseconds / 5, **changes)


def named(model: str, milliseconds: float = 4.0, **changes: Any) -> BenchmarkResult:
    return noisy(milliseconds, len(model), subject=replace(SUBJECT, model=model), **changes)


def failed(model: str) -> CellFailure:
    reason = "took longer than its limit of 60 s"
    return CellFailure(model, Precision.FP16, "tensorrt", 8, "time limit", reason, 60.1)


class Files:
    """Two files of results."""

    def __init__(self, folder: Path) -> None:
        self.old, self.new = folder / "old.json", folder / "new.json"

    def compare(self, old: BenchmarkRun, new: BenchmarkRun, **options: Any) -> CompareReport:
        write_run(self.old, old)
        write_run(self.new, new)
        return compare_files(self.old, self.new, **options)

    def one(self, old: BenchmarkResult, new: BenchmarkResult, **options: Any) -> CompareReport:
        return self.compare(BenchmarkRun((old,)), BenchmarkRun((new,)), **options)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_each_common_cell_gets_a_verdict(files: Files) -> None:
    old = BenchmarkRun((named("same"), named("slower"), named("faster")))
    new = BenchmarkRun((named("faster", 3.0), named("same"), named("slower", 5.0)))
    report = files.compare(old, new, fail_above=0.05)
    assert [(each.key, str(each.verdict)) for each in report.pairs] == [
        ("same/tensorrt/fp16/b8/single-stream", "no difference"),
        ("slower/tensorrt/fp16/b8/single-stream", "slower"),
        ("faster/tensorrt/fp16/b8/single-stream", "faster"),
    ]
    assert report.regressions == ("slower/tensorrt/fp16/b8/single-stream",)
    assert report.fails


def test_the_latency_is_the_one_that_the_tables_show(files: Files) -> None:
    """H2D + compute + D2H where these were timed, the wall time of queries that arrive."""
    wall_ms = np.full(40, 9.0)
    steps = samples_of(wall_ms, compute_ms=wall_ms - 5, h2d_ms=wall_ms - 8, d2h_ms=wall_ms - 8.5)
    old, new = result_of(wall_ms, samples=steps), result_of([11.0] * 40)
    [pair] = files.one(old, new).pairs
    assert (pair.measure, pair.old, pair.new) == ("latency_ms", 5.5, 11.0)
    assert pair.comparison.ratio.value == pytest.approx(2.0)
    old, new = replace(old, switches=SERVER), replace(new, switches=SERVER)
    [pair] = files.one(old, new).pairs
    assert (pair.measure, pair.old, pair.new) == ("latency_ms", 9.0, 11.0)
    assert pair.comparison.ratio.value == pytest.approx(11 / 9)


def test_offline_runs_are_compared_by_their_throughput(files: Files) -> None:
    """Twice the queries in the same time, each with the same latency."""
    start_s = np.repeat(np.arange(40), 2) * 4e-3
    samples = samples_of(np.full(80, 4.0), start_s=start_s)
    old = result_of(samples.wall_ms, samples=samples, switches=OFFLINE, duration_s=0.16)
    later = samples_of(np.full(80, 4.0), start_s=start_s * 2)
    new = result_of(later.wall_ms, samples=later, switches=OFFLINE, duration_s=0.316)
    [pair] = files.one(old, new).pairs
    assert pair.key == "resnet50/tensorrt/fp16/b8/offline"
    assert (pair.measure, str(pair.verdict)) == ("throughput_per_s", "slower")
    assert (
        (pair.old, pair.new) == (old.throughput_per_s, new.throughput_per_s) == (4000, 640 / 0.316)
    )
    assert pair.comparison.ratio.value == pytest.approx(4000 / (640 / 0.316))


def test_the_interval_is_that_of_the_statistics(files: Files) -> None:
    old, new = noisy(4.0, 1), noisy(4.4, 2)
    expected = ratio_of_medians(old.samples.wall_ms, new.samples.wall_ms)
    assert files.one(old, new).pairs[0].comparison.ratio == expected


@pytest.mark.parametrize(
    ("fail_above", "slower_by", "fails"),
    [(0.05, 0.15, True), (0.2, 0.15, False), (0.0, 0.15, True), (0.0, 0.0, False)],
)
def test_a_regression_fails_beyond_what_is_allowed(
    files: Files, fail_above: float, slower_by: float, fails: bool
) -> None:
    report = files.one(noisy(4.0, 1), noisy(4.0 * (1 + slower_by), 2), fail_above=fail_above)
    assert report.fails is fails
    assert bool(report.regressions) is fails


def test_without_a_limit_regressions_are_listed_and_nothing_fails(files: Files) -> None:
    report = files.one(noisy(4.0, 1), noisy(5.0, 2))
    assert report.regressions == ("resnet50/tensorrt/fp16/b8/single-stream",)
    assert not report.fails


def test_what_was_measured_and_fails_now_is_a_regression(files: Files) -> None:
    old = BenchmarkRun((named("kept"), named("lost"), named("gone")), (failed("old"),))
    new = BenchmarkRun((named("kept"), named("added")), (failed("lost"), failed("new")))
    report = files.compare(old, new, fail_above=0.5)
    assert [(each.key, each.measured_before) for each in report.failed] == [
        ("lost/tensorrt/fp16/b8/single-stream", True),
        ("new/tensorrt/fp16/b8", False),
    ]
    assert report.failed[0].reason == "took longer than its limit of 60 s"
    assert report.regressions == ("lost/tensorrt/fp16/b8/single-stream",)
    assert report.fails
    assert report.only_old == ("gone/tensorrt/fp16/b8/single-stream",)
    assert report.only_new == ("added/tensorrt/fp16/b8/single-stream",)
    assert report.failed_only_old == ("old/tensorrt/fp16/b8",)


def test_a_run_in_which_everything_fails_is_a_report(files: Files) -> None:
    report = files.compare(BenchmarkRun((named("a"),)), BenchmarkRun((), (failed("a"),)))
    assert report.pairs == ()
    assert report.regressions == ("a/tensorrt/fp16/b8/single-stream",)


def test_other_machines_and_switches_are_refused_unless_forced(files: Files) -> None:
    machine = {**ENVIRONMENT, "cpu": "Another CPU"}
    old = BenchmarkRun((named("a"), named("b")))
    switched = named("b", switches=replace(SWITCHES, spin=False), environment=machine)
    new = BenchmarkRun((named("a", environment=machine), switched))
    expected = (
        "these results cannot be compared, old against new: "
        "cpu Some CPU @ 2 GHz against Another CPU; spin True against False\n"
        "measure again on the same machine with the same switches, or force the comparison"
    )
    with pytest.raises(UsageError) as caught:
        files.compare(old, new)
    assert str(caught.value) == expected
    report = files.compare(old, new, force=True)
    assert [each.comparison.differences for each in report.pairs] == [
        ("cpu Some CPU @ 2 GHz against Another CPU",),
        ("cpu Some CPU @ 2 GHz against Another CPU", "spin True against False"),
    ]


def test_many_differences_are_counted(files: Files) -> None:
    switches = replace(
        SWITCHES, spin=False, cuda_graph=True, transfers=False, seed=1, threads=4, warmup_s=1.0
    )
    with pytest.raises(UsageError, match=r"spin True against False; warmup_s .*; and 2 more\nmeas"):
        files.one(noisy(4.0, 1), noisy(4.0, 2, switches=switches))


def searched(rate_per_s: float) -> Switches:
    return replace(SERVER, rate_per_s=rate_per_s, bound_ms=15.0)


def test_rates_that_were_searched_for_are_shown_and_not_judged(files: Files) -> None:
    old = BenchmarkRun((named("a"), noisy(4.0, 1, switches=searched(212.5))))
    new = BenchmarkRun((named("a"), noisy(4.0, 1, switches=searched(187.25))))
    report = files.compare(old, new, fail_above=0.01)
    [without] = report.not_compared
    assert without.key == "resnet50/tensorrt/fp16/b8/server"
    assert without.reason == (
        "the highest rates are 212.5 and 187.2 queries per second, found without an interval"
    )
    assert not report.fails


def test_a_rate_that_was_given_is_a_switch(files: Files) -> None:
    given = replace(SERVER, rate_per_s=50.0)
    with pytest.raises(UsageError, match=r"old against new: rate_per_s 100\.0 against 50\.0\n"):
        files.one(noisy(4.0, 1, switches=SERVER), noisy(4.0, 1, switches=given))
    with pytest.raises(UsageError, match=r"bound_ms 15\.0 against none; rate_per_s none against 1"):
        files.one(noisy(4.0, 1, switches=searched(10)), noisy(4.0, 1, switches=SERVER))


def test_a_cell_with_too_few_samples_does_not_stop_the_others(files: Files) -> None:
    few = result_of([4.0] * 19)
    report = files.compare(BenchmarkRun((named("a"), few)), BenchmarkRun((named("a"), few)))
    assert [each.key for each in report.pairs] == ["a/tensorrt/fp16/b8/single-stream"]
    [without] = report.not_compared
    assert without.reason == "the old result has 19 samples, a comparison needs 20"


def test_nothing_that_can_be_compared_is_an_error(files: Files) -> None:
    few = result_of([4.0] * 19)
    expected = (
        "none of the 1 common cells can be compared\n"
        "resnet50/tensorrt/fp16/b8/single-stream: the old result has 19 samples"
    )
    with pytest.raises(DataError, match=expected):
        files.one(few, few)


def test_no_common_cell_is_an_error_that_says_what_there_is(files: Files) -> None:
    old = BenchmarkRun(tuple(named(name) for name in "abcdef"))
    with pytest.raises(DataError) as caught:
        files.compare(old, BenchmarkRun((), (failed("x"),)))
    first, second, third = str(caught.value).splitlines()
    assert first == f"{files.old} and {files.new} have no cell in common"
    keys = [f"{name}/tensorrt/fp16/b8/single-stream" for name in "abcd"]
    assert second == f"old.json has {', '.join(keys)} and 2 more"
    assert third == "new.json has no results"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file of results .*old\.json"):
        compare_files(tmp_path / "old.json", tmp_path / "new.json")


@pytest.mark.parametrize("share", [-0.1, float("nan"), float("inf")])
def test_a_limit_that_is_no_share_is_refused(files: Files, share: float) -> None:
    with pytest.raises(UsageError, match=f"a share of '{share}', expected 0 or more, as 5% or"):
        files.one(noisy(4.0, 1), noisy(4.0, 2), fail_above=share)


def test_the_report_is_plain_data(files: Files) -> None:
    old = BenchmarkRun((named("kept"), named("lost")))
    new = BenchmarkRun((named("kept", condition=()), named("added")), (failed("lost"),))
    report = json.loads(json.dumps(comparison_to_plain(files.compare(old, new, fail_above=0.05))))
    [pair] = report.pop("pairs")
    assert pair.pop("low") <= pair.pop("ratio") == 1.0 <= pair.pop("high")
    assert pair == {
        "key": "kept/tensorrt/fp16/b8/single-stream",
        "measure": "latency_ms",
        "old": pair["new"],
        "new": pytest.approx(4.0, rel=0.01),
        "verdict": "no difference",
        "differences": [],
        "conditions_old": ["load average 3.1 on 2 cores before the start"],
        "conditions_new": [],
    }
    assert report == {
        "not_compared": [],
        "only_old": [],
        "only_new": ["added/tensorrt/fp16/b8/single-stream"],
        "failed": [
            {
                "key": "lost/tensorrt/fp16/b8/single-stream",
                "kind": "time limit",
                "reason": "took longer than its limit of 60 s",
                "measured_before": True,
            }
        ],
        "failed_only_old": [],
        "fail_above": 0.05,
        "regressions": ["lost/tensorrt/fp16/b8/single-stream"],
    }


@pytest.mark.parametrize(
    ("text", "share"),
    [("5%", 0.05), (" 5 % ", 0.05), ("0.05", 0.05), ("0", 0.0), ("150%", 1.5), ("1e-2", 0.01)],
)
def test_shares_are_read(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "%", "five", "5%%", "5 percent"])
def test_what_is_no_number_is_no_share(text: str) -> None:
    with pytest.raises(UsageError, match=f"a share of '{text}'\nexpected 5% or 0.05"):
        parse_share(text)


@pytest.mark.parametrize("text", ["5", "1", "inf"])
def test_a_number_that_may_be_percent_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"a share of '{text}'\nexpected {text}% or a number belo"):
        parse_share(text)


@pytest.mark.parametrize("text", ["-5%", "-0.05", "nan", "inf%"])
def test_a_share_is_not_negative_or_endless(text: str) -> None:
    with pytest.raises(UsageError, match=f"a share of '{text}', expected 0 or more, as 5% or 0.05"):
        parse_share(text)
