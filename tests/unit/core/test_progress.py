"""Lines of a step that takes its time, without a terminal."""

from __future__ import annotations

import io
import sys
import time

import pytest

from deploykit.core import progress
from deploykit.core.progress import LineProgress, say_notes


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SLOW_S", 0.05)


@pytest.mark.usefixtures("_soon")
def test_a_slow_step_has_a_line_while_it_runs_and_one_at_its_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with LineProgress().step("calibrate") as task:
        task.update(1, 2)
        deadline = time.monotonic() + 30
        said = ""
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
            said = capsys.readouterr().err
        assert said == "calibrate ...\n"
    assert capsys.readouterr().err.startswith("calibrate: ")


@pytest.mark.usefixtures("_soon")
def test_a_long_step_says_how_far_it_is_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("deploykit.core.progress.time.perf_counter", lambda: now)
    with LineProgress().step("calibrate") as task:
        for now, done in ((110.0, 8), (130.0, 64), (159.0, 90), (161.0, 100)):  # noqa: B007
            task.update(done, 512, "a.jpg" if done == 100 else "")
        now = 170.0
    lines = [line for line in capsys.readouterr().err.splitlines() if line != "calibrate ..."]
    assert lines == [
        "calibrate: 64 of 512, 30 s",
        "calibrate: 100 of 512, a.jpg, 61 s",
        "calibrate: 70.0 s",
    ]


def test_a_quick_step_says_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SLOW_S", 60.0)
    with LineProgress().step("look"):
        pass
    assert capsys.readouterr() == ("", "")


def test_a_closed_stream_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    say_notes(["odd"])


def test_notes(capsys: pytest.CaptureFixture[str]) -> None:
    say_notes(["one", "two"])
    assert capsys.readouterr().err == "note: one\nnote: two\n"
