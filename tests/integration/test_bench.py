"""`deploykit bench` as a user calls it, on a small trained network.

The first test, those of limits, of two in turn and of an interrupt measure in processes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploykit.benchmarking.results import BenchmarkRun, read_run, write_run
from tests.bundles import write_classifier
from tests.cli import Called, deploykit
from tests.unit.benchmarking.statistics.noise import independent, samples_of

SHORT = ("--duration", 0.2, "--warmup", 0, "--min-samples", 60, "--threads", 1)


@pytest.fixture
def here(tmp_path: Path, known_peak: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, on a CPU whose peak need not be measured."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bench(*arguments: object) -> Called:
    return deploykit("bench", *arguments, *SHORT)


def test_a_bundle_is_measured_and_reported(fp16_bundle: Path, here: Path) -> None:
    # A busy machine makes neighbours alike: fewer samples would give the median no interval.
    asked = ("--batch", "1,4", "--backend", "ort", "--json", *SHORT, "--min-samples", 1000)
    called = deploykit("bench", fp16_bundle, *asked)
    assert called.code == 0, called.err
    first, second = called.data["results"]
    assert (first["model"], first["precision"], first["backend"]) == ("digits-fp16", "fp16", "ort")
    assert (first["batch"], second["batch"]) == (1, 4)
    assert first["precision_proven"] == "fp16"
    # A machine that is busy with something else gives samples that are worth too few for one.
    if (interval := first["latency_ms"]["p50_interval"]) is not None:
        assert interval[0] <= first["latency_ms"]["p50"] <= interval[1]
    assert second["throughput_per_s"] > 0
    assert first["notes"] == ["fp16 is emulated on the CPU: this says nothing about a GPU"]
    results, *reports = map(Path, called.data["files"])
    assert [path.suffix for path in reports] == [".md", ".csv", ".html"]
    assert all(path.stat().st_size > 500 for path in reports)
    run = read_run(results)
    assert [result.subject.batch for result in run.results] == [1, 4]
    assert run.failures == ()
    assert results.parent == Path("benchmarks/results")
    assert not list(results.parent.glob("unfinished*"))


@pytest.mark.usefixtures("steps_here")
def test_the_terminal_shows_rows_ranking_and_files(fp16_bundle: Path, here: Path) -> None:
    called = bench(fp16_bundle, "--quick", "--batch", 2, "-o", "mine.json")
    assert called.code == 0, called.err
    assert "99 % interval" in called.out
    assert "digits-fp16" in called.out
    assert "written: mine.json, mine.md, mine.csv, mine.html" in called.out


@pytest.mark.usefixtures("steps_here")
def test_a_file_that_leaves_its_image_size_open(here: Path) -> None:
    path = write_classifier(here / "open.onnx", "H, W")
    asked = (path, "--backend", "ort", "--batch", 2, "-o", "r.json", "--json")
    called = bench(*asked)
    assert called.code == 1
    (failure,) = called.data["failures"]
    assert "open.onnx takes images whose height and width may be anything" in failure["reason"]
    assert "--height MIN,OPT,MAX --width MIN,OPT,MAX (or one number each)" in failure["reason"]
    called = bench(*asked, "--height", 24, "--width", 10)
    assert called.code == 0, called.err
    (row,) = called.data["results"]
    # Two images; a multiply-add is two operations.
    operations = 2 * 2 * (16 * 3 * 9 * 24 * 10 + 16 * 4)
    rate = operations / row["latency_ms"]["p50"] * 1e3
    assert row["achieved"]["flop_per_s"] == pytest.approx(rate, rel=0.01)
    refused = bench("resnet18", "--height", 24, "--width", 10)
    assert refused.code == 2
    assert "resnet18 has its image size: --height and --width are for .onnx" in refused.err


def test_a_cell_that_hangs_is_killed_and_the_rest_is_kept(fp16_bundle: Path, here: Path) -> None:
    arguments = (fp16_bundle, "--backend", "ort", "--batch", 1, "--time-limit", 0.2)
    called = bench(*arguments, "-o", "r.json")
    assert called.code == 1
    assert "failed: digits-fp16/ort/fp16/b1: time limit" in called.out
    (failure,) = read_run(Path("r.json")).failures
    assert (failure.batch, failure.kind) == (1, "time limit")
    assert "0.2 s" in failure.reason


def test_out_of_memory_tries_smaller_batches(fp16_bundle: Path, here: Path) -> None:
    called = bench(fp16_bundle, "--backend", "ort", "--batch", 4, "--memory-limit", 24, "--json")
    assert called.code == 1
    kinds = {failure["kind"] for failure in called.data["failures"]}
    assert kinds == {"out of memory"}


@pytest.mark.usefixtures("steps_here")
def test_two_files_are_compared_for_ci(fp16_bundle: Path, here: Path) -> None:
    assert bench(fp16_bundle, "--backend", "ort", "--batch", 1, "-o", "old.json").code == 0
    # What was measured, with times that do not depend on the machine.
    times = independent(np.random.default_rng(0), 500, 0.01)
    old, slower = (
        [
            replace(each, samples=samples_of(times * by))
            for each in read_run(Path("old.json")).results
        ]
        for by in (1.0, 1.5)
    )
    write_run(Path("old.json"), BenchmarkRun(tuple(old)))
    write_run(Path("new.json"), BenchmarkRun(tuple(slower)))
    same = deploykit("bench", "--compare", "old.json", "old.json", "--fail-above", "5%")
    assert same.code == 0
    assert "no difference" in same.out
    assert "--ab" not in same.out
    found = deploykit("bench", "--compare", "old.json", "new.json", "--fail-above", "5%")
    assert found.code == 1
    assert "slower by more than 5.0%, or failed: digits-fp16/ort/fp16/b1" in found.out
    assert "to be sure: deploykit bench --ab A B" in found.out
    assert deploykit("bench", "--compare", "old.json", "new.json").code == 0
    data = deploykit("bench", "--compare", "old.json", "new.json", "--json").data
    assert data["pairs"][0]["verdict"] == "slower"
    other = [replace(each, switches=replace(each.switches, seed=9)) for each in slower]
    write_run(Path("new.json"), BenchmarkRun(tuple(other)))
    refused = deploykit("bench", "--compare", "old.json", "new.json")
    assert refused.code == 2
    assert "seed 0 against 9" in refused.err
    forced = deploykit("bench", "--compare", "old.json", "new.json", "--force")
    assert "compared all the same: seed 0 against 9" in forced.out


def test_two_bundles_are_measured_in_turn(fp16_bundle: Path, here: Path) -> None:
    called = bench("--ab", fp16_bundle, fp16_bundle, "--rounds", 20)
    assert called.code == 0, called.err
    assert "A against A: " in called.out
    (file,) = Path("benchmarks/results").iterdir()
    body = json.loads(file.read_text(encoding="utf-8"))
    assert body["verdict"]["rounds"] == 20
    assert len(body["rounds"]["ab"]) == 20
    assert body["subjects"]["a"]["model"] == "digits-fp16"


def test_two_bundles_that_do_not_end_in_time_are_not_compared(
    fp16_bundle: Path, here: Path
) -> None:
    called = deploykit("bench", "--ab", fp16_bundle, fp16_bundle, "--time-limit", 0.2)
    assert called.code == 1
    assert "A against B was not measured: took longer than its limit of 0.2 s" in called.err
    assert list(here.iterdir()) == []


KNOWN_PEAK = """
from inspect import signature

