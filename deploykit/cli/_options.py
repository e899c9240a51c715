"""Options that mean the same in every command that has them."""

from __future__ import annotations

import json
from functools import wraps
from inspect import signature
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploykit.cli._option_types import PathOr, QuantizingOption
from deploykit.cli._size_options import (
    OPEN_SIZE,
    SIZES,
    SIZES_OF_EACH,
    read_open_size,
    read_sizes,
)
from deploykit.core.artifacts import HARDWARE_COMPATIBILITY, THIS_GPU
from deploykit.core.errors import UsageError
from deploykit.core.precision import find_precision
from deploykit.core.sizes import GREY, RGB

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from deploykit.backends import CompileOptions
    from deploykit.core.choices import DefinitionChoices
    from deploykit.core.precision import Precision
    from deploykit.core.sizes import ShapeProfile

    Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


_MIB = 2**20


class NamesBackends(click.Option):
    """An option whose help names backends, which are looked up when the help is shown.

    BACKENDS in its text stands for all of them, COMPILERS for those that compile, DEVICES for
    those that `deploykit.load` runs a graph on.
    """

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """What the option is called, and its text with the names."""
        from deploykit.backends._registry import backends, engine_backends, load_devices

        record = super().get_help_record(ctx)
        if record is None:
            return None
        called, text = record
        known = {
            "BACKENDS": [each.name for each in backends()],
            "COMPILERS": [each.name for each in engine_backends()],
            "DEVICES": load_devices(),
        }
        for word, names in known.items():
            text = text.replace(word, ", ".join(names))
        return called, text


backend = click.option(
    "--backend",
    cls=NamesBackends,
    default="auto",
    show_default=True,
    metavar="NAME",
    help="COMPILERS, none (no engine), or auto: what this machine has.",
)


def all_of(options: Sequence[Decorator]) -> Decorator:
    """A decorator that adds ``options`` in their order on the help page."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return add


weights = click.option(
    "--weights",
    type=PathOr("imagenet"),
    metavar="imagenet|FILE",
    help="torchvision's or timm's, or a .safetensors, .npz, .pth, .ckpt or .bin file; FILE#ENTRY "
    "where it holds several, as FILE#model_ema.  "
    "[default: the definition's own, or untrained]",
)
num_classes = click.option(
    "--num-classes", type=click.IntRange(min=1), metavar="N", help="Length of the output."
)
threshold = click.option(
    "--threshold",
    type=float,
    metavar="P",
    help="Probability from which a binary or multilabel head says yes.  [default: 0.5]",
)

input_size = click.option(
    "--input-size", type=click.IntRange(min=1), metavar="PX", help="Height and width of the input."
)
seed = click.option(
    "--seed", default=0, show_default=True, metavar="N", help="Of untrained weights."
)
data = click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Images: a folder, a CSV list, an .npz or .npy.",
)
max_pixels = click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    metavar="N",
    help="Pixels that an image file may have. A larger JPEG is decoded at a half or a quarter of "
    "its width and height, where that is enough for the resize and its kind allows it; what is "
    "larger is refused.  [default: 256 for each that the model sees, within 50 and 89 million]",
)
fast = click.option(
    "--fast",
    is_flag=True,
    help="Compute in plain FP32 on the CPU, without an engine's rounding: faster, proves less.",
)
_WHERE = "of several GPUs one: cuda:1, a PCI bus id, a UUID), DEVICES (the ONNX file), or auto."
device, best_device = (
    click.option(
        "--device",
        cls=NamesBackends,
        default=default,
        show_default=True,
        metavar="NAME",
        help=f"cuda ({engine}; {_WHERE}",
    )
    for default, engine in (("cpu", "the engine that will serve"), ("auto", "an engine"))
)
gpu = click.option(
    "--device",
    default="cuda",
    show_default=True,
    metavar="GPU",
    help="Of several GPUs one: cuda:1, a PCI bus id, a UUID.",
)
_trust = click.option(
    "--trust",
    type=click.Path(path_type=Path),
    metavar="FILE.pem",
    help="Public key that must have signed the bundle as it is, or certificates of which one must "
    "have issued the signer's: its direct issuer's, or one above.",
)
_identity = click.option(
    "--identity",
    metavar="NAME",
    help="Mail address, or a CI's workflow, that must have signed it by Sigstore. Needs a network.",
)
_issuer = click.option(
    "--issuer",
    metavar="URL",
    help="Who must have known --identity: https://accounts.google.com, for example.",
)
side_inputs = click.option(
    "--side-inputs",
    type=click.Path(path_type=Path),
    metavar="FILE.npz",
    help="What an .onnx takes beside images: an array by the name of each input, a row per image.",
)
calib_count = click.option(
    "--calib-count",
    cls=QuantizingOption,
    default=512,
    show_default=True,
    type=click.IntRange(min=2),
    metavar="N",
    help="Images to calibrate with, at most.",
)


precision_name = click.option(
    "--precision", metavar="NAME", help="One of these by its name, or a plug-in's."
)


def trust(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say whom a command trusts, of which it gets one noun: ``trust``."""

    @_trust
    @_identity
    @_issuer
    @wraps(function)
    def command(trust: Path | None, identity: str | None, issuer: str | None, **given: Any) -> Any:
        if identity is None and issuer is None:
            return function(trust=trust, **given)
        if trust is not None or identity is None or issuer is None:
            raise UsageError(
                "--identity NAME and --issuer URL go together, and without --trust\n"
                "say whose signature you expect: an identity of Sigstore, or what is in a file"
            )
        from deploykit.bundle.sigstore import SigstoreIdentity

        return function(trust=SigstoreIdentity(identity, issuer), **given)

    return command


