"""Reading foreign ``.onnx`` files with suspicion, writing our own the same way every time.

What a file declares is settled here: inputs and outputs, their order, the precision by its types.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from onnx_ir.passes.common import ShapeInferencePass

from deploykit._version import __version__
from deploykit.core.artifacts import WEIGHTS_SUFFIX, OnnxArtifact, sha256_of, sha256_of_bytes
from deploykit.core.errors import ModelFileError, first_line
from deploykit.core.precision import Precision
from deploykit.core.regular_files import require_regular, require_utf8
from deploykit.core.specs import TensorSpec
from deploykit.graph.editing import Names, add_constant, all_names
from deploykit.graph.element_types import declared_precision, has_bf16
from deploykit.graph.external_weights import (
    MAPPED_BYTES,
    PROTOBUF_LIMIT_BYTES,
    attach,
    length_of,
    messages_of,
    path_with,
    pieces_of,
    serialise,
    take_out,
    weights_of,
    without_weights,
    write_weights,
)
from deploykit.graph.foreign import (
    lacks_shape,
    mend,
    redeclare,
    remember,
    replace_withdrawn,
)
from deploykit.graph.shapes import require_bounded

if TYPE_CHECKING:
    from collections.abc import Sequence


def first_look(path: Path) -> None:
    """Refuse a file by its inputs and outputs, before it is read as a graph.

    Raises:
        ModelFileError: a map, a sequence, an optional value or strings are among them.
    """
    try:
        # Without the weights: they say nothing of the inputs, and may be gigabytes.
        require_regular(path)
        proto = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError):
        return  # whoever reads it next says what is wrong with it
    require_tensors(proto, path.name)


def require_tensors(proto: onnx.ModelProto, name: str) -> None:
    """Refuse a model that takes or returns something else than tensors of numbers.

    Raises:
        ModelFileError: a map, a sequence, an optional value, strings.
    """
    for verb, values in (("takes", proto.graph.input), ("returns", proto.graph.output)):
        odd = [f"{value.name} ({_kind(value.type)})" for value in values if _kind(value.type)]
        if odd:
            raise ModelFileError(
                f"{name} {verb} {', '.join(odd)}\n"
                "expected numbers: images (batch, 3, H, W) in, outputs (batch, ...) out\n"
                "export the network alone, without what comes before and after it"
            )


def _kind(kind: onnx.TypeProto) -> str:
    """Kind of a value in words; empty for a tensor of numbers."""
    found = kind.WhichOneof("value") or "untyped"
    if found != "tensor_type":
        return found.removesuffix("_type")
    return "strings" if kind.tensor_type.elem_type == onnx.TensorProto.STRING else ""


def put_image_first(model: ir.Model, name: str) -> None:
    """Make ``name`` the first of the inputs; the others keep their order. In place."""
    inputs = model.graph.inputs
    at = next(index for index, value in enumerate(inputs) if value.name == name)
    inputs.insert(0, inputs.pop(at))


def put_first(
    model: ir.Model, name: str, *, flatten: bool, batch_axis: int = 0, single: bool = False
) -> None:
    """Make ``name`` the first of the outputs; the others keep their order. In place.

    With ``flatten`` its dimensions of 1 are dropped: (N, K, 1, 1) and (N, 1, K) become (N, K).
    With a ``batch_axis`` that axis and the first change places: (T, N, K) becomes (N, T, K).
    A ``single`` one gets an axis for the batch, of one image: (K,) becomes (1, K).
    """
    outputs = model.graph.outputs
    at = next(index for index, value in enumerate(outputs) if value.name == name)
    chosen = outputs.pop(at)
    if single:
        chosen = _with_batch(model.graph, chosen)
    if batch_axis:
        chosen = _transposed(model.graph, chosen, batch_axis)
    outputs.insert(0, _flattened(model.graph, chosen) if flatten else chosen)


def _with_batch(graph: ir.Graph, value: ir.Value) -> ir.Value:
    dims = None if value.shape is None else [1, *value.shape]
    if graph.opset_imports.get("", 0) < _AXES_ARE_INPUTS:
        return _followed(graph, [value], "Unsqueeze", dims, axes=[0])
    axes = add_constant(graph, all_names(graph).fresh(f"{value.name}_axes"), np.array([0]))
    return _followed(graph, [value, axes], "Unsqueeze", dims)


_AXES_ARE_INPUTS: Final = 13
"""The opset from which Unsqueeze takes its axes as an input."""


def _flattened(graph: ir.Graph, value: ir.Value) -> ir.Value:
    dims = None
    if value.shape is not None:
        numbers = [size for size in value.shape[1:] if size != 1]
        dims = [value.shape[0], numbers[0] if numbers else 1]
    return _followed(graph, [value], "Flatten", dims)


def _transposed(graph: ir.Graph, value: ir.Value, axis: int) -> ir.Value:
    dims = list(value.shape or ())
    order = list(range(len(dims)))
    order[0], order[axis] = axis, 0
    return _followed(graph, [value], "Transpose", [dims[at] for at in order], perm=order)


def _followed(
    graph: ir.Graph, inputs: list[ir.Value], op_type: str, dims: Any, **attributes: list[int]
) -> ir.Value:
    """``op_type`` behind the first of ``inputs``, whose name goes to the result, of ``dims``."""
    value = inputs[0]
    name = str(value.name)
    taken, nodes = all_names(graph), Names(str(node.name) for node in graph)
    value.name = taken.fresh(f"{name}_before_{op_type.lower()}")
    shape = None if dims is None else ir.Shape(dims)
    result = ir.Value(name=name, type=value.type, shape=shape)
    made = [ir.AttrInt64s(key, given) for key, given in attributes.items()]
    called = nodes.fresh(f"{name}/{op_type}")
    graph.append(ir.Node("", op_type, inputs, made, outputs=[result], name=called))
    return result


CHECKED_WHOLE_BYTES: Final = 2**26
"""Largest file that ``onnx.checker`` gets with its weights, of which it makes several copies."""

_PARENTS = "deploykit.parents"
_PRECISION = "deploykit.precision"
_WEIGHTS = "deploykit.weights_sha256"


def read_model(path: Path, *, mapped_bytes: int = MAPPED_BYTES) -> ir.Model:
    """Load and check an ``.onnx`` file; weights in files beside it are taken in.

    Where those have more than ``mapped_bytes`` together, they are mapped into memory, not copied.

    Raises:
        ModelFileError: missing, truncated, not ONNX, refused by ``onnx.checker``, or with
            external data that is damaged or lies outside the file's own folder.
    """
    return _read(path, mapped_bytes)[0]


def _read(path: Path, mapped_bytes: int) -> tuple[ir.Model, tuple[Path, ...]]:
    """Read the model, and list the files beside it that hold its weights."""
    require_utf8(path)
    proto = _read_proto(path)
    _require_text(proto, path.name)
    try:
        replaced = replace_withdrawn(proto, path.name)
        _require_bounded(proto, path.name)
        mended = mend(proto, path.name).behind(replaced)
        arrays, files = take_out(proto, path, mapped_bytes)
        # The checker follows no links, which the cache of Hugging Face consists of.
        is_linked = any(file.resolve() != file for file in files) or (files and path.is_symlink())
        # A message gives memory back only as a whole.
        proto = onnx.ModelProto.FromString(proto.SerializeToString())
        mended = mended.noted(redeclare(proto, path.name))
        is_large = path.stat().st_size > CHECKED_WHOLE_BYTES
        as_it_lies = not mended.changed and not is_linked
        if as_it_lies and not is_large:
            onnx.checker.check_model(str(path), full_check=True)
        model = ir.from_proto(proto)
        attach(model, arrays)
        if is_large or not as_it_lies:
            _check_read(model, path if as_it_lies else None)
    except ModelFileError:
        raise
    # The checker raises errors of several unrelated classes; text that is no UTF-8 comes as bytes.
    except Exception as exc:
        raise ModelFileError(f"{path.name} is not a valid ONNX model\n{first_line(exc)}") from exc
    remember(model, mended)
    imports = model.graph.opset_imports
    if "ai.onnx" in imports:  # the standard's two names for its own operators
        imports[""] = imports.pop("ai.onnx")
    return model, files


def _require_bounded(proto: onnx.ModelProto, name: str) -> None:
    if not proto.graph.input:
        return
    try:
        model = ir.from_proto(proto)
        model.graph.sort()
    except Exception:  # what is not valid gets its message when it is checked
        return
    require_bounded(model, name)


def _require_text(proto: onnx.ModelProto, name: str) -> None:
    """Refuse names that are no UTF-8: protobuf hands them out as bytes, which nothing expects."""
    waiting: list[Message] = [proto]
    while waiting:
        for field, value in waiting.pop().ListFields():
            values = [value] if isinstance(value, str | bytes | Message) else value
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                waiting.extend(values)
            elif field.type == FieldDescriptor.TYPE_STRING:
                broken = next((each for each in values if isinstance(each, bytes)), None)
                if broken is not None:
                    raise ModelFileError(
                        f"{name} has {broken!r:.60} as its {field.name}, which is no UTF-8\n"
                        "export it again"
                    )


def _check_read(model: ir.Model, path: Path | None) -> None:
    """Check a graph that was read, without its weights; ``path`` has the same."""
    try:
        _check_as_read(model)
    except Exception:
        if path is not None:  # in the words that a small file gets
            onnx.checker.check_model(str(path), full_check=True)
        raise


def _check_as_read(model: ir.Model) -> None:
    """Check a graph without its weights: one that the checker would not take as it lies, or large.

    Raises:
        Exception: what the checker raises; ValueError for a weight of another size than its shape.
    """
    for weight in weights_of(model).values():
        if isinstance(weight, ir.TensorProtoTensor):
            weight.numpy()  # the others got their shape from their numbers when they were read
    proto = without_weights(model, "weights")
    for value in proto.graph.output:
        if lacks_shape(value.type):
            # The checker insists on a shape; of one that nobody knows it compares nothing.
            value.type.tensor_type.shape.SetInParent()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.onnx").write_bytes(serialise(proto, "the graph"))
        with (Path(folder) / "weights").open("wb") as file:
            # A file of that length and without content: the checker looks at no number.
            file.truncate(length_of(weights_of(model)))
        onnx.checker.check_model(str(Path(folder) / "model.onnx"), full_check=True)


def read_artifact(path: Path) -> OnnxArtifact:
    """Describe a file on disk; precision and parents come from its own metadata.

    A file that deploykit did not write counts as FP32 unless it holds Q/DQ pairs or FP16 weights.
    The hash covers the weights beside it too. Of a link whose weights lie beside what it leads to,
    the description has the path of that.

    Raises:
        ModelFileError: as `read_model`, deploykit's own metadata were altered, or the weights
            beside the file are not those that it was written with.
    """
    return read_described(path)[0]


def read_described(path: Path) -> tuple[OnnxArtifact, ir.Model]:
    """As `read_artifact`, with the model that was read for it.

    Raises:
        ModelFileError: as `read_artifact`.
    """
    model, files = _read(path, MAPPED_BYTES)
    try:
        precision, parents = _recorded_precision(model), _parents_of(model)
    except ValueError as exc:
        raise ModelFileError(
            f"{path.name} has deploykit metadata that deploykit did not write\n{first_line(exc)}"
        ) from exc
    digest, place = _digest_of(path, model, files), path_with(files, path)
    return _artifact(model, place, digest, precision, parents), model


def write_model(
    model: ir.Model,
    path: Path,
    precision: Precision,
    parents: Sequence[str] = (),
    *,
    limit: int = PROTOBUF_LIMIT_BYTES,
) -> OnnxArtifact:
    """Check the graph and write it; the same graph always gives the same bytes.

    Only names, types and weights are written: exporters add Python stack traces with local paths,
    which are private and differ between machines.

    A model of more than ``limit`` bytes is written in two files: the weights are in ``path`` with
    ``.data`` after it. The first has the hash of the second within, so its own hash covers both.

    Raises:
        ModelFileError: ``onnx.checker`` refuses the graph, or it is too large without its weights.
    """
    history = {_PRECISION: str(precision), _PARENTS: json.dumps(list(parents))}
    beside = path.with_name(path.name + WEIGHTS_SUFFIX)
    # Described before it is measured: the metadata count towards the limit too.
    apart = _described(without_weights(model, beside.name), history)
    size = apart.ByteSize() + sum(weight.nbytes for weight in weights_of(model).values())
    if size > limit:
        sha256 = _write_two_files(model, apart, path, history, limit)
    else:
        if size > CHECKED_WHOLE_BYTES:
            sha256 = _write_in_pieces(model, apart, path)
        else:
            sha256 = _write_one_file(model, path, history, limit)
        beside.unlink(missing_ok=True)  # of a larger model that was here before
    return _artifact(model, path, sha256, precision, parents)


def _artifact(
    model: ir.Model, path: Path, sha256: str, precision: Precision, parents: Sequence[str]
) -> OnnxArtifact:
    # Old exporters list the weights among the inputs.
    inputs = (each for each in model.graph.inputs if each.name not in model.graph.initializers)
    return OnnxArtifact(
        path=path,
        sha256=sha256,
        precision=precision,
        opset=model.graph.opset_imports.get("", 0),
        inputs=tuple(map(_tensor_spec, inputs)),
        outputs=tuple(map(_tensor_spec, model.graph.outputs)),
        parents=tuple(parents),
        has_bf16=has_bf16(model) and precision is not Precision.BF16,
    )


def _write_one_file(model: ir.Model, path: Path, history: dict[str, str], limit: int) -> str:
    content = serialise(_described(ir.to_proto(model), history), path.name, limit)
    _check(content, path)
    path.write_bytes(content)
    return sha256_of_bytes(content)


def _write_in_pieces(model: ir.Model, apart: onnx.ModelProto, path: Path) -> str:
    """Check and write a large model without a copy of its weights."""
    _check(model, path)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in pieces_of(apart, weights_of(model)):
            file.write(piece)
            digest.update(piece)
    return digest.hexdigest()


def _write_two_files(
    model: ir.Model, apart: onnx.ModelProto, path: Path, history: dict[str, str], limit: int
) -> str:
    """Write to a new folder, check and move: ``model`` may be mapped from the files there now."""
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        fresh = Path(folder) / path.name
        beside = fresh.with_name(fresh.name + WEIGHTS_SUFFIX)
        history = history | {_WEIGHTS: write_weights(beside, weights_of(model))}
        content = serialise(_described(apart, history), path.name, limit)
        fresh.write_bytes(content)
        _check(str(fresh), path)
        # The .onnx file holds the hash of its weights, so that a swap that ends halfway is noticed.
        beside.replace(path.with_name(beside.name))
        fresh.replace(path)
    return sha256_of_bytes(content)


def _described(proto: onnx.ModelProto, history: dict[str, str]) -> onnx.ModelProto:
    _forget_origins(proto)
    proto.producer_name, proto.producer_version = "deploykit", __version__
    onnx.helper.set_model_props(proto, history)
    return proto


def _check(content: bytes | str | ir.Model, path: Path) -> None:
    """Check a message, a file given by its path, or a large model with ``onnx.checker``."""
    try:
        if isinstance(content, ir.Model):
            _check_as_read(content)
        else:
            # full_check infers shapes too, which shows operands that do not go together.
            onnx.checker.check_model(content, full_check=True)
    except Exception as exc:  # the checker raises errors of several unrelated classes
        raise ModelFileError(
            f"the graph for {path.name} is not valid ONNX\n{first_line(exc)}"
        ) from exc


def _forget_origins(proto: onnx.ModelProto) -> None:
    proto.ClearField("domain")
    for message in messages_of(proto):
        for field in ("doc_string", "metadata_props"):
            if field in message.DESCRIPTOR.fields_by_name:
                message.ClearField(field)


def _read_proto(path: Path) -> onnx.ModelProto:
    try:
        require_regular(path)
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


def _recorded_precision(model: ir.Model) -> Precision:
    recorded = model.metadata_props.get(_PRECISION)
    return declared_precision(model) if recorded is None else Precision(recorded)


def _parents_of(model: ir.Model) -> tuple[str, ...]:
    parents = json.loads(model.metadata_props.get(_PARENTS, "[]"))
    if not isinstance(parents, list):
        raise ValueError(f"{parents!r} is not a list of hashes")  # noqa: TRY004 - read_artifact's
    return tuple(str(parent) for parent in parents)


def _digest_of(path: Path, model: ir.Model, files: tuple[Path, ...]) -> str:
    """The hash of a model with its external weights; deploykit's own file has theirs inside."""
    own = sha256_of(path)
    digests = {file: sha256_of(file) for file in files}
    recorded = model.metadata_props.get(_WEIGHTS)
    if not files or list(digests.values()) == [recorded]:
        return own
    if recorded is None:  # a stranger's file says nothing of what lies beside it
        return sha256_of_bytes("\n".join((own, *digests.values())).encode())
    raise ModelFileError(
        f"{path.name} was written with other weights than {files[0].name} holds\n"
        f"their sha256 was {recorded}\ncopy both files again"
    )


def _tensor_spec(value: ir.Value) -> TensorSpec:
    dims: list[int | str] = []
    for axis, dim in enumerate(value.shape or ()):
        # An open dimension without a name gets one, which no other dimension shares.
        open_name = f"{value.name}_{axis}"
        dims.append(dim if isinstance(dim, int) else str(dim.value or open_name))
    dtype = "unknown" if value.dtype is None else value.dtype.numpy().name
    return TensorSpec(str(value.name), dtype, tuple(dims))


def infer_shapes(model: ir.Model) -> None:
    """Fill in the types and shapes that are missing, in place."""
    ShapeInferencePass()(model)
