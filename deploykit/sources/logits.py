"""Modules that return several things, or return what is deployed in another form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from torch import Tensor, nn

from deploykit.core.choices import GREY_ORDER
from deploykit.core.errors import UsageError, typed_first_line
from deploykit.core.sizes import GREY, RGB
from deploykit.core.specs import DEFAULT_HEAD
from deploykit.heads import head_named
from deploykit.heads.multiclass import MULTICLASS
from deploykit.heads.raw import RAW

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploykit.core.choices import DefinitionChoices
    from deploykit.heads import Head

LOGITS: Final = "logits"
"""What libraries call them where a module returns several things by name."""

_NOISE: Final = 2
"""Images that a module is tried on."""


@dataclass(frozen=True)
class Place:
    """Where the deployed output is in what a module returns.

    ``key`` is ``None`` where the module returns it alone. With ``is_turned`` its images come
    second, (T, N, C), and are put first; with ``is_flat`` (N, K, 1, 1) becomes (N, K). ``shape`` is
    an image's, after that. ``channels`` are those of the images that the module was given.
    """

    key: str | int | None
    shape: tuple[int, ...]
    is_turned: bool = False
    is_flat: bool = False
    channels: int = RGB

    @property
    def is_plain(self) -> bool:
        """Whether the module returns the output as it is deployed."""
        return self.key is None and not self.is_turned and not self.is_flat


class LogitsOf(nn.Module):
    """A network of which only one output is deployed, by default its logits (N, classes)."""

    def __init__(
        self,
        network: nn.Module,
        place: str | int | None,
        *,
        is_turned: bool = False,
        is_flat: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.place = place
        self.is_turned = is_turned
        self.is_flat = is_flat

    def forward(self, images: Tensor) -> Tensor:
        """The output (N, ...) for ``images`` (N, C, H, W)."""
        result = self.network(images)
        found = cast("Tensor", result if self.place is None else result[self.place])
        if self.is_turned:
            found = found.transpose(0, 1)
        return found.flatten(1) if self.is_flat else found


def network_of(module: nn.Module) -> nn.Module:
    """The module that a state dict is for."""
    return module.network if isinstance(module, LogitsOf) else module


def logits_only(network: nn.Module, place: Place) -> nn.Module:
    """``network`` itself where it returns nothing but what is deployed."""
    if place.is_plain:
        return network
    return LogitsOf(network, place.key, is_turned=place.is_turned, is_flat=place.is_flat)


def output_name(place: Place, choices: DefinitionChoices) -> str:
    """What the output at ``place`` is called in the graph: the network's own name if it has one."""
    if isinstance(place.key, str):
        return place.key
    is_classes = len(place.shape) == 1 and choices.head in (None, DEFAULT_HEAD)
    return LOGITS if is_classes else "output"


def find_output(
    network: nn.Module,
    image_size: int,
    name: str,
    choices: DefinitionChoices,
    labels: int | None = None,
) -> Place:
    """Where the output that is meant is in what ``network`` returns, and an image's shape.

    It is the one that ``choices`` name, by its name or its number; else the tensor that the network
    returns, the one called "logits", or the one of a sequence that fits the head. Without a head
    those with a value per class come before others. Of several that fit it is the one with a value
    for each of the ``labels``, else the one that the others lead to, and logits before their
    probabilities: as of an ``.onnx``. One batch of noise is run to find out: in colours, or grey
    where the network does not take these, or returns nothing for them that is an output; of the
    channel order that is chosen there is no other.

    Raises:
        UsageError: the network does not take a batch of such images, returns nothing of the kind,
            or several things of which nothing says which is meant.
    """
    order = choices.preprocessing.channel_order
    possible = (RGB, GREY) if order is None else (GREY,) if order == GREY_ORDER else (RGB,)
    batch, result = _tried(network, image_size, name, order, possible)
    found = _place_in(network, batch, result, name, choices, labels)
    if found is None and batch.shape[1] != possible[-1]:
        # `x.view(-1, 784)` takes three channels for three images.
        try:
            batch, answer = _tried(network, image_size, name, order, possible[1:])
        except UsageError:  # then it takes colours, and what it returns for them is told
            pass
        else:
            found = _place_in(network, batch, answer, name, choices, labels)
    if found is None:
        head = choices.head
        wish = MULTICLASS if head is None else head_named(head)
        raise _refusal(name, result, wish, choices.head_output)
    return found


