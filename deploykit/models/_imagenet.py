"""Weights trained on ImageNet that others publish: downloaded once, then taken from the cache."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deploykit.environment import require
from deploykit.errors import UsageError
from deploykit.models._downloads import torch_hub_file
from deploykit.models._record import WeightsRecord
from deploykit.models._registry import get, names
from deploykit.models._state_dict import read_state_dict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from deploykit.specs import ModelSpec, Preprocessing


def imagenet_weights(spec: ModelSpec) -> tuple[Mapping[str, Tensor], WeightsRecord]:
    """State dict and record of the weights that torchvision or timm publishes for ``spec``.

    Raises:
        UsageError: there are none for this network or number of classes.
        WeightsError: they cannot be had.
        MissingDependencyError: the package that publishes them is not installed.
    """
    if spec.timm is not None:
        from deploykit.models._timm_weights import timm_weights

        return timm_weights(spec, spec.timm)
    published = _published_weights(spec)
    path, sha256 = torch_hub_file(published.url)
    record = WeightsRecord(
        f"torchvision {published}",
        sha256,
        trained=True,
        labels=tuple(published.meta["categories"]),
        preprocessing=_preprocessing(spec, published.transforms()),
    )
    return read_state_dict(path), record


def _published_weights(spec: ModelSpec) -> Any:
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


def _preprocessing(spec: ModelSpec, transforms: Any) -> Preprocessing | None:
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
