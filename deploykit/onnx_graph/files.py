"""Reading foreign ``.onnx`` files with suspicion, writing our own the same way every time."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes.common import ShapeInferencePass

from deploykit._version import __version__
from deploykit.artifacts import OnnxArtifact, sha256_of, sha256_of_bytes
from deploykit.errors import ModelFileError
from deploykit.onnx_graph.external import embed_external_data, messages_of
from deploykit.specs import Precision, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

PROTOBUF_LIMIT_BYTES = 2**31 - 1
"""A protobuf message cannot be longer; larger models would need external data."""

_PARENTS = "deploykit.parents"
_PRECISION = "deploykit.precision"


def read_model(path: Path) -> ir.Model:
    """Load and check an ``.onnx`` file; weights in files beside it are taken in.

    Raises:
        ModelFileError: missing, truncated, not ONNX, refused by ``onnx.checker``, or with
            external data that is damaged or lies outside the file's own folder.
    """
    proto = _read_proto(path)
    embed_external_data(proto, path)
    try:
        onnx.checker.check_model(str(path), full_check=True)
        model = ir.from_proto(proto)
    except Exception as exc:  # the checker raises errors of several unrelated classes
        raise ModelFileError(f"{path.name} is not a valid ONNX model\n{_first_line(exc)}") from exc
    imports = model.graph.opset_imports
    if "ai.onnx" in imports:  # the standard's two names for its own operators
        imports[""] = imports.pop("ai.onnx")
    return model


def read_artifact(path: Path) -> OnnxArtifact:
    """Describe a file on disk; precision and parents come from its own metadata.

    A file that deploykit did not write counts as FP32 unless it holds Q/DQ pairs or FP16 weights.

    Raises:
        ModelFileError: as `read_model`, or deploykit's own metadata were altered.
    """
    model = read_model(path)
    try:
        precision, parents = _precision_of(model), _parents_of(model)
    except ValueError as exc:
        raise ModelFileError(
            f"{path.name} has deploykit metadata that deploykit did not write\n{_first_line(exc)}"
        ) from exc
    return OnnxArtifact(
        path=path,
        sha256=sha256_of(path),
        precision=precision,
        opset=model.graph.opset_imports.get("", 0),
        inputs=tuple(_tensor_spec(value) for value in _true_inputs(model)),
        outputs=tuple(_tensor_spec(value) for value in model.graph.outputs),
        parents=parents,
    )


def write_model(
    model: ir.Model, path: Path, precision: Precision, parents: Sequence[str] = ()
) -> OnnxArtifact:
    """Check the graph and write it; the same graph always gives the same bytes.

    Names, types and weights are written, no other words: exporters put Python stack traces with
    local paths beside them, which are nobody else's business and differ between machines.

    Raises:
        ModelFileError: ``onnx.checker`` refuses the graph, or it does not fit in one file.
    """
    proto = ir.to_proto(model)
    _forget_origins(proto)
    proto.producer_name, proto.producer_version = "deploykit", __version__
    history = {_PRECISION: str(precision), _PARENTS: json.dumps(list(parents))}
    onnx.helper.set_model_props(proto, history)
    content = serialise(proto, path.name)
    try:
        onnx.checker.check_model(content, full_check=True)
    except Exception as exc:  # the checker raises errors of several unrelated classes
        raise ModelFileError(
            f"the graph for {path.name} is not valid ONNX\n{_first_line(exc)}"
        ) from exc
    path.write_bytes(content)
    return OnnxArtifact(
        path=path,
        sha256=sha256_of_bytes(content),
        precision=precision,
        opset=model.graph.opset_imports[""],
        inputs=tuple(_tensor_spec(value) for value in _true_inputs(model)),
        outputs=tuple(_tensor_spec(value) for value in model.graph.outputs),
        parents=tuple(parents),
    )


def expose_outputs(model: ir.Model) -> tuple[bytes, tuple[str, ...]]:
    """The graph with every FP32 value that a node computes as an output, and their names in order.

    Raises:
        ModelFileError: it does not fit in one file.
    """
    shown = model.clone()
    computed = [value for node in shown.graph for value in node.outputs]
    floats = [value for value in computed if value.dtype == ir.DataType.FLOAT]
    shown.graph.outputs.extend(value for value in floats if not value.is_graph_output())
    names = tuple(str(value.name) for value in floats)
    return serialise(ir.to_proto(shown), "the graph with its activations"), names


def _forget_origins(proto: onnx.ModelProto) -> None:
    proto.ClearField("domain")
    for message in messages_of(proto):
        for field in ("doc_string", "metadata_props"):
            if field in message.DESCRIPTOR.fields_by_name:
                message.ClearField(field)


def serialise(proto: onnx.ModelProto, what: str) -> bytes:
    """The bytes of a model, the same ones for the same model.

    Raises:
        ModelFileError: ``what`` does not fit in one file.
    """
    size = proto.ByteSize()
    if not 0 < size <= PROTOBUF_LIMIT_BYTES:
        raise ModelFileError(
            f"{what} would have {size / 2**30:.1f} GiB, a single ONNX file holds 2 GiB at most"
        )
    return bytes(proto.SerializeToString(deterministic=True))


def _read_proto(path: Path) -> onnx.ModelProto:
    try:
        # The format is given because onnx otherwise goes by the name's ending.
        proto = onnx.load(str(path), format="protobuf", load_external_data=False)
    except FileNotFoundError as exc:
        raise ModelFileError(f"there is no file {path}") from exc
    except OSError as exc:
        raise ModelFileError(f"cannot read {path}: {exc.strerror}") from exc
    except DecodeError as exc:
        raise ModelFileError(
            f"{path.name} is truncated or not an ONNX file ({path.stat().st_size:,} bytes)"
        ) from exc
    if not proto.graph.node or not proto.opset_import:
        raise ModelFileError(f"{path.name} holds no ONNX graph ({path.stat().st_size:,} bytes)")
    return proto


def _precision_of(model: ir.Model) -> Precision:
    recorded = model.metadata_props.get(_PRECISION)
    if recorded is not None:
        return Precision(recorded)
    if any(node.op_type == "QuantizeLinear" for node in model.graph.all_nodes()):
        return Precision.INT8
    weights = model.graph.initializers.values()
    half = any(value.dtype == ir.DataType.FLOAT16 for value in weights)
    return Precision.FP16 if half else Precision.FP32


def _parents_of(model: ir.Model) -> tuple[str, ...]:
    parents = json.loads(model.metadata_props.get(_PARENTS, "[]"))
    if not isinstance(parents, list):
        raise ValueError(f"{parents!r} is not a list of hashes")  # noqa: TRY004 - read_artifact's
    return tuple(str(parent) for parent in parents)


def _true_inputs(model: ir.Model) -> Iterable[ir.Value]:
    # Old exporters list the weights among the inputs.
    return (value for value in model.graph.inputs if value.name not in model.graph.initializers)


def _tensor_spec(value: ir.Value) -> TensorSpec:
    dims: list[int | str] = []
    for axis, dim in enumerate(value.shape or ()):
        open_name = f"{value.name}_{axis}"
        dims.append(dim if isinstance(dim, int) else str(dim.value or open_name))
    dtype = "unknown" if value.dtype is None else value.dtype.numpy().name
    return TensorSpec(str(value.name), dtype, tuple(dims))


def _first_line(exc: Exception) -> str:
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return lines[0] if lines else type(exc).__name__


def infer_shapes(model: ir.Model) -> None:
    """Fill in the types and shapes that are missing, in place."""
    ShapeInferencePass()(model)