def precision_flags(texts: Mapping[Precision, str]) -> Decorator:
    """Add a flag for each of ``texts``, of which the command gets those given as ``flagged``."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def command(**given: Any) -> Any:
            flagged = tuple(each for each in texts if given.pop(each.value))
            return function(flagged=flagged, **given)

        for precision, text in reversed(list(texts.items())):
            option = click.option(f"--{precision}", precision.value, is_flag=True, help=text)
            command = option(command)
        return command

    return add


def one_precision(
    verb: str, *, flagged: tuple[Precision, ...], name: str | None
) -> Precision | None:
    """The one precision that was asked, by a flag or by its name; ``None`` without.

    Raises:
        UnknownNameError: there is no precision of that name.
        UsageError: more than one was asked.
    """
    asked = {f"--{each}": each for each in flagged}
    if name is not None:
        asked[f"--precision {name}"] = find_precision(name)
    if len(asked) > 1:
        raise UsageError(f"{' and '.join(asked)} exclude each other: run {verb} once for each")
    return next(iter(asked.values()), None)


_BATCH = "1,8,32"
_COMPILING = (
    click.option(
        "--batch",
        "batch",
        multiple=True,
        metavar="MIN,OPT,MAX",
        help="Batches that the engine accepts, and the one that it is tuned for; or one number. "
        "Several times: a profile for each, with the --height and --width of the same place, or "
        f"the only ones.  [default: {_BATCH}]",
    ),
    *SIZES_OF_EACH,
    click.option(
        "--workspace",
        type=click.IntRange(min=1),
        metavar="MIB",
        help="Limit of the compiler's scratch memory.",
    ),
    click.option(
        "--compute-capability",
        "compute_capabilities",
        multiple=True,
        metavar="CC",
        help="GPU generation for tensorrt-rtx, as 8.9; may be repeated. Default: all from 8.0 on "
        "that have the precision.",
    ),
    click.option(
        "--optimization-level",
        type=click.IntRange(0, 5),
        metavar="0..5",
        help="How long the compiler searches: 0 builds fastest, 5 perhaps finds faster kernels."
        "  [default: the compiler's own, 3]",
    ),
    click.option(
        "--hardware-compatibility",
        type=click.Choice(HARDWARE_COMPATIBILITY),
        default=THIS_GPU,
        show_default=True,
        help="GPUs beside this one, for tensorrt: all of its compute capability, or all from 8.0 "
        "on. Such an engine may be slower.",
    ),
)


no_timing_cache = click.option(
    "--no-timing-cache",
    is_flag=True,
    help="Time every kernel anew. TensorRT's times are kept beside the bundle, in a file for each "
    "version and GPU.",
)


def _read_profiles(
    batch: tuple[str, ...], height: tuple[str, ...], width: tuple[str, ...]
) -> ShapeProfile:
    """A profile for each place; what is given once holds for all."""
    from dataclasses import replace

    from deploykit.core.sizes import ShapeProfile

    given: dict[str, tuple[str, ...]] = {
        "--batch": batch or (_BATCH,),
        "--height": height,
        "--width": width,
    }
    count = max(map(len, given.values()))
    odd = next((name for name, texts in given.items() if len(texts) not in {0, 1, count}), None)
    if odd is not None:
        raise UsageError(
            f"{odd} is given {len(given[odd])} times, and another of {', '.join(given)} {count}\n"
            "each place is a profile: give it as often, or once for all of them"
        )
    profiles = []
    for place in range(count):
        told = {name: texts[place % len(texts)] for name, texts in given.items() if texts}
        sizes = read_sizes(height=told.get("--height"), width=told.get("--width"))
        alone = ShapeProfile.parse(told["--batch"])
        profiles.append(replace(alone, height=sizes.height, width=sizes.width))
    return ShapeProfile.of(profiles)


def _read_compiling(  # noqa: PLR0913 - one parameter per option
    *,
    batch: tuple[str, ...],
    height: tuple[str, ...],
    width: tuple[str, ...],
    workspace: int | None,
    compute_capabilities: tuple[str, ...],
    optimization_level: int | None,
    hardware_compatibility: str,
) -> CompileOptions:
    from deploykit.backends import CompileOptions

    profile = _read_profiles(batch, height, width)
    memory = None if workspace is None else workspace * _MIB
    return CompileOptions(
        profile,
        memory,
        compute_capabilities,
        optimization_level=optimization_level,
        hardware_compatibility=hardware_compatibility,
    )


head = (
    click.option(
        "--head",
        metavar="NAME",
        help="What the outputs mean: multiclass, multilabel, binary, raw (anything), or a "
        "plug-in's.  [default: read from the network]",
    ),
    click.option(
        "--head-output",
        metavar="NAME",
        help="The output that is meant, of a network that has several.",
    ),
)

_OPTIONS = (
    num_classes,
    input_size,
    click.option(
        "--factory-args",
        metavar="JSON",
        help="Keyword arguments for a factory in a Python file: '{\"depth\": 18}'",
    ),
    click.option(
        "--resize",
        metavar="PX|HxW",
        help="Images are scaled: shorter side, or exactly to HxW.  [default: the model's own]",
    ),
    click.option(
        "--interpolation", metavar="NAME", help="bilinear, bicubic, nearest or lanczos, likewise."
    ),
    click.option(
        "--mean",
        metavar="R,G,B",
        help="Subtracted from pixels of 0 to 1, likewise; with --std also of 0 to 255. One number "
        "is that of every channel.",
    ),
    click.option(
        "--std",
        metavar="R,G,B",
        help="What they are divided by then, likewise; or one number.",
    ),
    click.option(
        "--channel-order",
        metavar="rgb|bgr|grey",
        help="Of the network's input, --mean and --std; one channel is grey.  [default: likewise]",
    ),
    side_inputs,
    *head,
)


def read_choices(  # noqa: PLR0913 - one parameter per option
    *,
    num_classes: int | None = None,
    input_size: int | None = None,
    factory_args: str | None = None,
    resize: str | None = None,
    interpolation: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    channel_order: str | None = None,
    side_inputs: Path | None = None,
    head: str | None = None,
    head_output: str | None = None,
) -> DefinitionChoices:
    """What the options ask for.

    Raises:
        UsageError: an option cannot be read.
    """
    from deploykit.core.choices import DefinitionChoices, PreprocessingChoices

    wanted = PreprocessingChoices(
        resize=None if resize is None else _sides(resize),
        interpolation=interpolation,
        mean=None if mean is None else _channels("--mean", mean),
        std=None if std is None else _channels("--std", std),
        channel_order=None if channel_order is None else channel_order.lower(),
    )
    arguments = None if factory_args is None else _arguments(factory_args)
    return DefinitionChoices(
        num_classes, input_size, arguments, wanted, side_inputs, head, head_output
    )


def _sides(text: str) -> int | tuple[int, int]:
    parts = text.lower().split("x")
    if not all(part.isascii() and part.isdecimal() and int(part) > 0 for part in parts):
        parts = []
    match [int(part) for part in parts]:
        case [shorter]:
            return shorter
        case [height, width]:
            return height, width
    raise UsageError(
        f"--resize is {text!r}\nexpected pixels of the shorter side, as 256, or HxW, as 224x224"
    )


def _channels(option: str, text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(map(float, text.split(",")))
    except ValueError:
        numbers = ()
    if len(numbers) not in (GREY, RGB) or not all(map(isfinite, numbers)):
        raise UsageError(
            f"{option} is {text!r}\nexpected three numbers for red, green and blue, as "
            "0.485,0.456,0.406, or one for every channel, as 0.5"
        )
    return numbers


def _arguments(text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text)
    except ValueError as error:
        raise UsageError(
            f"--factory-args is not JSON: {error}\n"
            "expected an object of keyword arguments, as '{\"depth\": 18}'"
        ) from error
    if not isinstance(arguments, dict):
        raise UsageError(
            f"--factory-args is {text}\n"
            "expected an object of keyword arguments, as '{\"depth\": 18}'"
        )
    return arguments


def _gathered(name: str, read: Callable[..., Any], options: Sequence[Decorator]) -> Decorator:
    """A decorator that adds ``options``, of which the command gets what ``read`` makes of them."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def command(**given: Any) -> Any:
            told = {option: given.pop(option) for option in signature(read).parameters}
            return function(**{name: read(**told)}, **given)

        return all_of(options)(command)

    return add


choices = _gathered("choices", read_choices, _OPTIONS)
"""The options of a definition; the command gets ``choices``, `DefinitionChoices`."""

sizes = _gathered("sizes", read_sizes, SIZES)
"""Sizes of open images; the command gets ``sizes``, a `ShapeProfile`."""

open_size = _gathered("open_size", read_open_size, OPEN_SIZE)
"""One size of open images; the command gets ``open_size``, height and width, or ``None``."""

compiling = _gathered("compiling", _read_compiling, _COMPILING)
"""The options of a compiler; the command gets ``compiling``, `CompileOptions`."""
