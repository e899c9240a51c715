"""Files of published weights: taken from the cache of the library that publishes them, or fetched.

Each is held against the hash that its place gives, where it gives one.
"""

from __future__ import annotations

import re
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deploykit.core.artifacts import sha256_of
from deploykit.core.environment import require
from deploykit.core.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Sequence

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
