"""Census of a parsed network: its layers by kind and type, and the type that few GPUs have."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from deploykit.core.precision import HEAVY_KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping


_LEAST: Final[Mapping[str, tuple[int, int]]] = {"FP8": (8, 9), "BF16": (8, 0), "FP4": (10, 0)}
"""First compute capability with the arithmetic of a type, by NVIDIA's support matrix."""


def narrowest(network: Any) -> tuple[str, tuple[int, int]]:
    """The type of a parsed network's tensors that the newest GPUs alone have, and the first such.

    ``("", (0, 0))`` where every GPU has all of them.
    """
    layers = (network.get_layer(index) for index in range(network.num_layers))
    kinds = {
        str(layer.get_output(index).dtype.name)
        for layer in layers
        for index in range(layer.num_outputs)
    }
    kind = max(kinds & _LEAST.keys(), key=lambda kind: _LEAST[kind], default="")
    return kind, _LEAST.get(kind, (0, 0))


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
