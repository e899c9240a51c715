"""`deploykit doctor`: what works on this machine, and what to do about the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from deploykit.backends import needs
from deploykit.backends._registry import backends
from deploykit.core import environment
from deploykit.core.serialization import to_plain

if TYPE_CHECKING:
    from deploykit.backends import Ability
    from deploykit.core.environment import Environment

_EXPORTING: Final = ("torch", "torchvision", "onnx", "onnxscript", "safetensors")


@dataclass(frozen=True)
class Diagnosis:
    """The machine and its abilities."""

    environment: Environment
    abilities: tuple[Ability, ...]


def diagnosis_to_plain(diagnosis: Diagnosis) -> dict[str, Any]:
    """Plain data for ``--json``."""
    return {**to_plain(diagnosis.environment), "abilities": to_plain(diagnosis.abilities)}


def diagnose() -> Diagnosis:
    """Try to import what each task needs; nothing is built or run."""
    here = environment.describe()
    # What needs least comes first.
    found = [each.abilities_on(here.gpus) for each in reversed(backends())]
    abilities = (_export(), *(ability for each in found for ability in each))
    return Diagnosis(here, abilities)


def _export() -> Ability:
    task = "export definitions to ONNX"
    found = [needs(task, module, "deploykit export --backend none") for module in _EXPORTING]
    return next((each for each in found if not each.works), found[0])
