from __future__ import annotations

import csv
from dataclasses import replace
from datetime import datetime
from importlib import resources
from typing import TYPE_CHECKING

import pytest

from deploykit.core.environment import cpu_model
from deploykit.core.errors import DeviceError, UsageError
from deploykit.core.precision import Precision
from deploykit.costs import cpu_trial
from deploykit.costs.peaks import faster_of, gpu_peak, measure_cpu_peaks, peak_to_plain

if TYPE_CHECKING:
    from pathlib import Path

TABLE = resources.files("deploykit.costs").joinpath("gpu_peaks.csv")
ROWS = list(csv.DictReader(TABLE.read_text("utf-8").splitlines()))

# FP16 operations of one SM in one clock, without sparsity, from the architectures' whitepapers.
FP16_PER_CLOCK = {
    "Tesla T4": 1024,
    "Tesla V100": 1024,
    "A2": 1024,
    "A10": 1024,
    "A30": 2048,
    "A40": 1024,
    "A100": 2048,
    "L4": 1024,
    "H100": 4096,
    "GH200": 4096,
    "H200": 4096,
    "B200": 8192,
    "GeForce": 1024,
    "Jetson AGX Orin": 2048,
    "Jetson Orin": 2048,
    "Jetson AGX Xavier": 1024,
    "Jetson Xavier": 1024,
    "Jetson TX2": 512,
    "Jetson Nano": 512,
}


def fp16_per_clock(name: str) -> int:
    """By the longest prefix: A100 is not A10."""
    return FP16_PER_CLOCK[max(filter(name.startswith, FP16_PER_CLOCK), key=len)]


@pytest.mark.parametrize("row", ROWS, ids=[row["name"] for row in ROWS])
def test_each_row_is_what_its_clock_gives(row: dict[str, str]) -> None:
    computed = int(row["sms"]) * float(row["clock_mhz"]) * fp16_per_clock(row["name"]) / 1e6
    assert float(row["fp16_tflops"]) == pytest.approx(computed, rel=0.02)
    assert row["checked"] in {"clock", "conflict"}
    assert row["source"]


@pytest.mark.parametrize("row", ROWS, ids=[row["name"] for row in ROWS])
def test_precisions_are_in_proportion(row: dict[str, str]) -> None:
    fp32, fp16 = float(row["fp32_tflops"]), float(row["fp16_tflops"])
    int8 = float(row["int8_tops"] or "nan")
    assert fp16 >= 1.9 * fp32
    if row["matrix_units"] == "no":
        assert row["int8_tops"] == ""  # Maxwell and Pascal of Jetson have no DP4A
        assert fp16 == pytest.approx(2 * fp32, rel=0.02)
    elif row["name"].startswith("Tesla V100"):
        assert int8 == pytest.approx(4 * fp32, rel=0.01)  # DP4A on CUDA cores
    else:
        assert int8 == pytest.approx(2 * fp16, rel=0.02)
    if row["tf32_tflops"]:
        assert 0.24 * fp16 <= float(row["tf32_tflops"]) <= 0.51 * fp16


def test_figures_of_a_row() -> None:
    peak = gpu_peak("NVIDIA L4").peak
    assert peak is not None
    assert (peak.name, peak.bytes_per_s, peak.cache_bytes) == ("L4", 300e9, 48 * 2**20)
    assert peak.flop_per_s(Precision.FP32) == 60e12
    assert peak.flop_per_s(Precision.FP32, winograd=True) == pytest.approx(30.3e12 * 2.25)
    assert peak.flop_per_s(Precision.FP16, winograd=True) == 121e12
    assert peak.flop_per_s(Precision.INT8) == 242e12
    assert (peak.threads, peak.measured) == (None, None)
    assert peak_to_plain(peak)["winograd"] == ["fp32"]


def test_a_wider_precision_may_be_the_faster_way() -> None:
    peak = gpu_peak("Tesla V100-SXM2-16GB").peak
    assert peak is not None
    assert peak.int8_op_per_s == 62.8e12
    assert peak.flop_per_s(Precision.INT8) == 125e12


def test_without_matrix_units_fp16_is_winograds_too() -> None:
    peak = gpu_peak("Jetson Nano").peak
    assert peak is not None
    assert peak_to_plain(peak)["winograd"] == ["fp16", "fp32"]
    assert peak.flop_per_s(Precision.FP16, winograd=True) == pytest.approx(0.472e12 * 2.25)


