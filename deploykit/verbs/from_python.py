"""The commands as functions for programs: ``deploykit.export`` and the others, plain arguments.

They say a line for each step that takes longer than a second, on standard error, unless told
``quiet``. What an argument means is said where its command line option is: ``deploykit COMMAND
--help`` has the same names, with dashes. One file because all of them read what a program gives in
the same way.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from deploykit.bundle.folders import DEFAULT_FOLDER
from deploykit.bundle.manifest import Bundle
from deploykit.core.choices import DefinitionChoices, PreprocessingChoices
from deploykit.core.errors import UsageError
from deploykit.core.gpu_choice import ENGINE_DEVICE
from deploykit.core.precision import Precision, find_precision, precisions
from deploykit.core.progress import LineProgress, Progress, SilentProgress, say_notes
from deploykit.core.sizes import ShapeProfile, SizeRange
from deploykit.images import LabelledData, PreparedTensors, images_of
from deploykit.reporting.document import require_report_name
from deploykit.sources.calls import require_call
from deploykit.verbs.evaluate import evaluate_bundle

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn

    from deploykit.core.choices import Channels
    from deploykit.core.specs import ModelSpec
    from deploykit.costs.network import ModelSummary
    from deploykit.images import ImageSet
    from deploykit.precision.budget.request import Budget
    from deploykit.precision.calibration.data import CalibrationOptions
    from deploykit.precision.calibration.graphs import Calibrated
    from deploykit.precision.quantization.request import QuantizationRequest
    from deploykit.verbs.bench import BenchReport
    from deploykit.verbs.evaluate import AccuracyReport
    from deploykit.verbs.validate import ComparisonReport

    PathLike: TypeAlias = str | os.PathLike[str]
    Target: TypeAlias = PathLike | nn.Module
    Sizes: TypeAlias = int | tuple[int, int, int]


def export(  # noqa: PLR0913 - the options of `deploykit export` that a program has use for
    model: Target,
    *,
    precision: str | Precision = Precision.FP32,
    input_size: int | None = None,
    num_classes: int | None = None,
    weights: PathLike | None = None,
    labels: Sequence[str] | PathLike | None = None,
    mean: Channels | float | None = None,
    std: Channels | float | None = None,
    resize: int | tuple[int, int] | None = None,
    interpolation: str | None = None,
    channel_order: str | None = None,
    head: str | None = None,
    head_output: str | int | None = None,
    calib: PathLike | Iterable[Any] | None = None,
    calib_count: int = 512,
    max_drop: float | str | None = None,
    gpu: str | None = None,
    data: PathLike | None = None,
    batch: Sizes = (1, 8, 32),
    height: Sizes | None = None,
    width: Sizes | None = None,
    backend: str = "auto",
    compute_capabilities: Sequence[str] = (),
    device: str = ENGINE_DEVICE,
    seed: int = 0,
    name: str | None = None,
    output: PathLike | None = None,
    replace: bool = False,
    report: PathLike | None = None,
    quiet: bool = False,
) -> Bundle:
    """Turn a network into a verified bundle, as ``deploykit export`` does.

    Args:
        model: a module, in whatever mode, type and on whatever device it is: a copy is exported,
            the module stays as it was. Or what the command line calls a TARGET: "resnet50",
            "torchvision:mobilenet_v3_large", the path of an ``.onnx`` file.
        precision: "fp32", "fp16", "bf16", "int8" or "fp8", or that of a plug-in; "auto" chooses
            one for each layer, with a loss of at most ``max_drop``.
        input_size: height and width of the images in pixels; 224 if not given.
        num_classes: of a definition that takes it.
        weights: "imagenet", or a file; untrained ones from ``seed`` if not given. A module brings
            its own.
        labels: names of the classes, or a file that has them.
        mean: subtracted from pixels of 0 to 1, one number or (R, G, B); ImageNet's if not given.
        std: what they are divided by then.
        resize: the shorter side in pixels, or height and width, before the crop to ``input_size``.
        interpolation: "bilinear", "bicubic", "nearest" or "lanczos".
        channel_order: "rgb" or "bgr", of the network's input.
        head: what the outputs mean: "multiclass", "multilabel", "binary" or "raw"; read from the
            network if not given.
        head_output: the output that is meant, of a network that has several.
        calib: images for INT8 and FP8: a folder, a list or an ``.npz``; or any iterable of images
            or of batches, as a ``DataLoader`` (`deploykit.images.images_of`). "random" is noise.
            With tensors that are normalised already ``mean`` and ``std`` must be given.
        calib_count: how many of them. With "auto" the others judge what is chosen, if ``data``
            does not.
        max_drop: what "auto" may lose, as 0.01 or "1%": of the top-1 on labelled ``data``, else of
            the answers that agree with FP32.
        gpu: the name of the one that "auto" predicts times for, as "L4"; if not given that of this
            machine, or A10.
        data: images that the graph is compared with the original on; photographs that come with
            deploykit if not given.
        batch: smallest, preferred and largest batch of the engine, or one number.
        height: likewise, of a graph that leaves its height open.
        width: likewise.
        backend: "auto", "tensorrt", "tensorrt-rtx", or "none" for the graph alone.
        compute_capabilities: GPU generations that a portable engine is compiled for, as ("8.9",).
        device: the GPU, of several: "cuda:1".
        seed: of untrained weights and of the choice of calibration images.
        name: what a module is called; its class, if not given.
        output: the bundle's folder; ``engines/NAME-PRECISION`` if not given.
        replace: whether a bundle of another model, or one with engines that are not made again, may
            be replaced.
        report: a file for one HTML page about the bundle; answers are compared on ``data``, or on
            the folder or file ``calib``.
        quiet: whether to say nothing of the steps.

    Raises:
        UsageError: an argument that is not possible, alone or with the others.
        DataError: images or labels cannot be read.
        DeploykitError: the error of the step that failed; there is no bundle then.
    """
    targets = [os.fspath(model)] if isinstance(model, str | os.PathLike) else []
    _require_size(input_size)
    files = _labels(labels)
    require_call(
        targets,
        weights=_text(weights),
        images=[_path(data), _folder(calib)],
        labels=files if isinstance(files, Path) else None,
    )
    page = None if report is None else require_report_name(Path(report))
    budget = _budget(precision, max_drop, gpu)
    asked = Precision.FP32 if budget is not None else find_precision(str(precision))
    # These take seconds: what the call alone shows to be wrong was said before.
    from deploykit.exporting.steps import ExportOptions, export_bundle
    from deploykit.runtime.choice import machine_with
    from deploykit.sources.definition import SourceOptions

    look = PreprocessingChoices(
        resize, interpolation, _channels(mean), _channels(std), channel_order
    )
    choices = DefinitionChoices(
        num_classes, input_size, preprocessing=look, head=head, head_output=_name(head_output)
    )
    options = ExportOptions(
        precision=asked,
        backend=backend,
        profile=_profile(batch, height, width),
        compute_capabilities=tuple(compute_capabilities),
        source=SourceOptions(_text(weights), seed, choices, _path(data)),
        labels=files,
        output=_path(output),
        quantization=_request(calib, calib_count, seed, judges=_judges(budget, data), look=look),
        replace=replace,
        budget=budget,
    )
    target = _target(model, choices, weights, name)
    made = export_bundle(target, options, _progress(quiet=quiet), machine_with(device))
    if not quiet:
        say_notes(made.notes)
    if page is not None:
        from deploykit.reporting.bundles import write_report

        images = _path(data) or _folder(calib)
        write_report([made.bundle.folder], page, data=images, progress=_progress(quiet=quiet))
    return made.bundle


def open_bundle(folder: PathLike) -> Bundle:
    """What a bundle's manifest says; `deploykit.load` makes it ready to run.

    Raises:
        BundleError: there is no bundle, or its manifest cannot be read.
        IntegrityError: the manifest is not as it was written.
    """
    return Bundle.open(Path(folder))


def inspect(
    model: Target, *, input_size: int | None = None, num_classes: int | None = None, batch: int = 1
) -> ModelSummary:
    """Layers of a network with their shapes, parameters and multiply-adds for ``batch`` images.

    ``model`` is as that of `export`, or a bundle.

    Raises:
        UsageError: there is no such network, or it does not take these choices.
        ModelFileError: the file cannot be read.
    """
    from deploykit.verbs.inspect import inspect as inspect_target

    choices = DefinitionChoices(num_classes, input_size)
    return inspect_target(_target(model, choices, None, None), choices, batch=batch)


def validate(
    first: PathLike,
    second: PathLike | None = None,
    *,
    data: PathLike | None = None,
    layers: bool = False,
    device: str = "cpu",
    quiet: bool = False,
) -> ComparisonReport:
    """Compare what two bundles or ``.onnx`` files of one network compute.

    Args:
        first: a bundle or file.
        second: the other one; the FP32 graph that the bundle keeps if not given.
        data: images; the photographs that come with deploykit if not given.
        layers: whether activations are compared too.
        device: "cpu", or "cuda" for the engine of the one of lower precision.
        quiet: whether to say nothing of the steps.

    Raises:
        UsageError: two different networks, or nothing to compare with.
        DeploykitError: what cannot be read or run.
    """
    from deploykit.verbs.validate import ComparisonOptions, compare_artifacts

    options = ComparisonOptions(_path(data), layers=layers, device=device)
    return compare_artifacts(Path(first), _path(second), options, _progress(quiet=quiet))


def evaluate(  # noqa: PLR0913 - the options of the command
    bundle: PathLike,
    data: PathLike,
    *,
    labels_file: PathLike | None = None,
    compare: PathLike | None = None,
    batch: int = 32,
    device: str = "cpu",
    quiet: bool = False,
) -> AccuracyReport:
    """Accuracy of a bundle on labelled images, alone and beside its FP32 graph or another bundle.

    Args:
        bundle: its folder.
        data: images with labels: a folder per class, a list, an ``.npz``.
        labels_file: labels of a flat folder.
        compare: another bundle, or an ``.onnx`` file, to judge this one against, image by image.
        batch: images per run.
        device: "cpu" for the graph, "cuda" for the engine that will serve.
        quiet: whether to say nothing of the steps.

    Raises:
        DataError: the images or their labels cannot be used.
        DeploykitError: what cannot be read or run.
    """
    return evaluate_bundle(
        Path(bundle),
        LabelledData(_required(data), _path(labels_file)),
        compare=_path(compare),
        batch=batch,
        device=device,
        progress=_progress(quiet=quiet),
    )


def calibrate(  # noqa: PLR0913 - the options of the command
    model: PathLike,
    calib: PathLike | Iterable[Any],
    *,
    calib_count: int = 512,
    weights: PathLike | None = None,
    input_size: int | None = None,
    seed: int = 0,
    output: PathLike | None = None,
    quiet: bool = False,
) -> Calibrated:
    """Ranges of a model's activations for INT8 and FP8, as a table that `export` uses again.

    ``model`` is a bundle or a TARGET of the command line, ``calib`` as that of `export`,
    ``output`` the file of the table.

    Raises:
        DataError: the images cannot be used.
        DeploykitError: the error of the step that failed.
    """
    from deploykit.sources.definition import SourceOptions
    from deploykit.verbs.calibrate import calibrate_target

    options = _calibration(calib, calib_count, seed, _path(output))
    choices = DefinitionChoices(image_size=input_size)
    source = SourceOptions(_text(weights), seed, choices)
    return calibrate_target(os.fspath(model), options, source, _progress(quiet=quiet))[0]


def bench(  # noqa: PLR0913 - the options of the command
    *targets: PathLike,
    batch: Sequence[int] | int = (1, 8, 32),
    precision: Sequence[str] | str | None = None,
    backend: Sequence[str] | str | None = None,
    quick: bool = False,
    device: str = ENGINE_DEVICE,
    output: PathLike | None = None,
    quiet: bool = False,
) -> BenchReport:
    """Latency and throughput of architectures, ``.onnx`` files or bundles, each in its own process.

    Args:
        targets: what is measured.
        batch: images per query, each is measured.
        precision: one or several; those that are usual here if not given.
        backend: likewise.
        quick: a second for each instead of five.
        device: the GPU, of several.
        output: the file of results, ``*.json``; one by the time in ``benchmarks/results/`` if not
            given.
        quiet: whether to say nothing of the steps.

    Raises:
        UsageError: nothing to measure, or an argument that is not possible.
        EngineIncompatibleError: no backend that was asked for works here.
    """
    from deploykit.benchmarking.matrix.cells import Matrix
    from deploykit.benchmarking.matrix.preparing import own_precisions
    from deploykit.verbs import bench as benching

    if not targets:
        raise UsageError("nothing to measure\nname architectures, .onnx files or bundles")
    wanted = set(map(find_precision, _several(precision)))
    batches = (batch,) if isinstance(batch, int) else tuple(batch)
    options = benching.BenchOptions(
        matrix=Matrix(
            targets=tuple(dict.fromkeys(os.fspath(target) for target in targets)),
            batches=tuple(sorted(set(batches))),
            precisions=tuple(each for each in precisions() if each in wanted) or None,
            backends=_several(backend) or None,
            only_best=quick and backend is None,
            fp32_unasked=quick,
        ),
        switches=benching.usual_switches(quick=quick),
        output=_path(output) or benching.default_output("bench"),
        work=DEFAULT_FOLDER / "bench",
        cell_s=benching.cell_s(quick=quick),
        device=device,
    )
    own = own_precisions(options.matrix.targets, options.choices, options.sizes)
    return benching.bench(options, own, _progress(quiet=quiet))


def _progress(*, quiet: bool) -> Progress:
    return SilentProgress() if quiet else LineProgress()


def _target(
    model: Target, choices: DefinitionChoices, weights: PathLike | None, name: str | None
) -> str | ModelSpec:
    """A TARGET as it is, a module as a definition; torch is imported for the latter alone."""
    if isinstance(model, str | os.PathLike):
        if name is not None:
            raise UsageError(f"name={name!r} is for a module\n{model} has a name: leave it out")
        return os.fspath(model)
    if weights is not None:
        raise UsageError(
            f"weights={weights} is for a TARGET\na module brings its own: leave it out"
        )
    from deploykit.sources.live_module import live_module_spec

    return live_module_spec(model, choices, name)


def _budget(precision: str, max_drop: float | str | None, gpu: str | None) -> Budget | None:
    if precision != "auto":
        if max_drop is not None or gpu is not None:
            what = "gpu" if max_drop is None else "max_drop"
            raise UsageError(f'{what} is for precision="auto"\nadd that, or leave it out')
        return None
    if max_drop is None:
        raise UsageError(
            'precision="auto" needs to know what may be lost: max_drop=0.01\n'
            "a share of the top-1 on labelled data, else of the answers that agree with FP32"
        )
    from deploykit.precision.budget.request import Budget, parse_drop

    return Budget(parse_drop(max_drop) if isinstance(max_drop, str) else max_drop, gpu)


def _request(
    calib: PathLike | Iterable[Any] | None,
    count: int,
    seed: int,
    *,
    judges: int,
    look: PreprocessingChoices,
) -> QuantizationRequest | None:
    if calib is None:
        return None
    from deploykit.precision.quantization.request import QuantizationRequest

    found = _calibration(calib, count, seed, None, judges=judges)
    if isinstance(found.data, PreparedTensors) and (look.mean is None or look.std is None):
        raise UsageError(
            "calib has tensors that are prepared already, and nobody said how\n"
            "give mean and std as your transforms have them, or images before the transforms"
        )
    return QuantizationRequest(found)


def _judges(budget: Budget | None, data: PathLike | None) -> int:
    """Images of an iterable that judge a budget, beside those that calibrate."""
    if budget is None or data is not None:
        return 0
    from deploykit.precision.budget.bounds import images_needed
    from deploykit.precision.budget.request import ENOUGH

    return ENOUGH * images_needed(budget.max_drop)


def _calibration(
    calib: PathLike | Iterable[Any],
    count: int,
    seed: int,
    table: Path | None,
    *,
    judges: int = 0,
) -> CalibrationOptions:
    from deploykit.precision.calibration.data import CalibrationOptions

    if count < 1:
        raise UsageError(f"calib_count={count}\nexpected 1 or more")
    given: str | ImageSet = (
        os.fspath(calib)
        if isinstance(calib, str | os.PathLike)
        else images_of(calib, count + judges)
    )
    return CalibrationOptions(given, count, seed, table)


def _folder(calib: PathLike | Iterable[Any] | None) -> Path | None:
    """Of images; ``None`` for noise, and for images that a program has."""
    return Path(calib) if isinstance(calib, str | os.PathLike) and calib != "random" else None


def _labels(labels: Sequence[str] | PathLike | None) -> Path | tuple[str, ...] | None:
    if labels is None or isinstance(labels, str | os.PathLike):
        return _path(labels)
    names: tuple[object, ...] = tuple(labels)
    wrong = [name for name in names if not isinstance(name, str) or not name.strip()]
    if wrong or not names:
        what = "there is none" if not names else f"{wrong[0]!r} is none"
        raise UsageError(f"labels are names of the classes, {what}\nexpected a text for each class")
    return cast("tuple[str, ...]", names)


def _profile(batch: Sizes, height: Sizes | None, width: Sizes | None) -> ShapeProfile:
    return ShapeProfile(
        *_three("batch", batch), height=_range("height", height), width=_range("width", width)
    )


def _range(name: str, sizes: Sizes | None) -> SizeRange | None:
    return None if sizes is None else SizeRange(*_three(name, sizes))


def _three(name: str, sizes: Sizes) -> tuple[int, int, int]:
    if isinstance(sizes, int):
        return sizes, sizes, sizes
    if len(sizes) != 3:  # noqa: PLR2004 - as said
        raise UsageError(f"{name}={sizes}\nexpected one size, or the smallest, preferred, largest")
    return sizes


def _several(given: Sequence[str] | str | None) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given or ())


def _require_size(input_size: Any) -> None:
    if input_size is not None and (not isinstance(input_size, int) or input_size < 1):
        raise UsageError(
            f"input_size={input_size!r}\nexpected height and width in pixels: one number from 1 up"
        )


def _channels(given: Channels | float | None) -> Channels | None:
    return (given,) * 3 if isinstance(given, int | float) else given


def _name(output: str | int | None) -> str | None:
    return None if output is None else str(output)


def _path(given: Any) -> Path | None:
    if given is None:
        return None
    if isinstance(given, str | os.PathLike):
        return Path(given)
    raise UsageError(
        f"a path was expected, not {type(given).__name__}\n"
        "arrays and iterables are for calib; write other images to an .npz"
    )


def _required(given: Any) -> Path:
    found = _path(given)
    if found is None:
        raise UsageError("data is None\nexpected the path of labelled images")
    return found


def _text(given: PathLike | None) -> str | None:
    return None if given is None else os.fspath(given)
