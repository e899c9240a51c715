"""The classification extension: the best classes of each image as ``value:index:label``.

Source: Triton's page "Classification Extension".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.heads._results import chances_of
from deploykit.heads.binary import BINARY
from deploykit.heads.multiclass import CLASSES_ALONE
from deploykit.serving.refusals import invalid
from deploykit.serving.tensors import BYTES, Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from deploykit.runtime.classifier import Classifier

_MATRIX: Final = 2


class Classification:
    """Which outputs of a model have classes, and how they are called."""

    def __init__(self, model: Classifier) -> None:
        self._labels = model.labels
        self._is_binary = model.head.name == BINARY.name
        self._output = model.outputs[0].name
        self._has_numbers = model.head.activation in CLASSES_ALONE
        self._chances = (
            chances_of(model.head, model.manifest.conversion) if self._has_numbers else None
        )

    def require(self, name: str) -> None:
        """Refuse an output that says which class it is and not how likely.

        Raises:
            RefusedError: it is one.
        """
        if self._has_numbers and name == self._output and self._chances is None:
            raise invalid(
                f"output {name!r} is class numbers already: ask for it without classification"
            )

    def of(self, found: Mapping[str, NDArray[Any]], name: str, count: int) -> Tensor:
        """At most ``count`` entries (N, count) for output ``name``, the largest value first."""
        array = found[name]
        values = array.reshape(len(array), -1)
        count = min(count, values.shape[1])
        if self._chances is not None and name in (self._output, self._chances):
            numbers = found[self._output].reshape(values.shape)
            values = found[self._chances].reshape(values.shape)
            names = self._labels
        else:
            numbers = np.broadcast_to(np.arange(values.shape[1]), values.shape)
            names = self._names(name, array)
        best = np.argsort(-values.astype(np.float64), axis=1, kind="stable")[:, :count]
        chosen, of = (np.take_along_axis(each, best, axis=1).ravel() for each in (values, numbers))
        return Tensor(name, BYTES, best.shape, list(_entries(chosen, of, names)))

    def _names(self, name: str, array: NDArray[Any]) -> tuple[str, ...] | None:
        """A label for each column; ``None`` where columns and labels are not the same."""
        columns = array.shape[1] if array.ndim == _MATRIX else 1
        if not self._labels or name != self._output or array.ndim > _MATRIX:
            return None
        if self._is_binary and columns == 1:
            return self._labels[-1:]  # the value is of the positive class
        return self._labels if len(self._labels) == columns else None


def _entries(
    values: Iterable[Any], numbers: Iterable[Any], names: tuple[str, ...] | None
) -> Iterable[bytes]:
    for value, number in zip(values, numbers, strict=True):
        label = f":{names[number]}" if names and 0 <= number < len(names) else ""
        yield f"{value:f}:{number}{label}".encode()
