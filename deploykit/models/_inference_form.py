"""Networks as they are meant to run: without what only training needs.

RepVGG, MobileOne, FastViT, RepViT and others of timm are trained with parallel branches that sum up
to one convolution; some also keep normalisations apart that a layer beside them can take in. BiT
and NFNet, of timm and of transformers, standardise their weights again and again.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from deploykit.environment import require
from deploykit.errors import ExportError, typed_first_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

_METHODS: Final = ("fuse", "reparameterize", "switch_to_deploy")
"""What timm's ``reparameterize_model`` calls, where a module has it."""


@dataclass(frozen=True)
class InferenceForm:
    """A network in another form, and what its user must know of it."""

    module: nn.Module
    notes: tuple[str, ...]


def inference_form(module: nn.Module) -> InferenceForm | None:
    """A copy of ``module``, in evaluation mode, that computes the same with less.

    ``None`` where there is no other form. ``module`` and the caller's random state stay as they
    are. That the copy really computes the same is the caller's to check: fusing is timm's code,
    and another one for each family.

    Raises:
        ExportError: it cannot be copied, or timm cannot fuse what it says can be fused.
    """
    from deploykit.models._logits import network_of
    from deploykit.models._standardised import has_standardised, standardise_once

    standardises = has_standardised(module)
    if not standardises and not _can_be_fused(module):
        return None
    try:
        form = deepcopy(module)
        _fuse(form)
    except Exception as error:  # each family has its own way, and a user may have changed it
        name = type(network_of(module)).__name__
        raise ExportError(
            f"{name} cannot be fused for inference\n{typed_first_line(error)}"
        ) from error
    was_fused = form.state_dict().keys() != module.state_dict().keys()
    if not standardises and not was_fused:
        return None
    notes = (_note(module, form),) if was_fused else ()
    standardise_once(form)
    return InferenceForm(form.eval(), notes)


def _timm_roots(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules whose class is timm's: elsewhere ``fuse`` may mean anything."""
    if type(module).__module__.partition(".")[0] == "timm":
        yield module
        return
    for child in module.children():
        yield from _timm_roots(child)


def _can_be_fused(module: nn.Module) -> bool:
    parts = (part for root in _timm_roots(module) for part in root.modules() if part is not root)
    return any(hasattr(part, method) for part in parts for method in _METHODS)


def _fuse(module: nn.Module) -> None:
    """Let timm fuse its parts of ``module``, in place."""
    if not _can_be_fused(module):
        return
    utils = require("timm.utils")
    import torch

    # The convolutions that timm makes draw values first, which it then replaces.
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for root in _timm_roots(module):
            utils.reparameterize_model(root, inplace=True)


def _note(module: nn.Module, fused: nn.Module) -> str:
    before, after = (
        sum(parameter.numel() for parameter in network.parameters()) for network in (module, fused)
    )
    return f"timm fused it for inference: {before:,} parameters became {after:,}"
