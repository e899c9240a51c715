"""Names that nothing in a graph has yet."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Names:
    """Remembers what is taken and numbers what would repeat.

    >>> names = Names(["conv"])
    >>> names.fresh("conv"), names.fresh("conv"), names.fresh("relu")
    ('conv_2', 'conv_3', 'relu')
    """

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)
        self._last: Counter[str] = Counter()

    def fresh(self, wanted: str) -> str:
        """``wanted``, or with the first free number behind it; taken from now on."""
        name = wanted
        while name in self._taken:
            self._last[wanted] = max(self._last[wanted], 1) + 1
            name = f"{wanted}_{self._last[wanted]}"
        self._taken.add(name)
        return name
