"""Quantize a bundle's FP32 graph with another tool, under that tool's own interpreter.

    PYTHON benchmarks/peer_quantize.py TOOL METHOD BUNDLE IMAGES.npz TARGET.onnx

``int8_peers.py`` starts it, and says which options each tool gets. Versions and options are
written beside the target as ``TARGET.json``. Nothing of deploykit is imported here: the
interpreter may not have it.
"""

from __future__ import annotations

import importlib
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Images = NDArray[np.float32]


class OneByOne:
    """What onnxruntime asks of a reader: the next feed, ``None`` after the last."""

    def __init__(self, name: str, images: Images) -> None:
        self._feeds: Iterator[dict[str, Images]] = ({name: image[None]} for image in images)

    def get_next(self) -> dict[str, Images] | None:
        """One image (1, C, H, W) by the input's name."""
        return next(self._feeds, None)


def read_images(bundle: dict[str, Any], path: Path) -> Images:
    """The images (N, C, H, W) as the bundle's manifest wants them."""
    wanted = bundle["preprocessing"]
    with np.load(path) as data:
        pixels = data["images"]
    has_its_size = wanted["resize"] in (None, min(wanted["crop"]))
    if not has_its_size or list(pixels.shape[1:3]) != wanted["crop"]:
        sys.exit(f"images of {pixels.shape[1:3]} would have to be scaled for {wanted}")
    mean, std = (np.array(wanted[key], np.float32) for key in ("mean", "std"))
    inputs = (pixels / np.float32(255) - mean) / std
    return np.ascontiguousarray(inputs.transpose(0, 3, 1, 2).astype(np.float32))


def with_onnxruntime(method: str, name: str, model: Path, images: Images, target: Path) -> Any:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    extra = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    quantize_static(
        model,
        target,
        OneByOne(name, images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[method],
        extra_options=extra,
    )
    return {"calibrate_method": method, "per_channel": True, "extra_options": extra}


def with_modelopt(
    method: str, name: str, model: Path, images: Images, target: Path, mode: str = "int8"
) -> Any:
    # By its name: the environment that checks this file's types does not have it.
    quantization = importlib.import_module("modelopt.onnx.quantization")
    options = {
        "quantize_mode": mode,
        "calibration_method": method,
        "high_precision_dtype": "fp32",
    }
    quantization.quantize(
        str(model), calibration_data={name: images}, output_path=str(target), **options
    )
    return options


TOOLS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "onnxruntime": (with_onnxruntime, ("onnxruntime", "onnx", "numpy")),
    "modelopt": (with_modelopt, ("modelopt", "onnxruntime", "onnx", "numpy")),
    "modelopt-fp8": (
        partial(with_modelopt, mode="fp8"),
        ("modelopt", "onnxruntime", "onnx", "numpy"),
    ),
}


def main() -> None:
    tool, method, *places = sys.argv[1:]
    bundle, images, target = (Path(place) for place in places)
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    name = manifest["onnx"]["inputs"][0]["name"]
    quantize, packages = TOOLS[tool]
    inputs = read_images(manifest, images)
    options = quantize(method, name, bundle / manifest["onnx"]["path"], inputs, target)
    versions = {package: importlib.import_module(package).__version__ for package in packages}
    record = json.dumps({"options": options, "versions": versions})
    target.with_suffix(".json").write_text(record, encoding="utf-8")


if __name__ == "__main__":
    main()
