"""A folder as the Hugging Face hub has them: ``config.json``, safetensors, an image processor.

The folder is data: configurations are read as JSON, weights as tensors, and the network is one
of transformers' own. Code that lies beside them is never run.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from deploykit.core.artifacts import made_of, sha256_of, sha256_of_bytes
from deploykit.core.choices import channels_text, of_bytes, to_unit
from deploykit.core.environment import require
from deploykit.core.errors import UsageError, typed_first_line
from deploykit.core.regular_files import read_regular_text
from deploykit.core.specs import BATCH, DEFAULT_HEAD, ModelSpec, Preprocessing, TensorSpec
from deploykit.sources.state_dict import INDEX_SUFFIX, shards_of, weights_sha256

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from deploykit.core.choices import Channels, DefinitionChoices


_Sizes = int | tuple[int, int]

# Those that scale, cut, rescale and normalise as the back ends of transformers do ...
_PLAIN: Final = frozenset(
    {"Beit", "Bit", "CLIP", "DeiT", "Pvt", "Segformer", "Siglip", "ViT"}
    | {"MobileNetV1", "MobileNetV2"}
)
# ... and those that do one of the steps in their own way.
_OWN_STEPS: Final = frozenset(("ConvNext", "EfficientNet", "Levit", "MobileViT", "PoolFormer"))

_INTERPOLATIONS: Final = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Of Pillow's ``Resampling``; its 4 and 5, box and hamming, are not known to deploykit."""

_SQUASHED_FROM: Final = 384
"""Shorter side from which ConvNeXt's processor scales to a square instead of cutting one."""

_RGB: Final = 3


def read_processor(given: Mapping[str, Any], model_type: str, where: str) -> Preprocessing:
    """How the image processor prepares images that ``given``, the content of ``where``, says.

    Raises:
        UsageError: it is none of those that are written down here, transformers does not take
            its values, or it does something that `Preprocessing` cannot say.
    """
    from deploykit.sources.hugging_face_networks import quietly

    name = _class_name(given, model_type)
    kind = _kind(name)
    if kind not in _PLAIN | _OWN_STEPS:
        raise _refusal(where, f"{name or 'no image_processor_type'} prepares images in its own way")
    with quietly():
        try:
            processor = getattr(require("transformers"), f"{kind}ImageProcessorPil").from_dict(
                dict(given)
            )
        except Exception as error:  # anything can stand in the file
            raise UsageError(
                f"transformers makes no {kind}ImageProcessor of {where}\n{typed_first_line(error)}"
            ) from error
    try:
        return prepared_as(processor, where)
    except UsageError:
        raise
    except Exception as error:  # transformers takes values that it could not prepare with
        raise _refusal(where, f"its values make no sense, {typed_first_line(error)}") from error


def _class_name(given: Mapping[str, Any], model_type: str) -> str:
    """As `AutoImageProcessor` finds it: in the file, or what goes with the network."""
    name = given.get("image_processor_type") or given.get("feature_extractor_type")
    if name is None:
        auto = require("transformers.models.auto.image_processing_auto")
        name = auto.IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type, {}).get("pil", "")
    return str(name)


def _kind(name: str) -> str:
    """The part of a class's name that is the same in all releases.

    >>> _kind("ViTImageProcessorPil"), _kind("ViTImageProcessorFast"), _kind("ViTFeatureExtractor")
    ('ViT', 'ViT', 'ViT')
    """
    return re.sub("(ImageProcessor|FeatureExtractor)(Pil|Fast)?$", "", name)


