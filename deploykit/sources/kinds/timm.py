"""An architecture of timm, with the tag of its weights or without: ``timm:resnet50.a1_in1k``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from deploykit.sources.kinds._kind import TargetKind

if TYPE_CHECKING:
    from deploykit.core.choices import DefinitionChoices
    from deploykit.core.specs import ModelSpec

PREFIX: Final = "timm:"


class Timm(TargetKind):
    """A name of timm behind its prefix."""

    def takes(self, target: str) -> bool:
        """Whether the prefix is there."""
        return target.startswith(PREFIX)

    def short_name(self, target: str) -> str:
        """The target with what a folder's name may have."""
        return target.replace(":", "-").replace("/", "-")

    def spec(self, target: str, choices: DefinitionChoices) -> ModelSpec:
        """Built by timm."""
        from deploykit.sources.timm import timm_spec

        name = target.removeprefix(PREFIX)
        return timm_spec(name, num_classes=choices.num_classes, image_size=choices.image_size)


KIND = Timm()
