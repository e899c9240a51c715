"""Networks that no other package defines must go on computing what they compute.

The weights come from a formula, not from a random generator, so that the logits do not depend on
torch's version. When a definition changed on purpose, record them anew and review the difference:

    python tests/golden/test_golden_logits.py
"""

from __future__ import annotations

import json
from functools import cache
from math import sqrt
from pathlib import Path

import pytest
import torch
from torch import nn

from deploykit.models import get
from deploykit.models._initialise import nothing_drawn

GOLDEN = Path(__file__).with_name("logits.json")
IMAGE_SIZES = {"alexnet2012": 95, "nin": 64, "resnet20": 32, "resnet110": 20}
COMMAND = "python tests/golden/test_golden_logits.py"


PERIOD = 4_000_037
"""A prime number, so that rows of a large weight differ; the sine of more values takes seconds."""


@cache
def row() -> torch.Tensor:
    steps = torch.arange(PERIOD, dtype=torch.float64)
    return (sqrt(2) * torch.sin(steps * steps * 0.37 + steps * 1.1)).float()


def wave(*shape: int) -> torch.Tensor:
    """Values of zero mean and unit variance without a visible pattern."""
    size = torch.Size(shape).numel()
    return row().repeat(-(-size // PERIOD))[:size].view(shape)


def fill(network: nn.Module) -> None:
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_in = layer.weight[0].numel()
            layer.weight.copy_(wave(*layer.weight.shape) * sqrt(2 / fan_in))
            if layer.bias is not None:
                layer.bias.copy_(wave(*layer.bias.shape) * 0.1)
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            layer.running_mean.copy_(wave(layer.num_features) * 0.1)


def logits(name: str) -> list[float]:
    size = IMAGE_SIZES[name]
    with torch.inference_mode():
        with nothing_drawn():
            network = get(name, num_classes=8, image_size=size).build()
        fill(network)
        values: list[float] = network(wave(1, 3, size, size))[0].tolist()
    return [round(value, 6) for value in values]


@pytest.mark.parametrize("name", IMAGE_SIZES)
def test_logits_are_those_on_record(name: str) -> None:
    recorded = json.loads(GOLDEN.read_text())[name]
    assert logits(name) == pytest.approx(recorded, rel=1e-3, abs=1e-3), (
        f"{name} computes something else than before; if that is meant: {COMMAND}"
    )


def test_the_record_is_of_these_networks_and_says_something() -> None:
    recorded = json.loads(GOLDEN.read_text())
    assert recorded.keys() == IMAGE_SIZES.keys()
    assert all(max(values) - min(values) > 0.1 for values in recorded.values())


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: logits(name) for name in IMAGE_SIZES}, indent=1) + "\n")
