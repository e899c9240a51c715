from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deploykit
from deploykit.benchmarking.report.table import csv_text, plain_text


def read_back(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


@pytest.mark.parametrize(
    "text",
    [
        "=cmd|' /C calc'!A0",
        '=HYPERLINK("http://x.example", "net")',
        "+1+1",
        "-1+1",
        "-layer",
        "--x",
        "-",
        "-inf",
        "-0x10",
        "+1_000",
        "@SUM(A1:A9)",
        "\t=1",
        "\r=1",
        "\n=1",
        "\uff1d1+1",
        "\uff0b1+1",
        "\uff0d1+1",
        "\uff201",
    ],
)
def test_what_begins_like_a_formula_is_quoted(text: str) -> None:
    (record,) = read_back(csv_text(["name"], [{"name": text}]))
    assert record["name"].startswith("'")
    assert record["name"].replace("'", "") == text.replace("'", "").replace("\r", "\n")


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_formula_after_another_separator_is_quoted(separator: str) -> None:
    assert plain_text(f"net{separator}=1+1") == f"net{separator}'=1+1"


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_a_line_break_ends_no_row(end: str) -> None:
    text = f"one{end}two"
    assert read_back(csv_text(["name"], [{"name": text}])) == [{"name": "one\ntwo"}]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "net",
        "a=b",
        "x+y",
        "a-b",
        "me@here",
        "a; b",
        "a;\n\n- b",
        "-1",
        "+1",
        "-.5",
        "-1.",
        "-2.5E+7",
    ],
)
def test_other_text_and_numbers_are_as_given(text: str) -> None:
    assert plain_text(text) == text


@pytest.mark.parametrize("value", [-1, -1.5, -1e-300, np.float64(-2.5), True, float("-inf")])
def test_a_number_stays_a_number(value: Any) -> None:
    assert csv_text(["value"], [{"value": value}]) == f"value\n{value}\n"


def test_what_a_row_lacks_is_empty() -> None:
    assert csv_text(["a", "b"], [{"b": 1}, {"a": None, "b": "x"}]) == "a,b\n,1\n,x\n"


def test_a_column_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="fields not in fieldnames: 'b'"):
        csv_text(["a"], [{"b": 1}])


def test_no_other_place_of_the_package_writes_csv() -> None:
    package = Path(deploykit.__file__).parent
    writers = ("csv.writer", "csv.DictWriter", "to_csv(", "savetxt(")
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if any(writer in path.read_text(encoding="utf-8") for writer in writers)
    }
    assert found == {"benchmarking/report/table.py"}
