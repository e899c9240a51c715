"""Options for a definition: what it does not state itself, or what is to differ."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from deploykit.core.specs import Preprocessing


@dataclass(frozen=True, slots=True)
class PreprocessingChoices:
    """What the user says of the preprocessing; ``None`` leaves it as it is known or assumed."""

    resize: int | tuple[int, int] | None = None
    interpolation: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def applied_to(self, preprocessing: Preprocessing) -> Preprocessing:
        """``preprocessing`` with the choices in it.

        >>> from deploykit.core.specs import Preprocessing
        >>> PreprocessingChoices(resize=256).applied_to(Preprocessing(crop=(224, 224))).resize
        256
        """
        chosen = {name: value for name, value in asdict(self).items() if value is not None}
        return replace(preprocessing, **chosen)

    def assumptions(self, preprocessing: Preprocessing) -> list[str]:
        """What of ``preprocessing`` was neither chosen nor known from the model, in words.

        >>> from deploykit.core.specs import Preprocessing
        >>> PreprocessingChoices(256, "bilinear", (0, 0, 0), (1, 1, 1)).assumptions(
        ...     Preprocessing((224, 224))
        ... )
        []
        """
        assumed = [f.name for f in fields(self) if getattr(self, f.name) is None]
        if not assumed:
            return []
        said = ", ".join(f"{name} {getattr(preprocessing, name)}" for name in assumed)
        return [f"preprocessing is assumed: {said}; as in training? --{' --'.join(assumed)}"]


@dataclass(frozen=True, slots=True)
class DefinitionChoices:
    """What the user says of a definition; ``None`` is what it was published with.

    ``image_size`` is height and width of the input in pixels, ``arguments`` are the keyword
    arguments of a factory in a Python file. ``side_inputs`` is for a graph: an ``.npz`` with values
    of what it takes beside images. ``head`` says what the outputs mean, ``head_output`` which of a
    graph's outputs is meant.
    """

    num_classes: int | None = None
    image_size: int | None = None
    arguments: Mapping[str, Any] | None = None
    preprocessing: PreprocessingChoices = field(default_factory=PreprocessingChoices)
    side_inputs: Path | None = None
    head: str | None = None
    head_output: str | None = None
