"""Conditions of the machine during a measurement, its processors among them."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Final, TypeVar

from deploykit.benchmarking.machine.gpu_meter import (
    INTERVAL_S,
    GpuConditions,
    GpuSampler,
    conditions_of,
)
from deploykit.benchmarking.machine.gpu_meter import open_gpu_meter as _open_gpu_meter
from deploykit.core.errors import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from deploykit.benchmarking.machine.gpu_meter import GpuMeter


Number = TypeVar("Number", int, float)

_CPUS: Final = "sys/devices/system/cpu"
_THROTTLE_COUNTS: Final = "cpu[0-9]*/thermal_throttle/*_throttle_count"
# The limit of a container: its file in version 2 and in version 1 of control groups, with the key
# of the time stopped and its unit in s (kernel: admin-guide/cgroup-v2 and scheduler/sched-bwc).
_QUOTAS: Final = (
    ("sys/fs/cgroup/cpu.stat", "throttled_usec", 1e-6),
    ("sys/fs/cgroup/cpu/cpu.stat", "throttled_time", 1e-9),
)
_USER, _NICE, _SYSTEM, _IDLE, _IOWAIT, _IRQ, _SOFTIRQ, _STEAL = range(8)
"""Columns of /proc/stat, in ticks (proc_stat(5))."""

_MIN_TICKS: Final = 50
"""Fewest ticks of all processors from which shares are computed; counters err by one each."""


@dataclass(frozen=True, slots=True)
class HostConditions:
    """The processors before and during one measurement.

    ``load_before`` are the load averages of the last 1, 5 and 15 minutes. ``usable_cores`` are
    those that this process may run on, ``process_threads`` its threads at the end. Shares are of
    all processors, from 0 to 1: ``others_share`` was used by other processes, ``steal_share`` was
    taken by the host of this virtual machine. ``quota_stopped_s`` is how long a container's CPU
    limit stopped it (the sum over processors); ``thermal_throttles`` counts how often a core or
    package slowed down because of heat.
    """

    logical_cores: int
    usable_cores: int
    process_threads: int | None
    load_before: tuple[float, float, float] | None
    governors: tuple[str, ...]
    clock_min_mhz: float | None
    clock_mean_mhz: float | None
    others_share: float | None
    steal_share: float | None
    quota_stopped_s: float | None
    thermal_throttles: int | None


@dataclass(frozen=True, slots=True)
class HostCounters:
    """The counters at one moment; ``own_s`` is the processor time of this process."""

    own_s: float
    ticks: tuple[int, ...] | None
    quota_stopped_s: float | None
    thermal_throttles: int | None
    clocks_mhz: tuple[float, ...]


class Host:
    """Reads the system's files below ``root``; ``own_s`` is this process's processor time."""

    def __init__(
        self, root: Path = Path("/"), own_s: Callable[[], float] = time.process_time
    ) -> None:
        self._root = root
        self._own_s = own_s

    def counters(self) -> HostCounters:
        """Read all counters now."""
        return HostCounters(
            own_s=self._own_s(),
            ticks=self._ticks(),
            quota_stopped_s=self._quota_stopped_s(),
            thermal_throttles=self._thermal_throttles(),
            clocks_mhz=self._clocks_mhz(),
        )

    def load(self) -> tuple[float, float, float] | None:
        """Load averages of the last 1, 5 and 15 minutes."""
        numbers = self._text("proc/loadavg").split()[:3]
        if len(numbers) != 3:  # noqa: PLR2004
            return None
        one, five, fifteen = (float(number) for number in numbers)
        return one, five, fifteen

    def conditions(
        self, load_before: tuple[float, float, float] | None, start: HostCounters, end: HostCounters
    ) -> HostConditions:
        """Conditions between two readings of the counters."""
        clocks_mhz = (*start.clocks_mhz, *end.clocks_mhz)
        others, steal = _shares(start, end)
        return HostConditions(
            logical_cores=os.cpu_count() or 1,
            usable_cores=_usable_cores(),
            process_threads=self._process_threads(),
            load_before=load_before,
            governors=self._governors(),
            clock_min_mhz=min(clocks_mhz, default=None),
            clock_mean_mhz=fmean(clocks_mhz) if clocks_mhz else None,
            others_share=others,
            steal_share=steal,
            quota_stopped_s=_grown(start.quota_stopped_s, end.quota_stopped_s),
            thermal_throttles=_grown(start.thermal_throttles, end.thermal_throttles),
        )

    def _text(self, path: str) -> str:
        try:
            return (self._root / path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def _texts(self, pattern: str) -> list[str]:
        folder = self._root / _CPUS
        paths = sorted(path.relative_to(self._root) for path in folder.glob(pattern))
        return [text for path in paths if (text := self._text(str(path)).strip())]

    def _ticks(self) -> tuple[int, ...] | None:
        first = self._text("proc/stat").partition("\n")[0].split()
        # Later columns (guest time) are left out: they are part of user time already.
        columns = tuple(int(number) for number in first[1 : _STEAL + 2])
        return columns if len(columns) == _STEAL + 1 else None

    def _quota_stopped_s(self) -> float | None:
        for path, key, unit_s in _QUOTAS:
            entries = dict(line.split(maxsplit=1) for line in self._text(path).splitlines())
            if key in entries:
                return int(entries[key]) * unit_s
        return None

    def _thermal_throttles(self) -> int | None:
        counts = [int(text) for text in self._texts(_THROTTLE_COUNTS)]
        return sum(counts) if counts else None

    def _clocks_mhz(self) -> tuple[float, ...]:
        khz = self._texts("cpu[0-9]*/cpufreq/scaling_cur_freq")
        if khz:
            return tuple(int(text) / 1e3 for text in khz)
        # A virtual machine has no cpufreq; its cpuinfo may have the nominal clock.
        lines = (line.partition(":") for line in self._text("proc/cpuinfo").splitlines())
        return tuple(float(value) for key, _, value in lines if key.strip() == "cpu MHz")

    def _governors(self) -> tuple[str, ...]:
        return tuple(sorted(set(self._texts("cpu[0-9]*/cpufreq/scaling_governor"))))

    def _process_threads(self) -> int | None:
        for line in self._text("proc/self/status").splitlines():
            key, _, value = line.partition(":")
            if key == "Threads":
                return int(value)
        return None


def _usable_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def _shares(start: HostCounters, end: HostCounters) -> tuple[float | None, float | None]:
    """Shares used by other processes, and stolen by the host of a virtual machine."""
    if start.ticks is None or end.ticks is None:
        return None, None
    ticks = [after - before for before, after in zip(start.ticks, end.ticks, strict=True)]
    total = sum(ticks)
    if total < _MIN_TICKS:
        return None, None
    busy = total - ticks[_IDLE] - ticks[_IOWAIT] - ticks[_STEAL]
    own = (end.own_s - start.own_s) * os.sysconf("SC_CLK_TCK")
    # Not below 0: ticks are coarser than this process's own time.
    return max(0.0, busy - own) / total, ticks[_STEAL] / total


def _grown(start: Number | None, end: Number | None) -> Number | None:
    return None if start is None or end is None else end - start


Result = TypeVar("Result")

BUSY_SHARE: Final = 0.1
"""Share of all processors, or of a GPU's time, that others may use on a quiet machine."""

