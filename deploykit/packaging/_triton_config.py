"""``config.pbtxt`` of a model for Triton Inference Server, as text of its protobuf.

Fields and their meaning: ``model_config.proto`` of triton-inference-server/common, and Triton's
page "Model Configuration". The text is written here, because a base installation has no protobuf.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from deploykit.core.errors import BundleError
from deploykit.core.sizes import are_channels_last, filled

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from deploykit.core.sizes import ShapeProfile
    from deploykit.core.specs import TensorSpec

TENSORRT: Final = "tensorrt_plan"
ONNXRUNTIME: Final = "onnxruntime_onnx"

LABELS_FILE: Final = "labels.txt"
WARM_UP_FOLDER: Final = "warmup"
"""Where Triton looks for the files of `WarmUp`, in the folder of the model."""

_DATA_TYPES: Final[Mapping[str, str]] = {
    "bool": "TYPE_BOOL",
    **{f"uint{bits}": f"TYPE_UINT{bits}" for bits in (8, 16, 32, 64)},
    **{f"int{bits}": f"TYPE_INT{bits}" for bits in (8, 16, 32, 64)},
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
}
"""By the names that manifests have for element types, which are numpy's."""

QUEUE_DELAY_US: Final = 2000
"""How long an image waits for others at most: as long as `MicroBatcher` does by default."""
QUEUE_TIMEOUT_US: Final = 1_000_000
"""A request that has waited for a second is refused; a client may ask for another time."""
QUEUED_BATCHES: Final = 16
"""Full batches that may wait; what comes then is refused at once."""


@dataclass(frozen=True)
class WarmUp:
    """Requests that are run before a model counts as ready.

    ``dims`` are of one image where the model has batches, by input; ``files`` are the files in
    `WARM_UP_FOLDER` with as many values, and an input without one gets zeros.
    """

    dims: Mapping[str, tuple[int, ...]]
    files: Mapping[str, str]
    batches: tuple[int, ...]


