"""Kernels of a network as arrays: what the model of a GPU's time reads of them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.core.precision import Precision

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from deploykit.costs.network import LayerCost, NetworkCost


class KernelKind(StrEnum):
    """What a kernel computes, as far as its efficiency depends on it."""

    POINT = "1x1"
    WINDOW = "k x k"
    GROUPED = "grouped"
    DEPTHWISE = "depthwise"
    GEMM = "GEMM"
    ATTENTION = "attention"
    POINTWISE = "pointwise"
    FREE = "free"


KINDS: Final = tuple(KernelKind)

_FREE: Final = frozenset({"Concat"})
"""The kernels before a concatenation write into its result."""

_MATRIX_OPS: Final = frozenset({"Gemm", "MatMul"})


def kind_of(layer: LayerCost) -> KernelKind:
    """The kind of a kernel, by its first operator and the sizes of its product."""
    product, head = layer.product, layer.kinds[0]
    if product is None:
        return KernelKind.FREE if head in _FREE else KernelKind.POINTWISE
    if head in _MATRIX_OPS:
        # Both operands of attention's products are activations.
        return KernelKind.GEMM if layer.weight_bytes else KernelKind.ATTENTION
    if product.groups > 1:
        return KernelKind.DEPTHWISE if product.channels == 1 else KernelKind.GROUPED
    return KernelKind.POINT if product.window == 1 else KernelKind.WINDOW


@dataclass(frozen=True)
class Kernels:
    """A row per kernel, (kernels,): sizes of the product, bytes of the whole batch.

    ``kind`` is the place in `KINDS`; ``bits`` the width of an operand; a kernel without a product
    has ``rows`` 0.
    """

    kind: NDArray[np.int64]
    bits: NDArray[np.int64]
    rows: NDArray[np.float64]
    columns: NDArray[np.float64]
    channels: NDArray[np.float64]
    window: NDArray[np.float64]
    groups: NDArray[np.float64]
    winograd: NDArray[np.bool_]
    weight_bytes: NDArray[np.float64]
    activation_bytes: NDArray[np.float64]

    @classmethod
    def of(cls, layers: Iterable[LayerCost]) -> Kernels:
        """The kernels ``layers``, in their order."""
        columns: list[Sequence[Any]] = list(zip(*map(_row, layers), strict=True))
        given = columns or [()] * len(fields(cls))
        types = (np.int64, np.int64, *[np.float64] * 5, np.bool_, np.float64, np.float64)
        return cls(*(np.array(each, dtype) for each, dtype in zip(given, types, strict=True)))


def _row(layer: LayerCost) -> tuple[Any, ...]:
    product = layer.product
    sizes = (
        (0, 0, 0, 0, 0)
        if product is None
        else (product.rows, product.columns, product.channels, product.window, product.groups)
    )
    return (
        KINDS.index(kind_of(layer)),
        layer.precision.facts.operand_bits,
        *sizes,
        layer.winograd,
        layer.weight_bytes,
        layer.input_bytes + layer.output_bytes,
    )


_SIXTEEN_BITS: Final = frozenset({"Softmax", "LayerNormalization", "InstanceNormalization"})
"""Operators that compilers leave in FP16 where the rest of the network has eight bits."""


def in_precision(cost: NetworkCost, wanted: Precision) -> NetworkCost:
    """An FP32 network as an engine has it in another precision, every operand in its width.

    With eight bits attention and normalisations are FP16, as in the published engines. Input and
    output of the network stay what a caller binds.
    """
    layers = tuple(layer_in(layer, _of_layer(layer, wanted)) for layer in cost.layers)
    weights = cost.weight_bytes * wanted.facts.operand_bits // _FP32_BITS
    return replace(cost, layers=layers, weight_bytes=weights)


def _of_layer(layer: LayerCost, wanted: Precision) -> Precision:
    high = kind_of(layer) is KernelKind.ATTENTION or not _SIXTEEN_BITS.isdisjoint(layer.kinds)
    return Precision.FP16 if high and wanted.facts.quantized else wanted


_FP32_BITS: Final = 32


def layer_in(layer: LayerCost, wanted: Precision) -> LayerCost:
    """An FP32 kernel as it would be in another format, with all its operands in it."""
    bits = wanted.facts.operand_bits
    return replace(
        layer,
        precision=wanted,
        weight_bytes=layer.weight_bytes * bits // _FP32_BITS,
        input_bytes=layer.input_bytes * bits // _FP32_BITS,
        output_bytes=layer.output_bytes * bits // _FP32_BITS,
    )


def for_batch(cost: NetworkCost, batch: int) -> NetworkCost:
    """The cost of one image's pass for ``batch`` images: all but the weights grows with it."""
    layers = tuple(_layer_for(layer, batch) for layer in cost.layers)
    return replace(
        cost,
        batch=batch,
        layers=layers,
        input_bytes=cost.input_bytes * batch,
        output_bytes=cost.output_bytes * batch,
        activation_bytes=cost.activation_bytes * batch,
    )


def _layer_for(layer: LayerCost, batch: int) -> LayerCost:
    product = layer.product
    if product is not None and kind_of(layer) is KernelKind.ATTENTION:
        product = replace(product, groups=product.groups * batch)
    elif product is not None:
        product = replace(product, rows=product.rows * batch)
    return replace(
        layer,
        multiply_adds=layer.multiply_adds * batch,
        input_bytes=layer.input_bytes * batch,
        output_bytes=layer.output_bytes * batch,
        product=product,
    )
