"""Weights of a network: untrained, its own, published ones, or from a file."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, cast

from deploykit.core.environment import require
from deploykit.core.errors import WeightsError
from deploykit.sources.state_dict import (
    IMAGENET,
    WeightsRecord,
    misfits,
    read_state_dict,
    split_entry,
    weights_sha256,
    without_prefixes,
)
from deploykit.sources.torchvision import torchvision_weights

if TYPE_CHECKING:
    from collections.abc import Container, Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from deploykit.core.specs import ModelSpec


_RENAMED: Final = (
    # DenseNet, as torchvision's densenet.py reads its own files
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    # Vision transformers, as vision_transformer.py does
    (re.compile(r"(\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(\.mlp)\.linear_2\."), r"\1.3."),
)


def with_todays_names(
    state: Mapping[str, Tensor], expected: Container[str]
) -> Mapping[str, Tensor]:
    """``state``, with old names replaced where the network expects the new one instead."""
    return {_todays_name(name, expected): tensor for name, tensor in state.items()}


def _todays_name(name: str, expected: Container[str]) -> str:
    if name in expected:
        return name
    for pattern, replacement in _RENAMED:
        renamed = pattern.sub(replacement, name)
        if renamed in expected:
            return renamed
    return name


def build_with_weights(
    spec: ModelSpec, weights: str | None, seed: int
) -> tuple[nn.Module, WeightsRecord]:
    """The network as it is deployed, on the CPU, in evaluation mode, with its weights.

    Heads that only training uses (GoogLeNet's) are gone, whether the weights had them or not.
    The caller's random state is left as it was.

    Args:
        spec: The network.
        weights: ``None`` for the definition's own, or untrained ones drawn from ``seed``;
            ``"imagenet"`` for those that its source publishes, otherwise the path of a
            ``.safetensors``, ``.npz``, ``.pth``, ``.ckpt`` or similar file; ``FILE#ENTRY`` where
            a checkpoint holds several state dicts.
        seed: Of the untrained weights, and of what a user's factory draws.

    Raises:
        UsageError: nobody publishes weights for this network or number of classes.
        WeightsError: the weights cannot be had, cannot be read or do not fit.
        MissingDependencyError: a package that this needs is not installed.
    """
    state, record = _chosen(spec, weights, seed)
    if state is None:
        model = _seeded(spec, seed)
    else:
        from deploykit.models._initialise import nothing_drawn
        from deploykit.sources.logits import network_of

        with nothing_drawn():
            model = _seeded(spec, seed)
        _load(network_of(model), state, spec, record)
    _drop_heads(model, training_heads(model))
    return model, record


def _chosen(
    spec: ModelSpec, weights: str | None, seed: int
) -> tuple[Mapping[str, Tensor] | None, WeightsRecord]:
    """The state dict to load, ``None`` to leave the module as it was built."""
    if weights == IMAGENET:
        # A spec that no kind of target made has the network of the same name in torchvision.
        return (spec.published or torchvision_weights)(spec)
    if weights is not None:
        return _file_weights(*split_entry(weights))
    if spec.weights_file is not None:
        return _file_weights(spec.weights_file)
    if spec.built_in is not None:
        return None, WeightsRecord(spec.built_in, spec.source_sha256, trained=None, labels=None)
    return None, WeightsRecord(f"untrained, seed {seed}", None, trained=False, labels=None)


def training_heads(model: nn.Module) -> tuple[str, ...]:
    """Names of submodules that only training uses; a network lists them as ``training_only``."""
    return cast("tuple[str, ...]", getattr(model, "training_only", ()))


def _seeded(spec: ModelSpec, seed: int) -> nn.Module:
    require("torch")
    import torch

    # Weights are drawn on the CPU, so no GPU's random state needs saving.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return spec.build()


def _file_weights(
    path: Path, entry: str | None = None
) -> tuple[Mapping[str, Tensor], WeightsRecord]:
    require("torch")
    state = read_state_dict(path, entry)
    source = path.name if entry is None else f"{path.name}#{entry}"
    return state, WeightsRecord(source, weights_sha256(path), trained=True, labels=None)


def _load(
    model: nn.Module, state: Mapping[str, Tensor], spec: ModelSpec, record: WeightsRecord
) -> None:
    heads = training_heads(model)
    variants = without_prefixes(state)
    names = {name for variant in variants for name in variant}
    held = {head for head in heads if any(name.startswith(f"{head}.") for name in names)}
    _drop_heads(model, [head for head in heads if head not in held])
    # The network's own state dict also says its version, which MNASNet insists on.
    complete = model.state_dict()
    adapt = spec.adapt_state or dict
    known = (with_todays_names(adapt(variant), complete) for variant in variants)
    # The first where several fit equally: the names as the file has them.
    state = max(known, key=lambda found: len(found.keys() & complete.keys()))
    problems = misfits(complete, state)
    if problems:
        raise WeightsError(
            f"{record.source} does not fit {spec.name} with {spec.num_classes} classes\n"
            f"{'; '.join(problems)}\n"
            "check the network's name, --num-classes and --input-size"
        )
    complete.update(state)
    model.load_state_dict(complete)


def _drop_heads(model: nn.Module, heads: list[str] | tuple[str, ...]) -> None:
    for head in heads:
        setattr(model, head, None)
