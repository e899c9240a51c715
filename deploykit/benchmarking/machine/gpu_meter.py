"""Clocks, power, temperature and throttling of a GPU while something runs on it, from NVML."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import fmean
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast

from deploykit.core.environment import gpus, require
from deploykit.core.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Value = TypeVar("Value")

INTERVAL_S: Final = 0.1
"""Time between two readings. The driver averages power over a longer time, so that more readings
would show nothing new, and each one takes the driver from the thread that launches."""

REASONS: Final[Mapping[int, str]] = {
    0x004: "power limit",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "software thermal limit",
    0x040: "hardware thermal limit",
    0x080: "power brake",
}
"""Bits of nvml.h (``nvmlClocksThrottleReason...``) that mean slower than the GPU could be. Left
out are idle, a clock that a user set, and the display's."""


class Nvml(Protocol):
    """The part of the module ``pynvml`` that is used; a handle is opaque."""

    NVMLError: type[Exception]
    NVML_CLOCK_SM: int
    NVML_CLOCK_MEM: int
    NVML_TEMPERATURE_GPU: int

    def nvmlInit(self) -> None: ...  # noqa: N802, D102  (NVML's own names, here and below)
    def nvmlShutdown(self) -> None: ...  # noqa: N802, D102
    def nvmlDeviceGetHandleByPciBusId(self, bus: str, /) -> Any: ...  # noqa: N802, D102
    def nvmlDeviceGetClockInfo(self, handle: Any, kind: int, /) -> int: ...  # noqa: N802, D102
    def nvmlDeviceGetMaxClockInfo(self, handle: Any, kind: int, /) -> int: ...  # noqa: N802, D102
    def nvmlDeviceGetPowerUsage(self, handle: Any, /) -> int: ...  # noqa: N802, D102
    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Any, /) -> int: ...  # noqa: N802, D102
    def nvmlDeviceGetTemperature(self, handle: Any, kind: int, /) -> int: ...  # noqa: N802, D102
    def nvmlDeviceGetUtilizationRates(self, handle: Any, /) -> Any: ...  # noqa: N802, D102
    def nvmlDeviceGetCurrentClocksThrottleReasons(  # noqa: N802, D102
        self, handle: Any, /
    ) -> int: ...


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One reading; ``None`` where the GPU reports nothing. ``reasons`` are NVML's bits."""

    sm_mhz: int | None
    memory_mhz: int | None
    power_w: float | None
    temperature_c: int | None
    reasons: int | None


@dataclass(frozen=True)
class GpuConditions:
    """The GPU before and during one measurement, over ``readings`` moments.

    ``busy_before`` is the share of the last second or less in which some kernel ran, from 0 to 1.
    ``throttled`` has, for each reason that occurred (`REASONS`), the share of the readings;
    ``None`` where the GPU reports none.
    """

    readings: int
    busy_before: float | None
    sm_min_mhz: int | None
    sm_mean_mhz: float | None
    sm_limit_mhz: int | None
    memory_min_mhz: int | None
    power_mean_w: float | None
    power_max_w: float | None
    power_limit_w: float | None
    temperature_max_c: int | None
    throttled: Mapping[str, float] | None


class GpuMeter:
    """One GPU of NVML, open until it is closed.

    Raises:
        Exception: ``nvml.NVMLError`` where NVML does not start or does not know this GPU.
    """

    def __init__(self, nvml: Nvml, bus_id: str) -> None:
        self._nvml = nvml
        nvml.nvmlInit()
        try:
            self._handle = nvml.nvmlDeviceGetHandleByPciBusId(bus_id)
        except nvml.NVMLError:
            # NVML counts how often it was started; without this the count stays too high.
            nvml.nvmlShutdown()
            raise

    def busy(self) -> float | None:
        """Share of the driver's last sampling period in which a kernel ran, from 0 to 1."""
        rates = self._ask(self._nvml.nvmlDeviceGetUtilizationRates)
        return None if rates is None else int(rates.gpu) / 100

    def sm_limit_mhz(self) -> int | None:
        """The highest clock of the GPU."""
        return self._ask(self._nvml.nvmlDeviceGetMaxClockInfo, self._nvml.NVML_CLOCK_SM)

    def power_limit_w(self) -> float | None:
        """Power limit of the GPU."""
        return _watts(self._ask(self._nvml.nvmlDeviceGetEnforcedPowerLimit))

    def read(self) -> GpuReading:
        """Read all values now."""
        nvml = self._nvml
        return GpuReading(
            sm_mhz=self._ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
            memory_mhz=self._ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
            power_w=_watts(self._ask(nvml.nvmlDeviceGetPowerUsage)),
            temperature_c=self._ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
            # By its old name, which drivers before 535 know too.
            reasons=self._ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons),
        )

    def close(self) -> None:
        """Shut NVML down."""
        self._nvml.nvmlShutdown()

    def _ask(self, question: Callable[..., Value], *arguments: int) -> Value | None:
        """The answer; ``None`` where this GPU or this driver has none."""
        try:
            return question(self._handle, *arguments)
        except self._nvml.NVMLError:
            return None


