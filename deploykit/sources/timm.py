"""Image classifiers of timm: its definitions, its weights and their preprocessing."""

from __future__ import annotations

import warnings
from functools import cache, partial
from math import floor
from typing import TYPE_CHECKING, Any, Final, cast

from deploykit.core.environment import require, silenced
from deploykit.core.errors import UnknownNameError, UsageError, WeightsError
from deploykit.core.specs import BATCH, DEFAULT_HEAD, ModelSpec, Preprocessing, TensorSpec
from deploykit.heads.raw import RAW
from deploykit.sources.published_files import hugging_face_file, torch_hub_file
from deploykit.sources.state_dict import WeightsRecord, read_state_dict

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn


_FEATURES: Final = "features"
"""The output of a network without a classifier."""


def build(name: str, num_classes: int, size: tuple[int, int]) -> nn.Module:
    """An untrained network in evaluation mode, drawn from torch's random state.

    ``name`` is timm's, with the tag of the weights that it is built for; ``size`` is height and
    width.
    """
    from deploykit.sources.untrained import draw_values

    network = _made(name, num_classes, size)
    draw_values(network, size)
    return network


def refusal(name: str, num_classes: int, size: tuple[int, int]) -> str | None:
    """Why timm's network does not turn such images into so many logits; ``None``: it does.

    It is tried on torch's meta device, where nothing is allocated or computed.
    """
    import torch

    try:
        with torch.device("meta"), torch.no_grad():
            logits = _made(name, num_classes, size)(torch.zeros(1, 3, *size))
    except Exception as error:  # each family of timm has its own checks, or none
        return next(iter(str(error).splitlines()), type(error).__name__)
    found = tuple(getattr(logits, "shape", ())) or type(logits).__name__
    return None if found == (1, num_classes) else f"it returns {found}, not (1, {num_classes})"


def features(name: str, size: tuple[int, int]) -> int:
    """How many features a network without a classifier gives for an image.

    Raises:
        UsageError: it takes no such images, or gives no (N, features).
    """
    import torch

    try:
        with torch.device("meta"), torch.no_grad():
            found = _made(name, 0, size)(torch.zeros(1, 3, *size))
    except Exception as error:  # each family of timm has its own checks, or none
        reason = next(iter(str(error).splitlines()), type(error).__name__)
    else:
        if isinstance(found, torch.Tensor) and found.ndim == 2:  # noqa: PLR2004 - (N, features)
            return int(found.shape[1])
        reason = f"it returns {tuple(getattr(found, 'shape', ())) or type(found).__name__}"
    raise UsageError(
        f"timm:{name} does not turn {size[0]}x{size[1]} pixels into features\n"
        f"timm says: {reason}\nleave --input-size out, or choose another"
    )


