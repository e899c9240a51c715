"""What the comparison of all precisions counts and keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from benchmarks import precision_accuracy
from benchmarks.precision_accuracy import Row, eight_bit_share, known, table, write
from tests.graphs import graph

if TYPE_CHECKING:
    from pathlib import Path

ROW = Row("vit", "INT8", 585, 0.93, 0.935, 0.998, 4.8e-5, 44.9, 0.8, 58.4, 1113.2)
CONSTANTS = {
    "scale": np.float32(0.1),
    "zero": np.int8(0),
    "narrow": np.zeros((4, 4, 3, 3), np.int8),
    "wide": np.zeros((12, 4, 1, 1), np.float32),
}


def test_the_share_counts_the_multiply_adds_of_weights_in_eight_bits(tmp_path: Path) -> None:
    nodes = """
        g (float[1, 4, 8, 8] x) => (float[1, 12, 6, 6] y) {
            dequantized = DequantizeLinear(narrow, scale, zero)
            inner = Conv(x, dequantized)
            y = Conv(inner, wide)
        }
    """
    made = graph(nodes, {name: np.asarray(value) for name, value in CONSTANTS.items()})
    onnx.save(made, tmp_path / "g.onnx")
    # On 36 places 4 x 4 x 9 of eight bits, and 12 x 4 of FP32.
    assert eight_bit_share(tmp_path / "g.onnx") == pytest.approx(144 / (144 + 48))


def test_rows_of_earlier_runs_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_accuracy, "RESULTS", tmp_path)
    assert known() == []
    rows = [ROW, replace(ROW, way="INT8, fine-tuned", record={"kept": False})]
    write(rows)
    assert known() == rows


def test_the_table_says_where_fine_tuning_left_the_graph_as_it_was() -> None:
    lines = table([ROW, replace(ROW, way="FP8, fine-tuned", record={"kept": False})]).splitlines()
    assert lines[2] == "| vit | INT8 | 93.5% | 99.8% | 4.8e-05 | 44.9 | 80% | 58 | 1113 |"
    assert lines[3].startswith("| vit | FP8, fine-tuned: left as it was | 93.5% |")
