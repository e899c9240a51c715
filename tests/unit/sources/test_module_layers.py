from __future__ import annotations

import pytest
import torch
from torch import nn

from deploykit.core.errors import UsageError
from deploykit.models import get
from deploykit.sources.module_layers import inspect_definition
from deploykit.sources.torchvision import torchvision_spec


def test_alexnet_with_10_classes_at_256_has_its_published_figures() -> None:
    spec = get("alexnet", num_classes=10, image_size=256)
    summary = inspect_definition(spec.build, (1, 3, 256, 256), spec.name)
    assert summary.parameters == 57_044_810
    assert f"{summary.input_mb:.2f}" == "0.75"
    assert f"{summary.forward_backward_mb:.2f}" == "10.96"
    assert f"{summary.parameters_mb:.2f}" == "217.61"
    assert f"{summary.total_mb:.2f}" == "229.32"


@pytest.mark.parametrize(
    ("layer", "shape", "parameters", "multiply_adds"),
    [
        (nn.Conv2d(1024, 10, 1), (1, 1024, 8, 8), 10_250, 1024 * 10 * 64),
        (nn.Linear(1024 * 8 * 8, 10, bias=False), (1, 1024 * 64), 655_360, 655_360),
        (nn.Conv2d(192, 32, 5, padding=2, bias=False), (1, 192, 28, 28), 153_600, 120_422_400),
        (nn.Conv2d(4, 6, 3, stride=2, groups=2), (2, 4, 9, 9), 114, 2 * 6 * 16 * 18),
        (nn.Conv2d(3, 4, (1, 5)), (1, 3, 8, 8), 64, 4 * 8 * 4 * 15),
        (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (1, 4, 5, 5), 54, 100 * 12),
        (nn.BatchNorm2d(8), (1, 8, 4, 4), 16, 0),
        (nn.Linear(6, 5), (2, 7, 6), 35, 2 * 7 * 5 * 6),
    ],
)
def test_layers_count_what_their_definition_says(
    layer: nn.Module, shape: tuple[int, ...], parameters: int, multiply_adds: int
) -> None:
    summary = inspect_definition(lambda: nn.Sequential(layer.to("meta")), shape, "one")
    assert summary.parameters == parameters
    assert summary.multiply_adds == multiply_adds
    assert [row.name for row in summary.layers] == ["0"]


def test_a_bottleneck_through_1x1_filters_costs_a_tenth() -> None:
    def reduced() -> nn.Module:
        first = nn.Conv2d(192, 16, 1, bias=False)
        return nn.Sequential(first, nn.Conv2d(16, 32, 5, padding=2, bias=False))

    summary = inspect_definition(reduced, (1, 192, 28, 28), "reduced")
    assert round(summary.multiply_adds / 1e6, 1) == 12.4


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.conv(x))
        out: torch.Tensor = self.relu(self.conv(x) + x)
        return out


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, 3, 1, 1))
        self.blocks = nn.Sequential(Block(3))
        self.unused = nn.Linear(100, 100)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.blocks(x * self.scale)
        return out


def test_a_module_called_twice_has_two_rows_and_counts_once() -> None:
    summary = inspect_definition(Net, (2, 3, 8, 8), "net")
    rows = [(row.name, row.kind, row.parameters) for row in summary.layers]
    assert rows == [
        ("blocks.0.conv", "Conv2d", 81),
        ("blocks.0.relu", "ReLU", 0),
        ("blocks.0.conv", "Conv2d", 0),
        ("blocks.0.relu", "ReLU", 0),
        ("blocks.0", "Block", 0),
    ]
    assert summary.parameters == 81 + 3
    assert summary.multiply_adds == 2 * (2 * 3 * 64 * 27)
    assert {row.output_shape for row in summary.layers} == {(2, 3, 8, 8)}


def test_nothing_is_allocated_or_computed() -> None:
    seen: list[torch.Tensor] = []

    class Huge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(1 << 20, 1 << 18)  # 1 TiB of weights

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(self.linear.weight)
            out: torch.Tensor = self.linear(x)
            return out

    summary = inspect_definition(Huge, (1, 1 << 20), "huge")
    assert seen[0].is_meta
    assert summary.parameters == (1 << 38) + (1 << 18)


class ByName(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, object]:
        return {"hidden": None, "logits": (x.flatten(1),)}


class Nothing(nn.Module):
    def forward(self, _: object) -> None:
        return None


def test_layers_may_return_tensors_by_name_or_none() -> None:
    summary = inspect_definition(lambda: nn.Sequential(ByName(), Nothing()), (2, 3, 4, 4), "net")
    assert [layer.output_shape for layer in summary.layers] == [(2, 48), ()]


def test_the_hooks_are_taken_away_again() -> None:
    module = nn.Sequential(nn.ReLU(), nn.Linear(3, 2)).to("meta")
    for shape in ((1, 3), (1, 4)):
        if shape == (1, 3):
            inspect_definition(lambda: module, shape, "net")
        else:
            with pytest.raises(UsageError, match="does not take"):
                inspect_definition(lambda: module, shape, "net")
        assert not any(child._forward_hooks for child in module.modules())


@pytest.mark.parametrize(
    ("layer", "shape", "words"),
    [
        (nn.Linear(3, 2), (1, 4), "reduction dim|mat1 and mat2"),
        (nn.Conv2d(3, 8, 11), (1, 3, 4, 4), r"Kernel size|kernel"),
        (nn.BatchNorm2d(3), (1, 3), "expected 4D input"),
    ],
)
def test_a_shape_that_does_not_fit(layer: nn.Module, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(UsageError, match=r"^net does not take an input of \(.*\)\n") as caught:
        inspect_definition(lambda: nn.Sequential(layer.to("meta")), shape, "net")
    assert caught.match(words)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("name", "unlisted"),
    [("mobilenet_v2", 0), ("vit_b_16", 0), ("swin_v2_t", 0), ("densenet121", 0),
     ("shufflenet_v2_x1_0", 0), ("regnet_x_400mf", 0), ("inception_v3", 3_326_696)],
)  # fmt: skip
def test_torchvisions_networks_have_the_figures_that_torchvision_gives(
    name: str, unlisted: int
) -> None:
    """Attention uses weights without calling their layers; Inception's head is for training."""
    spec = torchvision_spec(name)
    summary = inspect_definition(spec.build, spec.inputs[0].with_batch(1), spec.name)
    assert spec.parameters == summary.parameters + unlisted
    assert summary.multiply_adds == pytest.approx(spec.multiply_adds, rel=0.005)
    assert sum(layer.multiply_adds for layer in summary.layers) == summary.multiply_adds
