"""`deploykit export`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from deploykit.cli import _options
from deploykit.cli._command import Answer, DetailedCommand, examples, is_quiet
from deploykit.cli._show import console, progress, show_comparison
from deploykit.core.errors import UsageError, ValidationError
from deploykit.core.precision import OWN, Precision

if TYPE_CHECKING:
    from deploykit.backends import CompileOptions
    from deploykit.core.choices import DefinitionChoices
    from deploykit.exporting.steps import ExportOptions, ExportReport
    from deploykit.precision.budget.request import Budget
    from deploykit.precision.calibration.data import CalibrationOptions
    from deploykit.precision.quantization.choice import Int8Choices
    from deploykit.precision.quantization.request import QuantizationRequest


_NO_PRECISION = (
    "precision: fp32, the network's own, as none was asked; lower ones are faster on a GPU: "
    "--fp16, --bf16, or --int8 and --fp8 with --calib PATH"
)

AUTO = "auto"
"""In place of a precision's name: chosen layer by layer under --max-drop."""

_END = click.Choice(["auto", "int8", "keep"])

_OPTIONS = (
    click.option(
        "--calib", metavar="PATH", help="Images for INT8 and FP8, as --data; `random` is noise."
    ),
    _options.calib_count,
    click.option(
        "--calib-table",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="A table of `calibrate` that must fit model and images; none is made anew.",
    ),
    click.option(
        "--method",
        default="auto",
        show_default=True,
        metavar="NAME",
        help="How ranges are found: max, percentile, entropy, mse; auto: the best of them.",
    ),
    click.option(
        "--rest",
        type=click.Choice(["fp16", "bf16", "fp32"]),
        default="fp16",
        show_default=True,
        help="Precision of what is not INT8 or FP8; bf16 has FP32's range, on GPUs from 8.0 on.",
    ),
    click.option(
        "--exclude",
        multiple=True,
        metavar="PATTERN",
        help="Nodes to keep out of INT8 or FP8: layer4.*",
    ),
    click.option(
        "--first-layer",
        type=_END,
        default="auto",
        show_default=True,
        help="INT8, or kept in the precision of the rest; auto: kept if that pays.",
    ),
    click.option(
        "--last-layer", type=click.Choice(["int8", "keep"]), default="int8", show_default=True
    ),
    click.option(
        "--residual",
        type=_END,
        default="auto",
        show_default=True,
        help="Skip operands of residual additions, likewise.",
    ),
    click.option(
        "--sensitive-layers",
        type=_END,
        default="auto",
        show_default=True,
        help="Layers that each make a large part of the noise: INT8, or looked for and kept; "
        "auto: looked for where that takes seconds.",
    ),
    click.option(
        "--max-drop",
        metavar="SHARE",
        help="With --precision auto: what may be lost at most, as 1% or 0.01. Of the top-1 on "
        "labelled images of --data, else of the answers that agree with FP32.",
    ),
    click.option(
        "--gpu",
        "gpu_name",
        metavar="NAME",
        help="With --precision auto: the GPU that times are predicted for, as L4; A100 SXM 80GB.  "
        "[default: this machine's, or A10]",
    ),
    click.option(
        "--equalisation",
        type=click.Choice(["auto", "off"]),
        default="auto",
        show_default=True,
        help="Channels of transformers' tokens made alike; auto: where trials show that it pays.",
    ),
    click.option(
        "--bias-correction",
        type=click.Choice(["auto", "on", "off"]),
        default="auto",
        show_default=True,
        help="Give back what rounding takes from each channel; auto: if that pays.",
    ),
    click.option(
        "--weight-rounding",
        type=click.Choice(["auto", "nearest"]),
        default="auto",
        show_default=True,
        help="Weights of transformers in FP8: together, so that their errors cancel; "
        "auto: if that pays.",
    ),
)


def read_request(
    calibration: CalibrationOptions | None,
    int8_choices: Int8Choices,
    *,
    rest: str,
    exclude: tuple[str, ...],
    last_layer: str,
) -> QuantizationRequest | None:
    """What the options ask for; ``None`` without calibration images."""
    if calibration is None:
        return None
    from deploykit.core.precision import Precision
    from deploykit.graph.qdq import QdqPolicy
    from deploykit.precision.quantization.request import QuantizationRequest

    policy = QdqPolicy(
        exclude=exclude,
        first_layer=_fixed(int8_choices.first_layer),
        last_layer=_fixed(last_layer),
        residual=_fixed(int8_choices.residual),
    )
    return QuantizationRequest(calibration, int8_choices, policy, Precision(rest))


def read_budget(
    flagged: tuple[Precision, ...], name: str | None, max_drop: str | None, gpu: str | None
) -> Budget | None:
    """What ``--precision auto`` may lose; ``None`` for a precision that was named.

    Raises:
        UsageError: it has no budget, or another precision has one; or two precisions were asked.
        UnknownNameError: there is no GPU of that name.
    """
    if name != AUTO:
        given = {"--max-drop": max_drop, "--gpu": gpu}
        wrong = next((option for option, value in given.items() if value is not None), None)
        if wrong is not None:
            raise UsageError(f"{wrong} is for --precision auto\nadd that, or leave it out")
        return None
    if flagged:
        both = f"--{flagged[0]} and --precision auto"
        raise UsageError(f"{both} exclude each other: run export once for each")
    if max_drop is None:
        raise UsageError(
            "--precision auto needs to know what may be lost: --max-drop 1%\n"
            "a share of the top-1 on --data with labels, else of the answers that agree with FP32"
        )
    from deploykit.precision.budget.request import Budget, parse_drop

    return Budget(parse_drop(max_drop), gpu)


