"""One export as it is asked for, by the command line or by a program: its rules, and what it runs.

The module itself is light, because the command line's help loads it. One file because the rules of
a call and what it becomes change together.

What the call alone shows to be wrong is said by `require_export`, before torch is imported. The
messages name options, as ``--max-drop``; `deploykit.verbs.argument_names` makes arguments of them
for programs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from deploykit.bundle.folders import DEFAULT_FOLDER, MANIFEST
from deploykit.core.choices import DefinitionChoices
from deploykit.core.deployed import DeployedForm
from deploykit.core.errors import UsageError
from deploykit.core.gpu_choice import ENGINE_DEVICE
from deploykit.core.precision import (
    AUTO,
    RANDOM,
    Precision,
    calibrated_flags,
    find_precision,
    require_images,
)
from deploykit.core.progress import Progress, SilentProgress
from deploykit.verbs.byte_calls import require_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import nn

    from deploykit.backends import CompileOptions
    from deploykit.core.specs import ModelSpec
    from deploykit.exporting.steps import ExportOptions, ExportReport
    from deploykit.images import ImageSet
    from deploykit.precision.budget.request import Budget
    from deploykit.precision.calibration.data import CalibrationOptions
    from deploykit.precision.quantization.request import QuantizationRequest


@dataclass(frozen=True)
class PrecisionWish:
    """Flags and the name that a precision was asked by; of ``auto`` what it may lose, and where."""

    flagged: tuple[Precision, ...] = ()
    name: str | None = None
    max_drop: float | str | None = None
    gpu: str | None = None

    @property
    def is_auto(self) -> bool:
        """Whether it is chosen layer by layer."""
        return self.name == AUTO

    def require(self) -> None:
        """Refuse what does not go together.

        Raises:
            UnknownNameError: there is no precision of that name.
            UsageError: two precisions were asked, or a budget goes with none or is missing.
        """
        asked = {f"--{each}": each for each in self.flagged}
        if self.name is not None:
            if not self.is_auto:
                find_precision(self.name)
            asked[f"--precision {self.name}"] = self.flagged[0] if self.flagged else Precision.FP32
        if len(asked) > 1:
            raise UsageError(f"{' and '.join(asked)} exclude each other: run export once for each")
        if self.is_auto and self.max_drop is None:
            raise UsageError(
                "--precision auto needs to know what may be lost: --max-drop 1%\na share of the "
                "top-1 on --data with labels, else of the answers that agree with FP32"
            )
        given = {"--max-drop": self.max_drop, "--gpu": self.gpu}
        wrong = next((option for option, value in given.items() if value is not None), None)
        if wrong is not None and not self.is_auto:
            raise UsageError(f"{wrong} is for --precision auto\nadd that, or leave it out")

    @property
    def asked(self) -> Precision | None:
        """The precision that was named; ``None`` where none was, and for ``auto``."""
        if self.name is not None and not self.is_auto:
            return find_precision(self.name)
        return next(iter(self.flagged), None)

    @property
    def called(self) -> str:
        """Its name, that of the default where none was asked."""
        return AUTO if self.is_auto else str(self.asked or Precision.FP32)

    def budget(self) -> Budget | None:
        """What ``auto`` may lose; ``None`` for a precision that was named.

        Raises:
            UsageError: it is no share.
            UnknownNameError: there is no GPU of that name.
        """
        if not self.is_auto or self.max_drop is None:
            return None
        from deploykit.precision.budget.request import Budget, parse_drop

        drop = self.max_drop
        return Budget(parse_drop(drop) if isinstance(drop, str) else drop, self.gpu)


@dataclass(frozen=True)
class QuantizingWish:
    """What INT8 and FP8 are told beside images; ``auto`` is decided by trials."""

    method: str = "auto"
    rest: str = "fp16"
    exclude: tuple[str, ...] = ()
    first_layer: str = "auto"
    last_layer: str = "int8"
    residual: str = "auto"
    sensitive_layers: str = "auto"
    equalisation: str = "auto"
    bias_correction: str = "auto"
    weight_rounding: str = "auto"
    finetune: bool = False


@dataclass(frozen=True)
class ExportCall:
    """The options of one export; ``None`` is the default of the option.

    ``target`` is a TARGET of the command line, or a module that a program has, which ``name`` is
    then for. ``calib`` is a path, "random", or images of a program.
    """

    target: str | nn.Module
    precision: PrecisionWish
    compiling: CompileOptions
    calib: str | os.PathLike[str] | Iterable[Any] | None = None
    calib_count: int = 512
    calib_table: Path | None = None
    quantizing: QuantizingWish = field(default_factory=QuantizingWish)
    weights: str | None = None
    choices: DefinitionChoices = field(default_factory=DefinitionChoices)
    seed: int = 0
    data: Path | None = None
    max_pixels: int | None = None
    labels: Path | tuple[str, ...] | None = None
    backend: str = "auto"
    device: str = ENGINE_DEVICE
    timing_cache: bool = True
    output: Path | None = None
    replace: bool = False
    name: str | None = None
    form: DeployedForm = field(default_factory=DeployedForm)

    @property
    def report_images(self) -> Path | None:
        """Images on which a report compares answers: those of ``data``, else of ``calib``."""
        return self.data or images_folder(self.calib)


def default_bundle(target: str, wish: PrecisionWish, parent: Path = DEFAULT_FOLDER) -> Path:
    """The folder of a bundle that is not told one, as ``engines/resnet50-fp16``."""
    from deploykit.sources.kinds import kind_for

    return parent / f"{kind_for(target).short_name(target)}-{wish.called}"


def calls_of(targets: Sequence[str], call: ExportCall) -> tuple[ExportCall, ...]:
    """The call for each of ``targets``; of several, ``call.output`` is the folder of the bundles.

    Raises:
        UsageError: an option is for one network alone, or two bundles would have the same name.
    """
    if len(targets) == 1:
        return (replace(call, target=targets[0]),)
    call.precision.require()
    _require_for_several(len(targets), call)
    parent = DEFAULT_FOLDER if call.output is None else call.output
    if (parent / MANIFEST).is_file():
        raise UsageError(
            f"{parent} is a bundle, and with {len(targets)} targets -o is the folder for all\n"
            "give the folder above it"
        )
    places: dict[Path, str] = {}
    for target in targets:
        place = default_bundle(target, call.precision, parent)
        if place in places:
            raise UsageError(
                f"{places[place]} and {target} would both be the bundle {place}\n"
                "export one of them alone, with another -o FOLDER"
            )
        places[place] = target
    return tuple(replace(call, target=each, output=place) for place, each in places.items())


def _require_for_several(count: int, call: ExportCall) -> None:
    from deploykit.sources.state_dict import IMAGENET

    choices = call.choices
    given = {
        f"--weights {call.weights}": call.weights not in (None, IMAGENET),
        "--labels": call.labels is not None,
        "--num-classes": choices.num_classes is not None,
        "--factory-args": choices.arguments is not None,
        "--head-output": choices.head_output is not None,
        "--side-inputs": choices.side_inputs is not None,
        "--calib-table": call.calib_table is not None,
    }
    wrong = [option for option, is_given in given.items() if is_given]
    if wrong:
        raise UsageError(
            f"{wrong[0]} is for one network, there are {count}\n"
            "export each alone, or name it for each of them in a recipe: deploykit run --help"
        )


def require_export(call: ExportCall) -> None:
    """Refuse what the call alone shows to be wrong; torch is not imported for it.

    Raises:
        DeploykitError: as the step that needs it would say.
    """
    call.precision.require()
    call.precision.budget()
    require_images(call.precision.called, given=call.calib is not None)
    _require_name(call)
    _require_count(call.calib_count)
    _require_use(call)
    call.form.require_sizes(call.compiling.profile)
    require_bytes(call.target, call.name, call.form, call.choices.preprocessing)
    from deploykit.sources.calls import require_call

    targets = [call.target] if isinstance(call.target, str) else []
    require_call(
        targets,
        weights=call.weights,
        images=[call.data, images_folder(call.calib)],
        labels=call.labels if isinstance(call.labels, Path) else None,
    )
    if call.quantizing.finetune:
        _require_finetuning(call)


def _require_finetuning(call: ExportCall) -> None:
    """Refuse fine-tuning where it cannot be done, or not be judged."""
    if call.precision.is_auto:
        raise UsageError(
            "--finetune is for one precision of eight bits, and --precision auto mixes them\n"
            f"use one of {calibrated_flags()}, or leave --finetune out"
        )
    if call.calib == RANDOM:
        raise UsageError(
            "--finetune needs real images, and --calib random is noise\n"
            "give a folder or a file of images, or leave --finetune out"
        )
    from deploykit.core.environment import require_installed
    from deploykit.images import open_images
    from deploykit.precision.finetuning.tuning_images import FEWEST_IMAGES

    require_installed("torch")
    folder = images_folder(call.calib)
    count = call.calib_count
    if folder is not None:
        count = min(count, len(open_images(folder, call.max_pixels)))
    if count < FEWEST_IMAGES:
        raise UsageError(
            f"--finetune has {count} images to fit to, to stop by and to judge by\n"
            f"expected {FEWEST_IMAGES} or more of --calib and --calib-count: better 512"
        )


def require_calibration(
    target: str, calib: object, calib_count: int, weights: str | None = None
) -> None:
    """As `require_export`, of ranges that are measured without an export.

    Raises:
        DeploykitError: as the step that needs it would say.
    """
    from deploykit.sources.calls import require_call

    _require_count(calib_count)
    require_call([target], weights=weights, images=[images_folder(calib)])


def _require_use(call: ExportCall) -> None:
    """Refuse options of INT8 and FP8 where nothing would come of them."""
    asked = call.precision.asked or Precision.FP32
    if call.precision.is_auto or asked.facts.needs_calibration:
        return
    usual = QuantizingWish()
    said = [
        each.name
        for each in fields(QuantizingWish)
        if getattr(call.quantizing, each.name) != getattr(usual, each.name)
    ]
    said += ["calib_table"] if call.calib_table is not None else []
    if said:
        option = said[0].replace("_", "-")
        raise UsageError(
            f"--{option} is for {calibrated_flags()} only, not for {asked}\nleave it out"
        )


FEWEST_IMAGES: Final = 2
"""One is held out for trials."""


def _require_count(calib_count: int) -> None:
    if calib_count < FEWEST_IMAGES:
        raise UsageError(f"--calib-count is {calib_count}\nexpected {FEWEST_IMAGES} or more")


def make_bundle(
    call: ExportCall,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> ExportReport:
    """Export as the call says; ``say`` is told what is to be known before the work begins.

    Raises:
        DeploykitError: the call is wrong, or the error of the step that failed.
    """
    progress = progress or SilentProgress()
    require_export(call)
    with progress.step("start"):  # these imports take seconds
        from deploykit.exporting.steps import export_bundle
        from deploykit.runtime.choice import machine_with

        options = export_options(call)
    target = _network_of(call)
    told = say if call.precision.is_auto else None
    return export_bundle(target, options, progress, machine_with(call.device), told)


def export_options(call: ExportCall) -> ExportOptions:
    """What the stages of the export are told.

    Raises:
        UsageError: options that do not go together.
    """
    from deploykit.exporting.steps import ExportOptions
    from deploykit.sources.definition import SourceOptions

    compiling = call.compiling
    source = SourceOptions(
        call.weights, call.seed, call.choices, call.data, max_pixels=call.max_pixels
    )
    return ExportOptions(
        precision=call.precision.asked or Precision.FP32,
        backend=call.backend,
        profile=compiling.profile,
        workspace_bytes=compiling.workspace_bytes,
        compute_capabilities=compiling.compute_capabilities,
        optimization_level=compiling.optimization_level,
        hardware_compatibility=compiling.hardware_compatibility,
        timing_cache=call.timing_cache,
        source=source,
        labels=call.labels,
        output=call.output,
        quantization=_request(call),
        replace=call.replace,
        budget=call.precision.budget(),
        form=call.form,
    )


def images_folder(calib: object) -> Path | None:
    """Where calibration images are; ``None`` for noise, and for images that a program has."""
    return Path(calib) if isinstance(calib, str | os.PathLike) and calib != RANDOM else None


def calibration_options(  # noqa: PLR0913 - the options of a calibration
    calib: str | os.PathLike[str] | Iterable[Any],
    count: int,
    seed: int,
    *,
    table: Path | None = None,
    must_fit: bool = False,
    max_pixels: int | None = None,
    judges: int = 0,
) -> CalibrationOptions:
    """Calibration on a path, on noise, or on images of a program, of which ``judges`` are left.

    Raises:
        DataError: what a program gives is no images.
    """
    from deploykit.images import images_of
    from deploykit.precision.calibration.data import CalibrationOptions

    given: str | ImageSet = (
        os.fspath(calib)
        if isinstance(calib, str | os.PathLike)
        else images_of(calib, count + judges)
    )
    return CalibrationOptions(given, count, seed, table, must_fit, max_pixels=max_pixels)


def _request(call: ExportCall) -> QuantizationRequest | None:
    """What conversion to eight bits is told; ``None`` without calibration images."""
    if call.calib is None:
        return None
    from deploykit.graph.qdq import QdqPolicy
    from deploykit.precision.quantization.choice import Int8Choices
    from deploykit.precision.quantization.request import QuantizationRequest

    calibration = calibration_options(
        call.calib,
        call.calib_count,
        call.seed,
        table=call.calib_table,
        must_fit=call.calib_table is not None,
        max_pixels=call.max_pixels,
        judges=_judges(call),
    )
    _require_look(calibration, call.choices)
    wish = call.quantizing
    int8_choices = Int8Choices(
        wish.method,
        wish.first_layer,
        wish.residual,
        wish.sensitive_layers,
        wish.bias_correction,
        wish.equalisation,
        wish.weight_rounding,
    )
    policy = QdqPolicy(
        exclude=wish.exclude,
        first_layer=_fixed(wish.first_layer),
        last_layer=_fixed(wish.last_layer),
        residual=_fixed(wish.residual),
    )
    return QuantizationRequest(
        calibration, int8_choices, policy, Precision(wish.rest), wish.finetune
    )


def _judges(call: ExportCall) -> int:
    """Images of a program that judge a budget, beside those that calibrate."""
    budget = call.precision.budget()
    if budget is None or call.data is not None:
        return 0
    from deploykit.precision.budget.bounds import images_needed
    from deploykit.precision.budget.request import ENOUGH

    return ENOUGH * images_needed(budget.max_drop)


def _require_look(calibration: CalibrationOptions, choices: DefinitionChoices) -> None:
    from deploykit.images import PreparedTensors

    look = choices.preprocessing
    if isinstance(calibration.data, PreparedTensors) and (look.mean is None or look.std is None):
        raise UsageError(
            "--calib has tensors that are prepared already, and nobody said how\n"
            "give --mean and --std as your transforms have them, or images before the transforms"
        )


def _fixed(wish: str) -> Literal["int8", "keep"]:
    return "keep" if wish == "keep" else "int8"


def _require_name(call: ExportCall) -> None:
    if isinstance(call.target, str):
        if call.name is not None:
            raise UsageError(
                f"name={call.name!r} is for a module\n{call.target} has a name: leave it out"
            )
        return
    if call.weights is not None:
        raise UsageError(
            f"--weights is {call.weights}, and is for a TARGET\n"
            "a module brings its own: leave it out"
        )
    name = call.name
    if name is not None and not _is_plain(name):
        raise UsageError(
            f"name={name!r} is no name of a folder\n"
            "expected letters, digits, dots, dashes and underscores, as 'resnet50-mine'; for "
            "another place: --output FOLDER"
        )


def _is_plain(name: str) -> bool:
    """Whether it is a name in any file system, and neither hidden nor a way out of its folder."""
    return bool(name) and name[0].isalnum() and all(one.isalnum() or one in "._-" for one in name)


def _network_of(call: ExportCall) -> str | ModelSpec:
    """A TARGET as it is, a module as a definition; torch is imported for the latter alone."""
    from deploykit.images import read_class_names

    labels = read_class_names(call.labels) if isinstance(call.labels, Path) else call.labels
    count = None if labels is None else len(labels)
    return network_of(call.target, call.choices, call.name, count)


def network_of(
    target: str | nn.Module,
    choices: DefinitionChoices,
    name: str | None = None,
    labels: int | None = None,
) -> str | ModelSpec:
    """A TARGET as it is, a module as a definition; torch is imported for the latter alone.

    ``labels`` is how many names its classes were given.

    Raises:
        UsageError: the module cannot be exported, see `live_module_spec`.
    """
    if isinstance(target, str):
        return target
    from deploykit.sources.live_module import live_module_spec

    return live_module_spec(target, choices, name, labels)
