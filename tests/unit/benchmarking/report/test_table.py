from __future__ import annotations

import csv
import io
import re
from dataclasses import replace

import numpy as np
import pytest

from deploykit.benchmarking.report.rows import LEVELS, row_of, row_to_plain
from deploykit.benchmarking.report.table import csv_of, escaped, markdown_of
from deploykit.benchmarking.results import BenchmarkRun, CellFailure
from deploykit.benchmarking.statistics.percentiles import percentile
from deploykit.core.precision import Precision
from deploykit.core.serialization import Source, from_plain, to_plain
from deploykit.costs.intervals import Interval
from deploykit.costs.limits import Limit
from tests.unit.benchmarking.report.reported import (
    BUSY,
    DOUBT,
    FAILURES,
    HOSTILE,
    LIMIT,
    NOTE,
    PEAK,
    SWITCHED,
    cpu_run,
    gpu_run,
    hostile_run,
    lognormal,
    measured,
)


def records(run: BenchmarkRun) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_of(run)), strict=True))


def table_rows(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    return [re.split(r"(?<!\\) \| ", line[2:-2]) for line in lines]


def section(markdown: str, heading: str) -> list[str]:
    _, _, rest = markdown.partition(f"\n## {heading}\n\n")
    return [line for line in rest.partition("\n\n")[0].splitlines() if line]


def test_the_figures_of_the_csv_are_those_of_numpy_to_the_last_bit() -> None:
    run = gpu_run()
    for result, record in zip(run.results, records(run), strict=False):
        samples = result.samples
        latency = samples.latency_ms
        assert float(record["p50_ms"]) == np.percentile(latency, 50)
        assert float(record["p90_ms"]) == np.percentile(latency, 90)
        assert float(record["compute_p50_ms"]) == np.median(samples.step("compute_ms"))
        assert float(record["wall_p50_ms"]) == np.median(samples.wall_ms)
        queries_per_s = len(latency) / (samples.wall_ms.sum() / 1e3)
        assert float(record["images_per_s"]) == pytest.approx(queries_per_s * result.subject.batch)
        assert float(record["limit_share"]) == row_of(result).achieved.share  # type: ignore[union-attr]  # it has one
        assert float(record["variation_share"]) == pytest.approx(
            latency.std(ddof=1) / latency.mean()
        )


def test_every_interval_is_in_the_csv() -> None:
    result = measured("nin", lognormal(2.0, 6000))
    (record,) = records(BenchmarkRun((result,)))
    for level in LEVELS:
        found = percentile(result.samples.wall_ms, level)
        assert found is not None
        name = f"p{level:g}"
        figures = [float(record[f"{name}{bound}_ms"]) for bound in ("", "_low", "_high")]
        assert figures == [found.value, found.low, found.high]


def test_what_the_samples_do_not_carry_is_empty() -> None:
    for record in records(cpu_run()):
        assert record["p99_ms"] == record["p99_low_ms"] == record["p99.9_ms"] == ""
        assert bool(record["p50_ms"]) == (record["model"] != "vgg16")
        assert record["limit_ms"] == record["limit_share"] == record["compute_p50_ms"] == ""


def test_the_median_is_there_even_without_an_interval() -> None:
    run = cpu_run()
    for result, record in zip(run.results, records(run), strict=True):
        assert float(record["median_ms"]) == np.median(result.samples.wall_ms)
        assert record["p50_ms"] in ("", record["median_ms"])


def test_a_median_without_an_interval_stands_in_brackets() -> None:
    times = [3.0, 1.0, 2.0]
    text = markdown_of(BenchmarkRun((*gpu_run().results, measured("nin", times))))
    assert table_rows(text)[-1][:5] == ["nin", "fp32", "1", "(2)", ""]
    assert text.count("A figure in brackets has no interval: too few independent samples") == 1
    carried = measured("nin", lognormal(2.0, 3000))
    assert "in brackets" not in markdown_of(BenchmarkRun((carried,)))


def test_a_99th_percentile_without_an_interval_stands_in_brackets() -> None:
    times = lognormal(2.0, 100)
    text = markdown_of(BenchmarkRun((measured("nin", times), measured("vgg11", times[:99]))))
    bare, none = (line[5] for line in table_rows(text)[-2:])
    assert float(bare.strip("()")) == pytest.approx(np.percentile(times, 99), rel=1e-3)
    assert (bare[0], bare[-1], none) == ("(", ")", "")
    assert "A figure in brackets has no interval" in text


def test_failures_are_lines_with_their_reason() -> None:
    run = gpu_run()
    failed = records(run)[len(run.results) :]
    assert [record["failure"] for record in failed] == ["out of memory", "error"]
    assert [record["failure_s"] for record in failed] == ["4.2", "0.8"]
    assert failed[0]["failure_reason"] == "needs 23 GiB; has 21"
    assert failed[1]["model"] == "nin"
    assert failed[1]["p50_ms"] == failed[1]["median_ms"] == ""
    assert len(csv_of(run).splitlines()) == 1 + len(run.results) + len(run.failures)


def test_sentences_have_columns_of_their_own() -> None:
    first, second, *_ = records(gpu_run())
    assert (first["conditions"], first["notes"], first["doubts"]) == (BUSY, NOTE, "")
    assert DOUBT in second["doubts"]


def test_two_sentences_share_a_field() -> None:
    result = measured("nin", [1.0] * 9, notes=("one\nline", "two"))
    assert records(BenchmarkRun((result,)))[0]["notes"] == "one line; two"


def test_hostile_names_come_back_from_the_csv() -> None:
    result, failure = records(hostile_run())
    assert result["model"] == result["backend"] == failure["model"] == HOSTILE


def test_names_and_reasons_in_the_csv_are_no_formulas() -> None:
    formula = '=HYPERLINK("http://x.example", "ok")'
    result = measured(formula, [1.0] * 9, backend="@ort", notes=("-1+1",))
    failure = CellFailure("+net", Precision.FP16, "ort", 1, "error", "\t" + formula, 1.0)
    first, second = records(BenchmarkRun((result,), (failure,)))
    assert (first["model"], first["backend"], first["notes"]) == (f"'{formula}", "'@ort", "'-1+1")
    assert (second["model"], second["failure_reason"]) == ("'+net", f"'{formula}")


def test_an_empty_run_is_a_line_of_names() -> None:
    (line,) = csv_of(BenchmarkRun(())).splitlines()
    assert line.startswith("model,backend,precision,precision_proven,batch,")


def test_markdown_has_a_table_for_each_backend_and_scenario() -> None:
    offline = replace(SWITCHED, scenario="offline", streams=4)
    slow = measured("nin", lognormal(2.0, 600), backend="eager", switches=offline)
    text = markdown_of(BenchmarkRun((*cpu_run().results, slow)))
    assert re.findall("^## (.*, .*)$", text, re.MULTILINE) == [
        "ort, single-stream",
        "eager, offline",
    ]
    assert "Streams: 4." in text
    lines = table_rows(text)
    assert {len(cells) for cells in lines} == {9}


def test_the_figures_of_a_markdown_row() -> None:
    times = np.random.default_rng(0).permutation(np.linspace(2, 4, 99))
    result = measured("nin", times, batch=8, limit=LIMIT)
    cells = table_rows(markdown_of(BenchmarkRun((result,))))[2]
    found = percentile(result.samples.wall_ms, 50)
    assert found is not None
    assert cells[:3] == ["nin", "fp32", "8"]
    assert cells[3] == f"3 ({found.low:.4g} to {found.high:.4g})"
    assert cells[4:6] == [f"{np.percentile(result.samples.wall_ms, 90):.4g}", ""]
    assert cells[6:] == ["2,667", "11.1 %", "memory"]


def test_a_switch_that_differs_has_a_column() -> None:
    results = [
        measured("nin", [1.0] * 9, switches=replace(SWITCHED, threads=threads))
        for threads in (1, 2)
    ]
    lines = table_rows(markdown_of(BenchmarkRun(tuple(results))))
    assert [cells[-1] for cells in lines] == ["Threads", "---", "1", "2"]


def test_what_qualifies_the_figures_stands_below_them() -> None:
    text = markdown_of(gpu_run())
    (doubt,) = section(text, "Doubts")
    assert doubt.startswith("- resnet50/tensorrt/fp32/b8: ")
    assert DOUBT in doubt
    assert section(text, "State of the machine") == [f"- resnet50/tensorrt/fp32/b1: {BUSY}"]
    assert section(text, "Notes") == [f"- resnet50/tensorrt/fp32/b1: {NOTE}"]
    assert section(text, "Failures") == [
        "- vgg16/tensorrt/fp32/b32: out of memory after 4.2 s: needs 23 GiB; has 21",
        "- nin/tensorrt-rtx/int8/b8: error after 0.8 s: BuildError: no &lt;such> layer",
    ]
    assert "- GPU: NVIDIA L4, compute capability 8.9, 24.0 GiB" in section(text, "Machine")
    assert section(text, "Peaks of the devices")[0].startswith(f"- {PEAK.name}: FP32 30.3 TFLOP/s")
    assert "- CUDA graph: off" in section(text, "Switches")
    assert text.startswith("# Benchmark: NVIDIA L4\n\ndeploykit 0.1.0. 2026-11-22 05:01 UTC to ")
    assert f"{len(gpu_run().results)} results, {len(FAILURES)} failures." in text


def test_one_sentence_about_several_cells_is_said_once() -> None:
    results = [measured("nin", [1.0] * 9, batch=batch, notes=(NOTE,)) for batch in (1, 8)]
    text = markdown_of(BenchmarkRun(tuple(results)))
    assert section(text, "Notes") == [f"- nin/ort/fp32/b1, nin/ort/fp32/b8: {NOTE}"]


def test_hostile_names_stay_text_in_markdown() -> None:
    text = markdown_of(hostile_run())
    assert not re.search(r"(?<!\\)<|(?<!\\)`", text)
    assert {len(cells) for cells in table_rows(text)} == {9}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a|b", r"a\|b"),
        ("a\r\n b", "a b"),
        ("\\|", r"\\\|"),
        ("<b>&amp;", "&lt;b>&amp;amp;"),
        ("[x](y) *z* `c`", r"\[x\](y) \*z\* \`c\`"),
        ("wide_resnet50_2 _em_", r"wide_resnet50_2 \_em\_"),
    ],
)
def test_markdown_shows_text_as_it_is(given: str, expected: str) -> None:
    assert escaped(given) == expected