from deploykit.cli import main
from deploykit.costs.peaks import gpu_peak, measure_cpu_peaks
from deploykit.verbs import bench


def known(*given, **named):
    signature(measure_cpu_peaks).bind(*given, **named)
    return gpu_peak("NVIDIA L4").peak


bench.measure_cpu_peaks = known
main()
"""
"""The command line as a program, for which the peak of this CPU need not be measured."""


def test_interrupted_it_goes_on_where_it_was(fp16_bundle: Path, here: Path) -> None:
    asked = (
        *("bench", fp16_bundle, "--backend", "ort", "--batch", "1,2,4", "--duration", 0.1),
        *("--warmup", 0, "--threads", 1, "--json"),
    )
    process = subprocess.Popen(
        [sys.executable, "-c", KNOWN_PEAK, *map(str, asked)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = Path("benchmarks/results")
    while not [path for path in folder.glob("unfinished*") if path.stat().st_size]:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 1
    assert "interrupted; the same command goes on from here" in said
    done = deploykit(*asked)
    assert done.code == 0, done.err
    assert 1 <= done.data["resumed"] < 3
    assert [result["batch"] for result in done.data["results"]] == [1, 2, 4]
    assert not list(folder.glob("unfinished*"))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (
            (),
            2,
            "nothing to measure\nname architectures, .onnx files or bundles; every architecture: ",
        ),
        (("nin", "--backend", "tensorrt"), 1, "no backend to measure with\ntensorrt: no GPU on"),
        (("nin", "--filter", "vgg"), 2, "no cell matches the filter 'vgg'\nthe cells are nin/"),
        (("nin", "--batch", "0"), 2, "--batch is '0'\nexpected whole numbers from 1 up"),
        (("nin", "--batch", "-4"), 2, "--batch is '-4'"),
        (("nin", "--precision", "fp12"), 2, "unknown precision 'fp12'"),
        (("nin", "--backend", "trt"), 2, "unknown backend 'trt'"),
        (("nim",), 2, "unknown architecture 'nim'\ndid you mean: nin"),
        (("none.onnx",), 1, "none.onnx"),
        (("nin", "--scenario", "server"), 2, "the server scenario with neither rate nor a bound"),
        (("nin", "--rate", "5"), 2, "a rate or a bound for the single-stream scenario"),
        (("nin", "--streams", "2"), 2, "2 streams in the single-stream scenario"),
        (
            ("nin", "--scenario", "server", "--rate", "5", "--bound", "1"),
            2,
            "the server scenario with both a rate and a bound",
        ),
        (
            ("nin", "--preset", "trtexec11", "--transfers"),
            2,
            "--preset trtexec11 has transfers off\nleave out the preset, or the option",
        ),
        (
            ("nin", "--preset", "trtexec10", "--no-overlap"),
            2,
            "--preset trtexec10 has overlap on\nleave out the preset, or the option",
        ),
        (("nin", "--preset", "trtexec11-exposedma", "--overlap"), 2, "exposedma has overlap off"),
        (
            ("nin", "--overlap", "--scenario", "offline"),
            2,
            "overlapped queries in the offline scenario\nonly single-stream has a queue",
        ),
        (("nin", "--duration", "-1"), 2, "duration_s is -1.0, expected 0 or more"),
        (("nin", "-o", "results.txt"), 2, "results.txt"),
        (("nin", "--compare", "a.json", "b.json"), 2, "--compare reads two files and measures"),
        (("nin", "--fail-above", "5%"), 2, "--fail-above and --force belong to --compare"),
        (("--compare", "a.json", "b.json"), 1, "there is no file of results a.json"),
        (("--ab", "nin", "nin", "--batch", "1,2"), 2, "--ab measures two targets with one batch"),
        (("--ab", "nin", "nim"), 2, "unknown architecture 'nim'"),
        (("--ab", "nin", "nin", "--scenario", "offline"), 2, "in the offline scenario"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(
    here: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    called = deploykit("bench", *arguments)
    assert words in called.err
    assert called.code == code
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"schema_version": 7, "results": []}', "has schema version 7, this deploykit reads 1"),
        ('{"schema_version": 1, "resu', "is not JSON, perhaps cut off"),
    ],
)
def test_a_file_that_is_no_result_is_refused(here: Path, text: str, words: str) -> None:
    Path("old.json").write_text(text, encoding="utf-8")
    called = deploykit("bench", "--compare", "old.json", "old.json")
    assert (called.code, words in called.err) == (1, True)
