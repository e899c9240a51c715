"""An architecture of `deploykit list`: ``resnet50``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from deploykit.models import get, names
from deploykit.sources.kinds._kind import TargetKind

if TYPE_CHECKING:
    from deploykit.core.choices import DefinitionChoices
    from deploykit.core.specs import ModelSpec


class Registered(TargetKind):
    """A name of the registry; its weights are those of the same network in torchvision."""

    def takes(self, target: str) -> bool:
        """Whether an architecture has this name."""
        return target in names()

    def spec(self, target: str, choices: DefinitionChoices) -> ModelSpec:
        """The registry's."""
        from deploykit.sources.torchvision import torchvision_weights

        spec = get(target, num_classes=choices.num_classes, image_size=choices.image_size)
        return replace(spec, published=torchvision_weights)


KIND = Registered()
