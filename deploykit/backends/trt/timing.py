"""Timing cache: how long each kernel took on a GPU, kept so that the next build times fewer."""

from __future__ import annotations

import hashlib
import logging
import re
from typing import TYPE_CHECKING, Any, Final

from deploykit.core.regular_files import open_regular

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from deploykit.backends._engines import Compiler
    from deploykit.backends.trt.compiler import Messages
    from deploykit.core.environment import Gpu

_log = logging.getLogger("deploykit")

TIMING_SUFFIX: Final = ".timing"

_MARK: Final = b"deploykit timing cache 1\n"
"""Begins the file; the sha256 of the rest follows, so that nothing damaged reaches the compiler."""

_DIGEST_BYTES: Final = 32


def timing_file(folder: Path, compiler: Compiler, gpu: Gpu) -> Path:
    """The file in ``folder`` for one version of a compiler and one kind of GPU."""
    kind = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
    capability = f"sm{gpu.compute_capability.replace('.', '')}"
    parts = [compiler.name, compiler.version, capability, kind]
    return folder / ("-".join(filter(None, parts)) + TIMING_SUFFIX)


class TimingCache:
    """The cache of one build, with what the file had; it lives until the engine is serialized.

    ``config`` is the build's ``IBuilderConfig``. A file that is damaged, of another version or of
    another GPU is passed over, and a warning of the log says so: the kernels are timed anew.
    """

    def __init__(self, config: Any, path: Path, messages: Messages) -> None:
        self._config = config
        self._path = path
        self._messages = messages
        self._loaded = _read(path)
        # The configuration keeps the plain address of its cache.
        self._cache: Any = self._attached(self._loaded) if self._loaded else None
        if self._cache is None:
            if self._loaded:
                _log.warning("%s is of another GPU or version: kernels are timed anew", path)
            self._loaded = b""
            self._cache = self._attached(b"")
        if self._cache is None:
            _log.warning("the compiler takes no timing cache: the next build begins anew")

    def save(self) -> None:
        """Write what the build added, and keep what another build wrote meanwhile."""
        blob = _bytes(self._cache)
        if not blob or blob == self._loaded:
            return
        from deploykit.core.atomic import exclusive, replace_file

        try:
            with exclusive(self._path):
                blob = self._with_others(blob)
                replace_file(self._path, _MARK + hashlib.sha256(blob).digest() + blob)
        except OSError as error:
            _log.warning("cannot write the timing cache %s: %s", self._path, error)

    def _with_others(self, blob: bytes) -> bytes:
        there = _read(self._path)
        if not there or there == self._loaded:
            return blob
        others, combine = self._created(there), self._cache.combine
        if others is None or not self._quietly(lambda: combine(others, ignore_mismatch=False)):
            return blob
        return _bytes(self._cache) or blob

    def _attached(self, blob: bytes) -> Any:
        """A cache of ``blob`` that the build uses; ``None`` where the compiler refuses it."""
        cache = self._created(blob)
        attach = self._config.set_timing_cache
        if cache is None or not self._quietly(lambda: attach(cache, ignore_mismatch=False)):
            return None
        return cache

    def _created(self, blob: bytes) -> Any:
        return self._quietly(lambda: self._config.create_timing_cache(blob))

    def _quietly(self, call: Callable[[], Any]) -> Any:
        """What ``call`` returns, ``None`` for an exception; what it says is no fault of the build.

        Otherwise its complaint would be given as the reason of a later failure.
        """
        errors, warnings = len(self._messages.errors), len(self._messages.warnings)
        try:
            return call()
        except (RuntimeError, TypeError, ValueError) as error:
            _log.info("timing cache: %s", error)
            return None
        finally:
            del self._messages.errors[errors:], self._messages.warnings[warnings:]


def _read(path: Path) -> bytes:
    """The content that was saved; nothing where there is none, or it is not as it was written."""
    try:
        with open_regular(path) as file:
            found = file.read()
    except FileNotFoundError:
        return b""
    except OSError as error:
        _log.warning("cannot read the timing cache %s: %s", path, error)
        return b""
    head = len(_MARK) + _DIGEST_BYTES
    blob = found[head:]
    if found[:head] != _MARK + hashlib.sha256(blob).digest():
        _log.warning("the timing cache %s is damaged: kernels are timed anew", path)
        return b""
    return blob


def _bytes(cache: Any) -> bytes:
    memory = None if cache is None else cache.serialize()
    return b"" if memory is None else bytes(memory)
