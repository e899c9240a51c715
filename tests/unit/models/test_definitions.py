"""Every registered network: published sizes, free choices, scale of the untrained signal."""

from __future__ import annotations

import importlib
from contextlib import contextmanager
from functools import partial
from math import inf
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from deploykit.models import get, names
from deploykit.models._initialise import construction
from deploykit.models.alexnet import LocalResponseNorm
from deploykit.models.cifar_resnet import PaddedShortcut
from deploykit.models.googlenet import ConvNormReLU, GoogLeNet, TrainingOutputs
from deploykit.sources.weights import training_heads
from tests.drawing import Repeated

if TYPE_CHECKING:
    from collections.abc import Iterator

FP16_MAX = 65_504
TORCHVISION_NAMES = [name for name in names() if get(name).torchvision]
BETWEEN = (
    *("vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "resnet34", "resnet101"),
    *("wide_resnet50_2", "resnext50_32x4d", "resnet44"),
)
"""A signal that lives through the deepest network of a family, and the flattest, lives in these.

VGG is run at both ends, once with normalisations and once without.
"""


def on_meta(name: str, num_classes: int | None = None, image_size: int | None = None) -> nn.Module:
    """The network without memory: shapes are real, values do not exist."""
    with torch.device("meta"):
        return get(name, num_classes=num_classes, image_size=image_size).build()


@contextmanager
def undrawn_on_meta() -> Iterator[None]:
    """What `build` of a specification stands in, where a family's own function is called."""
    with torch.device("meta"), construction():
        yield


def multiply_adds(network: nn.Module, *shape: int) -> int:
    """Counted from the outputs of convolutions and linear layers, biases left out."""
    counts: list[int] = []

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            per_output = layer.in_channels // layer.groups * layer.weight[0, 0].numel()
        else:
            assert isinstance(layer, nn.Linear)
            per_output = layer.in_features
        counts.append(output.numel() * per_output)

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    network(torch.empty(1, *shape, device="meta"))
    return sum(counts)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", names())
def test_the_card_gives_the_deployed_parameters_and_multiply_adds(name: str) -> None:
    network = on_meta(name)
    for head in training_heads(network):
        setattr(network, head, None)
    spec = get(name)
    assert parameters(network) == spec.parameters
    assert multiply_adds(network, 3, *spec.preprocessing.crop) == spec.multiply_adds


PUBLISHED_PARAMETERS = {
    "alexnet": 61_100_840,
    "alexnet2012": 60_965_224,
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "nin": 7_595_176,
    "googlenet": 6_624_904,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
}
"""From the papers, Caffe's files and torchvision."""


@pytest.mark.parametrize(("name", "count"), PUBLISHED_PARAMETERS.items())
def test_published_numbers_of_parameters(name: str, count: int) -> None:
    assert get(name).parameters == count


@pytest.mark.parametrize("name", TORCHVISION_NAMES)
def test_multiply_adds_are_those_that_torchvision_publishes(name: str) -> None:
    models = importlib.import_module("torchvision.models")
    giga = models.get_model_weights(name).DEFAULT.meta["_ops"]
    assert get(name).multiply_adds == pytest.approx(giga * 1e9, abs=5.01e5)


@pytest.mark.parametrize("name", names())
def test_the_smallest_image_runs_and_a_smaller_one_cannot(name: str) -> None:
    entry = importlib.import_module("deploykit.models._registry")
    family = entry.read_families()[name].family
    smallest = entry.read_families()[name].card["min_image_size"]
    network = on_meta(name, num_classes=7, image_size=smallest)
    image = torch.empty(2, 3, smallest, smallest, device="meta")
    assert network(image).shape == (2, 7)

    too_small = smallest - 1
    build = importlib.import_module(f"deploykit.models.{family}").build
    with undrawn_on_meta(), pytest.raises((RuntimeError, ZeroDivisionError)):
        build(name, num_classes=7, image_size=too_small).eval()(
            torch.empty(2, 3, too_small, too_small)
        )


def test_alexnet_with_ten_classes_at_256() -> None:
    network = on_meta("alexnet", num_classes=10, image_size=256)
    assert parameters(network) == 57_044_810
    assert network(torch.empty(4, 3, 256, 256, device="meta")).shape == (4, 10)


def largest_activation(network: nn.Module, images: Tensor) -> tuple[Tensor, float]:
    """The logits, and the largest absolute value that any layer put out on the way."""
    largest = 0.0

    def watch(_: nn.Module, __: object, output: Tensor) -> None:
        nonlocal largest
        largest = max(largest, float(output.abs().max()))
        if not bool(output.isfinite().all()):
            largest = inf

    for layer in network.modules():
        layer.register_forward_hook(watch)
    with torch.inference_mode():
        return network(images), largest


@pytest.mark.parametrize("name", [name for name in names() if name not in BETWEEN])
def test_an_untrained_network_keeps_its_signal_within_fp16(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        size = min(64, get(name).preprocessing.crop[0])
        with Repeated():
            network = get(name, num_classes=10, image_size=size).build()
        logits, largest = largest_activation(network, torch.randn(2, 3, size, size))
    assert 1e-2 < float(logits.std()) < 100
    assert float(logits.std(dim=0).mean()) > 1e-2, "the logits do not depend on the image"
    assert largest < FP16_MAX / 16


@pytest.mark.parametrize("name", ["alexnet2012", "resnet20", "googlenet", "nin"])
def test_the_definition_runs_in_half_precision(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        size = min(64, get(name).preprocessing.crop[0])
        network = get(name, num_classes=10, image_size=size).build()
        images = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        exact, half = network(images), network.half()(images.half())
    torch.testing.assert_close(half.float(), exact, rtol=0, atol=0.02 * float(exact.abs().max()))


def test_nothing_is_drawn_when_shapes_only_are_wanted() -> None:
    network = on_meta("vgg19")
    assert all(tensor.is_meta for tensor in network.state_dict().values())


def test_one_by_one_convolution_against_a_linear_layer() -> None:
    with torch.device("meta"):
        convolution = nn.Conv2d(1024, 10, kernel_size=1)
        linear = nn.Linear(1024 * 8 * 8, 10, bias=False)
    assert parameters(convolution) == 10_250
    assert parameters(linear) == 655_360


def test_a_bottleneck_of_sixteen_channels_saves_nine_tenths_of_a_5x5_branch() -> None:
    with torch.device("meta"):
        direct = ConvNormReLU(192, 32, kernel=5)
        reduced = nn.Sequential(ConvNormReLU(192, 16, kernel=1), ConvNormReLU(16, 32, kernel=5))
    assert multiply_adds(direct, 192, 28, 28) == 120_422_400
    assert multiply_adds(reduced, 192, 28, 28) == 12_443_648


def test_googlenet_has_its_auxiliary_heads_in_training_mode_only() -> None:
    network = on_meta("googlenet", num_classes=10)
    assert isinstance(network, GoogLeNet)
    images = torch.empty(2, 3, 224, 224, device="meta")
    assert network(images).shape == (2, 10)
    outputs = network.train()(images)
    assert isinstance(outputs, TrainingOutputs)
    assert [output.shape for output in outputs] == [(2, 10)] * 3
    network.aux1 = network.aux2 = None
    assert network(images).shape == (2, 10)


def test_googlenet_with_its_heads() -> None:
    assert parameters(on_meta("googlenet")) == 13_004_888


def test_response_normalisation_follows_the_paper() -> None:
    images = torch.randn(2, 7, 3, 4, generator=torch.Generator().manual_seed(0)) * 50
    actual = LocalResponseNorm()(images)
    for channel in range(7):
        window = images[:, max(0, channel - 2) : channel + 3]
        scale = (2 + 1e-4 * window.square().sum(1)) ** 0.75
        torch.testing.assert_close(actual[:, channel], images[:, channel] / scale)
    torch.testing.assert_close(actual, nn.LocalResponseNorm(5, 5 * 1e-4, 0.75, 2)(images))


def test_response_normalisation_has_room_in_half_precision() -> None:
    loud = torch.full((1, 5, 2, 2), 1000.0, dtype=torch.float16)
    assert bool(LocalResponseNorm()(loud).isfinite().all())


@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_the_padded_shortcut_takes_every_second_pixel(size: int) -> None:
    images = torch.randn(2, 16, size, size, generator=torch.Generator().manual_seed(size))
    actual = PaddedShortcut(16)(images)
    assert torch.equal(actual[:, 8:24], images[:, :, ::2, ::2])
    assert not actual[:, :8].any()
    assert not actual[:, 24:].any()


def test_training_reaches_every_parameter() -> None:
    for name in ("resnet20", "alexnet2012", "googlenet"):
        network = get(name, num_classes=3, image_size=64).build().train()
        outputs = network(torch.randn(2, 3, 64, 64))
        loss = sum(map(torch.sum, outputs if isinstance(outputs, tuple) else (outputs,)))
        assert isinstance(loss, Tensor)
        gradients = torch.autograd.grad(loss, list(network.parameters()))  # raises at unused ones
        assert all(bool(gradient.isfinite().all()) for gradient in gradients), name


def test_the_builder_is_the_family_with_the_choices_made() -> None:
    builder = get("resnet20", num_classes=4, image_size=40).builder
    assert isinstance(builder, partial)
    assert builder.args == ("cifar_resnet", "resnet20", 4, 40)
