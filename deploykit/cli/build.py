"""`deploykit build`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploykit.cli import _options
from deploykit.cli._command import Answer, DetailedCommand, examples
from deploykit.cli._show import progress, show_engines, show_stages

if TYPE_CHECKING:
    from rich.console import Console

    from deploykit.backends import CompileOptions
    from deploykit.verbs.build import BuildReport


@click.command(
    "build",
    cls=DetailedCommand,
    epilog=examples("deploykit build engines/resnet50-fp16 --backend tensorrt --batch 1,16,64"),
)
@click.argument("bundle", type=click.Path(path_type=Path))
@_options.backend
@_options.gpu
@_options.compiling
@_options.no_timing_cache
@click.option(
    "--compare-speed",
    is_flag=True,
    help="Compile the bundle's FP32 graph too, which takes as long again, and measure both in "
    "turn. Where the engine is slower, its layers that only convert are named.",
)
def command(
    bundle: Path,
    backend: str,
    device: str,
    compiling: CompileOptions,
    *,
    no_timing_cache: bool,
    compare_speed: bool,
) -> Answer:
    """Compile one more engine for a bundle, on this machine.

    It is made from the bundle's own ONNX file, whose hash is verified first. Where it fits the GPU
    it runs there, and what it computes is compared, before the bundle has it. The bundle stays as
    it was if anything fails.
    """
    from deploykit.bundle.manifest import Bundle

    Bundle.open(bundle)  # what is no bundle is said before the seconds of importing a compiler
    from deploykit.runtime.choice import machine_with
    from deploykit.verbs.build import build

    report = build(
        bundle,
        backend,
        compiling,
        progress(),
        machine_with(device),
        timing_cache=not no_timing_cache,
        compare_speed=compare_speed,
    )
    return Answer(
        report.to_dict(),
        lambda out: _show(out, report),
        details=lambda out: _show_details(out, report),
        verdict=_verdict(report),
    )


def _verdict(report: BuildReport) -> str:
    return f"added {report.engine.file} to {report.bundle.folder}"


def _show(out: Console, report: BuildReport) -> None:
    out.print(_verdict(report), style="bold", markup=False, soft_wrap=True)
    show_engines(out, [report.engine])
    for note in report.notes:
        out.print(f"note: {note}", markup=False, soft_wrap=True)


def _show_details(out: Console, report: BuildReport) -> None:
    show_stages(out, report.stages)
    others = [each for each in report.bundle.manifest.engines if each != report.engine]
    if others:
        out.print("the bundle's other engines", "")
        show_engines(out, others)
