"""State dicts from files that need not be trusted, and whether they fit a network."""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from deploykit.core.artifacts import sha256_of, sha256_of_bytes
from deploykit.core.environment import require
from deploykit.core.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from torch import Tensor

    from deploykit.core.specs import Preprocessing


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


SHOWN: Final = 5
"""Names of each kind that a message lists before it stops."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, floating point ones as FP32.

    Nothing in the file is executed. Checkpoints that hold the state dict under ``state_dict`` or
    ``model`` are unwrapped, and the ``module.`` of ``nn.DataParallel`` is taken off.

    Raises:
        WeightsError: the file is missing, damaged or of another kind, it holds something else
            than tensors, or a value that is not finite.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise WeightsError(
            f"cannot read weights from {path.name}: unknown kind {path.suffix!r}\n"
            f"possible: {', '.join(_READERS)}"
        )
    if not path.is_file():
        raise WeightsError(f"no weights file {path}\ngive a file of {', '.join(_READERS)}")
    state = _tensors(path, _unwrapped(reader(path)))
    _check_finite(path, state)
    return state


def misfits(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """What keeps ``found`` from being loaded where ``expected`` is; empty when it fits.

    ``num_batches_tracked`` may be missing: torch counts with it while it trains, and older files
    do not have it.
    """
    missing = [name for name in expected if name not in found and not _is_counter(name)]
    unexpected = [name for name in found if name not in expected]
    reshaped = [
        f"{name} {_form(found[name])} for {_form(expected[name])}"
        for name in expected
        if name in found and _form(found[name]) != _form(expected[name])
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    return [f"{len(some)} {kind}: {_first(some)}" for kind, some in kinds.items() if some]


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    require("safetensors.torch")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: Mapping[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    return tensors


def _read_npz(path: Path) -> Mapping[str, Tensor]:
    import numpy as np
    import torch

    try:
        # numpy would leave the file open when it cannot read it.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    # A damaged archive, an array of Python objects or text, or a plain array in the file.
    except (OSError, ValueError, TypeError, EOFError, AttributeError) as error:
        raise _unreadable(path, error) from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise _unreadable(path, error) from error


def _read_pickle(path: Path) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    # A damaged pickle can raise anything at all.
    except Exception as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is None:
            raise _unreadable(path, error) from error
        raise WeightsError(
            f"{path.name} is refused: besides tensors it wants {wanted[1]}, which could run code\n"
            "save the state dict alone: torch.save(model.state_dict(), FILE)"
        ) from error


def _read_shards(path: Path) -> Mapping[str, Tensor]:
    parts = [read_state_dict(part) for part in shards_of(path)]
    return {name: tensor for part in parts for name, tensor in part.items()}


_READERS: Final[Mapping[str, Callable[[Path], Any]]] = {
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".pth": _read_pickle,
    ".pt": _read_pickle,
    ".th": _read_pickle,
    ".bin": _read_pickle,
    INDEX_SUFFIX: _read_shards,
}


def _unreadable(path: Path, error: Exception) -> WeightsError:
    reason = str(error).partition("\n")[0]
    return WeightsError(
        f"cannot read {path.name} ({type(error).__name__}: {reason})\n"
        "it is damaged, incomplete or of another kind than its name says: fetch or save it again"
    )


def _unwrapped(content: Any) -> Any:
    if isinstance(content, Mapping):
        for key in ("state_dict", "model"):
            if isinstance(content.get(key), Mapping):
                return content[key]
    return content


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    import torch

    if not isinstance(content, Mapping) or not content:
        kind = type(content).__name__
        raise WeightsError(
            f"{path.name} holds {'an empty' if content == {} else 'a'} {kind}, not a state dict\n"
            "expected tensors by name, as model.state_dict() returns them"
        )
    others = [str(name) for name, value in content.items() if not _is_plain(name, value)]
    if others:
        raise WeightsError(
            f"{path.name}: {len(others)} of {len(content)} entries are not dense tensors: "
            f"{_first(others)}\n"
            "expected tensors by name, as model.state_dict() returns them"
        )
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    return {
        name.removeprefix(prefix): tensor.to(torch.float32)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in content.items()
    }


def _is_plain(name: object, value: object) -> bool:
    import torch

    return (
        isinstance(name, str)
        and isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and not value.is_quantized
    )


def _check_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    for name, tensor in state.items():
        finite = int(tensor.isfinite().sum())
        if finite < tensor.numel():
            raise WeightsError(
                f"{path.name}: {tensor.numel() - finite} of {tensor.numel()} values of {name} "
                "are NaN or infinite\n"
                "the training diverged or the file is damaged: take an earlier checkpoint"
            )


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _form(tensor: Tensor) -> str:
    """Shape, and the type where it is not a floating point one."""
    shape = str(tuple(tensor.shape))
    if tensor.is_floating_point():
        return shape
    return f"{str(tensor.dtype).removeprefix('torch.')} {shape}"


def _first(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:SHOWN]) + (", ..." if len(shown) > SHOWN else "")


@dataclass(frozen=True)
class WeightsRecord:
    """Where weights come from, for the manifest; it holds no folder of the machine.

    ``sha256`` is that of the file; ``trained`` is ``None`` where nobody can tell, as for a module
    that a user's factory made. ``labels`` and ``preprocessing`` come with the weights where
    they know better than the network's spec; ``None``: the spec's hold.
    """

    source: str
    sha256: str | None
    trained: bool | None
    labels: tuple[str, ...] | None
    preprocessing: Preprocessing | None = None