STEAL_SHARE: Final = 0.01
"""Share of all processors that a virtual machine's host may take; it stops queries midway."""


@dataclass(frozen=True)
class Conditions:
    """The machine during one measurement; ``gpu`` is ``None`` where no GPU was watched.

    ``gpu_unknown`` says why, where one should have been.
    """

    host: HostConditions
    gpu: GpuConditions | None
    gpu_unknown: str | None = None

    def sentences(self) -> tuple[str, ...]:
        """Reasons why figures may be worse than the machine allows; empty if it was quiet."""
        gpu = () if self.gpu is None else _gpu_sentences(self.gpu)
        unknown = () if self.gpu_unknown is None else (self.gpu_unknown,)
        return (*_busy_sentences(self.host), *_stopped_sentences(self.host), *gpu, *unknown)


class _Watch:
    """What is read while the work is done, from its last beginning on."""

    def __init__(self, host: Host, sampler: GpuSampler | None) -> None:
        self._host = host
        self._sampler = sampler
        self.start = host.counters()

    def begin(self) -> None:
        self.start = self._host.counters()
        if self._sampler is not None:
            self._sampler.restart()


def watch(
    work: Callable[[Callable[[], None]], Result],
    *,
    on_gpu: bool,
    host: Host | None = None,
    open_gpu_meter: Callable[[], GpuMeter] = _open_gpu_meter,
    interval_s: float = INTERVAL_S,
) -> tuple[Result, Conditions]:
    """Run ``work`` and record the conditions of the machine meanwhile.

    ``work`` is given a function to call when its warm-up has ended: what was read until then, of
    clocks that are still low, does not count. With ``on_gpu`` the first GPU is read every
    ``interval_s``. A GPU that cannot be read spoils nothing: the conditions say so.

    Raises:
        BaseException: what ``work`` raises; no thread is left.
    """
    host = host or Host()
    meter, unknown = _open(open_gpu_meter) if on_gpu else (None, None)
    # Before the work: afterwards the load average would contain our own.
    load_before = host.load()
    gpu = None
    if meter is None:
        watched = _Watch(host, None)
        result = work(watched.begin)
    else:
        result, watched, gpu = _metered(work, host, meter, interval_s)
    conditions = host.conditions(load_before, watched.start, host.counters())
    return result, Conditions(conditions, gpu, unknown)


