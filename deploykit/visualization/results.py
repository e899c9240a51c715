"""Pictures with their captions, in sections, and the numbers: what `deploykit visualize` made."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from deploykit.visualization.pictures import png

if TYPE_CHECKING:
    from deploykit.visualization.pictures import Pixels


class Method(StrEnum):
    """One kind of picture, in the order of the page."""

    FILTERS = "filters"
    TOP = "top"
    DECONVNET = "deconvnet"
    GUIDED = "guided"
    MAXIMISE = "maximise"
    GRADCAM = "gradcam"
    OCCLUSION = "occlusion"

    @property
    def needs_gradients(self) -> bool:
        """Whether only a module has what it needs: its layers, and gradients."""
        return self not in {Method.FILTERS, Method.OCCLUSION}

    @property
    def needs_images(self) -> bool:
        """Whether it is about images."""
        return self not in {Method.FILTERS, Method.MAXIMISE}


OF_UNITS = (Method.TOP, Method.DECONVNET, Method.GUIDED, Method.MAXIMISE)
"""Methods whose pictures are of single filters of layers."""


@dataclass(frozen=True)
class Picture:
    """A PNG file, by its path in the output's folder, and its caption."""

    file: str
    content: bytes = field(repr=False)
    caption: str

    @classmethod
    def of(cls, file: str, pixels: Pixels, caption: str) -> Picture:
        """The picture of pixels (H, W, 3)."""
        return cls(file, png(pixels), caption)

    def to_page(self) -> dict[str, Any]:
        """Plain data for the page, the file in it."""
        data = base64.b64encode(self.content).decode()
        return {"source": f"data:image/png;base64,{data}", "caption": self.caption}


@dataclass(frozen=True)
class Item:
    """Pictures that belong together, with a title and a line of text."""

    title: str
    pictures: tuple[Picture, ...]
    text: str = ""


@dataclass(frozen=True)
class PictureGroup:
    """Items under a heading, as the filters of a layer."""

    title: str
    items: tuple[Item, ...]
    text: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page: what is shown, by which method, and its groups."""

    title: str
    text: str
    groups: tuple[PictureGroup, ...]


@dataclass
class Findings:
    """Sections of the page, numbers for ``--json``, and notes for the user."""

    sections: list[Section] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def pictures(self) -> list[Picture]:
        """All of them, in the order of the page."""
        return [
            picture
            for section in self.sections
            for group in section.groups
            for item in group.items
            for picture in item.pictures
        ]


def file_name(text: str) -> str:
    """A layer's name as part of a file's: what may mean something to a system is replaced.

    >>> file_name("layer1.0.conv1"), file_name("../a b")
    ('layer1.0.conv1', '_.._a_b')
    """
    safe = "".join(each if each.isalnum() or each in "._-" else "_" for each in text)
    return f"_{safe}" if safe.startswith(".") else safe
