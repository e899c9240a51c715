"""Two throughputs beside each other, in the times that they come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deploykit.benchmarking.comparing import ratio_of_means

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deploykit.benchmarking.comparing import Ratio
    from deploykit.benchmarking.results import BenchmarkResult

    Series = NDArray[np.float64]


def ratio_of_query_times(old: BenchmarkResult, new: BenchmarkResult, *, seed: int = 0) -> Ratio:
    """Time per completed query, new over old: the inverse ratio of the throughputs.

    Raises:
        DataError: fewer than 20 rounds of all streams, or one that took no time.
    """
    return ratio_of_means(query_times_ms(old), query_times_ms(new), seed=seed)


def query_times_ms(result: BenchmarkResult) -> Series:
    """How long a query took on average in each round (rounds,) of a closed loop.

    A round is as many completions as there are streams, from the last of the round before to its
    own last; streams that end together, as on a GPU, would otherwise give times of nothing and of
    several queries in turn. Rounds add up to the measurement, but for what is left of the last.
    """
    samples, streams = result.samples, result.switches.streams
    begin_ms = samples.start_s * 1e3
    ends_ms = np.sort(begin_ms + samples.wall_ms)
    times: Series = np.diff(ends_ms[streams - 1 :: streams], prepend=begin_ms[0]) / streams
    return times
