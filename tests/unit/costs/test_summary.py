from __future__ import annotations

import json

import pytest

from deploykit.costs.network import LayerInfo, ModelSummary, summary_to_plain

MIB = 1024 * 1024


def summary() -> ModelSummary:
    layers = (
        LayerInfo("conv", "Conv2d", (2, 16, 32, 32), 448, 1000),
        LayerInfo("relu", "ReLU", (2, 16, 32, 32), 0, 0),
        LayerInfo("linear", "Linear", (2, 10), 163850, 327680),
    )
    return ModelSummary("net", (2, 3, 32, 32), layers, 164298)


def test_totals_follow_torchsummary() -> None:
    outputs = 2 * (2 * 16 * 32 * 32) + 20
    assert summary().multiply_adds == 328680
    assert summary().input_mb == pytest.approx(2 * 3 * 32 * 32 * 4 / MIB)
    assert summary().forward_backward_mb == pytest.approx(2 * outputs * 4 / MIB)
    assert summary().parameters_mb == pytest.approx(164298 * 4 / MIB)
    parts = summary().input_mb, summary().forward_backward_mb, summary().parameters_mb
    assert summary().total_mb == pytest.approx(sum(parts))


def test_json_has_every_figure() -> None:
    data = json.loads(json.dumps(summary_to_plain(summary())))
    assert list(data) == [
        "name",
        "input_shape",
        "parameters",
        "multiply_adds",
        "input_mb",
        "forward_backward_mb",
        "parameters_mb",
        "total_mb",
        "memory_of",
        "layers",
        "notes",
    ]
    assert data["layers"][2] == {
        "name": "linear",
        "kind": "Linear",
        "output_shape": [2, 10],
        "parameters": 163850,
        "multiply_adds": 327680,
    }


def test_a_model_without_layers_is_empty() -> None:
    empty = ModelSummary("nothing", (1, 3, 8, 8), (), 0)
    assert (empty.multiply_adds, empty.forward_backward_mb, empty.parameters_mb) == (0, 0.0, 0.0)
