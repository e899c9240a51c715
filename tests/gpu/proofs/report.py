"""What one part of the proof finds.

It is written after each entry, so that a part that is stopped leaves what it had.
"""

from __future__ import annotations

import json
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from deploykit.core import environment
from deploykit.core.errors import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PASSED, FAILED, SKIPPED, MEASURED = "passed", "failed", "skipped", "measured"
STAND_IN = "nullcuda"
"""Begins the name of the GPU that a stand-in driver shows."""


class CannotRunError(Exception):
    """The part, or a piece of it, cannot run here; the message is the reason."""


class Report:
    """``quick`` asks for the smallest sizes; ``on_stand_in`` is true where no GPU computes."""

    def __init__(self, path: Path, *, quick: bool) -> None:
        self._path = path
        self.quick = quick
        self.on_stand_in = environment.gpus()[0].name.startswith(STAND_IN)
        self._entries: dict[str, dict[str, Any]] = {}

    def check(self, name: str, passed: bool, **figures: Any) -> None:
        self._write(name, status=PASSED if passed else FAILED, **figures)

    def time(self, name: str, passed: bool, **figures: Any) -> None:
        """As ``check`` for what is true of a GPU's clock: elsewhere the figures alone."""
        if self.on_stand_in:
            self.figure(name, **figures)
        else:
            self.check(name, passed, **figures)

    def figure(self, name: str, **figures: Any) -> None:
        self._write(name, status=MEASURED, **figures)

    @contextmanager
    def piece(self, name: str) -> Iterator[None]:
        """What cannot run or fails in here is entered under ``name``, and the part goes on."""
        try:
            yield
        except (CannotRunError, ModuleNotFoundError, MissingDependencyError) as error:
            self._write(name, status=SKIPPED, reason=str(error))
        except Exception as error:  # whatever it is, the rest is still worth knowing
            traceback.print_exc()
            said = f"{type(error).__name__}: {error}"
            self._write(name, status=FAILED, reason=said[:2000])

    def needs_gpu(self, what: str) -> None:
        """Raise `CannotRunError` on a stand-in driver, where ``what`` does not run."""
        if self.on_stand_in:
            raise CannotRunError(f"{what} does not run on a stand-in driver")

    def _write(self, name: str, **entry: Any) -> None:
        self._entries[name] = entry
        shown = " ".join(f"{key}={value}" for key, value in entry.items())
        print(f"{name}: {shown}", flush=True)  # noqa: T201 - the log of the part
        self._path.write_text(json.dumps(self._entries, indent=1))
