"""The page about bundles, in Chromium: what it shows is what manifest, table and graphs say."""

from __future__ import annotations

import base64
import io
import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

from deploykit.core.progress import SilentProgress
from deploykit.reporting.bundles import page_of, report_data
from tests.browser.reading import DESKTOP, PHONE, overflow
from tests.cli import deploykit
from tests.reported_bundles import IMAGES, PRECISIONS, make_reported
from tests.unit.benchmarking.report.reported import HOSTILE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from playwright.sync_api import Locator, Page

    from tests.browser.reading import Open

Made = dict[str, Any]
NAMES = (*PRECISIONS, "all", "hostile", "without-reference")


@pytest.fixture(scope="module")
def folder(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    return made_once("reported_bundles", make_reported)


@pytest.fixture(scope="module")
def told(folder: Path) -> Made:
    bundles = [folder / name for name in PRECISIONS]
    return report_data(bundles, data=folder / IMAGES, progress=SilentProgress())


def alone(told: Made, at: int) -> Made:
    return {**told, "bundles": [told["bundles"][at]]}


def hostile(data: Any, key: str = "") -> Any:
    """The same with every text that may come from outside replaced."""
    if isinstance(data, dict):
        return {name: hostile(value, name) for name, value in data.items()}
    if isinstance(data, list):
        return [hostile(value, key) for value in data]
    kept = {"precision", "measure", "picture"}
    return HOSTILE if isinstance(data, str) and key not in kept else data


@pytest.fixture(scope="module")
def files(folder: Path, told: Made, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages in the place of those of `bench`."""
    pages = {name: alone(told, at) for at, name in enumerate(PRECISIONS)}
    lacks = {"reason": "reference.onnx was deleted, with which answers are compared"}
    lacking = {**told["bundles"][1], "errors": lacks, "answers": lacks}
    pages |= {"all": told, "hostile": hostile(told)}
    pages |= {"without-reference": {**told, "bundles": [lacking]}}
    place = tmp_path_factory.mktemp("reports")
    paths = {name: place / f"{name}.html" for name in pages}
    for name, path in paths.items():
        path.write_text(page_of(pages[name]), encoding="utf-8")
    return paths


def chart(page: Page, name: str, at: int = 0) -> Locator:
    return page.locator(f"#chart-{name}-{at}")


def rows_of(box: Locator) -> list[list[str]]:
    texts = "all => all.map(row => [...row.children].map(cell => cell.textContent))"
    found: list[list[str]] = box.locator("tbody tr").evaluate_all(texts)
    return [[text.replace("\u00a0", " ") for text in row] for row in found]


def card(page: Page, title: str) -> Locator:
    return page.locator(".card", has=page.locator("h3", has_text=title))


def read(page: Page, name: str, key: str) -> dict[str, str]:
    """The facts of one point, read by keyboard."""
    stage = chart(page, name).locator(".stage")
    stage.focus()
    page.keyboard.press(key)
    tip = chart(page, name).locator(".tip")
    labels, texts = (tip.locator(tag).all_inner_texts() for tag in ("dt", "dd"))
    plain = [text.replace("\u00a0", " ") for text in texts]
    assert page.locator("#spoken").inner_text().startswith(tip.locator("p").inner_text())
    return {"title": tip.locator("p").inner_text(), **dict(zip(labels, plain, strict=True))}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_a_page_needs_no_sideways_scrolling(opened: Open, name: str, width: dict[str, int]) -> None:
    page = opened(name, viewport=width)
    assert overflow(page) <= 0
    for plot in page.locator(".plot").all():
        held = plot.evaluate("node => node.getBoundingClientRect().toJSON()")
        for text in plot.locator("text").evaluate_all(
            "all => all.map(t => t.getBoundingClientRect().toJSON())"
        ):
            assert held["left"] - 1 <= text["left"]
            assert text["right"] <= held["right"] + 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_is_that_of_the_system_until_it_is_switched(opened: Open, scheme: str) -> None:
    page = opened("int8", color_scheme=scheme)
    ground = "getComputedStyle(document.body).backgroundColor"
    colours = {"light": "rgb(246, 246, 244)", "dark": "rgb(17, 19, 21)"}
    assert page.evaluate(ground) == colours[scheme]
    page.locator("#theme").click()
    assert page.evaluate(ground) == colours[{"light": "dark", "dark": "light"}[scheme]]


def test_the_sentence_begins_with_the_verdict(opened: Open, folder: Path) -> None:
    changed = changed_images(folder, "int8")
    said = opened("int8").locator(".verdict").inner_text()
    assert said.startswith(
        "net-int8 passed 3 of 3 checks of its export and answers as FP32 does on "
        f"{96 - len(changed)} of 96 images; arithmetic 99 % INT8; graph "
    )
    assert said.endswith("; no engine yet.")


def changed_images(folder: Path, name: str) -> list[int]:
    """By onnxruntime alone: the images to which the bundle's CPU form has another answer."""
    with np.load(folder / IMAGES) as kept:
        pixels = kept["images"]
    # As the manifest says: 9 px, bilinear, and 8 from the middle.
    resized = [
        np.asarray(Image.fromarray(p).resize((9, 9), Image.Resampling.BILINEAR)) for p in pixels
    ]
    start = round((9 - 8) / 2)
    cut = np.stack(resized)[:, start : start + 8, start : start + 8].astype(np.float32)
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)
    batch = ((cut / 255 - mean) / std).transpose(0, 3, 1, 2)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    answers = []
    for file in ("model.cpu.onnx", "reference.onnx"):
        session = ort.InferenceSession(folder / name / file, options)
        (logits,) = session.run(None, {session.get_inputs()[0].name: batch})
        answers.append(logits.argmax(axis=1))
    return [int(at) for at in np.flatnonzero(answers[0] != answers[1])]


def test_changed_answers_have_their_pictures(opened: Open, folder: Path, told: Made) -> None:
    changed = changed_images(folder, "int8")
    assert len(changed) == told["bundles"][1]["answers"]["count"] >= 1
    page = opened("int8")
    shown = page.locator(".pictures figure")
    names = [text.split()[-1] for text in shown.locator("figcaption").all_inner_texts()]
    assert names == [str(at) for at in changed]
    source = str(shown.first.locator("img").get_attribute("src"))
    data = base64.b64decode(source.removeprefix("data:image/png;base64,"))
    with Image.open(io.BytesIO(data)) as image, np.load(folder / IMAGES) as kept:
        original = Image.fromarray(kept["images"][changed[0]])
        wanted = np.asarray(original.resize((9, 9), Image.Resampling.BILINEAR))[:8, :8]
        np.testing.assert_allclose(np.asarray(image, int), wanted, atol=1)
    answers = shown.first.locator("dd").all_inner_texts()
    assert len({answer.split()[0] for answer in answers}) == 2
    assert all(re.fullmatch(r"(red|green|blue|none) \d+\.\d+%", answer) for answer in answers)
    assert "None on 96 images" in card(opened("fp16"), "Changed answers").inner_text()


def test_layers_are_those_of_inspect(opened: Open, folder: Path) -> None:
    called = deploykit("inspect", folder / "int8", "--precision", "--json").data["precision"]
    heavy = sorted(
        (node for node in called["nodes"] if node["multiply_adds"]),
        key=lambda node: -node["multiply_adds"],
    )
    page = opened("int8")
    page.locator("details summary").click()
    shown = rows_of(page.locator("details"))
    assert [row[:3] for row in shown] == [
        [node["name"], node["op_type"], node["precision"]] for node in heavy
    ]
    drawn = chart(page, "layers").locator(".bar > rect")
    assert [name.split(";")[0] for name in names_of(drawn)] == [node["name"] for node in heavy]
    facts = read(page, "layers", "Home")
    assert facts["title"] == heavy[0]["name"]
    assert float(facts["Share"].split()[0]) == pytest.approx(100 * heavy[0]["share"], rel=1e-2)
    counts = {row[0]: int(row[1]) for row in rows_of(card(page, "Layers by precision"))}
    assert {name: count for name, count in called["heavy_nodes"].items() if count} == {
        name: count for name, count in counts.items() if count
    }


def names_of(drawn: Locator) -> list[str]:
    found = drawn.evaluate_all("all => all.map(node => node.getAttribute('aria-label'))")
    return [str(name) for name in found]


def test_errors_are_those_of_the_layers(opened: Open, told: Made) -> None:
    values = told["bundles"][1]["errors"]["values"]
    page = opened("int8")
    assert len(names_of(chart(page, "errors").locator(".mark > *"))) == len(values)
    last = read(page, "errors", "End")
    assert last["title"] == values[-1]["name"]
    assert float(last["SQNR"].split()[0]) == pytest.approx(values[-1]["sqnr_db"], abs=0.06)
    assert float(last["Cosine"]) == pytest.approx(values[-1]["cosine"], abs=1e-6)


def test_ranges_are_those_of_the_table(opened: Open, folder: Path) -> None:
    table = json.loads((folder / "int8" / "calibration.json").read_text(encoding="utf-8"))
    method = json.loads((folder / "int8" / "manifest.json").read_text())["calibration"]["method"]
    kept = {name: each[method] / each["max"] for name, each in table["amax"].items()}
    page = opened("int8")
    dots = names_of(chart(page, "ranges").locator(".mark > *"))
    assert [name.split(";")[0] for name in dots] == sorted(kept, key=lambda name: kept[name])
    first = read(page, "ranges", "Home")
    wanted = table["amax"][first["title"]]
    assert float(first["In use"].replace(",", "")) == pytest.approx(wanted[method], rel=1e-3)
    assert float(first["max"].replace(",", "")) == pytest.approx(wanted["max"], rel=1e-3)
    shape = table["half_octaves"][first["title"]]
    # The first tensor's cells come first; those that lie below the axis are clamped to its start.
    bars = chart(page, "ranges").locator(".shape rect").locator("title").all_text_contents()
    shares = [count / sum(shape) for count in shape[:-1] if count]
    shown = [float(text.strip("<> ").split()[0]) / 100 for text in bars[: len(shares)]]
    assert shown == pytest.approx(shares, abs=1e-2)


def test_the_frontier_has_every_point_and_marks_the_chosen_one(opened: Open, folder: Path) -> None:
    manifest = json.loads((folder / "auto" / "manifest.json").read_text(encoding="utf-8"))
    budget = manifest["conversion"]["budget"]
    page = opened("auto")
    frontier = chart(page, "frontier")
    names = names_of(frontier.locator(".mark > *"))
    assert len(names) == len(budget["points"])
    (chosen,) = [at for at, name in enumerate(names) if ", chosen" in name]
    assert chosen == budget["chosen"]
    assert frontier.locator(".chosen > *").count() == 1
    for key, point in (("Home", budget["points"][0]), ("End", budget["points"][-1])):
        facts = read(page, "frontier", key)
        assert float(facts["Predicted"].split()[0]) == pytest.approx(point["ms"], rel=1e-3)
        assert float(facts["At most"].split()[0]) == pytest.approx(100 * point["upper"], rel=1e-2)
    assert "budget 60.0" in str(frontier.locator(".plot").text_content())
    assert "on L4 at batch 8" in frontier.inner_text()


def test_a_bundle_without_int8_data_has_no_card_for_them(opened: Open) -> None:
    page = opened("fp16")
    titles = page.locator(".card:visible h3").all_inner_texts()
    assert not {"Calibrated ranges", "Time against loss", "Rounding noise"} & {*titles}
    assert {"Layers by precision", "Heaviest layers", "Errors by layer", "Files"} <= {*titles}


def test_what_cannot_be_compared_is_said_in_place_of_an_empty_card(opened: Open) -> None:
    page = opened("without-reference")
    reason = "reference.onnx was deleted, with which answers are compared"
    assert page.locator("#not-drawn-0").inner_text() == f"Errors by layer: {reason}"
    assert chart(page, "errors").is_hidden()
    assert card(page, "Changed answers").count() == 0
    assert "checks of its export" in page.locator(".verdict").inner_text()


def test_several_bundles_begin_with_a_table_of_all(opened: Open, told: Made) -> None:
    page = opened("all")
    rows = rows_of(page.locator("#overview"))
    assert [row[:2] for row in rows] == [
        [bundle["name"], bundle["precision"]] for bundle in told["bundles"]
    ]
    same = [
        f"{each['answers']['images'] - each['answers']['count']} of 96" for each in told["bundles"]
    ]
    assert [row[2] for row in rows] == same
    assert page.locator(".bundle h2").all_inner_texts() == [row[0] for row in rows]
    page.locator("#overview a").nth(2).click()
    assert page.url.endswith("#bundle-2")
    assert opened("int8").locator("#overview").is_hidden()


def test_the_facts_are_the_manifests(opened: Open, folder: Path) -> None:
    manifest = json.loads((folder / "int8" / "manifest.json").read_text(encoding="utf-8"))
    page = opened("int8")
    converted = card(page, "What was converted")
    labels, texts = (converted.locator(tag).all_inner_texts() for tag in ("dt", "dd"))
    facts = dict(zip(labels, texts, strict=True))
    assert facts["Network"] == manifest["model"]["name"]
    assert facts["Made"] == manifest["created"]
    assert facts["Calibrated on"] == f"{manifest['calibration']['images']} images of {IMAGES}"
    sizes = {row[0]: row[1] for row in rows_of(card(page, "Files"))}
    assert {*manifest["files"], "manifest.json"} == {*sizes}
    model_kb = (folder / "int8" / "model.onnx").stat().st_size / 1e3
    assert float(sizes["model.onnx"].split()[0]) == pytest.approx(model_kb, rel=1e-2)
    checks = rows_of(card(page, "Checks of the export"))
    assert [row[2] for row in checks] == ["passed"] * len(manifest["validation"])


def test_hostile_names_are_text(opened: Open) -> None:
    page = opened("hostile")
    assert page.locator("main [onclick]").count() == 0
    assert page.locator("script").count() == 3
    assert page.locator(".bundle h2").first.text_content() == HOSTILE
    assert page.locator(".verdict").first.text_content() == HOSTILE
    assert HOSTILE in str(
        page.locator("#chart-layers-0 .mark > *").first.get_attribute("aria-label")
    )
    page.locator("#chart-errors-0 .stage").focus()
    page.keyboard.press("Home")
    assert HOSTILE.split("\n")[0] in page.locator("#chart-errors-0 .tip").inner_text()
