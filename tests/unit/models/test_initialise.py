"""Starting values: their spread, and the scale of residual branches."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from torch import nn

from deploykit.models import get
from deploykit.models._initialise import damp_residuals, he_normal, linear_to_fill


def test_weights_have_variance_two_over_fan_in() -> None:
    layers = nn.Sequential(nn.Conv2d(32, 64, 3, groups=2), linear_to_fill(400, 300))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        he_normal(layers)
    for layer, fan_in in zip(layers, (16 * 9, 400), strict=True):
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        assert layer.bias is not None
        assert float(layer.weight.detach().std()) == pytest.approx(sqrt(2 / fan_in), rel=0.03)
        assert 0 < float(layer.bias.detach().abs().max()) <= 1 / sqrt(fan_in)


def test_branches_are_damped_by_the_root_of_their_number() -> None:
    norms = [nn.BatchNorm2d(3) for _ in range(4)]
    damp_residuals(norms)
    assert all(norm.weight.tolist() == [0.5, 0.5, 0.5] for norm in norms)


@pytest.mark.parametrize(("name", "blocks"), [("resnet50", 16), ("resnet18", 8), ("resnet20", 9)])
def test_residual_networks_damp_the_last_normalisation(name: str, blocks: int) -> None:
    state = get(name).build().state_dict()
    last = "bn3" if name == "resnet50" else "bn2"
    assert float(state[f"layer2.0.{last}.weight"][0]) == pytest.approx(blocks**-0.5)
    assert float(state["layer2.0.bn1.weight"][0]) == 1
