from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from deploykit.benchmarking.results import BenchmarkResult, Samples, Subject, Switches
from deploykit.core.errors import DataError, UnknownNameError, UsageError
from deploykit.core.serialization import Source, from_plain, to_plain
from tests.unit.benchmarking.statistics.noise import SUBJECT, SWITCHES, result_of, samples_of

RESULT = Source("result")
AWKWARD = [1 / 3, 5e-324, 1.7976931348623157e308, 0.1 + 0.2, 0.0]
FULL = samples_of(
    AWKWARD, compute_ms=AWKWARD, h2d_ms=AWKWARD[::-1], d2h_ms=AWKWARD, enqueue_ms=AWKWARD
)


def through_json(data: Any) -> Any:
    return json.loads(json.dumps(data, allow_nan=False))


@pytest.mark.parametrize("samples", [FULL, samples_of([1.5, 2.5])], ids=["all steps", "wall only"])
def test_a_result_survives_json_bit_for_bit(samples: Samples) -> None:
    result = result_of([1.0], samples=samples, duration_s=1 / 7)
    again = from_plain(BenchmarkResult, through_json(to_plain(result)), RESULT)
    assert again == result
    assert to_plain(again) == to_plain(result)
    assert again.samples.wall_ms.tobytes() == samples.wall_ms.tobytes()
    assert again.switches == SWITCHES
    assert again.subject == SUBJECT


def test_what_is_not_known_survives_json() -> None:
    subject = replace(SUBJECT, precision_proven=None, engine_sha256=None, compiler=None)
    switches = replace(SWITCHES, preset=None, threads=None)
    assert from_plain(Subject, through_json(asdict(subject)), RESULT) == subject
    assert from_plain(Switches, through_json(asdict(switches)), RESULT) == switches


def test_samples_are_equal_when_every_number_is() -> None:
    assert samples_of([1.0, 2.0]) == samples_of([1.0, 2.0])
    assert samples_of([1.0, 2.0]) != samples_of([1.0, np.nextafter(2.0, 3.0)])
    assert samples_of([1.0, 2.0]) != samples_of([1.0, 2.0], compute_ms=[1.0, 2.0])
    assert samples_of([1.0]) != "samples"


def test_samples_are_a_copy_that_nobody_changes() -> None:
    wall = np.array([1.0, 2.0])
    samples = samples_of(wall)
    wall[0] = 7.0
    assert samples.wall_ms.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="read-only"):
        samples.wall_ms[0] = 3.0


def test_throughput_counts_the_images_of_every_query() -> None:
    result = result_of([5.0] * 100, duration_s=0.5)
    assert result.throughput_per_s == 100 * 8 / 0.5


def test_latency_is_the_sum_of_the_device_steps() -> None:
    steps = {"compute_ms": [2.0, 3.0], "h2d_ms": [0.5, 0.25]}
    assert samples_of([4.0, 5.0]).latency_ms.tolist() == [4.0, 5.0]
    assert samples_of([4.0, 5.0], **steps).latency_ms.tolist() == [2.5, 3.25]
    assert samples_of([4.0, 5.0], **steps, d2h_ms=[1, 1]).latency_ms.tolist() == [3.5, 4.25]
    assert samples_of([4.0], compute_ms=[2.0]).latency_ms.tolist() == [2.0]


def test_a_step_is_looked_up_by_its_name() -> None:
    samples = samples_of([4.0], compute_ms=[3.0])
    assert samples.step("compute_ms").tolist() == [3.0]
    with pytest.raises(UnknownNameError, match=r"unknown step 'h2d_ms'\n.*\n?all of them: wall_ms"):
        samples.step("h2d_ms")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scenario": "ofline"}, r"unknown scenario 'ofline'\ndid you mean: offline\?"),
        ({"preset": "trtexec9"}, r"unknown preset 'trtexec9'\ndid you mean: trtexec1"),
        ({"streams": 0}, "streams is 0, expected 1 or more"),
        ({"min_samples": 0}, "min_samples is 0, expected 1 or more"),
        ({"threads": -1}, "threads is -1, expected 1 or more"),
        ({"warmup_s": -0.1}, "warmup_s is -0.1, expected 0 or more"),
        ({"duration_s": float("nan")}, "duration_s is nan, expected 0 or more"),
        ({"seed": -1}, "seed is -1, expected 0 or more"),
    ],
)
def test_impossible_switches_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(SWITCHES, **changes)


@pytest.mark.parametrize("batch", [0, -8])
def test_a_batch_is_positive(batch: int) -> None:
    with pytest.raises(UsageError, match=f"batch is {batch}, expected 1 or more"):
        replace(SUBJECT, batch=batch)


