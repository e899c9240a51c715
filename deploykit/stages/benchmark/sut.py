"""The system under test, in the words of MLPerf's load generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.specs import Array, Runner
    from deploykit.stages.benchmark.clock import Clock


@dataclass(frozen=True, slots=True)
class SystemUnderTest:
    """An open runner, the one batch that it is asked again and again, and the time it is in."""

    runner: Runner
    feeds: Mapping[str, Array]
    clock: Clock
