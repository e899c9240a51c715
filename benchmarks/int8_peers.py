"""Our INT8 beside today's tools: the same FP32 graphs, images and judge, in one run.

Run it from the root of the repository, with ``--modelopt`` where some environment has ModelOpt:
``python -m benchmarks.int8_peers DATA [--networks resnet20,resnet56] [--modelopt PYTHON]``.

DATA holds ``<network>_cifar10.npz`` (weights), ``cifar10_calib512.npz`` and
``cifar10_test1000.npz``. Every tool gets the FP32 graph that ``deploykit export --fp32`` writes,
and all 512 images of the one; the result is judged on the other by onnxruntime on the CPU with its
graph optimisations off, a bundle by the form for CPUs that rounds where an engine rounds. What the
peers leave beside their Q/DQ pairs is FP32, so that nothing of it is rounded. Each tool runs in a
process of its own, measured from start to end:

- deploykit: ``export NETWORK --int8 --calib ...``. It starts from the definition, because a bare
  ``.onnx`` does not say that these images are not to be scaled; that it made the same FP32 graph
  is checked by hash. The FP32 row is the same command without INT8: what is not calibration.
- onnxruntime: ``quantize_static``, QDQ, INT8 for activations and weights, ``per_channel=True``,
  ``ActivationSymmetric`` and ``WeightSymmetric`` true, and ``QuantizeBias`` false, without which
  TensorRT refuses the graph. The rest are its defaults (Percentile: 99.999), one image at a time.
- ModelOpt: ``modelopt.onnx.quantization.quantize`` with ``quantize_mode="int8"``,
  ``high_precision_dtype="fp32"``; the rest are its defaults, one image at a time.

The table goes to standard output, every figure to ``benchmarks/results/int8_peers.json``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.export_cost import measure
from deploykit.core.environment import describe
from deploykit.core.serialization import to_plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import onnx

    from benchmarks.export_cost import Sample

HERE = Path(__file__).parent
CALIBRATION = "cifar10_calib512.npz"
TEST = "cifar10_test1000.npz"
WEIGHTS = "_cifar10.npz"

ALL_INT8 = ("--first-layer", "int8", "--residual", "int8", "--sensitive-layers", "int8")
OURS = {
    "deploykit": (),
    "deploykit, everything INT8": ALL_INT8,
    "deploykit, everything INT8, rest FP32": (*ALL_INT8, "--rest", "fp32"),
}
PEERS = {
    "onnxruntime": ("MinMax", "Entropy", "Percentile"),
    "modelopt": ("max", "entropy"),
}
LAYERS = ("Conv", "Gemm", "MatMul")
PASSED_THROUGH = ("Cast", "Transpose")
"""Between a DequantizeLinear and its reader these change the form of the values only."""


@dataclass(frozen=True)
class Made:
    """A quantized graph, what making it took, and what its maker was told and chose."""

    network: str
    tool: str
    graph: Path
    sample: Sample
    options: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One graph against FP32 on the test images; shares between 0 and 1.

    ``layers_int8`` of ``layers`` convolutions and matrix products read data and weight in INT8;
    ``activations_int8`` counts the tensors that are rounded to INT8 while it runs.
    """

    network: str
    tool: str
    top1: float
    agreement: float
    expected_agreement: float
    mean_kl: float
    layers_int8: int
    layers: int
    activations_int8: int
    seconds: float
    peak_mib: float
    options: dict[str, Any]
    logits_sqnr_db: float | None = None


def count_int8(model: onnx.ModelProto) -> tuple[int, int, int]:
    """Layers that read data and weight in INT8, all layers, and activations made INT8."""
    makers = {output: node for node in model.graph.node for output in node.output}
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {name for name, node in makers.items() if node.op_type == "Constant"}

    def origin(tensor: str, passed: tuple[str, ...]) -> str:
        while tensor in makers and makers[tensor].op_type in passed:
            tensor = makers[tensor].input[0]
        return tensor

    def is_dequantized(tensor: str) -> bool:
        maker = makers.get(origin(tensor, PASSED_THROUGH))
        return maker is not None and maker.op_type == "DequantizeLinear"

    layers = [node for node in model.graph.node if node.op_type in LAYERS]
    rounded = {
        origin(node.input[0], ("Cast",))
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }
    in_int8 = sum(all(map(is_dequantized, node.input[:2])) for node in layers)
    return in_int8, len(layers), len(rounded - constants)


def run(tool: str, command: list[str], folder: Path) -> Sample:
    print(f"{folder.parent.name}: {tool}", file=sys.stderr, flush=True)
    return measure(tool, command, folder)


def export(network: str, tool: str, asked: Sequence[str], data: Path, folder: Path) -> Made:
    """Run in a folder of its own, where no earlier calibration can be found again."""
    folder.mkdir(parents=True)
    weights = str(data / f"{network}{WEIGHTS}")
    command = [sys.executable, "-m", "deploykit", "export", network, "--weights", weights, *asked]
    if "--int8" in asked:
        command += ["--calib", str(data / CALIBRATION)]
    sample = run(tool, [*command, "--backend", "none", "-o", "bundle"], folder)
    bundle = folder / "bundle"
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    found = manifest["calibration"] or {}
    chosen = {key: found[key] for key in ("method", "policy") if key in found}
    return Made(network, tool, bundle / "model.onnx", sample, {"asked": list(asked), **chosen})


