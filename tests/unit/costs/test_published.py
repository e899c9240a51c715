"""No published latency is below the limit that we print beside it."""

from __future__ import annotations

import csv
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from deploykit.core.precision import Precision
from deploykit.costs.limits import achieved, physical_limit
from deploykit.costs.peaks import gpu_peak
from deploykit.models import names
from tests.network_costs import cost_of_definition

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.costs.peaks import DevicePeak

GPUS = {
    "t4": "Tesla T4",
    "v100": "Tesla V100 SXM2",
    "a2": "A2",
    "a10": "A10",
    "a30": "A30",
    "a40": "A40",
    "l4": "L4",
    "a100-80": "A100 SXM 80GB",
    "a100-pcie-40": "A100 PCIe 40GB",
    "a100-pcie-80": "A100 PCIe 80GB",
    "h100-sxm": "H100 SXM5 80GB",
    "h100-pcie": "H100 PCIe 80GB",
    "rtx2080ti": "GeForce RTX 2080 Ti",
    "orin-agx": "Jetson AGX Orin 64GB",
    "orin-nx": "Jetson Orin NX 16GB",
    "xavier-agx": "Jetson AGX Xavier",
    "xavier-nx": "Jetson Xavier NX",
    "nano": "Jetson Nano",
}
ALIASES = {"resnext101_32x8d_wsl": "resnext101_32x8d"}
PRECISIONS = {
    "FP32": Precision.FP32,
    "TF32": Precision.FP32,
    "FP16": Precision.FP16,
    "INT8": Precision.INT8,
}


@pytest.fixture(scope="module")
def rows(shared_data: Path) -> list[dict[str, str]]:
    path = shared_data.parent / "peers" / "published_latency.csv"
    if not path.exists():
        pytest.skip("the shared folder has no peers/published_latency.csv")
    with path.open(encoding="utf-8", newline="") as file:
        published = [row for row in csv.DictReader(file) if row["input"] == "224"]
    known = [row for row in published if model_of(row) in names()]
    assert len(known) > 240
    return known


def model_of(row: dict[str, str]) -> str:
    name = row["model"].lower()
    return ALIASES.get(name, name)


def peak_of(row: dict[str, str]) -> DevicePeak:
    peak = gpu_peak(GPUS[row["gpu"]]).peak
    assert peak is not None
    return peak


def fastest_ms(row: dict[str, str]) -> float:
    """The smaller of the latency and of what the throughput amounts to."""
    times = [float(row["latency_ms"])] if row["latency_ms"] else []
    if row["throughput"]:
        times.append(int(row["batch"]) / float(row["throughput"]) * 1e3)
    return min(times)


def share(row: dict[str, str], peak: DevicePeak) -> float:
    batch, precision = int(row["batch"]), PRECISIONS[row["precision"]]
    limit = physical_limit(cost_of_definition(model_of(row), batch, precision), peak)
    return achieved(limit, fastest_ms(row)).share


def test_no_published_row_beats_the_limit(rows: list[dict[str, str]]) -> None:
    assert {row["gpu"] for row in rows} == set(GPUS)
    shares = {tuple(row.values()): share(row, peak_of(row)) for row in rows}
    assert not [row for row, found in shares.items() if found > 1]
    assert max(shares.values()) > 0.5  # and it is no limit that anything would keep


def test_without_winograds_saving_some_would(rows: list[dict[str, str]]) -> None:
    plain = [row for row in rows if share(row, replace(peak_of(row), winograd=frozenset())) > 1]
    assert {(row["gpu"], row["model"], row["precision"]) for row in plain} == {
        ("rtx2080ti", "vgg16", "FP32")
    }
