"""The highest rate of queries that a model serves within a bound on its latency."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, isfinite
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.benchmarking.harness.closed_loop import Display, Enough, closed_loop, warm_up
from deploykit.benchmarking.harness.open_loop import arrivals_ns, open_loop
from deploykit.benchmarking.harness.scenarios import query_count
from deploykit.benchmarking.harness.system import SystemUnderTest, ignored
from deploykit.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from deploykit.benchmarking.harness.recording import Recording
    from deploykit.benchmarking.harness.system import Clock
    from deploykit.benchmarking.results import Samples, Switches
    from deploykit.core.progress import ProgressTask
    from deploykit.core.specs import Array, Runner

TOLERANCE: Final = 0.02
"""Share between the best rate and the lowest that failed at which the search ends."""

MAX_TRIALS: Final = 20
HALVINGS: Final = 6
"""Halvings of the first rate before the search gives up, at 1/64 of it."""

_CAPACITY_SHARE: Final = 0.25
_CAPACITY_QUERIES: Final = 10


@dataclass(frozen=True, slots=True)
class RateTrial:
    """One rate that was tried.

    ``latency_ms`` is the percentile (nearest rank); ``None`` where the trial ended early, because
    too many queries were late already.
    """

    rate_per_s: float
    queries: int
    late: int
    latency_ms: float | None
    passed: bool


@dataclass(frozen=True)
class RateSearch:
    """The best rate that passed, with its measurement; ``None`` where none did.

    ``trials`` are in the order in which they were run.
    """

    trials: tuple[RateTrial, ...]
    rate_per_s: float | None
    samples: Samples | None
    duration_s: float | None


def highest_rate(  # noqa: PLR0913  (the signature of `benchmark`, and the bound)
    runner: Runner,
    feeds: Mapping[str, Array],
    switches: Switches,
    *,
    bound_ms: float,
    percentile: float = 99.0,
    clock: Clock,
    task: ProgressTask,
    on_warm: Callable[[], None] = ignored,
) -> RateSearch:
    """Search the highest Poisson rate whose latency percentile stays within ``bound_ms``.

    After a warm-up, at whose end ``on_warm`` is called, the throughput of ``switches.streams``
    closed loops says where to begin: no queue is stable above it. Each trial is a measurement in
    the server scenario, all with the same seed. A trial passes when at most ``100 - percentile``
    percent of all its queries are late, and ends as soon as more are.

    Raises:
        UsageError: another scenario, a bound or percentile that makes no sense, or too few
            queries for this percentile.
        BaseException: what the runner raises, once, after all threads have ended.
    """
    _check(switches, bound_ms, percentile)
    system = SystemUnderTest(runner, feeds, clock, on_warm)
    warmup_ms = warm_up(system, switches, task)
    search = _Search(system, switches, (bound_ms, percentile), task)
    # Half of the capacity: random arrivals form queues well below it.
    best = bisect_rate(search.passes, _capacity_per_s(system, switches, task) / 2)
    served = None if best is None else search.served[best]
    return RateSearch(
        trials=tuple(search.trials),
        rate_per_s=best,
        samples=None if served is None else served.samples(warmup_ms),
        duration_s=None if served is None else served.duration_s,
    )


def bisect_rate(
    passes: Callable[[float], bool],
    first: float,
    *,
    tolerance: float = TOLERANCE,
    max_trials: int = MAX_TRIALS,
) -> float | None:
    """The highest rate that passes, to ``tolerance``; ``None`` where none down to 1/64 does.

    Doubles or halves ``first`` until the answer lies between two rates, then tries their middle.
    The answer passed when it was tried. Where noise lets a rate pass above one that failed, one
    of the borders between them is found.

    >>> tried = []
    >>> bisect_rate(lambda rate: tried.append(rate) or rate <= 70, 50, tolerance=0.05)
    68.75
    >>> tried
    [50, 100, 75.0, 62.5, 68.75, 71.875]
    """
    best: float | None = None
    failed: float | None = None
    rate = first
    for _ in range(max_trials):
        if passes(rate):
            best = rate
        else:
            failed = rate
        if best is not None and failed is not None and failed <= best * (1 + tolerance):
            break
        if failed is not None and failed <= first / 2**HALVINGS:
            break
        rate = _next_rate(best, failed)
    return best


def _next_rate(best: float | None, failed: float | None) -> float:
    if failed is None:
        return (best or 0.0) * 2
    return failed / 2 if best is None else (best + failed) / 2


def allowed_late(queries: int, percentile: float) -> int:
    """Number of queries that may be late while the percentile (nearest rank) is in time.

    >>> allowed_late(1000, 99.0), allowed_late(1000, 99.9), allowed_late(99, 99.0)
    (10, 1, 0)
    """
    # The small addition: 100 - 99.9 is a little less than 0.1.
    return floor(queries * (100.0 - percentile) / 100.0 + 1e-6)


class _LateCounter:
    """Counts late queries; a trial with too many is hopeless."""

    def __init__(self, bound_ms: float, allowed: int) -> None:
        self._bound_ms = bound_ms
        self._allowed = allowed
        self.late = 0

    @property
    def passed(self) -> bool:
        return self.late <= self._allowed

    def is_hopeless(self, latency_ms: float) -> bool:
        self.late += latency_ms > self._bound_ms
        return not self.passed


class _Search:
    """Runs trials of rates and keeps their results."""

    def __init__(
        self,
        system: SystemUnderTest,
        switches: Switches,
        demand: tuple[float, float],
        task: ProgressTask,
    ) -> None:
        self.trials: list[RateTrial] = []
        self.served: dict[float, Recording] = {}
        self._system = system
        self._switches = switches
        self._bound_ms, self._percentile = demand
        self._task = task

    def passes(self, rate_per_s: float) -> bool:
        """Run the trial of one rate; True if it passed."""
        count = query_count(self._switches, rate_per_s)
        allowed = allowed_late(count, self._percentile)
        counter = _LateCounter(self._bound_ms, allowed)
        schedule_ns = arrivals_ns(count, rate_per_s, self._switches.seed)
        display = Display(self._task, f"trial {len(self.trials) + 1}: {rate_per_s:.4g}/s")
        served = open_loop(
            self._system, self._switches.streams, schedule_ns, display, counter.is_hopeless
        )
        wall_ms = served.wall_ms
        self.trials.append(
            RateTrial(
                rate_per_s=rate_per_s,
                queries=len(wall_ms),
                late=counter.late,
                latency_ms=_nearest_rank(wall_ms, allowed) if len(wall_ms) == count else None,
                passed=counter.passed,
            )
        )
        if counter.passed:
            self.served = {rate_per_s: served}  # the best so far: rates that pass only go up
        return counter.passed


def _nearest_rank(wall_ms: NDArray[np.float64], above: int) -> float:
    """The value that ``above`` others exceed or equal."""
    return float(np.sort(wall_ms)[len(wall_ms) - above - 1])


def _capacity_per_s(system: SystemUnderTest, switches: Switches, task: ProgressTask) -> float:
    """Queries per second of as many closed loops as there are workers."""
    duration_s = switches.duration_s * _CAPACITY_SHARE
    goal = Enough(duration_s, _CAPACITY_QUERIES * switches.streams, Display(task, "capacity"))
    recording = closed_loop(system, switches.streams, goal)
    return len(recording.begin_ns) / recording.duration_s


def _check(switches: Switches, bound_ms: float, percentile: float) -> None:
    if switches.scenario != "server":
        raise UsageError(
            f"the highest rate of the {switches.scenario} scenario\n"
            "only the server scenario has a rate: choose it"
        )
    if not isfinite(bound_ms) or bound_ms <= 0:
        raise UsageError(f"a latency bound of {bound_ms:g} ms, expected more than 0")
    if not 0 < percentile < 100:  # noqa: PLR2004
        raise UsageError(f"percentile {percentile:g}, expected more than 0 and less than 100")
    if not allowed_late(switches.min_samples, percentile):
        needed = int(np.ceil(round(100 / (100 - percentile), 6)))
        raise UsageError(
            f"{switches.min_samples} queries do not carry the percentile {percentile:g}\n"
            f"expected min_samples of {needed} or more"
        )
