"""A definition's layers, by watching one forward pass that computes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from deploykit.core.errors import UsageError
from deploykit.costs.network import LayerInfo, ModelSummary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch.utils.hooks import RemovableHandle

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def inspect_definition(
    build: Callable[[], nn.Module], shape: tuple[int, ...], name: str
) -> ModelSummary:
    """The layers that one batch of ``shape`` (N, C, H, W) passes through.

    The module lives on torch's meta device: shapes are real, nothing is allocated or computed.
    A row stands for one call of one module, blocks included and pure containers left out, as
    torchsummary does; a module that is called twice has two rows and counts its parameters once.
    Layers whose weights a block uses without calling them (attention) count with the block.

    Raises:
        UsageError: the definition does not take this shape.
    """
    with torch.device("meta"):
        # A user's own factory is called on the CPU, whatever the device.
        module, batch = build().to("meta"), torch.zeros(shape)
    watch = _Watch(set(module.parameters(recurse=False)))
    handles = [
        handle
        for path, child in module.named_modules()
        if _is_layer(child, module)
        for handle in watch.hooks(child, path)
    ]
    try:
        with torch.no_grad(), watch:
            module(batch)
    except (RuntimeError, ValueError) as exc:
        reason = next(iter(str(exc).splitlines()), type(exc).__name__)
        raise UsageError(f"{name} does not take an input of {shape}\n{reason}") from exc
    finally:
        for handle in handles:
            handle.remove()
    return ModelSummary(name, shape, tuple(watch.layers), _count(watch.seen))


def _is_layer(child: nn.Module, root: nn.Module) -> bool:
    return child is not root and not isinstance(child, _CONTAINERS)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own is untyped
    """Writes a row when a call ends, and counts products for the innermost call that runs."""

    def __init__(self, seen: set[nn.Parameter]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own is untyped
        self.layers: list[LayerInfo] = []
        self.seen = seen
        self._running: list[int] = [0]

    def hooks(self, child: nn.Module, path: str) -> tuple[RemovableHandle, RemovableHandle]:
        """Watch the calls of one module."""

        def start(*_: Any) -> None:
            self._running.append(0)

        def end(module: nn.Module, _: Any, output: Any) -> None:
            fresh = [parameter for parameter in module.parameters() if parameter not in self.seen]
            self.seen.update(fresh)
            kind, work = type(module).__name__, self._running.pop()
            self.layers.append(LayerInfo(path, kind, _shape(output), _count(fresh), work))

        return child.register_forward_pre_hook(start), child.register_forward_hook(end)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator; torch's own counter knows what a product is, and counts its two."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self._running[-1] += count(*args, **kwargs, out_val=result) // 2
        return result


def _shape(output: Any) -> tuple[int, ...]:
    """Of the first tensor that a module returns; empty where it returns none.

    Attention also returns its weights, or ``None`` in their place; some return tensors by name.
    """
    if isinstance(output, torch.Tensor):
        return tuple(output.shape)
    if isinstance(output, Mapping):
        output = tuple(output.values())
    parts = output if isinstance(output, tuple | list) else ()
    return next((shape for shape in map(_shape, parts) if shape), ())


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
