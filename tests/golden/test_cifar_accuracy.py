"""Published CIFAR-10 weights reach on real images what they are known to reach."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from deploykit.models import get
from deploykit.sources.weights import build_with_weights

if TYPE_CHECKING:
    from pathlib import Path

BATCH = 20
"""What stays in the cache of one core."""


@pytest.mark.parametrize(
    ("name", "top1"),
    [("resnet20", 0.915), ("resnet56", 0.926)],
)
def test_top1_on_a_thousand_test_images(name: str, top1: float, shared_data: Path) -> None:
    spec = get(name)
    network, record = build_with_weights(spec, str(shared_data / f"{name}_cifar10.npz"), 0)
    assert record.trained
    with np.load(shared_data / "cifar10_test1000.npz") as data:
        images, labels = torch.from_numpy(data["images"]), torch.from_numpy(data["labels"])
        assert tuple(data["classes"]) == spec.labels
    mean, std = torch.tensor(spec.preprocessing.mean), torch.tensor(spec.preprocessing.std)
    inputs = ((images / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.inference_mode():
        predicted = torch.cat(
            [network(batch).argmax(1) for batch in inputs.chunk(len(inputs) // BATCH)]
        )
    # One image is 0.001: rounding on another processor may turn a close call.
    assert float((predicted == labels).float().mean()) == pytest.approx(top1, abs=0.0015)