def prepared_as(processor: Any, where: str) -> Preprocessing:
    """What ``processor``, an object of transformers, does to an RGB image; ``where`` it is from.

    Raises:
        UsageError: it does something that `Preprocessing` cannot say.
    """
    kind = _kind(type(processor).__name__)
    if getattr(processor, "do_pad", None):
        raise _refusal(where, "do_pad fills images up")
    resize, crop = _geometry(kind, processor, where)
    mean, std = _affine(kind, processor, where)
    is_bgr = bool(getattr(processor, "do_flip_channel_order", None))
    return Preprocessing(
        crop=crop,
        resize=resize,
        interpolation=_interpolation(processor.resample, where),
        # The channels change places after they are normalised.
        mean=mean[::-1] if is_bgr else mean,
        std=std[::-1] if is_bgr else std,
        channel_order="bgr" if is_bgr else "rgb",
    )


def _geometry(kind: str, processor: Any, where: str) -> tuple[_Sizes | None, tuple[int, int]]:
    resize = _scaling(kind, processor, where) if processor.do_resize else None
    if processor.do_center_crop:
        return resize, (processor.crop_size.height, processor.crop_size.width)
    shorter = processor.size.shortest_edge if processor.do_resize else None
    if kind == "ConvNext" and shorter is not None:
        return resize, (shorter, shorter)
    if isinstance(resize, tuple):
        return resize, resize
    raise _refusal(where, "neither scales to a height and width nor cuts one (do_center_crop)")


def _scaling(kind: str, processor: Any, where: str) -> _Sizes:
    """The shorter side, or height and width, that an image is scaled to."""
    size = processor.size
    if size.longest_edge or size.max_height or size.max_width:
        raise _refusal(where, f"size {_given(size)} limits the longer side")
    if size.shortest_edge:
        return _shorter_side(kind, size.shortest_edge, processor)
    if not (size.height and size.width) or kind == "ConvNext":
        raise _refusal(where, f"size {_given(size)} says no side")
    if kind != "PoolFormer":
        return size.height, size.width
    height, width = int(size.height / processor.crop_pct), int(size.width / processor.crop_pct)
    return height if height == width else (height, width)


def _shorter_side(kind: str, side: int, processor: Any) -> _Sizes:
    match kind:
        case "ConvNext":
            return (side, side) if side >= _SQUASHED_FROM else int(side / processor.crop_pct)
        case "PoolFormer":
            return int(side / processor.crop_pct)
        case "Levit":
            return int(256 / 224 * side)
        case _:
            return side


