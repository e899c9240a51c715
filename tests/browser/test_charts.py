"""The charts, by mouse, finger and keyboard."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from deploykit.benchmarking.report.rows import row_of
from tests.browser.reading import DESKTOP, PHONE, lines_of, stage_of
from tests.unit.benchmarking.report.reported import first_look, gpu_run

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.browser.reading import Open

CHARTS = ("latency", "throughput", "distribution", "roofline", "precisions")


def test_figures_are_read_by_keyboard(opened: Open) -> None:
    page = opened()
    for chart in CHARTS:
        read_by_keyboard(page, chart)


def read_by_keyboard(page: Page, chart: str) -> None:
    stage, tip = stage_of(page, chart), page.locator(f"#chart-{chart} .tip")
    assert tip.is_hidden()
    stage.focus()
    page.keyboard.press("Home")
    first = tip.inner_text()
    assert "batch" in first
    page.keyboard.press("ArrowRight")
    assert tip.inner_text() != first
    assert page.locator("#spoken").inner_text().startswith(tip.inner_text().splitlines()[0])
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")
    assert tip.is_visible()
    page.keyboard.press("Escape")
    assert tip.is_hidden()


def test_the_tooltip_says_what_the_result_says(opened: Open) -> None:
    page = opened()
    median = row_of(gpu_run().results[0]).latency_ms[50]
    stage_of(page, "latency").focus()
    page.keyboard.press("ArrowRight")
    text = page.locator("#chart-latency .tip").inner_text()
    assert text.startswith("resnet50, fp32, tensorrt, batch 1")
    shown = re.search(r"p50\s+([\d.]+)\sms \(([\d.]+) to ([\d.]+)\)", text)
    assert shown is not None
    figures = [float(figure) for figure in shown.groups()]
    assert figures == pytest.approx([median.value, median.low, median.high], rel=1e-3)


def test_a_finger_and_a_mouse_read_figures(opened: Open) -> None:
    page = opened(viewport=PHONE, has_touch=True)
    stage, tip = stage_of(page, "latency"), page.locator("#chart-latency .tip")
    mark = stage.locator("svg .mark > *").first
    mark.tap(force=True)
    assert tip.is_visible()
    box, held = tip.bounding_box(), stage.bounding_box()
    assert box is not None
    assert held is not None
    assert held["x"] <= box["x"]
    assert box["x"] + box["width"] <= held["x"] + held["width"]
    page = opened()
    stage_of(page, "roofline").locator("svg .mark > *").first.hover(force=True)
    assert page.locator("#chart-roofline .tip").is_visible()
    page.mouse.move(2, 2)
    assert page.locator("#chart-roofline .tip").is_hidden()


def test_every_chart_names_itself_and_its_axes(opened: Open) -> None:
    page = opened()
    titles = {
        "latency": ["Batch (images per query)", "Latency p50 (ms)"],
        "throughput": ["Batch (images per query)", "Throughput (images/s)"],
        "distribution": ["Latency over the row's median (\u00d7)", "Share of queries (%)"],
        "roofline": ["Arithmetic intensity (FLOP/byte)", "Arithmetic rate (FLOP/s)"],
        "precisions": ["Throughput ratio (\u00d7); beside it images/s"],
    }
    for chart in CHARTS:
        drawing = page.locator(f"#chart-{chart} .stage > svg[role=img]")
        assert drawing.get_attribute("aria-label")
        found = drawing.locator("[aria-label$='axis label'] text").all_text_contents()
        assert found == titles[chart]
    assert page.locator("#legend .entry").all_inner_texts() == [
        *("resnet50", "alexnet", "vgg16", "nin"),
        *("fp32", "fp16", "int8"),
        *("tensorrt", "tensorrt-rtx"),
    ]


def test_rows_are_chosen_for_the_distribution(opened: Open) -> None:
    page = opened()
    assert lines_of(page, "distribution") == 3
    page.locator("#choose-0").click()
    assert lines_of(page, "distribution") == 2
    for row in (1, 2, 4, 5, 7):
        page.locator(f"#choose-{row}").click()
    assert lines_of(page, "distribution") == 6
    assert page.locator("input[type=checkbox]:checked").count() == 6
    page.get_by_role("button", name="Tail").click()
    assert lines_of(page, "distribution") == 6
    page.get_by_role("button", name="ms", exact=True).click()
    assert "Latency (ms)" in page.locator("#chart-distribution").inner_text()
    page.locator("#chart-distribution .remove").first.click()
    assert lines_of(page, "distribution") == 5


def test_precisions_are_compared_at_one_batch(opened: Open) -> None:
    page, run = opened(), gpu_run()
    assert lines_of(page, "precisions") == 6
    page.select_option("#compared-batch", "32")
    rates = {(r.subject.model, r.subject.precision_asked, r.subject.batch): r for r in run.results}
    fp32, int8 = rates["resnet50", "fp32", 32], rates["resnet50", "int8", 32]  # type: ignore[index]  # a Precision is its name
    ratio = int8.throughput_per_s / fp32.throughput_per_s
    texts = page.locator("#chart-precisions .bar-text text").all_text_contents()
    assert texts[0].startswith("1.00\u00d7")
    assert texts[2].startswith(f"{ratio:.2f}\u00d7")


def test_one_batch_is_a_sorted_list(opened: Open) -> None:
    page, rows = opened("first"), [row_of(result) for result in first_look().results]
    for chart, title in (
        ("latency", "Latency at batch 1"),
        ("throughput", "Throughput at batch 1"),
    ):
        assert page.locator(f"#chart-{chart} h3").inner_text() == title
        said = f"{title}: arrow keys read the figures"
        assert stage_of(page, chart).get_attribute("aria-label") == said
        drawing = page.locator(f"#chart-{chart} .stage > svg[role=img]")
        assert str(drawing.get_attribute("aria-label")).endswith("first: 10 rows")
    fastest = sorted(rows, key=lambda row: row.median_ms)
    names = page.locator("#chart-latency .rank-name text").all_text_contents()
    assert names == [f"{row.model}, {row.backend}" for row in fastest]
    shown = page.locator("#chart-latency .bar-text text").all_text_contents()
    assert [float(text.strip("()")) for text in shown] == pytest.approx(
        [row.median_ms for row in fastest], rel=1e-3
    )
    most = sorted(rows, key=lambda row: -row.throughput_per_s)
    names = page.locator("#chart-throughput .rank-name text").all_text_contents()
    assert names == [f"{row.model}, {row.backend}" for row in most]


def test_a_mark_without_an_interval_is_empty(opened: Open) -> None:
    page, rows = opened("first"), [row_of(result) for result in first_look().results]
    fastest = sorted(rows, key=lambda row: row.median_ms)
    for row in fastest:
        is_bare = not row.latency_ms
        drawn = f"#chart-latency [data-series=rank-{rows.index(row)}]"
        assert page.locator(f"{drawn}.bare").count() == is_bare
        assert page.locator(f"{drawn}.whisker").count() == 1 - is_bare
    assert "An empty mark has no interval" in page.locator("#chart-latency").inner_text()
    assert page.locator("#chart-throughput .bare").count() == 0
    stage_of(page, "latency").focus()
    page.keyboard.press("Home")
    text = page.locator("#chart-latency .tip").inner_text()
    assert re.search(r"p50\s+\([\d.]+\sms\), no interval", text)


def test_a_sorted_list_is_read_by_keyboard_and_by_line(opened: Open) -> None:
    page = opened("first")
    for chart in ("latency", "throughput"):
        read_by_keyboard(page, chart)
    names = page.locator("#chart-latency .rank-name text")
    names.nth(4).hover(force=True)  # far from its mark, on its line
    model, backend = names.all_text_contents()[4].split(", ")
    text = page.locator("#chart-latency .tip").inner_text()
    assert text.startswith(f"{model}, fp32, {backend}, batch 1")


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_a_long_list_stays_readable(opened: Open, viewport: dict[str, int]) -> None:
    page = opened("many", viewport=viewport)
    names = page.locator("#chart-latency .rank-name text")
    assert names.count() == 60
    boxes = names.evaluate_all("all => all.map(n => n.getBoundingClientRect().toJSON())")
    stage = stage_of(page, "latency").bounding_box()
    assert stage is not None
    assert min(low["top"] - high["top"] for high, low in pairwise(boxes)) >= 18
    assert min(box["left"] for box in boxes) >= stage["x"]
    texts = page.locator("#chart-latency .bar-text text").evaluate_all(
        "all => all.map(n => n.getBoundingClientRect().right)"
    )
    assert max(texts) <= stage["x"] + stage["width"]
    assert "60 rows: scroll, or filter them." in page.locator("#chart-latency").inner_text()


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("name", ["gpu", "first"])
def test_the_names_of_the_roofs_have_room(
    opened: Open, name: str, viewport: dict[str, int]
) -> None:
    page = opened(name, viewport=viewport)
    stage = stage_of(page, "roofline").bounding_box()
    assert stage is not None
    roofs = page.locator("#chart-roofline .roof-text text")
    ends = roofs.evaluate_all("all => all.map(roof => roof.getBoundingClientRect().right)")
    assert ends
    assert max(ends) <= stage["x"] + stage["width"]


def test_peaks_have_a_unit_that_fits(opened: Open) -> None:
    page = opened("first")
    assert page.locator("#chart-roofline .roof-text text").all_text_contents() == [
        "FP32 72.5\u00a0GFLOP/s"
    ]
    assert "FP32 72.5 GFLOP/s, memory 300 GB/s" in page.locator("#facts").inner_text()
    opened("gpu")
    assert "INT8 242 TOP/s" in page.locator("#facts").inner_text()
    roofs = page.locator("#chart-roofline .roof-text text").all_text_contents()
    assert roofs[0] == "INT8 242\u00a0TOP/s"


def test_a_small_run_says_why_its_charts_are_not_drawn(opened: Open) -> None:
    page = opened("one")
    assert page.locator("#filters").is_hidden()
    assert page.locator("#not-drawn").inner_text() == (
        "Not drawn: Roofline: Nothing to draw: the physical limit of these rows is not known. "
        "Precisions against each other: All rows shown are fp32: nothing to compare."
    )
    assert page.locator("#chart-grid .card:visible").count() == len(CHARTS) - 2
    needs = "p99 needs 100 queries, and with its interval 528 independent samples"
    assert needs in page.locator("#left-out").inner_text()
    page = opened("cpu")
    assert page.locator("#chart-latency h3").inner_text() == "Latency against batch"
    assert page.locator("#chart-latency .bare > *").count() == 2
    page = opened("empty")
    assert page.locator(".empty:visible").all_inner_texts() == ["This run has no results."]
    assert page.locator("#chart-grid .card:visible").count() == 0
    page = opened("failures")
    assert page.locator("tbody.failed").count() == 2


def test_every_dot_has_a_name(opened: Open) -> None:
    page, rows = opened(), [row_of(result) for result in gpu_run().results]
    for chart in ("latency", "throughput", "roofline"):
        dots = page.locator(f"#chart-{chart} .mark > *")
        names = dots.evaluate_all("all => all.map(dot => dot.getAttribute('aria-label'))")
        told = {f"{row.model}, {row.precision}, {row.backend}, batch {row.batch}" for row in rows}
        assert {name.split(";")[0] for name in names} == told
        assert len(names) == len(rows)
    few = opened("one").locator("#chart-latency .mark > *").first
    assert str(few.get_attribute("aria-label")).startswith("nin, fp32, ort, batch 1; p50")


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("name", ["gpu", "first", "many"])
def test_the_labels_of_axes_do_not_overlap(
    opened: Open, name: str, viewport: dict[str, int]
) -> None:
    page = opened(name, viewport=viewport)
    for axis, (low, high) in {"x": ("left", "right"), "y": ("top", "bottom")}.items():
        for chart in page.locator(".plot").all():
            labels = chart.locator(f"[aria-label='{axis}-axis tick label'] text")
            boxes = labels.evaluate_all("all => all.map(t => t.getBoundingClientRect().toJSON())")
            ordered = sorted(boxes, key=lambda box: box[low])
            assert all(one[high] <= other[low] + 1 for one, other in pairwise(ordered))
