"""Layers of a compiled engine, as its inspector prints them, and those that only convert.

TensorRT 10 and TensorRT 11 print different keys for a tensor; both are read. An engine that was
built without details prints the names of its layers alone.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from deploykit.backends._engines import LayerConversion
from deploykit.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class LayerTensor:
    """A value between two layers; ``type_name`` as "FP16" and ``layout`` are empty if unknown."""

    name: str
    type_name: str
    layout: str


@dataclass(frozen=True, slots=True)
class EngineLayer:
    """A layer of an engine, in the order in which they run.

    ``kind`` is the inspector's: "CaskConvolution", "Reformat", "kgen". ``origin`` is why a
    reformat was put in. ``nodes`` are the nodes of the ONNX file that it was made from.
    """

    name: str
    kind: str = ""
    inputs: tuple[LayerTensor, ...] = ()
    outputs: tuple[LayerTensor, ...] = ()
    origin: str = ""
    nodes: tuple[str, ...] = ()


_TYPES: Final[Mapping[str, str]] = {
    "float": "FP32",
    "fp32": "FP32",
    "half": "FP16",
    "fp16": "FP16",
    "bfloat16": "BF16",
    "bf16": "BF16",
    "int8": "INT8",
    "fp8": "FP8",
    "float8": "FP8",
    "int4": "INT4",
    "fp4": "FP4",
    "uint8": "UINT8",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
}
_WORD: Final = re.compile(r"\w+")
# "Row major linear FP32 format (kLINEAR)" says the same layout as "Row major linear FP16".
_NOT_LAYOUT: Final = re.compile(r"\bformat\b|\(k\w+\)|N/A due to dynamic shapes", re.IGNORECASE)
_NODE: Final = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


def read_layers(text: str) -> tuple[EngineLayer, ...]:
    """The layers in the JSON of ``EngineInspector.get_engine_information``.

    Raises:
        DataError: it is not that.
    """
    try:
        # The separator of ONNX nodes is a control character, which some versions leave as it is.
        body = json.loads(text, strict=False)
        return tuple(map(_layer, body["Layers"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"the engine's inspector answers {text[:60]!r}\n"
            'expected JSON with "Layers" that have names, as TensorRT 10 and 11 print'
        ) from error


def _layer(given: Mapping[str, Any] | str) -> EngineLayer:
    if isinstance(given, str):
        return EngineLayer(given)
    return EngineLayer(
        name=given["Name"],
        kind=given.get("LayerType", ""),
        inputs=tuple(map(_tensor, given.get("Inputs", ()))),
        outputs=tuple(map(_tensor, given.get("Outputs", ()))),
        origin=given.get("Origin", ""),
        nodes=tuple(_NODE.findall(given.get("Metadata", ""))),
    )


def _tensor(given: Mapping[str, Any]) -> LayerTensor:
    """TensorRT 10 has "Format/Datatype", often the type alone; 11 has "Format" and "Datatype"."""
    layout = given.get("Format/Datatype", given.get("Format", ""))
    words = _WORD.findall(given.get("Datatype", given.get("DataType", ""))) + _WORD.findall(layout)
    named = [word for word in words if word.lower() in _TYPES]
    for word in named:
        layout = re.sub(rf"\b{word}\b", " ", layout)
    return LayerTensor(
        name=given["Name"],
        type_name=_TYPES[named[0].lower()] if named else "",
        layout=" ".join(_NOT_LAYOUT.sub(" ", layout).split()).rstrip(" .").lower(),
    )


_COPY: Final = re.compile(r"^Reformatting CopyNode for (Input|Output) Tensor \d+ to (.+)$")
_BORDER: Final = re.compile(r"^Reformatting CopyNode for Network (?:Input|Output) (.+)$")
_MAY_CONVERT: Final = (
    "Reformat",
    "Quantize",
    "Dequantize",
    "Cast",
    "Scale",
    "kgen",
    "PointWise",
)
"""Beginnings of kinds that may be nothing but a conversion. "NoOp" launches nothing."""

# Generated kernels have a short word for each operation in their names: "__myl_MoveCast_myl0_3".
_GENERATED: Final = re.compile(r"^__myl_((?:[A-Z][a-z]+)+)(?:_|$)")
_QUANTIZED: Final = ("INT8", "FP8", "INT4", "FP4")


def conversions_among(layers: Sequence[EngineLayer]) -> tuple[LayerConversion, ...]:
    """Those of the layers that compute nothing, each with the layer that it belongs to."""
    return tuple(_conversions(layers))


def _conversions(layers: Sequence[EngineLayer]) -> Iterator[LayerConversion]:
    makers = {tensor.name: layer for layer in layers for tensor in layer.outputs}
    users = {tensor.name: layer for layer in reversed(layers) for tensor in layer.inputs}
    for layer in layers:
        kind = _conversion_kind(layer)
        if not kind:
            continue
        neighbour, at_border = _neighbour(layer, makers, users)
        before, after = _change(layer)
        yield LayerConversion(kind, layer.name, neighbour, before, after, at_border)


def _conversion_kind(layer: EngineLayer) -> str:
    """Which of `CONVERSIONS` a layer is; empty for one that computes, or does nothing at all."""
    # Without a kind the name has to do.
    if layer.kind and not layer.kind.startswith(_MAY_CONVERT):
        return ""
    if _COPY.match(layer.name) or _BORDER.match(layer.name):
        return "reformat"
    if _is_qdq(layer):
        return _direction(layer)
    if layer.kind == "Cast" or _operations(layer) == {"Cast"}:
        return "cast"
    if layer.kind == "Reformat" or _operations(layer) in ({"Move"}, {"Move", "Cast"}):
        return "reformat"
    return ""


def _is_qdq(layer: EngineLayer) -> bool:
    """Whether all that it was made from are quantizations and their inverses."""
    if layer.origin == "QDQ" or layer.kind in ("Quantize", "Dequantize"):
        return True
    # A fused layer has the names of all its parts, with " + " between them.
    parts = layer.nodes or layer.name.split(" + ")
    return all("quantizelinear" in part.lower() for part in parts)


def _direction(layer: EngineLayer) -> str:
    before, after = _change(layer)
    if before in _QUANTIZED or after in _QUANTIZED:
        return "dequantize" if before in _QUANTIZED else "quantize"
    said = " ".join((layer.kind, layer.name, *layer.nodes)).lower()
    return "dequantize" if "dequantize" in said else "quantize"


def _operations(layer: EngineLayer) -> set[str]:
    found = _GENERATED.match(layer.name)
    return set(re.findall("[A-Z][a-z]+", found[1])) if found and layer.kind == "kgen" else set()


def _neighbour(
    layer: EngineLayer, makers: Mapping[str, EngineLayer], users: Mapping[str, EngineLayer]
) -> tuple[str, bool]:
    """The layer that it stands at, and whether the network begins or ends with it."""
    makes = [makers[tensor.name] for tensor in layer.inputs if tensor.name in makers]
    uses = [users[tensor.name] for tensor in layer.outputs if tensor.name in users]
    at_border = bool(layer.inputs) and (not makes or not uses)
    border, copied = _BORDER.match(layer.name), _COPY.match(layer.name)
    if border:
        return border[1], True
    if copied:
        return copied[2], at_border
    others = [*uses, *makes]
    return others[0].name if others else layer.name, at_border


def _change(layer: EngineLayer) -> tuple[str, str]:
    """Its types, or its layouts where the type stays; empty where they are not known."""
    if not layer.inputs or not layer.outputs:
        return "", ""
    before, after = layer.inputs[0], layer.outputs[0]
    if before.type_name != after.type_name:
        return before.type_name, after.type_name
    if before.layout != after.layout:
        return f"{before.type_name} {before.layout}".strip(), after.layout
    return "", ""