def note_on_channels(network: nn.Module, place: Place, order: str | None) -> str | None:
    """A sentence where ``network`` takes images in colours, which it may not have been made for."""
    is_grey = place.channels == RGB and _first_channels(network) == GREY
    if not is_grey or order is not None:
        return None
    return (
        "the network takes 3 channels, and its first convolution 1: for grey images it is "
        "--channel-order grey"
    )


def _first_channels(network: nn.Module) -> int | None:
    """The channels that the first convolution takes; ``None`` without one."""
    first = next((one for one in network.modules() if isinstance(one, nn.Conv2d)), None)
    return None if first is None else first.in_channels


def _place_in(
    network: nn.Module,
    batch: Tensor,
    result: Any,
    name: str,
    choices: DefinitionChoices,
    labels: int | None,
) -> Place | None:
    """Where the output is in the ``result`` of ``batch``; ``None`` where nothing is one."""
    head, wanted = choices.head, choices.head_output
    tensors = list(_tensors(result))
    for wish in (MULTICLASS, RAW) if head is None else (head_named(head),):
        places = [place for key, value in tensors if (place := _placed(key, value, wish))]
        if wanted is None and len(places) > 1 and not isinstance(result, Mapping):
            places = _meant(network, batch, places, labels)
            if len(places) > 1:
                raise _several(name, result, places)
        found = _chosen(places, wanted, isinstance(result, Mapping))
        if found is not None:
            return replace(found, channels=batch.shape[1])
    return None


def _tried(
    network: nn.Module, image_size: int, name: str, order: str | None, possible: Sequence[int]
) -> tuple[Tensor, Any]:
    """The first batch of noise that ``network`` takes, and what it returns for it."""
    errors = {}
    for count in possible:
        # From 0 to 1: what is an index into a table, pixels by 255, stays within it.
        batch = torch.rand(_NOISE, count, image_size, image_size, dtype=torch.float32)
        try:
            with torch.no_grad():
                return batch, network.eval()(batch)
        except Exception as error:  # a user's own code can raise anything
            errors[count] = error
    taken = _first_channels(network)
    count = taken if taken in errors else possible[0]
    raise UsageError(
        f"{name} does not take images (2, {count}, {image_size}, {image_size})\n"
        f"{typed_first_line(errors[count])}\n{_remedy(taken, count, order)}"
    ) from errors[count]


def _remedy(taken: int | None, count: int, order: str | None) -> str:
    """What helps where images of ``count`` channels fail and the first convolution takes others."""
    if taken in (None, count):
        return "give the size that it takes: --input-size PX"
    if taken in (RGB, GREY):
        found = "1 channel, grey" if taken == GREY else f"{taken} channels"
        return f"its first convolution takes {found}: leave --channel-order {order} out"
    return (
        f"its first convolution takes {taken} channels, and deploykit prepares images of 3, or 1\n"
        "wrap it in a module whose forward makes them of red, green and blue"
    )


@torch.enable_grad()
def _meant(
    network: nn.Module, batch: Tensor, places: Sequence[Place], labels: int | None
) -> list[Place]:
    """Those of ``places`` in a sequence that may be the answer."""
    named = [place for place in places if labels is not None and place.shape == (labels,)]
    if len(named) == 1:
        return named
    # Another run, which records what is computed from what.
    images = batch.clone().requires_grad_() * 1  # a leaf refuses what works in place
    try:
        result = network(images)
    except Exception:  # a user's own code may only run without a record; then nothing tells
        return list(places)
    values = {place.key: result[place.key] for place in places}
    left = list(places)
    for place in places:
        rest = [other for other in left if other is not place]
        if any(_is_passed(values[place.key], values[other.key]) for other in rest):
            left = rest
    return left


