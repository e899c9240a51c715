"""`deploykit export`."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploykit.cli import _options
from deploykit.cli._command import (
    NOTHING_DONE,
    Answer,
    DetailedCommand,
    examples,
    is_json,
    is_quiet,
    only_checks,
    show_answer,
    surviving,
)
from deploykit.cli._deployed_form import deployed_form
from deploykit.cli._option_types import TARGET, BudgetOption, PathOr, QuantizingOption
from deploykit.cli._report import report_option, require_report, with_report
from deploykit.cli._show import progress, show_comparison
from deploykit.core.errors import ValidationError
from deploykit.core.precision import OWN, RANDOM, Precision
from deploykit.verbs.export import (
    ExportCall,
    PrecisionWish,
    QuantizingWish,
    calls_of,
    make_bundle,
    require_export,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.backends import CompileOptions
    from deploykit.core.choices import DefinitionChoices
    from deploykit.core.deployed import DeployedForm
    from deploykit.exporting.steps import ExportReport


_NO_PRECISION = (
    "precision: fp32, the network's own, as none was asked; lower ones are faster on a GPU: "
    "--fp16, --bf16, or --int8 and --fp8 with --calib PATH"
)

_END = click.Choice(["auto", "int8", "keep"])

_quantizing = partial(click.option, cls=QuantizingOption)
_budget = partial(click.option, cls=BudgetOption)

_OPTIONS = (
    _quantizing(
        "--calib",
        type=PathOr(RANDOM),
        metavar="PATH",
        help="Images for INT8 and FP8, as --data; `random` is noise.",
    ),
    _options.calib_count,
    _quantizing(
        "--calib-table",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="A table of `calibrate` that must fit model and images; none is made anew.",
    ),
    _quantizing(
        "--method",
        default="auto",
        show_default=True,
        metavar="NAME",
        help="How ranges are found: max, percentile, entropy, mse; auto: the best of them.",
    ),
    _quantizing(
        "--rest",
        type=click.Choice(["fp16", "bf16", "fp32"]),
        default="fp16",
        show_default=True,
        help="Precision of what is not INT8 or FP8; bf16 has FP32's range, on GPUs from 8.0 on.",
    ),
    _quantizing(
        "--exclude",
        multiple=True,
        metavar="PATTERN",
        help="Nodes to keep out of INT8 or FP8: layer4.*",
    ),
    _quantizing(
        "--first-layer",
        type=_END,
        default="auto",
        show_default=True,
        help="INT8, or kept in the precision of the rest; auto: kept if that pays.",
    ),
    _quantizing(
        "--last-layer", type=click.Choice(["int8", "keep"]), default="int8", show_default=True
    ),
    _quantizing(
        "--residual",
        type=_END,
        default="auto",
        show_default=True,
        help="Skip operands of residual additions, likewise.",
    ),
    _quantizing(
        "--sensitive-layers",
        type=_END,
        default="auto",
        show_default=True,
        help="Layers that each make a large part of the noise: INT8, or looked for and kept; "
        "auto: looked for where that takes seconds.",
    ),
    _budget(
        "--max-drop",
        metavar="SHARE",
        help="With --precision auto: what may be lost at most, as 1% or 0.01. Of the top-1 on "
        "labelled images of --data, else of the answers that agree with FP32.",
    ),
    _budget(
        "--gpu",
        "gpu_name",
        metavar="NAME",
        help="With --precision auto: the GPU that times are predicted for, as L4; A100 SXM 80GB.  "
        "[default: this machine's, or A10]",
    ),
    _quantizing(
        "--equalisation",
        type=click.Choice(["auto", "off"]),
        default="auto",
        show_default=True,
        help="Channels of transformers' tokens made alike; auto: where trials show that it pays.",
    ),
    _quantizing(
        "--bias-correction",
        type=click.Choice(["auto", "on", "off"]),
        default="auto",
        show_default=True,
        help="Give back what rounding takes from each channel; auto: if that pays.",
    ),
    _quantizing(
        "--weight-rounding",
        type=click.Choice(["auto", "nearest"]),
        default="auto",
        show_default=True,
        help="Weights of transformers: together, so that their errors cancel; auto: if that pays.",
    ),
    _quantizing(
        "--finetune",
        is_flag=True,
        help="Fit roundings, ranges and biases to FP32 on the images of --calib, without labels; "
        "kept only if other images come nearer to FP32. Takes minutes.",
    ),
)


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
        "deploykit export torchvision:mobilenet_v2 --int8 --calib images/ --finetune",
        "deploykit export open.onnx --fp16 --height 160,224,320 --width 160,224,320",
        "deploykit export resnet50 --fp16 --weights imagenet --input uint8 --result topk:5",
        "deploykit export resnet18 resnet50 vgg16 --fp16 --weights imagenet -o engines",
    ),
)
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...", type=TARGET)
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
@deployed_form
@_options.backend
@_options.gpu
@_options.compiling
@_options.no_timing_cache
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="The bundle; of several TARGETs the folder for all bundles.  "
    "[default: engines/TARGET-PRECISION]",
)
@click.option(
    "--replace",
    is_flag=True,
    help="Replace a bundle of another model, or one with engines that are not made again.",
)
@report_option
def command(  # noqa: PLR0913 - one parameter per option, click's way
    *,
    targets: tuple[str, ...],
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
    finetune: bool,
    weights: str | None,
    choices: DefinitionChoices,
    seed: int,
    data: Path | None,
    max_pixels: int | None,
    labels: Path | None,
    form: DeployedForm,
    backend: str,
    device: str,
    compiling: CompileOptions,
    no_timing_cache: bool,
    output: Path | None,
    replace: bool,
    report_file: Path | None,
) -> Answer:
    """Turn a network or an .onnx file into a verified bundle.

    TARGET is a name of `deploykit list`, torchvision:NAME, timm:NAME, path/to/file.py:factory
    for a function that returns a torch.nn.Module (the file is run), a folder of Hugging Face
    with config.json, or an FP32 .onnx file. The graph is exported, converted, compared with the
    original on real images, compiled, and the precision of the compiled network is proven. A
    bundle appears only if all of it succeeds. It takes the place of one of the same model and
    precision; of any other only with --replace. Of several TARGETs, one that fails stops no other;
    -o is then the folder for all of them.
    """
    wish = PrecisionWish(flagged, precision, max_drop, gpu_name)
    quantizing = QuantizingWish(
        method=method,
        rest=rest,
        exclude=exclude,
        first_layer=first_layer,
        last_layer=last_layer,
        residual=residual,
        sensitive_layers=sensitive_layers,
        equalisation=equalisation,
        bias_correction=bias_correction,
        weight_rounding=weight_rounding,
        finetune=finetune,
    )
    call = ExportCall(
        target=targets[0],
        precision=wish,
        compiling=compiling,
        calib=calib,
        calib_count=calib_count,
        calib_table=calib_table,
        quantizing=quantizing,
        weights=weights,
        choices=choices,
        seed=seed,
        data=data,
        max_pixels=max_pixels,
        labels=labels,
        form=form,
        backend=backend,
        device=device,
        timing_cache=not no_timing_cache,
        output=output,
        replace=replace,
    )
    calls = calls_of(targets, call)
    require_report(report_file)
    for each in calls:
        require_export(each)
    if only_checks():
        return NOTHING_DONE
    if len(calls) > 1:
        return _several(calls, report_file)
    report = _export(call)
    return with_report(_answer(report), report_file, [report.bundle.folder], call.report_images)


def _answer(report: ExportReport) -> Answer:
    from deploykit.cli._export_show import show_export, show_export_details, verdict

    return Answer(
        report.to_dict(),
        lambda out: show_export(out, report),
        details=lambda out: show_export_details(out, report),
        verdict=verdict(report),
    )


def _export(call: ExportCall) -> ExportReport:
    try:
        report = make_bundle(call, progress(), _say)
    except ValidationError as error:
        if error.details:
            from deploykit.cli._terminal import console

            show_comparison(console(stderr=True), [error.details])
        raise
    if call.precision.asked is None and not call.precision.is_auto:
        return dataclasses.replace(report, notes=(*report.notes, _NO_PRECISION))
    return report


def _several(calls: Sequence[ExportCall], report_file: Path | None) -> Answer:
    """One export after the other, each shown when it is done; one that fails stops no other."""
    results: list[dict[str, Any]] = []
    made: list[Path] = []
    try:
        for number, call in enumerate(calls, 1):
            with surviving(str(call.target)) as failure:
                _say(f"{call.target}, {number} of {len(calls)}")
                report = _export(call)
                if not is_json():
                    show_answer(_answer(report))
                results.append({"target": call.target, **report.to_dict()})
                made.append(report.bundle.folder)
            if failure.error is not None:
                results.append({"target": call.target, "error": failure.error})
    except KeyboardInterrupt:
        said = f"\ninterrupted: {len(made)} of {len(calls)} exported, the finished bundles stay"
        click.echo(said, err=True)
        raise
    summary = f"{len(made)} of {len(calls)} exported"
    failed = len(made) < len(calls)
    answer = Answer({"results": results}, lambda out: out.print(summary), failed, verdict=summary)
    return with_report(answer, report_file, made, calls[0].report_images)


def _say(sentence: str) -> None:
    """What is to be known before the work is done."""
    if not is_quiet():
        from deploykit.cli._terminal import console

        console(stderr=True).print(sentence, markup=False)
