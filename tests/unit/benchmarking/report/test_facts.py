from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from deploykit.benchmarking.report.facts import (
    common_switches,
    machine_facts,
    machine_name,
    machines_of,
    peak_of,
    peak_text,
    peaks_of,
    period_of,
    rate_text,
    switch_facts,
    versions_of,
)
from deploykit.benchmarking.report.rows import remarks_of, row_of
from deploykit.benchmarking.results import BenchmarkRun
from deploykit.core.precision import Precision
from deploykit.core.serialization import to_plain
from tests.unit.benchmarking.report.reported import (
    BUSY,
    CPU,
    GPU,
    NOTE,
    PEAK,
    SWITCHED,
    cpu_run,
    first_look,
    gpu_run,
    measured,
)


def at(*moments: str) -> BenchmarkRun:
    return BenchmarkRun(tuple(measured("nin", [1.0], created=moment) for moment in moments))


def test_a_machine_is_its_gpu_or_its_processor() -> None:
    assert machine_name(GPU) == "NVIDIA L4"
    assert machine_name(CPU) == "Some CPU @ 2 GHz"
    assert machine_name({}) == "unknown machine"


def test_only_what_is_known_is_said_of_a_machine() -> None:
    assert machine_facts({}) == {}
    assert machine_facts(CPU) == {
        "CPU": "Some CPU @ 2 GHz",
        "Logical cores": "2",
        "Memory": "8.0 GiB",
        "System": "Linux",
        "Python": "3.11.9",
        "Packages": "numpy 2.4.0",
    }


@pytest.mark.parametrize(
    "environment",
    [
        {"gpus": "two", "memory_bytes": "much", "packages": ["numpy"], "peak": 3},
        {"gpus": ["L4"], "memory_bytes": float("nan"), "packages": None, "peak": {}},
    ],
)
def test_an_environment_of_another_form_is_no_error(environment: dict[str, Any]) -> None:
    assert machine_facts(environment) == {}
    assert machine_name(environment) == "unknown machine"
    assert peak_of(environment) is None


def test_a_peak_comes_back_from_a_result() -> None:
    assert peak_of(GPU) == PEAK
    assert peaks_of(gpu_run()) == [PEAK]
    assert peaks_of(cpu_run()) == []
    assert peak_text(replace(PEAK, tf32_flop_per_s=None, threads=2, source="a trial")) == (
        "L4: FP32 30.3 TFLOP/s, FP16 121 TFLOP/s, INT8 242 TOP/s, memory 300 GB/s "
        "(a trial, 2 threads)"
    )
    (slow,) = peaks_of(first_look())
    assert peak_text(slow) == "Some CPU: FP32 72.5 GFLOP/s, memory 300 GB/s (a trial, 2 threads)"


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (3.35e12, "3.35 TB/s"),
        (999.9e9, "1 TB/s"),
        (999.4e9, "999 GB/s"),
        (1.25e15, "1.25 PB/s"),
        (5e18, "5,000 PB/s"),
        (4.5e6, "4.5 MB/s"),
        (12.0, "12 B/s"),
        (0.5, "0.5 B/s"),
    ],
)
def test_a_rate_has_the_prefix_that_fits(rate: float, expected: str) -> None:
    assert rate_text(rate, "B/s") == expected


@pytest.mark.parametrize(
    "change",
    [
        {"fp32_flop_per_s": 0},
        {"bytes_per_s": float("inf")},
        {"int8_op_per_s": "fast"},
        {"name": ["L4"]},
        {"winograd": ["fp12"]},
        {"winograd": 1},
        {"unknown": 1},
    ],
)
def test_a_peak_that_cannot_be_read_is_none(change: dict[str, Any]) -> None:
    assert peak_of({"peak": to_plain(PEAK) | change}) is None


def test_machines_and_versions_are_named_once() -> None:
    run = BenchmarkRun((*gpu_run().results, *cpu_run().results))
    assert [facts.get("GPU", "")[:9] for facts in machines_of(run)] == ["NVIDIA L4", ""]
    assert versions_of(run) == ["0.1.0"]


def test_switches_in_words() -> None:
    server = replace(SWITCHED, scenario="server", rate_per_s=80.0, bound_ms=12.5, threads=None)
    facts = switch_facts(server)
    assert facts["Rate"] == "80 queries/s"
    assert facts["Bound"] == "p99 within 12.5 ms"
    assert facts["Waiting"] == "spinning"
    assert facts["Transfers"] == "inside each query"
    assert facts["Measured"] == "at least 3 s and 10 samples"
    assert "Threads" not in facts
    assert "Preset" not in facts


def test_common_switches_are_those_with_one_value() -> None:
    results = [
        measured("nin", [1.0], switches=replace(SWITCHED, threads=threads)) for threads in (1, None)
    ]
    assert common_switches(results) == {
        label: text for label, text in switch_facts(SWITCHED).items() if label != "Threads"
    }
    assert common_switches([]) == {}


@pytest.mark.parametrize(
    ("moments", "expected"),
    [
        ((), ""),
        (("2026-11-22T05:01:59+00:00",), "2026-11-22 05:01 UTC"),
        (
            ("2026-11-22T05:30:00+00:00", "2026-11-22T05:01:00+00:00"),
            "2026-11-22 05:01 UTC to 05:30 UTC",
        ),
        (
            ("2026-11-22T23:59:00+00:00", "2026-11-23T00:01:00+00:00"),
            "2026-11-22 23:59 UTC to 2026-11-23 00:01 UTC",
        ),
        (("yesterday",), "yesterday"),
    ],
)
def test_the_period_of_a_run(moments: tuple[str, ...], expected: str) -> None:
    assert period_of(at(*moments)) == expected


def test_the_gravest_remark_comes_first() -> None:
    first, second, *_ = (row_of(result) for result in gpu_run().results)
    assert [(remark.kind, remark.sentence) for remark in remarks_of(first)] == [
        ("condition", BUSY),
        ("note", NOTE),
    ]
    assert [remark.kind for remark in remarks_of(second)] == ["doubt"]


def test_another_precision_than_was_asked_is_in_doubt() -> None:
    row = row_of(measured("nin", [1.0] * 9, precision="fp16"))
    assert remarks_of(row) == ()
    assert remarks_of(replace(row, precision_proven=Precision.FP16)) == ()
    (remark,) = remarks_of(replace(row, precision_proven=Precision.FP32))
    assert (remark.kind, remark.sentence) == ("doubt", "fp16 was asked, the network is fp32")
