"""An architecture of timm, with the tag of its weights or without: ``timm:resnet50.a1_in1k``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.sources.kinds._kind import LibraryKind

if TYPE_CHECKING:
    from deploykit.core.choices import DefinitionChoices
    from deploykit.core.specs import ModelSpec


class Timm(LibraryKind):
    """A name of timm behind its prefix."""

    library = "timm"

    def spec(self, target: str, choices: DefinitionChoices) -> ModelSpec:
        """Built by timm."""
        from deploykit.sources.timm import timm_spec

        name = target.removeprefix(self.prefix)
        return timm_spec(name, num_classes=choices.num_classes, image_size=choices.image_size)


KIND = Timm()
