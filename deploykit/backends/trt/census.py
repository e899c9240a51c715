"""Counts which arithmetic of a parsed network runs in which precision.

Since TensorRT 11 nothing but the graph decides the precision, so the types of the parsed network
are the types of the engine. A convolution of a quantized graph still shows a floating-point type;
the compiler fuses it with the DEQUANTIZE layers before it and computes it in INT8.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from deploykit.core.precision import Precision

if TYPE_CHECKING:
    from collections.abc import Mapping

HEAVY_KINDS: Final = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM")
"""Layer kinds with nearly all multiplications; they decide the precision of an engine."""

LIGHT_KINDS: Final = (
    "ACTIVATION",
    "CUMULATIVE",
    "ELEMENTWISE",
    "LRN",
    "NORMALIZATION",
    "PARAMETRIC_RELU",
    "POOLING",
    "REDUCE",
    "RESIZE",
    "SCALE",
    "SOFTMAX",
    "UNARY",
)

PRECISIONS: Final[Mapping[str, Precision]] = {
    "FLOAT": Precision.FP32,
    "HALF": Precision.FP16,
    "INT8": Precision.INT8,
}
"""Precision for each type name of the compiler."""

# Integer layers compute shapes, not the model.
_MODEL_TYPES: Final = (*PRECISIONS, "BF16", "FP8")
# Layers between DEQUANTIZE and its user that move or rename values without computing any.
_MOVING_KINDS: Final = ("CAST", "IDENTITY", "SHUFFLE", "SQUEEZE", "UNSQUEEZE")


def take_census(network: Any) -> dict[str, int]:
    """Layers that do floating-point arithmetic, as ``{"CONVOLUTION HALF": 53}``, sorted.

    ``network`` is an ``INetworkDefinition`` after parsing. A layer of `HEAVY_KINDS` counts as INT8
    when both its data and its weights come out of DEQUANTIZE layers.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    producers = {
        layer.get_output(index).name: layer
        for layer in layers
        for index in range(layer.num_outputs)
    }
    counts: Counter[str] = Counter()
    for layer in layers:
        kind = layer.type.name
        if kind in HEAVY_KINDS or kind in LIGHT_KINDS:
            counts[f"{kind} {_type_of(layer, producers)}"] += 1
    return {key: counts[key] for key in sorted(counts) if key.split()[1] in _MODEL_TYPES}


def heavy_counts(census: Mapping[str, int]) -> dict[Precision, int]:
    """Layers of `HEAVY_KINDS` by precision, every precision present.

    >>> heavy_counts({"CONVOLUTION HALF": 53, "MATRIX_MULTIPLY FLOAT": 1, "POOLING HALF": 2})
    {<Precision.FP32: 'fp32'>: 1, <Precision.FP16: 'fp16'>: 53, <Precision.INT8: 'int8'>: 0}
    """
    counts = dict.fromkeys(Precision, 0)
    for key, count in census.items():
        kind, type_name = key.split()
        if kind in HEAVY_KINDS and type_name in PRECISIONS:
            counts[PRECISIONS[type_name]] += count
    return counts


def _type_of(layer: Any, producers: Mapping[str, Any]) -> str:
    if layer.type.name in HEAVY_KINDS and _is_int8(layer, producers):
        return "INT8"
    return str(layer.get_input(0).dtype.name)


def _is_int8(layer: Any, producers: Mapping[str, Any]) -> bool:
    """True if data (input 0) and weights (input 1) are dequantized INT8.

    A convolution whose weights are a constant of its own has no input 1: it is not quantized.
    """
    if layer.num_inputs < 2:  # noqa: PLR2004
        return False
    return all(_comes_from_int8(layer.get_input(index), producers) for index in (0, 1))


def _comes_from_int8(tensor: Any, producers: Mapping[str, Any]) -> bool:
    layer = producers.get(tensor.name)
    while layer is not None and layer.type.name in _MOVING_KINDS:
        tensor = layer.get_input(0)
        layer = producers.get(tensor.name)
    if layer is None or layer.type.name != "DEQUANTIZE":
        return False
    return bool(layer.get_input(0).dtype.name == "INT8")
