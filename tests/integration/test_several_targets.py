"""`deploykit export A B C`: one bundle each, and one that fails stops no other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from deploykit.core.errors import BuildError, DeploykitError
from deploykit.verbs.export import make_bundle
from tests.bundles import write_classifier
from tests.cli import deploykit

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.verbs.export import ExportCall


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "c"):
        write_classifier(tmp_path / f"{name}.onnx")
    (tmp_path / "b.onnx").write_bytes(b"no graph")
    return tmp_path


def export(*arguments: object) -> Any:
    return deploykit("export", *arguments, "--fp16", "--backend", "none")


def test_what_fails_is_said_at_its_place_and_the_others_are_made(here: Path) -> None:
    called = export("a.onnx", "b.onnx", "c.onnx", "-o", "out")
    assert called.code == 1
    assert "Error: b.onnx: b.onnx is truncated or not an ONNX file" in called.err
    lines = called.out.splitlines()
    assert lines[-1] == "2 of 3 exported"
    said = called.err.splitlines()
    headings = [said.index(f"{name}.onnx, {n} of 3") for n, name in enumerate("abc", 1)]
    assert headings == sorted(headings)
    assert [line.split()[0] for line in lines if " is ready: " in line] == [
        "out/a-fp16",
        "out/c-fp16",
    ]
    assert sorted(path.parent.name for path in here.glob("out/*/manifest.json")) == [
        "a-fp16",
        "c-fp16",
    ]


def test_json_has_a_result_for_each(here: Path) -> None:
    called = export("a.onnx", "b.onnx", "-o", "out", "--json")
    assert called.code == 1
    good, bad = called.data["results"]
    assert (good["target"], good["bundle"]) == ("a.onnx", "out/a-fp16")
    assert bad["target"] == "b.onnx"
    assert bad["error"]["kind"] == "ModelFileError"
    alone = export("a.onnx", "-o", "out/a-fp16", "--json").data
    assert alone.keys() == good.keys() - {"target"}
    assert list(alone)[:4] == ["bundle", "precision", "stages", "validation"]


def test_all_well() -> None:
    called = export("a.onnx", "c.onnx")
    assert called.code == 0
    assert called.out.splitlines()[-1] == "2 of 2 exported"


def test_an_unknown_target_is_refused_before_any_work(here: Path) -> None:
    called = export("a.onnx", "resnet5", "-o", "out")
    assert called.code == 2
    assert "unknown architecture 'resnet5'" in called.err
    assert not (here / "out").exists()


def test_interrupted_keeps_what_is_finished(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(call: ExportCall, *given: Any) -> Any:
        if call.target == "c.onnx":
            raise KeyboardInterrupt
        return make_bundle(call, *given)

    monkeypatch.setattr("deploykit.cli.export.make_bundle", stopped)
    called = export("a.onnx", "c.onnx", "b.onnx", "-o", "out")
    assert called.code == 1
    assert "interrupted: 1 of 3 exported, the finished bundles stay" in called.err
    assert (here / "out/a-fp16/manifest.json").is_file()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BuildError("the compiler refused\nlook at it"), "a.onnx: the compiler refused\n  look"),
        (ZeroDivisionError("oh"), "a.onnx: an unexpected ZeroDivisionError: oh\n  a fault of"),
        (OSError(28, "No space left"), "a.onnx: the system refuses it, No space left"),
        (
            ModuleNotFoundError("no torch", name="torch"),
            "a.onnx: this step needs the Python module torch",
        ),
    ],
)
def test_every_kind_of_failure_is_survived(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(call: ExportCall, *given: Any) -> Any:
        if call.target == "a.onnx":
            raise error
        return make_bundle(call, *given)

    monkeypatch.setattr("deploykit.cli.export.make_bundle", failing)
    called = export("a.onnx", "c.onnx")
    assert said in called.err
    assert called.out.splitlines()[-1] == "1 of 2 exported"
    with pytest.raises((type(error), DeploykitError)):
        export("a.onnx", "c.onnx", "--debug")


def test_one_report_for_all_that_were_made(here: Path) -> None:
    called = export("a.onnx", "b.onnx", "c.onnx", "-o", "out", "--report", "all.html", "--json")
    assert (called.code, called.data["report"]) == (1, "all.html")
    page = (here / "all.html").read_text(encoding="utf-8")
    assert "a-fp16" in page
    assert "c-fp16" in page
    assert "b-fp16" not in page


def test_a_page_that_cannot_be_written_loses_no_answer(here: Path) -> None:
    called = export("a.onnx", "c.onnx", "-o", "out", "--report", "a.onnx/all.html", "--json")
    assert called.code == 1
    assert [one["bundle"] for one in called.data["results"]] == ["out/a-fp16", "out/c-fp16"]
    assert called.data["report"] is None
    (note,) = called.data["report_notes"]
    assert note.startswith("no report a.onnx/all.html: cannot write")
    alone = export("a.onnx", "-o", "out/a-fp16", "--report", "a.onnx/all.html")
    assert alone.code == 1
    assert "out/a-fp16 is ready: FP16" in alone.out
    assert note.splitlines()[0] in alone.out
    (here / "d.onnx").write_bytes(b"no graph either")
    nothing = export("b.onnx", "d.onnx", "-o", "out", "--report", "all.html")
    assert "no report all.html: there is no sound bundle" in nothing.out


def test_quiet_leaves_a_line_for_each(here: Path) -> None:
    called = export("a.onnx", "b.onnx", "-o", "out", "-q")
    assert called.code == 1
    assert called.out.splitlines() == [
        "out/a-fp16 is ready: FP16, verified, no engine",
        "1 of 2 exported",
    ]
    assert called.err.splitlines()[0].startswith("Error: b.onnx: ")
