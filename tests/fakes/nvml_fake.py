"""The few functions of ``pynvml`` that are used, over a script of clocks and reasons."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Event
from types import SimpleNamespace
from typing import Any


class FakeNvmlError(Exception):
    """What every function of NVML raises."""


@dataclass
class FakeNvml:
    """One GPU at ``bus``; each reading takes the next of ``clocks_mhz`` and of ``reasons``.

    The last of them stays. ``failing`` functions raise. ``read_enough`` is set after the last of
    ``reasons`` was taken, so that a test can wait for the readings instead of for a time.
    ``asked_for`` has the bus ids by which a GPU was looked for.
    """

    bus: str = "0000:3B:00.0"
    clocks_mhz: list[int] = field(default_factory=lambda: [1980])
    reasons: list[int] = field(default_factory=lambda: [0])
    busy_percent: int = 0
    failing: frozenset[str] = frozenset()
    open_count: int = 0
    read_enough: Event = field(default_factory=Event)
    asked_for: list[str] = field(default_factory=list)

    NVMLError: type[Exception] = FakeNvmlError
    NVML_CLOCK_SM: int = 1
    NVML_CLOCK_MEM: int = 2
    NVML_TEMPERATURE_GPU: int = 0

    def nvmlInit(self) -> None:  # noqa: N802  (here and below: NVML's own names)
        self._may_fail("nvmlInit")
        self.open_count += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open_count -= 1

    def nvmlDeviceGetHandleByPciBusId(self, bus: str, /) -> str:  # noqa: N802
        self.asked_for.append(bus)
        if bus != self.bus:
            raise FakeNvmlError("Not Found")
        return "handle"

    def nvmlDeviceGetClockInfo(self, handle: Any, kind: int, /) -> int:  # noqa: N802
        self._may_fail("nvmlDeviceGetClockInfo", handle)
        return _next(self.clocks_mhz) if kind == self.NVML_CLOCK_SM else 2619

    def nvmlDeviceGetMaxClockInfo(self, handle: Any, kind: int, /) -> int:  # noqa: N802
        self._may_fail("nvmlDeviceGetMaxClockInfo", handle)
        assert kind == self.NVML_CLOCK_SM
        return 1980

    def nvmlDeviceGetPowerUsage(self, handle: Any, /) -> int:  # noqa: N802
        self._may_fail("nvmlDeviceGetPowerUsage", handle)
        return 312_500

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Any, /) -> int:  # noqa: N802
        self._may_fail("nvmlDeviceGetEnforcedPowerLimit", handle)
        return 700_000

    def nvmlDeviceGetTemperature(self, handle: Any, kind: int, /) -> int:  # noqa: N802
        self._may_fail("nvmlDeviceGetTemperature", handle)
        assert kind == self.NVML_TEMPERATURE_GPU
        return 61

    def nvmlDeviceGetUtilizationRates(self, handle: Any, /) -> Any:  # noqa: N802
        self._may_fail("nvmlDeviceGetUtilizationRates", handle)
        return SimpleNamespace(gpu=self.busy_percent, memory=0)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: Any, /) -> int:  # noqa: N802
        self._may_fail("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        if len(self.reasons) == 1:
            self.read_enough.set()
        return _next(self.reasons)

    def _may_fail(self, function: str, handle: Any = "handle") -> None:
        assert handle == "handle"
        if function in self.failing:
            raise FakeNvmlError("Not Supported")


def _next(values: list[int]) -> int:
    return values.pop(0) if len(values) > 1 else values[0]
