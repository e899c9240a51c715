"""Cost of one pass through a network, as plain data; `deploykit.graph` counts it.

A multiply-add is two FLOP. Only convolutions and matrix products are counted: what is left out
takes time too, so that a limit drawn from these figures can only be too low, never too high.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from deploykit.core.precision import OWN, Precision

if TYPE_CHECKING:
    from collections.abc import Mapping

FLOP_PER_MULTIPLY_ADD: Final = 2


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One kernel of the compiled network, named after the first of the nodes fused into it.

    Bytes are of the whole batch, each tensor in the type that the kernel reads or writes it in.
    """

    name: str
    kinds: tuple[str, ...]
    """Operators that were fused, in order: ``("Conv", "Add", "Relu")``."""
    precision: Precision
    """Precision of the arithmetic."""
    multiply_adds: int
    weight_bytes: int
    input_bytes: int
    output_bytes: int
    winograd: bool
    """A dense-step 3x3 convolution, which Winograd's algorithm may compute."""
    nodes: tuple[str, ...] = ()
    """Names of the nodes that were fused, in the order of ``kinds``."""

    @property
    def flop(self) -> int:
        """Floating point (or integer) operations of the batch."""
        return FLOP_PER_MULTIPLY_ADD * self.multiply_adds


@dataclass(frozen=True)
class NetworkCost:
    """All kernels of one pass, and what must cross the memory bus in any case.

    ``weight_bytes`` counts a weight that several layers share once; ``input_bytes`` and
    ``output_bytes`` are those of the network, in the types that a caller binds.
    """

    batch: int
    layers: tuple[LayerCost, ...]
    weight_bytes: int
    input_bytes: int
    output_bytes: int

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the whole batch."""
        return sum(layer.multiply_adds for layer in self.layers)

    @property
    def flop(self) -> int:
        """Operations of the whole batch."""
        return FLOP_PER_MULTIPLY_ADD * self.multiply_adds

    @property
    def required_bytes(self) -> int:
        """Bytes of weights, input and output; activations in between may stay in a cache."""
        return self.weight_bytes + self.input_bytes + self.output_bytes

    @property
    def multiply_adds_in(self) -> Mapping[Precision, int]:
        """Multiply-adds by the precision they run in, those without any left out."""
        found = dict.fromkeys(OWN, 0)
        for layer in self.layers:
            found[layer.precision] = found.get(layer.precision, 0) + layer.multiply_adds
        return {precision: count for precision, count in found.items() if count}
