"""Cells of the matrix, and what each needs before it is measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Self

from deploykit.backends.trt.compiler import RTX_CAPABILITIES, load_compiler
from deploykit.benchmarking.results import cell_key
from deploykit.core import environment
from deploykit.core.errors import (
    EngineIncompatibleError,
    MissingDependencyError,
    UnknownNameError,
    UsageError,
)
from deploykit.core.precision import OWN, Precision
from deploykit.core.sizes import ShapeProfile
from deploykit.costs.limits import Limit
from deploykit.models import families, get
from deploykit.sources.targets import Kind, kind_of, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from deploykit.backends.trt.compiler import Compiler
    from deploykit.core.environment import Gpu


BACKENDS: Final = ("tensorrt", "tensorrt-rtx", "ort-cuda", "ort", "eager")
"""The best first; ``ort-cuda`` and ``ort`` are onnxruntime on the GPU and on the CPU."""

CPU: Final = "cpu"
GPU: Final = "gpu"
ON_GPU: Final = frozenset({"tensorrt", "tensorrt-rtx", "ort-cuda"})
ENGINES: Final = frozenset({"tensorrt", "tensorrt-rtx"})

_SHOWN: Final = 4


@dataclass(frozen=True, slots=True)
class Cell:
    """One entry of the matrix; ``target`` is what the user named, ``model`` what it is called."""

    target: str
    model: str
    backend: str
    precision: Precision
    batch: int

    @property
    def key(self) -> str:
        """The cell's name, which filters match."""
        return cell_key(self.model, self.backend, self.precision, self.batch)

    @property
    def device(self) -> str:
        """Where it runs: "gpu" or "cpu"."""
        return GPU if self.backend in ON_GPU else CPU

    def with_batch(self, batch: int) -> Cell:
        """The same with another batch."""
        return replace(self, batch=batch)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict`` after a trip through JSON."""
        return cls(**{**data, "precision": Precision(data["precision"])})


@dataclass(frozen=True)
class Matrix:
    """What was asked for; ``precisions`` and ``backends`` are ``None`` for what is usual here."""

    targets: tuple[str, ...]
    batches: tuple[int, ...]
    precisions: tuple[Precision, ...] | None = None
    backends: tuple[str, ...] | None = None
    filters: tuple[str, ...] = ()
    only_best: bool = False
    """Only the best of the backends that work here."""
    fp32_unasked: bool = False
    """Without ``precisions`` FP32 is usual everywhere, but for what has its precision already."""

    def __post_init__(self) -> None:
        called: dict[str, str] = {}
        for target in self.targets:
            other = called.setdefault(name_of(target), target)
            if other != target:
                raise UsageError(
                    f"{other} and {target} would both be called {name_of(target)}\n"
                    "measure them one after the other, or rename one"
                )
        for name in self.backends or ():
            if name not in BACKENDS:
                raise UnknownNameError("backend", name, BACKENDS, ", ".join(BACKENDS))


def parse_batches(text: str) -> tuple[int, ...]:
    """The batches of "1,8,32", each once, the smallest first.

    >>> parse_batches("8, 1,8")
    (1, 8)

    Raises:
        UsageError: something else than whole numbers from 1 up.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--batch is {text!r}\nexpected whole numbers from 1 up, as 1,8,32")
    return tuple(sorted({int(part) for part in parts}))


