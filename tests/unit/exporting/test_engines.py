from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.backends import CompileOptions, Compiler
from deploykit.backends.trt.compiler import load_compiler
from deploykit.core import environment
from deploykit.core.artifacts import EngineRecord, OnnxArtifact, sha256_of
from deploykit.core.environment import Gpu
from deploykit.core.errors import BuildError, BundleError, PrecisionError, UsageError
from deploykit.core.precision import FACTS, Precision
from deploykit.core.serialization import Source, engine_to_plain, from_plain
from deploykit.core.sizes import ShapeProfile
from deploykit.exporting.engines import build_engine, prove_precision, require_capabilities
from tests.fakes.network_fake import ILayer, INetworkDefinition, ITensor, LayerType
from tests.fakes.tensorrt_fake import FakeTensorrt
from tests.fakes.tensorrt_fake import Script as FakeScript
from tests.unit.backends.trt import small_models

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from deploykit.core.progress import ProgressTask

ONE = CompileOptions(compute_capabilities=("8.9",))


@pytest.fixture
def rtx() -> Compiler:
    pytest.importorskip("tensorrt_rtx", reason="the package tensorrt-rtx-cu13 is not installed")
    return load_compiler("tensorrt-rtx")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    return folder


def artifact(path: Path, precision: Precision) -> OnnxArtifact:
    digest = sha256_of(path) if path.exists() else ""
    return OnnxArtifact(path, digest, precision, small_models.OPSET, (), ())


def fake_tensorrt(plan: bytes | None = b"ftrt plan") -> Compiler:
    x = ITensor("x", shape=(-1, 3))
    layer = ILayer(LayerType.MATRIX_MULTIPLY, [x, ITensor("w")], ITensor("y"))
    module = FakeTensorrt(FakeScript(network=INetworkDefinition([x], [layer]), plan=plan))
    return Compiler("tensorrt", module.__version__, module)


class StepNames:
    def __init__(self) -> None:
        self.names: list[str] = []
        self.updates = 0

    def update(self, done: float, total: float | None = None, detail: str = "") -> None:
        self.updates += 1

    @contextmanager
    def step(self, name: str) -> Iterator[ProgressTask]:
        self.names.append(name)
        yield self


@pytest.mark.parametrize(
    ("precision", "census"),
    [
        (Precision.FP32, {"CONVOLUTION FLOAT": 1, "MATRIX_MULTIPLY FLOAT": 1}),
        (Precision.FP16, {"CONVOLUTION HALF": 1, "MATRIX_MULTIPLY HALF": 1}),
        (Precision.INT8, {"CONVOLUTION INT8": 1, "MATRIX_MULTIPLY INT8": 1}),
    ],
)
def test_an_engine_of_each_precision(
    rtx: Compiler, tmp_path: Path, folder: Path, precision: Precision, census: dict[str, int]
) -> None:
    path = tmp_path / "model.onnx"
    if precision is Precision.INT8:
        small_models.quantized(path, np.float16)
    else:
        small_models.convolution(path, np.float16 if precision is Precision.FP16 else np.float32)
    progress = StepNames()
    record = build_engine(artifact(path, precision), folder, rtx, ONE, progress)
    written = folder / record.file
    assert record.file == f"tensorrt-rtx-{rtx.version}-{sha256_of(written)[:8]}.engine"
    assert record.label == f"tensorrt-rtx-{rtx.version}"
    assert [entry.name for entry in folder.iterdir()] == [record.file]
    assert record.sha256 == sha256_of(written)
    assert record.bytes == written.stat().st_size
    assert record.precision is precision
    assert dict(record.precision_census).items() >= census.items()
    assert record.compute_capabilities == ("8.9",)
    assert record.profile == ShapeProfile()
    assert from_plain(EngineRecord, engine_to_plain(record), Source("record")) == record
    assert progress.names == [f"compile with {rtx.label}"]
    assert progress.updates > 10


def test_a_repeated_build_replaces_the_same_file(
    rtx: Compiler, tmp_path: Path, folder: Path
) -> None:
    source = artifact(small_models.convolution(tmp_path / "model.onnx"), Precision.FP32)
    first, second = (build_engine(source, folder, rtx, ONE) for _ in range(2))
    assert first.sha256 == second.sha256
    assert len(list(folder.iterdir())) == 1


def test_a_wrong_precision_leaves_no_file(rtx: Compiler, tmp_path: Path, folder: Path) -> None:
    source = artifact(small_models.convolution(tmp_path / "model.onnx"), Precision.FP16)
    pattern = "asked for fp16, but 2 of 2 convolution and matrix layers are FP32\n.*FLOAT: 1"
    with pytest.raises(PrecisionError, match=pattern):
        build_engine(source, folder, rtx, ONE)
    assert list(folder.iterdir()) == []


