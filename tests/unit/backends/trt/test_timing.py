"""The timing cache: what a second build need not time, and files that are not as they should be."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from deploykit.backends import CompileOptions, Compiler
from deploykit.backends.trt.builder import compile_onnx
from deploykit.backends.trt.timing import timing_file
from deploykit.core import environment
from deploykit.core.environment import Gpu
from deploykit.core.errors import BuildError
from tests.fakes.network_fake import DataType, ILayer, INetworkDefinition, ITensor, LayerType
from tests.fakes.tensorrt_fake import FakeTensorrt, Script, Severity

MARK = b"deploykit timing cache 1\n"


def script(*layers: str, **changes: Any) -> Script:
    x = ITensor("x", DataType.HALF, (-1, 3))
    found = [ILayer(LayerType.CONVOLUTION, [x], ITensor(name, DataType.HALF)) for name in layers]
    return Script(network=INetworkDefinition([x], found), **changes)


def fake(told: Script, name: str = "tensorrt") -> Compiler:
    module = FakeTensorrt(told)
    return Compiler(name, module.__version__, module, is_portable=name == "tensorrt-rtx")


def build(told: Script, folder: Path | None, name: str = "tensorrt") -> list[bytes]:
    """The layers that were timed."""
    compile_onnx(fake(told, name), Path("model.onnx"), CompileOptions(timing_folder=folder))
    return told.timed


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "gpus", lambda: (Gpu("NVIDIA H100 PCIe", "9.0", 1),))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "engines"
    folder.mkdir()
    return folder


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "tensorrt-11.4.0.106-sm90-nvidia-h100-pcie.timing"


def written(blob: bytes) -> bytes:
    return MARK + hashlib.sha256(blob).digest() + blob


def test_a_second_build_of_a_graph_times_nothing(folder: Path, path: Path) -> None:
    assert build(script("a", "b", "c"), folder) == [b"a", b"b", b"c"]
    assert path.read_bytes() == written(b"9.0\na\nb\nc")
    assert path.stat().st_mode & 0o777 == 0o644
    before = path.stat()
    assert build(script("a", "b", "c"), folder) == []
    assert path.stat() == before
    assert [each.name for each in folder.iterdir()] == [path.name]


def test_another_graph_times_what_is_new(folder: Path, path: Path) -> None:
    build(script("a", "b"), folder)
    assert build(script("b", "c"), folder) == [b"c"]
    assert path.read_bytes() == written(b"9.0\na\nb\nc")


@pytest.mark.parametrize(
    ("gpu", "name"),
    [
        (Gpu("NVIDIA A100-SXM4-80GB", "8.0", 1), "tensorrt-11.4-sm80-nvidia-a100-sxm4-80gb"),
        (Gpu("Tesla T4", "7.5", 1), "tensorrt-11.4-sm75-tesla-t4"),
        (Gpu("../../etc/x", "12.0", 1), "tensorrt-11.4-sm120-etc-x"),
        (Gpu("", "9.0", 1), "tensorrt-11.4-sm90"),
    ],
)
def test_a_file_for_each_version_and_gpu(folder: Path, gpu: Gpu, name: str) -> None:
    found = timing_file(folder, Compiler("tensorrt", "11.4", None), gpu)
    assert found == folder / f"{name}.timing"


def test_without_a_folder_nothing_is_kept(folder: Path, tmp_path: Path) -> None:
    assert build(script("a"), None) == build(script("a"), None) == [b"a"]
    assert list(folder.iterdir()) == []
    assert [each.name for each in tmp_path.iterdir()] == ["engines"]


def test_the_compiler_for_rtx_times_nothing_and_is_given_none(folder: Path) -> None:
    build(script("a", cache_refusal="raise"), folder, "tensorrt-rtx")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"9.0\na",
        MARK,
        written(b"9.0\na")[:-1],
        written(b"9.0\na") + b"x",
        b"X" + written(b"9.0\na")[1:],
    ],
    ids=["empty", "without a head", "a head alone", "cut off", "too long", "another mark"],
)
def test_a_damaged_file_never_reaches_the_compiler(
    folder: Path, path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_bytes(content)
    assert build(script("a"), folder) == [b"a"]
    assert f"the timing cache {path} is damaged: kernels are timed anew" in caplog.text
    assert path.read_bytes() == written(b"9.0\na")


def test_a_file_of_another_gpu_is_passed_over(
    folder: Path, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_bytes(written(b"8.0\na"))
    assert build(script("a"), folder) == [b"a"]
    assert "is of another GPU or version: kernels are timed anew" in caplog.text
    assert path.read_bytes() == written(b"9.0\na")


def test_what_it_says_of_a_cache_is_not_the_reason_of_a_failure(folder: Path, path: Path) -> None:
    path.write_bytes(written(b"8.0\na"))
    told = script("a", plan=None, said=[(Severity.ERROR, "no memory")])
    with pytest.raises(BuildError, match="it says: no memory"):
        build(told, folder)


@pytest.mark.parametrize("refusal", ["create", "raise", "set", "serialize"])
def test_a_compiler_that_takes_no_cache(
    folder: Path, path: Path, refusal: str, caplog: pytest.LogCaptureFixture
) -> None:
    content = written(b"9.0\na")
    path.write_bytes(content)
    timed = build(script("a", "b", cache_refusal=refusal), folder)
    assert timed == ([b"b"] if refusal == "serialize" else [b"a", b"b"])
    assert path.read_bytes() == content
    taken = refusal == "serialize"
    assert ("takes no timing cache: the next build begins anew" in caplog.text) is not taken


def test_a_failed_build_leaves_the_file_as_it_was(folder: Path, path: Path) -> None:
    path.write_bytes(written(b"9.0\na"))
    with pytest.raises(BuildError, match="cannot build"):
        build(script("a", "b", plan=None), folder)
    assert path.read_bytes() == written(b"9.0\na")


@pytest.mark.parametrize(("meanwhile", "kept"), [(b"9.0\nz", b"9.0\na\nz"), (b"8.0\nz", b"9.0\na")])
def test_two_builds_at_a_time_keep_what_both_timed(
    folder: Path, path: Path, meanwhile: bytes, kept: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploykit.backends.trt.timing import TimingCache

    save = TimingCache.save

    def late(cache: TimingCache) -> None:
        path.write_bytes(written(meanwhile))
        save(cache)

    monkeypatch.setattr(TimingCache, "save", late)
    build(script("a"), folder)
    assert path.read_bytes() == written(kept)


def test_a_place_that_cannot_be_read_or_written(
    folder: Path, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.mkdir()
    assert build(script("a"), folder) == [b"a"]
    assert f"cannot read the timing cache {path}" in caplog.text
    assert f"cannot write the timing cache {path}" in caplog.text
    assert [each.name for each in folder.iterdir()] == [path.name]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
def test_a_pipe_in_its_place_is_not_waited_for(
    folder: Path, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "deploykit")
    os.mkfifo(path)
    assert build(script("a"), folder) == [b"a"]
    assert f"cannot read the timing cache {path}" in caplog.text
