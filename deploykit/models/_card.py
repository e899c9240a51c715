"""The card of a family file: a literal ``CARD`` that describes its networks.

The card is read from the source with ``ast.literal_eval``, as setuptools reads a version: knowing
which networks exist must not cost the import of torch.
"""

# The annotations stay real objects here: as strings, NotRequired would not be seen at run time.
import ast
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast


class PreprocessingCard(TypedDict):
    """Preprocessing of the published network; ``resize`` is the shorter side before the crop."""

    resize: int | None
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class VariantCard(TypedDict):
    """One network; its own ``title``, ``paper`` and ``year`` where they are not the family's.

    ``parameters`` counts what is deployed and ``multiply_adds`` those of one image in
    convolutions and linear layers without their biases, both as published.
    """

    parameters: int
    multiply_adds: int
    torchvision: str | None
    title: NotRequired[str]
    paper: NotRequired[str]
    year: NotRequired[int]


class FamilyCard(TypedDict):
    """Facts common to all networks of a file; ``paper`` is a URL."""

    title: str
    paper: str
    year: int
    image_size: int
    min_image_size: int
    num_classes: int
    preprocessing: PreprocessingCard
    labels: tuple[str, ...] | None
    variants: dict[str, VariantCard]


def read_card(path: Path) -> FamilyCard:
    """The ``CARD`` of a family file.

    Raises:
        ValueError: the file has none, it is not a literal, or a key is missing or unknown.
    """
    card = _literal(path)
    _check_keys(path, "CARD", card, FamilyCard.__required_keys__, FamilyCard.__optional_keys__)
    where = 'CARD["preprocessing"]'
    _check_keys(path, where, card["preprocessing"], PreprocessingCard.__required_keys__, set())
    for name, variant in card["variants"].items():
        where = f'CARD["variants"]["{name}"]'
        required, optional = VariantCard.__required_keys__, VariantCard.__optional_keys__
        _check_keys(path, where, variant, required, optional)
    return cast("FamilyCard", card)


def _literal(path: Path) -> Any:
    value = _card_expression(path)
    if value is None:
        raise ValueError(
            f"{path} has no card\n"
            "a family file needs CARD: Final[FamilyCard] = {...}; other files start with _"
        )
    try:
        return ast.literal_eval(value)
    except ValueError as error:
        raise ValueError(
            f"{path}: CARD is not a literal ({error})\n"
            "it is read without executing the file: only plain numbers, strings, tuples, dicts"
        ) from error


def _card_expression(path: Path) -> ast.expr | None:
    for node in ast.parse(path.read_text("utf-8"), filename=str(path)).body:
        match node:
            case ast.AnnAssign(target=ast.Name(id="CARD"), value=value):
                return value
    return None


def _check_keys(
    path: Path, where: str, found: Mapping[str, Any], required: Set[str], optional: Set[str]
) -> None:
    missing = sorted(required - found.keys())
    unknown = sorted(found.keys() - required - optional)
    if missing or unknown:
        raise ValueError(
            f"{path}: {where} lacks {missing or 'nothing'} and has unknown keys "
            f"{unknown or 'none'}\nknown keys: {', '.join(sorted(required | optional))}"
        )
