"""Compilers for the tests of the backend: the real one for RTX, and fakes of both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deploykit.backends.trt.compiler import load_compiler

if TYPE_CHECKING:
    from deploykit.backends import Compiler


@pytest.fixture
def rtx() -> Compiler:
    pytest.importorskip("tensorrt_rtx", reason="the package tensorrt-rtx-cu13 is not installed")
    return load_compiler("tensorrt-rtx")
