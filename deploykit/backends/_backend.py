"""Backends as plain facts, and functions that import what is heavy when they are called.

A file of the room ``backends`` defines ``BACKEND``, or ``BACKENDS`` where it serves several. It is
imported to read the facts, so it imports no framework itself. Which class a backend is says what
it opens: the module of a definition, an ONNX graph, or an engine that it compiles from one.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias

from deploykit.core.environment import install_line, require
from deploykit.core.errors import MissingDependencyError
from deploykit.core.precision import Precision

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from deploykit.backends._engines import (
        CompiledEngine,
        CompileOptions,
        Compiler,
        EngineHeader,
        EngineOptions,
        EngineRunner,
    )
    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.core.environment import Gpu
    from deploykit.core.progress import ProgressTask
    from deploykit.core.sizes import ShapeProfile
    from deploykit.core.specs import Array, QueryQueue, Runner, SplitGraph, TensorSpec

    Gpus = Sequence[Gpu]
    Graph = Path | bytes | SplitGraph

CPU: Final = "cpu"
GPU: Final = "gpu"
NO_GPU: Final = "no GPU on this machine"


@dataclass(frozen=True, slots=True)
class Ability:
    """One thing that a user may want to do, whether it works here, and how, or what is missing."""

    task: str
    works: bool
    how: str


@dataclass(frozen=True, kw_only=True)
class Backend:
    """The facts of a backend, whatever it opens.

    Attributes:
        name: what ``--backend`` and results call it.
        label: what messages call it.
        rank: where it stands among the others; the lowest is the best, and is what ``--quick``
            takes. Ours are 10 (TensorRT), 20 (TensorRT for RTX), 30 (onnxruntime on CUDA), 40
            (onnxruntime on the CPU), 42 and 44 (torch on a GPU, and compiled) and 50 (torch on the
            CPU).
        device: where it computes.
        precisions: what it can be asked to measure; ``None`` for every one, of plug-ins too.
        usual: of those what is measured unasked.
        by_default: whether it is measured where no backend was named.
        problem: why it does not work on a machine with these GPUs, on one line; empty where it
            does. It does not start the backend: what shows only then fails each cell.
        notes: what a reader must know of a figure, by the graph's precision and the streams.
        abilities: the rows of ``doctor``; ``None`` for one that says whether it runs.
        cuda_graphs: whether it can replay launches, so that the switch applies.
        resident: from an open runner and its feeds to a runner and feeds that stay on the device:
            how the time of transfers is left out. ``None`` where they cannot be.
        queue: from an open runner, its feeds and whether they are transferred each time to a queue
            of queries that overlap. ``None`` where a query is waited for before the next begins.
        product: from two FP32 matrices, (M, K) and (K, N), and the threads of a CPU to a function
            that multiplies them: what a CPU does at best is found with the fastest of all backends.
    """

    name: str
    label: str
    rank: int
    device: Literal["cpu", "gpu"]
    precisions: tuple[Precision, ...] | None
    usual: tuple[Precision, ...]
    problem: Callable[[Gpus], str]
    notes: Callable[[Precision, int], Sequence[str]] = lambda _precision, _streams: ()
    abilities: Callable[[Gpus], Sequence[Ability]] | None = None
    by_default: bool = True
    cuda_graphs: bool = False
    resident: Callable[[Any, Mapping[str, Any]], tuple[Runner, Mapping[str, Any]]] | None = None
    queue: Callable[[Any, Mapping[str, Any], bool], QueryQueue] | None = None
    product: Callable[[Array, Array, int], Callable[[], object]] | None = None

    def runs(self, precision: Precision) -> bool:
        """Whether it can be asked to measure this precision."""
        return self.precisions is None or precision in self.precisions

    def abilities_on(self, gpus: Gpus) -> Sequence[Ability]:
        """What ``doctor`` says of it on a machine with these GPUs."""
        if self.abilities is not None:
            return self.abilities(gpus)
        problem = self.problem(gpus)
        how = problem or f"deploykit bench TARGET --backend {self.name}"
        return (Ability(f"run models on {self.label}", works=not problem, how=how),)


@dataclass(frozen=True, slots=True)
class ModuleOptions:
    """How a module is run; a backend leaves out what it does not have.

    ``threads`` are those of a CPU, ``None`` for all cores. ``precision`` is one that the backend
    can be asked for. ``gpu_index`` is the driver's number of the GPU.
    """

    threads: int | None = None
    precision: Precision = Precision.FP32
    gpu_index: int = 0


class OpenModule(Protocol):
    """Makes the runner of a module."""

    def __call__(
        self,
        module: nn.Module,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        options: ModuleOptions = ...,
        /,
    ) -> Runner:
        """The runner of ``module``."""


@dataclass(frozen=True, kw_only=True)
class ModuleBackend(Backend):
    """Runs the module that a definition builds, before any export."""

    open: OpenModule


@dataclass(frozen=True, slots=True)
class GraphOptions:
    """How a graph is run; a backend leaves out what it does not have.

    ``threads`` are those of a CPU, ``None`` for all cores. Without ``optimise`` each node is
    computed as the standard has it. With ``spin`` waiting threads keep their core busy, so that
    they go on sooner: right where somebody waits for one answer. With ``in_order`` nodes run in the
    order of the file. ``gpu_index`` is the driver's number of the GPU, for backends that compute on
    one.
    """

    threads: int | None = None
    optimise: bool = True
    spin: bool = False
    in_order: bool = False
    gpu_index: int = 0

    @classmethod
    def for_precision(
        cls,
        precision: Precision,
        *,
        threads: int | None = None,
        spin: bool = False,
        gpu_index: int = 0,
    ) -> GraphOptions:
        """The way that fits a graph: one with Q/DQ is computed node by node, as TensorRT does."""
        is_optimised = not precision.facts.quantized
        return cls(threads=threads, spin=spin, optimise=is_optimised, gpu_index=gpu_index)


@dataclass(frozen=True, kw_only=True)
class GraphBackend(Backend):
    """Runs an ONNX graph; ``load_device`` is the ``device`` of `deploykit.load` that means it."""

    open: Callable[[Graph, GraphOptions], Runner]
    load_device: str | None = None

    def runs(self, precision: Precision) -> bool:
        """Whether it has kernels for a graph of this precision."""
        return Backend.runs(self, precision) and not precision.facts.needs_cpu_form

    def open_artifact(
        self,
        artifact: OnnxArtifact,
        *,
        threads: int | None = None,
        spin: bool = False,
        gpu_index: int = 0,
    ) -> Runner:
        """The runner of a graph in the way that fits its precision."""
        options = GraphOptions.for_precision(
            artifact.precision, threads=threads, spin=spin, gpu_index=gpu_index
        )
        return self.open(artifact.path, options)

    def run_once(self, graph: Graph, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Outputs by name of a graph that is opened for one call."""
        with closing(self.open(graph, GraphOptions(optimise=False))) as runner:
            return runner.run(feeds)


