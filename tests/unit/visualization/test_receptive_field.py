from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from deploykit.core.errors import UsageError
from deploykit.visualization.receptive_field import AxisField, Box, MapField, Window
from deploykit.visualization.tracing import TracedLayer, trace_layers
from tests.unit.visualization.networks import Branches, Plain, positive

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = (13, 17)


def traced(module: nn.Module, size: tuple[int, int] = SIZE) -> dict[str, TracedLayer]:
    return {layer.name: layer for layer in trace_layers(module.float(), module, (3, *size))}


def output_of(module: nn.Module, name: str, images: Tensor) -> Tensor:
    kept: list[Tensor] = []
    hook = module.get_submodule(name).register_forward_hook(lambda _, __, out: kept.append(out))
    module(images)
    hook.remove()
    return kept[0]


def boxes(seen: np.ndarray) -> Box:
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    return Box(*(int(each) for each in (rows[0], columns[0], rows[-1], columns[-1])))


def by_perturbation(module: nn.Module, name: str, size: tuple[int, int]) -> np.ndarray:
    """Whether each unit (H, W) changes when one pixel is another: (H, W, image H, image W)."""
    image = torch.rand(1, 3, *size, dtype=torch.float64) + 1
    with torch.no_grad():
        before = output_of(module, name, image).sum(1)[0]
        changed = np.zeros((*before.shape, *size), bool)
        for row in range(size[0]):
            for column in range(size[1]):
                other = image.clone()
                # Above all others, so that a maximum takes it.
                other[..., row, column] = 50
                after = output_of(module, name, other).sum(1)[0]
                changed[:, :, row, column] = (after != before).numpy()
    return changed


def by_gradient(module: nn.Module, name: str, size: tuple[int, int]) -> np.ndarray:
    image = (torch.rand(1, 3, *size, dtype=torch.float64) + 1).requires_grad_()
    output = output_of(module, name, image).sum(1)[0]
    found = np.zeros((*output.shape, *size), bool)
    for row in range(output.shape[0]):
        for column in range(output.shape[1]):
            (gradient,) = torch.autograd.grad(output[row, column], image, retain_graph=True)
            found[row, column] = (gradient.abs().sum((0, 1)) > 0).numpy()
    return found


class Named(nn.Module):
    """One function between a convolution and another, so that both sides have a name."""

    def __init__(self, between: Callable[[Tensor], Tensor], channels: int = 2) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 2, 2, stride=2)
        self.last = nn.Conv2d(channels, 1, 1)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.between(self.first(x)))
        return found


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "max_pool": lambda x: functional.max_pool2d(x, 3, 2, padding=1, dilation=1),
    "dilated_pool": lambda x: functional.max_pool2d(x, 2, 1, dilation=2),
    "rounded_up": lambda x: functional.avg_pool2d(x, 4, 3, ceil_mode=True),
    "adaptive": lambda x: functional.adaptive_avg_pool2d(x, (4, 3)),
    "adaptive_max": lambda x: functional.adaptive_max_pool2d(x, (2, 5)),
    "nearest": lambda x: functional.interpolate(x, scale_factor=1.5),
    "bilinear": lambda x: functional.interpolate(x, size=(9, 4), mode="bilinear"),
    "aligned": lambda x: functional.interpolate(
        x, size=(9, 5), mode="bilinear", align_corners=True
    ),
    "reflect": lambda x: functional.pad(x, (2, 1, 0, 2), mode="reflect"),
    "replicate": lambda x: functional.pad(x, (1, 2, 0, 0), mode="replicate"),
    "circular": lambda x: functional.pad(x, (1, 1, 2, 0), mode="circular"),
    "cropped": lambda x: functional.pad(x, (-1, 0, 0, -2)),
    "slice": lambda x: x[..., 1:, ::3],
    "there_and_back": lambda x: x.permute(0, 2, 3, 1).softmax(-1).permute(0, 3, 1, 2),
    "row_means": lambda x: x.mean(3, keepdim=True) + x,
    "joined": lambda x: torch.cat([x, x[:, :, :2]], 2),
    "shuffled": lambda x: x.view(1, 2, 1, *x.shape[2:]).transpose(1, 2).reshape(x.shape),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_the_field_of_its_gradient(name: str) -> None:
    torch.manual_seed(1)
    module = Named(FUNCTIONS[name])
    field = traced(module)["last"].field
    # Negative neighbours would hide behind a maximum; positive weights and images have none.
    if "max" in name or "pool" in name:
        seen = by_perturbation(positive(module), "last", SIZE)
    else:
        seen = by_gradient(positive(module), "last", SIZE)
    for row in range(seen.shape[0]):
        for column in range(seen.shape[1]):
            assert field.box(row, column) == boxes(seen[row, column]), (row, column)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", ["stem", "left", "right", "pool", "last"])
