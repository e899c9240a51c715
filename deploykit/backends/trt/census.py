"""Counts which arithmetic of a parsed network runs in which precision.

Since TensorRT 11 nothing but the graph decides the precision, so the types of the parsed network
are the types of the engine. A convolution of a quantized graph still shows a floating-point type;
the compiler fuses it with the DEQUANTIZE layers before it and computes it in INT8.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from deploykit.core.precision import HEAVY_KINDS, OWN, PRECISIONS, Precision

if TYPE_CHECKING:
    from collections.abc import Mapping

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

# Integer layers compute shapes, not the model.
_MODEL_TYPES: Final = ("FLOAT", "HALF", "BF16", "INT8", "FP8")
# Layers between DEQUANTIZE and its user that move or rename values without computing any.
_MOVING_KINDS: Final = ("CAST", "IDENTITY", "SHUFFLE", "SQUEEZE", "UNSQUEEZE")


def take_census(network: Any) -> dict[str, int]:
    """Layers that do floating-point arithmetic, as ``{"CONVOLUTION HALF": 53}``, sorted.

    ``network`` is an ``INetworkDefinition`` after parsing. A layer of `HEAVY_KINDS` counts as INT8,
    or another quantized type, when both its data and its weights come out of DEQUANTIZE layers.
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
    counts = dict.fromkeys(OWN, 0)
    for key, count in census.items():
        kind, type_name = key.split()
        if kind in HEAVY_KINDS and type_name in PRECISIONS:
            counts[PRECISIONS[type_name]] += count
    return counts


def _type_of(layer: Any, producers: Mapping[str, Any]) -> str:
    if layer.type.name in HEAVY_KINDS:
        quantized = _quantized_type(layer, producers)
        if quantized is not None:
            return quantized
    return str(layer.get_input(0).dtype.name)


def _quantized_type(layer: Any, producers: Mapping[str, Any]) -> str | None:
    """The type that both data (input 0) and weights (input 1) are dequantized from.

    A convolution whose weights are a constant of its own has no input 1: it is not quantized.
    """
    if layer.num_inputs < 2:  # noqa: PLR2004
        return None
    data, weights = (_type_before(layer.get_input(index), producers) for index in (0, 1))
    return data if data == weights else None


def _type_before(tensor: Any, producers: Mapping[str, Any]) -> str | None:
    """The type that a value is dequantized from, ``None`` where it is not."""
    layer = producers.get(tensor.name)
    while layer is not None and layer.type.name in _MOVING_KINDS:
        tensor = layer.get_input(0)
        layer = producers.get(tensor.name)
    if layer is None or layer.type.name != "DEQUANTIZE":
        return None
    return str(layer.get_input(0).dtype.name)