def _open(open_gpu_meter: Callable[[], GpuMeter]) -> tuple[GpuMeter | None, str | None]:
    try:
        return open_gpu_meter(), None
    except MissingDependencyError as error:
        reason = str(error).splitlines()[-1]
    except Exception as error:  # NVMLError, a class that exists only where pynvml is installed
        reason = f"{type(error).__name__}: {'; '.join(str(error).splitlines())}"
    return None, f"the GPU's clocks and throttling are not known ({reason})"


def _metered(
    work: Callable[[Callable[[], None]], Result], host: Host, meter: GpuMeter, interval_s: float
) -> tuple[Result, _Watch, GpuConditions]:
    try:
        # Before the work: afterwards the GPU's use would be our own.
        busy_before = meter.busy()
        sampler = GpuSampler(meter, interval_s)
        watched = _Watch(host, sampler)
        sampler.start()
        try:
            result = work(watched.begin)
        finally:
            readings = sampler.stop()
        return result, watched, conditions_of(meter, busy_before, readings)
    finally:
        meter.close()


def _busy_sentences(host: HostConditions) -> Iterator[str]:
    if host.others_share is not None:
        if host.others_share > BUSY_SHARE:
            yield (
                f"busy: other processes used {host.others_share:.0%} of the processors meanwhile"
            )
    # Only where nothing better is known: the load average of the last minute has in it what this
    # process did itself before the start.
    elif host.load_before and host.load_before[0] > BUSY_SHARE * host.logical_cores:
        yield f"busy: the load average was {host.load_before[0]:.1f} before the start"
    if host.steal_share is not None and host.steal_share > STEAL_SHARE:
        yield f"busy: the host of this virtual machine took {host.steal_share:.1%} of its time"


def _stopped_sentences(host: HostConditions) -> Iterator[str]:
    if host.quota_stopped_s:
        stopped = f"{host.quota_stopped_s:.2f} s"
        yield f"throttled: the CPU limit of this container stopped it for {stopped}"
    if host.thermal_throttles:
        yield f"throttled: the processor slowed down for heat {host.thermal_throttles} times"


def _gpu_sentences(gpu: GpuConditions) -> Iterator[str]:
    if gpu.busy_before is not None and gpu.busy_before > BUSY_SHARE:
        yield f"busy: the GPU was computing {gpu.busy_before:.0%} of the time before the start"
    for reason, share in (gpu.throttled or {}).items():
        yield f"throttled: {reason} of the GPU in {share:.0%} of {gpu.readings} readings"
