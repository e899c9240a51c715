"""`deploykit doctor`: what works on this machine, and what to do about the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from deploykit.backends import needs
from deploykit.backends._registry import backends
from deploykit.core import environment
from deploykit.core.serialization import to_plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.backends import Ability
    from deploykit.core.environment import Environment

_EXPORTING: Final = ("torch", "torchvision", "onnx", "onnxscript", "safetensors")
_SIGNING: Final = ("model_signing", "OpenSSL")


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
    abilities = (_export(), *(ability for each in found for ability in each), _sign())
    return Diagnosis(here, abilities)


def _export() -> Ability:
    return _all_of("export definitions to ONNX", _EXPORTING, "deploykit export --backend none")


def _sign() -> Ability:
    how = "deploykit sign, deploykit verify, deploykit check --trust, load(trust=...)"
    return _all_of("sign bundles and verify signatures", _SIGNING, how)


def _all_of(task: str, modules: Sequence[str], how: str) -> Ability:
    found = [needs(task, module, how) for module in modules]
    return next((each for each in found if not each.works), found[0])
