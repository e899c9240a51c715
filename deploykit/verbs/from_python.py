"""The commands as functions for programs: ``deploykit.export`` and the others, plain arguments.

They say a line for each step that takes longer than a second, on standard error, unless told
``quiet``. What an argument means is said where its command line option is: ``deploykit COMMAND
--help`` has the same names, with dashes. One file because all of them read what a program gives in
the same way.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from inspect import signature
from numbers import Real
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from deploykit.backends import CompileOptions
from deploykit.bundle.folders import DEFAULT_FOLDER
from deploykit.bundle.manifest import Bundle
from deploykit.core.choices import DefinitionChoices, PreprocessingChoices
from deploykit.core.deployed import DeployedForm
from deploykit.core.errors import UsageError
from deploykit.core.gpu_choice import ENGINE_DEVICE
from deploykit.core.precision import Precision
from deploykit.core.progress import Progress, SilentProgress, say_notes, watched_progress
from deploykit.core.sizes import GREY, RGB, ShapeProfile, SizeRange
from deploykit.images import LabelledData
from deploykit.reporting.document import require_report_name
from deploykit.sources.calls import require_call
from deploykit.verbs.argument_names import in_python, with_argument_names
from deploykit.verbs.evaluate import evaluate_bundle
from deploykit.verbs.export import (
    ExportCall,
    PrecisionWish,
    QuantizingWish,
    calibration_options,
    make_bundle,
    network_of,
    require_calibration,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from deploykit.bundle.sigstore import SigstoreIdentity
    from deploykit.core.choices import Channels
    from deploykit.costs.network import ModelSummary
    from deploykit.precision.calibration.graphs import Calibrated
    from deploykit.verbs.bench import BenchReport
    from deploykit.verbs.estimate import EstimateReport
    from deploykit.verbs.evaluate import AccuracyReport
    from deploykit.verbs.package import PackageReport
    from deploykit.verbs.validate import ComparisonReport
    from deploykit.verbs.visualize import Visualization

    PathLike: TypeAlias = str | os.PathLike[str]
    Target: TypeAlias = PathLike | nn.Module
    Sizes: TypeAlias = int | tuple[int, int, int]


@with_argument_names
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
    side_inputs: PathLike | None = None,
    calib: PathLike | Iterable[Any] | None = None,
    calib_count: int = 512,
    finetune: bool = False,
    max_drop: float | str | None = None,
    gpu: str | None = None,
    data: PathLike | None = None,
    max_pixels: int | None = None,
    input: str | None = None,  # noqa: A002 - as the option is called
    input_layout: str | None = None,
    input_order: str | None = None,
    result: str | None = None,
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
        channel_order: "rgb", "bgr" or "grey", of the network's input; "grey" by itself where it
            takes one channel.
        head: what the outputs mean: "multiclass", "multilabel", "binary" or "raw"; read from the
            network if not given.
        head_output: the output that is meant, of a network that has several.
        side_inputs: an ``.npz`` of what an ``.onnx`` takes beside images, a row per image.
        calib: images for INT8 and FP8: a folder, a list or an ``.npz``; or any iterable of images
            or of batches, as a ``DataLoader`` (`deploykit.images.images_of`). "random" is noise.
            With tensors that are normalised already ``mean`` and ``std`` must be given.
        calib_count: how many of them. With "auto" the others judge what is chosen, if ``data``
            does not.
        finetune: whether roundings, ranges and biases of INT8 or FP8 are fitted to FP32 on
            ``calib``, without labels; kept only if other images come nearer to FP32.
        max_drop: what "auto" may lose, as 0.01 or "1%": of the top-1 on labelled ``data``, else of
            the answers that agree with FP32.
        gpu: the name of the one that "auto" predicts times for, as "L4"; if not given that of this
            machine, or A10.
        data: images that the graph is compared with the original on; photographs that come with
            deploykit if not given.
        max_pixels: what an image file may have; a larger one is refused.
        input: "uint8" for a graph that takes pixels of 0 to 255 and normalises them itself;
            "float32" if not given: prepared images.
        input_layout: of bytes, "nhwc" if not given, or "nchw".
        input_order: of bytes, "rgb" if not given, or "bgr"; of a grey network "grey".
        result: what the graph ends in: "probabilities", "classes" or "topk:5"; as the network ends
            if not given.
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
    _require_size(input_size)
    _require_seed(seed)
    page = None if report is None else require_report_name(Path(report))
    look = PreprocessingChoices(
        resize, interpolation, _channels("mean", mean), _channels("std", std), channel_order
    )
    choices = DefinitionChoices(
        num_classes,
        input_size,
        preprocessing=look,
        side_inputs=_path(side_inputs),
        head=head,
        head_output=_name(head_output),
    )
    compiling = CompileOptions(
        _profile(batch, height, width), compute_capabilities=_several(compute_capabilities)
    )
    call = ExportCall(
        target=_target(model),
        precision=PrecisionWish((), str(precision), max_drop, gpu),
        compiling=compiling,
        calib=calib,
        calib_count=_whole("calib_count", calib_count),
        quantizing=QuantizingWish(finetune=finetune),
        weights=_text(weights),
        choices=choices,
        seed=seed,
        data=_path(data),
        max_pixels=max_pixels,
        labels=_labels(labels),
        backend=backend,
        device=device,
        output=_path(output),
        replace=replace,
        name=name,
        form=DeployedForm.of(input, input_layout, input_order, _results(result)),
    )
    made = make_bundle(call, _progress(quiet=quiet))
    if not quiet:
        say_notes(_export_notes(made.notes))
    if page is not None:
        from deploykit.reporting.bundles import write_report

        write_report(
            [made.bundle.folder], page, data=call.report_images, progress=_progress(quiet=quiet)
        )
    return made.bundle


@with_argument_names
def open_bundle(folder: PathLike) -> Bundle:
    """What a bundle's manifest says; `deploykit.load` makes it ready to run.

    Raises:
        BundleError: there is no bundle, or its manifest cannot be read.
        IntegrityError: the manifest is not as it was written.
    """
    return Bundle.open(Path(folder))


@with_argument_names
def inspect(
    model: Target,
    *,
    input_size: int | None = None,
    num_classes: int | None = None,
    batch: int | None = None,
) -> ModelSummary:
    """Layers of a network with their shapes, parameters and multiply-adds for ``batch`` images.

    ``model`` is as that of `export`, or a bundle. Without a ``batch`` it is the one that a graph is
    fixed at, or one image.

    Raises:
        UsageError: there is no such network, or it does not take these choices.
        ModelFileError: the file cannot be read.
    """
    require_call([os.fspath(model)] if isinstance(model, str | os.PathLike) else [])
    from deploykit.verbs.inspect import inspect as inspect_target

    choices = DefinitionChoices(num_classes, input_size)
    network = network_of(_target(model), choices)
    wanted = None if batch is None else _whole("batch", batch)
    return inspect_target(network, choices, batch=wanted)


@with_argument_names
def validate(  # noqa: PLR0913 - the options of the command
    first: PathLike,
    second: PathLike | None = None,
    *,
    data: PathLike | None = None,
    side_inputs: PathLike | None = None,
    batch: int | None = None,
    layers: bool = False,
    device: str = "cpu",
    fast: bool = False,
    quiet: bool = False,
) -> ComparisonReport:
    """Compare what two bundles or ``.onnx`` files of one network compute.

    Args:
        first: a bundle or file.
        second: the other one; the FP32 graph that the bundle keeps if not given.
        data: images; the photographs that come with deploykit if not given.
        side_inputs: an ``.npz`` of what the networks take beside images.
        batch: images to compare, in one batch; batches of 1, 2 and 5 if not given.
        layers: whether activations are compared too.
        device: "cpu", or "cuda" for the engine of the one of lower precision.
        fast: whether a CPU computes in plain FP32, without an engine's rounding.
        quiet: whether to say nothing of the steps.

    Raises:
        UsageError: two different networks, or nothing to compare with.
        DeploykitError: what cannot be read or run.
    """
    from deploykit.verbs.validate import ComparisonOptions, compare_artifacts

    images = None if batch is None else _whole("batch", batch)
    options = ComparisonOptions(
        _path(data), _path(side_inputs), images, layers, fast, device=device
    )
    return compare_artifacts(Path(first), _path(second), options, _progress(quiet=quiet))


@with_argument_names
def evaluate(  # noqa: PLR0913 - the options of the command
    bundle: PathLike,
    data: PathLike,
    *,
    labels_file: PathLike | None = None,
    classes: PathLike | None = None,
    class_order: str | None = None,
    reference: PathLike | None = None,
    compare: PathLike | None = None,
    batch: int = 32,
    threshold: float | None = None,
    device: str = "cpu",
    max_pixels: int | None = None,
    fast: bool = False,
    quiet: bool = False,
) -> AccuracyReport:
    """Accuracy of a bundle on labelled images, alone and beside its FP32 graph or another bundle.

    Args:
        bundle: its folder.
        data: images with labels: a folder per class, a list, an ``.npz``.
        labels_file: labels of a flat folder.
        classes: a file of synsets or folder names, in the order of the model's outputs.
        class_order: "natural" or "text", the order of class folders that nothing lists.
        reference: what to agree with, in place of the FP32 graph that the bundle keeps.
        compare: another bundle, or an ``.onnx`` file, to judge this one against, image by image.
        batch: images per run.
        threshold: probability from which a binary head says yes, of both models; 0.5 if not given.
        device: "cpu" for the graph, "cuda" for the engine that will serve.
        max_pixels: what an image file may have; a larger one is refused.
        fast: whether a CPU computes in plain FP32, without an engine's rounding.
        quiet: whether to say nothing of the steps.

    Raises:
        DataError: the images or their labels cannot be used.
        DeploykitError: what cannot be read or run.
    """
    return evaluate_bundle(
        Path(bundle),
        LabelledData(_required(data), _path(labels_file), _path(classes), class_order, max_pixels),
        reference=_path(reference),
        compare=_path(compare),
        batch=_whole("batch", batch),
        fast=fast,
        device=device,
        threshold=threshold,
        progress=_progress(quiet=quiet),
    )


@with_argument_names
def calibrate(  # noqa: PLR0913 - the options of the command
    model: PathLike,
    calib: PathLike | Iterable[Any],
    *,
    calib_count: int = 512,
    weights: PathLike | None = None,
    input_size: int | None = None,
    max_pixels: int | None = None,
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
    calib_count = _whole("calib_count", calib_count)
    require_calibration(os.fspath(model), calib, calib_count, _text(weights))
    from deploykit.sources.definition import SourceOptions
    from deploykit.verbs.calibrate import calibrate_target

    options = calibration_options(
        calib, calib_count, seed, table=_path(output), max_pixels=max_pixels
    )
    choices = DefinitionChoices(image_size=input_size)
    source = SourceOptions(_text(weights), seed, choices)
    return calibrate_target(os.fspath(model), options, source, _progress(quiet=quiet))[0]


@with_argument_names
def package(  # noqa: PLR0913 - the options of the command
    bundle: PathLike,
    to: str,
    output: PathLike,
    *,
    replace: bool = False,
    image: str | None = None,
    storage_uri: str | None = None,
    server: str | None = None,
    wheel: PathLike | None = None,
    trust: PathLike | SigstoreIdentity | None = None,
    quiet: bool = False,
) -> PackageReport:
    """Write what a bundle needs to be served elsewhere, as one folder.

    Args:
        bundle: its folder.
        to: the place: "triton", "docker", "kserve", or a plug-in's.
        output: the folder of the package.
        replace: whether a package that is there may be replaced.
        image: the container that serves, for Triton and KServe.
        storage_uri: where the model folder will lie, for KServe.
        server: "triton" or "deploykit", for KServe.
        wheel: the wheel of deploykit, for Docker.
        trust: who has to have signed the bundle, as that of `load`.
        quiet: whether to say nothing of the steps.

    Raises:
        UsageError: no such place, or an argument that does not go with it.
        BundleError: ``output`` is taken, or the place cannot serve the bundle.
        IntegrityError: a file of the bundle is not as it was written.
    """
    from deploykit.packaging import PackageChoices
    from deploykit.verbs.package import package as write_package

    return write_package(
        Path(bundle),
        to,
        Path(output),
        PackageChoices(image, storage_uri, server, _path(wheel)),
        replace=replace,
        trust=trust,
        progress=_progress(quiet=quiet),
    )


@with_argument_names
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
    from deploykit.benchmarking.matrix.cells import Matrix, in_order
    from deploykit.verbs import bench as benching

    batches = _wholes("batch", batch)
    if not batches:
        raise UsageError("batch is empty\nexpected a number of images per query, or several")
    options = benching.BenchOptions(
        matrix=Matrix(
            targets=benching.require_targets(os.fspath(target) for target in targets),
            batches=tuple(sorted(set(batches))),
            precisions=in_order(_several(precision)) or None,
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
    return benching.measure(options, _progress(quiet=quiet))


@with_argument_names
def visualize(  # noqa: PLR0913 - the options of the command
    model: Target,
    images: PathLike | None = None,
    *,
    layer: Sequence[str] | str = (),
    method: Sequence[str] | str = (),
    filters: int = 9,
    weights: PathLike | None = None,
    input_size: int | None = None,
    num_classes: int | None = None,
    mean: Channels | float | None = None,
    std: Channels | float | None = None,
    seed: int = 0,
    output: PathLike | None = None,
    replace: bool = False,
    quiet: bool = False,
) -> Visualization:
    """Pictures of what a network has learnt, in a folder with one page that works offline.

    Args:
        model: as that of `export`, or a bundle. A module stays as it was.
        images: a folder, a list, an ``.npz`` or ``.npy``; for a graph the photographs that come
            with deploykit if not given.
        layer: names of modules, as "layer2"; the last one of each resolution if not given.
        method: of "filters", "top", "deconvnet", "guided", "maximise", "gradcam" and "occlusion";
            what the others allow if not given.
        filters: how many of each layer are shown.
        weights: "imagenet", or a file; untrained ones from ``seed`` if not given.
        input_size: height and width of the images in pixels.
        num_classes: of a definition that takes it.
        mean: subtracted from pixels of 0 to 1, one number or (R, G, B).
        std: what they are divided by then.
        seed: of the noise that "maximise" begins with, and of untrained weights.
        output: the folder; ``visualized/NAME`` if not given.
        replace: whether pictures that are there already may be replaced.
        quiet: whether to say nothing of the steps.

    Raises:
        UsageError: something of the call is not possible for the model, or the output is there.
        DataError: the images cannot be read.
    """
    _require_size(input_size)
    _require_seed(seed)
    from deploykit.verbs.visualize import VisualizeCall
    from deploykit.verbs.visualize import visualize as make_pictures

    look = PreprocessingChoices(mean=_channels("mean", mean), std=_channels("std", std))
    call = VisualizeCall(
        target=_target(model),
        images=_path(images),
        layers=_several(layer),
        methods=_several(method),
        filters=_whole("filters", filters),
        weights=_text(weights),
        seed=seed,
        choices=DefinitionChoices(num_classes, input_size, preprocessing=look),
        output=_path(output),
        replace=replace,
    )
    found = make_pictures(call, _progress(quiet=quiet))
    if not quiet:
        arguments = signature(visualize).parameters
        say_notes(in_python(note, arguments) for note in found.notes)
    return found


@with_argument_names
def estimate(  # noqa: PLR0913 - the options of the command
    model: Target,
    gpu: Sequence[str] | str | None = None,
    *,
    precision: Sequence[str] | str | None = None,
    batch: Sequence[int] | int | None = None,
    price_per_hour: Mapping[str, float] | float | None = None,
    graph: bool = True,
    input_size: int | None = None,
    num_classes: int | None = None,
    quiet: bool = False,
) -> EstimateReport:
    """Latency of a network on GPUs that are not here, each with an interval of 90 %.

    Args:
        model: as that of `export`, or a bundle.
        gpu: one or several by name, as "L4"; all that are known if not given.
        precision: one or several; "fp32", "fp16" and "int8" if not given.
        batch: images at once, each is estimated; 1, 8 and 32 if not given, and of a graph with a
            fixed batch that one.
        price_per_hour: of the GPU, or of several by their names, for the price of a million images.
        graph: whether a CUDA graph is replayed, or the host launches each kernel.
        input_size: height and width of the images in pixels.
        num_classes: of a definition that takes it.
        quiet: whether to say nothing of the steps.

    Raises:
        UsageError: no such network, GPU or precision, or it does not take these choices.
        DeploykitError: the network cannot be read or exported.
    """
    _require_size(input_size)
    from deploykit.benchmarking.matrix.cells import in_order
    from deploykit.verbs.estimate import EstimateCall, estimate_target, gpus_of, prices_of

    gpus = None if gpu is None else gpus_of(_texts("gpu", gpu))
    choices = DefinitionChoices(num_classes, input_size)
    call = EstimateCall(
        gpus=gpus,
        precisions=in_order(_texts("precision", precision)),
        batches=None if batch is None else tuple(sorted(set(_wholes("batch", batch)))),
        prices=prices_of(_prices(price_per_hour), gpus),
        graph=graph,
        choices=choices,
    )
    require_call([os.fspath(model)] if isinstance(model, str | os.PathLike) else [])
    return estimate_target(network_of(_target(model), choices), call, _progress(quiet=quiet))


def _progress(*, quiet: bool) -> Progress:
    return SilentProgress() if quiet else watched_progress()


def _export_notes(notes: Iterable[str]) -> list[str]:
    """What was noticed, with the arguments of `export` in place of options."""
    arguments = signature(export).parameters
    return [in_python(note, arguments) for note in notes]


def _target(model: Target) -> str | nn.Module:
    return os.fspath(model) if isinstance(model, str | os.PathLike) else model


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
    found = _wholes(name, sizes)
    if len(found) == 1:
        return found[0], found[0], found[0]
    if len(found) != 3:  # noqa: PLR2004 - as said
        raise UsageError(f"{name}={sizes}\nexpected one size, or the smallest, preferred, largest")
    return found[0], found[1], found[2]


def _wholes(name: str, given: Any) -> tuple[int, ...]:
    """One whole number from 1 up, or several; of numpy too."""
    several = given if isinstance(given, list | tuple | range) else (given,)
    return tuple(_whole(name, each) for each in several)


def _whole(name: str, given: Any) -> int:
    try:
        found = index(given)
    except TypeError:
        found = 0
    if isinstance(given, bool) or found < 1:
        raise UsageError(f"{name}={given!r}\nexpected whole numbers from 1 up")
    return found


def _several(given: Sequence[str] | str | None) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given or ())


def _texts(name: str, given: Any) -> tuple[str, ...]:
    """One text, or several."""
    several = (given,) if isinstance(given, str) else () if given is None else given
    if not isinstance(several, Iterable) or not all(isinstance(each, str) for each in several):
        raise UsageError(f"{name}={given!r}\nexpected a name, or a list of names")
    return tuple(several)


def _prices(given: Any) -> list[tuple[str | None, float]]:
    """Of the one GPU, or of each by its name."""
    if given is None:
        return []
    prices = list(given.items()) if isinstance(given, Mapping) else [(None, given)]
    for name, price in prices:
        named = isinstance(name, str) or not isinstance(given, Mapping)
        if not named or isinstance(price, bool) or not isinstance(price, Real):
            raise UsageError(
                f"price_per_hour={given!r}\n"
                'expected a number above 0, or one for each GPU by its name: {"L4": 0.8}'
            )
    return [(name, float(price)) for name, price in prices]


def _require_size(input_size: Any) -> None:
    if input_size is not None and (not isinstance(input_size, int) or input_size < 1):
        raise UsageError(
            f"input_size={input_size!r}\nexpected height and width in pixels: one number from 1 up"
        )


def _require_seed(seed: Any) -> None:
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise UsageError(f"seed={seed!r}\nexpected a whole number from 0 up")


def _channels(name: str, given: Channels | float | None) -> Channels | None:
    if given is None:
        return None
    several = tuple(given) if isinstance(given, list | tuple) else (given,)
    is_real = all(isinstance(each, Real) for each in several)
    if len(several) not in (GREY, RGB) or not is_real:
        raise UsageError(f"{name}={given!r}\nexpected one number, or three: (red, green, blue)")
    return tuple(map(float, several))


def _results(result: str | Sequence[str] | None) -> tuple[str, ...]:
    return tuple(str(each) for each in _several(result))


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
