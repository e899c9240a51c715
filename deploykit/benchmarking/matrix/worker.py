"""``python -m deploykit.benchmarking.matrix.worker TASK``: one step of a benchmark, in a process.

What a step imports, allocates and breaks goes with its process.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.benchmarking.matrix.cells import Cell, PreparedCell
from deploykit.benchmarking.matrix.child import REQUEST, serve
from deploykit.core.choices import DefinitionChoices
from deploykit.core.precision import Precision
from deploykit.core.serialization import engine_to_plain, from_plain, known_fields, to_plain
from deploykit.core.sizes import ShapeProfile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.core.progress import ProgressTask


def graph(request: Mapping[str, Any], task: ProgressTask) -> dict[str, Any]:
    """Export a target, unless that was done before."""
    from deploykit.benchmarking.matrix.preparing import prepare_graph
    from deploykit.costs.peaks import DevicePeak

    task.update(0, None, "export")
    prepared = prepare_graph(
        request["target"],
        Precision(request["precision"]),
        Path(request["work"]),
        batches=request["batches"],
        peaks=from_plain(dict[str, DevicePeak], request["peaks"], REQUEST),
        choices=DefinitionChoices(head=request["head"], head_output=request["head_output"]),
        sizes=from_plain(ShapeProfile, request["sizes"], REQUEST),
    )
    return dict(to_plain(prepared))


def engine(request: Mapping[str, Any], task: ProgressTask) -> dict[str, Any]:
    """Compile an engine, unless that was done before."""
    from deploykit.benchmarking.matrix.cells import CellGraph
    from deploykit.benchmarking.matrix.preparing import prepare_engine
    from deploykit.runtime.choice import Machine

    task.update(0, None, "compile")
    cell = from_plain(Cell, request["cell"], REQUEST)
    graph = from_plain(CellGraph, request["graph"], REQUEST)
    return engine_to_plain(prepare_engine(cell, graph, Path(request["work"]), Machine()))


def cell(request: Mapping[str, Any], task: ProgressTask) -> dict[str, Any]:
    """Measure."""
    from deploykit.benchmarking.matrix.measuring import SYSTEM, measure_cell
    from deploykit.benchmarking.results import Switches
    from deploykit.runtime.choice import Machine

    switches = from_plain(Switches, request["switches"], REQUEST)
    prepared = _prepared(request)
    result = measure_cell(prepared, switches, Machine(), clock=SYSTEM, task=task)
    return dict(to_plain(result))


def ab(request: Mapping[str, Any], task: ProgressTask) -> dict[str, Any]:
    """Measure two cells in turn."""
    from deploykit.benchmarking.matrix.ab_run import measure_ab
    from deploykit.benchmarking.matrix.measuring import SYSTEM
    from deploykit.benchmarking.results import Switches
    from deploykit.runtime.choice import Machine

    pair = _prepared(request["a"]), _prepared(request["b"])
    switches = from_plain(Switches, request["switches"], REQUEST)
    return measure_ab(pair, switches, request["rounds"], Machine(), clock=SYSTEM, task=task)


def _prepared(data: Any) -> PreparedCell:
    """A cell, whatever else is beside it."""
    return from_plain(PreparedCell, known_fields(PreparedCell, data), REQUEST)


if __name__ == "__main__":
    serve({"graph": graph, "engine": engine, "cell": cell, "ab": ab})
