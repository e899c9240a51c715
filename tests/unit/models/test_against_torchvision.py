"""Where torchvision has the network, its weights fit ours and mean the same."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from deploykit.models import get, names
from deploykit.models._initialise import nothing_drawn

NAMES = [name for name in names() if get(name).torchvision]
SIZES = (64, 96)

BETWEEN = (
    *("vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "resnet34", "resnet101"),
    *("wide_resnet50_2", "resnext50_32x4d"),
)
"""Beside those of the family that are run: layers of the same kinds, in other numbers."""


def torchvisions(
    name: str, state: dict[str, Tensor], *, transform_input: bool = False
) -> nn.Module:
    """Torchvision's network holding the tensors of ``state``, all of them and no others."""
    arguments = (
        {"init_weights": False, "transform_input": transform_input} if name == "googlenet" else {}
    )
    with torch.device("meta"):
        network: nn.Module = getattr(torchvision.models, name)(weights=None, **arguments)
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval()


def randomise_statistics(network: nn.Module) -> None:
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.7, 1.3)
            nn.init.normal_(layer.bias, std=0.1)
            layer.weight.data *= torch.rand_like(layer.weight) * 0.6 + 0.7


DRAWN = 1 << 20
"""Values of which a large weight is a repetition: drawing a hundred million takes a second."""


def fill_weights(network: nn.Module) -> None:
    """As `he_normal` does it, but for the repetition."""
    values = torch.randn(DRAWN)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weight = layer.weight.detach().view(-1)
            scale = (2 / layer.weight[0].numel()) ** 0.5
            for part in torch.split(weight, DRAWN):
                torch.mul(values[: len(part)], scale, out=part)
            if layer.bias is not None:
                nn.init.uniform_(layer.bias, -scale, scale)


def assert_agree(ours: nn.Module, theirs: nn.Module, size: int) -> None:
    images = torch.randn(1, 3, size, size)
    with torch.inference_mode():
        actual, expected = ours(images), theirs(images)
    scale = float(expected.abs().max())
    assert scale > 0.1
    assert float((actual - expected).abs().max()) <= 1e-5 * scale


@pytest.mark.parametrize("name", BETWEEN)
def test_state_dicts_of_depths_between_are_exchangeable(name: str) -> None:
    with torch.device("meta"):
        ours = get(name).build()
    theirs = torchvisions(name, ours.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BETWEEN])
def test_state_dicts_are_exchangeable_and_outputs_agree(name: str) -> None:
    with torch.random.fork_rng(devices=[]), torch.no_grad(), nothing_drawn():
        torch.manual_seed(0)
        ours = get(name, image_size=SIZES[0]).build()
        fill_weights(ours)
        randomise_statistics(ours)
        theirs = torchvisions(name, ours.state_dict())
        assert_agree(ours, theirs, SIZES[0])

        ours = get(name, image_size=SIZES[1]).build()
        ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
        assert_agree(ours, theirs, SIZES[1])


def test_every_network_of_these_families_in_torchvision_is_registered_under_its_name() -> None:
    assert all(get(name).torchvision == name for name in NAMES)
    assert len(NAMES) == 19


def test_googlenets_normalisation_is_the_one_that_torchvision_computes_inside() -> None:
    """With trained weights torchvision's network turns its usual input to -1...1 by itself."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        ours = get("googlenet", image_size=64).build()
        theirs = torchvisions("googlenet", ours.state_dict(), transform_input=True)
        pixels = torch.rand(1, 3, 64, 64)
        preprocessing = get("googlenet").preprocessing
        usual = get("resnet18").preprocessing
        actual = ours(normalised(pixels, preprocessing.mean, preprocessing.std))
        expected = theirs(normalised(pixels, usual.mean, usual.std))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def normalised(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    shape = (1, 3, 1, 1)
    return (pixels - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
