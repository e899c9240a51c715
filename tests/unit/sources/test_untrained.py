"""Starting values of other people's networks: silent branches, statistics, noise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deploykit.sources import untrained
from deploykit.sources.timm import timm_spec
from deploykit.sources.untrained import OFFSET, draw_values, pink_noise, wake


class Branch(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((5, 1, 1), scale))
        self.gain = nn.Parameter(torch.tensor(scale))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1, 5))
        self.table = nn.Parameter(torch.zeros(4, 5))
        self.norm = nn.BatchNorm2d(5)
        nn.init.constant_(self.norm.weight, scale)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e-4])
def test_silent_scales_share_one_over_the_root_of_their_number(scale: float) -> None:
    silent, loud, convolution = Branch(scale), Branch(1.0), nn.Conv2d(3, 1, 1)
    nn.init.zeros_(convolution.weight)
    wake(nn.Sequential(silent, loud, convolution))
    assert not convolution.weight.any()
    for value in (silent.gamma, silent.gain, silent.norm.weight):
        assert torch.allclose(value, torch.full_like(value, 3**-0.5))
    for value in (loud.gamma, loud.gain, loud.norm.weight):
        assert torch.equal(value, torch.ones_like(value))


def test_what_is_added_may_start_at_zero() -> None:
    network = Branch(0.0)
    wake(network)
    for value in (network.pos_embed, network.table, network.norm.bias):
        assert not value.any()


@pytest.mark.parametrize("name", ["test_convnext", "test_nfnet", "test_resnet"])
def test_no_branch_of_timms_networks_is_silent(name: str) -> None:
    network = timm_spec(name, image_size=64).build()
    for key, value in network.named_parameters():
        if key.endswith(("gamma", "gain", "weight")):
            assert float(value.detach().abs().max()) > 0.01, key


def test_statistics_are_those_of_what_reaches_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = pink_noise((32, 16))
    monkeypatch.setattr(untrained, "pink_noise", lambda size: noise)
    norm = nn.BatchNorm1d(6, momentum=0.2)
    network = nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), nn.Flatten(2), norm).eval()
    draw_values(network, (32, 16))
    with torch.no_grad():
        result = network(noise)
    assert (norm.training, norm.momentum) == (False, 0.2)
    assert result.mean((0, 2)).tolist() == pytest.approx([OFFSET] * 6, abs=1e-4)
    assert result.std((0, 2)).tolist() == pytest.approx([1] * 6, rel=1e-3)


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(3, affine=False), nn.Identity()])
def test_networks_without_learned_scales(layer: nn.Module) -> None:
    draw_values(nn.Sequential(layer).eval(), (8, 8))


def test_where_nothing_has_a_value_nothing_is_computed() -> None:
    with torch.device("meta"):
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
        draw_values(network, (8, 8))
    assert {value.device.type for value in network.state_dict().values()} == {"meta"}


def test_noise_has_as_much_variance_in_every_octave() -> None:
    torch.manual_seed(0)
    noise = torch.cat([pink_noise((64, 64)) for _ in range(16)])
    assert noise.shape == (128, 3, 64, 64)
    power = [
        float((nn.functional.avg_pool2d(noise, k) - _repeat_mean(noise, k)).var())
        for k in (4, 8, 16)
    ]
    assert max(power) < 2 * min(power)


def _repeat_mean(noise: torch.Tensor, k: int) -> torch.Tensor:
    """What is left of ``noise`` one octave lower, in the size of the pooled one."""
    lower = nn.functional.avg_pool2d(noise, 2 * k)
    return nn.functional.interpolate(lower, scale_factor=2)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.BatchNorm2d])
def test_batch_normalisations_add_an_offset(
    norm: type[nn.BatchNorm1d] | type[nn.BatchNorm2d],
) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False))
    if norm is nn.BatchNorm1d:
        network.append(nn.Flatten()).append(nn.BatchNorm1d(4 * 8 * 8))
    draw_values(network.eval(), (8, 8))
    found = [layer.bias for layer in network if isinstance(layer, norm) and layer.affine]
    assert found
    for bias in found:
        torch.testing.assert_close(bias.detach(), torch.full_like(bias, OFFSET))


def test_rounding_does_not_grow_with_depth() -> None:
    """Without the offset these layers make a difference 300 to 900 times as large."""
    torch.manual_seed(0)
    layers = [
        layer
        for _ in range(36)
        for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    ]
    network = nn.Sequential(nn.Conv2d(3, 8, 1), *layers).eval()
    draw_values(network, (16, 16))
    images = pink_noise((16, 16))
    with torch.no_grad():
        expected, got = network(images), network(images * (1 + 1e-4 * torch.randn_like(images)))
    assert float((got - expected).std() / expected.std()) < 200 * 1e-4
