"""What a report says of bundles, without the pages that browsers show."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from deploykit.core.errors import BundleError, UsageError
from deploykit.core.progress import SilentProgress
from deploykit.reporting.bundles import SCRIPTS, page_of, report_data, verdict_of, write_report
from deploykit.reporting.measured import picture_of
from tests.bundles import PLAIN, engine_record, write_bundle
from tests.unit.reporting.plain_parts import require_plain

if TYPE_CHECKING:
    from pathlib import Path


def told(**changes: Any) -> dict[str, Any]:
    known: dict[str, Any] = {
        "name": "net-int8",
        "validation": [{"passed": True}, {"passed": True}],
        "answers": {"images": 256, "measure": "answers", "count": 3},
        "layers": {
            "precisions": [
                {"precision": "fp32", "layers": 1, "share": 0.001},
                {"precision": "fp16", "layers": 3, "share": 0.12},
                {"precision": "int8", "layers": 9, "share": 0.879},
            ]
        },
        "files": [
            {"name": "model.onnx", "bytes": 25_600_000},
            {"name": "reference.onnx", "bytes": 102_000_000},
        ],
        "engines": [{}, {}],
        "doubts": [],
    }
    return known | changes


def test_the_verdict_is_a_sentence() -> None:
    assert verdict_of(told()) == (
        "net-int8 passed 2 of 2 checks of its export and answers as FP32 does on 253 of 256 "
        "images; arithmetic 88 % INT8, 12 % FP16; graph 25.6 MB instead of 102; 2 engines."
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"answers": {"reason": "x"}}, "2 of 2 checks of its export; arithmetic"),
        (
            {"answers": {"images": 8, "measure": "error", "error": 0.0123}},
            "gives the outputs of FP32 within 1.23 % on 8 images",
        ),
        ({"engines": []}, "; no engine yet."),
        (
            {"doubts": ["one image alone was compared"]},
            "; 2 engines. WEAK VERIFICATION: one image alone was compared.",
        ),
        ({"engines": [{}]}, "; 1 engine."),
        ({"files": [{"name": "model.onnx", "bytes": 1234}]}, "; graph 1.23 kB; "),
        ({"files": []}, "12 % FP16; 2 engines."),
        ({"layers": {"precisions": []}}, "256 images; graph"),
        (
            {"layers": {"precisions": [{"precision": "int8", "layers": 1, "share": 0.9999}]}},
            "arithmetic 99 % INT8;",
        ),
        (
            {"layers": {"precisions": [{"precision": "int8", "layers": 1, "share": 1.0}]}},
            "arithmetic 100 % INT8;",
        ),
    ],
)
def test_the_verdict_says_what_there_is(changes: dict[str, Any], said: str) -> None:
    assert said in verdict_of(told(**changes))


def test_an_fp32_bundle_has_layers_engines_and_a_reason(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", engine_record())
    data = report_data([folder, folder], data=None, progress=SilentProgress())
    (bundle,) = data["bundles"]
    assert bundle["answers"] == bundle["errors"]
    assert bundle["errors"]["reason"].endswith("to compare with: it is FP32 itself")
    assert [bundle[each] for each in ("ranges", "frontier", "quantized")] == [None, None, {}]
    (engine,) = bundle["engines"]
    facts = dict(engine["facts"])
    assert facts["Compiler"] == "tensorrt 11.4.0.106"
    assert facts["Layers"] == "1 CONVOLUTION FLOAT"
    assert facts["Batch"] == "1 to 4, best 2"
    names = {file["name"]: file["bytes"] for file in bundle["files"]}
    assert names["model.onnx"] == (folder / "model.onnx").stat().st_size
    assert "colours-fp32" in page_of(data)


def test_a_report_needs_a_bundle(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    with pytest.raises(UsageError, match="a report of no bundle\nname at least one folder"):
        write_report([], file)
    with pytest.raises(BundleError):
        write_report([tmp_path / "none"], file)
    assert not file.exists()


def test_a_picture_has_the_pixels_of_the_image() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)
    for order in ("rgb", "bgr"):
        look = replace(PLAIN, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), channel_order=order)
        given = pixels if order == "rgb" else pixels[..., ::-1]
        prepared = (given / 255 - np.array(look.mean)) / np.array(look.std)
        uri = picture_of(prepared.transpose(2, 0, 1).astype(np.float32), look)
        file = io.BytesIO(base64.b64decode(uri.partition(",")[2]))
        with Image.open(file) as image:
            np.testing.assert_array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("name", [*SCRIPTS, "bundles.html", "bundles.css"])
def test_a_part_is_small_plain_and_loads_nothing(name: str) -> None:
    folder = resources.files("deploykit.reporting").joinpath("assets")
    require_plain(folder.joinpath(name).read_text("utf-8"))
