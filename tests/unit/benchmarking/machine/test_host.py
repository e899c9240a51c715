"""The processors' counters, from files as Linux writes them."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from deploykit.benchmarking.machine.conditions import Host

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.01

QUIET = {
    "proc/stat": "cpu  1000 0 500 8000 100 0 0 50 7 0\ncpu0 500 0 250 4000 50 0 0 25 7 0\n",
    "proc/loadavg": "0.25 1.50 2.75 3/120 4711\n",
    "proc/self/status": "Name:\tpython\nThreads:\t9\n",
    "proc/cpuinfo": "processor\t: 0\ncpu MHz\t\t: 2400.5\nprocessor\t: 1\ncpu MHz\t\t: 1200.5\n",
}
BARE_METAL = QUIET | {
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "3500000\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "800000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "performance\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": "4\n",
    "sys/devices/system/cpu/cpufreq/other": "not a processor\n",
}


def write(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def host(root: Path, own_s: Iterator[float] | None = None) -> Host:
    return Host(root, (lambda: 0.0) if own_s is None else own_s.__next__)


def test_what_a_virtual_machine_tells(tmp_path: Path) -> None:
    write(tmp_path, QUIET)
    machine = host(tmp_path)
    load, start = machine.load(), machine.counters()
    found = machine.conditions(load, start, machine.counters())
    assert found.load_before == (0.25, 1.5, 2.75)
    assert (found.clock_min_mhz, found.clock_mean_mhz) == (1200.5, 1800.5)
    assert found.process_threads == 9
    assert found.governors == ()
    assert found.thermal_throttles is found.quota_stopped_s is None
    assert found.logical_cores == os.cpu_count()
    assert 1 <= found.usable_cores <= found.logical_cores


def test_what_a_machine_of_its_own_tells(tmp_path: Path) -> None:
    write(tmp_path, BARE_METAL)
    machine = host(tmp_path)
    start = machine.counters()
    heat = "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
    clock = "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq"
    write(tmp_path, {heat: "5\n", clock: "1200000\n"})
    found = machine.conditions(None, start, machine.counters())
    assert found.thermal_throttles == 2
    assert found.governors == ("performance", "powersave")
    assert (found.clock_min_mhz, found.clock_mean_mhz) == (800.0, (3500 + 800 + 3500 + 1200) / 4)


def test_the_others_share_is_what_this_process_did_not_use(tmp_path: Path) -> None:
    write(tmp_path, QUIET)
    machine = host(tmp_path, iter([1.0, 1.0 + 150 * TICK_S]))
    start = machine.counters()
    # 1,000 ticks more: 200 user, 100 system, 600 idle, 50 waiting for a disk, 20 + 10 for
    # interrupts, 20 stolen. Of the 330 busy ones 150 are our own.
    write(tmp_path, {"proc/stat": "cpu  1200 0 600 8600 150 20 10 70 7 0\n"})
    found = machine.conditions(None, start, machine.counters())
    assert found.others_share == pytest.approx(0.18)
    assert found.steal_share == pytest.approx(0.02)


def test_rounding_of_ticks_makes_no_negative_share(tmp_path: Path) -> None:
    write(tmp_path, QUIET)
    machine = host(tmp_path, iter([0.0, 101 * TICK_S]))
    start = machine.counters()
    write(tmp_path, {"proc/stat": "cpu  1100 0 500 8100 100 0 0 50 7 0\n"})
    assert machine.conditions(None, start, machine.counters()).others_share == 0.0


def test_too_short_a_time_says_nothing_of_shares(tmp_path: Path) -> None:
    write(tmp_path, QUIET)
    machine = host(tmp_path)
    start = machine.counters()
    write(tmp_path, {"proc/stat": "cpu  1030 0 500 8019 100 0 0 50 7 0\n"})
    found = machine.conditions(None, start, machine.counters())
    assert found.others_share is found.steal_share is None


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        (
            "sys/fs/cgroup/cpu.stat",
            "usage_usec 5\nnr_throttled 1\nthrottled_usec 1000000\n",
            "usage_usec 9\nnr_throttled 4\nthrottled_usec 1250000\n",
        ),
        (
            "sys/fs/cgroup/cpu/cpu.stat",
            "nr_periods 9\nthrottled_time 1000000000\n",
            "nr_periods 9\nthrottled_time 1250000000\n",
        ),
    ],
    ids=["version 2", "version 1"],
)
def test_a_containers_limit(tmp_path: Path, name: str, before: str, after: str) -> None:
    write(tmp_path, {name: before})
    machine = host(tmp_path)
    start = machine.counters()
    write(tmp_path, {name: after})
    found = machine.conditions(None, start, machine.counters())
    assert found.quota_stopped_s == pytest.approx(0.25)


def test_a_system_without_these_files_tells_nothing(tmp_path: Path) -> None:
    machine = host(tmp_path)
    assert machine.load() is None
    found = machine.conditions(None, machine.counters(), machine.counters())
    assert found.clock_min_mhz is found.clock_mean_mhz is found.process_threads is None
    assert found.others_share is found.steal_share is None
    assert found.quota_stopped_s is found.thermal_throttles is None
    assert found.governors == ()


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux' own files")
def test_this_machine_can_be_read() -> None:
    machine = Host()
    load, start = machine.load(), machine.counters()
    assert load is not None
    assert start.ticks is not None
    found = machine.conditions(load, start, machine.counters())
    assert found.process_threads is not None
    assert found.process_threads >= 1
