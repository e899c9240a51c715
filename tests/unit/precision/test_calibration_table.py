from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from math import nan
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.core.errors import BundleError, DataError, DeploykitError, UnknownNameError
from deploykit.core.serialization import to_plain
from deploykit.core.specs import Preprocessing
from deploykit.precision.calibration.table import (
    CalibrationKey,
    CalibrationTable,
    is_table,
    read_table,
    same_story,
    table_text,
)

if TYPE_CHECKING:
    from pathlib import Path

KEY = CalibrationKey(
    model_sha256="a" * 64,
    data_digest="b" * 64,
    preprocessing=to_plain(Preprocessing(crop=(224, 224), resize=256)),
    settings={"images": 512, "seed": 0, "bins": 2048},
)
TABLE = CalibrationTable(
    key=KEY,
    images=511,
    skipped=("images/broken.jpg",),
    amax={
        "input": {"max": 2.640000104904175, "entropy": 1.0 / 3.0},
        "relu": {"max": 7.25, "entropy": 1e-30},
    },
    created="2026-11-22T00:00:00+00:00",
    trial_amax={
        "input": {"max": 2.5, "entropy": 0.25},
        "relu": {"max": 7.0, "entropy": 1e-3},
    },
)


def digest(body: dict[str, Any]) -> str:
    """Of the canonical form: sorted keys, no whitespace."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def altered(**changes: Any) -> str:
    """Changed on purpose: with the digest of what it says then."""
    body = {**json.loads(table_text(TABLE)), **changes}
    body.pop("table_sha256", None)
    return json.dumps(body | {"table_sha256": digest(body)})


KEY_BODY = json.loads(table_text(TABLE))["key"]


def test_histograms_come_back_and_older_tables_have_none(tmp_path: Path) -> None:
    assert "half_octaves" not in json.loads(table_text(TABLE))
    replace(TABLE, half_octaves={"input": (3, 2, 1)}).save(tmp_path / "t.json")
    loaded = CalibrationTable.load(tmp_path / "t.json")
    assert loaded.half_octaves == {"input": (3, 2, 1)}
    assert loaded.digest != TABLE.digest
    assert json.loads((tmp_path / "t.json").read_text())["half_octaves"] == {"input": [3, 2, 1]}


def test_a_table_comes_back_from_disk_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "resnet50.json"
    TABLE.save(path)
    loaded = CalibrationTable.load(path)
    assert loaded.amax == TABLE.amax
    assert loaded.trial_amax == TABLE.trial_amax
    assert (loaded.images, loaded.skipped, loaded.created) == (511, TABLE.skipped, TABLE.created)
    assert table_text(loaded) == table_text(TABLE)
    assert loaded.matches(KEY) == ""
    assert [item.name for item in path.parent.iterdir()] == ["resnet50.json"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_saving_again_replaces(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    TABLE.save(path)
    replace(TABLE, images=3).save(path)
    assert CalibrationTable.load(path).images == 3


def test_the_digest_is_of_the_content_not_of_the_time() -> None:
    assert replace(TABLE, created="later").digest == TABLE.digest
    assert replace(TABLE, images=512).digest != TABLE.digest
    assert read_table(table_text(TABLE), "t").digest == TABLE.digest


def test_one_method_is_selected() -> None:
    assert TABLE.select("max") == {"input": 2.640000104904175, "relu": 7.25}
    assert TABLE.select_trial("max") == {"input": 2.5, "relu": 7.0}
    assert replace(TABLE, trial_amax={}).select_trial("max") == TABLE.select("max")
    with pytest.raises(
        UnknownNameError,
        match=r"unknown calibration method 'entrop'\ndid you mean: entropy\?\n.*: entropy, max",
    ):
        TABLE.select("entrop")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"model_sha256": "c" * 64}, "the model is another one"),
        ({"data_digest": "c" * 64}, "the images are others"),
        (
            {"preprocessing": to_plain(Preprocessing(crop=(224, 224), resize=232))},
            "the preprocessing is another one",
        ),
        ({"settings": {"images": 512, "seed": 1, "bins": 2048}}, "the settings differ: seed"),
        ({"settings": {"images": 64, "seed": 0}}, "the settings differ: bins, images"),
        ({"settings": {**KEY.settings, "more": 1}}, "the settings differ: more"),
        ({"model_sha256": "c" * 64, "data_digest": "c" * 64}, "the model is another one"),
    ],
)
def test_why_a_table_does_not_fit(change: dict[str, Any], reason: str) -> None:
    wanted = replace(KEY, **change)
    assert TABLE.matches(wanted) == reason
    assert read_table(table_text(TABLE), "t").matches(wanted) == reason


def test_a_table_must_have_every_tensor() -> None:
    assert TABLE.matches(KEY, ["relu"]) == ""
    assert TABLE.matches(KEY, ["relu", "pool", "logits"]) == "it has no range for pool"


def test_a_table_refuses_another_model() -> None:
    TABLE.require_model("a" * 64)
    with pytest.raises(
        DataError,
        match=rf"belongs to another model\nit was made for sha256 {'a' * 64}, this model has "
        rf"{'c' * 64}\ncalibrate this model: deploykit calibrate",
    ):
        TABLE.require_model("c" * 64)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no calibration table .*none.json\nmake one: deploykit"):
        CalibrationTable.load(tmp_path / "none.json")


def test_a_table_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*Is a directory"):
        CalibrationTable.load(tmp_path)
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(DataError, match=r"cannot read .*latin.json: 'utf-8' codec"):
        CalibrationTable.load(tmp_path / "latin.json")


@pytest.mark.parametrize("length", [0, 1, 200])
def test_a_torn_file_is_not_json(length: int) -> None:
    with pytest.raises(
        DataError, match=r"^table.json is not JSON, perhaps cut off: .*\ncalibrate again"
    ):
        read_table(table_text(TABLE)[:length], "table.json")


@pytest.mark.parametrize(
    ("text", "found"), [(altered(schema_version=1), "1"), ("{}", "None"), ("[]", "None")]
)
def test_another_schema(text: str, found: str) -> None:
    with pytest.raises(
        DataError, match=rf"t has schema version {found}, this deploykit reads 2\ncalibrate again"
    ):
        read_table(text, "t")


@pytest.mark.parametrize(
    "text",
    [
        altered(key=None),
        altered(key={"model_sha256": "a"}),
        altered(images="many"),
        altered(amax=[1, 2]),
        altered(amax={"input": 3}),
        altered(amax={"input": {"max": None}}),
        altered(amax={"input": {"max": "wide"}}),
        altered(amax={"input": {"max": 10**400}}),
        '{"schema_version": 2}',
        altered(trial_amax=None),
        altered(key={**json.loads(table_text(TABLE))["key"], "colour": "blue"}),
        altered(skipped="a.png"),
    ],
)
def test_a_table_that_lacks_something(text: str) -> None:
    with pytest.raises(
        DataError, match=r"^t: (Expected|Object|Number) .*\ncalibrate again: deploykit calibrate"
    ):
        read_table(text, "t")


MALFORMED = [
    (
        altered(key={**KEY_BODY, "colour": "blue"}),
        "Object contains unknown field `colour` - at `$.",
    ),
    (altered(images="511"), "Expected `int`, got `str` - at `$.images`"),
    (altered(images=nan), "Expected `int`, got `float` - at `$.images`"),
    (altered(images=True), "Expected `int`, got `bool` - at `$.images`"),
    (altered(skipped={}), "Expected `array`, got `object` - at `$.skipped`"),
    (altered(created=3), "Expected `str`, got `int` - at `$.created`"),
    (altered(key=[]), "Expected `object`, got `array` - at `$.key`"),
    (
        altered(amax={"input": {"max": "wide"}}),
        "Expected `float`, got `str` - at `$.amax[...][...]`",
    ),
    (altered(amax={"input": {"max": 10**400}}), "Number out of range - at `$.amax[...][...]`"),
    (altered(amax=[]), "Expected `object`, got `array` - at `$.amax`"),
    ('{"schema_version": 2}', "Object missing required field `key`"),
]


@pytest.mark.parametrize(("text", "message"), MALFORMED)
def test_a_malformed_table(text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_table(text, "t")
    first, remedy = str(caught.value).splitlines()
    assert first.startswith(f"t: {message}")
    assert remedy == "calibrate again: deploykit calibrate MODEL --data FOLDER"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "t is not JSON, perhaps cut off: maximum recursion depth exceeded"),
        ('{"key":' * 100_000, "t is not JSON, perhaps cut off: maximum recursion depth exceeded"),
        ("9" * 5000, "t is not JSON, perhaps cut off: Exceeds the limit"),
        ("[]", "t has schema version None, this deploykit reads 2"),
        ('{"schema_version": NaN}', "t has schema version nan, this deploykit reads 2"),
        (
            '{"schema_version": 2, "schema_version": 3}',
            "t has schema version 3, this deploykit reads 2",
        ),
    ],
    ids=["brackets", "objects", "huge", "array", "nan", "twice"],
)
def test_a_text_that_is_no_table(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t").write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        CalibrationTable.load(tmp_path / "t")
    *first, remedy = str(caught.value).splitlines()
    assert " ".join(first).startswith(message)
    assert remedy == "calibrate again: deploykit calibrate MODEL --data FOLDER"
    assert not is_table(tmp_path / "t")


def test_fields_of_a_later_release_are_passed_over() -> None:
    assert read_table(altered(colour="blue"), "t").digest == TABLE.digest


@pytest.mark.parametrize("name", ["table_sha25>", "Table_sha256", "digest"])
def test_a_digest_of_another_name_is_no_table_of_before(name: str) -> None:
    text = table_text(TABLE).replace("table_sha256", name).replace('"relu"', '"rel"')
    said = f"^t was changed after .*\\nit has '{name}', but no digest: no older table has that\\nc"
    with pytest.raises(DataError, match=said):
        read_table(text, "t")


@pytest.mark.parametrize("amax", [0.0, -1.0, nan, float("inf"), 1e-40, 3.5e38, -0.0])
@pytest.mark.parametrize("field", ["amax", "trial_amax"])
def test_a_range_must_be_a_positive_number(amax: float, field: str) -> None:
    text = altered(**{field: {"input": {"max": 1.0}, "relu": {"max": amax}}})
    with pytest.raises(
        DataError,
        match=r"^t gives relu the range (-?0.0|-1.0|nan|inf|1e-40|3.5e\+38) by max\nexpected a posi"
        r"tive number from 1.5e-36 to 3.4e\+38, as FP32 has them: calibrate again$",
    ):
        read_table(text, "t")


@pytest.mark.parametrize("images", [0, -1, -511, 513, 10**9])
def test_a_count_of_images_must_be_one(images: int) -> None:
    with pytest.raises(
        DataError, match=rf"^t says that it is of {images} images\nexpected 1 to 512: calibrate aga"
    ):
        read_table(altered(images=images), "t")
    key = {**KEY_BODY, "settings": {}}
    if images > 0:
        assert read_table(altered(images=images, key=key), "t").images == images
    else:
        with pytest.raises(DataError, match="expected 1 or more: calibrate again"):
            read_table(altered(images=images, key=key), "t")


# --- the digest


def test_a_table_has_the_digest_of_all_that_it_says() -> None:
    body = json.loads(table_text(TABLE))
    assert body.pop("table_sha256") == digest(body)
    assert read_table(table_text(TABLE), "t").has_digest


@pytest.mark.parametrize(
    "change",
    [
        {"amax": {**TABLE.amax, "relu": {"max": 7.26, "entropy": 1e-30}}},
        {"created": "2026-11-22T00:00:01+00:00"},
        {"skipped": []},
        {"images": 510},
        {"colour": "blue"},
        {"table_sha256": "0" * 64},
        {"table_sha256": 3},
    ],
)
def test_a_table_that_was_changed(change: dict[str, Any]) -> None:
    text = json.dumps({**json.loads(table_text(TABLE)), **change})
    with pytest.raises(
        DataError,
        match=r"^t was changed after it was written\nit gives sha256 .*, its content has \w+\n"
        r"calibrate again: deploykit calibrate MODEL --data FOLDER$",
    ):
        read_table(text, "t")


def test_a_table_of_before_there_was_a_digest() -> None:
    body = json.loads(table_text(TABLE))
    del body["table_sha256"]
    before = read_table(json.dumps(body), "t")
    assert before == read_table(table_text(TABLE), "t")
    assert not before.has_digest
    assert same_story(TABLE) == "used again: same model, images, preprocessing and settings"
    assert same_story(before) == (
        "used again: same model, images, preprocessing and settings; an older deploykit made it, "
        "without a digest: changes of it would not be found"
    )
    assert "table_sha256" in table_text(before)  # as an export keeps it in its bundle


def test_a_thousand_changed_bytes_are_refused_or_change_nothing(tmp_path: Path) -> None:
    """As a bad disk has it: any byte, anything in its place."""
    chance = np.random.default_rng(15)
    content, refused = table_text(TABLE).encode(), 0
    written = read_table(content.decode(), "t")
    for _ in range(1000):
        changed = bytearray(content)
        changed[chance.integers(len(content))] = chance.integers(256)
        (tmp_path / "t").write_bytes(changed)
        try:
            found = CalibrationTable.load(tmp_path / "t")
        except DeploykitError:
            refused += 1
        else:
            assert found == written
    assert refused > 700  # a third of the bytes are whitespace


def test_a_table_that_is_nested_just_so_deep() -> None:
    """What the reader of JSON still takes, and the writer, which makes the digest, does not."""
    for depth in range(800, 1100, 3):
        inner = "[" * depth + "]" * depth
        text = f'{{"schema_version": 2, "colour": {inner}, "table_sha256": "0"}}'
        with pytest.raises(DataError, match=r"^t (is not JSON|is nested too deep|was changed)"):
            read_table(text, "t")


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match=r"cannot write .*table.json: (Not a dir|File exists)"):
        TABLE.save(tmp_path / "file" / "table.json")


def test_nothing_is_left_of_a_table_that_could_not_be_put_in_place(tmp_path: Path) -> None:
    (tmp_path / "table.json").mkdir()
    with pytest.raises(BundleError, match=r"cannot write .*table.json: Is a directory"):
        TABLE.save(tmp_path / "table.json")
    assert [item.name for item in tmp_path.iterdir()] == ["table.json"]


def test_tables_need_nothing_heavy() -> None:
    code = (
        "import sys, deploykit.precision.calibration.table\n"
        "print(sorted({'numpy', 'onnx', 'onnxruntime', 'torch', 'PIL'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_table_of_before_there_was_a_channel_order_is_of_rgb() -> None:
    rgb = to_plain(Preprocessing(crop=(8, 8)))
    before = {name: value for name, value in rgb.items() if name != "channel_order"}
    key = CalibrationKey("model", "images", rgb, {})
    assert replace(key, preprocessing=before).difference(key) == ""
    assert key.difference(replace(key, preprocessing=before)) == ""
    bgr = to_plain(Preprocessing(crop=(8, 8), channel_order="bgr"))
    for other in (rgb, before):
        said = replace(key, preprocessing=other).difference(replace(key, preprocessing=bgr))
        assert said == "the preprocessing is another one"
