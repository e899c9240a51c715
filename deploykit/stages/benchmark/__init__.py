"""Query a runner and keep the time of every query."""

from deploykit.stages.benchmark.clock import Clock, SystemClock
from deploykit.stages.benchmark.harness import benchmark, check_switches
from deploykit.stages.benchmark.interleaved import Side, check_rounds, interleave
from deploykit.stages.benchmark.open_loop import arrivals_ns
from deploykit.stages.benchmark.rates import RateSearch, RateTrial, bisect_rate, highest_rate
from deploykit.stages.benchmark.warm_up import is_stable

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
