"""A model that knows every image by the number that it is filled with."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PATIENCE_S = 60
"""How long a test waits for what must happen; it never does, unless something hangs."""


def image(number: float, size: int = 2) -> NDArray[np.float32]:
    return np.full((3, size, size), number, np.float32)


def images(*numbers: float) -> NDArray[np.float32]:
    return np.stack([image(number) for number in numbers])


def logits(number: float) -> list[float]:
    """What `NumberModel` answers for ``image(number)``."""
    return [number, 2 * number + 1]


class NumberModel:
    """Logits are (number, 2 number + 1); numbers of ``poison`` raise ``error``.

    With ``gate`` the model stands still in each call until it is opened; ``entered`` counts up when
    a call has come that far.
    """

    def __init__(
        self,
        *,
        poison: frozenset[float] = frozenset(),
        error: type[BaseException] = ValueError,
        gate: threading.Event | None = None,
    ) -> None:
        self.poison = poison
        self.error = error
        self.gate = gate
        self.entered = threading.Semaphore(0)
        self.calls: list[list[float]] = []
        """The numbers of each batch, in the order of the calls."""

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        assert batch.ndim == 4
        assert (batch == batch[:, :1, :1, :1]).all()
        numbers = batch[:, 0, 0, 0].tolist()
        self.calls.append(numbers)
        self.entered.release()
        if self.gate is not None:
            assert self.gate.wait(PATIENCE_S)
        if self.poison.intersection(numbers):
            raise self.error(f"cannot compute {sorted(self.poison.intersection(numbers))}")
        return np.array([logits(number) for number in numbers], np.float32)

    def wait_until_called(self) -> None:
        assert self.entered.acquire(timeout=PATIENCE_S)
