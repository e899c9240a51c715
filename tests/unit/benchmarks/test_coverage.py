"""The table of models that go through every stage: its rows, its resuming, its counts."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks import coverage
from benchmarks.calibration_cost import make_photographs
from benchmarks.coverage import GRAPHS, Process, Table, markdown, missing, source_hash, sweep
from benchmarks.coverage_one import COLUMNS, TRIALS, Call, Record, attempt, worst
from deploykit.core.errors import ExportError, ValidationError
from deploykit.exporting import steps as pipeline
from deploykit.precision.quantization.choice import Int8Choices
from tests.bundles import write_classifier

if TYPE_CHECKING:
    from pathlib import Path

HERE = {"packages": {"torch": "2"}, "cpu": "one"}

PASSED: dict[str, Any] = {
    "passed": True,
    "image_size": [64, 48],
    "parameters": 1_250_000,
    "validation": {
        each: {"min_cosine": 0.5, "max_kl": 1e-3, "max_relative": 0.02}
        for each in ("fp16", "bf16", "int8", "fp8")
    },
    "onnx_bytes": 2_000_000,
    "engine_bytes": 3_100_000,
    "process_s": 12.4,
    "layers": {"int8": 3, "fp8": 2, "fp16": 1, "fp32": 0},
}
FAILED = {"passed": False, "stage": "export", "reason": "ExportError: a loop"}


OF_CLASSES = {"max_kl", "agreement"}
OTHERS = ("bf16", "int8", "int8-trials", "fp8")


class Runs:
    """Stands for `Process`: some exports fail, the others leave an FP32 graph."""

    def __init__(self, *failing: tuple[str, str], without_graph: str = "") -> None:
        self.failing = failing
        self.without_graph = without_graph
        self.asked: list[tuple[str, str]] = []

    def __call__(self, column: str, target: str, folder: Path) -> dict[str, Any]:
        if column not in ("fp16", "fp32"):
            assert target.endswith(("fp16/bundle/reference.onnx", "fp32/bundle/model.onnx"))
            target = self.asked[-1][1]
        self.asked.append((column, target))
        name = target.partition(":")[2]
        if name != self.without_graph:
            (folder / "bundle").mkdir(parents=True)
            graph = "model.onnx" if column == "fp32" else "reference.onnx"
            (folder / "bundle" / graph).touch()
        return FAILED if (column, name) in self.failing else PASSED

    @property
    def targets(self) -> list[str]:
        return list(dict.fromkeys(target for _, target in self.asked))


def test_every_model_goes_to_fp16_and_its_graph_to_the_others(tmp_path: Path) -> None:
    runs = Runs()
    table = Table(tmp_path / "out" / "table.json", HERE)
    sweep(table, "torchvision", ["small", "large"], runs)
    assert runs.asked == [
        (column, f"torchvision:{name}")
        for name in ("small", "large")
        for column in ("fp16", *OTHERS)
    ]
    kept = json.loads((tmp_path / "out" / "table.json").read_text(encoding="utf-8"))
    assert kept["environment"] == HERE
    assert [row["model"] for row in kept["rows"]] == ["small", "large"]
    assert kept["rows"][1]["int8"] == PASSED


def test_a_failure_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "table.json"
    runs = Runs(("fp16", "a"), ("int8", "b"), without_graph="a")
    table = Table.open(path, HERE)
    sweep(table, "torchvision", ["a", "b"], runs)
    # Without an FP32 graph there is nothing to take to the others.
    assert [each for each, target in runs.asked if target.endswith(":a")] == ["fp16"]
    assert "1 of 2: a fp16 export: ExportError: a loop" in capsys.readouterr().err
    assert set(table.rows["b"]) == {"model", "fp16", *OTHERS}
    again = Runs(("fp16", "b"), without_graph="b")
    table.forget(["b"])
    sweep(table, "torchvision", ["b"], again)
    # Of the row of before nothing is left.
    assert table.rows["b"] == {"model": "b", "fp16": FAILED}


def test_what_was_tried_is_left_and_failures_are_tried_again_where_asked() -> None:
    whole = dict.fromkeys(("fp16", *OTHERS), PASSED)
    rows = {
        "whole": whole,
        "older": {"fp16": PASSED, "int8": PASSED},
        "failing": {**whole, "fp8": FAILED},
        "without graph": {"fp16": FAILED},
    }
    table = Table(coverage.ONE, HERE, rows)
    names = [*rows, "new"]
    assert missing(table, names, failed=False) == ["older", "new"]
    assert missing(table, names, failed=True) == ["older", "failing", "without graph", "new"]


def test_other_packages_start_the_table_anew(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    sweep(Table.open(path, HERE), "timm", ["a"], Runs())
    assert Table.open(path, {**HERE, "cpu": "two"}).passed("a", "fp16")
    assert not Table.open(path, {**HERE, "packages": {"torch": "3"}}).rows


def test_a_table_may_be_of_some_columns_and_keeps_rows_that_have_more(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    sweep(Table.open(path, HERE), "timm", ["whole"], Runs())
    few, runs = Table.open(path, HERE, ("fp16", "bf16")), Runs()
    names = missing(few, ["whole", "new"], failed=False)
    sweep(few, "timm", names, runs)
    assert runs.asked == [("fp16", "timm:new"), ("bf16", "timm:new")]
    assert set(few.rows["whole"]) == {"model", "fp16", *OTHERS}
    assert missing(few, ["whole", "new"], failed=True) == []
    assert missing(Table.open(path, HERE), ["whole", "new"], failed=False) == ["new"]
    line = next(line for line in markdown(few).splitlines() if line.startswith("| new |"))
    assert line.count("**not run**") == 3


def test_of_a_row_that_lacks_columns_the_fp32_graph_is_made_once_more(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    sweep(Table.open(path, HERE, ("fp16",)), "timm", ["a", "b"], Runs())
    table, runs = Table.open(path, HERE, ("fp16", "bf16", "fp8")), Runs(without_graph="b")
    names = missing(table, ["a", "b"], failed=False)
    sweep(table, "timm", names, runs)
    assert [column for column, target in runs.asked if target.endswith(":a")] == [
        "fp32", "bf16", "fp8",
    ]  # fmt: skip
    assert [column for column, target in runs.asked if target.endswith(":b")] == ["fp32"]
    assert set(table.rows["a"]) == {"model", "fp16", "bf16", "fp8"}
    assert missing(table, ["a", "b"], failed=False) == ["b"]


def test_the_table_shows_figures_counts_and_reasons() -> None:
    whole = dict.fromkeys(("fp16", *OTHERS), PASSED)
    rows = {
        "good": {"model": "good", **whole},
        "bad": {"model": "bad", **whole, "int8": FAILED},
        "worse": {"model": "worse", "fp16": FAILED},
        "older": {"model": "older", "fp16": PASSED},
    }
    lines = markdown(Table(coverage.ONE, HERE, rows)).splitlines()
    width = lines[0].count("|")
    assert [line.count("|") for line in lines[1:6]] == [width] * 5
    figures = "0.500000 | 1.0e-03 | 2.0e-02 | 2.0 | 3.1 | 12"
    assert lines[2] == (
        f"| good | 64x48 | 1.2 M | {figures} | {figures} "
        f"| {figures} | 3 of 6 | {figures} | 3 of 6 | {figures} | 2 of 6 |"
    )
    assert "| **not run** |" in lines[5]
    assert lines[7:12] == [
        "FP16 3 of 4",
        "BF16 2 of 2",
        "INT8 1 of 2",
        "INT8-TRIALS 2 of 2",
        "FP8 2 of 2",
    ]
    assert lines[13:] == [
        "- bad int8, export: ExportError: a loop",
        "- worse fp16, export: ExportError: a loop",
    ]


def call(monkeypatch: pytest.MonkeyPatch, runs: Runs, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["coverage.py", *map(str, words)])
    monkeypatch.setattr(coverage, "PHOTOGRAPHS", 0)
    monkeypatch.setattr(coverage, "Process", lambda limit_s, source, photographs: runs)
    coverage.main()


def test_the_command_leaves_a_file_for_machines_and_one_for_people(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(coverage, "TIMM", ("a", "b", "c"))
    out = tmp_path / "timm.json"
    first = Runs(("fp16", "b"))
    call(monkeypatch, first, "timm", "--out", out, "--skip", "c")
    assert first.targets == ["timm:a", "timm:b"]
    assert "FP16 1 of 2" in capsys.readouterr().out
    second = Runs()
    call(monkeypatch, second, "timm", "--out", out, "--failed")
    assert second.targets == ["timm:b", "timm:c"]
    third = Runs()
    call(monkeypatch, third, "timm", "--out", out, "--only", "a")
    assert third.targets == ["timm:a"]
    text = (tmp_path / "timm.md").read_text(encoding="utf-8")
    assert text.startswith("# timm\n\n| model | size |")
    assert "FP16 3 of 3" in text


def test_a_name_that_is_not_in_the_list_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        call(monkeypatch, Runs(), "timm", "--out", tmp_path / "x.json", "--only", "resnet50")
    assert "not in the list of timm: resnet50" in capsys.readouterr().err


def script(folder: Path, text: str) -> Path:
    path = folder / "script.py"
    path.write_text(f"import os, sys, time, pathlib\nplace = pathlib.Path(sys.argv[3])\n{text}\n")
    return path


RECORDED = """(place / "record.json").write_text('{"passed": true, "stage": "compile"}')"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (RECORDED, {"passed": True, "stage": "compile"}),
        (
            f"{RECORDED}\nos.kill(os.getpid(), 9)",
            {"passed": False, "stage": "compile", "reason": "killed by SIGKILL"},
        ),
        (
            "os.abort()",
            {"passed": False, "stage": "start", "reason": "killed by SIGABRT"},
        ),
        (
            "sys.exit('no module named x')",
            {"passed": False, "stage": "start", "reason": "no module named x"},
        ),
        ("", {"passed": False, "stage": "start", "reason": "ended without a record"}),
    ],
)
def test_a_process_that_dies_leaves_a_row(
    text: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    process = Process(limit_s=60, source="abc", photographs=tmp_path, script=script(tmp_path, text))
    found = process("fp16", "timm:x", tmp_path / "run")
    assert found.items() >= {**expected, "source": "abc"}.items()
    assert ("reason" in found) is not found["passed"]
    assert found["process_s"] >= 0


def test_a_process_that_hangs_is_ended(tmp_path: Path) -> None:
    process = Process(
        limit_s=0.2, source="", photographs=tmp_path, script=script(tmp_path, "time.sleep(60)")
    )
    found = process("fp16", "timm:x", tmp_path / "run")
    assert found["reason"] == "took longer than 0.2 s"


def test_a_record_tells_the_last_stage(tmp_path: Path) -> None:
    record = Record(tmp_path / "record.json")
    with pytest.raises(ExportError), record.step("export"):
        raise ExportError("no")
    kept = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    assert kept == record.found
    assert (kept["stage"], kept["passed"]) == ("export", False)
    assert kept["peak_mib"] > 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ExportError("a loop"), "ExportError: a loop"),
        (KeyError("x"), "unexpected KeyError: 'x'"),
    ],
)
def test_any_error_is_a_reason(
    error: Exception, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(pipeline, "export_bundle", fails)
    record = Record(tmp_path / "record.json")
    attempt(Call(COLUMNS["fp16"], "timm:x", tmp_path, tmp_path), record)
    assert (record.found["passed"], record.found["reason"]) == (False, reason)


def test_the_fp32_graph_alone_has_no_engine(tmp_path: Path) -> None:
    write_classifier(tmp_path / "net.onnx")
    record = Record(tmp_path / "record.json")
    attempt(Call(COLUMNS["fp32"], str(tmp_path / "net.onnx"), tmp_path, tmp_path), record)
    assert record.found["passed"], record.found
    bundle = tmp_path / "bundle"
    assert (bundle / GRAPHS["fp32"]).exists()
    assert not list(bundle.glob("*.engine"))


@pytest.mark.parametrize("column", ["int8", "fp8"])
def test_where_everything_in_eight_bits_fails_trials_decide(
    column: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuses(_: str, options: pipeline.ExportOptions, __: Record) -> None:
        assert options.quantization is not None
        asked.append((str(options.precision), options.quantization.int8_choices.sensitive_layers))
        raise ValidationError("cosine 0.1")

    monkeypatch.setattr(pipeline, "export_bundle", refuses)
    record = Record(tmp_path / "record.json")
    attempt(Call(COLUMNS[column], "model.onnx", tmp_path, tmp_path), record)
    assert asked == [(column, "int8"), (column, "auto")]
    assert record.found["placement"] == TRIALS
    assert record.found["first_reason"] == "cosine 0.1"
    assert record.found["reason"] == "ValidationError: cosine 0.1"


def test_the_column_with_trials_calibrates_on_photographs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_photographs(tmp_path, 3)
    asked = []

    def refuses(_: str, options: pipeline.ExportOptions, __: Record) -> None:
        assert options.quantization is not None
        data = options.quantization.calibration.data
        assert not isinstance(data, str)
        asked.append((len(data), options.quantization))
        raise ValidationError("cosine 0.1")

    monkeypatch.setattr(pipeline, "export_bundle", refuses)
    call = Call(COLUMNS["int8-trials"], "model.onnx", tmp_path, tmp_path)
    attempt(call, Record(tmp_path / "record.json"))
    ((count, request),) = asked
    assert count == 3
    assert request.int8_choices == Int8Choices()


def test_the_worst_batch_counts() -> None:
    same = {"max_relative": 0.1, "max_kl": 0.0, "min_cosine": 1.0}
    batches = [
        {**same, "batch": 1, "max_abs": 0.1, "agreement": 1.0},
        {**same, "batch": 3, "max_abs": 0.3, "agreement": 2 / 3, "min_cosine": 0.9},
    ]
    found = worst({"batches": batches})
    assert found["max_abs"] == 0.3
    assert found["min_cosine"] == 0.9
    assert found["agreement"] == pytest.approx(0.75)
    assert found["images"] == 4
    plain = [{key: batch[key] for key in batch if key not in OF_CLASSES} for batch in batches]
    assert OF_CLASSES.isdisjoint(worst({"batches": plain}))


def test_the_source_is_its_files_and_their_names(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    before = source_hash(tmp_path)
    (tmp_path / "note.txt").write_text("1")
    assert source_hash(tmp_path) == before
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert source_hash(tmp_path) != before


def test_there_are_sixty_of_timm() -> None:
    assert len(set(coverage.TIMM)) == len(coverage.TIMM) == 60


def test_torchvision_starts_with_the_smallest() -> None:
    names = coverage.torchvision_models()
    assert len(names) >= 80
    assert (names[0], names[-1]) == ("shufflenet_v2_x0_5", "vit_h_14")


def test_the_parent_reads_what_the_real_child_writes(tmp_path: Path) -> None:
    found = Process(120, "", tmp_path)("fp16", str(tmp_path / "missing.onnx"), tmp_path / "run")
    assert found["stage"] == "read"
    assert found["reason"].startswith("ModelFileError: there is no file")
