"""TensorRT and TensorRT for RTX, whichever is there: build, load, right answers, benchmark."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.backends import CompileOptions
from deploykit.backends.trt.builder import compile_onnx
from deploykit.backends.trt.compiler import (
    TENSORRT,
    TENSORRT_RTX,
    Messages,
    load_compiler,
    logger_into,
)
from deploykit.backends.trt.targets import known_compute_capabilities
from deploykit.core import environment
from tests.gpu.proofs.report import CannotRunError
from tests.runner_scenarios import PROFILE, Bench, images
from tests.unit.backends.trt import small_models

if TYPE_CHECKING:
    from collections.abc import Callable

    from deploykit.backends import Compiler
    from tests.gpu.proofs.report import Report

TF32_TOLERANCE = 5e-3
EXPORT_S, COMMAND_S = 100, 45
"""Time for an export, which imports and traces torch, and for each of the other commands."""


def prove(report: Report) -> None:
    for name in (TENSORRT, TENSORRT_RTX):
        with report.piece(name), tempfile.TemporaryDirectory() as folder:
            compiler = load_compiler(name)
            report.figure(f"{name}: version", version=compiler.version)
            covers = _engines(report, compiler, Path(folder))
            _commands(report, compiler, Path(folder), covers=covers)


def _engines(report: Report, compiler: Compiler, folder: Path) -> bool:
    """Whether the compiler covers the GPU that is here."""
    own = environment.gpus()[0].compute_capability
    known = known_compute_capabilities(compiler) if compiler.is_portable else (own,)
    if own in known:
        with report.piece(f"{compiler.name}: an engine runs here"):
            _run_engine(compiler, folder, (own,) if compiler.is_portable else ())
            report.check(f"{compiler.name}: an engine runs here", passed=True)
        return True
    # Not among what it knows: what it says of this GPU is the finding, whatever it is.
    report.figure(f"{compiler.name}: capabilities that it knows", own=own, known=str(known))
    older = max((each for each in known if float(each) <= float(own)), key=float)
    attempts: dict[str, Callable[[], str | None]] = {
        f"an engine for {older}": lambda: _run_engine(compiler, folder, (older,)),
        "an engine for the GPU that is current": lambda: _build_for_current(compiler, folder),
    }
    for name, attempt in attempts.items():
        try:
            said = attempt() or "it works"
        except Exception as error:  # any: it is what is asked for
            said = f"{type(error).__name__}: {error}"
        report.figure(f"{compiler.name}: {name}", said=said)
    return False


def _run_engine(compiler: Compiler, folder: Path, targets: tuple[str, ...]) -> None:
    onnx, plan = small_models.convolution(folder / "model.onnx"), folder / "model.engine"
    options = CompileOptions(PROFILE, compute_capabilities=targets)
    plan.write_bytes(compile_onnx(compiler, onnx, options).plan)
    bench = Bench(plan, onnx, compiler, TF32_TOLERANCE, leak_bytes=0)
    check = bench.oracle()
    with bench.runner() as runner:
        for turn in range(3):
            check(images(2, turn), runner.run({"x": images(2, turn)}))


def _build_for_current(compiler: Compiler, folder: Path) -> str:
    """Asked of the compiler itself: deploykit offers named capabilities only."""
    module, messages = compiler.module, Messages()
    logger = logger_into(messages, module)
    builder = module.Builder(logger)
    network = builder.create_network(0)
    parser = module.OnnxParser(network, logger)
    shape = (2, *small_models.IMAGE)
    onnx = small_models.convolution(folder / "fixed.onnx", shape=shape)
    if not parser.parse(onnx.read_bytes()):
        return f"not parsed: {messages.reason()}"
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    accepted = config.set_compute_capability(module.ComputeCapability.CURRENT, 0)
    plan = builder.build_serialized_network(network, config)
    built = "nothing" if plan is None else f"an engine of {len(bytes(plan))} bytes"
    return f"setting it: {accepted}; built: {built}; messages: {messages.errors[:4]}"


def _commands(report: Report, compiler: Compiler, folder: Path, *, covers: bool) -> None:
    bundle = folder / "resnet18-fp16"
    asked = ["--backend", compiler.name]
    commands = {
        "export": ["export", "resnet18", "--fp16", "-o", str(bundle), *asked],
        "check": ["check", str(bundle)],
        "check of the engine": ["check", str(bundle), "--device", "cuda"],
        "bench --quick": ["bench", str(bundle), "--quick", *asked],
    }
    on_gpu = ("check of the engine", "bench --quick")
    for name, command in commands.items():
        with report.piece(f"{compiler.name}: {name}"):
            if name in on_gpu and not covers:
                raise CannotRunError(f"{compiler.label} does not cover this GPU")
            if name != "export" and not bundle.is_dir():
                raise CannotRunError("there is no bundle: the export did not end well")
            done = subprocess.run(
                [sys.executable, "-m", "deploykit", *command],
                capture_output=True,
                text=True,
                timeout=EXPORT_S if name == "export" else COMMAND_S,
                check=False,
            )
            said = (done.stdout + done.stderr)[-1500:]
            if (done.returncode != 0 and "not installed" in said) or "No module named" in said:
                raise CannotRunError(said)
            report.check(f"{compiler.name}: {name}", done.returncode == 0, said=said)
