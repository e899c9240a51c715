"""A and B in turn in one process, after A and A: the machine is the same for both."""

from __future__ import annotations

from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.benchmarking.harness.closed_loop import closed_loop, warm_up
from deploykit.benchmarking.harness.scenarios import SINGLE_STREAM, check_streams
from deploykit.benchmarking.statistics.ab import Round, Rounds, require_pairs
from deploykit.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from deploykit.benchmarking.harness.system import SystemUnderTest
    from deploykit.benchmarking.results import Samples, Switches
    from deploykit.core.progress import ProgressTask

ROUNDS: Final = 50
"""Default number of rounds; many short ones give more pairs, with less drift within each."""

MIN_BLOCK: Final = 3
"""Fewest queries of a block: the first one finds the other model's data in the caches."""

_NO_WARM_UP: Final = np.empty(0, np.float64)


def interleave(
    a: SystemUnderTest,
    b: SystemUnderTest,
    switches: Switches,
    *,
    rounds: int = ROUNDS,
    task: ProgressTask,
) -> Rounds:
    """Warm both up, then measure A against itself and A against B, each in ``rounds`` rounds.

    A round is a block of queries of one side and right after it a block of the other. Half of the
    rounds begin with A, in an order drawn by ``switches.seed``, so that neither a drift nor the
    place in the round favours a side. The blocks of a side together last at least
    ``switches.duration_s`` and have at least ``switches.min_samples`` queries; there are four
    sides: A1 and A2, then A and B.

    Raises:
        UsageError: fewer than 20 rounds, or another scenario than single-stream.
        BaseException: what a runner raises.
    """
    check_rounds(switches, rounds)
    warm_a, warm_b = (warm_up(side, switches, task) for side in (a, b))
    series = _Series(switches, rounds, a.clock.now_ns())
    random = np.random.default_rng(switches.seed)
    tell = partial(task.update, total=2.0 * rounds)
    # A against itself: what differs here is noise of the machine, and no verdict may rest on it.
    aa = series.measure(a, a, random, lambda done: tell(done, detail="A against A"))
    ab = series.measure(a, b, random, lambda done: tell(rounds + done, detail="A against B"))
    return Rounds(aa, ab, warm_a, warm_b)


def check_rounds(switches: Switches, rounds: int) -> None:
    """Check what `interleave` requires, before any runner is opened.

    Raises:
        UsageError: fewer than 20 rounds, or another scenario than single-stream.
    """
    require_pairs(rounds)
    check_streams(switches)
    if switches.scenario != SINGLE_STREAM:
        raise UsageError(
            f"A against B in the {switches.scenario} scenario\n"
            f"only {SINGLE_STREAM} can be interleaved: choose it"
        )


class _Series:
    """Settings that the rounds of two sides share."""

    def __init__(self, switches: Switches, rounds: int, origin_ns: int) -> None:
        self._rounds = rounds
        self._origin_ns = origin_ns
        self._block_ns = ceil(switches.duration_s * 1e9 / rounds)
        self._queries = max(MIN_BLOCK, ceil(switches.min_samples / rounds))

    def measure(
        self,
        a: SystemUnderTest,
        b: SystemUnderTest,
        random: np.random.Generator,
        tell: Callable[[int], None],
    ) -> tuple[Round, ...]:
        """Measure all rounds; ``tell`` is called after each round, never within a block."""
        found = []
        for done, a_first in enumerate(random.permutation(np.arange(self._rounds) % 2 == 0), 1):
            if a_first:
                of_a, of_b = self._block(a), self._block(b)
            else:
                of_b, of_a = self._block(b), self._block(a)
            found.append(Round(of_a, of_b))
            tell(done)
        return tuple(found)

    def _block(self, side: SystemUnderTest) -> Samples:
        block = _Block(self._block_ns, self._queries)
        return closed_loop(side, 1, block, origin_ns=self._origin_ns).samples(_NO_WARM_UP)


class _Block:
    """A goal of time and queries without a display."""

    def __init__(self, block_ns: int, queries: int) -> None:
        self._block_ns = block_ns
        self._queries = queries

    def reached(self, wall_ns: int, elapsed_ns: int) -> bool:  # noqa: ARG002
        self._queries -= 1
        return self._queries <= 0 and elapsed_ns >= self._block_ns
