"""Choice of a bundle's engine for this machine, made before anything is deserialised."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from deploykit.backends import HEADER_BYTES, engine_fits
from deploykit.backends._engines import old_driver
from deploykit.backends._registry import engine_backend, engine_backends, load_compiler, read_header
from deploykit.core import environment
from deploykit.core.artifacts import AMPERE_PLUS
from deploykit.core.errors import (
    DeploykitError,
    EngineIncompatibleError,
    MissingDependencyError,
    UnknownNameError,
    UsageError,
)
from deploykit.core.gpu_choice import ENGINE_DEVICE, split_device, with_first

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from deploykit.backends import Compiler, EngineHeader, EngineOptions, EngineRunner
    from deploykit.bundle.manifest import Bundle
    from deploykit.core.artifacts import EngineRecord
    from deploykit.core.environment import Gpu
    from deploykit.core.sizes import ShapeProfile
    from deploykit.core.specs import Runner
    from deploykit.runtime.inputs import BatchLimits


@dataclass(frozen=True)
class Chosen:
    """What runs a bundle: an open runner, where, within which batches, and why that one.

    ``file`` is the engine or the graph in the bundle. ``profile`` is the engine's, ``None`` for a
    graph, which has the sizes that it was ``exported`` for, if its height or width is open.
    """

    runner: Runner
    device: str
    limits: BatchLimits
    choice: str
    file: str
    profile: ShapeProfile | None = None
    exported: ShapeProfile | None = None


def open_engine(
    plan: Path, compiler: Compiler, profile: ShapeProfile, options: EngineOptions
) -> EngineRunner:
    """The runner that the compiler's backend makes."""
    return engine_backend(compiler.name).open(plan, compiler, profile, options)


def cuda_major(compiler: str) -> int | None:
    """The CUDA version that the installed libraries of a compiler are made for, if known."""
    return engine_backend(compiler).cuda_major()


def _gpus() -> tuple[Gpu, ...]:
    return environment.gpus()


def _driver_version() -> str | None:
    return environment.driver_version()


@dataclass(frozen=True)
class Machine:
    """What an engine has to fit: the GPU, its driver, the compilers' runtimes.

    The first of ``gpus`` is the one that is used, see `on`. ``driver`` is the newest CUDA version
    that the driver supports. The functions are how to get at the rest; a test gives its own.
    """

    gpus: tuple[Gpu, ...] = field(default_factory=_gpus)
    driver: str | None = field(default_factory=_driver_version)
    load_compiler: Callable[[str], Compiler] = load_compiler
    cuda_major: Callable[[str], int | None] = cuda_major
    read_header: Callable[[bytes, str], EngineHeader] = read_header
    open_engine: Callable[[Path, Compiler, ShapeProfile, EngineOptions], EngineRunner] = open_engine

    def on(self, which: str) -> Machine:
        """This machine with the GPU that ``which`` names as the one that is used.

        Raises:
            UsageError: there is no such GPU.
        """
        return replace(self, gpus=with_first(self.gpus, which)) if which else self

    @property
    def gpu_index(self) -> int:
        """The driver's number of the GPU that is used."""
        return self.gpus[0].index if self.gpus else 0

    @property
    def label(self) -> str:
        """The GPU and the driver, for messages."""
        if not self.gpus:
            return "no GPU"
        gpu = self.gpus[0]
        driver = f"driver for CUDA {self.driver}"
        name = f"{gpu.name} (cuda:{gpu.index})" if gpu.index else gpu.name
        return f"{name}, compute capability {gpu.compute_capability}, {driver}"


def machine_with(device: str) -> Machine:
    """This machine with the GPU that ``device`` names: "cuda", "cuda:1", a PCI bus id or a UUID.

    Raises:
        UsageError: it names none, or one that is not here.
    """
    name, which = split_device(device)
    if name != ENGINE_DEVICE:
        raise UsageError(
            f"--device {device}: engines are for GPUs\n"
            f"expected {ENGINE_DEVICE}, or one of several: {ENGINE_DEVICE}:1, a PCI bus id, a UUID"
        )
    return Machine().on(which)


@dataclass(frozen=True, slots=True)
class Fit:
    """An engine that should run here, and what runs it."""

    record: EngineRecord
    compiler: Compiler


@dataclass(frozen=True, slots=True)
class Misfit:
    """An engine that does not run here, why, and what to do about it (a command, or empty)."""

    file: str
    reason: str
    remedy: str = ""


