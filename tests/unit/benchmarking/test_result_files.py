from __future__ import annotations

import json
import re
from math import nan
from pathlib import Path
from typing import Any

import pytest

from deploykit.benchmarking.results import BenchmarkRun, CellFailure, read_run, write_run
from deploykit.core.errors import BundleError, DataError, UsageError
from deploykit.core.precision import Precision
from deploykit.core.serialization import to_plain
from tests.unit.benchmarking.statistics.noise import ENVIRONMENT, result_of

RESULTS = (result_of([1 / 3, 0.1 + 0.2]), result_of([5e-324, 2.5e300]))
FAILURE = CellFailure(
    "vgg19", Precision.INT8, "ort", 32, "time limit", "not done after 300 s", 300 + 1 / 3
)
RUN = BenchmarkRun(RESULTS, (FAILURE,))


def test_results_come_back_from_disk_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "run.json"
    write_run(path, RUN)
    assert read_run(path) == RUN
    body = json.loads(path.read_text(encoding="utf-8"))
    expected = {"schema_version": 1, "results": RESULTS, "failures": [FAILURE]}
    assert body == json.loads(json.dumps(to_plain(expected)))
    assert [item.name for item in path.parent.iterdir()] == ["run.json"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_file_without_results_is_a_file_of_results(tmp_path: Path) -> None:
    write_run(tmp_path / "run.json", BenchmarkRun(()))
    assert read_run(tmp_path / "run.json") == BenchmarkRun(())


def test_a_result_and_a_failure_are_one_line_each(tmp_path: Path) -> None:
    write_run(tmp_path / "run.json", RUN)
    lines = (tmp_path / "run.json").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 + len(RESULTS) + 1 + 1
    assert json.loads(lines[1].rstrip(",")) == json.loads(json.dumps(to_plain(RESULTS[0])))
    assert json.loads(lines[4]) == to_plain(FAILURE)


def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.json"
    write_run(path, BenchmarkRun(RESULTS[:1]))

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(BundleError, match=r"cannot write .*run\.json: No space left on device"):
        write_run(path, RUN)
    assert read_run(path).results == RESULTS[:1]
    assert [item.name for item in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("value", [float("nan"), object()], ids=["nan", "object"])
def test_what_is_not_plain_data_is_refused_before_anything_is_written(
    tmp_path: Path, value: Any
) -> None:
    result = result_of([1.0], environment={**ENVIRONMENT, "temperature": value})
    with pytest.raises(UsageError, match="a result holds something that JSON cannot hold: "):
        write_run(tmp_path / "run.json", BenchmarkRun((result,)))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file of results .*run\.json\nmeasure again"):
        read_run(tmp_path / "run.json")


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*Is a directory"):
        read_run(tmp_path)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"cannot read .*run\.json: .*can't decode"):
        read_run(tmp_path / "run.json")


@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "run.json"
    write_run(path, RUN)
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: int(keep * len(text))], encoding="utf-8")
    with pytest.raises(DataError, match=r"run\.json is not JSON, perhaps cut off: "):
        read_run(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "is not JSON, perhaps cut off: "),
        ("[]", "has schema version None, this deploykit reads 1\nmeasure again: deploykit bench"),
        ("3", "has schema version None"),
        ('{"results": []}', "has schema version None"),
        ('{"schema_version": 2, "results": []}', "has schema version 2, this deploykit reads 1"),
        ('{"schema_version": 1}', "has no list of results\nmeasure again: deploykit bench"),
        ('{"schema_version": 1, "results": {}}', "has no list of results"),
        (
            '{"schema_version": 1, "results": [7]}',
            "result 1: Expected `object`, got `int`\nmeasure again",
        ),
        (
            '{"schema_version": 1, "results": [{}]}',
            "result 1: Object missing required field `subject`\nmeasure",
        ),
        ('{"schema_version": 1, "results": []}', "has no list of failures"),
        (
            '{"schema_version": 1, "results": [], "failures": [{}]}',
            "failure 1: Object missing required field `mo",
        ),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        read_run(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def result_with(way: str, value: object) -> str:
    """A file whose second result has ``value`` at ``way``."""
    bodies = [json.loads(json.dumps(to_plain(result))) for result in RESULTS]
    *above, last = way.split(".")
    inner = bodies[1]
    for name in above:
        inner = inner[name]
    inner[last] = value
    return json.dumps({"schema_version": 1, "results": bodies, "failures": []})


MALFORMED = [
    ("colour", "blue", "Object contains unknown field `colour`"),
    ("subject.colour", "blue", "Object contains unknown field `colour` - at `$.subject`"),
    ("subject", [], "Expected `object`, got `array` - at `$.subject`"),
    ("subject.batch", "8", "Expected `int`, got `str` - at `$.subject.batch`"),
    ("subject.batch", nan, "Expected `int`, got `float` - at `$.subject.batch`"),
    ("subject.precision_asked", 16, "Expected `str`, got `int` - at `$.subject.precision_asked`"),
    ("switches.spin", 1, "Expected `bool`, got `int` - at `$.switches.spin`"),
    ("samples", None, "Expected `object`, got `null` - at `$.samples`"),
    ("samples.wall_ms", {}, "Expected `array`, got `object` - at `$.samples.wall_ms`"),
    ("samples.wall_ms", ["1"], "Expected `float`, got `str` - at `$.samples.wall_ms[0]`"),
    ("samples.wall_ms", [10**400], "Number out of range - at `$.samples.wall_ms[0]`"),
    ("samples.wall_ms", [nan], "wall_ms holds a time that is negative, infinite or not a number"),
    ("duration_s", "3", "Expected `float`, got `str` - at `$.duration_s`"),
    ("condition", ["quiet", 3], "Expected `str`, got `int` - at `$.condition[1]`"),
    ("notes", "quiet", "Expected `array`, got `str` - at `$.notes`"),
    ("limit", [], "Expected `object | null`, got `array` - at `$.limit`"),
]


@pytest.mark.parametrize(("way", "value", "message"), MALFORMED)
def test_a_malformed_result(tmp_path: Path, way: str, value: object, message: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(result_with(way, value), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_run(path)
    first, remedy = str(caught.value).splitlines()
    assert first.startswith(f"{path}: result 2: {message}")
    assert remedy == "measure again: deploykit bench"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"results":' * 100_000, "is not JSON, perhaps cut off: maximum recursion depth"),
        (b"9" * 5000, "is not JSON, perhaps cut off: Exceeds the limit"),
        (b'{"a": "\xff"}', "'utf-8' codec can't decode byte 0xff"),
        (b'{"schema_version": NaN}', "has schema version nan, this deploykit reads 1\nmeasure"),
        (b'{"schema_version": 1, "schema_version": 2}', "has schema version 2, this deploykit rea"),
    ],
    ids=["nested", "huge", "utf-8", "nan", "twice"],
)
def test_a_malformed_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read_run(path)
    assert str(path) in str(caught.value)


def test_other_fields_of_the_file_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    text = '{"schema_version": 1, "results": [3], "results": [], "failures": [], "colour": "blue"}'
    path.write_text(text, encoding="utf-8")
    assert read_run(path) == BenchmarkRun(())


def test_the_message_names_the_result_that_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    bodies = [to_plain(result) for result in RESULTS]
    bodies[1]["samples"]["wall_ms"][0] = float("nan")
    body = {"schema_version": 1, "results": bodies, "failures": []}
    path.write_text(json.dumps(body), encoding="utf-8")
    with pytest.raises(DataError, match="result 2: wall_ms holds a time that is negative, infin"):
        read_run(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "bad luck"}, "failure 1: unknown kind of failure 'bad luck'"),
        (
            {"precision": "fp12"},
            "failure 1: unknown precision 'fp12', known: fp32, fp16, bf16, int8",
        ),
        ({"batch": "8"}, r"failure 1: Expected `int`, got `str` - at `\$.batch`\nmeasure"),
    ],
)
def test_a_failure_that_is_wrong_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "run.json"
    body = {"schema_version": 1, "results": [], "failures": [to_plain(FAILURE) | change]}
    path.write_text(json.dumps(body), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_run(path)