def _fixed(wish: str) -> Literal["int8", "keep"]:
    return "keep" if wish == "keep" else "int8"


@click.command(
    "export",
    cls=DetailedCommand,
    epilog=examples(
        "deploykit export resnet50 --fp16",
        "deploykit export resnet20 --fp16 --weights resnet20.npz --data images.npz",
        "deploykit export torchvision:mobilenet_v3_large --fp16 --weights imagenet",
        "deploykit export nets.py:small --fp16 --factory-args '{\"depth\": 18}' --input-size 96",
        "deploykit export classifier.onnx --fp16 -o engines/classifier",
        "deploykit export resnet50 --precision auto --max-drop 1% --calib images/ --gpu L4",
        "deploykit export open.onnx --fp16 --height 160,224,320 --width 160,224,320",
    ),
)
@click.argument("target")
@_options.precision_flags({each: each.facts.help for each in OWN})
@click.option(
    "--precision",
    metavar="NAME",
    help="One of these by its name, a plug-in's, or auto: layer by layer under --max-drop.",
)
@_options.all_of(_OPTIONS)
@_options.weights
@_options.choices
@_options.seed
@_options.data
@_options.max_pixels
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Names of the classes, one per line.  [default: the definition's or the weights' own]",
)
@_options.backend
@_options.gpu
@_options.compiling
@_options.no_timing_cache
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="The bundle.  [default: engines/TARGET-PRECISION]",
)
@click.option(
    "--replace",
    is_flag=True,
    help="Replace a bundle of another model, or one with engines that are not made again.",
)
def command(  # noqa: PLR0913 - one parameter per option, click's way
    *,
    target: str,
    flagged: tuple[Precision, ...],
    precision: str | None,
    calib: str | None,
    calib_count: int,
    calib_table: Path | None,
    method: str,
    rest: str,
    exclude: tuple[str, ...],
    first_layer: str,
    last_layer: str,
    residual: str,
    sensitive_layers: str,
    max_drop: str | None,
    gpu_name: str | None,
    equalisation: str,
    bias_correction: str,
    weight_rounding: str,
    weights: str | None,
    choices: DefinitionChoices,
    seed: int,
    data: Path | None,
    max_pixels: int | None,
    labels: Path | None,
    backend: str,
    device: str,
    compiling: CompileOptions,
    no_timing_cache: bool,
    output: Path | None,
    replace: bool,
) -> Answer:
    """Turn a network or an .onnx file into a verified bundle.

    TARGET is a name of `deploykit list`, torchvision:NAME, timm:NAME, path/to/file.py:factory
    for a function that returns a torch.nn.Module (the file is run), a folder of Hugging Face
    with config.json, or an FP32 .onnx file. The graph is exported, converted, compared with the
    original on real images, compiled, and the precision of the compiled network is proven. A
    bundle appears only if all of it succeeds. It takes the place of one of the same model and
    precision; of any other only with --replace.
    """
    budget = read_budget(flagged, precision, max_drop, gpu_name)
    named = None if budget is not None else precision
    asked = _options.one_precision("export", flagged=flagged, name=named)

    from deploykit.sources.calls import require_call

    folder = None if calib in (None, "random") else Path(calib)
    require_call([target], weights=weights, images=[data, folder], labels=labels)
    with progress().step("start"):  # importing torch takes seconds
        from deploykit.exporting.steps import ExportOptions
        from deploykit.precision.calibration.data import CalibrationOptions
        from deploykit.precision.quantization.choice import Int8Choices
        from deploykit.sources.definition import SourceOptions

    int8_choices = Int8Choices(
        method,
        first_layer,
        residual,
        sensitive_layers,
        bias_correction,
        equalisation,
        weight_rounding,
    )
    calibration = None
    if calib is not None:
        must_fit = calib_table is not None
        calibration = CalibrationOptions(
            calib, calib_count, seed, calib_table, must_fit, max_pixels=max_pixels
        )
    request = read_request(
        calibration, int8_choices, rest=rest, exclude=exclude, last_layer=last_layer
    )
    options = ExportOptions(
        precision=asked or Precision.FP32,
        backend=backend,
        profile=compiling.profile,
        workspace_bytes=compiling.workspace_bytes,
        compute_capabilities=compiling.compute_capabilities,
        optimization_level=compiling.optimization_level,
        hardware_compatibility=compiling.hardware_compatibility,
        timing_cache=not no_timing_cache,
        source=SourceOptions(weights, seed, choices, data, max_pixels=max_pixels),
        labels=labels,
        output=output,
        quantization=request,
        replace=replace,
        budget=budget,
    )
    report = _export(target, options, device)
    if asked is None and budget is None:
        report = dataclasses.replace(report, notes=(*report.notes, _NO_PRECISION))
    from deploykit.cli._export_show import show_export, show_export_details, verdict

    return Answer(
        report.to_dict(),
        lambda out: show_export(out, report),
        details=lambda out: show_export_details(out, report),
        verdict=verdict(report),
    )


def _export(target: str, options: ExportOptions, device: str) -> ExportReport:
    from deploykit.exporting.steps import export_bundle
    from deploykit.runtime.choice import machine_with

    try:
        return export_bundle(
            target, options, progress(), machine_with(device), _say if options.budget else None
        )
    except ValidationError as error:
        if error.details:
            show_comparison(console(stderr=True), [error.details])
        raise


def _say(sentence: str) -> None:
    """What is to be known before the work begins."""
    if not is_quiet():
        console(stderr=True).print(sentence, markup=False)
