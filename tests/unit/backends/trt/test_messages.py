from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.backends.trt.compiler import Messages, clean, logger_into
from tests.fakes.tensorrt_fake import FakeTensorrt, Script, Severity

if TYPE_CHECKING:
    from deploykit.backends import Compiler

ECHO = "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (cudaError 35)"


def test_errors_are_kept_and_each_warning_once() -> None:
    messages = Messages()
    for severity in ("INTERNAL_ERROR", "ERROR", "WARNING", "WARNING", "INFO", "VERBOSE"):
        messages.add(severity, f"  text of {severity}\n")
    assert messages.errors == ["text of INTERNAL_ERROR", "text of ERROR"]
    assert messages.warnings == ["text of WARNING"]


def test_the_reason_is_the_first_error_that_is_no_echo() -> None:
    assert Messages(errors=[ECHO, "no kernel", "build failed"]).reason() == "no kernel"
    assert Messages(errors=[ECHO]).reason() == ECHO


def test_without_errors_the_reason_is_the_last_warning() -> None:
    assert Messages(warnings=["slow", "CUDA error 35"]).reason() == "CUDA error 35"
    assert Messages().reason() == "it gave no reason"


def test_clean_drops_places_in_the_vendors_source_only() -> None:
    text = "a: Error Code 4 (no profile. In validate at /_src/api/network.cpp:4023)"
    assert clean(text) == "a: Error Code 4 (no profile.)"
    assert clean("In input (x), minShape is small") == "In input (x), minShape is small"


def test_the_logger_is_of_the_modules_own_kind() -> None:
    messages = Messages()
    module = FakeTensorrt(Script())
    logger = logger_into(messages, module)
    assert isinstance(logger, module.ILogger)
    logger.log(Severity.ERROR, "bad")
    assert messages.errors == ["bad"]


def test_the_real_binding_accepts_the_logger(rtx: Compiler) -> None:
    messages = Messages()
    builder = rtx.module.Builder(logger_into(messages, rtx.module))
    config = builder.create_builder_config()
    assert not config.set_compute_capability(rtx.module.ComputeCapability.SM80, 5)
    assert "setComputeCapability" in messages.reason()