def _affine(
    kind: str, processor: Any, where: str
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and deviation that do to pixels of 0 to 1 what the processor does to 0 to 255.

    It computes ((pixel * factor + offset) - mean) / std; EfficientNet's divides by std again.
    """
    factor = float(processor.rescale_factor) if processor.do_rescale else 1.0
    is_shifted = processor.do_rescale and getattr(processor, "rescale_offset", False)
    offset = -1.0 if is_shifted else 0.0
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    # MobileViT's leaves this step out, whatever its file says.
    if processor.do_normalize and kind != "MobileViT":
        mean = _channels(processor.image_mean, "image_mean", where)
        std = _channels(processor.image_std, "image_std", where)
    if kind == "EfficientNet" and processor.include_top:
        again = _channels(processor.image_std, "image_std", where)
        std = (std[0] * again[0], std[1] * again[1], std[2] * again[2])
    if 0 in (factor, *std):
        raise _refusal(where, f"rescale_factor {factor} with image_std {std} leaves no image")
    unit = 255 * factor
    first, second, third = ((value - offset) / unit for value in mean)
    means, stds = (first, second, third), (std[0] / unit, std[1] / unit, std[2] / unit)
    if of_bytes(means, stds):
        raise _wrong_scale(mean, std, factor, where)
    return means, stds


def _wrong_scale(mean: Channels, std: Channels, factor: float, where: str) -> UsageError:
    """A mean of 0 to 255 behind a rescaling to 0 to 1: every image would be nearly the same."""
    return UsageError(
        f"{where}: image_mean {channels_text(mean)} and image_std {channels_text(std)} do not fit "
        f"pixels that are multiplied by {factor:.6g} first\n"
        f"if they are of pixels of 0 to 255: {channels_text(to_unit(mean))} and "
        f"{channels_text(to_unit(std))} in that file, or do_rescale false\n"
        "or take the file away and say it yourself: --resize --interpolation --mean --std"
    )


def _channels(value: float | Sequence[float], name: str, where: str) -> tuple[float, float, float]:
    values = [value] * _RGB if isinstance(value, int | float) else list(value)
    if len(values) != _RGB:
        raise _refusal(where, f"{name} {values} is not for red, green and blue")
    return values[0], values[1], values[2]


def _interpolation(resample: int | None, where: str) -> str:
    number = 2 if resample is None else int(resample)  # the back ends' own default
    if number not in _INTERPOLATIONS:
        raise _refusal(where, f"resample {number} is none of {_INTERPOLATIONS}")
    return _INTERPOLATIONS[number]


def _given(size: Any) -> dict[str, int]:
    return {name: value for name, value in sorted(dict(size).items()) if value is not None}


def _refusal(where: str, why: str) -> UsageError:
    return UsageError(
        f"{where}: {why}\n"
        "deploykit scales, cuts the centre and normalises, with a fixed size at the end\n"
        "take the file away and say it yourself: --resize --interpolation --mean --std"
    )


CONFIG: Final = "config.json"
PROCESSORS: Final[Mapping[str, str | None]] = {
    "processor_config.json": "image_processor",
    "preprocessor_config.json": None,
}
"""Files that may say how images are prepared, and under which key; transformers takes the first."""

WEIGHTS: Final = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Files that may hold the weights, the first that exists is taken; all are read as data."""

IMAGE_SIZE: Final = 224
"""Assumed where neither file says one."""

_CLASSIFIER: Final = "ForImageClassification"
_NO_NAME: Final = re.compile(r"LABEL_\d+")


def hugging_face_spec(folder: Path, choices: DefinitionChoices) -> ModelSpec:
    """The spec of the image classifier in ``folder``, with its own weights.

    Input size, crop, interpolation, mean and deviation are those of the image processor's file;
    another image size keeps the ratio of resize to crop. Names of the classes are the
    configuration's.

    Raises:
        UsageError: the folder holds no image classifier of transformers, its images are prepared
            in a way that cannot be said, or it does not take these choices.
        MissingDependencyError: transformers is not installed.
    """
    name = folder.resolve().name
    if choices.num_classes is not None:
        raise UsageError(
            f"--num-classes is not for {name}: the folder has its own classes\n"
            "leave it out, or train a head of that size and save it again"
        )
    given = _read_json(folder / CONFIG)
    _require_plain_classifier(given, name, folder)
    _require_buildable(given, name)
    require("transformers")
    from deploykit.sources import hugging_face_networks

    config = hugging_face_networks.read_config(given, name)
    prepared = _prepared(folder, config.model_type)
    height, width = _input_size(config, prepared, choices.image_size)
    network = hugging_face_networks.outline(config, name)
    _require_same_class(network, given, name)
    _require_weights_of_that_size(network, name, _weights_file(folder))
    classes = hugging_face_networks.count_classes(network, (height, width), name)
    return ModelSpec(
        name=name,
        title=f"{type(network).__name__} of {name}",
        inputs=(TensorSpec("input", "float32", (BATCH, 3, height, width)),),
        outputs=(TensorSpec("logits", "float32", (BATCH, classes)),),
        preprocessing=_resized(prepared, height, width),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        labels=_labels(config.id2label, classes),
        builder=partial(hugging_face_networks.build, config),
        weights_file=_weights_file(folder),
        source_sha256=digest(folder),
        adapt_state=partial(hugging_face_networks.under_todays_names, config),
        preprocessing_assumed=prepared is None,
        notes=tuple(_notes(config, choices, prepared, height)),
        head=_HEADS.get(str(getattr(config, "problem_type", None)), DEFAULT_HEAD),
    )


_HEADS: Final = {"multi_label_classification": "multilabel", "regression": "raw"}
"""What the outputs mean, by what the configuration says of the training."""


def digest(folder: Path) -> str:
    """Hex digest over the files that say what the network is and how images are prepared."""
    files = [folder / name for name in (CONFIG, *PROCESSORS) if (folder / name).is_file()]
    return sha256_of_bytes("".join(f"{sha256_of(file)}  {file.name}\n" for file in files).encode())


def digest_with_weights(folder: Path) -> str:
    """As `digest`, with the folder's weights where there are any."""
    weights = _weights_file(folder)
    return made_of(digest(folder), weights_sha256(weights) if weights.is_file() else None)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_regular_text(path))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot read {path} ({type(error).__name__}: {error})\n"
            "expected a folder as save_pretrained of transformers writes it"
        ) from error
    if not isinstance(content, dict):
        raise UsageError(
            f"{path} holds a JSON {type(content).__name__}, not an object\n"
            "expected a folder as save_pretrained of transformers writes it"
        )
    return content