def test_branches_of_all_kinds_by_gradient(name: str) -> None:
    torch.manual_seed(0)
    module = Branches()
    field = traced(module)[name].field
    seen = by_gradient(positive(module), name, SIZE)
    height, width = seen.shape[:2]
    found = [field.box(row, column) for row in range(height) for column in range(width)]
    assert found == [boxes(each) for each in seen.reshape(-1, *SIZE)]
    assert field.largest == (max(b.height for b in found), max(b.width for b in found))
    assert not field.is_whole


def test_a_network_by_perturbing_each_pixel() -> None:
    torch.manual_seed(0)
    module, size = Plain(), (8, 10)
    layers = traced(module, size)
    seen = by_perturbation(positive(module), "conv2", size)
    for row in range(4):
        for column in range(5):
            assert layers["conv2"].field.box(row, column) == boxes(seen[row, column])
    assert layers["conv2"].field.largest == (7, 8)  # 8 x 8 has no room in 8 rows
    assert layers["conv1"].field.box(0, 0) == Box(0, 0, 1, 1)
    assert layers["conv1"].field.box(4, 9) == Box(3, 8, 5, 9)


def test_what_sees_the_whole_image_says_why() -> None:
    layers = traced(Plain(), (8, 8))
    assert layers["head"].field.is_whole
    assert layers["head"].field.reason == "mean is over the whole map"
    assert layers["head"].shape == (3,)
    assert layers["head"].field.box(0, 0) == Box(0, 0, 7, 7)


def attention(x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)[:, None]
    mixed = functional.scaled_dot_product_attention(tokens, tokens, tokens)
    return mixed[:, 0].transpose(1, 2).reshape(x.shape)


WHOLE: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "attention": (attention, "flatten mixes positions of the map"),
    "global pooling": (lambda x: x * functional.adaptive_avg_pool2d(x, 1), "covers the whole map"),
    "turned": (lambda x: x.transpose(2, 3), "conv2d mixes positions of the map"),
    "sort": (lambda x: x.sort(dim=3).values, "sort has no rule for receptive fields"),
    "norm": (lambda x: functional.layer_norm(x, x.shape[1:]), "layer_norm is over the whole map"),
    "matmul": (lambda x: x @ x.transpose(2, 3) @ x, "has no rule"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_an_operation_without_a_field_is_told(name: str) -> None:
    between, reason = WHOLE[name]
    field = traced(Named(between), (12, 16))["last"].field
    assert field.is_whole
    assert field.reason is not None
    assert reason in field.reason


def test_a_layer_that_is_called_twice_counts_its_calls() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3)
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.relu(self.conv(self.relu(x)))
            return found

    layers = traced(Shared())
    assert (layers["relu"].calls, layers["conv"].calls) == (2, 1)
    assert list(layers) == ["conv", "relu"]


def test_a_size_that_the_network_does_not_take() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(UsageError, match=r"does not take images of \(1, 3, 13, 17\)"):
        trace_layers(module, module, (3, *SIZE))


def test_positions_in_the_padding_depend_on_nothing() -> None:
    field = AxisField.of_image(2).windowed(Window(1, padding=1), 4)
    assert field.high.tolist() == [-1, 0, 1, -1]
    assert MapField((2, 2), field, field).largest == (1, 1)
