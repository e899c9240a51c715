"""The nouns of what a cell needs before it is measured: a graph, and on a GPU an engine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from deploykit.benchmarking.limits import Limit
from deploykit.pipeline.benchmark.cells import Cell
from deploykit.specs import Precision, ShapeProfile

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Graph:
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
class Prepared:
    """A cell with what was made for it; ``peak`` is plain data about the device's best rates."""

    cell: Cell
    graph: Graph
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
            graph=Graph.from_dict(data["graph"]),
            engine=None if engine is None else BuiltEngine.from_dict(engine),
            peak=data["peak"],
        )