def test_layers_that_were_kept_in_fp32_on_purpose(
    rtx: Compiler, tmp_path: Path, folder: Path
) -> None:
    source = artifact(small_models.half_converted(tmp_path / "model.onnx"), Precision.FP16)
    record = build_engine(source, folder, rtx, ONE, allowed_fp32=1)
    assert record.precision_census == {"CONVOLUTION FLOAT": 1, "CONVOLUTION HALF": 1}
    with pytest.raises(PrecisionError, match="1 of 2 convolution and matrix layers are FP32"):
        build_engine(source, folder, rtx, ONE)


def test_an_engine_of_tensorrt_names_its_architecture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path
) -> None:
    monkeypatch.setattr(environment, "gpus", lambda: (Gpu("Blackwell", "12.0", 1),))
    source = artifact(tmp_path / "model.onnx", Precision.FP32)
    record = build_engine(source, folder, fake_tensorrt(), CompileOptions())
    assert record.file == f"tensorrt-11.4.0.106-sm120-{PLAN_DIGITS}.engine"
    assert record.compute_capabilities == ("12.0",)
    assert (folder / record.file).read_bytes() == b"ftrt plan"


@pytest.mark.parametrize(
    ("compatibility", "name"),
    [("none", "sm90"), ("same-cc", "sm90"), ("ampere+", "sm80plus")],
)
def test_the_choices_of_a_build_are_recorded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path, compatibility: str, name: str
) -> None:
    monkeypatch.setattr(environment, "gpus", lambda: (Gpu("Hopper", "9.0", 1),))
    source = artifact(tmp_path / "model.onnx", Precision.FP32)
    options = CompileOptions(optimization_level=4, hardware_compatibility=compatibility)
    record = build_engine(source, folder, fake_tensorrt(), options)
    assert record.label == f"tensorrt-11.4.0.106-{name}"
    assert record.optimization_level == 4
    assert record.hardware_compatibility == compatibility
    assert record.compute_capabilities == ("9.0",)


def test_ampere_and_later_are_not_all_able(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path
) -> None:
    monkeypatch.setattr(environment, "gpus", lambda: (Gpu("Ada", "8.9", 1),))
    needing = replace(FACTS["int8"], least_compute_capability=(8, 9))
    monkeypatch.setitem(FACTS, "int8", needing)
    source = artifact(tmp_path / "model.onnx", Precision.INT8)
    words = r"from compute capability 8\.0 on, and not all .* int8 arithmetic\ngive .* same-cc, or"
    with pytest.raises(UsageError, match=words):
        build_engine(
            source, folder, fake_tensorrt(), CompileOptions(hardware_compatibility="ampere+")
        )


def test_a_refused_build_keeps_the_old_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path
) -> None:
    monkeypatch.setattr(environment, "gpus", lambda: (Gpu("Hopper", "9.0", 1),))
    source = artifact(tmp_path / "model.onnx", Precision.FP32)
    build_engine(source, folder, fake_tensorrt(), CompileOptions())
    with pytest.raises(BuildError, match=r"cannot build model\.onnx"):
        build_engine(source, folder, fake_tensorrt(plan=None), CompileOptions())
    assert [entry.read_bytes() for entry in folder.iterdir()] == [b"ftrt plan"]


PLAN_DIGITS = hashlib.sha256(b"ftrt plan").hexdigest()[:8]


@pytest.mark.parametrize("obstacle", ["missing folder", "a folder of that name", "a file"])
def test_a_file_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path, obstacle: str
) -> None:
    monkeypatch.setattr(environment, "gpus", lambda: (Gpu("Hopper", "9.0", 1),))
    if obstacle == "missing folder":
        folder = folder / "missing"
    elif obstacle == "a file":
        folder = folder / "file"
        folder.write_text("x")
    else:
        (folder / f"tensorrt-11.4.0.106-sm90-{PLAN_DIGITS}.engine").mkdir()
    source = artifact(tmp_path / "model.onnx", Precision.FP32)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BundleError, match=r"cannot write .*sm90-.*\.engine\nreason: ") as caught:
        build_engine(source, folder, fake_tensorrt(), CompileOptions())
    assert isinstance(caught.value.__cause__, OSError)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_file_has_the_usual_permissions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path
) -> None:
    monkeypatch.setattr(environment, "gpus", lambda: (Gpu("Hopper", "9.0", 1),))
    source = artifact(tmp_path / "model.onnx", Precision.FP32)
    record = build_engine(source, folder, fake_tensorrt(), CompileOptions())
    plain = tmp_path / "plain"
    plain.touch()
    assert (folder / record.file).stat().st_mode == plain.stat().st_mode


