"""Pooling to a grid against torch's adaptive pooling, at every size that can occur."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deploykit.models._pooling import WindowAverage, average_to_grid


@pytest.mark.parametrize("grid", [1, 4, 6, 7])
@pytest.mark.parametrize("size", range(1, 17))
def test_it_is_adaptive_average_pooling(size: int, grid: int) -> None:
    features = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(size))
    expected = nn.AdaptiveAvgPool2d(grid)(features)
    torch.testing.assert_close(average_to_grid(size, grid)(features), expected)


@pytest.mark.parametrize(
    ("size", "grid", "kind"),
    [(6, 6, nn.Identity), (7, 6, nn.AvgPool2d), (12, 6, nn.AvgPool2d), (8, 6, WindowAverage)],
)
def test_regular_windows_are_ordinary_pooling(size: int, grid: int, kind: type[nn.Module]) -> None:
    assert type(average_to_grid(size, grid)) is kind


def test_it_adds_no_name_to_the_state_dict() -> None:
    assert average_to_grid(8, 6).state_dict() == {}
