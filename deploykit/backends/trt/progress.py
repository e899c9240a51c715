"""A compiler's nested phases as one bar, and the way to stop it half-way.

The compiler calls back from C++, sometimes from threads of its own. No Python exception may pass
through there: it would be swallowed, or end the process. So it is kept and raised afterwards.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploykit.specs import ProgressTask


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class BuildMonitor:
    """Follows the phases of one build; ``failure`` is the first exception of the display.

    ``task`` is told a share between 0 and 1 that never goes back within a top-level phase.
    """

    def __init__(self, task: ProgressTask | None) -> None:
        self.failure: BaseException | None = None
        self._task = task
        self._stopped = False
        self._phases: dict[str, _Phase] = {}
        self._shown = 0.0

    def stop(self) -> None:
        """Ask the compiler to give up at its next step."""
        self._stopped = True

    def phase_start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of ``steps`` steps begins, inside ``parent`` or on its own."""
        with self._contained():
            self._phases[name] = _Phase(parent, max(1, steps))
            if parent is None:
                self._shown = 0.0
            self._show(name)

    def phase_finish(self, name: str) -> None:
        """A phase ends, perhaps before its last step."""
        with self._contained():
            phase = self._phases.pop(name, None)
            if phase is not None and phase.parent is None and not self._stopped:
                self._update(1.0, name)

    def step_complete(self, name: str, step: int) -> bool:
        """A step, counted from 0, is done; ``False`` tells the compiler to stop."""
        with self._contained():
            if name in self._phases:
                self._phases[name].done = step + 1
            self._show(name)
        return not self._stopped

    def _show(self, name: str) -> None:
        roots = [key for key, phase in self._phases.items() if phase.parent not in self._phases]
        self._shown = max([self._shown, *(self._share(root) for root in roots)])
        self._update(self._shown, name)

    def _update(self, share: float, name: str) -> None:
        if self._task is not None:
            self._task.update(share, 1.0, name)

    def _share(self, name: str) -> float:
        """Finished steps of a phase, and within the current one the share of its inner phases."""
        phase = self._phases[name]
        inner = [self._share(key) for key, other in self._phases.items() if other.parent == name]
        return min(1.0, (phase.done + max(inner, default=0.0)) / phase.steps)

    @contextmanager
    def _contained(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.failure = self.failure or error
            self.stop()


def progress_monitor(monitor: BuildMonitor, module: Any) -> Any:
    """An ``IProgressMonitor`` of ``module`` that reports to ``monitor``."""

    def phase_start(_self: Any, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        monitor.phase_start(phase_name, parent_phase, num_steps)

    def phase_finish(_self: Any, phase_name: str) -> None:
        monitor.phase_finish(phase_name)

    def step_complete(_self: Any, phase_name: str, step: int) -> bool:
        return monitor.step_complete(phase_name, step)

    methods = {
        "phase_start": phase_start,
        "phase_finish": phase_finish,
        "step_complete": step_complete,
    }
    return type("BuildProgressMonitor", (module.IProgressMonitor,), methods)()
