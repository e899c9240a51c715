"""Image classifiers of torchvision: its definitions, its weights' preprocessing."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from deploykit.core.environment import require
from deploykit.core.errors import MissingDependencyError, UnknownNameError, UsageError
from deploykit.core.specs import BATCH, ModelSpec, Preprocessing, TensorSpec
from deploykit.models import get, names
from deploykit.sources.published_files import torch_hub_file
from deploykit.sources.state_dict import WeightsRecord, read_state_dict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn


HEADS: Final[Mapping[str, tuple[str, ...]]] = {
    "googlenet": ("aux1", "aux2"),
    "inception_v3": ("AuxLogits",),
}
"""Submodules that only training uses."""


def build(name: str, num_classes: int, image_size: int) -> nn.Module:
    """An untrained network in evaluation mode, drawn from torch's random state.

    A network with heads that only training uses has them, and lists them as ``training_only``.
    """
    from deploykit.sources.untrained import draw_values

    network = _made(name, num_classes, image_size)
    draw_values(network, (image_size, image_size))
    return network


def refusal(name: str, num_classes: int, image_size: int) -> str | None:
    """Why torchvision's network does not take square images of this size; ``None``: it does.

    It is tried on torch's meta device, where nothing is allocated or computed.
    """
    import torch

    try:
        with torch.device("meta"), torch.no_grad():
            _made(name, num_classes, image_size)(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, ValueError, AssertionError) as error:
        return next(iter(str(error).splitlines()), type(error).__name__)
    return None


def _made(name: str, num_classes: int, image_size: int) -> nn.Module:
    import torch
    from torchvision import models

    from deploykit.models._initialise import construction

    device = torch.get_default_device()
    # RegNet computes its widths with tensors, which must have values.
    with construction(), torch.device("cpu" if name.startswith("regnet_") else device):
        network = models.get_model(
            name, weights=None, num_classes=num_classes, **_own_arguments(name, image_size)
        )
    network.training_only = HEADS.get(name, ())
    return cast("nn.Module", network.eval().to(device))


def _own_arguments(name: str, image_size: int) -> dict[str, Any]:
    if name in HEADS:
        # The values are drawn again anyway, and torchvision's way takes seconds.
        return {"aux_logits": True, "init_weights": False, "transform_input": True}
    if name.startswith("vit_"):
        return {"image_size": image_size}
    if name.startswith("maxvit_"):
        return {"input_size": (image_size, image_size)}
    return {}


_PAGE: Final = "https://docs.pytorch.org/vision/stable/models/generated/torchvision.models.{}.html"


def torchvision_names() -> tuple[str, ...]:
    """The image classifiers of the torchvision that is installed, in alphabetical order.

    Raises:
        MissingDependencyError: torchvision is not installed.
    """
    models = require("torchvision.models")
    return tuple(models.list_models(module=models))


def torchvision_spec(
    name: str, *, num_classes: int | None = None, image_size: int | None = None
) -> ModelSpec:
    """The spec of one of `torchvision_names`, built by torchvision itself.

    Size, crop, interpolation, mean, deviation and names of the classes are those of torchvision's
    default weights, which are not downloaded for it. Another image size keeps their ratio of
    resize to crop. GoogLeNet and Inception v3 are built with ``transform_input``, as torchvision
    builds them for its weights: they convert ImageNet's normalisation to their own.

    Raises:
        UnknownNameError: torchvision has no image classifier of this name.
        UsageError: fewer than one class, or an image size that the network does not take.
        MissingDependencyError: torchvision is not installed.
    """
    if name not in torchvision_names():
        raise UnknownNameError(
            "torchvision classifier",
            name,
            torchvision_names(),
            "deploykit list --torchvision",
        )
    weights = require("torchvision.models").get_model_weights(name).DEFAULT
    categories = weights.meta["categories"]
    classes = len(categories) if num_classes is None else num_classes
    transforms = weights.transforms()
    (published,) = transforms.crop_size
    size = published if image_size is None else image_size
    _check_choices(name, classes, size, published)
    return ModelSpec(
        name=f"torchvision-{name}",
        title=f"{name} of torchvision",
        paper=_PAGE.format(name),
        inputs=(TensorSpec("input", "float32", (BATCH, 3, size, size)),),
        outputs=(TensorSpec("logits", "float32", (BATCH, classes)),),
        preprocessing=_preprocessing(transforms, size),
        parameters=weights.meta["num_params"],
        # In units of 10^9, of one image.
        multiply_adds=round(weights.meta["_ops"] * 1e9),
        labels=tuple(categories) if classes == len(categories) else None,
        torchvision=name,
        builder=partial(build, name, classes, size),
        published=torchvision_weights,
    )


def imagenet_names() -> tuple[str, ...] | None:
    """Names of the 1000 classes of ImageNet, as torchvision's weights have them.

    ``None`` where torchvision is not installed.
    """
    try:
        models = require("torchvision.models")
    except MissingDependencyError:
        return None
    return tuple(models.get_model_weights("resnet50").DEFAULT.meta["categories"])


def _preprocessing(transforms: Any, size: int) -> Preprocessing:
    (resize,), (crop,) = transforms.resize_size, transforms.crop_size
    return Preprocessing(
        crop=(size, size),
        resize=round(size * resize / crop),
        interpolation=transforms.interpolation.value,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )


def _check_choices(name: str, classes: int, size: int, published: int) -> None:
    if classes < 1:
        raise UsageError(
            f"torchvision:{name} cannot have {classes} classes\n"
            "give at least 1, or leave --num-classes out for ImageNet's"
        )
    if size == published:
        return

    reason = refusal(name, classes, size)
    if reason is not None:
        raise UsageError(
            f"torchvision:{name} does not take an input of {size}x{size}\n"
            f"torchvision says: {reason}\n"
            f"its weights are for {published}: leave --input-size out, or choose another"
        )


def torchvision_weights(spec: ModelSpec) -> tuple[Mapping[str, Tensor], WeightsRecord]:
    """State dict and record of the weights that torchvision publishes for ``spec``.

    Raises:
        UsageError: there are none for this network or number of classes.
        WeightsError: they cannot be had.
        MissingDependencyError: torchvision is not installed.
    """
    published = _published(spec)
    path, sha256 = torch_hub_file(published.url)
    record = WeightsRecord(
        f"torchvision {published}",
        sha256,
        trained=True,
        labels=tuple(published.meta["categories"]),
        preprocessing=_actual_preprocessing(spec, published.transforms()),
    )
    return read_state_dict(path), record


def _published(spec: ModelSpec) -> Any:
    """The member of torchvision's enumeration; its classes carry no types."""
    if spec.torchvision is None:
        possible = [name for name in names() if get(name).torchvision]
        raise UsageError(
            f"torchvision publishes no ImageNet weights for {spec.name}\n"
            f"it does for {', '.join(possible)}\n"
            f"for {spec.name} give a file: --weights FILE"
        )
    models = require("torchvision.models")
    published = models.get_model_weights(spec.torchvision).DEFAULT
    classes = len(published.meta["categories"])
    if spec.num_classes != classes:
        raise UsageError(
            f"the ImageNet weights of {spec.name} have {classes} classes, not {spec.num_classes}\n"
            "leave --num-classes out, or give a file: --weights FILE"
        )
    return published


def _actual_preprocessing(spec: ModelSpec, transforms: Any) -> Preprocessing | None:
    """The resizing that the weights were evaluated with, where it is not the spec's.

    Mean and deviation stay the spec's: torchvision gives GoogLeNet's for the layer that it puts
    in front of the network.
    """
    (resize,), (crop,) = transforms.resize_size, transforms.crop_size
    actual = replace(
        spec.preprocessing,
        resize=round(spec.preprocessing.crop[0] * resize / crop),
        interpolation=transforms.interpolation.value,
    )
    return None if actual == spec.preprocessing else actual
