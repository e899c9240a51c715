"""Receptive fields of a module's layers, followed through one forward pass.

Every call of torch's functions is watched, so that functions in a ``forward`` count as modules do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from deploykit.core.errors import UsageError, typed_first_line
from deploykit.visualization.field_rules import MAP_DIMS, Call, Placed, placed_by, tensors_in
from deploykit.visualization.receptive_field import AxisField, MapField

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn


@dataclass(frozen=True)
class TracedLayer:
    """A module that returns a tensor: its name, class, output's shape, and receptive field.

    ``shape`` is an image's, (C, H, W) or (C,). ``calls`` is how often one image passes through it.
    ``passes_on`` says that it only hands on, or pools, what another layer computed.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    field: MapField
    calls: int = 1
    passes_on: bool = False

    @property
    def is_map(self) -> bool:
        """Whether it has units at positions, and not one per channel."""
        return len(self.shape) == MAP_DIMS - 1

    @property
    def channels(self) -> int:
        """Its filters."""
        return self.shape[0]


def trace_layers(
    network: nn.Module, root: nn.Module, image: tuple[int, int, int]
) -> tuple[TracedLayer, ...]:
    """The layers of ``root`` in the order in which ``network`` finishes them.

    ``network`` is ``root`` or calls it. One ``image`` (C, H, W) of zeros is run; the weights do not
    matter.
    Only layers that return (N, C, H, W) or (N, C) are listed, and ``root`` itself is not.

    Raises:
        UsageError: the network does not take images of this size.
    """
    import torch

    follower = _Follower(image[1:])
    layers: dict[str, TracedLayer] = {}
    handles = [
        part.register_forward_hook(_noting(name, layers, follower))
        for name, part in root.named_modules()
        if name
    ]
    zeros = torch.zeros(1, *image)
    follower.known[zeros] = Placed((2, 3), follower.of_image())
    try:
        with torch.no_grad(), follower.watching():
            network(zeros)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UsageError(
            f"the network does not take images of {tuple(zeros.shape)}\n"
            f"{typed_first_line(error)}\ngive the size that it takes: --input-size PX"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return tuple(layers.values())


_PASSING: Final = ("Dropout", "Flatten", "Identity", "Pool")
"""Parts of the names of classes whose output is not a layer of its own."""


def _noting(
    name: str, layers: dict[str, TracedLayer], follower: _Follower
) -> Callable[[nn.Module, Any, Any], None]:
    def note(part: nn.Module, _: Any, output: Any) -> None:
        if not hasattr(output, "detach") or output.ndim not in (2, MAP_DIMS):
            return
        before = layers.pop(name, None)  # what is finished again is finished later
        kind = type(part).__name__
        if "Pool" in kind:
            follower.pooled[output] = True
        passes_on = any(word in kind for word in _PASSING) or output in follower.pooled
        field = follower.field_of(output)
        calls = 1 if before is None else before.calls + 1
        shape = tuple(int(size) for size in output.shape[1:])
        layers[name] = TracedLayer(name, kind, shape, field, calls, passes_on)

    return note


class _Follower:
    """Keeps a field for each tensor that was computed from the image."""

    def __init__(self, image: tuple[int, int]) -> None:
        from torch.utils.weak import WeakTensorKeyDictionary

        self.image = image
        self.known: Any = WeakTensorKeyDictionary()
        self.pooled: Any = WeakTensorKeyDictionary()

    def of_image(self) -> MapField:
        """Each pixel by itself."""
        height, width = self.image
        return MapField(self.image, AxisField.of_image(height), AxisField.of_image(width))

    def field_of(self, tensor: Tensor) -> MapField:
        """What is known of a layer's output (N, C, H, W) or (N, C)."""
        placed = self.known.get(tensor)
        if placed is None:
            return MapField(self.image, None, None, "it is not computed from the image alone")
        if placed.axes != (2, 3) and placed.axes is not None:
            placed = placed.lost("its output is not (N, C, H, W)")
        found: MapField = placed.field
        return found

    def watching(self) -> Any:
        """A context in which calls of torch's functions are followed."""
        from torch.overrides import TorchFunctionMode

        follow = self.follow

        class Watch(TorchFunctionMode):
            def __torch_function__(
                self, func: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                """Run one function, and note what its results depend on."""
                result = func(*args, **(kwargs or {}))
                follow(getattr(func, "__name__", str(func)), args, kwargs or {}, result)
                return result

        return Watch()

    def follow(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
    ) -> None:
        """Note the fields of what the function ``name`` returned."""
        plain = name.strip("_")
        inputs = [(one, self.known[one]) for one in tensors_in((args, kwargs)) if one in self.known]
        outputs = list(tensors_in(result))
        if not inputs or not outputs:
            return
        for output in outputs:
            self.known[output] = placed_by(Call(plain, args, kwargs, inputs, output))
