"""A and B in turn, in virtual time."""

from __future__ import annotations

from dataclasses import replace
from itertools import count, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.benchmarking.harness.interleaved import interleave
from deploykit.benchmarking.harness.system import SystemUnderTest
from deploykit.benchmarking.results import Switches
from deploykit.benchmarking.statistics.ab import report_of
from deploykit.benchmarking.statistics.comparing import Verdict
from deploykit.core.errors import DeviceError, UsageError
from tests.virtual_time import FEEDS, MS, RecordingTask, ScriptedRunner, VirtualClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from deploykit.benchmarking.statistics.ab import Round, Rounds

SWITCHES = Switches(
    scenario="single-stream",
    cuda_graph=False,
    transfers=True,
    streams=1,
    spin=False,
    warmup_s=0.0,
    duration_s=1.0,
    min_samples=1,
    seed=0,
)


class Scene:
    """Two runners in one time; ``order`` has the runner of each query as it was asked."""

    def __init__(
        self, a: Callable[[int, int], float] | float, b: Callable[[int, int], float] | float
    ) -> None:
        self.clock = VirtualClock()
        self.task = RecordingTask()
        self.order: list[str] = []
        self.a, self.b = self._side("a", a), self._side("b", b)

    def _side(self, name: str, script: Callable[[int, int], float] | float) -> SystemUnderTest:
        def latency_ms(number: int, now_ns: int) -> float:
            self.order.append(name)
            return script(number, now_ns) if callable(script) else script

        return SystemUnderTest(ScriptedRunner(self.clock, latency_ms), FEEDS, self.clock)

    def measure(self, switches: Switches = SWITCHES, rounds: int = 20) -> Rounds:
        return interleave(self.a, self.b, switches, rounds=rounds, task=self.task)


def blocks(pairs: tuple[Round, ...]) -> list[Any]:
    """In the order in which they were measured."""
    return [block for each in pairs for block in sorted((each.a, each.b), key=begin)]


def begin(block: Any) -> float:
    return float(block.start_s[0])


def test_a_is_measured_against_itself_and_then_against_b() -> None:
    scene = Scene(5.0, 10.0)
    rounds = scene.measure()
    # 50 ms a block: ten queries of A, five of B.
    assert [len(each.a) for each in rounds.aa] == [len(each.b) for each in rounds.aa] == [10] * 20
    assert [len(each.a) for each in rounds.ab] == [10] * 20
    assert [len(each.b) for each in rounds.ab] == [5] * 20
    assert scene.order[:400] == ["a"] * 400
    assert scene.order[400:].count("a") == 200
    assert scene.order[400:].count("b") == 100


def test_every_query_is_kept_with_its_steps_and_its_begin() -> None:
    script = np.random.default_rng(0).uniform(1, 9, 10_000).round(3)
    scene = Scene(lambda number, _: float(script[number]), 20.25)
    rounds = scene.measure(replace(SWITCHES, warmup_s=0.05))
    warm = len(rounds.warmup_a_ms)
    assert rounds.warmup_a_ms == pytest.approx(script[:warm])
    assert set(rounds.warmup_b_ms) == {20.25}
    asked = [block for block in blocks(rounds.aa + rounds.ab) if 20.25 not in block.wall_ms]
    of_a = np.concatenate([block.wall_ms for block in asked])
    assert of_a == pytest.approx(script[warm : warm + len(of_a)])
    compute = np.concatenate([block.compute_ms for block in asked])
    assert compute == pytest.approx(of_a * 0.9)
    every = blocks(rounds.aa + rounds.ab)
    queries = len(np.concatenate([rounds.warmup_a_ms, rounds.warmup_b_ms]))
    assert queries + sum(map(len, every)) == len(scene.order)
    # One after the other without a gap: nothing was left out.
    begins = np.concatenate([block.start_s for block in every])
    lasted = np.concatenate([block.wall_ms for block in every])
    assert begins[0] == 0
    assert np.diff(begins) * 1e3 == pytest.approx(lasted[:-1], abs=1e-5)


def test_both_are_warmed_up_first() -> None:
    scene = Scene(5.0, 10.0)
    rounds = scene.measure(replace(SWITCHES, warmup_s=0.2))
    a, b = len(rounds.warmup_a_ms), len(rounds.warmup_b_ms)
    assert a >= 40
    assert b >= 20
    assert scene.order[: a + b] == ["a"] * a + ["b"] * b
    assert begin(blocks(rounds.aa)[0]) == 0