def first_look() -> tuple[str, ...]:
    """One architecture of each family, that with the middle number of multiply-adds."""
    chosen = []
    for members in families().values():
        by_size = sorted(members, key=lambda name: get(name).multiply_adds or 0)
        chosen.append(by_size[(len(by_size) - 1) // 2])
    return tuple(chosen)


def plan_cells(
    matrix: Matrix,
    unavailable: Mapping[str, str],
    own_precision: Mapping[str, Precision],
) -> tuple[Cell, ...]:
    """All cells, in the order in which they are measured.

    ``unavailable`` says of each backend that does not work here why not; ``own_precision`` has the
    targets that cannot be converted, with the precision that they have.

    Raises:
        EngineIncompatibleError: none of the backends that were asked for works here.
        UsageError: no cell is left, with the reason: the precisions, or a filter.
    """
    backends = _working(matrix, unavailable)
    cells = tuple(
        Cell(target, name_of(target), backend, precision, batch)
        for target in matrix.targets
        for backend in backends
        if backend != "eager" or kind_of(target) is Kind.DEFINITION
        for precision in _precisions(matrix, backend, own_precision.get(target))
        for batch in matrix.batches
    )
    if not cells:
        raise UsageError(
            f"{', '.join(backends)} cannot measure {', '.join(matrix.targets)} as it was asked\n"
            "eager runs architectures in FP32 only; a converted file has the precision it has"
        )
    return _filtered(cells, matrix.filters)


def _working(matrix: Matrix, unavailable: Mapping[str, str]) -> Sequence[str]:
    asked = BACKENDS if matrix.backends is None else matrix.backends
    working = [name for name in asked if name not in unavailable]
    if not working:
        reasons = "\n".join(f"{name}: {unavailable[name]}" for name in asked)
        raise EngineIncompatibleError(
            f"no backend to measure with\n{reasons}\ndeploykit doctor says what works here"
        )
    return working[:1] if matrix.only_best else working


def _precisions(matrix: Matrix, backend: str, own: Precision | None) -> Iterable[Precision]:
    if own is not None:
        fits = is_possible(backend, own) and own in (matrix.precisions or (own,))
        return (own,) if fits else ()
    if matrix.precisions is None:
        if matrix.fp32_unasked:
            return (each for each in OWN if each.facts.is_source)
        return (each for each in OWN if is_usual(backend, each))
    return (each for each in matrix.precisions if is_possible(backend, each))


def is_possible(backend: str, precision: Precision) -> bool:
    """Whether a backend can be asked for it: a definition runs as it is, a graph as it says."""
    return backend != "eager" or precision.facts.is_source


def is_usual(backend: str, precision: Precision) -> bool:
    """Whether it is measured unasked.

    FP16 and Q/DQ graphs are made for GPUs, a CPU only emulates them.
    """
    if backend in ENGINES:
        return True
    facts = precision.facts
    return facts.is_source or (backend == "ort-cuda" and not facts.quantized)


def _filtered(cells: tuple[Cell, ...], filters: Sequence[str]) -> tuple[Cell, ...]:
    if not filters:
        return cells
    patterns = [each if any(sign in each for sign in "*?[") else f"*{each}*" for each in filters]
    kept = tuple(cell for cell in cells if any(fnmatchcase(cell.key, p) for p in patterns))
    if not kept:
        possible = ", ".join(cell.key for cell in cells[:_SHOWN])
        more = f", and {len(cells) - _SHOWN} more" if len(cells) > _SHOWN else ""
        raise UsageError(
            f"no cell matches the filter {' or '.join(map(repr, filters))}\n"
            f"the cells are {possible}{more}\n"
            "a filter is part of such a name, or a pattern, as 'resnet*/ort/*/b1'"
        )
    return kept


@dataclass(frozen=True)
class CellGraph:
    """A graph to measure; ``own`` is a bundle that the user gave, ``folder`` any bundle's.

    ``computes`` is the precision of most of its multiply-adds. ``limits`` has an entry for each
    device ("cpu", "gpu") whose peak is known and each batch whose cost is known. ``image`` is the
    height and width that a bundle prepares, for a graph that leaves them open.
    """

    path: str
    sha256: str
    precision: Precision
    computes: Precision | None
    folder: str | None
    own: bool
    limits: Mapping[str, Mapping[int, Limit]]
    notes: tuple[str, ...]
    image: tuple[int, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict`` after a trip through JSON."""
        computes, image = data["computes"], data["image"]
        known = {
            "precision": Precision(data["precision"]),
            "computes": None if computes is None else Precision(computes),
            "limits": {
                device: {int(batch): Limit(**limit) for batch, limit in limits.items()}
                for device, limits in data["limits"].items()
            },
            "notes": tuple(data["notes"]),
            "image": None if image is None else tuple(image),
        }
        return cls(**{**data, **known})


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine file that fits this machine; ``precision`` is proven by counting its layers."""

    path: str
    sha256: str
    compiler: str
    compiler_version: str
    precision: Precision
    profile: ShapeProfile
    cache: str | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"profile": self.profile.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict`` after a trip through JSON."""
        known = {
            "precision": Precision(data["precision"]),
            "profile": ShapeProfile.from_dict(data["profile"]),
            "notes": tuple(data["notes"]),
        }
        return cls(**{**data, **known})


@dataclass(frozen=True)
class PreparedCell:
    """A cell with what was made for it; ``peak`` is plain data about the device's best rates."""

    cell: Cell
    graph: CellGraph
    engine: BuiltEngine | None
    peak: Mapping[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        engine = None if self.engine is None else self.engine.to_dict()
        return asdict(self) | {"engine": engine}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what came as JSON, whatever else is beside it."""
        engine = data["engine"]
        return cls(
            cell=Cell.from_dict(data["cell"]),
            graph=CellGraph.from_dict(data["graph"]),
            engine=None if engine is None else BuiltEngine.from_dict(engine),
            peak=data["peak"],
        )


def unavailable_backends(
    gpus: Sequence[Gpu],
    *,
    load: Callable[[str], Compiler] = load_compiler,
    is_installed: Callable[[str], bool] = lambda module: find_spec(module) is not None,
) -> Mapping[str, str]:
    """Each backend that does not work here, with the reason on one line.

    Whether onnxruntime finds its CUDA libraries shows only when it starts: then its cells fail,
    each with that reason.
    """
    found = {name: _engine_problem(name, gpus, load) for name in sorted(ENGINES)}
    needs = {"ort": "onnxruntime", "ort-cuda": "onnxruntime", "eager": "torch"}
    for name, module in needs.items():
        missing = f"{module} is not installed: {environment.install_line(module)}"
        found[name] = "" if is_installed(module) else missing
    if not gpus:
        found["ort-cuda"] = "no GPU on this machine"
    return {name: reason for name, reason in found.items() if reason}


def _engine_problem(name: str, gpus: Sequence[Gpu], load: Callable[[str], Compiler]) -> str:
    if not gpus:
        return "no GPU on this machine"
    try:
        compiler = load(name)
    except MissingDependencyError as error:
        return "; ".join(str(error).splitlines())
    own = gpus[0].compute_capability
    if compiler.is_portable and own not in RTX_CAPABILITIES:
        return f"compute capability {own} is not one of {', '.join(RTX_CAPABILITIES)}"
    return ""
