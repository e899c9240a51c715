"""Convolutions that standardise their weights as they run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from timm.layers import std_conv
from torch import Tensor, nn

from deploykit.sources.torch_export import has_standardised, inference_form, standardise_once

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

EPS = 1e-3


def bit(padding: str | None) -> nn.Module:
    from transformers.models.bit.modeling_bit import WeightStandardizedConv2d

    kind: Any = WeightStandardizedConv2d  # transformers has no types for it
    layer: nn.Module = kind(6, 4, 3, stride=2, padding=padding, eps=EPS)
    return layer


CASES: list[tuple[str, Callable[[], nn.Module], tuple[int, int, int, int]]] = [
    ("StdConv2d", lambda: std_conv.StdConv2d(6, 4, 3, stride=2, bias=True, eps=EPS), (1, 1, 1, 1)),
    ("StdConv2dSame", lambda: std_conv.StdConv2dSame(6, 4, 3, stride=2, eps=EPS), (0, 1, 1, 1)),
    ("static SAME", lambda: std_conv.StdConv2dSame(6, 4, 3, eps=EPS), (1, 1, 1, 1)),
    (
        "ScaledStdConv2d",
        lambda: std_conv.ScaledStdConv2d(6, 4, 3, groups=2, gamma=1.7, eps=EPS),
        (1, 1, 1, 1),
    ),
    (
        "ScaledStdConv2dSame",
        lambda: std_conv.ScaledStdConv2dSame(6, 4, 3, stride=2, gamma=1.7, eps=EPS),
        (0, 1, 1, 1),
    ),
    ("BiT", lambda: bit(None), (1, 1, 1, 1)),
    ("BiT, SAME", lambda: bit("SAME"), (0, 1, 1, 1)),
]
"""A convolution of each class, and zeros left, right, above and below an image of 8x7 pixels."""


@pytest.mark.parametrize(
    ("make", "padding"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_a_plain_convolution_computes_the_same(
    make: Callable[[], nn.Module], padding: tuple[int, int, int, int]
) -> None:
    network = drawn(nn.Sequential(make()))
    images = torch.randn(3, 6, 7, 8, generator=torch.Generator().manual_seed(1))
    layer: Any = network[0]
    expected = convolved(layer, images, padding)
    with torch.no_grad():
        before = network(images)
        standardise_once(network)
        after = network(images)
    np.testing.assert_allclose(before.numpy(), expected, atol=1e-4)
    np.testing.assert_array_equal(after.numpy(), before.numpy())
    assert isinstance(network[0], nn.Conv2d)
    assert not has_standardised(network)
    np.testing.assert_allclose(
        network[0].weight.detach().numpy(), standardised(layer), rtol=1e-4, atol=1e-6
    )
    names = {"0.weight", "0.bias"} if layer.bias is not None else {"0.weight"}
    assert set(network.state_dict()) == names


def drawn(network: nn.Sequential) -> nn.Sequential:
    """With weights whose mean and deviation differ from filter to filter."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + 0.2)
    return network.eval()


def standardised(layer: Any) -> NDArray[np.float64]:
    """(weight - mean) / sqrt(variance + eps) of each filter, times its gain."""
    weight = layer.weight.detach().double().numpy()
    mean, variance = (f(weight, axis=(1, 2, 3), keepdims=True) for f in (np.mean, np.var))
    gain = 1.0
    if hasattr(layer, "gain"):
        gain = layer.gain.detach().double().numpy() * 1.7 / np.sqrt(weight[0].size)
    result: NDArray[np.float64] = gain * (weight - mean) / np.sqrt(variance + EPS)
    return result


def convolved(
    layer: Any, images: Tensor, padding: tuple[int, int, int, int]
) -> NDArray[np.float64]:
    bias = None if layer.bias is None else layer.bias.detach().double()
    result: NDArray[np.float64] = nn.functional.conv2d(
        nn.functional.pad(images.double(), padding),
        torch.from_numpy(standardised(layer)),
        bias,
        layer.stride,
        groups=layer.groups,
    ).numpy()
    return result


class Own(std_conv.StdConv2d):  # type: ignore[misc]  # timm is not typed
    """A user's class: what it computes besides is not known."""


def test_a_class_of_the_users_own_stays() -> None:
    network = nn.Sequential(Own(3, 4, 3), nn.Conv2d(4, 4, 3))
    assert not has_standardised(network)
    standardise_once(network)
    assert isinstance(network[0], Own)
    assert inference_form(network) is None


def test_the_users_network_keeps_its_own() -> None:
    network = drawn(nn.Sequential(nn.Sequential(std_conv.ScaledStdConv2d(6, 4, 3)), nn.ReLU()))
    images = torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(1))
    form = inference_form(network)
    assert form is not None
    assert form.notes == ()
    assert isinstance(network[0], nn.Sequential)
    assert has_standardised(network)
    assert type(form.module.get_submodule("0.0")) is nn.Conv2d
    with torch.no_grad():
        np.testing.assert_array_equal(form.module(images).numpy(), network(images).numpy())
