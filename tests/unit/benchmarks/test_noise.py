"""What the count of right verdicts counts, and what it slows down."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks import noise
from benchmarks.harness_check import feeds_of
from benchmarks.noise import METHODS, SLOWER, WANTED, Try, counts, missed, table, tries_made
from benchmarks.noise_one import Slowed, opened
from deploykit.backends import GraphOptions
from deploykit.backends.ort import OrtRunner
from deploykit.benchmarking.results import read_run
from tests.graphs import graph

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

NET = "g (float[batch, 3, 2, 2] x) => (float[batch, 3, 2, 2] y) { y = Relu(x) }"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(graph(NET, {}).SerializeToString())
    return path


def a_try(number: int, method: str, slower: float, verdict: str) -> Try:
    ratio = {"value": 1.0, "low": 0.9, "high": 1.1}
    return Try(number, method, slower, verdict, ratio, 0.02, ("busy",) if number == 0 else ())


def tries(wrong: Iterable[tuple[str, float, int]] = ()) -> list[Try]:
    """A hundred, all right but for some of a method and slowdown."""
    faults = {(method, slower): count for method, slower, count in wrong}
    return [
        a_try(
            number,
            method,
            slower,
            "faster" if number < faults.get((method, slower), 0) else WANTED[slower][0].value,
        )
        for number in range(100)
        for method in METHODS
        for slower in WANTED
    ]


def test_verdicts_are_counted_by_method_and_slowdown() -> None:
    found = counts(tries([(METHODS[1], SLOWER, 7)]))
    assert found[METHODS[1], SLOWER] == {"slower": 93, "faster": 7}
    assert found[METHODS[0], 0.0] == {"no difference": 100}
    assert sum(count.total() for count in found.values()) == 400


@pytest.mark.parametrize(("slower", "allowed"), [(0.0, 5), (SLOWER, 10)])
def test_a_goal_is_missed_by_one_more_than_it_allows(slower: float, allowed: int) -> None:
    assert missed(tries([(METHODS[0], slower, allowed)])) == []
    expected = [f"{METHODS[0]}, {slower:.0%} slower"]
    assert missed(tries([(METHODS[0], slower, allowed + 1)])) == expected
    assert missed(tries([(METHODS[1], slower, 100)])) == []


def test_the_table_shows_every_verdict() -> None:
    lines = table(tries([(METHODS[0], 0.0, 3)])).splitlines()
    shown = "| interleaved | 0% slower | no difference 97, faster 3 | 97 of 100 | 95 of 100 |"
    assert lines[2] == shown
    assert lines[-1] == "4 of 400 comparisons were made on a busy machine"


def test_a_call_that_ended_early_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "RESULTS", tmp_path / "noise.json")
    assert noise.read_tries() == []
    some = tries()[:8]
    noise.write(some, complete=False)
    assert noise.read_tries() == some
    assert [tries_made(some, method) for method in METHODS] == [2, 2]
    assert tries_made(some[:2], METHODS[0]) == 1
    assert tries_made(some[:2], METHODS[1]) == 0
    noise.write(some, complete=True)
    assert noise.read_tries() == []


def test_tries_with_other_settings_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noise, "RESULTS", tmp_path / "noise.json")
    noise.write(tries(), complete=False)
    told = json.loads(noise.RESULTS.read_text())
    told["settings"]["result_s"] = 99.0
    noise.RESULTS.write_text(json.dumps(told))
    assert noise.read_tries() == []


def test_a_slowed_runner_is_the_runner(model: Path) -> None:
    with OrtRunner(model, GraphOptions(threads=1)) as runner:
        slowed = Slowed(runner, extra_ns=1_000)
        feeds = feeds_of(slowed)
        assert (slowed.inputs, slowed.outputs) == (runner.inputs, runner.outputs)
        expected = np.maximum(feeds["x"].astype(np.float32), 0)
        np.testing.assert_array_equal(slowed.run(feeds)["y"], expected)
        np.testing.assert_array_equal(slowed.run_timed(feeds)[0]["y"], expected)


def test_a_slowed_runner_closes_the_runner(model: Path) -> None:
    runner = OrtRunner(model, GraphOptions(threads=1))
    with Slowed(runner, 0) as slowed:
        assert slowed.inputs
    with pytest.raises(ValueError, match="closed"):
        runner.run({})


def test_a_share_is_one_of_the_time_that_the_runner_takes(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.noise_one.bare_loop", lambda call, block_s: (2.5, 7))
    with OrtRunner(model, GraphOptions(threads=1)) as runner:
        slowed = Slowed.by_share(runner, 0.1)
    assert slowed.extra_ns == 250_000


def test_each_side_has_a_session_of_its_own(model: Path) -> None:
    with ExitStack() as stack:
        one, other = opened(stack, model), opened(stack, model, slower=0.1)
        assert isinstance(other.runner, Slowed)
        assert isinstance(one.runner, OrtRunner)
    with pytest.raises(ValueError, match="closed"):
        one.runner.run({})


def test_a_process_writes_what_the_other_one_reads(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noise, "RESULT_S", 0.02)
    noise.measure_one(model, 0.1, tmp_path / "one.json")
    (found,) = read_run(tmp_path / "one.json").results
    assert (found.switches.threads, found.switches.duration_s) == (1, 0.02)
    alone = noise.compared(3, 0.1, found, found)
    assert (alone.number, alone.method, alone.slower) == (3, "two processes", 0.1)
    assert (alone.verdict, alone.ratio["value"]) == ("no difference", 1.0)


def test_interleaved_rounds_make_a_try(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "SIDE_S", 0.0)
    found = noise.interleaved(model, 7, 0.0)
    assert (found.number, found.method, found.slower) == (7, "interleaved", 0.0)
    assert found.ratio["low"] <= found.ratio["value"] <= found.ratio["high"]
    assert found.min_effect >= 0.02
