"""An image classifier of torchvision: ``torchvision:mobilenet_v3_large``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.sources.kinds._kind import LibraryKind

if TYPE_CHECKING:
    from deploykit.core.choices import DefinitionChoices
    from deploykit.core.specs import ModelSpec


class Torchvision(LibraryKind):
    """A name of torchvision behind its prefix."""

    library = "torchvision"

    def spec(self, target: str, choices: DefinitionChoices) -> ModelSpec:
        """Built by torchvision."""
        from deploykit.sources.torchvision import torchvision_spec

        name = target.removeprefix(self.prefix)
        return torchvision_spec(
            name, num_classes=choices.num_classes, image_size=choices.image_size
        )


KIND = Torchvision()
