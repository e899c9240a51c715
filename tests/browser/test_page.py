"""The page and its table: sorting, filters, themes, a phone, paper, hostile names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deploykit.benchmarking.report.rows import row_of
from tests.browser.reading import PHONE, RUNS, lines_of, overflow, row_ids, stage_of
from tests.unit.benchmarking.report.reported import BUSY, DOUBT, HOSTILE, first_look, gpu_run

if TYPE_CHECKING:
    from tests.browser.reading import Open


def test_columns_sort_up_down_and_back(opened: Open) -> None:
    page, run = opened(), gpu_run()
    failures = [len(run.results), len(run.results) + 1]
    medians = [row_of(result).latency_ms[50].value for result in run.results]
    upwards = sorted(range(len(medians)), key=medians.__getitem__)
    measured = row_ids(page)
    head = page.locator("th.col-p50")
    assert measured == [*range(len(medians)), *failures]
    assert head.get_attribute("aria-sort") == "none"
    head.locator("button").click()
    assert row_ids(page) == [*upwards, *failures]
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").click()
    assert row_ids(page) == [*upwards[::-1], *failures]
    assert head.get_attribute("aria-sort") == "descending"
    head.locator("button").click()
    assert row_ids(page) == measured
    assert head.get_attribute("aria-sort") == "none"


def test_columns_sort_by_keyboard(opened: Open) -> None:
    page = opened()
    page.locator("#sort-model").focus()
    page.keyboard.press("Enter")
    names = page.locator("tbody[data-row] .name").all_inner_texts()
    assert names == sorted(names)
    page.keyboard.press("Enter")  # the same button has the focus still
    assert page.locator("tbody[data-row] .name").all_inner_texts() == names[::-1]
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert page.locator("th.col-p50").get_attribute("aria-sort") == "ascending"


def test_every_kind_of_column_sorts(opened: Open) -> None:
    page, run = opened(), gpu_run()
    rows = [row_of(result) for result in run.results]
    page.locator("#sort-images_per_s").click()
    shown = row_ids(page)[: len(rows)]
    assert shown == sorted(shown, key=lambda row: rows[row].throughput_per_s)
    page.locator("#sort-precision").click()
    names = [cell.split()[0] for cell in page.locator("td.col-precision").all_inner_texts()]
    assert list(dict.fromkeys(names)) == ["fp32", "fp16", "int8"]
    page.locator("#sort-batch").click()
    page.locator("#sort-batch").click()
    batches = [int(text) for text in page.locator("td.col-batch").all_inner_texts()]
    assert batches == sorted(batches, reverse=True)


def test_filters_act_on_the_table_and_on_the_charts(opened: Open) -> None:
    page, run = opened(), gpu_run()
    assert lines_of(page, "latency") == lines_of(page, "throughput") == 6
    assert lines_of(page, "roofline") == len(run.results)
    page.select_option("#filter-model", "alexnet")
    assert page.locator("#count").inner_text() == "9 of 20 rows"
    assert lines_of(page, "latency") == 3
    page.select_option("#filter-precision", "int8")
    assert lines_of(page, "latency") == 1
    page.select_option("#filter-batch", "8")
    assert len(row_ids(page)) == 1
    assert page.locator("#chart-latency h3").inner_text() == "Latency at batch 8"
    assert lines_of(page, "latency") == 1
    page.select_option("#filter-backend", "tensorrt-rtx")
    assert page.locator("tbody .empty").inner_text() == "No row passes the filters."
    assert page.locator("#not-drawn").inner_text().count("No row passes the filters.") == 5
    assert page.locator("#chart-grid .card:visible").count() == 0
    page.locator("#clear").click()
    assert len(row_ids(page)) == 20
    assert page.input_value("#filter-model") == ""


def test_a_median_without_an_interval_stands_in_brackets(opened: Open) -> None:
    page, rows = opened("first"), [row_of(result) for result in first_look().results]
    bare = [row for row, figures in enumerate(rows) if not figures.latency_ms]
    assert len(bare) == 2
    for row, figures in enumerate(rows):
        text = page.locator(f'[data-row="{row}"] td.col-p50').inner_text()
        assert text.startswith("(") == (row in bare)
        shown = float(text.strip("()"))
        assert shown == pytest.approx(figures.median_ms, rel=1e-2)
    assert "A figure in brackets has no interval" in page.locator("#left-out").inner_text()
    page.locator("#sort-p50").click()
    assert row_ids(page) == sorted(range(len(rows)), key=lambda row: rows[row].median_ms)


def test_a_99th_percentile_without_an_interval_stands_in_brackets(opened: Open) -> None:
    page, rows = opened(), [row_of(result) for result in gpu_run().results]
    carried = [99 in row.latency_ms for row in rows]
    assert set(carried) == {True, False}
    for number, row in enumerate(rows):
        text = page.locator(f'[data-row="{number}"] td.col-p99').inner_text()
        assert text.startswith("(") != carried[number]
        assert row.p99_ms is not None
        assert float(text.strip("()")) == pytest.approx(row.p99_ms, abs=6e-4)
    assert "A figure in brackets has no interval" in page.locator("#left-out").inner_text()


def test_the_text_filter_finds_names_and_sentences(opened: Open) -> None:
    page = opened()
    page.locator("#filter-text").press_sequentially("X fp16")
    assert page.locator("#count").inner_text() == "3 of 20 rows"
    page.fill("#filter-text", "other processes")
    assert row_ids(page) == [0]
    page.fill("#filter-text", "(")  # no pattern, only text
    assert all("(" in text for text in page.locator("tbody[data-row]").all_inner_texts())


def test_what_qualifies_a_row_is_marked_and_told_on_demand(opened: Open) -> None:
    page = opened()
    busy, doubtful = page.locator('[data-row="0"]'), page.locator('[data-row="1"]')
    assert busy.locator(".tag").all_inner_texts() == ["Machine", "Note"]
    assert BUSY in str(busy.locator(".tag.condition").get_attribute("title"))
    assert BUSY not in busy.inner_text()
    page.locator("#open-0").click()
    assert BUSY in busy.inner_text()
    page.locator("#open-1").click()
    assert DOUBT in doubtful.inner_text()
    assert doubtful.locator(".remark.doubt").is_visible()
    failed = page.locator("tbody.failed").first
    assert "out of memory after 4.2 s: needs 23 GiB\nhas 21" in failed.inner_text()
    page.locator("#summary-failure").click()
    assert row_ids(page) == [18, 19]
    assert page.input_value("#filter-remarks") == "failure"
    assert page.locator("#not-drawn").inner_text().count("All rows shown failed") == 5
    page.locator("#summary-failure").click()
    assert len(row_ids(page)) == 20


def test_the_page_begins_with_its_answer(opened: Open) -> None:
    page, rows = opened(), [row_of(result) for result in gpu_run().results]
    fastest = min(rows, key=lambda row: row.median_ms)
    cheapest = max(rows, key=lambda row: row.throughput_per_s)
    said = page.locator("#sentence").inner_text()
    first, second = said.split(". Cheapest per image: ")
    assert first.startswith(f"Fastest: {fastest.model} INT8 batch {fastest.batch}: ")
    assert float(first.split()[-2]) == pytest.approx(fastest.median_ms, rel=1e-3)
    assert second.startswith(f"{cheapest.model} INT8 batch {cheapest.batch}: ")
    per_image = float(second.split(" ms ")[0].split()[-1])
    assert per_image == pytest.approx(1e3 / cheapest.throughput_per_s, rel=1e-3)
    assert opened("failures").locator("#sentence").inner_text() == ""


def test_what_holds_for_all_rows_is_said_once(opened: Open) -> None:
    page = opened("alike")
    told = page.locator("#shared").inner_text()
    assert "All rows: busy: other processes used 12 to 34% of the processors meanwhile" in told
    assert page.locator("tbody[data-row] .tag").count() == 0
    assert opened("gpu").locator("#shared").is_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_system_until_it_is_switched(opened: Open, scheme: str) -> None:
    page = opened(color_scheme=scheme)
    ground = "getComputedStyle(document.body).backgroundColor"
    colours = {"light": "rgb(246, 246, 244)", "dark": "rgb(17, 19, 21)"}
    other = {"light": "dark", "dark": "light"}[scheme]
    assert page.evaluate(ground) == colours[scheme]
    assert page.locator("#theme").inner_text().lower() == other
    page.locator("#theme").click()
    assert page.evaluate(ground) == colours[other]
    page.locator("#theme").click()
    assert page.evaluate(ground) == colours[scheme]


@pytest.mark.parametrize("name", RUNS)
def test_a_phone_needs_no_sideways_scrolling(opened: Open, name: str) -> None:
    page = opened(name, viewport=PHONE)
    assert overflow(page) <= 0
    if name == "gpu":
        box = page.locator("#table-box")
        assert box.evaluate("box => box.scrollWidth <= box.clientWidth + 1")
        card = page.locator('tbody[data-row="2"]')
        labels = card.locator("[data-label]").evaluate_all("all => all.map(c => c.dataset.label)")
        assert labels[:3] == ["Model", "p50, ms, median", "p99, ms"]
        assert card.locator(".col-p50").is_visible()
        assert page.locator("#table thead").is_hidden()
        page.select_option("#filter-sort", "p50")
        medians = [float(text) for text in page.locator("td.col-p50:visible").all_inner_texts()]
        assert medians == sorted(medians)
        page.select_option("#filter-sort", "")
        page.locator("#open-0").click()
        assert overflow(page) <= 0
        sentence = page.locator('[data-row="0"] .remark').first.bounding_box()
        assert sentence is not None
        assert sentence["x"] + sentence["width"] <= PHONE["width"]


def test_details_open_and_close(opened: Open) -> None:
    page = opened()
    button = page.locator("#open-3")
    assert button.get_attribute("aria-expanded") == "false"
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-expanded") == "true"
    assert "b" * 64 in page.locator('[data-row="3"] .details').inner_text()
    page.keyboard.press("Enter")
    assert page.locator(".details").count() == 0


def test_a_hostile_name_is_text(opened: Open) -> None:
    page = opened("hostile")
    assert page.locator(".name").first.text_content() == HOSTILE
    assert page.locator("#machine").text_content() == HOSTILE
    assert page.locator("main [onclick]").count() == 0
    assert page.locator("script").count() == 3
    page.locator("#open-0").click()
    stage_of(page, "distribution").focus()
    page.keyboard.press("ArrowRight")
    assert HOSTILE.split("\n")[0] in page.locator("#chart-distribution .tip").inner_text()


def test_a_print_shows_all_rows_and_no_controls(opened: Open) -> None:
    page = opened(color_scheme="dark")
    page.emulate_media(media="print")
    assert page.locator("#filters").is_hidden()
    box = page.locator("#table-box")
    assert box.evaluate("box => box.scrollHeight - box.clientHeight") <= 1
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(23, 25, 28)"