def _is_passed(value: Tensor, other: Tensor) -> bool:
    """Whether ``other`` is the answer sooner than ``value``.

    Either ``value`` (N, K) is the probabilities of the logits ``other``, or features of another
    length that ``other`` is computed from.
    """
    if value.shape == other.shape:
        squashed = (other.softmax(-1), other.log_softmax(-1), other.sigmoid())
        return any(torch.allclose(value, one, atol=1e-6) for one in squashed)
    if not (value.requires_grad and other.requires_grad):
        return False
    (gradient,) = torch.autograd.grad(other.sum(), value, retain_graph=True, allow_unused=True)
    return gradient is not None


def _several(name: str, result: Any, places: Sequence[Place]) -> UsageError:
    listed = ", ".join(f"{place.key}: {_described(result[place.key])}" for place in places)
    return UsageError(
        f"{name} returns a {type(result).__name__} for {_NOISE} images: {listed}\n"
        "nothing tells which of them is the answer\n"
        f"say which by its number: --head-output {places[0].key}"
    )


def _tensors(result: Any) -> Iterator[tuple[str | int | None, Tensor]]:
    """The floating-point tensors that a module returns, each with its place."""
    pairs: Sequence[tuple[str | int | None, Any]] = ()
    if isinstance(result, Tensor):
        pairs = [(None, result)]
    elif isinstance(result, Mapping):
        pairs = list(result.items())
    elif isinstance(result, Sequence) and not isinstance(result, str):
        pairs = list(enumerate(result))
    for key, value in pairs:
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            yield key, value


def _placed(key: str | int | None, value: Tensor, head: Head) -> Place | None:
    """How ``value`` becomes an output of ``head``; ``None`` where it is none."""
    shape = tuple(value.shape)
    if shape and shape[0] == _NOISE:
        if head.fits(shape):
            return Place(key, shape[1:])
        is_pooled = len(shape) > 2 and all(size == 1 for size in shape[2:])  # noqa: PLR2004
        return Place(key, shape[1:2], is_flat=True) if is_pooled and head.fits(shape[:2]) else None
    if head.judges_all and shape[1:2] == (_NOISE,):
        return Place(key, (shape[0], *shape[2:]), is_turned=True)
    return None


def _chosen(places: Sequence[Place], wanted: str | None, is_named: bool) -> Place | None:  # noqa: FBT001
    if wanted is not None:
        return next((place for place in places if str(place.key) == wanted), None)
    if is_named and len(places) > 1:
        return next((place for place in places if place.key == LOGITS), None)
    return next(iter(places), None)


def _refusal(name: str, result: Any, head: Head, wanted: str | None) -> UsageError:
    found = f"{name} returns {_described(result)} for {_NOISE} images"
    if wanted is not None:
        return UsageError(
            f"{found}\nthere is no {wanted!r} of floating-point values with a row per image in it\n"
            "--head-output takes a name of a dict, or a number of a tuple, from 0"
        )
    if isinstance(result, Mapping) and any(isinstance(one, Tensor) for one in result.values()):
        return UsageError(f"{found}\nwhich of them is the answer? --head-output NAME")
    return UsageError(
        f"{found}\nexpected {head.noun} {head.layout.replace('batch', str(_NOISE))}: a tensor, one "
        f'of a tuple, or "{LOGITS}" of a dict'
    )


def _described(result: Any) -> str:
    if isinstance(result, Tensor):
        return f"{str(result.dtype).removeprefix('torch.')} {tuple(result.shape)}"
    if isinstance(result, Mapping):
        return f"a {type(result).__name__} of {', '.join(map(str, result)) or 'nothing'}"
    if isinstance(result, tuple | list):
        return f"a {type(result).__name__} of {', '.join(map(_described, result)) or 'nothing'}"
    return f"a {type(result).__name__}"