@pytest.mark.parametrize("duration_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_measurement_takes_time(duration_s: float) -> None:
    with pytest.raises(UsageError, match=rf"a measurement of {duration_s} s\nexpected more than 0"):
        result_of([1.0], duration_s=duration_s)


@pytest.mark.parametrize(
    ("wall_ms", "steps", "message"),
    [
        ([], {}, "a measurement without a query\nexpected at least one in wall_ms"),
        ([1.0, 2.0], {"compute_ms": [1.0]}, "compute_ms has 1 entries, wall_ms has 2"),
        ([1.0], {"start_s": [0.0, 1.0]}, "start_s has 2 entries, wall_ms has 1"),
        ([1.0], {"h2d_ms": [[1.0]]}, r"h2d_ms has shape \(1, 1\), expected one entry per query"),
        ([-1.0], {}, "wall_ms holds a time that is negative, infinite or not a number"),
        ([1.0], {"d2h_ms": [float("nan")]}, "d2h_ms holds a time that is negative, infinite"),
        ([1.0], {"warmup_ms": [float("inf")]}, "warmup_ms holds a time that is negative"),
    ],
)
def test_impossible_samples_are_refused(
    wall_ms: list[float], steps: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        samples_of(wall_ms, **steps)


MISSING = object()


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("created", MISSING, "^result: Object missing required field `created`$"),
        ("host", 1, "Object contains unknown field `host`"),
        ("duration_s", "3", r"Expected `float`, got `str` - at `\$.duration_s`"),
        ("duration_s", True, r"Expected `float`, got `bool` - at `\$.duration_s`"),
        ("duration_s", 0, "^result: a measurement of 0.0 s\nexpected more than 0 s$"),
        ("condition", "busy", r"Expected `array`, got `str` - at `\$.condition`"),
        ("condition", [1], r"Expected `str`, got `int` - at `\$.condition\[0\]`"),
        ("subject", [], r"Expected `object`, got `array` - at `\$.subject`"),
        ("subject.batch", MISSING, r"Object missing required field `batch` - at `\$.subject`"),
        ("subject.batch", 1.5, r"Expected `int`, got `float` - at `\$.subject.batch`"),
        ("subject.batch", 0, "batch is 0, expected 1 or more"),
        ("subject.precision_asked", MISSING, "Object missing required field `precision_asked`"),
        (
            "subject.precision_asked",
            "fp12",
            "unknown precision 'fp12', known: fp32, fp16, bf16, int8",
        ),
        (
            "subject.precision_asked",
            None,
            r"Expected `str`, got `NoneType` - at `\$.subject.precision_asked`",
        ),
        ("subject.compiler", 7, r"Expected `str \| null`, got `int` - at `\$.subject.compiler`"),
        ("switches.spin", "false", r"Expected `bool`, got `str` - at `\$.switches.spin`"),
        ("switches.spin", 0, r"Expected `bool`, got `int` - at `\$.switches.spin`"),
        ("switches.streams", True, r"Expected `int`, got `bool` - at `\$.switches.streams`"),
        ("switches.scenario", "serve", "unknown scenario 'serve'"),
        ("samples.start_s", MISSING, "Object missing required field `start_s`"),
        ("samples.wall_ms", None, r"Expected `array`, got `null` - at `\$.samples.wall_ms`"),
        ("samples.wall_ms", ["1"], r"Expected `float`, got `str` - at `\$.samples.wall_ms\[0\]`"),
        (
            "samples.compute_ms",
            [True],
            r"Expected `float`, got `bool` - at `\$.samples.compute_ms\[0\]`",
        ),
        ("samples.compute_ms", [1.0], "compute_ms has 1 entries, wall_ms has 2"),
        ("samples.wall_ms", [10**400, 1], "Number out of range"),
        ("environment", None, r"Expected `object`, got `null` - at `\$.environment`"),
    ],
)
def test_plain_data_that_is_no_result_is_refused(place: str, value: Any, message: str) -> None:
    data = through_json(to_plain(result_of([1.0, 2.0])))
    *outer, key = place.split(".")
    inner = data[outer[0]] if outer else data
    if value is MISSING:
        del inner[key]
    else:
        inner[key] = value
    with pytest.raises(DataError, match=message) as caught:
        from_plain(BenchmarkResult, data, RESULT)
    assert len(str(caught.value).splitlines()) <= 3


def test_a_long_value_is_cut_in_the_message() -> None:
    data = {**through_json(asdict(SUBJECT)), "precision_asked": "x" * 1000}
    with pytest.raises(DataError, match=r"^result: unknown precision 'x{39}, known: fp32"):
        from_plain(Subject, data, RESULT)