def adapted(
    name: str, num_classes: int, size: tuple[int, int], state: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """The published ``state`` as the network of this size has it.

    timm gives old files today's names and resamples tables of positions.

    Raises:
        RuntimeError: ``state`` is not of this network.
    """
    return _made(name, num_classes, size, state).state_dict()


def _made(
    name: str, num_classes: int, size: tuple[int, int], state: Mapping[str, Tensor] | None = None
) -> nn.Module:
    import timm

    from deploykit.models._initialise import construction

    arguments: dict[str, Any] = {"num_classes": num_classes}
    if timm.models.get_pretrained_cfg(name).fixed_input_size:
        arguments["img_size"] = size
    if state is not None:
        arguments |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": dict(state)}}
    # Without timm's warnings of its own old names, and its log of what it loads.
    with construction(), silenced("timm"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cast("nn.Module", timm.create_model(name, **arguments).eval())


FILES: Final = ("model.safetensors", "pytorch_model.bin")
"""How weights are called on the hub, those that need no pickle first."""


def timm_weights(spec: ModelSpec, name: str) -> tuple[Mapping[str, Tensor], WeightsRecord]:
    """State dict, in the form that ``spec``'s network has, and record of what timm publishes.

    ``name`` is timm's, with the tag of the weights.

    Raises:
        UsageError: there are no weights of this name, or they have other classes.
        WeightsError: they cannot be had, or are not of this network.
        MissingDependencyError: timm is not installed.
    """
    config = _published(spec, name)
    path, sha256 = _file(config)

    state, size = read_state_dict(path), spec.preprocessing.crop
    try:
        state = dict(adapted(name, _classes_of(spec), size, state))
    except Exception as error:  # timm's converters expect the names that they convert
        raise WeightsError(
            f"{path.name}, the weights of {name}, are not those of timm's network\n"
            f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}\n"
            "another version of timm may read them, or give a file: --weights FILE"
        ) from error
    return state, WeightsRecord(f"timm {name}", sha256, trained=True, labels=spec.labels)


def _classes_of(spec: ModelSpec) -> int:
    """As timm counts them: a network that ends in features has none."""
    return spec.num_classes if spec.outputs[0].name != _FEATURES else 0


def _published(spec: ModelSpec, name: str) -> Any:
    models = require("timm.models")
    config = models.get_pretrained_cfg(name)
    if not (config.hf_hub_id or config.url):
        known = models.get_arch_pretrained_cfgs(config.architecture).values()
        tags = [one.tag for one in known if one.tag and (one.hf_hub_id or one.url)]
        raise UsageError(
            f"timm publishes no weights for {name}\n"
            f"it does for {config.architecture} as {', '.join(tags) or 'nothing'}\n"
            "or give a file: --weights FILE"
        )
    if _classes_of(spec) != config.num_classes:
        raise UsageError(
            f"the weights of {name} have {config.num_classes} classes, not {_classes_of(spec)}\n"
            "leave --num-classes out, or give a file: --weights FILE"
        )
    return config


def _file(config: Any) -> tuple[Path, str]:
    if config.hf_hub_id:
        return hugging_face_file(config.hf_hub_id, FILES)
    return torch_hub_file(config.url)


_LISTING: Final = "deploykit list --timm"
_CHANNELS: Final = 3


def timm_names() -> tuple[str, ...]:
    """The architectures of the timm that is installed, without the tags of their weights.

    Raises:
        MissingDependencyError: timm is not installed.
    """
    return tuple(require("timm").list_models())


def timm_spec(
    name: str, *, num_classes: int | None = None, image_size: int | None = None
) -> ModelSpec:
    """The spec of one of `timm_names`, built by timm itself.

    A tag behind the name, as in ``resnet50.a1_in1k``, chooses among the weights that timm
    publishes; without one it is timm's default. Size, crop, interpolation, mean, deviation and
    classes are those of their configuration, for which nothing is downloaded. Another image size
    keeps the ratio of resize to crop.

    Raises:
        UnknownNameError: timm has no architecture, or no weights, of this name.
        UsageError: not a classifier of RGB images, or not with this many classes or this size.
        MissingDependencyError: timm is not installed.
    """
    config, notes = _config(name)
    published: tuple[int, int] = tuple(config.input_size[1:])
    size = published if image_size is None else (image_size, image_size)
    classes: int = config.num_classes if num_classes is None else num_classes
    full_name = f"{config.architecture}.{config.tag}" if config.tag else config.architecture
    _check_choices(name, config, classes)
    if classes and (classes, size) != (config.num_classes, published):
        _try(full_name, config, classes, size)
    width = classes or features(full_name, size)
    return ModelSpec(
        name=f"timm-{name}",
        title=f"{full_name} of timm",
        paper=f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else None,
        inputs=(TensorSpec("input", "float32", (BATCH, _CHANNELS, *size)),),
        outputs=(TensorSpec("logits" if classes else _FEATURES, "float32", (BATCH, width)),),
        preprocessing=_preprocessing(config, size),
        labels=_labels(classes) if classes and classes == config.num_classes else None,
        builder=partial(build, full_name, classes, size),
        timm=full_name,
        published=partial(timm_weights, name=full_name),
        notes=(*notes, *_deviations(config)),
        head=DEFAULT_HEAD if classes else RAW.name,
    )


def _config(name: str) -> tuple[Any, list[str]]:
    """The configuration of the weights, and what the user must know of the name."""
    known = timm_names()
    models = require("timm.models")
    today = models.get_deprecated_models().get(name) or name
    architecture, _, tag = today.partition(".")
    if architecture not in known:
        raise UnknownNameError("timm architecture", architecture, known, _LISTING)
    tags = [config.tag or "" for config in models.get_arch_pretrained_cfgs(architecture).values()]
    if tag and tag not in tags:
        raise UnknownNameError(f"timm weights of {architecture}", tag, tags, ", ".join(tags))
    notes = [] if today == name else [f"timm calls {name} {today} by now"]
    return models.get_pretrained_cfg(today), notes


def _check_choices(name: str, config: Any, classes: int) -> None:
    if config.input_size[0] != _CHANNELS:
        raise UsageError(
            f"timm:{name} takes images of {config.input_size[0]} channels\n"
            "of timm those in RGB are taken; give a factory that builds it: path/to/file.py:factory"
        )
    if classes < 1 and classes != config.num_classes:
        raise UsageError(
            f"timm:{name} cannot have {classes} classes\n"
            "give at least 1, or leave --num-classes out"
        )


def _try(name: str, config: Any, classes: int, size: tuple[int, int]) -> None:
    reason = refusal(name, classes, size)
    if reason is not None:
        height, width = config.input_size[1:]
        raise UsageError(
            f"timm:{name} does not turn {size[0]}x{size[1]} pixels into {classes} classes\n"
            f"timm says: {reason}\n"
            f"its weights are for {height}x{width} and {config.num_classes}: leave --input-size "
            "and --num-classes out, or choose others"
        )


def _preprocessing(config: Any, size: tuple[int, int]) -> Preprocessing:
    # timm rounds down too, in transforms_imagenet_eval.
    height, width = (floor(side / config.crop_pct) for side in size)
    return Preprocessing(
        crop=size,
        resize=(height, width) if config.crop_mode == "squash" else max(height, width),
        interpolation="bicubic" if config.interpolation == "random" else config.interpolation,
        mean=tuple(config.mean),
        std=tuple(config.std),
    )


def _deviations(config: Any) -> list[str]:
    """Where images are not prepared as timm does it."""
    notes = []
    _, height, width = config.input_size
    if config.crop_mode == "border":
        notes.append("timm fills images up to the shape of the input; here they are cropped to it")
    elif config.crop_mode != "squash" and height != width:
        notes.append("timm scales images until they cover the input; here a little more")
    if config.interpolation == "random":
        notes.append("timm's weights were trained with any interpolation; here it is bicubic")
    return notes


@cache
def _labels(classes: int) -> tuple[str, ...] | None:
    """Names of ImageNet's classes; its subsets differ in their number."""
    data = require("timm.data")
    subset = data.infer_imagenet_subset({"num_classes": classes})
    return tuple(data.ImageNetInfo(subset).label_descriptions()) if subset else None
