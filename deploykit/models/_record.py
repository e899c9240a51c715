"""Where weights come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploykit.specs import Preprocessing


@dataclass(frozen=True)
class WeightsRecord:
    """Where weights come from, for the manifest; it holds no folder of the machine.

    ``sha256`` is that of the file; ``trained`` is ``None`` where nobody can tell, as for a module
    that a user's factory made. ``labels`` and ``preprocessing`` come with the weights where
    they know better than the network's spec; ``None``: the spec's hold.
    """

    source: str
    sha256: str | None
    trained: bool | None
    labels: tuple[str, ...] | None
    preprocessing: Preprocessing | None = None
