"""Query a runner and keep the time of every query."""

from deploykit.stages.benchmark.clock import Clock, SystemClock
from deploykit.stages.benchmark.harness import benchmark
from deploykit.stages.benchmark.open_loop import arrivals_ns
from deploykit.stages.benchmark.rates import RateSearch, RateTrial, bisect_rate, highest_rate
from deploykit.stages.benchmark.warm_up import is_stable

__all__ = [
    "Clock",
    "RateSearch",
    "RateTrial",
    "SystemClock",
    "arrivals_ns",
    "benchmark",
    "bisect_rate",
    "highest_rate",
    "is_stable",
]
