"""Registry of the reference architectures and their specs; imports nothing heavy."""

from __future__ import annotations

from functools import cache, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from deploykit.core.environment import require
from deploykit.core.errors import UnknownNameError, UsageError
from deploykit.core.plugs import import_plug, plugs, source_of
from deploykit.core.specs import BATCH, ModelSpec, Preprocessing, TensorSpec
from deploykit.models._card import FamilyCard, PreprocessingCard, VariantCard, read_card

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

ROOM: Final = "models"


class Entry(NamedTuple):
    """A registered network: the stem of its family's file, the family's card and its own."""

    family: str
    card: FamilyCard
    variant: VariantCard


def names() -> tuple[str, ...]:
    """All registered architectures, by the family's year, family, paper and number of parameters.

    >>> names()[:3]
    ('alexnet2012', 'alexnet', 'nin')
    """
    return tuple(read_families())


def families() -> Mapping[str, tuple[str, ...]]:
    """The architectures of each family file, both in the order of `names`.

    >>> families()["alexnet"]
    ('alexnet2012', 'alexnet')
    """
    found: dict[str, list[str]] = {}
    for name, entry in read_families().items():
        found.setdefault(entry.family, []).append(name)
    return {family: tuple(members) for family, members in found.items()}


def get(name: str, *, num_classes: int | None = None, image_size: int | None = None) -> ModelSpec:
    """The spec of a registered architecture, as published where nothing else is chosen.

    Other image sizes keep the published ratio of resize to crop (256 to 224); a network that was
    published without resizing gets images that are scaled to the size chosen.

    >>> get("resnet18", num_classes=10, image_size=112).preprocessing.resize
    128

    Raises:
        UnknownNameError: no family has a network of this name.
        UsageError: fewer than one class, or an image too small for the network's layers.
    """
    entries = read_families()
    if name not in entries:
        raise UnknownNameError("architecture", name, names(), "deploykit list")
    entry = entries[name]
    classes = entry.card["num_classes"] if num_classes is None else num_classes
    size = entry.card["image_size"] if image_size is None else image_size
    _check_choices(name, entry.card, classes, size)
    return _spec(name, entry, classes, size)


def read_families() -> Mapping[str, Entry]:
    """Entries by network name, in the order of `names`, of our families and of installed ones.

    Raises:
        ValueError: a card that cannot be used, or a name that two families claim.
        MissingDependencyError: an installed package names a module that is no Python file.
    """
    return read_files(tuple((family, source_of(ROOM, family)) for family in plugs(ROOM)))


@cache
def read_files(families: tuple[tuple[str, Path], ...]) -> Mapping[str, Entry]:
    """As `read_families`, of the files of these families."""
    entries: dict[str, Entry] = {}
    for family, path in families:
        card = read_card(path)
        for name, variant in card["variants"].items():
            if name in entries:
                raise ValueError(
                    f"{name!r} is claimed by {entries[name].family}.py and by {path.name}\n"
                    "a network has one name: rename it in one of the two cards"
                )
            entries[name] = Entry(family, card, variant)
    return MappingProxyType(dict(sorted(entries.items(), key=lambda item: _order(item[1]))))


def _order(entry: Entry) -> tuple[int, str, int, str, int]:
    family, card, variant = entry
    year = variant.get("year", card["year"])
    title = variant.get("title", card["title"])
    return card["year"], family, year, title, variant["parameters"]


def _check_choices(name: str, card: FamilyCard, num_classes: int, image_size: int) -> None:
    if num_classes < 1:
        raise UsageError(
            f"{name} cannot have {num_classes} classes\n"
            f"give at least 1; published with {card['num_classes']}"
        )
    if image_size < card["min_image_size"]:
        raise UsageError(
            f"an input of {image_size}x{image_size} is too small for {name}\n"
            f"the smallest is {card['min_image_size']}; published with {card['image_size']}"
        )


def _spec(name: str, entry: Entry, num_classes: int, image_size: int) -> ModelSpec:
    family, card, variant = entry
    published = num_classes == card["num_classes"]
    return ModelSpec(
        name=name,
        title=variant.get("title", card["title"]),
        paper=variant.get("paper", card["paper"]),
        year=variant.get("year", card["year"]),
        inputs=(TensorSpec("input", "float32", (BATCH, 3, image_size, image_size)),),
        outputs=(TensorSpec("logits", "float32", (BATCH, num_classes)),),
        preprocessing=_preprocessing(card["preprocessing"], card["image_size"], image_size),
        parameters=variant["parameters"],
        multiply_adds=variant["multiply_adds"],
        labels=card["labels"] if published else None,
        torchvision=variant["torchvision"],
        builder=partial(_build, family, name, num_classes, image_size),
    )


def _preprocessing(card: PreprocessingCard, published: int, image_size: int) -> Preprocessing:
    resize = card["resize"]
    if resize is not None:
        resize = round(image_size * resize / published)
    elif image_size != published:
        resize = image_size
    return Preprocessing(
        crop=(image_size, image_size),
        resize=resize,
        interpolation=card["interpolation"],
        mean=card["mean"],
        std=card["std"],
    )


def _build(family: str, name: str, num_classes: int, image_size: int) -> nn.Module:
    require("torch")
    module = import_plug(ROOM, family)
    from deploykit.models._initialise import construction

    with construction():
        network = module.build(name, num_classes=num_classes, image_size=image_size)
    return cast("nn.Module", network)
