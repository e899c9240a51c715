"""What TensorRT for RTX compiled for this GPU, kept in a file beside the engine.

An engine for RTX holds no kernels; they are compiled on the GPU when a context is made and when a
new shape comes. The cache spares that to the other contexts, and its file to the next process. It
is only ever a help: without it, with a damaged one or with another machine's, everything is
compiled anew.
"""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploykit.backends.trt import api

_log = logging.getLogger("deploykit")


class RuntimeCache:
    """The cache of a runtime's configuration, and the file that it comes from and goes to.

    Without a file it serves the contexts of this process only.
    """

    def __init__(self, config: api.RtxRuntimeConfig, path: Path | None) -> None:
        self._path = path
        self._cache = config.create_runtime_cache()
        self._loaded = b"" if path is None or self._cache is None else _load(self._cache, path)
        if self._cache is None or not config.set_runtime_cache(self._cache):
            _log.warning("the runtime takes no cache: kernels are compiled for each context")
            self._path = None

    def save(self) -> None:
        """Write the cache where it differs from the file that was read; whole, or not at all."""
        if self._path is None or self._cache is None:
            return
        memory = self._cache.serialize()
        blob = b"" if memory is None else bytes(memory)
        if not blob or blob == self._loaded:
            return
        try:
            _replace(self._path, blob)
        except OSError as error:
            _log.warning("cannot write the runtime cache %s: %s", self._path, error)


def _load(cache: api.RuntimeCache, path: Path) -> bytes:
    """What the cache took from the file; nothing where it has no use for it."""
    try:
        blob = path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        _log.warning("cannot read the runtime cache %s: %s", path, error)
        return b""
    if not blob or not cache.deserialize(blob):
        _log.info("%s is damaged or of another machine: kernels are compiled anew", path)
        return b""
    return blob


def _replace(path: Path, blob: bytes) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(blob)
        part.chmod(0o644)  # mkstemp's 0o600 would keep a service's own user out
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
