"""Summary of a network's layers, with the totals of torchsummary.

Counting rules, so that two tools can be compared to the digit: multiply-adds count convolutions
and matrix products without their bias; activation memory counts every layer's output once forward
and once backward, in FP32 (torchsummary's rule). All figures but the parameters are of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from deploykit.core.serialization import to_plain

_FP32_BYTES = 4
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """One layer; ``output_shape`` is of the whole batch, ``multiply_adds`` too."""

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class ModelSummary:
    """The layers of one model at one input shape, and what they add up to."""

    name: str
    input_shape: tuple[int, ...]
    layers: tuple[LayerInfo, ...]
    parameters: int

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one forward pass."""
        return sum(layer.multiply_adds for layer in self.layers)

    @property
    def input_mb(self) -> float:
        """Input in MiB, as FP32."""
        return prod(self.input_shape) * _FP32_BYTES / _MIB

    @property
    def forward_backward_mb(self) -> float:
        """Outputs of all layers in MiB, forward and backward, as FP32."""
        elements = sum(prod(layer.output_shape) for layer in self.layers)
        return 2 * elements * _FP32_BYTES / _MIB

    @property
    def parameters_mb(self) -> float:
        """Parameters in MiB, as FP32."""
        return self.parameters * _FP32_BYTES / _MIB

    @property
    def total_mb(self) -> float:
        """Input, activations and parameters in MiB."""
        return self.input_mb + self.forward_backward_mb + self.parameters_mb


def summary_to_plain(summary: ModelSummary) -> dict[str, Any]:
    """Plain data for ``--json``."""
    return {
        "name": summary.name,
        "input_shape": list(summary.input_shape),
        "parameters": summary.parameters,
        "multiply_adds": summary.multiply_adds,
        "input_mb": summary.input_mb,
        "forward_backward_mb": summary.forward_backward_mb,
        "parameters_mb": summary.parameters_mb,
        "total_mb": summary.total_mb,
        "layers": to_plain(summary.layers),
    }