@pytest.mark.parametrize(
    ("driver_name", "expected"),
    [
        ("Tesla T4", "Tesla T4"),
        ("NVIDIA T4", "Tesla T4"),
        ("Tesla V100-SXM2-32GB", "Tesla V100 SXM2"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA A100-SXM4-40GB", "A100 SXM 40GB"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80GB"),
        ("nvidia a100 sxm4 80gb", "A100 SXM 80GB"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM5 80GB"),
        ("NVIDIA H100 PCIe", "H100 PCIe 80GB"),
        ("NVIDIA H200", "H200 SXM 141GB"),
        ("NVIDIA GeForce RTX 4090", "GeForce RTX 4090"),
        ("RTX 4090", "GeForce RTX 4090"),
        ("Jetson AGX Orin 64GB", "Jetson AGX Orin 64GB"),
    ],
)
def test_names_that_drivers_give(driver_name: str, expected: str) -> None:
    found = gpu_peak(driver_name)
    assert found.peak is not None
    assert found.peak.name == expected
    assert found.candidates == ()


@pytest.mark.parametrize(
    ("name", "candidates"),
    [
        ("Orin", {"Jetson AGX Orin 64GB", "Jetson Orin NX 16GB", "Jetson Orin Nano 8GB"}),
        ("NVIDIA Orin", {"Jetson AGX Orin 64GB", "Jetson Orin NX 16GB", "Jetson Orin Nano 8GB"}),
        ("Xavier", {"Jetson AGX Xavier", "Jetson Xavier NX"}),
        ("NVIDIA H200 NVL", {"H200 SXM 141GB"}),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", {"GeForce RTX 4090"}),
        ("NVIDIA GeForce RTX 3060 Ti", {"GeForce RTX 3060"}),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", {"A100 SXM 40GB"}),
        ("L40 S", {"L40S"}),
        ("rtx4090", {"GeForce RTX 4090"}),
        ("NVIDIA A10G", set()),
        ("NVIDIA", set()),
        ("", set()),
    ],
)
def test_names_that_fit_no_row_or_several(name: str, candidates: set[str]) -> None:
    found = gpu_peak(name)
    assert found.peak is None
    assert set(found.candidates) == candidates


def test_every_row_is_found_by_its_own_name() -> None:
    names = {row["name"] for row in ROWS}
    assert len(names) == len(ROWS)
    for name in names:
        found = gpu_peak(name).peak
        assert found is not None
        assert found.name == name


def test_this_cpu() -> None:
    peak = measure_cpu_peaks(1, seconds=0.05)
    assert peak.name == cpu_model()
    assert 1e8 < peak.fp32_flop_per_s < 1e14
    assert 1e8 < peak.bytes_per_s < 1e13
    assert peak.flop_per_s(Precision.FP32, winograd=True) == peak.fp32_flop_per_s
    assert peak.flop_per_s(Precision.FP16) is None
    assert peak.flop_per_s(Precision.INT8) is None
    assert peak.threads == 1
    assert peak.measured is not None
    assert datetime.fromisoformat(peak.measured).tzinfo is not None
    assert "numpy" in peak.source


def test_no_threads() -> None:
    with pytest.raises(UsageError, match=r"cannot measure a CPU with 0 threads for 0\.5 s"):
        measure_cpu_peaks(0)
    with pytest.raises(UsageError, match="with 1 threads for 0 s"):
        measure_cpu_peaks(1, seconds=0)


def test_a_trial_that_fails(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"could not be measured\nreason: .*No such file"):
        measure_cpu_peaks(1, python=str(tmp_path / "python"))
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'MemoryError: too large' >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(DeviceError, match=r"reason: MemoryError: too large\n.*try again"):
        measure_cpu_peaks(1, python=str(broken))
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexit 0\n")
    silent.chmod(0o755)
    with pytest.raises(DeviceError, match="reason: Expecting value"):
        measure_cpu_peaks(1, python=str(silent))


def test_the_fastest_library_makes_the_peak(tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text(
        "#!/bin/sh\n"
        'case "$2 $3" in\n'
        '"deploykit.costs.cpu_trial 1")\n'
        '  echo \'{"numpy": "2.0", "fp32_flop_per_s": 5e9,'
        ' "bytes_per_s": 1e9, "cache_bytes": 7}\';;\n'
        '"a.module fast") echo \'{"label": "fast lib", "fp32_flop_per_s": 9e9}\';;\n'
        '"a.module slow") echo \'{"label": "slow lib", "fp32_flop_per_s": 4e9}\';;\n'
        "*) exit 1;;\n"
        "esac\n"
    )
    fake.chmod(0o755)
    programs = [("a.module", name) for name in ("slow", "broken", "fast")]
    peak = measure_cpu_peaks(1, products=programs, python=str(fake))
    assert peak.fp32_flop_per_s == 9e9
    assert (peak.bytes_per_s, peak.cache_bytes) == (1e9, 7)
    assert peak.source == (
        "measured: FP32 matrix product by fast lib, faster than numpy 2.0 and slow lib; "
        "copy, maximum"
    )


def test_the_faster_of_two_trials_has_the_best_of_both() -> None:
    one = measure_cpu_peaks(1, seconds=0.01)
    other = replace(one, fp32_flop_per_s=2 * one.fp32_flop_per_s, bytes_per_s=1.0, source="other")
    for pair in ((one, other), (other, one)):
        assert faster_of(*pair) == replace(other, bytes_per_s=one.bytes_per_s)


def test_the_best_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    # The end, then for each of three runs: go on? begin, end; and go on? once more.
    ticks = iter([0.0, 0.1, 0.1, 0.6, 0.7, 0.7, 0.9, 1.2, 1.2, 1.9, 2.0])
    monkeypatch.setattr(cpu_trial, "perf_counter", lambda: next(ticks))
    runs: list[int] = []
    assert cpu_trial.best_time_s(lambda: runs.append(1), 0.0) == pytest.approx(0.2)
    assert len(runs) == 4


def test_the_cache_of_this_cpu(tmp_path: Path) -> None:
    assert cpu_trial.cache_bytes(tmp_path) == 0
    for index, size in enumerate(("48K", "2048K", "105M", "none")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    assert cpu_trial.cache_bytes(tmp_path) == 105 * 2**20


def test_small_trials_give_rates() -> None:
    assert cpu_trial.product_flop_per_s(0.0, size=32) > 0
    assert cpu_trial.memory_bytes_per_s(2, 0.0, size=4096) > 0
