"""The weights that timm publishes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from deploykit.environment import require
from deploykit.errors import UsageError, WeightsError
from deploykit.models._downloads import hugging_face_file, torch_hub_file
from deploykit.models._record import WeightsRecord
from deploykit.models._state_dict import read_state_dict

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from deploykit.specs import ModelSpec

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
    from deploykit.models._timm_build import adapted

    state, size = read_state_dict(path), spec.preprocessing.crop
    try:
        state = dict(adapted(name, spec.num_classes, size, state))
    except Exception as error:  # timm's converters expect the names that they convert
        raise WeightsError(
            f"{path.name}, the weights of {name}, are not those of timm's network\n"
            f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}\n"
            "another version of timm may read them, or give a file: --weights FILE"
        ) from error
    return state, WeightsRecord(f"timm {name}", sha256, trained=True, labels=spec.labels)


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
    if spec.num_classes != config.num_classes:
        raise UsageError(
            f"the weights of {name} have {config.num_classes} classes, not {spec.num_classes}\n"
            "leave --num-classes out, or give a file: --weights FILE"
        )
    return config


def _file(config: Any) -> tuple[Path, str]:
    if config.hf_hub_id:
        return hugging_face_file(config.hf_hub_id, FILES)
    return torch_hub_file(config.url)
