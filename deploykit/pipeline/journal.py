"""What happened during a run of several stages: how long each took, and what a user must know."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploykit.specs import Progress, ProgressTask


@dataclass(frozen=True, slots=True)
class StageTime:
    """Wall time of one stage."""

    name: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {"name": self.name, "seconds": round(self.seconds, 3)}


@dataclass
class Journal:
    """Times each stage, shows its progress, and collects notes for the user."""

    progress: Progress
    times: list[StageTime] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[ProgressTask]:
        """Show and time the block as stage ``name``; a failed stage is not recorded."""
        with self.timed(name), self.progress.step(name) as task:
            yield task

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Time a block that shows its progress itself."""
        start = time.perf_counter()
        yield
        self.times.append(StageTime(name, time.perf_counter() - start))
