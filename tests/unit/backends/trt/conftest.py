"""Compilers for the tests of the backend: the real one for RTX, and fakes of both."""

from __future__ import annotations

import pytest

from deploykit.backends.trt.compiler import Compiler, load_compiler


@pytest.fixture
def rtx() -> Compiler:
    pytest.importorskip("tensorrt_rtx", reason="the package tensorrt-rtx-cu13 is not installed")
    return load_compiler("tensorrt-rtx")