def quantize(python: str, tool: str, method: str, fp32: Made, data: Path) -> Made:
    """Give a peer a copy of the FP32 bundle: some write beside the graph that they read."""
    name = f"{tool} {method}"
    folder = fp32.graph.parent.parent.parent / name.replace(" ", "-")
    bundle = shutil.copytree(fp32.graph.parent, folder / "bundle")
    script, target = HERE / "peer_quantize.py", folder / "int8.onnx"
    places = [str(place) for place in (bundle, data / CALIBRATION, target)]
    sample = run(name, [python, str(script), tool, method, *places], folder)
    record = json.loads(target.with_suffix(".json").read_text(encoding="utf-8"))
    return Made(fp32.network, name, target, sample, record["options"], record["versions"])


def make(network: str, data: Path, pythons: dict[str, str], folder: Path) -> Iterator[Made]:
    """The FP32 graph first, then every tool's INT8."""
    fp32 = export(network, "FP32", ("--fp32",), data, folder / "fp32")
    yield fp32
    for number, (tool, options) in enumerate(OURS.items()):
        made = export(network, tool, ("--int8", *options), data, folder / str(number))
        if (made.graph.parent / "reference.onnx").read_bytes() != fp32.graph.read_bytes():
            sys.exit(f"{tool} did not start from the FP32 graph of {network}")
        yield made
    for tool, python in pythons.items():
        for method in PEERS[tool]:
            yield quantize(python, tool, method, fp32, data)


def judge_all(made: list[Made], data: Path, threads: int) -> list[Row]:
    """Compare each graph with the first, which is the FP32 one."""
    # Only now, for they take more memory than what was measured until here.
    import numpy as np

    from benchmarks.int8_accuracy import judge, load
    from deploykit.backends import GraphOptions
    from deploykit.backends.ort import OrtRunner
    from deploykit.bundle.manifest import CPU_MODEL
    from deploykit.comparison.validation import outputs_of

    test, labels = load(data / TEST, made[0].network)
    logits = []
    for one in made:
        rounding = one.graph.with_name(CPU_MODEL)
        graph = rounding if rounding.exists() else one.graph
        with OrtRunner(graph, GraphOptions(threads=threads, optimise=False)) as runner:
            logits.append(np.concatenate(outputs_of(runner, test)))
    exact = logits[0]
    top1 = float((exact.argmax(axis=1) == labels).mean())
    of_itself = {"top1": top1, "agreement": 1.0, "expected_agreement": 1.0, "mean_kl": 0.0}
    figures = [of_itself, *(judge(got, exact, labels) for got in logits[1:])]
    return [row_of(one, of_one) for one, of_one in zip(made, figures, strict=True)]


def row_of(made: Made, figures: Mapping[str, float]) -> Row:
    import onnx

    in_int8, layers, activations = count_int8(onnx.load(made.graph))
    return Row(
        network=made.network,
        tool=made.tool,
        **figures,
        layers_int8=in_int8,
        layers=layers,
        activations_int8=activations,
        seconds=made.sample.seconds,
        peak_mib=made.sample.peak_mib,
        options=made.options,
    )


def line(row: Row) -> str:
    noise = "" if row.logits_sqnr_db is None else f"{row.logits_sqnr_db:.1f}"
    return (
        f"| {row.network} | {row.tool} | {row.top1:.1%} | {row.agreement:.1%} "
        f"| {row.expected_agreement:.2%} | {noise} | {row.layers_int8} of {row.layers} "
        f"| {row.activations_int8} | {row.seconds:.0f} | {row.peak_mib:.0f} |"
    )


def table(rows: list[Row]) -> str:
    head = "| network | tool | top-1 | agreement | expected | SQNR dB | INT8 layers | activations "
    return "\n".join([head + "| s | peak MiB |", "|---" * 10 + "|", *map(line, rows)])


def networks_in(data: Path) -> list[str]:
    return sorted(path.name.removesuffix(WEIGHTS) for path in data.glob(f"*{WEIGHTS}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--networks", help="with commas between; default: all in DATA")
    parser.add_argument("--modelopt", metavar="PYTHON", help="an interpreter that has ModelOpt")
    parser.add_argument("--threads", type=int, default=2, help="of the judge")
    given = parser.parse_args()
    data = given.data.resolve()
    networks = given.networks.split(",") if given.networks else networks_in(data)
    pythons = {"onnxruntime": sys.executable}
    if given.modelopt:
        pythons["modelopt"] = given.modelopt
    with tempfile.TemporaryDirectory() as name:
        folders = {network: Path(name, network) for network in networks}
        made = [list(make(key, data, pythons, folder)) for key, folder in folders.items()]
        rows = [row for of_one in made for row in judge_all(of_one, data, given.threads)]
    result = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": to_plain(describe()),
        "peers": {one.tool.split()[0]: one.versions for one in made[0] if one.versions},
        "rows": [asdict(row) for row in rows],
    }
    target = HERE / "results" / "int8_peers.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(rows))
    if not given.modelopt:
        print("\nModelOpt was left out: --modelopt PYTHON was not given.")


if __name__ == "__main__":
    main()
