"""Names that torchvision gave its layers once, and that its published files still have."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from torch import Tensor

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
