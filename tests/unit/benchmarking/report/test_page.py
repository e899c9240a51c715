from __future__ import annotations

import json
import re
from importlib import resources
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from deploykit.benchmarking.report.page import SCRIPTS, page_data, page_of
from deploykit.benchmarking.results import BenchmarkRun
from deploykit.benchmarking.statistics.percentiles import percentile
from deploykit.reporting.document import library, shared_asset
from tests.unit.benchmarking.report.reported import (
    CPU,
    DOUBT,
    FAILURES,
    GPU,
    HOSTILE,
    PEAK,
    cpu_run,
    gpu_run,
    hostile_run,
    lognormal,
    measured,
    on_gpu,
)
from tests.unit.reporting.plain_parts import require_plain

ASSETS = resources.files("deploykit.benchmarking.report").joinpath("assets")
OWN = (*SCRIPTS, "page.html", "bench.css")
BLOCK = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)


def block_of(page: str) -> Any:
    (text,) = BLOCK.findall(page)
    return json.loads(text)


@pytest.mark.parametrize("run", [gpu_run(), cpu_run(), hostile_run(), BenchmarkRun(())])
def test_the_data_come_back_from_the_page(run: BenchmarkRun) -> None:
    assert block_of(page_of(run)) == json.loads(json.dumps(page_data(run)))


def test_every_part_is_in_the_page() -> None:
    page = page_of(cpu_run())
    assert {*OWN} == {item.name for item in ASSETS.iterdir()}
    for name in (*SCRIPTS, "bench.css"):
        assert ASSETS.joinpath(name).read_text("utf-8") in page
    assert "{{" not in page.replace(library(), "")
    assert page.startswith("<!DOCTYPE html>\n")


@pytest.mark.parametrize("name", OWN)
def test_a_part_is_small_plain_and_loads_nothing(name: str) -> None:
    require_plain(ASSETS.joinpath(name).read_text("utf-8"))


def test_nothing_is_loaded() -> None:
    page = page_of(gpu_run()).replace(library(), "")
    assert "http:" not in page
    assert "https:" not in page
    assert re.findall(r'(?:src|href)="([^"#]*)', page) == ["data:,", "", "", ""]
    assert "default-src 'none'" in page


def test_a_hostile_name_does_not_leave_its_block() -> None:
    page = page_of(hostile_run())
    assert len(re.findall("</script", page)) == 3
    assert "onclick=alert" not in BLOCK.sub("", page).replace("&lt;b onclick=alert(1)&gt;", "")
    assert "<b onclick" not in page
    assert block_of(page)["rows"][0]["model"] == HOSTILE
    assert "\u2028" not in BLOCK.findall(page)[0]


def test_two_hundred_rows_stay_small() -> None:
    models = [f"torchvision:some_long_model_name_{number}" for number in range(22)]
    run = gpu_run(models)
    assert len(run.results) == 198
    assert len(page_of(run)) - len(library()) < 700_000


def test_results_and_then_failures_are_rows() -> None:
    run = gpu_run()
    rows = page_data(run)["rows"]
    assert [row["id"] for row in rows] == list(range(len(run.results) + len(FAILURES)))
    assert [row["failed"] for row in rows[-3:]] == [None, "out of memory", "error"]
    assert rows[-2]["remarks"] == [["failure", "out of memory after 4.2 s: needs 23 GiB\nhas 21"]]
    assert DOUBT in rows[1]["remarks"][0][1]


def test_a_row_has_the_figures_of_its_result() -> None:
    result = on_gpu("nin", "int8", 4, lognormal(2.0, 800))
    (row,) = page_data(BenchmarkRun((result,)))["rows"]
    latency = result.samples.latency_ms
    found = percentile(latency, 90)
    assert found is not None
    assert row["percentiles"]["90"] == [np.percentile(latency, 90), found.low, found.high]
    assert set(row["percentiles"]) == {"10", "50", "90", "99"}
    assert row["limit"]["share"] == pytest.approx(1 / 3 / np.median(latency))
    assert row["limit"]["flop_per_s"] == pytest.approx(8e9 / np.median(latency) * 1e3)
    assert row["limit"]["peak"] == 0
    assert row["largest_ms"] == pytest.approx(latency.max(), rel=1e-5)
    details = dict(row["details"])
    assert details["Engine sha256"] == "b" * 64
    assert details["Precision proven"] == "int8"
    assert details["Limit"] == "0.3333 ms, memory binds"
    assert details["Computing, median"].endswith(" ms")
    assert "Streams" not in details


