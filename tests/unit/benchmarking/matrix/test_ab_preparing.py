"""What `bench --ab` prepares before it measures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from deploykit.benchmarking.matrix.ab_run import AbOptions, bench_ab
from deploykit.benchmarking.matrix.cells import CellGraph
from deploykit.benchmarking.matrix.processes import ChildFailure, ProcessLimits
from deploykit.benchmarking.matrix.steps import Steps
from deploykit.core.errors import DataError
from deploykit.core.precision import Precision
from deploykit.core.serialization import to_plain
from tests.unit.benchmarking.statistics.noise import SWITCHES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FP32 = Precision.FP32
LIMITS = ProcessLimits(1.0)


def prepared(folder: Path, *targets: str) -> list[tuple[str, str]]:
    """Target and working folder, below ``folder``, of each graph that is asked for."""
    asked: list[tuple[str, str]] = []

    def call(step: str, request: Mapping[str, Any], *_: object, **__: object) -> dict[str, Any]:
        if step == "ab":
            raise ChildFailure("error", "both are prepared")
        asked.append((request["target"], request["work"].removeprefix(str(folder))))
        made = CellGraph(request["target"], "a" * 64, FP32, FP32, None, False, {}, ())
        return dict(to_plain(made))

    a, b = targets
    options = AbOptions((a, b), 1, FP32, "ort", 20, folder / "ab.json")
    with pytest.raises(DataError, match="not measured: both are prepared"):
        bench_ab(options, Steps(SWITCHES, folder, LIMITS, LIMITS, call=call), {})
    return asked


def test_one_target_twice_is_prepared_once(tmp_path: Path) -> None:
    assert prepared(tmp_path, "nin", "nin") == [("nin", "")]


def test_files_of_one_name_are_exported_to_two_places(tmp_path: Path) -> None:
    for place in ("x", "y"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "net.onnx").touch()
    a, b = (str(tmp_path / place / "net.onnx") for place in ("x", "y"))
    assert prepared(tmp_path, a, b) == [(a, ""), (b, "/b")]
    assert prepared(tmp_path, a, "nin") == [(a, ""), ("nin", "")]
