"""State dicts from files that need not be trusted, and whether they fit a network."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deploykit.core.artifacts import sha256_of, sha256_of_bytes
from deploykit.core.environment import require
from deploykit.core.errors import DataError, WeightsError
from deploykit.core.regular_files import read_regular_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

    from deploykit.core.specs import Preprocessing


IMAGENET: Final = "imagenet"
"""The word that, in place of a file, asks for the weights that a definition's source publishes."""

INDEX_SUFFIX: Final = ".json"
"""As in ``model.safetensors.index.json``."""


def shards_of(index: Path) -> tuple[Path, ...]:
    """The files that ``index`` lists in its ``weight_map``, which lie beside it.

    Raises:
        WeightsError: it is no such index, or names a file of another folder.
    """
    try:
        content = json.loads(read_regular_text(index))
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


def split_entry(text: str) -> tuple[Path, str | None]:
    """File and entry of ``FILE#ENTRY``; the entry is ``None`` where only a file is named.

    >>> split_entry("w.ckpt#model_ema")
    (PosixPath('w.ckpt'), 'model_ema')
    """
    file, mark, entry = text.rpartition("#")
    # A file may have the mark in its name.
    if not mark or Path(text).is_file():
        return Path(text), None
    return Path(file), entry


def require_weights_file(path: Path) -> Callable[[Path], Any]:
    """What reads the file at ``path``, which is not opened.

    Raises:
        WeightsError: it is not there, or of an unknown kind.
    """
    reader = _reader_of(path)
    if reader is None:
        meant = f"\ndid you mean: {IMAGENET}?" if get_close_matches(path.name, [IMAGENET]) else ""
        raise WeightsError(
            f"cannot read weights from {path.name}: unknown kind {path.suffix!r}{meant}\n"
            f"possible: {', '.join(_READERS)}"
        )
    if not path.is_file():
        raise WeightsError(f"no weights file {path}\ngive a file of {', '.join(_READERS)}")
    return reader


def read_state_dict(path: Path, entry: str | None = None) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, floating point ones as FP32.

    Nothing in the file is executed. A checkpoint with one state dict among other things is
    unwrapped; of several, as raw weights and their moving average, ``entry`` names the one that is
    wanted. The ``module.`` of ``nn.DataParallel`` is taken off.

    Raises:
        WeightsError: the file is missing, damaged or of another kind, it holds something else
            than tensors, a value that is not finite, or several state dicts and ``entry`` names
            none of them.
    """
    reader = require_weights_file(path)
    content = _unwrapped(reader(path), path, entry)
    state = _tensors(path, _without_counter(content) if isinstance(content, Mapping) else content)
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
    import torch

    from deploykit.core.npz import open_npz

    try:
        with open_npz(path) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except DataError as error:
        raise WeightsError(str(error)) from error
    # zipfile, zlib, numpy's header parser and torch each raise their own kinds on damaged bytes.
    except Exception as error:
        raise _unreadable(path, error) from error


def _read_pickle(path: Path) -> Any:
    import torch

    if is_torchscript(path):
        raise WeightsError(
            f"{path.name} is a TorchScript program of torch.jit.save, not a state dict\n"
            f"export it: {torchscript_to_onnx(path)}\n"
            "or take its weights: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')"
        )
    try:
        with torch.serialization.safe_globals(_plain_records()):
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
    ".ckpt": _read_pickle,
    ".pth.tar": _read_pickle,
    ".pt.tar": _read_pickle,
    INDEX_SUFFIX: _read_shards,
}


def _unreadable(path: Path, error: Exception) -> WeightsError:
    reason = str(error).partition("\n")[0]
    return WeightsError(
        f"cannot read {path.name} ({type(error).__name__}: {reason})\n"
        "it is damaged, incomplete or of another kind than its name says: fetch or save it again"
    )


def _reader_of(path: Path) -> Callable[[Path], Any] | None:
    name = path.name.lower()
    return next((read for suffix, read in _READERS.items() if name.endswith(suffix)), None)


def _plain_records() -> list[Any]:
    """Types that training scripts save beside the weights, and that do nothing when read.

    They are the options of the script and numpy's numbers, as the best accuracy.
    """
    import argparse

    import numpy as np
    from numpy._core.multiarray import scalar

    kinds = {type(np.dtype(name)) for name in ("f4", "f8", "i4", "i8", "?")}
    return [argparse.Namespace, scalar, np.dtype, *kinds]


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive that ``torch.jit.save`` wrote; nothing of it is run."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False
    return any(name.endswith("/constants.pkl") or "/code/" in name for name in names)


def torchscript_to_onnx(path: Path) -> str:
    """The call that makes an ``.onnx`` file of a TorchScript program, for a message."""
    return (
        f"torch.onnx.export(torch.jit.load({path.name!r}), (torch.zeros(1, 3, 224, 224),), "
        f"{path.stem + '.onnx'!r}, dynamo=False)"
    )


_TRAINING: Final = re.compile(r"optim|sched|scaler|callback|loop|hyper|args|config|loss|criterion")
"""Beginnings of entries that belong to the training, not to the network."""

_DEPTH: Final = 3
"""Deepest nesting of a state dict: ``ema.module`` has two levels."""

_SMALL_SHARE: Final = 4
"""A set with fewer than a quarter of the tensors of the largest one is no network."""


def _unwrapped(content: Any, path: Path, entry: str | None) -> Any:
    """The one state dict in ``content``, or what is there where none can be told from it."""
    states = _states(content) if isinstance(content, Mapping) else {}
    flat = {}
    if entry not in states and len(states) <= 1 and isinstance(content, Mapping):
        flat = _sets_by_prefix(_by_name(content), entry)
        states = flat or states
    if entry is not None:
        if entry in states:
            return states[entry]
        found = ", ".join(states)
        raise WeightsError(
            f"{path.name} has no weights under {entry!r}\n"
            + (f"possible: {found}" if found else "it holds one state dict: leave out the #")
        )
    counts = {name: _tensor_count(state) for name, state in states.items()}
    most = max(counts.values(), default=0)
    own = _tensor_count(content) if isinstance(content, Mapping) and not flat else 0
    if most <= own:
        # A state dict as it is, or nothing that looks like one, which is refused by its content.
        return _by_name(content)
    large = [name for name, count in counts.items() if count * _SMALL_SHARE >= most]
    if len(large) == 1:
        return states[large[0]]
    sets = ", ".join(f"{name} ({counts[name]} tensors)" for name in large)
    raise WeightsError(
        f"{path.name} holds several sets of weights: {sets}\n"
        f"say which: {' or '.join(f'--weights {path.name}#{name}' for name in large)}\n"
        "the moving average (EMA) is usually the one whose accuracy was reported"
    )


def _sets_by_prefix(state: Mapping[Any, Any], entry: str | None) -> dict[str, Any]:
    """Sets of one flat state dict: a network and its average, each behind a name of its own.

    Without ``entry`` they are sets only where an average has the names of another of them, as
    two branches of one network may have the same names too.
    """
    sets: dict[str, dict[str, Any]] = {}
    for name, value in state.items():
        first, mark, rest = str(name).partition(".")
        if mark:
            sets.setdefault(first, {})[rest] = value
    if entry is not None:
        return {entry: sets[entry]} if entry in sets else {}
    bare = {name: _bare_names(found) for name, found in sets.items()}
    averages = [name for name in sets if f"{name}." in _AVERAGES]
    twins = {
        each
        for name in averages
        for other in sets
        if other != name and bare[other] == bare[name]
        for each in (other, name)
    }
    return {name: found for name, found in sets.items() if name in twins}


def _bare_names(state: Mapping[str, Any]) -> set[str]:
    return set(without_prefixes(_without_counter(state))[-1])


def _by_name(content: Any) -> Any:
    if isinstance(content, Mapping):
        for key in ("state_dict", "model"):
            if isinstance(content.get(key), Mapping):
                return content[key]
    return content


def _states(content: Mapping[Any, Any], at: str = "", depth: int = 1) -> dict[str, Any]:
    """Mappings with tensors by the path of their keys, as ``ema.module``."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Mapping) and not _TRAINING.match(key):
            if _tensor_count(value):
                found[at + key] = value
            elif depth < _DEPTH:
                found |= _states(value, f"{at}{key}.", depth + 1)
    return found


