"""``python -m deploykit.pipeline.benchmark.worker TASK``: one step of a benchmark, in a process.

What a step imports, allocates and breaks goes with its process.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.pipeline.benchmark.cells import Cell
from deploykit.pipeline.benchmark.child import serve
from deploykit.specs import Precision

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.specs import ProgressTask


def graph(request: Mapping[str, Any], task: ProgressTask) -> dict[str, Any]:
    """Export a target, unless that was done before."""
    from deploykit.benchmarking.peaks import DevicePeak
    from deploykit.pipeline.benchmark.graphs import prepare_graph

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
    from deploykit.pipeline.benchmark.engines import prepare_engine
    from deploykit.pipeline.benchmark.prepared import Graph
    from deploykit.runtime.choice import Machine

    task.update(0, None, "compile")
    cell = Cell.from_dict(request["cell"])
    graph = Graph.from_dict(request["graph"])
    return prepare_engine(cell, graph, Path(request["work"]), Machine()).to_dict()


def cell(request: Mapping[str, Any], task: ProgressTask) -> dict[str, Any]:
    """Measure."""
    from deploykit.benchmarking.results import Switches
    from deploykit.pipeline.benchmark.measure import SYSTEM, measure_cell
    from deploykit.pipeline.benchmark.prepared import Prepared
    from deploykit.runtime.choice import Machine

    switches = Switches.from_dict(request["switches"])
    prepared = Prepared.from_dict(request)
    result = measure_cell(prepared, switches, Machine(), clock=SYSTEM, task=task)
    return result.to_dict()


def ab(request: Mapping[str, Any], task: ProgressTask) -> dict[str, Any]:
    """Measure two cells in turn."""
    from deploykit.benchmarking.results import Switches
    from deploykit.pipeline.benchmark.in_turn import measure_in_turn
    from deploykit.pipeline.benchmark.measure import SYSTEM
    from deploykit.pipeline.benchmark.prepared import Prepared
    from deploykit.runtime.choice import Machine

    pair = Prepared.from_dict(request["a"]), Prepared.from_dict(request["b"])
    switches = Switches.from_dict(request["switches"])
    return measure_in_turn(pair, switches, request["rounds"], Machine(), clock=SYSTEM, task=task)


if __name__ == "__main__":
    serve({"graph": graph, "engine": engine, "cell": cell, "ab": ab})
