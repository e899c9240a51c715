"""A folder of the Hugging Face hub, with its ``config.json``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from deploykit.bundle.manifest import MANIFEST
from deploykit.core.regular_files import is_regular
from deploykit.sources.kinds._kind import TargetKind, name_of_folder

if TYPE_CHECKING:
    from deploykit.core.choices import DefinitionChoices
    from deploykit.core.specs import ModelSpec

CONFIG: Final = "config.json"
"""What a folder of the Hugging Face hub has, and a bundle has not."""


class HuggingFace(TargetKind):
    """A folder that transformers wrote."""

    library = "transformers"

    def takes(self, target: str) -> bool:
        """Whether the folder has a config and is no bundle."""
        path = Path(target)
        return is_regular(path / CONFIG) and not is_regular(path / MANIFEST)

    def short_name(self, target: str) -> str:
        """The folder's."""
        return name_of_folder(target)

    def digest(self, target: str) -> str | None:
        """Of the config and the weights."""
        from deploykit.sources.hugging_face import digest_with_weights

        return digest_with_weights(Path(target))

    def spec(self, target: str, choices: DefinitionChoices) -> ModelSpec:
        """Built by transformers."""
        from deploykit.sources.hugging_face import hugging_face_spec

        return hugging_face_spec(Path(target), choices)


KIND = HuggingFace()
