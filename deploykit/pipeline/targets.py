"""From the name of a network, as a command's TARGET has it, to its definition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from deploykit import models

if TYPE_CHECKING:
    from deploykit.specs import ModelSpec

TORCHVISION: Final = "torchvision:"


def find_definition(
    target: str, *, num_classes: int | None = None, image_size: int | None = None
) -> ModelSpec:
    """The spec of a registered architecture, or of ``torchvision:NAME``.

    Raises:
        UnknownNameError: there is no network of this name.
        UsageError: the network does not take this number of classes or image size.
        MissingDependencyError: torchvision is asked for and not installed.
    """
    name = target.removeprefix(TORCHVISION)
    find = models.get if name == target else models.torchvision_spec
    return find(name, num_classes=num_classes, image_size=image_size)
