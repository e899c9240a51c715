"""State dicts from files that need not be trusted, and whether they fit a network.

Published files are taken from the cache of the library that publishes them, or downloaded once.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deploykit.core.artifacts import sha256_of, sha256_of_bytes
from deploykit.core.environment import require
from deploykit.core.errors import DataError, WeightsError
from deploykit.core.regular_files import read_regular_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

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
    reader = _reader_of(path)
    if reader is None:
        raise WeightsError(
            f"cannot read weights from {path.name}: unknown kind {path.suffix!r}\n"
            f"possible: {', '.join(_READERS)}"
        )
    if not path.is_file():
        raise WeightsError(f"no weights file {path}\ngive a file of {', '.join(_READERS)}")
    state = _tensors(path, _unwrapped(reader(path), path, entry))
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
    if most <= (_tensor_count(content) if isinstance(content, Mapping) else 0):
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


_PREFIXES: Final = ("module.", "_orig_mod.", "model.", "net.", "backbone.")
"""What DataParallel, torch.compile and training frameworks put before all names."""


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


TIMEOUT_S: Final = 10
"""Until the hub must have answered; its client alone would try six times."""

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_HASH_IN_NAME: Final = re.compile(r"-([0-9a-f]{8,})$")
"""torch.hub's rule: a file's name may end with the first digits of its hash."""


def torch_hub_file(url: str) -> tuple[Path, str]:
    """The file in torch's cache, and its SHA-256.

    Raises:
        WeightsError: it cannot be had, or is damaged.
    """
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    try:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), progress=False)
    except (OSError, HTTPException) as error:
        raise _unreachable(url, error) from error
    named = _HASH_IN_NAME.search(path.stem)
    return path, _checked(path, "torch's cache", named[1] if named else "")


def hugging_face_file(repository: str, names: Sequence[str]) -> tuple[Path, str]:
    """The first of ``names`` that the hub's cache or else the hub has, and its SHA-256.

    ``repository`` may end with ``@`` and a revision.

    Raises:
        WeightsError: it cannot be had, or is damaged.
        MissingDependencyError: huggingface_hub is not installed.
    """
    hub = require("huggingface_hub")
    place, _, revision = repository.partition("@")
    candidates = [(place, name, revision or None) for name in names]
    cached = (hub.try_to_load_from_cache(*one[:2], revision=one[2]) for one in candidates)
    found = next((Path(path) for path in cached if isinstance(path, str)), None)
    found = found or _downloaded(candidates)
    if found is None:
        raise WeightsError(
            f"{repository} of the Hugging Face hub has no {' or '.join(names)}\n"
            "give a file instead: --weights FILE"
        )
    # The cache's links point to files that are named after their hash.
    blob = found.readlink().name if found.is_symlink() else ""
    return found, _checked(found, "Hugging Face's cache", blob if _SHA256.fullmatch(blob) else "")


def _downloaded(candidates: Sequence[tuple[str, str, str | None]]) -> Path | None:
    """The first of the candidates that the hub has."""
    hub, errors = require("huggingface_hub"), require("huggingface_hub.errors")
    for place, name, revision in candidates:
        url = hub.hf_hub_url(place, name, revision=revision)
        try:
            # Without a network the download alone would try, and log, for half a minute.
            hub.get_hf_file_metadata(url, timeout=TIMEOUT_S)
            return Path(_download(hub, place, name, revision))
        except Exception as error:  # the hub's client lets its transport's errors through
            is_local = isinstance(error, errors.LocalEntryNotFoundError)
            if is_local or not isinstance(error, errors.EntryNotFoundError):
                raise _unreachable(url, error) from error
    return None


def _download(hub: Any, place: str, name: str, revision: str | None) -> str:
    shown = not hub.utils.are_progress_bars_disabled()
    hub.utils.disable_progress_bars()
    try:
        path: str = hub.hf_hub_download(place, name, revision=revision, etag_timeout=TIMEOUT_S)
    finally:
        if shown:
            hub.utils.enable_progress_bars()
    return path


def _unreachable(url: str, error: Exception) -> WeightsError:
    reason = next((line for line in str(error).splitlines() if line), type(error).__name__)
    return WeightsError(
        f"cannot download {url}: {reason}\nwithout a network give a file instead: --weights FILE"
    )


def _checked(path: Path, cache: str, expected: str) -> str:
    sha256 = sha256_of(path)
    if not sha256.startswith(expected):
        raise WeightsError(
            f"{path.name} in {cache} is damaged: its sha256 starts with {sha256[:8]}, not with "
            f"{expected[:8]}\n"
            f"delete {path.resolve()} and run again, it will be downloaded again"
        )
    return sha256
