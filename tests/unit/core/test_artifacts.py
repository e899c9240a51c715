from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploykit.core.artifacts import (
    UNPROVEN,
    EngineRecord,
    OnnxArtifact,
    sha256_of,
    sha256_of_bytes,
)
from deploykit.core.errors import DataError
from deploykit.core.precision import Precision
from deploykit.core.serialization import Source, artifact_to_plain, engine_to_plain, from_plain
from deploykit.core.sizes import ShapeProfile
from deploykit.core.specs import TensorSpec


def engine() -> EngineRecord:
    return EngineRecord(
        file="a.engine",
        sha256="e" * 64,
        bytes=4,
        compiler="tensorrt",
        compiler_version="11.4.0.106",
        compute_capabilities=("9.0",),
        profile=ShapeProfile(1, 8, 32),
        precision=Precision.FP16,
        precision_census={"CONVOLUTION HALF": 53},
        build_s=1.5,
    )


@pytest.mark.parametrize("content", [b"", b"abc", bytes(3_000_000)])
def test_hashes_are_those_of_hashlib(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    expected = hashlib.sha256(content).hexdigest()
    assert sha256_of(path) == sha256_of_bytes(content) == expected


def test_an_artifact_survives_json_in_another_folder() -> None:
    artifact = OnnxArtifact(
        path=Path("/build/model.onnx"),
        sha256="a" * 64,
        precision=Precision.INT8,
        opset=20,
        inputs=(TensorSpec("input", "float32", ("batch", 3, 8, 8)),),
        outputs=(TensorSpec("logits", "float32", ("batch", 10)),),
        parents=("b" * 64, "c" * 64),
    )
    data = artifact_to_plain(artifact)
    assert data["path"] == "model.onnx"
    back = from_plain(OnnxArtifact, json.loads(json.dumps(data)), Source("artifact"))
    assert replace(back, path=Path("/build") / back.path) == artifact
    assert back.precision is Precision.INT8


def test_an_engine_record_survives_json() -> None:
    back = from_plain(
        EngineRecord, json.loads(json.dumps(engine_to_plain(engine()))), Source("record")
    )
    assert back == engine()
    assert back.profile.max_batch == 32
    assert back.warnings == ()


@pytest.mark.parametrize(
    "choices",
    [
        {"optimization_level": 0},
        {"hardware_compatibility": "same-cc"},
        {"optimization_level": 5, "hardware_compatibility": "ampere+"},
    ],
)
def test_choices_of_a_build_are_written_where_they_were_made(choices: dict[str, Any]) -> None:
    made = replace(engine(), **choices)
    plain, usual = engine_to_plain(made), engine_to_plain(engine())
    assert {key: plain[key] for key in plain.keys() - usual.keys()} == choices
    assert from_plain(EngineRecord, json.loads(json.dumps(plain)), Source("record")) == made


def test_a_record_of_before_there_were_such_choices() -> None:
    old = """{"file": "a.engine", "sha256": "aa", "bytes": 4, "compiler": "tensorrt",
    "compiler_version": "11.4.0.106", "compute_capabilities": ["9.0"],
    "profile": {"min_batch": 1, "opt_batch": 8, "max_batch": 32}, "precision": "fp16",
    "precision_census": {"CONVOLUTION HALF": 53}, "build_s": 1.5, "warnings": []}"""
    record = from_plain(EngineRecord, json.loads(old), Source("record"))
    assert (record.optimization_level, record.hardware_compatibility) == (None, "none")
    assert engine_to_plain(record).keys() == json.loads(old).keys()


def test_an_engine_is_unproven_where_a_warning_says_so() -> None:
    assert not engine().is_unproven
    assert not replace(engine(), warnings=("slow",)).is_unproven
    assert replace(engine(), warnings=("slow", f"{UNPROVEN}: not listed")).is_unproven


def test_a_record_with_an_impossible_profile_is_refused() -> None:
    data = engine_to_plain(engine()) | {"profile": {"min_batch": 4, "opt_batch": 2, "max_batch": 1}}
    with pytest.raises(DataError, match="batch profile 4,2,1 is not in order"):
        from_plain(EngineRecord, data, Source("record"))
