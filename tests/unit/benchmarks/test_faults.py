"""That the script which plants faults tells each outcome from the others, and that kinds run."""

from __future__ import annotations

import json
import random
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from benchmarks import faults
from benchmarks.faults import KINDS, run_here, table
from benchmarks.faults_bombs import bounded
from benchmarks.faults_files import honest, mutated, refused
from benchmarks.faults_judge import (
    PROBE,
    Answer,
    Row,
    add_engine,
    is_right,
    loaded,
    stopped_at,
    swap_in,
    two_kinds,
    whole,
)
from benchmarks.faults_service import (
    good_images,
    is_clean,
    png,
    show,
)
from deploykit.bundle.manifest import MODEL
from deploykit.core.errors import BundleError
from deploykit.images import pixels_of

if TYPE_CHECKING:
    from pathlib import Path

MEANS = PROBE.mean(axis=(2, 3))


def outcome(use: Any, judge: Any = honest, bound_s: float = 20) -> str:
    row = Row("a kind", bound_s)
    row.plant("a fault", use, judge)
    (found,) = row.counts
    return found


def failing(error: Exception) -> Any:
    def use() -> None:
        raise error

    return use


def test_outcomes_are_told_apart() -> None:
    assert outcome(lambda: MEANS) == "survived"
    assert outcome(lambda: MEANS + 0.01) == "lied"
    assert outcome(failing(BundleError("no"))) == "survived"
    assert outcome(failing(ValueError("a bug"))) == "traceback"
    assert outcome(lambda: time.sleep(9), bound_s=0.05) == "hung"
    assert outcome(lambda: "called good", refused) == "lied"
    assert outcome(failing(BundleError("no")), refused) == "survived"


def test_a_refusal_is_counted_and_a_problem_is_shown() -> None:
    row = Row("a kind", 20)
    row.plant("first", failing(BundleError("no")), refused)
    row.plant("second", lambda: 1, lambda code: "lied")
    row.plant("third", failing(KeyError("x")), refused)
    assert (row.tried, row.refused) == (3, 2)
    assert row.shown == ["lied: second: 1", "traceback: third: KeyError: 'x'"]
    cells = [cell.strip() for cell in table([row]).splitlines()[2].split("|")]
    assert cells[1:10] == ["a kind", "3", "1", "2", "0", "1", "1", "0", "0"]


def test_a_mixture_of_two_bundles_is_not_right(tmp_path: Path) -> None:
    kinds = two_kinds(tmp_path)
    for name, folder in kinds.items():
        found = loaded(folder)
        assert found.name == name
        assert is_right(found)
        assert not is_right(Answer(name, found.labels, -found.logits))
        assert not is_right(Answer("another", found.labels, found.logits))
    one, other = map(loaded, kinds.values())
    assert not is_right(Answer(one.name, other.labels, one.logits))


def test_a_bundle_that_is_gone_or_changed_is_lost(tmp_path: Path) -> None:
    one, other = two_kinds(tmp_path).values()
    assert whole(one) == "survived"
    content = bytearray((one / MODEL).read_bytes())
    content[-1] ^= 1
    (one / MODEL).write_bytes(content)
    assert whole(one) == "lost"
    (other / MODEL).unlink()
    assert whole(other) == "lost"
    assert whole(tmp_path / "nothing") == "lost"


@pytest.mark.parametrize("death", ["killed", "EIO"])
def test_a_writer_is_stopped_at_the_call_that_was_asked_for(tmp_path: Path, death: str) -> None:
    one, other = two_kinds(tmp_path).values()
    swap_in(one, tmp_path / "place")
    came = [
        stopped_at(turn, death, lambda: swap_in(other, tmp_path / "place"), 20)
        for turn in (1, 10_000)
    ]
    assert came == ["stopped", "done"]
    assert loaded(tmp_path / "place").name == "other-fp32"
    assert stopped_at(10_000, death, failing(ValueError("a bug")), 20) == "traceback"
    assert stopped_at(10_000, death, lambda: time.sleep(9), 0.05) == "hung"