class GpuSampler:
    """Reads a meter in a thread of its own, from `start` to `stop`."""

    def __init__(self, meter: GpuMeter, interval_s: float = INTERVAL_S) -> None:
        self._meter = meter
        self._interval_s = interval_s
        self._ended = Event()
        self._readings: list[GpuReading] = []
        self._thread = Thread(target=self._sample, name="deploykit-gpu-meter", daemon=True)

    def start(self) -> None:
        """Begin to read, at once."""
        self._thread.start()

    def restart(self) -> None:
        """Forget all readings but one that is taken now."""
        # One that the thread is taking at this moment goes into the old list.
        self._readings = [self._meter.read()]

    def stop(self) -> list[GpuReading]:
        """End the thread and return its readings, at least one."""
        self._ended.set()
        self._thread.join()
        return self._readings

    def _sample(self) -> None:
        while True:
            readings = self._readings
            readings.append(self._meter.read())
            # A wait on the event and not a sleep, so that `stop` returns at once.
            if self._ended.wait(self._interval_s):
                return


def open_gpu_meter() -> GpuMeter:
    """A meter of the GPU that CUDA calls the first.

    Raises:
        MissingDependencyError: ``pynvml`` is not installed.
        DeviceError: the driver does not tell where that GPU is.
        Exception: see `GpuMeter`.
    """
    nvml, found = cast("Nvml", require("pynvml")), gpus()
    # NVML counts GPUs in another order than CUDA, and all of them, whatever CUDA may see.
    bus_id = found[0].bus_id if found else ""
    if not bus_id:
        raise DeviceError(
            "the driver does not tell the PCI bus id of the GPU that is measured\n"
            "no clocks are read: those of NVML's first may be another one's"
        )
    return GpuMeter(nvml, bus_id)


def conditions_of(
    meter: GpuMeter, busy_before: float | None, readings: Sequence[GpuReading]
) -> GpuConditions:
    """Summary of the readings of one measurement."""
    sm_mhz = [one.sm_mhz for one in readings if one.sm_mhz is not None]
    memory_mhz = [one.memory_mhz for one in readings if one.memory_mhz is not None]
    power_w = [one.power_w for one in readings if one.power_w is not None]
    heat_c = [one.temperature_c for one in readings if one.temperature_c is not None]
    return GpuConditions(
        readings=len(readings),
        busy_before=busy_before,
        sm_min_mhz=min(sm_mhz, default=None),
        sm_mean_mhz=fmean(sm_mhz) if sm_mhz else None,
        sm_limit_mhz=meter.sm_limit_mhz(),
        memory_min_mhz=min(memory_mhz, default=None),
        power_mean_w=fmean(power_w) if power_w else None,
        power_max_w=max(power_w, default=None),
        power_limit_w=meter.power_limit_w(),
        temperature_max_c=max(heat_c, default=None),
        throttled=_throttled([one.reasons for one in readings if one.reasons is not None]),
    )


def _throttled(reasons: Sequence[int]) -> dict[str, float] | None:
    if not reasons:
        return None
    counts = Counter(name for bits in reasons for bit, name in REASONS.items() if bits & bit)
    return {name: count / len(reasons) for name, count in counts.items()}


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1e3