@pytest.mark.parametrize("rounds", [20, 21, 40])
def test_each_side_is_first_in_half_of_the_rounds(rounds: int) -> None:
    measured = Scene(5.0, 10.0).measure(rounds=rounds)
    for pairs in (measured.aa, measured.ab):
        assert sum(each.a_first for each in pairs) in {rounds // 2, (rounds + 1) // 2}


def orders(seed: int) -> tuple[list[bool], list[bool]]:
    rounds = Scene(5.0, 10.0).measure(replace(SWITCHES, seed=seed))
    return [each.a_first for each in rounds.aa], [each.a_first for each in rounds.ab]


def test_the_seed_draws_the_order() -> None:
    assert orders(1) == orders(1)
    assert orders(1) != orders(2)
    one, other = orders(1)
    assert one != other
    assert one not in ([True, False] * 10, [True] * 10 + [False] * 10)


def test_the_two_blocks_of_a_round_follow_each_other() -> None:
    rounds = Scene(5.0, 10.0).measure()
    for pairs in (rounds.aa, rounds.ab):
        begins = [begin(block) for block in blocks(pairs)]
        assert all(one < other for one, other in pairwise(begins))


def test_the_asked_number_of_queries_is_shared_by_the_rounds() -> None:
    switches = replace(SWITCHES, duration_s=0.0, min_samples=201)
    rounds = Scene(5.0, 10.0).measure(switches)
    assert {len(block) for block in blocks(rounds.aa + rounds.ab)} == {11}


def test_a_block_has_three_queries_at_least() -> None:
    rounds = Scene(500.0, 900.0).measure()
    assert {len(block) for block in blocks(rounds.aa + rounds.ab)} == {3}


def test_progress_is_told_once_a_round() -> None:
    scene = Scene(5.0, 10.0)
    scene.measure()
    expected = [(float(n), 40.0, "A against A" if n <= 20 else "A against B") for n in range(1, 41)]
    assert scene.task.shown == expected


def test_a_side_may_be_measured_against_itself() -> None:
    scene = Scene(5.0, 1.0)
    rounds = interleave(scene.a, scene.a, SWITCHES, task=scene.task)
    assert scene.order == ["a"] * 800
    assert report_of(rounds).verdict is Verdict.NO_DIFFERENCE


def speed(now_ns: int) -> float:
    """A machine that loses a third of its speed now and then, and drifts."""
    second = now_ns / 1e9
    return (1.5 if int(second / 0.7) % 3 == 1 else 1.0) * (1 + 0.05 * second)


@pytest.mark.parametrize(
    ("b_ms", "verdict"),
    [(4.0, Verdict.NO_DIFFERENCE), (4.4, Verdict.SLOWER), (3.6, Verdict.FASTER)],
)
def test_a_machine_that_changes_its_speed_does_not_change_the_verdict(
    b_ms: float, verdict: Verdict
) -> None:
    scene = Scene(lambda _, now_ns: 4.0 * speed(now_ns), lambda _, now_ns: b_ms * speed(now_ns))
    report = report_of(scene.measure(replace(SWITCHES, duration_s=2.0)))
    assert report.verdict is verdict
    assert report.comparison.ratio.value == pytest.approx(b_ms / 4.0, rel=0.02)


def test_recorded_times_give_the_report_that_numpy_gives() -> None:
    recorded = np.random.default_rng(7).lognormal(1.0, 0.1, 5_000).round(6)
    numbers = count()
    scene = Scene(
        lambda *_: float(recorded[next(numbers)]), lambda *_: float(recorded[next(numbers)])
    )
    rounds = scene.measure()
    report = report_of(rounds)
    a = np.array([np.median(each.a.latency_ms) for each in rounds.ab])
    b = np.array([np.median(each.b.latency_ms) for each in rounds.ab])
    assert report.comparison.ratio.value == pytest.approx(np.exp(np.median(np.log(b / a))))
    assert report.a_ms == pytest.approx(np.median(a))


def test_too_few_rounds_are_refused_before_anything_runs() -> None:
    scene = Scene(5.0, 10.0)
    with pytest.raises(UsageError, match=r"^19 rounds of A and B\nexpected at least 20$"):
        scene.measure(rounds=19)
    assert scene.order == []


@pytest.mark.parametrize("scenario", ["offline", "server"])
def test_only_one_stream_can_be_interleaved(scenario: str) -> None:
    scene = Scene(5.0, 10.0)
    expected = f"^A against B in the {scenario} scenario\nonly single-stream can be interleaved"
    with pytest.raises(UsageError, match=expected):
        scene.measure(replace(SWITCHES, scenario=scenario))
    with pytest.raises(
        UsageError, match=r"^2 streams in the single-stream scenario, which has one"
    ):
        scene.measure(replace(SWITCHES, streams=2))
    assert scene.order == []


def test_what_a_runner_raises_reaches_the_caller() -> None:
    def fails(number: int, now_ns: int) -> float:
        if number == 7:
            raise DeviceError("the GPU is gone")
        return 10.0

    with pytest.raises(DeviceError, match="the GPU is gone"):
        Scene(5.0, fails).measure()


def test_time_starts_after_the_warm_up() -> None:
    scene = Scene(5.0, 10.0)
    before_ns = scene.clock.now_ns()
    rounds = scene.measure(replace(SWITCHES, warmup_s=0.2))
    warm_ms = rounds.warmup_a_ms.sum() + rounds.warmup_b_ms.sum()
    every = blocks(rounds.aa + rounds.ab)
    last_ms = every[-1].start_s[-1] * 1e3 + every[-1].wall_ms[-1]
    assert (scene.clock.now_ns() - before_ns) / MS == pytest.approx(warm_ms + last_ms)
