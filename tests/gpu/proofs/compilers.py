"""TensorRT and TensorRT for RTX, whichever is there: build, load, right answers, benchmark."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.backends import CompileOptions
from deploykit.backends.trt.builder import compile_onnx, known_compute_capabilities
from deploykit.backends.trt.compiler import TENSORRT, TENSORRT_RTX, load_compiler
from deploykit.core import environment
from tests.runner_scenarios import PROFILE, Bench, images
from tests.unit.backends.trt import small_models

if TYPE_CHECKING:
    from deploykit.backends import Compiler
    from tests.gpu.proofs.report import Report

TF32_TOLERANCE = 5e-3
COMMAND_S = 45


def prove(report: Report) -> None:
    report.needs_gpu("NVIDIA's runtime of engines")
    for name in (TENSORRT, TENSORRT_RTX):
        with report.piece(name), tempfile.TemporaryDirectory() as folder:
            compiler = load_compiler(name)
            report.figure(f"{name}: version", version=compiler.version)
            _engines(report, compiler, Path(folder))
            _commands(report, compiler, Path(folder))


def _engines(report: Report, compiler: Compiler, folder: Path) -> None:
    own = environment.gpus()[0].compute_capability
    targets: tuple[str, ...] = ()
    if compiler.is_portable:
        known = known_compute_capabilities(compiler)
        report.figure(f"{compiler.name}: capabilities that it knows", own=own, known=str(known))
        # The nearest older one is tried where the GPU's own is unknown: what is said is the proof.
        older = [each for each in known if float(each) <= float(own)]
        targets = (own,) if own in known else (max(older, key=float),)
    with report.piece(f"{compiler.name}: an engine for {targets or own} runs here"):
        onnx, plan = small_models.convolution(folder / "model.onnx"), folder / "model.engine"
        options = CompileOptions(PROFILE, compute_capabilities=targets)
        plan.write_bytes(compile_onnx(compiler, onnx, options).plan)
        bench = Bench(plan, onnx, compiler, TF32_TOLERANCE, leak_bytes=0)
        check = bench.oracle()
        with bench.runner() as runner:
            for turn in range(3):
                check(images(2, turn), runner.run({"x": images(2, turn)}))
        report.check(f"{compiler.name}: an engine for {targets or own} runs here", passed=True)


def _commands(report: Report, compiler: Compiler, folder: Path) -> None:
    bundle = folder / "resnet18-fp16"
    asked = ["--backend", compiler.name]
    commands = {
        "export": ["export", "resnet18", "--fp16", "-o", str(bundle), *asked],
        "check": ["check", str(bundle)],
        "bench --quick": ["bench", str(bundle), "--quick", *asked],
    }
    for name, command in commands.items():
        with report.piece(f"{compiler.name}: {name}"):
            done = subprocess.run(
                [sys.executable, "-m", "deploykit", *command],
                capture_output=True,
                text=True,
                timeout=COMMAND_S,
                check=False,
            )
            said = (done.stdout + done.stderr)[-1500:]
            report.check(f"{compiler.name}: {name}", done.returncode == 0, said=said)
