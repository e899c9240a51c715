"""Query a runner and keep the time of every query."""

from deploykit.benchmarking.harness.closed_loop import is_stable
from deploykit.benchmarking.harness.interleaved import Side, check_rounds, interleave
from deploykit.benchmarking.harness.open_loop import arrivals_ns
from deploykit.benchmarking.harness.rates import RateSearch, RateTrial, bisect_rate, highest_rate
from deploykit.benchmarking.harness.scenarios import benchmark, check_switches
from deploykit.benchmarking.harness.system import Clock, SystemClock

__all__ = [
    "Clock",
    "RateSearch",
    "RateTrial",
    "Side",
    "SystemClock",
    "arrivals_ns",
    "benchmark",
    "bisect_rate",
    "check_rounds",
    "check_switches",
    "highest_rate",
    "interleave",
    "is_stable",
]
