"""INT8 and FP8 of a transformer, by bundle: noise of the output, image by image.

    python -m benchmarks.transformer_int8 IMAGES NAME=BUNDLE [NAME=BUNDLE ...] [--out FILE]

Each BUNDLE is what ``deploykit export MODEL.onnx --int8 --calib OTHER_IMAGES`` made of one model
with another option, such as ``--equalisation off``, or with ``--fp8``. IMAGES is a folder that none
was calibrated on, such as `photograph_cuts` makes.
The bundle's form for CPUs, which rounds where an engine rounds, is held against its own FP32 graph
by onnxruntime with graph optimisations off. Per image: signal to noise of the first output in dB.
The median says what an image loses; the sum over all images is decided by the worst few.

The table goes to standard output, every figure to ``--out``, by default
``results/transformer_int8.json``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit import images
from deploykit.backends import GraphOptions
from deploykit.backends._registry import graph_judge
from deploykit.backends.ort import OrtRunner
from deploykit.bundle.manifest import CPU_MODEL, MANIFEST, REFERENCE, read_manifest
from deploykit.core.environment import describe
from deploykit.core.serialization import to_plain
from deploykit.graph import read_model
from deploykit.graph.kernel_costs import describe_layers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Row:
    """One bundle on all images; ``sqnr_db`` has an entry for each."""

    name: str
    layers: dict[str, int]
    int8_share: float
    equalised: int
    trials: list[dict[str, Any]]
    sqnr_db: list[float]
    sqnr_db_all: float


def outputs(path: Path, batches: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    with OrtRunner(path, GraphOptions(optimise=False)) as runner:
        feed, first = runner.inputs[0].name, runner.outputs[0].name
        return [runner.run({feed: batch})[first].astype(np.float32) for batch in batches]


def decibels(exact: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    signal, noise = exact.astype(np.float64), exact.astype(np.float64) - found
    return float(10 * np.log10(np.square(signal).sum() / np.square(noise).sum()))


def int8_share(bundle: Path) -> float:
    """Share of the multiply-adds in layers whose second operand has eight bits."""
    model = read_model(bundle / REFERENCE)
    summary = describe_layers(model, bundle.name, 1, graph_judge().run_once)
    costs = {layer.name: layer.multiply_adds for layer in summary.layers}
    quantized = {
        str(node.name)
        for node in read_model(bundle / "model.onnx").graph
        for value in node.inputs[1:2]
        if value is not None
        and (maker := value.producer()) is not None
        and (maker.op_type == "DequantizeLinear" or _behind_cast(maker))
    }
    return sum(count for name, count in costs.items() if name in quantized) / sum(costs.values())


def _behind_cast(node: Any) -> bool:
    maker = node.inputs[0].producer() if node.op_type == "Cast" else None
    return maker is not None and maker.op_type == "DequantizeLinear"


def measure(name: str, bundle: Path, folder: Path) -> Row:
    manifest = read_manifest((bundle / MANIFEST).read_text(encoding="utf-8"), bundle)
    source = images.open_images(folder)
    preprocessing = manifest.preprocessing
    batches = [images.prepare(source, index, preprocessing)[None] for index in range(len(source))]
    exact = outputs(bundle / REFERENCE, batches)
    found = outputs(bundle / CPU_MODEL, batches)
    calibration = manifest.calibration or {}
    return Row(
        name,
        dict(manifest.conversion["layers"]),
        int8_share(bundle),
        len(calibration.get("equalised", {})),
        calibration.get("trials", []),
        [decibels(*pair) for pair in zip(exact, found, strict=True)],
        decibels(np.concatenate(exact), np.concatenate(found)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("bundles", nargs="+", metavar="NAME=BUNDLE")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "transformer_int8.json")
    given = parser.parse_args()
    rows = []
    print("| bundle | values equalised | share in 8 bits | median dB | worst dB | all dB |")
    print("|---|---|---|---|---|---|")
    for named in given.bundles:
        name, _, bundle = named.partition("=")
        row = measure(name, Path(bundle), given.images)
        rows.append(row)
        print(
            f"| {name} | {row.equalised} | {row.int8_share:.1%} | {np.median(row.sqnr_db):.1f} "
            f"| {min(row.sqnr_db):.1f} | {row.sqnr_db_all:.1f} |"
        )
    result = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": to_plain(describe()),
        "images": len(rows[0].sqnr_db),
        "rows": [asdict(row) for row in rows],
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
