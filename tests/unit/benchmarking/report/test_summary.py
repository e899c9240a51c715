"""Remarks that rows share, with the numbers in which they differ."""

from __future__ import annotations

import pytest

from deploykit.benchmarking.report.summary import _merged


@pytest.mark.parametrize(
    ("sentences", "expected"),
    [
        (["busy: 3% used", "busy: 12% used"], "busy: 3 to 12% used"),
        (["built by TensorRT 10.12.0.1"] * 2, "built by TensorRT 10.12.0.1"),
        (["1,024 of 2", "900 of 2"], "900 to 1,024 of 2"),
        (["at 2e-3", "at 1e-3"], "at 1e-3 to 2e-3"),
        (["runs on openvino 2026.1.0", "runs on openvino 2026.2.0"],
         "runs on openvino 2026.1 to 2026.2.0"),
    ],
)  # fmt: skip
def test_one_sentence_of_several(sentences: list[str], expected: str) -> None:
    assert _merged(sentences) == expected
