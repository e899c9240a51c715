"""Containers of Triton Inference Server by the version of TensorRT that they have.

``triton_containers.csv`` has the rows, each with its source. NVIDIA's table of all releases is at
`MATRIX`; a row is added from there, or from an image itself.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

MATRIX: Final = "https://docs.nvidia.com/deeplearning/frameworks/support-matrix/index.html"
IMAGE: Final = "nvcr.io/nvidia/tritonserver"
SDK_SUFFIX: Final = "-sdk"
"""After the tag of a container: the one of the same release with the clients."""


@dataclass(frozen=True)
class TritonContainer:
    """A release of the container, the TensorRT in it, and who says so."""

    release: str
    tensorrt: str
    source: str

    @property
    def image(self) -> str:
        """The image with its tag."""
        return f"{IMAGE}:{self.release}-py3"


@cache
def triton_containers() -> tuple[TritonContainer, ...]:
    """All that are known, the newest first."""
    text = resources.files(__package__).joinpath("triton_containers.csv").read_text("utf-8")
    rows = (TritonContainer(**row) for row in csv.DictReader(text.splitlines()))
    return tuple(sorted(rows, key=lambda row: row.release, reverse=True))


def container_for(tensorrt: str) -> TritonContainer | None:
    """The newest one with this version of TensorRT, as "11.1.0.106"; ``None`` where none is known.

    >>> container_for("10.9.0.34").image, container_for("1.2.3")
    ('nvcr.io/nvidia/tritonserver:25.03-py3', None)
    """
    return next((each for each in triton_containers() if each.tensorrt == tensorrt), None)
