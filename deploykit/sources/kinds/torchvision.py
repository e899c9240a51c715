"""An image classifier of torchvision: ``torchvision:mobilenet_v3_large``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from deploykit.sources.kinds._kind import TargetKind

if TYPE_CHECKING:
    from deploykit.core.choices import DefinitionChoices
    from deploykit.core.specs import ModelSpec

PREFIX: Final = "torchvision:"


class Torchvision(TargetKind):
    """A name of torchvision behind its prefix."""

    def takes(self, target: str) -> bool:
        """Whether the prefix is there."""
        return target.startswith(PREFIX)

    def short_name(self, target: str) -> str:
        """The target with what a folder's name may have."""
        return target.replace(":", "-").replace("/", "-")

    def spec(self, target: str, choices: DefinitionChoices) -> ModelSpec:
        """Built by torchvision."""
        from deploykit.sources.torchvision import torchvision_spec

        name = target.removeprefix(PREFIX)
        return torchvision_spec(
            name, num_classes=choices.num_classes, image_size=choices.image_size
        )


KIND = Torchvision()
