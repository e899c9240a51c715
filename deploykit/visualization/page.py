"""The folder that `deploykit visualize` writes: one page that works offline, PNG files, numbers."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from deploykit._version import __version__
from deploykit.core.atomic import staged_folder, translated_write_errors
from deploykit.core.errors import UsageError
from deploykit.reporting.document import asset, document

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.visualization.results import Findings, Section

PAGE: Final = "index.html"
NUMBERS: Final = "visualization.json"
"""Numbers of the pictures; marks a folder as one of ours."""


def require_free(folder: Path, *, replace: bool) -> None:
    """Refuse an output that would take the place of something, before anything slow is done.

    Raises:
        UsageError: something else is there; or an earlier output, which is not to be replaced.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / NUMBERS).is_file():
        raise UsageError(
            f"{folder} exists and is no output of deploykit visualize, so it is not replaced\n"
            "choose another with -o"
        )
    if not replace:
        raise UsageError(
            f"{folder} holds pictures of before\nreplace them with --replace, or choose another "
            "with -o"
        )


def write_pictures(folder: Path, findings: Findings, *, replace: bool) -> None:
    """Write page, PNG files and numbers, whole or not at all.

    Raises:
        UsageError: something has come to ``folder`` that is not to be replaced.
        BundleError: the place cannot be written to.
    """

    def look_again() -> None:
        require_free(folder, replace=replace)

    with staged_folder(folder, NUMBERS, look_again) as staged, translated_write_errors(folder):
        for picture in findings.pictures:
            file = staged / picture.file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(picture.content)
        (staged / PAGE).write_text(page_of(findings), encoding="utf-8")
        numbers = json.dumps(findings.numbers, indent=1)
        (staged / NUMBERS).write_text(numbers + "\n", encoding="utf-8")


def page_of(findings: Findings) -> str:
    """The page; nothing of the data is read as HTML."""
    told = {
        "deploykit": __version__,
        "created": f"{datetime.now(UTC):%Y-%m-%d %H:%M UTC}",
        "target": findings.numbers["target"],
        "weights": findings.numbers.get("weights"),
        "notes": findings.notes,
        "sections": list(map(_section, findings.sections)),
    }
    return document(
        title=f"deploykit: {told['target']}",
        template=asset(__package__, "visualized.html"),
        scripts=[asset(__package__, "visualized.js")],
        style=asset(__package__, "visualized.css"),
        data=told,
    )


def _section(section: Section) -> dict[str, Any]:
    return {
        "title": section.title,
        "text": section.text,
        "groups": [
            {
                "title": group.title,
                "text": group.text,
                "items": [
                    {
                        "title": item.title,
                        "text": item.text,
                        "pictures": [picture.to_page() for picture in item.pictures],
                    }
                    for item in group.items
                ],
            }
            for group in section.groups
        ],
    }
