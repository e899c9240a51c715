"""One measurement, in any of the three scenarios."""

from __future__ import annotations

from math import ceil, isfinite
from typing import TYPE_CHECKING

from deploykit.benchmarking.harness.closed_loop import Display, Enough, closed_loop, warm_up
from deploykit.benchmarking.harness.open_loop import arrivals_ns, open_loop
from deploykit.benchmarking.harness.system import SystemUnderTest, ignored
from deploykit.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from deploykit.benchmarking.harness.system import Clock
    from deploykit.benchmarking.results import Samples, Switches
    from deploykit.core.progress import ProgressTask
    from deploykit.core.specs import Array, QueryQueue, Runner

SINGLE_STREAM = "single-stream"
SERVER = "server"


def benchmark(  # noqa: PLR0913  (what is measured, how, and who wants to know of it)
    runner: Runner,
    feeds: Mapping[str, Array],
    switches: Switches,
    *,
    clock: Clock,
    task: ProgressTask,
    rate_per_s: float | None = None,
    on_warm: Callable[[], None] = ignored,
    queue: QueryQueue | None = None,
) -> tuple[Samples, float]:
    """Warm up, then measure; return the samples and the duration of the measurement in s.

    ``runner`` is open and stays the caller's. ``feeds`` is the one batch of every query. Scenarios
    are those of MLPerf Inference:

    - single-stream: one query after the other; in a ``queue`` of the runner's the next begins
      before the last has ended.
    - offline: ``switches.streams`` threads, each with a query under way.
    - server: queries arrive at random (Poisson) at ``rate_per_s`` and are served by
      ``switches.streams`` threads; ``wall_ms`` and ``start_s`` count from the scheduled moment.

    ``wall_ms`` is what the caller of the runner waits, by ``clock``; the other steps are the
    runner's own. ``on_warm`` is called when the warm-up has ended. The duration is from the first
    begin to the last end; in the server scenario from the start of the schedule, one mean gap
    before its first query.

    Raises:
        UsageError: switches that do not go together, or a rate that makes no sense.
        BaseException: what the runner raises, once, after all threads have ended.
    """
    check_streams(switches)
    system = SystemUnderTest(runner, feeds, clock, on_warm, queue)
    if switches.scenario == SERVER:
        return _server(system, switches, check_rate(rate_per_s), task)
    if rate_per_s is not None:
        raise UsageError(
            f"a rate of {rate_per_s:g} queries per second for the {switches.scenario} scenario\n"
            f"only the {SERVER} scenario has a rate: leave it out, or choose that scenario"
        )
    return _closed(system, switches, task)


def check_switches(switches: Switches) -> None:
    """Check that switches go together, before any model is prepared for them.

    Raises:
        UsageError: several streams where there is one by definition, or a rate or a bound outside
            of the server scenario, which needs exactly one of them.
    """
    check_streams(switches)
    given = [each for each in (switches.rate_per_s, switches.bound_ms) if each is not None]
    if switches.scenario == SERVER and len(given) != 1:
        raise UsageError(
            f"the {SERVER} scenario with {'both a' if given else 'neither'} rate "
            f"{'and' if given else 'nor'} a bound\n"
            "give the queries per second, or the milliseconds that the highest rate must keep"
        )
    if switches.scenario != SERVER and given:
        raise UsageError(
            f"a rate or a bound for the {switches.scenario} scenario\n"
            f"only the {SERVER} scenario has one: leave it out, or choose that scenario"
        )


def check_streams(switches: Switches) -> None:
    """Refuse several streams in the scenario that has one by definition, and a queue in others."""
    if switches.scenario != SINGLE_STREAM and switches.queue != 1:
        raise UsageError(
            f"overlapped queries in the {switches.scenario} scenario\n"
            f"only {SINGLE_STREAM} has a queue: leave out --overlap, or choose that scenario"
        )
    if switches.scenario == SINGLE_STREAM and switches.streams != 1:
        raise UsageError(
            f"{switches.streams} streams in the {SINGLE_STREAM} scenario, which has one\n"
            "for several queries at the same time choose the offline or the server scenario"
        )


def check_rate(rate_per_s: float | None) -> float:
    """Return the rate if it is a positive number, otherwise raise."""
    if rate_per_s is None or not isfinite(rate_per_s) or rate_per_s <= 0:
        found = "no rate" if rate_per_s is None else f"a rate of {rate_per_s:g}"
        raise UsageError(
            f"{found} for the {SERVER} scenario\n"
            "expected the queries per second that arrive, more than 0"
        )
    return rate_per_s


def query_count(switches: Switches, rate_per_s: float) -> int:
    """Number of queries of a server measurement: for its duration, and at least the minimum."""
    return max(switches.min_samples, ceil(rate_per_s * switches.duration_s))


def _closed(
    system: SystemUnderTest, switches: Switches, task: ProgressTask
) -> tuple[Samples, float]:
    warmup_ms = warm_up(system, switches, task)
    goal = Enough(switches.duration_s, switches.min_samples, Display(task, "measure"))
    recording = closed_loop(system, switches.streams, goal)
    return recording.samples(warmup_ms), recording.duration_s


def _server(
    system: SystemUnderTest, switches: Switches, rate_per_s: float, task: ProgressTask
) -> tuple[Samples, float]:
    # Drawn before the warm-up, so that the measurement follows the warm-up at once.
    schedule_ns = arrivals_ns(query_count(switches, rate_per_s), rate_per_s, switches.seed)
    warmup_ms = warm_up(system, switches, task)
    display = Display(task, "measure")
    served = open_loop(system, switches.streams, schedule_ns, display, lambda _latency_ms: False)
    return served.samples(warmup_ms), served.duration_s