def test_a_run_without_results_says_so() -> None:
    assert markdown_of(BenchmarkRun(())) == "# Benchmark\n\n0 results, 0 failures.\n"


def test_an_estimate_stands_beside_the_measurement() -> None:
    plain = next(each for each in gpu_run().results if each.limit is not None)
    assert plain.limit is not None
    estimated = replace(plain.limit, estimated_ms=Interval(0.75, 0.5, 1.125))
    run = BenchmarkRun((replace(plain, limit=estimated),))
    (record,) = records(run)
    names = ("estimated_ms", "estimated_low_ms", "estimated_high_ms")
    assert [record[name] for name in names] == ["0.75", "0.5", "1.125"]
    assert row_to_plain(row_of(run.results[0]))["estimated_ms"] == {
        "value": 0.75,
        "low": 0.5,
        "high": 1.125,
    }
    (without,) = records(BenchmarkRun((plain,)))
    assert [without[name] for name in names] == ["", "", ""]


def test_a_limit_of_a_file_of_before_has_no_estimate() -> None:
    written = to_plain(replace(LIMIT, estimated_ms=Interval(2.0, 1.0, 4.0)))
    assert from_plain(Limit, written, Source("a file")).estimated_ms == Interval(2.0, 1.0, 4.0)
    del written["estimated_ms"]
    assert from_plain(Limit, written, Source("a file")) == LIMIT
