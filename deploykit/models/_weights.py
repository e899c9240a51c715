"""A network with its weights: untrained, torchvision's, or from a file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from deploykit.artifacts import sha256_of
from deploykit.environment import require
from deploykit.errors import UsageError, WeightsError
from deploykit.models._old_names import with_todays_names
from deploykit.models._registry import get, names
from deploykit.models._state_dict import misfits, read_state_dict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from deploykit.specs import ModelSpec, Preprocessing

IMAGENET: Final = "imagenet"
"""The word that asks for torchvision's weights."""


@dataclass(frozen=True)
class WeightsRecord:
    """Where weights come from, for the manifest; it holds no folder of the machine.

    ``sha256`` is that of the file. ``labels`` and ``preprocessing`` come with the weights where
    they know better than the network's spec; ``None``: the spec's hold.
    """

    source: str
    sha256: str | None
    trained: bool
    labels: tuple[str, ...] | None
    preprocessing: Preprocessing | None = None


def build_with_weights(
    spec: ModelSpec, weights: str | None, seed: int
) -> tuple[nn.Module, WeightsRecord]:
    """The network as it is deployed, on the CPU, in evaluation mode, with its weights.

    Heads that only training uses (GoogLeNet's) are gone, whether the weights had them or not.
    The caller's random state is left as it was.

    Args:
        spec: The network.
        weights: ``None`` for untrained weights drawn from ``seed``, ``"imagenet"`` for those
            that torchvision publishes, otherwise the path of a ``.safetensors``, ``.npz``,
            ``.pth``, ``.pt`` or ``.th`` file.
        seed: Of the untrained weights.

    Raises:
        UsageError: torchvision has no weights for this network or number of classes.
        WeightsError: the weights cannot be had, cannot be read or do not fit.
        MissingDependencyError: a package that this needs is not installed.
    """
    if weights == IMAGENET:
        state, record = _torchvision_weights(spec)
    elif weights is not None:
        state, record = _file_weights(Path(weights))
    else:
        record = WeightsRecord(f"untrained, seed {seed}", None, trained=False, labels=None)
        state = None
    model = _seeded(spec, seed)
    if state is not None:
        _load(model, state, spec, record)
    _drop_heads(model, training_heads(model))
    return model, record


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


def _file_weights(path: Path) -> tuple[Mapping[str, Tensor], WeightsRecord]:
    require("torch")
    state = read_state_dict(path)
    return state, WeightsRecord(path.name, sha256_of(path), trained=True, labels=None)


def _torchvision_weights(spec: ModelSpec) -> tuple[Mapping[str, Tensor], WeightsRecord]:
    published = _published_weights(spec)
    state, sha256 = _download(published)
    record = WeightsRecord(
        f"torchvision {published}",
        sha256,
        trained=True,
        labels=tuple(published.meta["categories"]),
        preprocessing=_preprocessing(spec, published.transforms()),
    )
    return state, record


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


def _download(published: Any) -> tuple[Mapping[str, Tensor], str]:
    """State dict and the file's hash, from torch's cache if it is there already."""
    import torch

    name = published.url.rpartition("/")[2]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / name
    try:
        if not cached.is_file():
            cached.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(published.url, str(cached), progress=False)
    except (OSError, HTTPException) as error:
        raise WeightsError(
            f"cannot download {published.url}: {error}\n"
            "without a network give a file instead: --weights FILE"
        ) from error
    sha256 = sha256_of(cached)
    # torch.hub's rule: the file name ends with the first digits of the file's hash.
    if not sha256.startswith(cached.stem.rpartition("-")[2]):
        raise WeightsError(
            f"{name} in torch's cache is damaged: its sha256 starts with {sha256[:8]}\n"
            "delete the file and run again, it will be downloaded again"
        )
    return read_state_dict(cached), sha256


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


def _load(
    model: nn.Module, state: Mapping[str, Tensor], spec: ModelSpec, record: WeightsRecord
) -> None:
    heads = training_heads(model)
    held = {head for head in heads if any(name.startswith(f"{head}.") for name in state)}
    _drop_heads(model, [head for head in heads if head not in held])
    # The network's own state dict also says its version, which MNASNet insists on.
    complete = model.state_dict()
    state = with_todays_names(state, complete)
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
