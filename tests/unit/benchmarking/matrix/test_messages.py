"""Malformed answers and requests: what a worker and its parent say of them."""

from __future__ import annotations

import json
from math import nan
from typing import TYPE_CHECKING, Any

import pytest

from deploykit.benchmarking.matrix import worker
from deploykit.benchmarking.matrix.cells import Cell, CellGraph, PreparedCell, prepared_to_plain
from deploykit.benchmarking.matrix.processes import ProcessLimits
from deploykit.benchmarking.matrix.steps import Steps
from deploykit.core.errors import DataError
from deploykit.core.precision import Precision
from deploykit.core.progress import SilentProgress
from deploykit.core.serialization import to_plain
from tests.unit.benchmarking.statistics.noise import SWITCHES, result_of

if TYPE_CHECKING:
    from pathlib import Path

CELL = Cell("m.onnx", "m", "ort", Precision.FP32, 1)
GRAPH = CellGraph("m.onnx", "a" * 64, Precision.FP32, Precision.FP32, None, False, {}, ())
PREPARED = PreparedCell(CELL, GRAPH, None, None)
REMEDY = "parent and worker may be of different releases: install deploykit again"


def plain(noun: Any) -> dict[str, Any]:
    return dict(json.loads(json.dumps(to_plain(noun))))


def steps_with(answer: Any, folder: Path) -> Steps:
    limits = ProcessLimits(time_s=1)
    return Steps(SWITCHES, folder, limits, limits, call=lambda *_, **__: answer)


MALFORMED_GRAPHS = [
    ([], "Expected `object`, got `array`"),
    ({}, "Object missing required field `path`"),
    ({**plain(GRAPH), "colour": "blue"}, "Object contains unknown field `colour`"),
    ({**plain(GRAPH), "sha256": 3}, "Expected `str`, got `int` - at `$.sha256`"),
    ({**plain(GRAPH), "notes": {}}, "Expected `array`, got `object` - at `$.notes`"),
    ({**plain(GRAPH), "image": [nan, 8]}, "Expected `int`, got `float` - at `$.image[0]`"),
    ({**plain(GRAPH), "limits": {"cpu": {"x": {}}}}, "Expected `int`, got `str` - at `key` in"),
    ({**plain(GRAPH), "limits": {"cpu": {"1": []}}}, "Expected `object`, got `array` - at `$.lim"),
    ({**plain(GRAPH), "precision": "fp12"}, "unknown precision 'fp12', known: fp32, fp16, bf16"),
]


@pytest.mark.parametrize(("answer", "message"), MALFORMED_GRAPHS)
def test_a_malformed_answer_about_a_graph(tmp_path: Path, answer: Any, message: str) -> None:
    with SilentProgress().step("export") as task, pytest.raises(DataError) as caught:
        steps_with(answer, tmp_path).graph(CELL, [1], task)
    first, remedy = str(caught.value).splitlines()
    assert first.startswith(f"the answer of a worker: {message}")
    assert remedy == REMEDY


MALFORMED_RESULTS = [
    ({"samples": {**plain(result_of([1.0]))["samples"], "wall_ms": [10**400]}}, "Number out of ra"),
    ({"samples": {**plain(result_of([1.0]))["samples"], "wall_ms": [nan]}}, "wall_ms holds a time"),
    ({"duration_s": "3"}, "Expected `float`, got `str` - at `$.duration_s`"),
    ({"colour": "blue"}, "Object contains unknown field `colour`"),
]


@pytest.mark.parametrize(("change", "message"), MALFORMED_RESULTS)
def test_a_malformed_result(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    steps = steps_with({**plain(result_of([1.0])), **change}, tmp_path)
    with SilentProgress().step("measure") as task, pytest.raises(DataError) as caught:
        steps.result(PREPARED, task)
    assert str(caught.value).startswith(f"the answer of a worker: {message}")
    assert str(caught.value).endswith(f"\n{REMEDY}")


REQUEST = {**plain(prepared_to_plain(PREPARED)), "switches": plain(SWITCHES)}
MALFORMED_REQUESTS = [
    ({"switches": []}, "Expected `object`, got `array`"),
    ({"switches": {**plain(SWITCHES), "seed": nan}}, "Expected `int`, got `float` - at `$.seed`"),
    ({"switches": {**plain(SWITCHES), "colour": 1}}, "Object contains unknown field `colour`"),
    ({"cell": None}, "Expected `object`, got `null` - at `$.cell`"),
    ({"cell": {**plain(CELL), "batch": "1"}}, "Expected `int`, got `str` - at `$.cell.batch`"),
    ({"engine": []}, "Expected `object | null`, got `array` - at `$.engine`"),
    ({"peak": 3}, "Expected `object | null`, got `int` - at `$.peak`"),
]


@pytest.mark.parametrize(("change", "message"), MALFORMED_REQUESTS)
def test_a_malformed_request_for_a_measurement(change: dict[str, Any], message: str) -> None:
    with SilentProgress().step("measure") as task, pytest.raises(DataError) as caught:
        worker.cell({**REQUEST, **change}, task)
    assert str(caught.value).splitlines() == [f"the request: {message}", REMEDY]


def test_a_pair_that_is_no_pair_of_cells() -> None:
    request = {"a": REQUEST, "b": [], "switches": plain(SWITCHES), "rounds": 3}
    with SilentProgress().step("measure") as task, pytest.raises(DataError) as caught:
        worker.ab(request, task)
    assert str(caught.value).splitlines() == ["the request: Expected `object`, got `array`", REMEDY]