FP32, FP16, INT8 = Precision.FP32, Precision.FP16, Precision.INT8


@pytest.mark.parametrize(
    ("asked", "census", "allowed"),
    [
        (FP32, {"CONVOLUTION FLOAT": 53, "POOLING HALF": 1}, 0),
        (FP32, {}, 0),
        (FP16, {"CONVOLUTION HALF": 53, "SOFTMAX FLOAT": 1}, 0),
        (FP16, {"CONVOLUTION HALF": 52, "MATRIX_MULTIPLY FLOAT": 2}, 2),
        (FP16, {"POOLING HALF": 2, "ELEMENTWISE HALF": 1}, 0),
        (INT8, {"CONVOLUTION INT8": 1, "MATRIX_MULTIPLY HALF": 1}, 0),
        (INT8, {"CONVOLUTION INT8": 1, "MATRIX_MULTIPLY FLOAT": 1}, 1),
    ],
)
def test_precision_that_is_proven(asked: Precision, census: dict[str, int], allowed: int) -> None:
    prove_precision(census, asked, allowed)


@pytest.mark.parametrize(
    ("asked", "census", "allowed", "pattern"),
    [
        (FP32, {"CONVOLUTION HALF": 1, "POOLING FLOAT": 9}, 0, "fp32, but 1 of 1 .* are FP16"),
        (
            FP16,
            {"CONVOLUTION FLOAT": 53, "CONVOLUTION HALF": 1},
            0,
            (
                "asked for fp16, but 53 of 54 convolution and matrix layers are FP32\n"
                "the parsed network has CONVOLUTION FLOAT: 53, CONVOLUTION HALF: 1\n"
            ),
        ),
        (
            FP16,
            {"CONVOLUTION FLOAT": 3, "CONVOLUTION HALF": 1},
            2,
            r"3 of 4 .* are FP32 \(2 may stay FP32\)",
        ),
        (FP16, {"CONVOLUTION FLOAT": 1}, 1, "1 of 1 convolution and matrix layers are FP32"),
        (FP16, {"CONVOLUTION HALF": 9, "CONVOLUTION BF16": 1}, 9, "1 of 10 .* are BF16"),
        (FP16, {"POOLING FLOAT": 2}, 0, "2 of 2 arithmetic layers are FP32"),
        (FP16, {}, 0, "but nothing computes in floating point\nthe parsed network has no arith"),
        (INT8, {"CONVOLUTION HALF": 4}, 0, "asked for int8, but 4 of 4 .* are FP16"),
        (
            INT8,
            {"CONVOLUTION INT8": 4, "MATRIX_MULTIPLY FLOAT": 1, "CONVOLUTION HALF": 1},
            0,
            "1 of 6 .* layers are FP32 and 1 of 6 .* layers are FP16",
        ),
        (INT8, {"CONVOLUTION INT8": 4, "MATRIX_MULTIPLY FP8": 1}, 0, "1 of 5 .* are FP8"),
        (Precision.FP8, {"CONVOLUTION HALF": 4}, 0, "4 of 4 .* are FP16"),
        (Precision.FP8, {"CONVOLUTION FP8": 4, "CONVOLUTION INT8": 1}, 0, "1 of 5 .* are INT8"),
        (Precision.FP8, {"CONVOLUTION FP8": 4, "CONVOLUTION FLOAT": 2}, 1, "2 of 6 .* are FP32"),
        (Precision.BF16, {"CONVOLUTION BF16": 4, "CONVOLUTION HALF": 1}, 0, "1 of 5 .* are FP16"),
    ],
)
def test_precision_that_is_not(
    asked: Precision, census: dict[str, int], allowed: int, pattern: str
) -> None:
    with pytest.raises(PrecisionError, match=pattern) as caught:
        prove_precision(census, asked, allowed)
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("precision", "has", "lacks", "least"),
    [
        (Precision.FP8, ("8.9", "9.0", "12.0"), ("7.5", "8.6"), "8.9"),
        (Precision.BF16, ("8.0", "8.6", "12.0"), ("7.0", "7.5"), "8.0"),
    ],
)
def test_gpus_that_lack_the_arithmetic(
    precision: Precision, has: tuple[str, ...], lacks: tuple[str, ...], least: str
) -> None:
    require_capabilities(Precision.INT8, (*lacks, *has))
    require_capabilities(precision, has)
    words = (
        f"capability {', '.join(lacks)} have no {precision} arithmetic\n"
        f"expected {least} or later: give others with"
    )
    with pytest.raises(UsageError, match=words):
        require_capabilities(precision, (*lacks, *has))
