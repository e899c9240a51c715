"""The literal ``CARD`` of a family file: what is read, and how mistakes in one are reported."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, Any

import pytest

from deploykit.core.plugs import plugs, source_of
from deploykit.models import _card, _registry, get, names

if TYPE_CHECKING:
    from pathlib import Path

REMOVED = object()


def written(folder: Path, stem: str = "shufflenet", **changes: object) -> Path:
    """A family file like nin.py whose card has ``changes``; ``REMOVED`` takes a key out."""
    card: dict[str, Any] = dict(_card.read_card(source_of(_registry.ROOM, "nin")))
    card["variants"] = {stem: card["variants"]["nin"]}
    card |= changes
    kept = {key: value for key, value in card.items() if value is not REMOVED}
    path = folder / f"{stem}.py"
    path.write_text(f"CARD: Final[FamilyCard] = {kept!r}\nraise SystemExit('executed')\n")
    return path


def test_a_card_is_read_without_executing_the_file(tmp_path: Path) -> None:
    card = _card.read_card(written(tmp_path, year=2018))
    assert card["year"] == 2018
    assert card["variants"]["shufflenet"]["parameters"] == 7_595_176


def test_a_new_file_is_a_new_family(tmp_path: Path) -> None:
    written(tmp_path)
    entries = _registry.read_files((("shufflenet", tmp_path / "shufflenet.py"),))
    assert list(entries) == ["shufflenet"]
    assert entries["shufflenet"].family == "shufflenet"


def test_a_missing_key_is_named_with_its_file(tmp_path: Path) -> None:
    path = written(tmp_path, year=REMOVED)
    with pytest.raises(ValueError, match=re.escape(f"{path}: CARD lacks ['year']")):
        _card.read_card(path)


def test_a_misspelt_key_is_named_with_its_file(tmp_path: Path) -> None:
    path = written(tmp_path, image_sise=224)
    message = r"shufflenet\.py: CARD lacks nothing and has unknown keys \['image_sise'\]\nknown"
    with pytest.raises(ValueError, match=message):
        _card.read_card(path)


def test_keys_of_the_preprocessing_are_checked(tmp_path: Path) -> None:
    path = written(tmp_path, preprocessing={"resize": 256, "mean": (0, 0, 0), "std": (1, 1, 1)})
    with pytest.raises(ValueError, match=r'CARD\["preprocessing"\] lacks \[\'interpolation\'\]'):
        _card.read_card(path)


def test_keys_of_a_variant_are_checked(tmp_path: Path) -> None:
    path = written(tmp_path, variants={"x": {"parameters": 1, "torchvision": None, "yeer": 2018}})
    message = r"CARD\[\"variants\"\]\[\"x\"\] lacks \['multiply_adds'\] .* \['yeer'\]"
    with pytest.raises(ValueError, match=message):
        _card.read_card(path)


def test_a_file_without_a_card_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "helpers.py"
    path.write_text("X: int = 1\n")
    with pytest.raises(ValueError, match=r"helpers\.py has no card\na family file needs CARD"):
        _card.read_card(path)


def test_a_card_that_needs_executing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clever.py"
    path.write_text("CARD: Final[FamilyCard] = make_card()\n")
    with pytest.raises(ValueError, match=r"clever\.py: CARD is not a literal"):
        _card.read_card(path)


def test_two_families_cannot_claim_one_name(tmp_path: Path) -> None:
    first = written(tmp_path)
    (tmp_path / "zebra.py").write_text(first.read_text())
    message = r"'shufflenet' is claimed by shufflenet\.py and by zebra\.py\na network has one name"
    with pytest.raises(ValueError, match=message):
        _registry.read_files((("shufflenet", first), ("zebra", tmp_path / "zebra.py")))


def test_every_family_file_says_where_it_comes_from() -> None:
    for path in (source_of(_registry.ROOM, family) for family in plugs(_registry.ROOM)):
        docstring = ast.get_docstring(ast.parse(path.read_text()))
        assert docstring is not None
        assert "http" in docstring, path.name


def test_a_variant_with_its_own_paper_says_all_of_it() -> None:
    own = {"title", "paper", "year"}
    for entry in _registry.read_families().values():
        assert len(own & entry.variant.keys()) in {0, 3}


def test_every_variant_has_a_paper() -> None:
    for name in names():
        spec = get(name)
        assert (spec.paper or "").startswith("https://"), name
        assert spec.year is not None
        assert 2012 <= spec.year <= 2016, name
        assert spec.title, name
