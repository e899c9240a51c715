"""A state dict in several files, and the index that lists them."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from deploykit.artifacts import sha256_of, sha256_of_bytes
from deploykit.errors import WeightsError

if TYPE_CHECKING:
    from pathlib import Path

INDEX_SUFFIX: Final = ".json"
"""As in ``model.safetensors.index.json``."""


def shards_of(index: Path) -> tuple[Path, ...]:
    """The files that ``index`` lists in its ``weight_map``, which lie beside it.

    Raises:
        WeightsError: it is no such index, or names a file of another folder.
    """
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _no_index(index, f"{type(error).__name__}: {error}") from error
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        raise _no_index(index, "it has no weight_map")
    names = sorted({str(name) for name in places.values()})
    # Names alone, and no other index: a file from elsewhere must not reach other folders, nor
    # lead back to itself.
    outside = [name for name in names if re.search(rf"[/\\]|{INDEX_SUFFIX}$", name)]
    if outside:
        raise _no_index(index, f"{outside[0]!r} is no file beside it")
    return tuple(index.parent / name for name in names)


def weights_sha256(path: Path) -> str:
    """Hex digest of a weights file; of an index, one over it and all files that it lists."""
    if path.suffix != INDEX_SUFFIX:
        return sha256_of(path)
    parts = [f"{sha256_of(part)}  {part.name}\n" for part in (path, *shards_of(path))]
    return sha256_of_bytes("".join(parts).encode())


def _no_index(index: Path, reason: str) -> WeightsError:
    return WeightsError(
        f"{index.name} is not the index of a sharded state dict: {reason}\n"
        "expected weight_map, names of tensors to names of the files beside it"
    )
