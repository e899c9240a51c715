"""What is said of a machine, and the GPU's side of it over a fake of NVML."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from deploykit.benchmarking.machine import gpu_meter
from deploykit.benchmarking.machine.conditions import Conditions, Host, HostConditions, watch
from deploykit.benchmarking.machine.gpu_meter import (
    GpuConditions,
    GpuMeter,
    GpuReading,
    GpuSampler,
    conditions_of,
    open_gpu_meter,
)
from deploykit.core.environment import Gpu, install_line
from deploykit.core.errors import DeviceError, MissingDependencyError
from deploykit.core.serialization import to_plain
from tests.fakes.nvml_fake import FakeNvml, FakeNvmlError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

QUIET_HOST = HostConditions(
    logical_cores=8,
    usable_cores=8,
    process_threads=9,
    load_before=(3.0, 2.0, 1.0),
    governors=("performance",),
    clock_min_mhz=3400.0,
    clock_mean_mhz=3500.0,
    others_share=0.02,
    steal_share=0.0,
    quota_stopped_s=0.0,
    thermal_throttles=0,
)
QUIET_GPU = GpuConditions(
    readings=20,
    busy_before=0.0,
    sm_min_mhz=1950,
    sm_mean_mhz=1970.0,
    sm_limit_mhz=1980,
    memory_min_mhz=2619,
    power_mean_w=300.0,
    power_max_w=320.0,
    power_limit_w=700.0,
    temperature_max_c=60,
    throttled={},
)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


# Sentences


def test_a_quiet_machine_says_nothing() -> None:
    assert Conditions(QUIET_HOST, QUIET_GPU).sentences() == ()
    assert Conditions(QUIET_HOST, None).sentences() == ()


@pytest.mark.parametrize(
    ("host", "sentence"),
    [
        (
            replace(QUIET_HOST, others_share=0.25),
            "busy: other processes used 25% of the processors meanwhile",
        ),
        (
            replace(QUIET_HOST, others_share=None),
            "busy: the load average was 3.0 before the start",
        ),
        (
            replace(QUIET_HOST, steal_share=0.031),
            "busy: the host of this virtual machine took 3.1% of its time",
        ),
        (
            replace(QUIET_HOST, quota_stopped_s=0.25),
            "throttled: the CPU limit of this container stopped it for 0.25 s",
        ),
        (
            replace(QUIET_HOST, thermal_throttles=2),
            "throttled: the processor slowed down for heat 2 times",
        ),
    ],
)
def test_a_busy_or_throttled_processor_is_marked(host: HostConditions, sentence: str) -> None:
    assert Conditions(host, None).sentences() == (sentence,)


@pytest.mark.parametrize("load", [None, (0.5, 9.0, 9.0)])
def test_a_low_or_unknown_load_is_no_busy_machine(load: tuple[float, float, float] | None) -> None:
    host = replace(QUIET_HOST, others_share=None, load_before=load)
    assert Conditions(host, None).sentences() == ()


def test_what_is_unknown_of_a_processor_is_not_marked() -> None:
    host = replace(QUIET_HOST, steal_share=None, quota_stopped_s=None, thermal_throttles=None)
    assert Conditions(host, replace(QUIET_GPU, busy_before=None, throttled=None)).sentences() == ()


def test_a_busy_or_throttled_gpu_is_marked() -> None:
    throttled = {"power limit": 0.35, "hardware thermal limit": 0.05}
    gpu = replace(QUIET_GPU, busy_before=0.4, throttled=throttled)
    assert Conditions(QUIET_HOST, gpu).sentences() == (
        "busy: the GPU was computing 40% of the time before the start",
        "throttled: power limit of the GPU in 35% of 20 readings",
        "throttled: hardware thermal limit of the GPU in 5% of 20 readings",
    )


def test_conditions_are_plain_data() -> None:
    data = to_plain(Conditions(QUIET_HOST, QUIET_GPU))
    read = json.loads(json.dumps(data))
    assert read["gpu"]["sm_mean_mhz"] == 1970.0
    assert read["host"]["load_before"] == [3.0, 2.0, 1.0]
    assert read["gpu_unknown"] is None


# Watching


def test_the_gpu_is_read_while_the_work_is_done(
    tmp_path: Path,
) -> None:
    nvml = FakeNvml(
        clocks_mhz=[1980, 1500, 1740], reasons=[0, 0x4, 0x4 | 0x20, 0x1], busy_percent=7
    )

    def work(_: Callable[[], None]) -> str:
        assert nvml.read_enough.wait(30)
        return "measured"

    result, conditions = watch(
        work,
        on_gpu=True,
        host=Host(tmp_path),
        open_gpu_meter=lambda: GpuMeter(nvml, nvml.bus),
        interval_s=0.0001,
    )
    assert result == "measured"
    assert conditions.gpu is not None
    gpu = conditions.gpu
    assert gpu.readings >= 4
    assert gpu.sm_min_mhz == 1500
    assert gpu.sm_mean_mhz == pytest.approx(
        (1980 + 1500 + 1740 * (gpu.readings - 2)) / gpu.readings
    )
    assert (gpu.sm_limit_mhz, gpu.memory_min_mhz) == (1980, 2619)
    assert (gpu.power_mean_w, gpu.power_max_w, gpu.power_limit_w) == (312.5, 312.5, 700.0)
    assert (gpu.temperature_max_c, gpu.busy_before) == (61, 0.07)
    # Being idle is no throttling.
    assert gpu.throttled == {
        "power limit": 2 / gpu.readings,
        "software thermal limit": 1 / gpu.readings,
    }
    assert nvml.open_count == 0


@pytest.mark.parametrize("warm_ups", [1, 2])
def test_what_was_read_before_the_end_of_the_warm_up_does_not_count(
    tmp_path: Path, warm_ups: int
) -> None:
    nvml = FakeNvml(clocks_mhz=[210, 345, 990, 1980], reasons=[0x4, 0x20, 0])
    frequency = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"
    frequency.parent.mkdir(parents=True)
    frequency.write_text("800000\n", encoding="utf-8")

    def work(begin: Callable[[], None]) -> str:
        for _ in range(warm_ups):  # of A and of B, where two are compared
            assert nvml.read_enough.wait(30)
            while len(nvml.clocks_mhz) > 1:
                time.sleep(0.001)
            frequency.write_text("3600000\n", encoding="utf-8")
            begin()
        return "measured"

    result, conditions = watch(
        work,
        on_gpu=True,
        host=Host(tmp_path),
        open_gpu_meter=lambda: GpuMeter(nvml, nvml.bus),
        interval_s=0.0001,
    )
    assert result == "measured"
    assert conditions.gpu is not None
    assert (conditions.gpu.sm_min_mhz, conditions.gpu.sm_mean_mhz) == (1980, 1980)
    assert conditions.gpu.throttled == {}
    assert conditions.gpu.readings >= 1
    assert conditions.host.clock_min_mhz == 3600
    assert nvml.open_count == 0


def test_an_error_of_the_work_ends_the_reading(
    tmp_path: Path,
) -> None:
    nvml = FakeNvml()

    def work(_: Callable[[], None]) -> None:
        raise DeviceError("the GPU is gone")

    with pytest.raises(DeviceError, match="the GPU is gone"):
        watch(
            work,
            on_gpu=True,
            host=Host(tmp_path),
            open_gpu_meter=lambda: GpuMeter(nvml, nvml.bus),
        )
    assert nvml.open_count == 0


def test_work_on_the_processor_opens_no_gpu(tmp_path: Path) -> None:
    def refuse() -> GpuMeter:
        raise AssertionError("nobody asked for a GPU")

    result, conditions = watch(
        lambda _: 5, on_gpu=False, host=Host(tmp_path), open_gpu_meter=refuse
    )
    assert result == 5
    assert conditions.gpu is None
    assert conditions.gpu_unknown is None


def test_the_load_is_that_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    load = tmp_path / "proc" / "loadavg"
    load.write_text("1.00 0.50 0.25 1/99 7\n", encoding="utf-8")
    _, conditions = watch(
        lambda _: load.write_text("9.00 9.00 9.00 1/99 7\n", encoding="utf-8"),
        on_gpu=False,
        host=Host(tmp_path),
    )
    assert conditions.host.load_before == (1.0, 0.5, 0.25)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            MissingDependencyError("not installed\ninstall it: pip install nvidia-ml-py"),
            "install it: pip install nvidia-ml-py",
        ),
        (FakeNvmlError("Driver Not Loaded"), "FakeNvmlError: Driver Not Loaded"),
    ],
)
def test_a_gpu_that_cannot_be_read_is_named(tmp_path: Path, error: Exception, reason: str) -> None:
    def fail() -> GpuMeter:
        raise error

    result, conditions = watch(lambda _: 5, on_gpu=True, host=Host(tmp_path), open_gpu_meter=fail)
    assert result == 5
    assert conditions.sentences() == (f"the GPU's clocks and throttling are not known ({reason})",)


# NVML


def test_a_gpu_that_keeps_things_to_itself() -> None:
    nvml = FakeNvml(
        failing=frozenset(name for name in dir(FakeNvml) if name.startswith("nvmlDeviceGet"))
    )
    meter = GpuMeter(nvml, nvml.bus)
    assert meter.read() == GpuReading(None, None, None, None, None)
    found = conditions_of(meter, meter.busy(), [meter.read()])
    meter.close()
    assert found == GpuConditions(1, *[None] * 10)


@pytest.mark.parametrize(("bus", "failing"), [("0000:AF:00.0", ""), ("0000:3B:00.0", "nvmlInit")])
def test_a_meter_that_does_not_open_leaves_nothing_open(bus: str, failing: str) -> None:
    nvml = FakeNvml(failing=frozenset({failing}))
    with pytest.raises(FakeNvmlError, match="Not Found" if not failing else "Not Supported"):
        GpuMeter(nvml, bus)
    assert nvml.open_count == 0


def test_the_shortest_work_has_one_reading() -> None:
    nvml = FakeNvml()
    sampler = GpuSampler(GpuMeter(nvml, nvml.bus), interval_s=3600.0)
    sampler.start()
    assert len(sampler.stop()) == 1


def test_the_meter_reads_cudas_first_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML counts in another order: the GPU is found by its bus id."""
    nvml = FakeNvml()
    first, second = Gpu("A", "9.0", 1, 0, nvml.bus), Gpu("B", "9.0", 1, 1, "0000:86:00.0")
    monkeypatch.setattr(gpu_meter, "gpus", lambda: (first, second))
    monkeypatch.setattr(gpu_meter, "require", lambda _module: nvml)
    open_gpu_meter().close()
    assert nvml.asked_for == [nvml.bus]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_without_a_bus_id_no_gpu_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, count: int
) -> None:
    """The first of NVML may be another than the first of CUDA, which may see one of many."""
    nvml = FakeNvml()
    found = tuple(Gpu("A", "9.0", 1, index) for index in range(count))
    monkeypatch.setattr(gpu_meter, "gpus", lambda: found)
    monkeypatch.setattr(gpu_meter, "require", lambda _module: nvml)
    with pytest.raises(DeviceError, match="PCI bus id of the GPU that is measured\nno clocks are"):
        open_gpu_meter()
    assert (nvml.asked_for, nvml.open_count) == ([], 0)
    result, conditions = watch(
        lambda _: 5, on_gpu=True, host=Host(tmp_path), open_gpu_meter=open_gpu_meter
    )
    assert (result, conditions.gpu) == (5, None)
    assert conditions.gpu_unknown is not None
    assert "does not tell the PCI bus id of the GPU that is measured; no clocks" in (
        conditions.gpu_unknown
    )


def test_nvml_is_asked_for_by_its_packages_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MissingDependencyError, match=re.escape("pip install nvidia-ml-py")):
        open_gpu_meter()
    assert install_line("pynvml") == "pip install nvidia-ml-py"


def test_the_module_that_is_installed_has_the_names_of_the_fake() -> None:
    pynvml: Any = pytest.importorskip(
        "pynvml", reason="nvidia-ml-py is installed only where there is a GPU"
    )
    names = [name for name in dir(FakeNvml) if name.lower().startswith("nvml")]
    assert len(names) > 10
    assert [name for name in names if not hasattr(pynvml, name)] == []
    assert pynvml.NVML_CLOCK_SM == FakeNvml.NVML_CLOCK_SM
    bits = {value for name, value in vars(pynvml).items() if "ThrottleReason" in name}
    assert set(gpu_meter.REASONS) <= bits
