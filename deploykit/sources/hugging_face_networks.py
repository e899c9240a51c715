"""The networks of transformers, built from a configuration and given a state dict.

No code of a folder is run and nothing is downloaded.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from deploykit.core.environment import package_version, require
from deploykit.core.errors import UnknownNameError, UsageError, typed_first_line
from deploykit.core.sizes import RGB
from deploykit.sources.logits import LOGITS, LogitsOf

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_ATTENTION: Final = "eager"
"""Attention as plain matrix products, which both exporters and all compilers take."""

_PAGE: Final = "https://huggingface.co/docs/transformers/tasks/image_classification"


@contextmanager
def quietly() -> Iterator[None]:
    """Keep transformers silent meanwhile: what the user must know is in errors and notes."""
    log = require("transformers.utils.logging")
    verbosity, has_bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(log.CRITICAL)
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.set_verbosity(verbosity)
        if has_bars:
            log.enable_progress_bar()


def read_config(given: Mapping[str, Any], name: str) -> Any:
    """The configuration object for the content of a ``config.json``.

    What would choose code or a number type is left out: kernels could be downloaded, and weights
    become FP32.

    Raises:
        UsageError: transformers knows no such classifier, or does not take its values; or it is
            not for images in colours.
    """
    transformers = require("transformers")
    auto = require("transformers.models.auto.modeling_auto")
    known = tuple(auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)
    kind = given.get("model_type")
    if kind not in known:
        raise UnknownNameError(f"model_type in {name}/config.json", str(kind), known, _PAGE)
    left_out = {"attn_implementation", "dtype", "torch_dtype"}
    values = {
        key: value
        for key, value in given.items()
        if key not in left_out and not key.startswith("_")
    }
    with quietly():
        try:
            config = transformers.CONFIG_MAPPING[kind].from_dict(values)
        except Exception as error:  # anything can stand in the file
            raise _not_taken(name, error) from error
    channels = getattr(config, "num_channels", RGB)
    if channels != RGB:
        raise UsageError(
            f"{name}/config.json has num_channels {channels}, folders of Hugging Face are taken "
            f"with {RGB}\nfor grey images give path/to/file.py:factory, which returns the network"
        )
    return config


def build(config: Any) -> nn.Module:
    """A network in FP32 with new weights, of which only the logits are deployed."""
    return LogitsOf(build_network(config), LOGITS)


def build_network(config: Any) -> nn.Module:
    """The module of transformers itself, in FP32 with new weights."""
    auto = require("transformers").AutoModelForImageClassification
    with quietly():
        network: nn.Module = auto.from_config(
            deepcopy(config),
            attn_implementation=_ATTENTION,
            dtype=torch.float32,
            trust_remote_code=False,
        )
    return network


def outline(config: Any, name: str) -> nn.Module:
    """The network without memory for its weights.

    Raises:
        UsageError: transformers cannot build it from this configuration.
    """
    try:
        with torch.device("meta"):
            return build_network(config).eval()
    except Exception as error:  # anything can stand in the file
        raise _not_taken(name, error) from error


def count_classes(network: nn.Module, size: tuple[int, int], name: str) -> int:
    """How many logits an `outline` gives for images of this height and width.

    Raises:
        UsageError: it does not take such images, or returns no logits.
    """
    shape = (2, 3, *size)
    with quietly():
        try:
            with torch.no_grad():
                result = network(torch.empty(shape, device="meta"))
        except Exception as error:  # each network checks its input in its own way
            raise UsageError(
                f"{name} does not take images {shape}\n{typed_first_line(error)}\n"
                "leave --input-size out for the size that it was trained with, or give another"
            ) from error
    logits = result.get(LOGITS) if hasattr(result, "get") else None
    if logits is None or tuple(logits.shape[:1]) != shape[:1] or logits.ndim != len(shape) - 2:
        raise UsageError(
            f"{type(network).__name__} of {name} returns no logits (N, classes)\n"
            "path/to/file.py:factory can wrap it in a module that returns them"
        )
    return int(logits.shape[1])


def under_todays_names(config: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` under the names that the network's tensors have now.

    Files keep the names of the release that wrote them, which transformers translates as it
    loads; some tensors are also split or joined. What does not fit is passed on as it is.
    """
    kind: Any = type(outline(config, type(config).__name__))
    with quietly(), torch.random.fork_rng(devices=[]):
        loaded, info = kind.from_pretrained(
            None,
            config=deepcopy(config),
            state_dict=dict(state),
            attn_implementation=_ATTENTION,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    fitting = dict(loaded.state_dict())
    for name in info["missing_keys"]:
        fitting.pop(name, None)
    for name, found, _ in info["mismatched_keys"]:
        fitting[name] = torch.empty(found, device="meta")
    for name in info["unexpected_keys"]:
        fitting[name] = state.get(name, torch.empty(0, device="meta"))
    return fitting


def _not_taken(name: str, error: Exception) -> UsageError:
    version = package_version("transformers")
    return UsageError(
        f"transformers {version} builds no network from {name}/config.json\n"
        f"{typed_first_line(error)}"
    )
