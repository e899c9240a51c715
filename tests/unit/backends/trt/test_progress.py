from __future__ import annotations

import pytest

from deploykit.backends.trt.builder import BuildMonitor, progress_monitor
from tests.fakes.tensorrt_fake import FakeTensorrt, Script


class Recorder:
    def __init__(self, error: BaseException | None = None) -> None:
        self.updates: list[tuple[float, float | None, str]] = []
        self._error = error

    def update(self, done: float, total: float | None = None, detail: str = "") -> None:
        self.updates.append((done, total, detail))
        if self._error is not None:
            raise self._error


def test_nested_phases_become_one_share() -> None:
    task = Recorder()
    monitor = BuildMonitor(task)
    monitor.phase_start("build", None, 4)
    assert monitor.step_complete("build", 0)
    monitor.phase_start("optimise", "build", 2)
    assert monitor.step_complete("optimise", 0)
    assert monitor.step_complete("optimise", 1)
    monitor.phase_finish("optimise")
    assert monitor.step_complete("build", 1)
    monitor.phase_finish("build")
    shares = [(round(done, 3), detail) for done, _, detail in task.updates]
    assert shares == [
        (0.0, "build"),
        (0.25, "build"),
        (0.25, "optimise"),
        (0.375, "optimise"),
        (0.5, "optimise"),
        (0.5, "build"),
        (1.0, "build"),
    ]
    assert {total for _, total, _ in task.updates} == {1.0}


def test_a_second_top_level_phase_starts_again() -> None:
    task = Recorder()
    monitor = BuildMonitor(task)
    for name in ("first", "second"):
        monitor.phase_start(name, None, 2)
        monitor.phase_finish(name)
    assert [done for done, _, _ in task.updates] == [0.0, 1.0, 0.0, 1.0]


def test_unknown_phases_and_no_task_do_no_harm() -> None:
    monitor = BuildMonitor(None)
    assert monitor.step_complete("never started", 3)
    monitor.phase_finish("never started")
    monitor.phase_start("no steps", "unknown parent", 0)
    assert monitor.failure is None


def test_stop_ends_the_build_at_the_next_step() -> None:
    monitor = BuildMonitor(None)
    monitor.phase_start("build", None, 4)
    assert monitor.step_complete("build", 0)
    monitor.stop()
    assert not monitor.step_complete("build", 1)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("display gone"), SystemExit(3)])
def test_no_exception_leaves_a_callback(error: BaseException) -> None:
    monitor = BuildMonitor(Recorder(error))
    callbacks = progress_monitor(monitor, FakeTensorrt(Script()))
    callbacks.phase_start("build", None, 4)
    assert callbacks.step_complete("build", 0) is False
    callbacks.phase_finish("build")
    assert monitor.failure is error


def test_the_monitor_is_of_the_modules_own_kind() -> None:
    module = FakeTensorrt(Script())
    assert isinstance(progress_monitor(BuildMonitor(None), module), module.IProgressMonitor)
