"""``python -m deploykit.benchmarking.matrix.worker TASK``: one step of a benchmark, in a process.

What a step imports, allocates and breaks goes with its process.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.benchmarking.matrix.cells import Cell
from deploykit.benchmarking.matrix.child import serve
from deploykit.core.precision import Precision

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
        peaks={name: DevicePeak.from_dict(peak) for name, peak in request["peaks"].items()},
    )
    return prepared.to_dict()


def engine(request: Mapping[str, Any], task: ProgressTask) -> dict[str, Any]:
    """Compile an engine, unless that was done before."""
    from deploykit.benchmarking.matrix.cells import CellGraph
    from deploykit.benchmarking.matrix.preparing import prepare_engine
    from deploykit.runtime.choice import Machine

    task.update(0, None, "compile")
    cell = Cell.from_dict(request["cell"])
    graph = CellGraph.from_dict(request["graph"])
    return prepare_engine(cell, graph, Path(request["work"]), Machine()).to_dict()


def cell(request: Mapping[str, Any], task: ProgressTask) -> dict[str, Any]:
    """Measure."""
    from deploykit.benchmarking.matrix.cells import PreparedCell
    from deploykit.benchmarking.matrix.measuring import SYSTEM, measure_cell
    from deploykit.benchmarking.results import Switches
    from deploykit.runtime.choice import Machine

    switches = Switches.from_dict(request["switches"])
    prepared = PreparedCell.from_dict(request)
    result = measure_cell(prepared, switches, Machine(), clock=SYSTEM, task=task)
    return result.to_dict()


def ab(request: Mapping[str, Any], task: ProgressTask) -> dict[str, Any]:
    """Measure two cells in turn."""
    from deploykit.benchmarking.matrix.ab_run import measure_ab
    from deploykit.benchmarking.matrix.cells import PreparedCell
    from deploykit.benchmarking.matrix.measuring import SYSTEM
    from deploykit.benchmarking.results import Switches
    from deploykit.runtime.choice import Machine

    pair = PreparedCell.from_dict(request["a"]), PreparedCell.from_dict(request["b"])
    switches = Switches.from_dict(request["switches"])
    return measure_ab(pair, switches, request["rounds"], Machine(), clock=SYSTEM, task=task)


if __name__ == "__main__":
    serve({"graph": graph, "engine": engine, "cell": cell, "ab": ab})
