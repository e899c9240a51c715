"""The site of the documents: strict, complete, and whole without a network."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

import deploykit
from deploykit.cli import COMMANDS
from docs import site
from tests.documents import PAGES, ROOT, name_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("zensical")
    folder = tmp_path_factory.mktemp("site")
    site.build(folder)
    return folder


def test_it_builds_without_a_warning_and_has_every_page(pages: Path) -> None:
    names = {name_of(page).removesuffix(".md") for page in PAGES} | {"docs/reference/commands"}
    made = {name.removesuffix("README") + "index" * name.endswith("README") for name in names}
    built = {path.relative_to(pages).as_posix() for path in pages.rglob("*.html")}
    assert {f"{name}.html" for name in made} <= built


def test_no_page_loads_anything_from_another_host(pages: Path) -> None:
    loaded = re.compile(
        r"<(?:script|img|iframe)[^>]+src=\"?(https?:[^\s\">]+)|<link[^>]+stylesheet[^>]+(https?:[^\s\">]+)"
    )
    found = {path.name: loaded.findall(path.read_text("utf-8")) for path in pages.rglob("*.html")}
    assert {name: hosts for name, hosts in found.items() if hosts} == {}


def test_a_link_that_leads_nowhere_ends_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("zensical")
    page = tmp_path / "README.md"
    page.write_text("# A\n[there](#nowhere)\n", encoding="utf-8")
    monkeypatch.setattr(site, "ROOT", tmp_path)
    with pytest.raises(SystemExit) as ended:
        site.build(tmp_path / "site")
    assert ended.value.code not in (0, None)
    assert not (tmp_path / "site").exists()


def test_the_navigation_has_every_page_once() -> None:
    wanted = [path for path in site.linked(site.main_pages()) if path.suffix == ".md"]
    names = sorted(path.relative_to(ROOT).as_posix() for path in wanted)
    in_order = [
        page for part in site.navigation(names) for pages in part.values() for page in pages
    ]
    assert sorted(in_order) == names


def test_the_reference_has_every_command_and_option() -> None:
    text = site.commands_page()
    assert re.findall(r"^## deploykit (\w+)$", text, re.MULTILINE) == list(COMMANDS)
    assert "| `--max-drop SHARE` |" in text
    assert "deploykit export resnet50 --fp16" in text


def test_the_reference_has_every_public_name() -> None:
    text = site.python_page()
    shown = re.findall(r"^## deploykit\.(\w+)$", text, re.MULTILINE)
    assert shown == [name for name in deploykit.__all__ if name != "__version__"]
    assert "- `precision`: " in text
    assert "### Classifier.predict" in text
    assert "    precision: str | Precision = " in text


def test_a_docstring_becomes_lists_and_code() -> None:
    text = site.markdown_of(
        "A.\n\n>>> 1\n1\n\nArgs:\n    x: one\n        more\n\nRaises:\n    E: y\n\nEnd."
    )
    assert "```python\n>>> 1\n1\n```" in text
    assert "**Args**\n\n- `x`: one more" in text
    assert "**Raises**\n\n- `E`: y" in text
    assert text.endswith("End.")
