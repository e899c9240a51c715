"""Image processors of transformers, in the terms of `Preprocessing`.

transformers resolves a folder's file to one of its own classes, with the class's defaults for
what the file leaves out. What the class then does is written down here for those that image
classifiers are published with; any other is refused rather than guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from deploykit.core.environment import require
from deploykit.core.errors import UsageError, typed_first_line
from deploykit.core.specs import Preprocessing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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


@dataclass(frozen=True, slots=True)
class ProcessorSettings:
    """How an image processor prepares images; ``is_bgr``: and turns RGB round in the end."""

    preprocessing: Preprocessing
    is_bgr: bool


def read_processor(given: Mapping[str, Any], model_type: str, where: str) -> ProcessorSettings:
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
    return prepared_as(processor, where)


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


def prepared_as(processor: Any, where: str) -> ProcessorSettings:
    """What ``processor``, an object of transformers, does to an RGB image; ``where`` it is from.

    Raises:
        UsageError: it does something that `Preprocessing` cannot say.
    """
    kind = _kind(type(processor).__name__)
    if getattr(processor, "do_pad", None):
        raise _refusal(where, "do_pad fills images up")
    resize, crop = _geometry(kind, processor, where)
    mean, std = _affine(kind, processor, where)
    return ProcessorSettings(
        Preprocessing(
            crop=crop,
            resize=resize,
            interpolation=_interpolation(processor.resample, where),
            mean=mean,
            std=std,
        ),
        is_bgr=bool(getattr(processor, "do_flip_channel_order", None)),
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
    means, stds = [(value - offset) / unit for value in mean], [value / unit for value in std]
    return (means[0], means[1], means[2]), (stds[0], stds[1], stds[2])


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
