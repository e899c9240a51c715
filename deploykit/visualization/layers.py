"""The layers of a module that pictures are made of: by name, or one for each resolution."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from deploykit.core.errors import UnknownNameError, UsageError
from deploykit.visualization.tracing import trace_layers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from deploykit.core.specs import Preprocessing
    from deploykit.visualization.tracing import TracedLayer

_LISTED: Final = 60
"""Names in a message: those of a deep network would fill the screen."""

_DEFAULT_LAYERS: Final = 4


@dataclass(frozen=True, eq=False)
class ShownNetwork:
    """A module in evaluation mode, without gradients of its parameters, and its layers.

    ``network`` takes images (N, C, H, W); ``root`` is the part whose modules are named, itself or
    a part of it.
    """

    network: nn.Module
    root: nn.Module
    preprocessing: Preprocessing
    layers: tuple[TracedLayer, ...]

    @classmethod
    def of(cls, network: nn.Module, root: nn.Module, preprocessing: Preprocessing) -> ShownNetwork:
        """Trace the layers of a network, which is put into evaluation mode.

        Raises:
            UsageError: it does not take images of this size.
        """
        network.eval().requires_grad_(requires_grad=False)
        layers = trace_layers(network, root, preprocessing.image_shape)
        return cls(network, root, preprocessing, layers)

    def chosen(self, names: Sequence[str]) -> tuple[TracedLayer, ...]:
        """The layers of these names, once each; without names one of each resolution.

        Raises:
            UnknownNameError: there is no such layer.
            UsageError: one is called several times for an image.
        """
        if not names:
            return self.usual()
        return tuple(self._named(name) for name in dict.fromkeys(names))

    def _named(self, name: str) -> TracedLayer:
        found = next((layer for layer in self.layers if layer.name == name), None)
        if found is None:
            known = [layer.name for layer in self.layers]
            if name in dict(self.root.named_modules()):
                raise UsageError(
                    f"{name!r} returns no map (N, C, H, W) or (N, C) whose units could be shown\n"
                    f"possible: {_listed(known)}"
                )
            raise UnknownNameError("layer", name, known, _listed(known))
        if found.calls > 1:
            raise UsageError(
                f"the layer {name!r} is called {found.calls} times for one image, as an activation "
                f"that is shared\nname the block around one of the calls: {_listed(self._single())}"
            )
        return found

    def _single(self) -> list[str]:
        return [layer.name for layer in self.layers if layer.calls == 1]

    def usual(self) -> tuple[TracedLayer, ...]:
        """Of each resolution the last layer that is no pooling, at most four, spread evenly."""
        by_size: dict[tuple[int, ...], TracedLayer] = {}
        for layer in self.layers:
            if layer.is_map and layer.calls == 1 and not layer.passes_on:
                by_size[layer.shape[1:]] = layer
        found = [layer for size, layer in by_size.items() if size != (1, 1)]
        # In the order of the network, whatever branch met a resolution first.
        found.sort(key=self.layers.index)
        if len(found) > _DEFAULT_LAYERS:
            last = len(found) - 1
            steps = _DEFAULT_LAYERS - 1
            found = [found[round(at * last / steps)] for at in range(_DEFAULT_LAYERS)]
        return tuple(found)

    def last_map(self) -> TracedLayer | None:
        """The last layer with positions, which Grad-CAM explains; ``None`` where there is none."""
        maps = [
            layer
            for layer in self.layers
            if layer.is_map
            and layer.calls == 1
            and not layer.passes_on
            and layer.shape[1:] != (1, 1)
        ]
        return maps[-1] if maps else None

    def part(self, layer: TracedLayer) -> nn.Module:
        """The module of a layer."""
        return self.root.get_submodule(layer.name)

    def up_to(self, layer: TracedLayer, images: Tensor) -> Tensor:
        """The output (N, C, ...) of a layer, without what comes behind it.

        Raises:
            UsageError: the network computes without a record of gradients.
        """

        def stop(_: nn.Module, __: Any, output: Tensor) -> None:
            raise _ReachedError(output)

        hook = self.part(layer).register_forward_hook(stop)
        try:
            self.network(images)
        except _ReachedError as reached:
            return reached.output
        finally:
            hook.remove()
        raise AssertionError("a layer that was traced is reached")


class _ReachedError(Exception):
    """The layer was reached; nothing behind it is needed."""

    def __init__(self, output: Tensor) -> None:
        super().__init__("reached")
        self.output = output


@contextmanager
def recording() -> Iterator[None]:
    """Gradients are recorded within, in the types that are written, whatever the caller chose."""
    import torch

    from deploykit.sources.autocast import without_autocast

    with without_autocast(), torch.inference_mode(mode=False), torch.enable_grad():
        yield


def tensor_of(images: NDArray[Any], *, with_gradients: bool = False) -> Tensor:
    """Prepared images (N, C, H, W) as a tensor, a leaf of its own."""
    import torch

    return torch.tensor(images, dtype=torch.float32, requires_grad=with_gradients)


def require_recorded(output: Tensor) -> Tensor:
    """Refuse what has no record of how it was computed from the images.

    Raises:
        UsageError: the module computes under ``torch.no_grad``, or detaches.
    """
    if output.grad_fn is None:
        raise UsageError(
            "the network keeps no record of gradients: its forward uses torch.no_grad or detach\n"
            "possible without: --method filters, top and occlusion"
        )
    return output


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" ... and {more} more" if more > 0 else "")
