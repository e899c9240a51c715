"""A run of the harness over a matrix: what was measured, and what failed and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from deploykit.benchmarking._checks import checked, precision, require_known
from deploykit.specs import Precision  # noqa: TC001  (get_type_hints looks it up)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.benchmarking.results import BenchmarkResult

FAILURES: Final = ("error", "out of memory", "time limit")
"""Why a cell has no result. A limit on memory counts as out of memory."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A cell of the matrix without a result; ``reason`` is what a person should read."""

    model: str
    precision: Precision
    backend: str
    batch: int
    kind: str
    reason: str
    seconds: float

    def __post_init__(self) -> None:
        require_known("kind of failure", self.kind, FAILURES)

    @property
    def key(self) -> str:
        """The name of the cell.

        >>> Failure("nin", Precision("fp16"), "tensorrt", 8, "error", "no driver", 0.5).key
        'nin/tensorrt/fp16/b8'
        """
        return cell_key(self.model, self.backend, self.precision, self.batch)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a file of results."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``.

        Raises:
            DataError: a key is missing, unknown or holds something of another type.
            UnknownNameError: no such kind of failure.
        """
        known = {"precision": precision(data["precision"])} if "precision" in data else {}
        return cls(**checked(cls, {**data, **known}))


@dataclass(frozen=True, slots=True)
class BenchmarkRun:
    """Results and failures, each in the order in which they were measured."""

    results: tuple[BenchmarkResult, ...]
    failures: tuple[Failure, ...] = ()


def cell_key(model: str, backend: str, precision: Precision, batch: int) -> str:
    """How a cell of the matrix is named and filtered.

    >>> cell_key("resnet50", "ort", Precision("fp32"), 1)
    'resnet50/ort/fp32/b1'
    """
    return f"{model}/{backend}/{precision}/b{batch}"
