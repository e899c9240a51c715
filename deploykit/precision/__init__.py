"""Conversion of a verified FP32 graph to each precision, with what it needs measured.

Each file is a precision of that name, and an installed package may add one (see
`deploykit.core.plugs`). It has a `Conversion` as ``CONVERSION``; a package's has its facts as
``FACTS`` too, ours stand in `deploykit.core.precision`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from deploykit.core.errors import MissingDependencyError
from deploykit.core.plugs import import_plug, plugs
from deploykit.core.precision import ROOM

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from deploykit.comparison.reference import Reference
    from deploykit.comparison.validation import ValidationReport
    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.core.precision import Precision
    from deploykit.core.progress import Journal
    from deploykit.graph import LoadedGraph
    from deploykit.graph.half_range import Unfit
    from deploykit.graph.node_precisions import GraphPrecision, Planned
    from deploykit.precision.quantization.request import QuantizationRequest

    Batches = list[NDArray[np.float32]]


@dataclass(frozen=True)
class Converted:
    """The graph of the bundle, with everything that was found on the way to it.

    ``conversion`` and ``calibration`` are plain data for the manifest. ``compared`` are batches
    that it was compared on, and the reference's outputs for each. ``graph`` is that of the
    artifact, where it is in memory still.
    """

    artifact: OnnxArtifact
    reports: tuple[ValidationReport, ...]
    conversion: dict[str, Any]
    compared: tuple[Batches, Batches]
    calibration: dict[str, Any] | None = None
    graph: LoadedGraph | None = None

    @property
    def kept_heavy(self) -> int:
        """Convolutions and matrix products that were left in FP32 on purpose."""
        return int(self.conversion.get("kept_heavy", 0))


@dataclass(frozen=True)
class PlanSource:
    """What a plan is made from: an FP32 graph that `tidy` has seen, and its file.

    ``magnitudes`` are the largest absolute values on images, ``unfit`` what FP16 is not for by
    other measurements on them; ``exclude`` are patterns of nodes.
    """

    artifact: OnnxArtifact
    model: ir.Model
    magnitudes: Mapping[str, float]
    unfit: Unfit
    exclude: tuple[str, ...] = ()


class Conversion(Protocol):
    """Makes a graph of one precision, or a plan of it."""

    def convert(
        self,
        reference: Reference,
        path: Path,
        request: QuantizationRequest | None,
        journal: Journal,
    ) -> Converted:
        """Measure what is needed, write the graph to ``path`` and compare it with ``reference``.

        Files that the bundle shall have too are written beside it. ``request`` is there where the
        facts say ``needs_calibration``. Each step is shown in ``journal``.

        Raises:
            DeploykitError: the graph cannot be converted, or is not the model any more.
        """

    def plan(self, source: PlanSource) -> Planned:
        """The graph as it would be, as far as rules say it, and why nodes stay higher."""

    def notes(self, planned: Planned, graph: GraphPrecision, batch: int) -> tuple[str, ...]:
        """What a user should know of the plan; ``graph`` is what it comes to for ``batch``."""
        del planned, graph, batch
        return ()


def conversion_of(precision: Precision) -> Conversion:
    """The conversion to ``precision``, from the file of its name.

    Raises:
        MissingDependencyError: an installed package's module cannot be imported, or has none.
    """
    found: Conversion | None = getattr(import_plug(ROOM, precision), "CONVERSION", None)
    if found is None:
        raise MissingDependencyError(
            f"the plug-in {str(precision)!r} of deploykit.{ROOM} has no CONVERSION\n"
            f"expected an object as `deploykit.precision.Conversion` says it in "
            f"{plugs(ROOM)[precision]}\n"
            "repair or uninstall the package that it comes from"
        )
    return found
