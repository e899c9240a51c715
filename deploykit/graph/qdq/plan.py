"""The nouns of quantization: what may be quantized, and what will be."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import onnx_ir as ir

from deploykit.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

Choice = Literal["int8", "keep"]

CHOICES: Final = ("int8", "keep")
"""Values of ``first_layer``, ``last_layer`` and ``residual`` of a policy."""

TENSOR_CORE_DEPTH: Final = 16
"""An INT8 tensor core multiplies 16 values at a time: shorter sums leave it partly idle."""


@dataclass(frozen=True, slots=True)
class QdqFormat:
    """A type of eight bits that Q/DQ pairs round to, and its largest number."""

    name: str
    dtype: ir.DataType
    largest: float


INT8: Final = QdqFormat("INT8", ir.DataType.INT8, 127.0)
"""Even steps. The range is symmetric, without -128, so that each step has a negative."""

FP8: Final = QdqFormat("FP8", ir.DataType.FLOAT8E4M3FN, 448.0)
"""E4M3: four binary digits, in a range of 2^18 (Micikevicius et al., arXiv:2209.05433)."""


@dataclass(frozen=True)
class QdqPolicy:
    """The user's choice of layers and operands that stay out of eight bits.

    ``exclude`` are patterns of node names as of a shell (``layer4.*``); ``first_layer`` and
    ``last_layer`` say whether the layers without another one before or behind them are quantized,
    ``residual`` whether the skip operands of residual additions are;
    convolutions with fewer channels than ``min_channels`` on either side stay, but the first one,
    and matrix products with fewer than ``min_features`` rows or columns in their weight.
    ``sensitive`` names layers that a measurement found to make much of the noise, ``over_budget``
    those that a budget of accuracy leaves in another precision.
    """

    exclude: tuple[str, ...] = ()
    sensitive: tuple[str, ...] = ()
    over_budget: tuple[str, ...] = ()
    first_layer: Choice = "int8"
    last_layer: Choice = "int8"
    residual: Choice = "int8"
    min_channels: int = TENSOR_CORE_DEPTH
    min_features: int = TENSOR_CORE_DEPTH

    def __post_init__(self) -> None:
        for name in ("first_layer", "last_layer", "residual"):
            value = getattr(self, name)
            if value not in CHOICES:
                raise UsageError(f"{name}={value!r} is no policy\npossible: {', '.join(CHOICES)}")

    def pattern_of(self, name: str) -> str | None:
        """The first pattern that excludes a node of this name."""
        # fnmatchcase: fnmatch ignores case on some systems, names of nodes do not.
        return next((p for p in self.exclude if fnmatchcase(name, p)), None)

    def reason_against(self, name: str) -> str | None:
        """Why the node of this name is to stay out of eight bits; ``None`` where it is not."""
        pattern = self.pattern_of(name)
        if pattern is not None:
            return f"excluded by {pattern!r}"
        if name in self.sensitive:
            return "by itself it made a large part of the logits' noise"
        if name in self.over_budget:
            return "chosen so under the budget of --max-drop"
        return None


class Reader(NamedTuple):
    """One input of one node."""

    node: str
    position: int


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A weight that becomes eight bits wide, with one scale for each index of ``axis``."""

    node: str
    index: int
    tensor: str
    axis: int


@dataclass(frozen=True)
class QdqPlan:
    """The values that become ``format`` with their readers, and reasons for the other nodes.

    ``activations`` are in graph order. A reader that is not listed still reads the value as it
    was. The tensors of a group share one scale. ``kept`` has a reason for each node that could
    have been quantized. ``products`` are matrix products of two activations, ``known`` the largest
    magnitudes of values that need no measurement.
    """

    activations: Mapping[str, tuple[Reader, ...]]
    weights: tuple[QuantizedWeight, ...]
    groups: tuple[frozenset[str], ...] = ()
    kept: Mapping[str, str] = field(default_factory=dict)
    products: tuple[str, ...] = ()
    known: Mapping[str, float] = field(default_factory=dict)
    format: QdqFormat = INT8

    @property
    def tensors(self) -> tuple[str, ...]:
        """The values that must be calibrated."""
        return tuple(name for name in self.activations if name not in self.known)

    @property
    def layers(self) -> frozenset[str]:
        """The convolutions and matrix products that are quantized."""
        return frozenset((*(weight.node for weight in self.weights), *self.products))

    def group_of(self, tensor: str) -> frozenset[str]:
        """The tensors that share the scale of ``tensor``, itself among them."""
        found = (group for group in self.groups if tensor in group)
        return next(found, frozenset({tensor}))