def _require_plain_classifier(given: Mapping[str, Any], name: str, folder: Path) -> None:
    """Refuse what is no image classifier, and what transformers alone cannot build."""
    _require_no_code(given, f"{name}/{CONFIG}")
    architecture = _architecture(given)
    timm = given.get("architecture")
    if isinstance(timm, str) and (not architecture or architecture.startswith("TimmWrapper")):
        raise UsageError(
            f"{name} is {timm} of timm, not of transformers\n"
            f"use timm:{timm} --weights {_weights_file(folder)}"
        )
    if _CLASSIFIER not in architecture:
        raise UsageError(
            f"{name} is {architecture or 'of no architecture'}, not an image classifier\n"
            f'expected "architectures" in {CONFIG} to name a ...{_CLASSIFIER}'
        )
    if given.get("quantization_config"):
        raise UsageError(
            f"the weights of {name} are quantized already (quantization_config)\n"
            "take the folder that they were made from; --int8 quantizes it"
        )


_MOST_CLASSES: Final = 1_000_000
"""The largest public classifier, of ImageNet-22k, has 21,841; a name takes about 130 bytes."""

_MOST_LAYERS: Final = 10_000
"""The deepest public one has 1,001; a layer without its weights takes some 50 KB."""

_DEPTH: Final = re.compile(r"(?:.*_)?(?:depths?|layers|blocks|repeats)")
"""Keys with a number of layers, or of those of each stage."""


def _require_buildable(given: Mapping[str, Any], name: str) -> None:
    """Refuse numbers that transformers would turn into as many names or layers, one by one."""
    for key, value in given.items():
        if isinstance(value, dict):
            if key not in {"id2label", "label2id"}:
                _require_buildable(value, name)
            continue
        values = value if isinstance(value, list) else [value]
        total = sum(each for each in values if isinstance(each, int | float))
        is_depth = _DEPTH.fullmatch(key) is not None
        most = _MOST_LAYERS if is_depth else _MOST_CLASSES if key == "num_labels" else None
        if most is not None and total > most:
            raise UsageError(
                f"{name}/{CONFIG} has {key} {total:,}\n"
                f"expected at most {most:,}: no image classifier has more; is the file damaged?"
            )


def _require_weights_of_that_size(network: Any, name: str, weights: Path) -> None:
    """Refuse a network that is far larger than the file that should fill it."""
    if not weights.is_file():
        return
    parts = (weights, *shards_of(weights)) if weights.suffix == INDEX_SUFFIX else (weights,)
    present = sum(part.stat().st_size for part in parts if part.is_file())
    needed = 4 * sum(parameter.numel() for parameter in network.parameters())
    if needed > max(_ANY_NETWORK_BYTES, _TIMES_FILE * present):
        raise UsageError(
            f"{name}/{CONFIG} is of a network of {needed:,} bytes in FP32, {weights.name} has "
            f"{present:,}\nthey do not belong together: save the model again"
        )


