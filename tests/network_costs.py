"""Costs of our definitions by watching torch modules: an oracle that knows nothing of ONNX."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import nn

from deploykit.core.precision import Precision
from deploykit.costs.network import LayerCost, NetworkCost
from deploykit.models import get

if TYPE_CHECKING:
    from collections.abc import Callable

BYTES = {Precision.FP32: 4, Precision.FP16: 2, Precision.INT8: 1}


def cost_of_definition(name: str, batch: int, precision: Precision) -> NetworkCost:
    """Every layer and weight in one precision, input and output in FP32."""
    layers, parameters = _watched(name)
    return NetworkCost(
        batch=batch,
        layers=tuple(
            replace(layer, multiply_adds=batch * layer.multiply_adds, precision=precision)
            for layer in layers
        ),
        weight_bytes=BYTES[precision] * parameters,
        input_bytes=4 * batch * 3 * 224 * 224,
        output_bytes=4 * batch * 1000,
    )


@cache
def _watched(name: str) -> tuple[list[LayerCost], int]:
    """The layers of one image, and how many weights a compiled network has.

    The module lives on torch's meta device, so that a large network costs nothing.
    """
    layers: list[LayerCost] = []
    scales: list[int] = []
    with torch.device("meta"):
        module = get(name).build()
        image = torch.zeros(1, 3, 224, 224)
    for path, child in module.named_modules():
        if isinstance(child, nn.Conv2d | nn.Linear):
            child.register_forward_hook(_watch(layers, path))
        elif isinstance(child, nn.BatchNorm2d):  # those of auxiliary classifiers are never run
            child.register_forward_hook(lambda norm, *_: scales.append(norm.num_features))
    with torch.no_grad():
        module(image)
    # The scale of a BatchNorm goes into the weights of the convolution before it.
    parameters = get(name).parameters
    assert parameters is not None
    return layers, parameters - sum(scales)


def _watch(
    layers: list[LayerCost], path: str
) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
    def record(child: nn.Module, given: tuple[torch.Tensor, ...], made: torch.Tensor) -> None:
        weight = child.weight
        assert isinstance(weight, torch.Tensor)
        dense = isinstance(child, nn.Conv2d) and child.stride == child.dilation == (1, 1)
        layers.append(
            LayerCost(
                name=path,
                kinds=(type(child).__name__,),
                precision=Precision.FP32,
                multiply_adds=made.numel() * weight[0].numel(),
                weight_bytes=0,
                input_bytes=0,
                output_bytes=0,
                winograd=dense and tuple(weight.shape[2:]) == (3, 3),
            )
        )

    return record
