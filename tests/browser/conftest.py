"""A browser for the tests of one module, and a page in it for each test."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from deploykit.benchmarking.report.page import page_of
from tests.browser.reading import RUNS, Tabs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser

    from tests.browser.reading import Open

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


# Of the module and not of the session: while it is open its thread has a running event loop, and
# other tests of the same process start their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"needs a browser, one of {', '.join(BROWSERS)}: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # The sandbox of Chromium does not start for root, as whom containers run their tests.
        launched = playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--disable-gpu"]
        )
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    paths = {name: folder / f"{name}.html" for name in RUNS}
    for name, path in paths.items():
        path.write_text(page_of(RUNS[name]()), encoding="utf-8")
    return paths


@pytest.fixture(scope="module")
def tabs(browser: Browser, files: dict[str, Path]) -> Tabs:
    return Tabs(browser, files)


@pytest.fixture
def opened(tabs: Tabs) -> Iterator[Open]:
    """Open a page; at the end nothing was complained of, and nothing but the file was asked for."""
    tabs.said.clear()
    tabs.asked.clear()
    yield tabs.open
    assert tabs.said == []
    urls = {path.as_uri() for path in tabs.files.values()}
    assert {url for url in tabs.asked if not url.startswith("data:")} <= urls
