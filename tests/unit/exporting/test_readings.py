"""How often an export reads the files that it writes: large models take seconds each time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime
import pytest

from deploykit.bundle.manifest import CPU_MODEL, MODEL, REFERENCE
from deploykit.core.choices import DefinitionChoices
from deploykit.core.precision import RANDOM, Precision
from deploykit.exporting.steps import ExportOptions, export_bundle
from deploykit.graph import files
from deploykit.precision.calibration.data import CalibrationOptions
from deploykit.precision.quantization.choice import Int8Choices
from deploykit.precision.quantization.request import QuantizationRequest
from deploykit.sources.definition import SourceOptions
from tests.graphs import graph, normal, save

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

OWN = """
net (float[N,3,32,32] x) => (float[N,10] y) {
    [conv] c = Conv <kernel_shape = [3, 3], strides = [2, 2]> (x, w)
    [relu] r = Relu (c)
    [pool] p = GlobalAveragePool (r)
    [flat] f = Flatten (p)
    [head] y = Gemm <transB = 1> (f, v)
}
"""
DEFINITION = """from torch import nn

def net():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    )
"""
WEIGHTS = {"w": normal(16, 3, 3, 3), "v": normal(10, 16, seed=1)}

READ, RUN = "read", "run"


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """How often each file was read as a graph, and opened by onnxruntime."""
    counts: Counter[tuple[str, str]] = Counter()

    def counting(kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(given: object, *args: Any, **options: Any) -> Any:
            if isinstance(given, str | Path):
                counts[Path(given).name, kind] += 1
            return real(given, *args, **options)

        return called

    monkeypatch.setattr(files, "_read", counting(READ, files._read))
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", counting(RUN, session))
    return counts


def export(target: str, precision: Precision, folder: Path) -> None:
    source = SourceOptions()
    if not target.endswith(".onnx"):
        source = SourceOptions(choices=DefinitionChoices(image_size=16))
    request = None
    if precision is Precision.INT8:
        calibration = CalibrationOptions(RANDOM, count=8, table=folder / "table.json")
        request = QuantizationRequest(calibration, Int8Choices(sensitive_layers="keep"))
    options = ExportOptions(
        precision, backend="none", source=source, output=folder / "bundle", quantization=request
    )
    export_bundle(target, options)


MOST = {
    Precision.FP32: {(MODEL, RUN): 1},
    Precision.FP16: {(REFERENCE, RUN): 1, (MODEL, RUN): 1, (CPU_MODEL, RUN): 1},
    # The graph is let go of for the calibration.
    Precision.INT8: {
        (REFERENCE, RUN): 1,
        (REFERENCE, READ): 1,
        (MODEL, RUN): 1,
        (CPU_MODEL, RUN): 1,
    },
}
"""What an export reads of what it wrote: each file is run once, as proof of what was written."""


@pytest.mark.parametrize("precision", MOST)
def test_a_definition(
    precision: Precision, readings: Counter[tuple[str, str]], tmp_path: Path
) -> None:
    (tmp_path / "small.py").write_text(DEFINITION, encoding="utf-8")
    export(f"{tmp_path / 'small.py'}:net", precision, tmp_path)
    assert readings == MOST[precision]


@pytest.mark.parametrize("precision", MOST)
def test_an_own_file(
    precision: Precision, readings: Counter[tuple[str, str]], tmp_path: Path
) -> None:
    original = save(graph(OWN, WEIGHTS), tmp_path / "own.onnx")
    export(str(original), precision, tmp_path)
    assert (readings.pop((original.name, READ)), readings.pop((original.name, RUN))) == (1, 1)
    assert readings == MOST[precision]
