"""Lines of a step that takes its time, without a terminal."""

from __future__ import annotations

import io
import sys
import time

import pytest

from deploykit.core import progress
from deploykit.core.progress import LineProgress, say_notes, watched_progress


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


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class OutStream(io.StringIO):
    """What a notebook puts in the place of standard error."""


OutStream.__module__ = "ipykernel.iostream"


@pytest.mark.parametrize("stream", [Terminal(), OutStream()])
def test_who_watches_sees_one_line_with_a_bar(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("deploykit.core.progress.time.perf_counter", lambda: now)
    monkeypatch.setattr(sys, "stderr", stream)
    with watched_progress().step("calibrate") as task:
        for now, done in ((100.5, 8), (101.5, 128), (101.6, 130), (103.0, 512)):  # noqa: B007
            task.update(done, 512, "a.jpg" if done == 128 else "")
        now = 104.0
    with watched_progress().step("look") as task:
        task.update(1, 2)
    shown = [line.rstrip() for line in stream.getvalue().split("\r")[1:]]
    assert shown == [
        "calibrate [######..................] 128 of 512, a.jpg, 2 s",
        "calibrate [########################] 512 of 512, 3 s",
        "calibrate: 4.0 s",
    ]
    # Each covers what was there before, and none is wider than a terminal.
    lengths = [len(line.rstrip("\n")) for line in stream.getvalue().split("\r")[1:]]
    assert lengths == sorted(lengths, reverse=True)
    assert stream.getvalue().endswith("\n")


@pytest.mark.usefixtures("_soon")
def test_a_step_that_never_says_how_far_it_is_has_its_name_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with watched_progress().step("export"):
        deadline = time.monotonic() + 30
        while not stream.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stream.getvalue() == "\rexport ..."
    assert stream.getvalue().startswith("\rexport ...\rexport: ")


def test_a_log_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(watched_progress(), LineProgress)


def test_a_closed_stream_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.close()
    for missing in (stream, None):
        monkeypatch.setattr(sys, "stderr", missing)
        say_notes(["odd"])
        assert isinstance(watched_progress(), LineProgress)


def test_notes(capsys: pytest.CaptureFixture[str]) -> None:
    say_notes(["one", "two"])
    assert capsys.readouterr().err == "note: one\nnote: two\n"
