"""Conditions of the machine during a measurement, and whether they spoil its figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from deploykit.benchmarking.machine.gpu_meter import (
    INTERVAL_S,
    GpuConditions,
    GpuSampler,
    conditions_of,
)
from deploykit.benchmarking.machine.gpu_meter import open_gpu_meter as _open_gpu_meter
from deploykit.benchmarking.machine.host import Host, HostConditions
from deploykit.core.errors import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from deploykit.benchmarking.machine.gpu_meter import GpuMeter

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


def watch(
    work: Callable[[], Result],
    *,
    on_gpu: bool,
    host: Host | None = None,
    open_gpu_meter: Callable[[], GpuMeter] = _open_gpu_meter,
    interval_s: float = INTERVAL_S,
) -> tuple[Result, Conditions]:
    """Run ``work`` and record the conditions of the machine meanwhile.

    With ``on_gpu`` the first GPU is read every ``interval_s``. A GPU that cannot be read spoils
    nothing: the conditions say so.

    Raises:
        BaseException: what ``work`` raises; no thread is left.
    """
    host = host or Host()
    meter, unknown = _open(open_gpu_meter) if on_gpu else (None, None)
    # Before the work: afterwards the load average would contain our own.
    load_before, start = host.load(), host.counters()
    if meter is None:
        result, gpu = work(), None
    else:
        result, gpu = _metered(work, meter, interval_s)
    conditions = host.conditions(load_before, start, host.counters())
    return result, Conditions(conditions, gpu, unknown)


def _open(open_gpu_meter: Callable[[], GpuMeter]) -> tuple[GpuMeter | None, str | None]:
    try:
        return open_gpu_meter(), None
    except MissingDependencyError as error:
        reason = str(error).splitlines()[-1]
    except Exception as error:  # NVMLError, a class that exists only where pynvml is installed
        reason = f"{type(error).__name__}: {error}"
    return None, f"the GPU's clocks and throttling are not known ({reason})"


def _metered(
    work: Callable[[], Result], meter: GpuMeter, interval_s: float
) -> tuple[Result, GpuConditions]:
    try:
        # Before the work: afterwards the GPU's use would be our own.
        busy_before = meter.busy()
        sampler = GpuSampler(meter, interval_s)
        sampler.start()
        try:
            result = work()
        finally:
            readings = sampler.stop()
        return result, conditions_of(meter, busy_before, readings)
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