_ANY_NETWORK_BYTES: Final = 2**30
_TIMES_FILE: Final = 8
"""Bytes in FP32 of each byte in the file: 4-bit numbers, the smallest that are, make 8."""


def _require_no_code(given: Mapping[str, Any], where: str) -> None:
    if given.get("auto_map"):
        raise UsageError(
            f"{where} asks for code of its own (auto_map), which is never run\n"
            "for code that you trust, write a function that returns the module: "
            "path/to/file.py:factory"
        )


def _architecture(given: Mapping[str, Any]) -> str:
    names = given.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def _require_same_class(network: object, given: Mapping[str, Any], name: str) -> None:
    built = type(network).__name__
    if built != _architecture(given):
        raise UsageError(
            f"{name} is {_architecture(given)}, but its model_type "
            f"{given.get('model_type')!r} makes {built}\n"
            f"check architectures and model_type in {CONFIG}"
        )


def _prepared(folder: Path, model_type: str) -> Preprocessing | None:
    """How the folder's image processor prepares images, ``None`` where there is none."""
    for name, key in PROCESSORS.items():
        file = folder / name
        if not file.is_file():
            continue
        content = _read_json(file)
        given = content if key is None else content.get(key)
        if isinstance(given, dict):  # a processor of text alone is none
            where = f"{folder.resolve().name}/{name}"
            _require_no_code(given, where)
            return read_processor(given, model_type, where)
    return None


def _input_size(config: Any, prepared: Preprocessing | None, wanted: int | None) -> tuple[int, int]:
    if wanted is not None:
        return wanted, wanted
    if prepared is not None:
        return prepared.crop
    return _trained_size(config) or (IMAGE_SIZE, IMAGE_SIZE)


def _trained_size(config: Any) -> tuple[int, int] | None:
    """Height and width in the configuration; networks that take any size have none."""
    vision = getattr(config, "vision_config", config)
    match getattr(vision, "image_size", None):
        case int(side):
            return side, side
        case [int(height), int(width)] | (int(height), int(width)):
            return height, width
    return None


def _resized(prepared: Preprocessing | None, height: int, width: int) -> Preprocessing:
    if prepared is None:
        return Preprocessing(crop=(height, width), resize=round(min(height, width) * 256 / 224))
    known = prepared
    if known.crop == (height, width):
        return known
    rows, columns = height / known.crop[0], width / known.crop[1]
    match known.resize:
        case int(shorter):
            resize: int | tuple[int, int] | None = round(shorter * rows)
        case (int(tall), int(wide)):
            resize = round(tall * rows), round(wide * columns)
        case other:
            resize = other
    return replace(known, crop=(height, width), resize=resize)


def _labels(names: Mapping[int, str], classes: int) -> tuple[str, ...] | None:
    """Names in the order of the logits, each on one line; ``None`` where they say nothing."""
    if set(names) != set(range(classes)):
        return None
    labels = tuple(" ".join(str(names[index]).split()) for index in range(classes))
    return None if all(map(_NO_NAME.fullmatch, labels)) else labels


def _weights_file(folder: Path) -> Path:
    """The first of the known files; where there is none, the one that should be there."""
    files = [folder / name for name in WEIGHTS]
    return next((file for file in files if file.is_file()), files[0])


def _notes(
    config: Any, choices: DefinitionChoices, prepared: Preprocessing | None, size: int
) -> Iterator[str]:
    if choices.image_size is None and prepared is None and _trained_size(config) is None:
        yield f"an input of {size}x{size} is assumed; another: --input-size PX"
    kind = getattr(config, "problem_type", None)
    if kind in {"multi_label_classification", "regression"}:
        yield f"it was trained for {kind}, but is judged and shown as if one class were right"
    if prepared is not None and prepared.channel_order == "bgr":
        yield "images are turned into the BGR that it was trained on, as its image processor does"