def rank_engines(
    bundle: Bundle, records: Sequence[EngineRecord], machine: Machine
) -> tuple[list[Fit], list[Misfit]]:
    """Those that fit the machine, the best first, and the rest.

    The best is one that is proven to compute what it should; of several, TensorRT's own, whose
    kernels were timed on a GPU of this kind, before one for all GPUs from Ampere on; then the one
    that was built last. An unproven one (INT8 convolutions on TensorRT for RTX) comes after all
    others.
    """
    compared = [_judge(bundle, record, machine) for record in records]
    fits = [each for each in reversed(compared) if isinstance(each, Fit)]
    fits.sort(key=_order)
    return fits, [each for each in compared if isinstance(each, Misfit)]


def _order(fit: Fit) -> tuple[bool, bool, bool]:
    is_for_others = fit.record.hardware_compatibility == AMPERE_PLUS
    return fit.record.is_unproven, fit.compiler.is_portable, is_for_others


def _judge(bundle: Bundle, record: EngineRecord, machine: Machine) -> Fit | Misfit:
    if not (bundle.folder / record.file).is_file():
        rebuild = _build_command(bundle, record.compiler)
        return Misfit(record.file, "the file is missing", rebuild)
    if not machine.gpus:
        return Misfit(record.file, "no GPU on this machine", 'deploykit.load(..., device="cpu")')
    try:
        compiler = machine.load_compiler(record.compiler)
    except (MissingDependencyError, UnknownNameError) as exc:
        return misfit_of_error(record.file, exc)
    return _misfit(bundle, record, machine, compiler) or Fit(record, compiler)


def misfit_of_error(file: str, error: DeploykitError) -> Misfit:
    """An engine that something refused, with the install line where that is what helps."""
    *reasons, last = str(error).splitlines()
    if isinstance(error, MissingDependencyError):
        return Misfit(file, "; ".join(reasons), last.rpartition(": ")[2])
    return Misfit(file, "; ".join((*reasons, last)))


def _misfit(
    bundle: Bundle, record: EngineRecord, machine: Machine, compiler: Compiler
) -> Misfit | None:
    fits, reason = engine_fits(record, machine.gpus, {compiler.name: compiler.version})
    if not fits:
        is_other_version = compiler.version != record.compiler_version
        backend = record.compiler if is_other_version else _fits_any_gpu()
        return Misfit(record.file, reason, _build_command(bundle, backend))
    reason = misfit_of_driver(machine, compiler)
    if reason:
        return Misfit(record.file, reason, "install a newer NVIDIA driver")
    header = machine.read_header(_first_bytes(bundle.folder / record.file), compiler.name)
    if header.state == "invalid":
        return Misfit(record.file, header.reason, _build_command(bundle, record.compiler))
    return None


def _fits_any_gpu() -> str:
    """The best compiler that builds on the GPU itself: a portable one does not know every GPU."""
    return next(each.name for each in engine_backends() if not each.is_portable)


def misfit_of_driver(machine: Machine, compiler: Compiler) -> str:
    """Why the driver is too old for a compiler's libraries, empty where it is not."""
    return old_driver(compiler.label, machine.cuda_major(compiler.name), machine.driver)


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEADER_BYTES)


def _build_command(bundle: Bundle, backend: str) -> str:
    return f"deploykit build {shlex.quote(str(bundle.folder))} --backend {backend}"


def incompatible(
    bundle: Bundle, machine: Machine, misfits: Sequence[Misfit]
) -> EngineIncompatibleError:
    """The error that lists every engine with its reason, and what helps."""
    name = bundle.manifest.name
    if not misfits:
        return EngineIncompatibleError(
            f"{name} has no engine\nbuild one on the target: "
            f"deploykit build {shlex.quote(str(bundle.folder))}\n"
            'or run its graph: deploykit.load(..., device="cpu")'
        )
    # One line for each engine: more than three only where there are more than one.
    engines = "\n".join(f"{misfit.file}: {misfit.reason}" for misfit in misfits)
    remedies = dict.fromkeys(misfit.remedy for misfit in misfits if misfit.remedy)
    helps = f"\nwhat helps: {'; or '.join(remedies)}" if remedies else ""
    return EngineIncompatibleError(
        f"no engine of {name} runs on this machine ({machine.label})\n{engines}{helps}"
    )


def cache_of(bundle: Bundle, fit: Fit, gpu: Gpu) -> Path | None:
    """Where TensorRT for RTX keeps the kernels that it compiles for one kind of GPU."""
    if not fit.compiler.is_portable:
        return None
    kind = gpu.compute_capability.replace(".", "")
    return bundle.folder / f"{fit.record.file.removesuffix('.engine')}-sm{kind}.cache"
