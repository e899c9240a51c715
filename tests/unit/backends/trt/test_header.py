from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

from deploykit.backends import HEADER_BYTES, CompileOptions, EngineHeader
from deploykit.backends.tensorrt import read_header
from deploykit.backends.trt.builder import compile_onnx
from deploykit.core import environment
from tests.fakes.tensorrt_fake import EngineValidity, FakeTensorrt, Script
from tests.unit.backends.trt import small_models

if TYPE_CHECKING:
    from deploykit.backends import Compiler


def header(tag: bytes, version: tuple[int, int, int, int]) -> bytes:
    return (tag.ljust(24, b"\0") + bytes(version)).ljust(HEADER_BYTES, b"\0")


GENERAL = header(b"ftrt", (11, 4, 0, 106))
RTX = header(b"vtrt", (1, 7, 1, 116))
NOT_FOR_THIS_GPU = "it was not compiled for this GPU's compute capability"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    pytest.importorskip("tensorrt_rtx", reason="the package tensorrt-rtx-cu13 is not installed")
    from deploykit.backends.trt.compiler import load_compiler

    path = small_models.convolution(tmp_path_factory.mktemp("header") / "model.onnx")
    options = CompileOptions(compute_capabilities=("8.9",))
    return compile_onnx(load_compiler("tensorrt-rtx"), path, options).plan


def test_the_header_size_is_the_runtimes_own(rtx: Compiler) -> None:
    logger = rtx.module.Logger(rtx.module.Logger.ERROR)
    assert rtx.module.Runtime(logger).engine_header_size == HEADER_BYTES


@pytest.mark.skipif(bool(environment.gpus()), reason="says what a machine without a GPU can tell")
@pytest.mark.parametrize("size", [HEADER_BYTES, 4096, None])
def test_a_good_engine_is_unknown_without_a_driver(plan: bytes, size: int | None) -> None:
    expected = EngineHeader("unknown", "the CUDA driver is needed to judge it")
    assert read_header(plan[:size], "tensorrt-rtx") == expected


@pytest.mark.parametrize("junk", [b"", b"short", b"junk" * 40, GENERAL])
def test_junk_is_invalid(rtx: Compiler, junk: bytes) -> None:
    reason = "it is damaged or not an engine of this compiler"
    assert read_header(junk, "tensorrt-rtx") == EngineHeader("invalid", reason)


def test_a_truncated_header_is_invalid(plan: bytes) -> None:
    assert read_header(plan[: HEADER_BYTES - 1], "tensorrt-rtx").state == "invalid"


def test_a_real_engine_has_the_tag_and_version(rtx: Compiler, plan: bytes) -> None:
    found = read_header(plan, "tensorrt")
    assert found == EngineHeader("invalid", f"it is an engine of {rtx.label}")


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (GENERAL, ("unknown", "it is an engine of tensorrt 11.4.0.106; only its tag was read")),
        (RTX, ("invalid", "it is an engine of tensorrt-rtx 1.7.1.116")),
        (b"new!" * 30, ("unknown", "it does not begin like an engine of tensorrt")),
        (GENERAL[:10], ("invalid", "10 bytes are too few for an engine")),
        (b"", ("invalid", "0 bytes are too few for an engine")),
    ],
)
def test_general_engines_are_judged_by_their_tag(plan: bytes, expected: tuple[str, str]) -> None:
    found = read_header(plan, "tensorrt")
    assert (found.state, found.reason) == expected


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (RTX, ("unknown", "it is an engine of tensorrt-rtx 1.7.1.116; only its tag was read")),
        (GENERAL, ("invalid", "it is an engine of tensorrt 11.4.0.106")),
        (b"junk" * 30, ("invalid", "it does not begin like an engine of tensorrt-rtx")),
    ],
)
def test_rtx_engines_without_the_package(
    monkeypatch: pytest.MonkeyPatch, plan: bytes, expected: tuple[str, str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    found = read_header(plan, "tensorrt-rtx")
    assert (found.state, found.reason) == expected


@pytest.mark.parametrize(
    ("validity", "expected"),
    [
        ((EngineValidity.VALID, 0), ("valid", "")),
        (
            (EngineValidity.SUBOPTIMAL, 0),
            ("valid", "it runs here, perhaps slower than an engine compiled for this GPU"),
        ),
        ((EngineValidity.INVALID, 0), ("unknown", "the CUDA driver is needed to judge it")),
        ((EngineValidity.INVALID, 64), ("unknown", "the CUDA driver is needed to judge it")),
        (
            (EngineValidity.INVALID, 3),
            ("invalid", f"it was compiled by another version; {NOT_FOR_THIS_GPU}"),
        ),
    ],
)
def test_every_answer_of_the_runtime(
    monkeypatch: pytest.MonkeyPatch, validity: Any, expected: tuple[str, str]
) -> None:
    fake: Any = FakeTensorrt(Script(validity=validity))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake)
    found = read_header(RTX, "tensorrt-rtx")
    assert (found.state, found.reason) == expected
