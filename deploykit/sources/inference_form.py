"""Networks as they are meant to run: fused branches, standardised weights computed once."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from deploykit.core.environment import require
from deploykit.core.errors import ExportError, typed_first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


_CLASSES: Final = frozenset(
    {
        ("timm.layers.std_conv", "ScaledStdConv2d"),
        ("timm.layers.std_conv", "ScaledStdConv2dSame"),
        ("timm.layers.std_conv", "StdConv2d"),
        ("timm.layers.std_conv", "StdConv2dSame"),
        ("transformers.models.bit.modeling_bit", "WeightStandardizedConv2d"),
    }
)
"""Home and name of each; a class derived from one may compute something else."""


class PaddedConv2d(nn.Conv2d):
    """A convolution behind a padding that depends on the size of the image."""

    pad: Callable[[Tensor], Tensor]

    def forward(self, images: Tensor) -> Tensor:
        """Maps (N, C', H', W') of ``images`` (N, C, H, W)."""
        return super().forward(self.pad(images))


class SamePad(nn.Module):
    """TensorFlow's padding "SAME", as timm computes it."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.sizes = layer.kernel_size, layer.stride, layer.dilation

    def forward(self, images: Tensor) -> Tensor:
        """``images`` (N, C, H, W) with zeros around them."""
        padded: Tensor = require("timm.layers").pad_same(images, *self.sizes)
        return padded


def has_standardised(network: nn.Module) -> bool:
    """Whether a convolution in ``network`` standardises its weights as it runs."""
    return any(True for _ in _standardised(network))


def standardise_once(network: nn.Module) -> None:
    """Replace such convolutions of ``network`` by plain ones that compute the same, in place."""
    for parent, name, layer in list(_standardised(network)):
        setattr(parent, name, _plain(layer))


def _standardised(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in network.modules():
        for name, child in parent.named_children():
            if (type(child).__module__, type(child).__name__) in _CLASSES:
                yield parent, name, child


def _plain(layer: Any) -> nn.Conv2d:
    pad = SamePad(layer) if getattr(layer, "same_pad", False) else getattr(layer, "pad", None)
    kind = nn.Conv2d if pad is None else PaddedConv2d
    plain = kind(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        bias=layer.bias is not None,
        device="meta",
    )
    plain.weight, plain.bias = nn.Parameter(_weight(layer)), layer.bias
    if pad is not None:
        plain.pad = pad
    return plain


@torch.no_grad()
def _weight(layer: Any) -> Tensor:
    """The weight (O, I, H, W) as the layer uses it; by the same call, so that the sum rounds alike.

    NFNet's gain for each filter is in it.
    """
    weight = layer.weight
    gain = (layer.gain * layer.scale).view(-1) if hasattr(layer, "gain") else None
    filters = weight.reshape(1, layer.out_channels, -1)
    batch_norm = nn.functional.batch_norm
    return batch_norm(
        filters, None, None, weight=gain, training=True, momentum=0.0, eps=layer.eps
    ).reshape_as(weight)


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
    from deploykit.sources.logits import network_of

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
