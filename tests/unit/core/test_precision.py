"""Names of precisions, and the row of facts that each has."""

from __future__ import annotations

import copy
import json
import pickle
import sys
from typing import TYPE_CHECKING, Any

import pytest

from deploykit.core.errors import MissingDependencyError, UnknownNameError, UsageError
from deploykit.core.plugs import plugs
from deploykit.core.precision import FACTS, OWN, Precision, find_precision, precisions
from deploykit.precision import conversion_of
from tests.plugins import install_plug

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GOOD = """
from dataclasses import replace
from deploykit.core.precision import FACTS as OWN
FACTS = replace(OWN["fp16"], name="unum16", element_type="UNUM16", least_compute_capability=(8, 0))
"""


@pytest.fixture(autouse=True)
def _forget_plugs() -> Iterator[None]:
    yield
    for name in [each for each in sys.modules if each.startswith("plugged_")]:
        del sys.modules[name]
    plugs.cache_clear()


def test_each_member_has_its_row_and_each_row_its_file() -> None:
    assert list(map(str, Precision)) == list(FACTS)
    assert list(OWN) == list(Precision)
    assert plugs("precision").keys() == FACTS.keys()
    assert all(name == row.name for name, row in FACTS.items())
    assert all(conversion_of(each) is not None for each in OWN)


def test_rows_are_widest_first_and_can_be_told_apart() -> None:
    bits = [row.operand_bits for row in FACTS.values()]
    assert bits == sorted(bits, reverse=True)
    types = [(row.element_type, row.quantized) for row in FACTS.values()]
    assert len(set(types)) == len(types)
    needed = [name for row in FACTS.values() for name in row.census.needed]
    assert len(set(needed)) == len(needed)
    assert [row.name for row in FACTS.values() if row.is_source] == ["fp32"]


@pytest.mark.parametrize("name", list(FACTS))
def test_a_row_is_complete(name: str) -> None:
    row = FACTS[name]
    assert row.limits.reason
    assert row.tolerance.reason
    assert row.help.endswith(".")
    assert row.rate in {"fp32", "fp16", "int8"}
    assert row.gpu_limits_of is None or row.gpu_limits_of in FACTS
    assert row.census.needed.isdisjoint(row.census.beside)


@pytest.mark.parametrize("given", ["fp12", 16, None, ["fp16"]])
def test_what_is_no_precision(given: Any) -> None:
    with pytest.raises(ValueError, match="is not a valid Precision"):
        Precision(given)


def test_unknown_names_suggest_close_ones() -> None:
    expected = "'in8'\ndid you mean: int8.*\nall of them: fp32, fp16, bf16, int8, fp8$"
    with pytest.raises(UnknownNameError, match=expected):
        find_precision("in8")
    assert find_precision("int8") is Precision.INT8


def test_a_plug_is_a_precision_like_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_plug(tmp_path, "precision", "unum16", GOOD, monkeypatch)
    found = Precision("unum16")
    assert found is Precision("unum16")
    assert found is find_precision("unum16")
    assert precisions() == (*OWN, found)
    assert copy.deepcopy(found) is found
    assert pickle.loads(pickle.dumps(found)) is found  # noqa: S301 - our own bytes
    assert json.dumps({found: found}) == '{"unum16": "unum16"}'
    assert f"{found}" == "unum16"
    assert hash(found) == hash("unum16")
    assert isinstance(found, Precision)
    assert "plugged_unum16" not in sys.modules
    assert found.facts.element_type == "UNUM16"
    assert [found.facts.runs_on(each) for each in ("7.5", "8.0", "12.0")] == [False, True, True]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", "FACTS of the plug-in 'unum16' of deploykit.precision is NoneType"),
        ("FACTS = 16", "is int"),
        (GOOD.replace('"unum16"', '"bf17"'), "is bf17\nexpected PrecisionFacts\\(name='unum16'"),
    ],
)
def test_a_plug_without_facts(
    source: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_plug(tmp_path, "precision", "unum16", source, monkeypatch)
    with pytest.raises(MissingDependencyError, match=words):
        _ = Precision("unum16").facts


def test_a_plug_without_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_plug(tmp_path, "precision", "unum16", GOOD, monkeypatch)
    with pytest.raises(MissingDependencyError, match=r"'unum16' of .* has no CONVERSION"):
        conversion_of(Precision("unum16"))


def test_a_plug_that_is_called_as_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_plug(tmp_path, "precision", "fp16", GOOD, monkeypatch)
    with pytest.raises(UsageError, match="are both called 'fp16' in"):
        precisions()
