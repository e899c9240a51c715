"""The caller's ``torch.autocast``, kept out of an export: it would put casts into the graph."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def without_autocast() -> Iterator[None]:
    """Compute in the types of weights and images, whatever the caller's context says."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
