"""The card of an ``.onnx``, in the file itself: its classes, preprocessing, head and version.

The entries are appended to a file that is written: protobuf joins repeated fields, so that no
weight is touched. Programs other than deploykit read them as ``metadata_props``: each value is
JSON, but for the version.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import onnx
from google.protobuf.message import DecodeError

from deploykit._version import __version__
from deploykit.core.artifacts import sha256_of
from deploykit.core.errors import ModelFileError
from deploykit.core.regular_files import require_regular
from deploykit.core.serialization import Source, from_plain, to_plain
from deploykit.core.sizes import is_any_images
from deploykit.core.specs import HeadRecord, Preprocessing
from deploykit.graph.external_weights import PROTOBUF_LIMIT_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from deploykit.core.artifacts import OnnxArtifact

VERSION: Final = "deploykit.version"
CLASSES: Final = "deploykit.classes"
PREPROCESSING: Final = "deploykit.preprocessing"
HEAD: Final = "deploykit.head"
BEFORE: Final = "deploykit.graph_sha256"
"""Of the same file without these entries: tables of ranges name the graph by it."""


@dataclass(frozen=True, slots=True)
class Card:
    """What a file says of itself; ``None`` is what it does not say."""

    preprocessing: Preprocessing | None = None
    head: HeadRecord | None = None
    classes: tuple[str, ...] | None = None
    version: str | None = None
    graph_sha256: str | None = None
    takes_images: bool = False
    """Whether an input of the file can be prepared images."""

    @property
    def knows_normalisation(self) -> bool:
        """Whether it says how pixels are normalised, or takes none that it could say it of.

        Whoever reads a file without images says what is wrong with it.
        """
        return self.preprocessing is not None or not self.takes_images


def add_card(artifact: OnnxArtifact, card: Card) -> OnnxArtifact:
    """Append the entries of ``card`` to a file; the artifact with its new hash.

    A file that would become larger than a message can be stays as it is.
    """
    entries = {VERSION: __version__, BEFORE: artifact.sha256}
    known = {CLASSES: card.classes, PREPROCESSING: card.preprocessing, HEAD: card.head}
    for key, value in known.items():
        if value is not None:
            entries[key] = json.dumps(to_plain(value), sort_keys=True)
    more = onnx.ModelProto()
    onnx.helper.set_model_props(more, entries)
    content = more.SerializeToString()
    if artifact.path.stat().st_size + len(content) > PROTOBUF_LIMIT_BYTES:
        return artifact
    with artifact.path.open("ab") as file:
        file.write(content)
    return replace(artifact, sha256=sha256_of(artifact.path))


def card_in(path: Path) -> Card:
    """What a file says of itself; nothing where it cannot be read, which is said elsewhere.

    Raises:
        ModelFileError: an entry is not as deploykit writes it.
    """
    try:
        require_regular(path)
        proto = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError, ModelFileError):
        return Card()
    card = card_of({each.key: each.value for each in proto.metadata_props}, path.name)
    return replace(card, takes_images=any(map(_is_images, proto.graph.input)))


def _is_images(value: onnx.ValueInfoProto) -> bool:
    tensor = value.type.tensor_type
    shape = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    return tensor.elem_type == onnx.TensorProto.FLOAT and is_any_images(shape)


def card_of(properties: Mapping[str, str], name: str) -> Card:
    """What the ``metadata_props`` of the file ``name`` say.

    Raises:
        ModelFileError: an entry is not as deploykit writes it.
    """
    source = Source(
        f"the metadata of {name}",
        ModelFileError,
        "deploykit wrote it otherwise: take the entry out, or export the file again",
    )
    classes = _read(tuple[str, ...], CLASSES, properties, source)
    return Card(
        _read(Preprocessing, PREPROCESSING, properties, source),
        _read(HeadRecord, HEAD, properties, source),
        classes or None,
        properties.get(VERSION),
        properties.get(BEFORE),
    )


def _read(kind: Any, key: str, properties: Mapping[str, str], source: Source) -> Any:
    if key not in properties:
        return None
    named = replace(source, name=f"{source.name}: {key}")
    try:
        data = json.loads(properties[key])
    except (ValueError, RecursionError) as exc:
        raise named.refusal("it is not JSON") from exc
    return from_plain(kind, data, named)