@dataclass(frozen=True, kw_only=True)
class EngineBackend(Backend):
    """Compiles an ONNX file to an engine and runs that.

    Attributes:
        module: the Python module that it needs, by which the install line is found.
        is_portable: it builds for a list of architectures without having a GPU.
        load: imports the compiler; raises `MissingDependencyError`.
        compile: makes an engine of an ONNX file; the task is told a share between 0 and 1, perhaps
            from another thread. Raises `UsageError` where the options do not fit the compiler or
            the model, `BuildError` where the compiler refuses the file or a node of it.
        open: the runner of an engine file whose hash was checked, as an engine is code, with the
            profile of its manifest.
        read_header: judges an engine by its first bytes, `HEADER_BYTES` of them or more.
        cuda_major: the CUDA version that the installed libraries are made for, if known: a driver
            of that major version or a newer one runs them.
        check_target: raises `BuildError` where it cannot build on a machine with these GPUs.
        check_options: raises `UsageError` where the compiler, its version or the first GPU, if one
            is given, has no such choice; before anything slow is done.
        doubts: what a user must know of an engine that compiled, by its precision and its census.
    """

    module: str
    is_portable: bool
    load: Callable[[], Compiler]
    compile: Callable[[Compiler, Path, CompileOptions, ProgressTask], CompiledEngine]
    open: Callable[[Path, Compiler, ShapeProfile, EngineOptions], EngineRunner]
    read_header: Callable[[bytes], EngineHeader]
    cuda_major: Callable[[], int | None] = lambda: None
    check_target: Callable[[Gpus], object] = lambda _gpus: None
    check_options: Callable[[Compiler, CompileOptions, Gpus], object] = lambda *_: None
    doubts: Callable[[Precision, Mapping[str, int]], Sequence[str]] = lambda _precision, _census: ()


AnyBackend: TypeAlias = ModuleBackend | GraphBackend | EngineBackend


def not_installed(module: str) -> str:
    """Why a backend does not work whose Python module is not there; empty where it is."""
    if find_spec(module) is not None:
        return ""
    return f"{module} is not installed: {install_line(module)}"


def needs(task: str, module: str, how: str) -> Ability:
    """The ability to do ``task``, which needs a Python module that imports."""
    try:
        require(module)
    except MissingDependencyError as exc:
        return Ability(task, works=False, how="; ".join(str(exc).splitlines()))
    return Ability(task, works=True, how=how)