@dataclass(frozen=True)
class ServedModel:
    """A model as Triton is told of it.

    ``profiles`` are those of every plan, by their place; a graph has one of its own.
    ``labels`` is the output whose values `LABELS_FILE` names.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[ShapeProfile, ...]
    warm_up: WarmUp
    labels: str | None = None

    @property
    def has_batches(self) -> bool:
        """Whether the first dimension of all tensors is an open batch, which Triton may fill."""
        tensors = (*self.inputs, *self.outputs)
        return all(each.shape and isinstance(each.shape[0], str) for each in tensors)

    @property
    def max_batch(self) -> int:
        """The largest batch that Triton may send; 0 where it must take tensors as they are."""
        return max(each.max_batch for each in self.profiles) if self.has_batches else 0

    @property
    def min_batch(self) -> int:
        """The smallest batch that a plan accepts."""
        return min(each.min_batch for each in self.profiles)

    @property
    def preferred(self) -> tuple[int, ...]:
        """Batches that the plans are tuned for."""
        return tuple(sorted({each.opt_batch for each in self.profiles}))


def config_text(
    model: ServedModel, platform: str, plans: Mapping[str, str], default_plan: str | None = None
) -> str:
    """The file for a model on ``platform``; ``plans`` are files by compute capability, as "8.9".

    ``default_plan`` is for GPUs that ``plans`` does not name.

    Raises:
        BundleError: Triton has no such element type.
    """
    is_plan = platform == TENSORRT
    parts: list[tuple[str, Any]] = [
        ("name", model.name),
        ("platform", platform),
        ("max_batch_size", model.max_batch),
        *(("input", _tensor(model, spec)) for spec in model.inputs),
        *(("output", _output(model, spec)) for spec in model.outputs),
        ("version_policy", {"latest": {"num_versions": 1}}),
    ]
    if is_plan:
        group = {"count": 1, "kind": _Word("KIND_GPU"), "profile": _profile_places(model)}
        parts += [("instance_group", group), ("optimization", {"cuda": {"graphs": True}})]
    if model.max_batch > 1:
        parts.append(("dynamic_batching", _dynamic_batching(model)))
    if default_plan is not None:
        parts.append(("default_model_filename", default_plan))
    parts += [
        ("cc_model_filenames", {"key": capability, "value": file})
        for capability, file in sorted(plans.items())
    ]
    parts += [("model_warmup", each) for each in _warm_ups(model)]
    return _text(parts)


def data_type(spec: TensorSpec) -> str:
    """Triton's name of a tensor's element type.

    Raises:
        BundleError: it has none.
    """
    if spec.dtype not in _DATA_TYPES:
        raise BundleError(
            f"{spec.name!r} holds {spec.dtype}, for which Triton has no type\n"
            f"possible: {', '.join(_DATA_TYPES)}"
        )
    return _DATA_TYPES[spec.dtype]


def shape_at(spec: TensorSpec, sizes: Mapping[int, int]) -> tuple[int, ...] | None:
    """The shape with ``sizes``, by axis of images (N, C, H, W); ``None``: one is not known."""
    if spec.dtype == "uint8" and are_channels_last(spec.shape):
        sizes = {axis - 1 if axis > 1 else axis: size for axis, size in sizes.items()}
    return filled(spec.shape, sizes)


class _Word(str):
    """A value of an enumeration, which has no quotes."""

    __slots__ = ()


def _tensor(model: ServedModel, spec: TensorSpec) -> dict[str, Any]:
    shape = spec.shape[1:] if model.has_batches else spec.shape
    dims = [size if isinstance(size, int) and size >= 0 else -1 for size in shape]
    found = {"name": spec.name, "data_type": _Word(data_type(spec))}
    if dims:
        return {**found, "dims": dims}
    # Triton has no tensors without dimensions: it takes one value, and the model none.
    return {**found, "dims": [1], "reshape": {"shape": []}}


def _output(model: ServedModel, spec: TensorSpec) -> dict[str, Any]:
    labels = {"label_filename": LABELS_FILE} if spec.name == model.labels else {}
    return {**_tensor(model, spec), **labels}


def _profile_places(model: ServedModel) -> list[str]:
    """All optimisation profiles: Triton takes the one that fits the shapes of a batch."""
    return [str(place) for place in range(len(model.profiles))]


def _dynamic_batching(model: ServedModel) -> dict[str, Any]:
    preferred = [each for each in model.preferred if each > 1]
    return {
        **({"preferred_batch_size": preferred} if preferred else {}),
        "max_queue_delay_microseconds": QUEUE_DELAY_US,
        "default_queue_policy": {
            "timeout_action": _Word("REJECT"),
            "default_timeout_microseconds": QUEUE_TIMEOUT_US,
            "allow_timeout_override": True,
            "max_queue_size": QUEUED_BATCHES * model.max_batch,
        },
    }


def _warm_ups(model: ServedModel) -> Iterable[dict[str, Any]]:
    for batch in model.warm_up.batches:
        inputs = [{"key": spec.name, "value": _warm_up_input(model, spec)} for spec in model.inputs]
        yield {"name": f"golden sample, batch {batch}", "batch_size": batch, "inputs": inputs}


def _warm_up_input(model: ServedModel, spec: TensorSpec) -> dict[str, Any]:
    file = model.warm_up.files.get(spec.name)
    data = {"zero_data": True} if file is None else {"input_data_file": file}
    dims = list(model.warm_up.dims[spec.name]) or [1]
    return {"data_type": _Word(data_type(spec)), "dims": dims, **data}


def _text(parts: Sequence[tuple[str, Any]], depth: int = 0) -> str:
    """Fields in protobuf's text format, a line each; a list of messages is a field for each."""
    indent = "  " * depth
    lines = []
    for name, value in parts:
        if isinstance(value, dict):
            inner = _text([*value.items()], depth + 1)
            lines.append(f"{indent}{name} {{\n{inner}{indent}}}\n")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines.append(_text([(name, each) for each in value], depth))
        else:
            lines.append(f"{indent}{name}: {_scalar(value)}\n")
    return "".join(lines)


def _scalar(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_scalar, value))}]"
    if isinstance(value, _Word):
        return str(value)
    if isinstance(value, bool):
        return str(value).lower()
    return _quoted(value) if isinstance(value, str) else str(value)


def _quoted(text: str) -> str:
    """A text in quotes; what is not ASCII as the octal escapes of its bytes."""
    if text.isascii() and text.isprintable():
        return json.dumps(text)
    return '"' + "".join(f"\\{byte:03o}" for byte in text.encode()) + '"'
