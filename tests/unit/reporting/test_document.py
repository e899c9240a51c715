from __future__ import annotations

import hashlib
import json
import re
from importlib import resources
from math import inf, nan
from typing import TYPE_CHECKING, Final

import pytest

from deploykit.core.errors import UsageError
from deploykit.reporting.document import (
    LIBRARY,
    SCRIPTS,
    STYLE,
    document,
    library,
    require_report_name,
    shared_asset,
)
from tests.unit.reporting.plain_parts import require_plain

if TYPE_CHECKING:
    from pathlib import Path

TEMPLATE: Final = "<title>{{title}}</title>{{style}}|{{library}}|{{script}}|{{data}}"


def page(data: object = None) -> str:
    return document(title="a <b>", template=TEMPLATE, scripts=("own();",), style=".x{}", data=data)


def test_every_part_is_in_its_place() -> None:
    made = page()
    assert made.startswith("<title>a &lt;b&gt;</title>")
    for name in SCRIPTS:
        assert shared_asset(name) in made
    assert made.index(shared_asset(STYLE)) < made.index(".x{}") < made.index("own();")


def test_data_end_no_element_and_are_no_place_of_the_template() -> None:
    made = page({"name": "</script>{{title}}", "figures": (1.5, nan, inf)})
    text = made.rpartition("|")[2]
    assert json.loads(text) == {"name": "</script>{{title}}", "figures": [1.5, None, None]}
    assert "<" not in text


@pytest.mark.parametrize("name", [*SCRIPTS, STYLE])
def test_a_shared_part_is_small_plain_and_loads_nothing(name: str) -> None:
    require_plain(shared_asset(name))


def test_the_library_is_the_one_that_its_table_names() -> None:
    folder = resources.files("deploykit.reporting").joinpath("assets", "vendor")
    table = folder.joinpath("README.md").read_text("utf-8")
    named = dict(re.findall(r"^\| `([\w.]+)` .*`(\w{64})` \|$", table, re.MULTILINE))
    assert {f"vendor/{name}" for name in named} == set(LIBRARY)
    for name, digest in named.items():
        assert hashlib.sha256(folder.joinpath(name).read_bytes()).hexdigest() == digest
    for licence in ("d3.LICENSE", "plot.LICENSE"):
        assert folder.joinpath(licence).read_text("utf-8") in library()


def test_the_library_names_no_address_but_name_spaces_and_its_home() -> None:
    addresses = set(re.findall(r"https?://[^\s\"'`)]+", library()))
    others = {each for each in addresses if not each.startswith("http://www.w3.org/")}
    assert others == {"https://d3js.org"}
    assert "</script" not in library()


def test_a_report_has_a_name_that_browsers_show(tmp_path: Path) -> None:
    for name in ("page.html", "PAGE.HTM"):
        assert require_report_name(tmp_path / name) == tmp_path / name
    with pytest.raises(UsageError, match=r"page\.pdf is no name of a report\nexpected one that"):
        require_report_name(tmp_path / "page.pdf")
    with pytest.raises(UsageError, match=r"is a folder\ngive the report a file: .*report\.html"):
        require_report_name(tmp_path)
