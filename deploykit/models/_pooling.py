"""Average pooling to a fixed grid, in operations that every exporter and compiler knows."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


def average_to_grid(size: int, grid: int) -> nn.Module:
    """Module that computes ``nn.AdaptiveAvgPool2d(grid)`` of (N, C, size, size).

    ONNX has no adaptive pooling. The input size of a deployed network is known, so ordinary
    pooling computes the same where the windows are regular, and two small matrices where not;
    exporters would refuse those sizes or write a gather of every window.
    """
    if size == grid:
        return nn.Identity()
    windows = adaptive_windows(size, grid)
    lengths = {stop - start for start, stop in windows}
    steps = {after[0] - before[0] for before, after in pairwise(windows)}
    if size > grid and len(lengths) == 1 and len(steps) <= 1:
        return nn.AvgPool2d(lengths.pop(), steps.pop() if steps else 1)
    return WindowAverage(size, windows)


def adaptive_windows(size: int, grid: int) -> list[tuple[int, int]]:
    """Start and stop of each window, from floor(i size / grid) to ceil((i + 1) size / grid).

    >>> adaptive_windows(7, 3)
    [(0, 3), (2, 5), (4, 7)]
    """
    return [(i * size // grid, -(-(i + 1) * size // grid)) for i in range(grid)]


class WindowAverage(nn.Module):
    """Mean over irregular windows: P x P^T for each channel, each row of P being one window."""

    def __init__(self, size: int, windows: list[tuple[int, int]]) -> None:
        super().__init__()
        rows = torch.zeros(len(windows), size)
        for row, (start, stop) in zip(rows, windows, strict=True):
            row[start:stop] = 1 / (stop - start)
        # Not persistent: the names of the state dict stay those of the published network.
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", rows.T.clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, size, size) -> (N, C, grid, grid)."""
        rows, columns = self.get_buffer("rows"), self.get_buffer("columns")
        return rows @ x @ columns
