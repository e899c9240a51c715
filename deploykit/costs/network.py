"""Cost of one pass through a network, as plain data, and its summary by layers.

A multiply-add is two FLOP. Only convolutions and matrix products are counted: what is left out
takes time too, so that a limit drawn from these figures can only be too low, never too high.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Final

from deploykit.core.html_tables import html_table
from deploykit.core.precision import OWN, Precision
from deploykit.core.serialization import to_plain

if TYPE_CHECKING:
    from collections.abc import Mapping


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
    notes: tuple[str, ...] = ()
    """What of the file was read otherwise than it is written."""
    engine: NetworkCost | None = None
    """What an engine of a converted graph holds; an FP32 graph is counted as in training."""

    def _repr_html_(self) -> str:
        """The layers and their sums, as notebooks show them."""
        columns = ("layer", "kind", "output", "parameters", "multiply-adds")
        rows = [
            (
                layer.name,
                layer.kind,
                "x".join(map(str, layer.output_shape)),
                f"{layer.parameters:,}",
                f"{layer.multiply_adds:,}",
            )
            for layer in self.layers
        ]
        rows.append(("all", "", "", f"{self.parameters:,}", f"{self.multiply_adds:,}"))
        shape = "x".join(map(str, self.input_shape))
        title = f"{self.name}, input {shape}, {self.total_mb:.1f} MiB"
        return html_table(columns, rows, title=title, right=columns[3:], notes=self.notes)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one forward pass."""
        return sum(layer.multiply_adds for layer in self.layers)

    @property
    def input_mb(self) -> float:
        """Input in MiB; as FP32, or in the type that an engine takes."""
        if self.engine is not None:
            return self.engine.input_bytes / _MIB
        return prod(self.input_shape) * _FP32_BYTES / _MIB

    @property
    def forward_backward_mb(self) -> float:
        """Outputs of all layers in MiB, forward and backward, as FP32.

        Of an engine the results that it holds at one time: it has no backward pass.
        """
        if self.engine is not None:
            return self.engine.activation_bytes / _MIB
        elements = sum(prod(layer.output_shape) for layer in self.layers)
        return 2 * elements * _FP32_BYTES / _MIB

    @property
    def parameters_mb(self) -> float:
        """Parameters in MiB; as FP32, or in the types that an engine stores."""
        if self.engine is not None:
            return self.engine.weight_bytes / _MIB
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
        "memory_of": "training in FP32" if summary.engine is None else "an engine",
        "layers": to_plain(summary.layers),
        "notes": list(summary.notes),
    }


FLOP_PER_MULTIPLY_ADD: Final = 2


@dataclass(frozen=True, slots=True)
class Product:
    """A convolution or matrix product as ``groups`` products (rows, inner) by (inner, columns).

    ``rows`` are the output positions of the whole batch, ``inner`` is ``channels`` x ``window``:
    input channels of a group, and places of the kernel, 9 for 3x3.

    >>> Product(rows=56 * 56, columns=64, channels=64, window=9, groups=1).multiply_adds
    115605504
    """

    rows: int
    columns: int
    channels: int
    window: int
    groups: int

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of all groups."""
        return self.rows * self.columns * self.channels * self.window * self.groups


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
    product: Product | None = None
    """Sizes of the convolution or matrix product that it begins with; ``None`` without one."""

    @property
    def flop(self) -> int:
        """Floating point (or integer) operations of the batch."""
        return FLOP_PER_MULTIPLY_ADD * self.multiply_adds


@dataclass(frozen=True)
class NetworkCost:
    """All kernels of one pass, and what must cross the memory bus in any case.

    ``weight_bytes`` counts a weight that several layers share once; ``input_bytes`` and
    ``output_bytes`` are those of the network, in the types that a caller binds.
    ``activation_bytes`` are the most that results of kernels take at one time, each only as long
    as it is read; a compiler may keep more.
    """

    batch: int
    layers: tuple[LayerCost, ...]
    weight_bytes: int
    input_bytes: int
    output_bytes: int
    activation_bytes: int = 0

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