def test_an_engine_is_added_as_a_build_adds_it(tmp_path: Path) -> None:
    place = two_kinds(tmp_path)["colours-fp32"]
    add_engine(place, b"new")
    assert [path.read_bytes() for path in place.glob("*.engine")] == [b"new"]
    assert whole(place) == "survived"


def test_values_are_replaced_in_plain_data() -> None:
    body = {"a": [1, {"b": 2}], "c": "d"}
    changed = [mutated(body, random.Random(at)) for at in range(30)]  # noqa: S311
    assert body == {"a": [1, {"b": 2}], "c": "d"}
    assert sum(each != body for each in changed) > 25


FEW = [
    "readers beside 200 swaps",
    "builds stopped",
    "a signed manifest",
    "calibration",
    "leave the",
]


@pytest.mark.parametrize("word", FEW)
def test_a_few_faults_of_a_kind_are_survived(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.faults_disk.DEATHS", ("EIO",))
    kind = next(kind for kind in KINDS if word in kind.name)
    row = run_here(kind, 1)
    assert row.tried > 0
    assert dict(row.counts) == {"survived": row.tried}, row.shown


def test_a_kind_that_crashes_is_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(faults.sys, "executable", "/bin/false")  # type: ignore[attr-defined]
    row = faults.run_apart(KINDS[0], 1)
    assert dict(row.counts) == {"traceback": 1}


def test_a_row_comes_back_from_its_process() -> None:
    row = Row("a kind", 20, shown=["lied: x"])
    row.add("survived", "x", 0.5)
    row.add("lied", "y")
    assert faults.row_of(json.loads(json.dumps(faults.plain_of(row)))) == row
    kind = next(kind for kind in KINDS if kind.name == "calibration tables")
    assert dict(faults.run_apart(kind, 3).counts) == {"survived": 3}


def test_a_command_is_bounded(tmp_path: Path) -> None:
    row = Row("bombs", 60)
    bounded(row, "nothing there", ("inspect", tmp_path / "no.onnx"), None)
    assert dict(row.counts) == {"survived": 1}, row.shown
    bounded(row, "help", ("--help",), 1)
    assert row.counts["lied"] == 1
    row.bound_s = 0.01
    bounded(row, "no time", ("--help",), 0)
    assert row.counts["hung"] == 1


# The service


def test_wrong_answers_of_the_service_are_told() -> None:
    (image,) = good_images(1)
    order = np.argsort(-image.logits)
    right = [f"{image.logits[at]:f}:{at}:{('red', 'green', 'blue')[at]}" for at in order]

    def problem(data: list[str]) -> str:
        return str(image.problem({"outputs": [{"name": "logits", "data": data}]}))

    assert problem(right) == "None"
    assert "classes" in problem(right[::-1])
    assert "right is" in problem(["0.1:" + right[0].partition(":")[2], *right[1:]])
    assert "right is" in problem([right[0] + "dish", *right[1:]])


def test_images_of_zeros_have_the_size_that_they_say() -> None:
    assert pixels_of(png(30, 20, colour=6, depth=8)) == 600


def test_a_run_is_clean_or_not() -> None:
    clean: dict[str, Any] = {
        "problems": [],
        "hostile": {"a stalled body: 408": 3},
        "good": {"right": 10},
        "latency_ms": {"p50": 2.0},
        "memory": {"is_bounded": True, "before_mib": 90, "peak_mib": 400, "bound_mib": 800},
        "health": "200",
        "alive": True,
        "sigterm_s": 0.5,
        "tracebacks": 0,
    }
    assert is_clean(clean)
    assert "| a stalled body: 408 | 3 |" in show(clean)
    for change in (
        {"good": {"right": 10, "wrong": 1}},
        {"problems": ["x"]},
        {"tracebacks": 1},
        {"health": "503"},
        {"sigterm_s": 40},
        {"memory": {**clean["memory"], "is_bounded": False}},
    ):
        assert not is_clean(clean | change)