def test_a_row_has_its_median_even_without_an_interval() -> None:
    few = measured("nin", [3.0, 1.0, 2.0])
    many = measured("nin", lognormal(2.0, 100))
    rows = page_data(BenchmarkRun((few, many), FAILURES))["rows"]
    assert rows[0]["median_ms"] == 2.0
    assert rows[0]["percentiles"] == {}
    assert ["Median", "(2 ms), no interval"] in rows[0]["details"]
    assert rows[1]["median_ms"] == rows[1]["percentiles"]["50"][0]
    assert "Median" not in dict(rows[1]["details"])
    assert "median_ms" not in rows[2]


def test_a_figure_that_overflows_is_left_out() -> None:
    with np.errstate(over="ignore"):
        page = page_of(BenchmarkRun((measured("nin", [5e-324, 2.5e300] * 10),)))
    (row,) = block_of(page)["rows"]
    assert row["variation"] is None
    assert row["percentiles"]["50"][2] == 2.5e300


def test_few_samples_are_few_steps() -> None:
    times = [3.0, 1.0, 2.0, 5.0]
    data = page_data(BenchmarkRun((measured("nin", times),)))
    (row,) = data["rows"]
    levels = data["levels"][: len(row["quantiles"])]
    assert set(row["quantiles"]) == {1.0, 2.0, 3.0}
    assert levels[-1] == 75.0
    assert row["quantiles"][levels.index(25)] == 1.0
    assert row["quantiles"][levels.index(26)] == 2.0


def test_quantiles_reach_as_far_as_the_samples() -> None:
    data = page_data(BenchmarkRun((measured("nin", lognormal(1.0, 20_000)),)))
    (row,) = data["rows"]
    assert data["levels"] == sorted(set(data["levels"]))
    assert len(row["quantiles"]) == len(data["levels"]) <= 200
    assert row["quantiles"] == sorted(row["quantiles"])
    assert data["levels"][-1] == 99.99


def test_the_roofs_are_the_fastest_way_in_each_precision() -> None:
    (peak,) = page_data(gpu_run())["peaks"]
    assert peak["flop_per_s"] == {
        "fp32": 60e12,
        "fp16": 121e12,
        "bf16": 121e12,
        "int8": 242e12,
        "fp8": 242e12,
    }
    assert peak["bytes_per_s"] == PEAK.bytes_per_s
    assert peak["measured"] is False


def test_a_second_machine_is_said_beside_its_rows() -> None:
    run = BenchmarkRun(
        (measured("nin", [1.0], environment=CPU), measured("nin", [1.0], environment=GPU))
    )
    data = page_data(run)
    assert [dict(row["details"])["Machine"] for row in data["rows"]] == ["number 1", "number 2"]
    assert data["machine"] == "Some CPU @ 2 GHz, NVIDIA L4"


# The colours: WCAG 2 contrast, and distances as people with colour blindness see them.

SERIES = [f"series-{number}" for number in range(1, 7)]
COLOURS = {
    name: pair
    for name, *pair in re.findall(
        r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", shared_asset("page.css")
    )
}
# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
SEEN_WITH = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def linear(colour: str) -> Any:
    parts = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    dark, light = sorted(float(linear(each) @ [0.2126, 0.7152, 0.0722]) for each in (one, other))
    return (light + 0.05) / (dark + 0.05)


def cielab(rgb: Any) -> Any:
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ np.clip(rgb, 0, 1) / [0.9505, 1.0, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("ground", ["surface", "ground"])
def test_text_and_marks_have_enough_contrast(theme: int, ground: str) -> None:
    behind = COLOURS[ground][theme]
    texts = ["ink", "muted", "accent", "failure", "doubt", "condition", "warning", "note"]
    assert min(contrast(COLOURS[name][theme], behind) for name in texts) >= 4.5
    marks = [*SERIES, "series-other", "edge"]
    assert min(contrast(COLOURS[name][theme], behind) for name in marks) >= 3


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("kind", SEEN_WITH)
def test_colours_differ_for_the_colour_blind(theme: int, kind: str) -> None:
    seen = [cielab(np.array(SEEN_WITH[kind]) @ linear(COLOURS[name][theme])) for name in SERIES]
    assert min(float(np.linalg.norm(one - other)) for one, other in combinations(seen, 2)) > 20