def _tensor_count(content: Mapping[Any, Any]) -> int:
    import torch

    return sum(isinstance(value, torch.Tensor) for value in content.values())


_AVERAGES: Final = ("model_ema.", "ema_model.", "ema.", "averaged_model.", "swa_model.")
"""What training scripts put before the names of a moving average."""

_PREFIXES: Final = ("module.", "_orig_mod.", "model.", "net.", "backbone.", *_AVERAGES)
"""What DataParallel, torch.compile and training frameworks put before all names."""

_COUNTER: Final = "n_averaged"


def _without_counter(content: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Without how many sets went into an average, which torch's AveragedModel puts beside it.

    All other names are then behind ``module.``: a network's own buffer of that name stays.
    """
    for name in content:
        if not isinstance(name, str) or not name.endswith(_COUNTER):
            continue
        before = name.removesuffix(_COUNTER)
        others = {other: value for other, value in content.items() if other != name}
        if others and all(str(other).startswith(f"{before}module.") for other in others):
            return others
    return content


def without_prefixes(state: Mapping[str, Tensor]) -> list[Mapping[str, Tensor]]:
    """``state``, and what is left of it without the prefixes that all of its names share.

    Only the network tells which of them fits: it may have a submodule of such a name itself.
    """
    found = [state]
    while True:
        names = found[-1]
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in names)), None)
        if prefix is None or not names:
            return found
        found.append({name.removeprefix(prefix): tensor for name, tensor in names.items()})


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
        if finite < tensor.numel() and not is_additive_mask(tensor):
            raise WeightsError(
                f"{path.name}: {tensor.numel() - finite} of {tensor.numel()} values of {name} "
                "are NaN or infinite\n"
                "the training diverged or the file is damaged: take an earlier checkpoint"
            )


def is_additive_mask(tensor: Tensor) -> bool:
    """Whether it is of 0 and -infinity alone: what networks add to scores to leave some out."""
    zeros, infinities = (int((tensor == number).sum()) for number in (0.0, -inf))
    return zeros > 0 and infinities > 0 and zeros + infinities == tensor.numel()


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
