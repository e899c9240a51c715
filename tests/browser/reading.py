"""A page in a real Chromium: how it is opened, and what its tests read from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit.benchmarking.results import BenchmarkRun
from tests.unit.benchmarking.report.reported import (
    alike_run,
    cpu_run,
    first_look,
    gpu_run,
    hostile_run,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from playwright.sync_api import Browser, Locator, Page

    Open = Callable[..., Page]

PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}
RUNS: dict[str, Callable[[], BenchmarkRun]] = {
    "gpu": gpu_run,
    "cpu": cpu_run,
    "one": lambda: BenchmarkRun(cpu_run().results[:1]),
    "failures": lambda: BenchmarkRun((), gpu_run().failures),
    "empty": lambda: BenchmarkRun(()),
    "hostile": hostile_run,
    "alike": alike_run,
    "first": first_look,
    "many": lambda: first_look(30),
}


class Tabs:
    """A page for each set of options, opened once; what they say and ask for is kept."""

    def __init__(self, browser: Browser, files: dict[str, Path]) -> None:
        self.browser, self.files = browser, files
        self.pages: dict[str, Page] = {}
        self.said: list[str] = []
        self.asked: list[str] = []

    def open(self, name: str = "gpu", **options: Any) -> Page:
        key = repr(sorted(options.items()))
        if key not in self.pages:
            self.pages[key] = self._new({"viewport": DESKTOP, **options})
        page = self.pages[key]
        page.emulate_media(media="screen")
        page.goto(self.files[name].as_uri())
        return page

    def _new(self, options: dict[str, Any]) -> Page:
        page = self.browser.new_context(**options).new_page()
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("dialog", lambda dialog: self.said.append(dialog.message))
        page.on("request", lambda request: self.asked.append(request.url))
        return page


def row_ids(page: Page) -> list[int]:
    found = page.locator("tbody[data-row]").evaluate_all("all => all.map(b => +b.dataset.row)")
    return list(found)


def lines_of(page: Page, chart: str) -> int:
    """Series that a chart draws: a line, a dot or a bar with all that belongs to it."""
    drawn = page.locator(f"#chart-{chart} svg [data-series]")
    return len(set(drawn.evaluate_all("all => all.map(group => group.dataset.series)")))


def stage_of(page: Page, chart: str) -> Locator:
    return page.locator(f"#chart-{chart} .stage")


def overflow(page: Page) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))
