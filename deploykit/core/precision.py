"""The precisions that a graph can have: our own, and those of installed packages.

A package adds one by a module in the room ``precision`` (see `deploykit.core.plugs`) with its
`PrecisionFacts` as ``FACTS`` and its conversion as ``CONVERSION``.
"""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from typing import Final, Self

from deploykit.core.errors import MissingDependencyError, UnknownNameError
from deploykit.core.plugs import import_plug, plugs
from deploykit.core.precision_facts import FACTS, PrecisionFacts

ROOM: Final = "precision"


class Precision(StrEnum):
    """What the arithmetic of a graph runs in; a property of the ONNX file, not of the build.

    There is one object for each name, also for a name that is no member: ours that has a row of
    facts only, or an installed package's.

    >>> Precision("fp16") is Precision.FP16
    True
    >>> Precision("fp12")
    Traceback (most recent call last):
    ...
    ValueError: 'fp12' is not a valid Precision
    """

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"

    @classmethod
    def _missing_(cls, value: object) -> Precision | None:
        # Names of plug-ins are looked up last: finding them reads every installed package.
        if isinstance(value, str) and (value in FACTS or value in plugs(ROOM)):
            return _plugged(value)
        return None

    @classmethod
    def _of(cls, name: str) -> Self:
        # An enumeration makes no members later; a member is a string with these two attributes.
        member = str.__new__(cls, name)
        member._name_, member._value_ = name.upper(), name
        return member

    @property
    def facts(self) -> PrecisionFacts:
        """All that is known of it but its conversion.

        Raises:
            MissingDependencyError: an installed package's module has no facts of this name.
        """
        return FACTS[self] if self in FACTS else _facts_of_plug(self.value)


@cache
def _plugged(name: str) -> Precision:
    return Precision._of(name)  # noqa: SLF001 - the other half of `_missing_`


OWN: Final = tuple(map(Precision, FACTS))
"""The precisions that come with deploykit, the widest first."""


def precisions() -> tuple[Precision, ...]:
    """All that there are: our own, the widest first, then those of installed packages by name."""
    plugged = sorted(plugs(ROOM).keys() - FACTS.keys())
    return (*OWN, *map(Precision, plugged))


def find_precision(name: str) -> Precision:
    """The precision that a user named.

    Raises:
        UnknownNameError: there is none of this name; close ones are suggested.
    """
    known = precisions()
    if name not in known:
        raise UnknownNameError("precision", name, known, ", ".join(known))
    return Precision(name)


def _facts_of_plug(name: str) -> PrecisionFacts:
    facts = getattr(import_plug(ROOM, name), "FACTS", None)
    if not isinstance(facts, PrecisionFacts) or facts.name != name:
        found = facts.name if isinstance(facts, PrecisionFacts) else type(facts).__name__
        raise MissingDependencyError(
            f"FACTS of the plug-in {name!r} of deploykit.{ROOM} is {found}\n"
            f"expected PrecisionFacts(name={name!r}, ...) in {plugs(ROOM)[name]}\n"
            "repair or uninstall the package that it comes from"
        )
    return facts
