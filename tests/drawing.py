"""Starting values of large layers, drawn in part: a hundred million take a second."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable

DRAWN = 1 << 20


class Repeated(TorchFunctionMode):
    """Within it normal values are parts of one row of a million, with the spread asked for.

    Each tensor begins at another place of the row. What torch's layers draw for their weights when
    they are made is zero: a definition has to replace it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._row = torch.randn(DRAWN).repeat(2)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func is nn.init.kaiming_uniform_:
            return nn.init.zeros_(args[0] if args else given["tensor"])
        if func is Tensor.normal_:
            given.pop("generator", None)  # torch's own initialisers pass on that they have none
            return self._fill(*args, **given)
        return func(*args, **given)

    def _fill(self, tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
        start = int(torch.randint(DRAWN, ()))
        for part in torch.split(tensor.view(-1), DRAWN):
            torch.mul(self._row[start : start + len(part)], std, out=part).add_(mean)
        return tensor
