"""CSV for scripts and spreadsheets, in which no text is taken for a formula.

The one place of the package that writes CSV.
"""

from __future__ import annotations

import csv
import io
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
# OWASP, "CSV Injection": these begin a formula, the wide ones in some languages. After ";" and tab
# too: a spreadsheet that separates cells by them begins another one there.
_SIGNS: Final = r"=+\-@\uff1d\uff0b\uff0d\uff20"
_FORMULA: Final = re.compile(rf"^(?=[{_SIGNS}\t\r\n])|(?<=[;\t])(?=[{_SIGNS}])")


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """A line with the names of the columns, then one for each row; what a row lacks is empty.

    Raises:
        ValueError: a row has a column that ``columns`` does not name.
    """
    text = io.StringIO()
    table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def plain_text(text: str) -> str:
    """``text`` with a single quote before what a spreadsheet would run as a formula.

    A number is none, and stays one:

    >>> plain_text("=1+1"), plain_text("@SUM(A1)"), plain_text("-nan"), plain_text("-1.5e-3")
    ("'=1+1", "'@SUM(A1)", "'-nan", '-1.5e-3')
    """
    return text if _NUMBER.fullmatch(text) else _FORMULA.sub("'", text)


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    # The csv module leaves a lone carriage return unquoted, and readers end the row there.
    return plain_text(value.replace("\r\n", "\n").replace("\r", "\n"))
