"""The page of `deploykit visualize`, in Chromium."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.visualization.page import page_of
from deploykit.visualization.results import Findings, Item, Picture, PictureGroup, Section
from tests.browser.reading import DESKTOP, PHONE, overflow
from tests.unit.benchmarking.report.reported import HOSTILE

if TYPE_CHECKING:
    from pathlib import Path

    from tests.browser.reading import Open

COUNT = 9


def found(text: str) -> Findings:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 700, 3), np.uint8)
    pictures = tuple(Picture.of(f"{at}.png", pixels, text) for at in range(2))
    items = tuple(Item(f"{text} {at}", pictures, text) for at in range(COUNT))
    group = PictureGroup(text, items, text)
    return Findings([Section(text, text, (group, group))], {"target": text}, [text])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages in the place of those of `bench`."""
    folder = tmp_path_factory.mktemp("pictures")
    texts = {"plain": "layer1", "hostile": HOSTILE, "long": "layer" * 80}
    paths = {name: folder / f"{name}.html" for name in texts}
    for name, path in paths.items():
        path.write_text(page_of(found(texts[name])), encoding="utf-8")
    return paths


@pytest.mark.parametrize("name", ["plain", "hostile", "long"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_a_page_needs_no_sideways_scrolling(opened: Open, name: str, width: dict[str, int]) -> None:
    assert overflow(opened(name, viewport=width)) <= 0


def test_every_picture_is_shown_with_its_text(opened: Open) -> None:
    page = opened("hostile")
    assert page.locator("figure img").count() == 4 * COUNT
    assert page.locator("h1").text_content() == HOSTILE
    assert page.locator("#notes .notice").text_content() == HOSTILE
    first = page.locator("figure img").first
    first.scroll_into_view_if_needed()
    assert first.evaluate("image => image.decode().then(() => image.naturalWidth)") == 700
    assert str(first.get_attribute("alt")).startswith(HOSTILE)


def test_the_theme_is_that_of_the_system_until_it_is_switched(opened: Open) -> None:
    page = opened("plain", color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(ground) == "rgb(17, 19, 21)"
    page.locator("#theme").click()
    assert page.evaluate(ground) == "rgb(246, 246, 244)"
