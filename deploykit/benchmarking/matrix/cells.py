"""Cells of the matrix, and what each needs before it is measured."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final

from deploykit.backends import EngineBackend, ModuleBackend
from deploykit.backends._registry import backends, find_backend
from deploykit.benchmarking.results import cell_key
from deploykit.core.errors import EngineIncompatibleError, UsageError
from deploykit.core.precision import OWN, Precision, find_precision, precisions
from deploykit.core.serialization import engine_to_plain, to_plain
from deploykit.core.sizes import ShapeProfile  # noqa: TC001  (read back by these types)
from deploykit.costs.limits import Limit  # noqa: TC001
from deploykit.models import families, get
from deploykit.sources.targets import Kind, kind_of, name_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from deploykit.backends import AnyBackend


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
        return find_backend(self.backend).device

    @property
    def runs_an_engine(self) -> bool:
        """Whether one has to be compiled for it."""
        return isinstance(find_backend(self.backend), EngineBackend)

    def with_batch(self, batch: int) -> Cell:
        """The same with another batch."""
        return replace(self, batch=batch)


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
            find_backend(name)  # says what names there are


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


def in_order(names: Iterable[str]) -> tuple[Precision, ...]:
    """The precisions of these names, each once, in the order of all of them.

    >>> [str(each) for each in in_order(["int8", "fp32", "int8"])]
    ['fp32', 'int8']

    Raises:
        UnknownNameError: there is no precision of one of the names.
    """
    wanted = set(map(find_precision, names))
    return tuple(each for each in precisions() if each in wanted)


def first_look() -> tuple[str, ...]:
    """One architecture of each family, that with the middle number of multiply-adds."""
    chosen = []
    for members in families().values():
        by_size = sorted(members, key=lambda name: get(name).multiply_adds or 0)
        chosen.append(by_size[(len(by_size) - 1) // 2])
    return tuple(chosen)


def plan_cells(
    matrix: Matrix, unavailable: Mapping[str, str], own_precision: Mapping[str, Precision]
) -> tuple[Cell, ...]:
    """All cells, in the order in which they are measured.

    ``unavailable`` says of each backend that does not work here why not; ``own_precision`` has the
    targets that cannot be converted, with the precision that they have.

    Raises:
        EngineIncompatibleError: none of the backends that were asked for works here.
        UsageError: no cell is left, with the reason: the precisions, or a filter.
    """
    working = _working(matrix, unavailable)
    cells = tuple(
        Cell(target, name_of(target), backend.name, precision, batch)
        for target in matrix.targets
        for backend in working
        if not isinstance(backend, ModuleBackend) or kind_of(target) is Kind.DEFINITION
        for precision in _precisions(matrix, backend, own_precision.get(target))
        for batch in matrix.batches
    )
    if not cells:
        raise UsageError(
            f"{', '.join(each.name for each in working)} cannot measure "
            f"{', '.join(matrix.targets)} as it was asked\n"
            f"{_limits_of_modules()}; a converted file has the precision it has"
        )
    return _filtered(cells, matrix.filters)


def _limits_of_modules() -> str:
    return "; ".join(
        f"{each.name} runs architectures in {', '.join(each.precisions or OWN).upper()} only"
        for each in backends()
        if isinstance(each, ModuleBackend)
    )


def _working(matrix: Matrix, unavailable: Mapping[str, str]) -> Sequence[AnyBackend]:
    if matrix.backends is None:
        asked = tuple(each for each in backends() if each.by_default)
    else:
        asked = tuple(map(find_backend, matrix.backends))
    working = [each for each in asked if each.name not in unavailable]
    if not working:
        reasons = "\n".join(f"{each.name}: {unavailable[each.name]}" for each in asked)
        raise EngineIncompatibleError(
            f"no backend to measure with\n{reasons}\ndeploykit doctor says what works here"
        )
    return working[:1] if matrix.only_best else working


def _precisions(matrix: Matrix, backend: AnyBackend, own: Precision | None) -> Iterable[Precision]:
    if own is not None:
        fits = backend.runs(own) and own in (matrix.precisions or (own,))
        return (own,) if fits else ()
    if matrix.precisions is None:
        if matrix.fp32_unasked:
            return (each for each in OWN if each.facts.is_source)
        return backend.usual
    return tuple(each for each in matrix.precisions if backend.runs(each))


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


@dataclass(frozen=True)
class PreparedCell:
    """A cell with what was made for it; ``peak`` is plain data about the device's best rates."""

    cell: Cell
    graph: CellGraph
    engine: BuiltEngine | None
    peak: Mapping[str, Any] | None


def prepared_to_plain(prepared: PreparedCell) -> dict[str, Any]:
    """Plain data for the process that measures it."""
    engine = None if prepared.engine is None else engine_to_plain(prepared.engine)
    return {**to_plain(prepared), "engine": engine}
