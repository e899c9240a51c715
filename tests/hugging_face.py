"""Small folders as transformers itself saves them, with random weights; nothing is downloaded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from deploykit.sources.hugging_face_networks import quietly

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SIDE = 32
"""Height and width of the input of the networks here, in pixels."""

_ATTENTION: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": SIDE,
    "patch_size": 8,
}
_WINDOWS: dict[str, Any] = {
    "embed_dim": 16,
    "depths": [1, 2],
    "num_heads": [2, 2],
    "window_size": 4,
    "image_size": SIDE,
}
_STAGES: dict[str, Any] = {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1]}
_RESIDUAL: dict[str, Any] = {**_STAGES, "embedding_size": 16}

SMALL: dict[str, dict[str, Any]] = {
    "vit": _ATTENTION,
    "deit": _ATTENTION,
    "beit": _ATTENTION,
    "dinov2": {key: value for key, value in _ATTENTION.items() if key != "intermediate_size"},
    "swin": _WINDOWS,
    "convnext": {**_STAGES, "image_size": SIDE},
    "resnet": {**_RESIDUAL, "layer_type": "basic"},
    "mobilenet_v2": {"depth_multiplier": 0.35, "image_size": SIDE},
}
"""Configurations by ``model_type``."""

CLASSES = ("cat", "dog", "hen", "owl")


def make_folder(
    folder: Path,
    kind: str = "vit",
    *,
    processor: Mapping[str, Any] | None = None,
    shard_size: str = "5GB",
    **values: Any,
) -> Path:
    """A folder with a network of ``kind``; ``processor`` is the content of its own file.

    ``values`` replace those of the configuration. Weights are scaled so that the logits tell
    images apart, which those of an untrained network hardly do.
    """
    with quietly(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = _network(kind, values)
        _spread(network)
        network.eval().save_pretrained(folder, max_shard_size=shard_size)
    if processor is not None:
        text = json.dumps(dict(processor), indent=2)
        (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")
    return folder


VIT_PROCESSOR: dict[str, Any] = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": SIDE, "width": SIDE},
}


def change_json(path: Path, **values: Any) -> None:
    """Replace values of a JSON object; ``None`` takes one out."""
    content = json.loads(path.read_text(encoding="utf-8")) | values
    kept = {key: value for key, value in content.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")


def _network(kind: str, values: dict[str, Any]) -> Any:
    import transformers
    from transformers.models.auto import modeling_auto

    architecture = modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES[kind]
    names = {"id2label": dict(enumerate(CLASSES)), "label2id": {}}
    first = architecture if isinstance(architecture, str) else architecture[0]
    chosen = {"architectures": [first], **names, **SMALL.get(kind, {}), **values}
    config = transformers.CONFIG_MAPPING[kind].from_dict({"model_type": kind, **chosen})
    auto: Any = transformers.AutoModelForImageClassification
    return auto.from_config(config)


def _spread(network: nn.Module) -> None:
    """Draw weights that keep the scale of what passes, and take statistics from noise."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.randn(16, 3, SIDE, SIDE))
