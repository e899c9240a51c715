"""Host time per call of the TensorRT runner that is our own, on a stand-in CUDA driver.

``python benchmarks/runner_overhead.py --cuda-stand-in DIR``, with nothing else on the machine; DIR
holds a stand-in ``libcuda.so.1`` whose device memory is host memory and which does its work at
once. The runtime is the tests' fake one with nothing to compute: the CUDA graph holds a call of
C's ``free(NULL)``. What is left is deploykit's Python, ``cuda.core``, the stand-in driver and the
copies of inputs and outputs.

The input's two copies (`COPIES`), into page-locked memory and from there to the "GPU", are timed
where they happen, in the call; a copy of the same size on its own would find other things in the
caches. Ours is all the rest of the same call, the timing of the copies included. Calls without that
timing are measured in turn and stand beside it. Every sample is kept in
``benchmarks/results/runner_overhead.json``.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper, save

from deploykit.backends import Compiler
from deploykit.backends.trt.compiler import TENSORRT
from deploykit.backends.trt.lane import BatchContext
from deploykit.backends.trt.runner import TrtRunner
from deploykit.core.environment import describe, gpus
from deploykit.core.serialization import to_plain
from deploykit.core.sizes import ShapeProfile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).parent
SHAPES = {"small": (1, 8, 2, 2), "image": (1, 3, 224, 224)}
CLASSES = 10
WARM_CALLS = 50
COPIES = ("stage", "copy_in")
"""Methods of `BatchContext`: each one copy of the input, and hardly anything else."""


@dataclass(frozen=True)
class Sample:
    """Mean of one block of calls, in microseconds."""

    tensor: str
    what: str
    us_per_call: float


def write_model(path: Path, shape: tuple[int, ...]) -> None:
    """Any model with this input and as many outputs as CIFAR-10 has classes; it is never run."""
    x = helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, CLASSES))
    size = int(np.prod(shape))
    weights = helper.make_tensor("w", TensorProto.FLOAT, (size, CLASSES), np.zeros(size * CLASSES))
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    graph = helper.make_graph(nodes, "nothing", [x], [y], [weights])
    opset = [helper.make_opsetid("", 18)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)


def block_us(call: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls * 1e6


class CopyClock:
    """Replaces the runner's copying in of one input by the same with its time taken."""

    def __init__(self) -> None:
        self.copies = {name: getattr(BatchContext, name) for name in COPIES}
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts from zero until the block ends."""
        self.seconds = 0.0
        for name, copy in self.copies.items():
            setattr(BatchContext, name, self._timed(copy))
        try:
            yield
        finally:
            for name, copy in self.copies.items():
                setattr(BatchContext, name, copy)

    def _timed(self, copy: Callable[..., Any]) -> Callable[..., Any]:
        clock = time.perf_counter

        def timed(context: BatchContext, *arguments: Any) -> Any:
            start = clock()
            found = copy(context, *arguments)
            self.seconds += clock() - start
            return found

        return timed


def measure(rounds: int, calls: int) -> list[Sample]:
    from tests.fakes.runtime_fake import FakeRuntime, Script

    samples = []
    with tempfile.TemporaryDirectory() as folder:
        for tensor, shape in SHAPES.items():
            plan = Path(folder) / f"{tensor}.engine"
            write_model(plan, shape)
            script = Script(work=ctypes.CDLL(None).free)
            compiler = Compiler(TENSORRT, FakeRuntime.__version__, FakeRuntime(script))
            feeds = {"input": np.zeros(shape, np.float32)}
            with TrtRunner(plan, compiler, ShapeProfile(1, 1, 1)) as runner:
                for _ in range(WARM_CALLS):
                    runner.run(feeds)
                run, clock = partial(runner.run, feeds), CopyClock()
                for _ in range(rounds):
                    samples.append(Sample(tensor, "run", block_us(run, calls)))
                    with clock.running():
                        whole = block_us(run, calls)
                    copies = clock.seconds / calls * 1e6
                    samples.append(Sample(tensor, "copies in", copies))
                    samples.append(Sample(tensor, "ours", whole - copies))
            if (script.eager, script.captured) != (1, 1):
                sys.exit("the calls were no replays of one graph: these figures mean nothing")
    return samples


def interval(values: list[float], seed: int = 0) -> tuple[float, float]:
    """Bootstrap interval of the median, 95 %."""
    random = np.random.default_rng(seed)
    medians = np.median(random.choice(values, (2000, len(values))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(high)


def table(samples: list[Sample]) -> str:
    lines = [
        "| input | bytes | `run`, us | its copies in, us | ours, us | 95 % interval |",
        "|---|---|---|---|---|---|",
    ]
    for tensor, shape in SHAPES.items():
        run, copies, ours = (
            [s.us_per_call for s in samples if (s.tensor, s.what) == (tensor, what)]
            for what in ("run", "copies in", "ours")
        )
        low, high = interval(ours)
        lines.append(
            f"| {'x'.join(map(str, shape))} | {4 * int(np.prod(shape))} "
            f"| {statistics.median(run):.1f} | {statistics.median(copies):.1f} "
            f"| {statistics.median(ours):.1f} | {low:.1f} to {high:.1f} |"
        )
    return "\n".join(lines)


def restart_on(stand_in: Path) -> None:
    """The dynamic linker reads its path when a process starts."""
    if Path("/proc/driver/nvidia/version").exists():
        sys.exit("there is a real CUDA driver here: this measures on a stand-in only")
    variables = {**os.environ, "LD_LIBRARY_PATH": str(stand_in.resolve())}
    variables["PYTHONPATH"] = str(HERE.parent)
    done = subprocess.run([sys.executable, *sys.argv, "--started"], env=variables, check=False)
    sys.exit(done.returncode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuda-stand-in", type=Path, required=True, metavar="DIR")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--calls", type=int, default=400, help="of one block")
    parser.add_argument(
        "--results", type=Path, default=HERE / "results" / "runner_overhead.json", metavar="FILE"
    )
    parser.add_argument("--started", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.started:
        restart_on(options.cuda_stand_in)
    if not gpus():
        sys.exit(f"{options.cuda_stand_in} holds no libcuda.so.1 that shows a GPU")
    load = os.getloadavg()[0]
    samples = measure(options.rounds, options.calls)
    result = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": to_plain(describe()),
        "load_before": load,
        "calls_of_a_block": options.calls,
        "samples": [asdict(sample) for sample in samples],
    }
    options.results.parent.mkdir(exist_ok=True)
    options.results.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(samples))


if __name__ == "__main__":
    main()
