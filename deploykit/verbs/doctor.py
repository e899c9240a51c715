"""`deploykit doctor`: what works on this machine, and what to do about the rest."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from deploykit.backends.trt.compiler import MODULES, RTX_CAPABILITIES, TENSORRT, TENSORRT_RTX
from deploykit.core import environment
from deploykit.core.environment import Environment, require
from deploykit.core.errors import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.core.environment import Gpu


@dataclass(frozen=True, slots=True)
class Ability:
    """One thing that a user may want to do, whether it works here, and how, or what is missing."""

    task: str
    works: bool
    how: str


@dataclass(frozen=True)
class Diagnosis:
    """The machine and its abilities."""

    environment: Environment
    abilities: tuple[Ability, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            **self.environment.to_dict(),
            "abilities": [asdict(ability) for ability in self.abilities],
        }


def diagnose() -> Diagnosis:
    """Try to import what each task needs; nothing is built or run."""
    here = environment.describe()
    exporting = ("torch", "torchvision", "onnx", "onnxscript", "safetensors")
    abilities = (
        _needs("export definitions to ONNX", exporting, "deploykit export --backend none"),
        _needs("validate, evaluate and check on the CPU", ("onnxruntime",), "deploykit check"),
        _build_rtx(),
        _build_tensorrt(here.gpus),
        _run_rtx(here.gpus),
        _run_tensorrt(here.gpus),
    )
    return Diagnosis(here, abilities)


def _needs(task: str, modules: Sequence[str], how: str) -> Ability:
    for module in modules:
        try:
            require(module)
        except MissingDependencyError as exc:
            return Ability(task, works=False, how=_one_line(exc))
    return Ability(task, works=True, how=how)


def _build_rtx() -> Ability:
    task = "compile engines for RTX-class GPUs"
    return _needs(task, (MODULES[TENSORRT_RTX],), "deploykit export, no GPU needed")


def _build_tensorrt(gpus: Sequence[Gpu]) -> Ability:
    task = "compile engines with TensorRT"
    if not gpus:
        return Ability(task, works=False, how="needs a GPU and its driver; there is none here")
    return _needs(task, (MODULES[TENSORRT],), "deploykit build BUNDLE --backend tensorrt")


def _run_rtx(gpus: Sequence[Gpu]) -> Ability:
    task = "run engines of TensorRT for RTX"
    if not gpus:
        return Ability(task, works=False, how="needs an RTX-class GPU and its driver")
    own = gpus[0].compute_capability
    if own not in RTX_CAPABILITIES:
        possible = ", ".join(RTX_CAPABILITIES)
        return Ability(task, works=False, how=f"compute capability {own} is not one of {possible}")
    return _needs(task, (MODULES[TENSORRT_RTX],), "their .engine files fit this GPU")


def _run_tensorrt(gpus: Sequence[Gpu]) -> Ability:
    task = "run engines of TensorRT"
    if not gpus:
        return Ability(task, works=False, how="needs a GPU and its driver; there is none here")
    return _needs(task, (MODULES[TENSORRT],), "engines that were built on this kind of GPU")


def _one_line(exc: MissingDependencyError) -> str:
    return "; ".join(str(exc).splitlines())
