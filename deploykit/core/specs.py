"""The nouns that every layer shares: tensors, profiles, preprocessing, models, runners.

Nothing here imports numpy or torch at run time, so that ``deploykit list`` stays fast.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from deploykit.core.choices import GREY_ORDER
from deploykit.core.errors import UsageError
from deploykit.core.sizes import BATCH_AXIS, CHANNELS_FIRST, GREY, RGB, filled, shape_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    Array = NDArray[np.generic]


BATCH = "batch"
"""Name of the dynamic first dimension of every exported model."""


DEFAULT_HEAD: Final = "multiclass"
"""What outputs mean where nobody says it, as in bundles of before there was a choice."""


@dataclass(frozen=True, slots=True)
class HeadRecord:
    """What a bundle's output means: a kind of head, the output, what the graph did to it already.

    ``activation`` is ``none``, ``softmax``, ``log_softmax``, ``sigmoid``, ``argmax``, ``top_k`` or
    ``l2``. ``output`` is ``None`` in bundles that name the kind alone: it is the first then.
    """

    kind: str = DEFAULT_HEAD
    output: str | None = None
    activation: str = "none"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, numpy dtype name and shape; a string in the shape is a named dynamic dimension."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def shape_text(self) -> str:
        """The shape for a message; a question mark is an open dimension without a name.

        >>> TensorSpec("x", "float32", ("N", 3, "x_2", "x_3")).shape_text
        '(N, 3, ?, ?)'
        """
        return shape_text(
            # A file that gives no name gets one of its tensor and axis when it is read.
            "?" if dim == f"{self.name}_{axis}" else dim
            for axis, dim in enumerate(self.shape)
        )

    @property
    def fixed_batch(self) -> int | None:
        """The batch that the graph insists on, ``None`` where it takes any."""
        size = self.shape[0]
        return size if isinstance(size, int) else None

    def with_batch(self, batch: int) -> tuple[int, ...]:
        """The shape with the batch dimension filled in.

        >>> TensorSpec("input", "float32", ("batch", 3, 224, 224)).with_batch(4)
        (4, 3, 224, 224)

        Raises:
            UsageError: another dimension than the first is dynamic.
        """
        return self.with_sizes({BATCH_AXIS: batch})

    def with_sizes(self, sizes: Mapping[int, int]) -> tuple[int, ...]:
        """The shape with its open dimensions filled in; ``sizes`` are by axis, as 2 the height.

        >>> TensorSpec("input", "float32", ("batch", 3, "h", 224)).with_sizes({0: 4, 2: 160})
        (4, 3, 160, 224)

        Raises:
            UsageError: a dimension is open that ``sizes`` does not have.
        """
        shape = filled(self.shape, sizes)
        if shape is None:
            missing = [dim for axis, dim in enumerate(self.shape) if axis not in sizes]
            named = ", ".join(dim for dim in missing if isinstance(dim, str))
            raise UsageError(
                f"{self.name} {self.shape_text}: {named} is open, and has no size here"
            )
        return shape

    def channels_first(self) -> Self:
        """The tensor (N, C, H, W) for one of (N, H, W, C).

        >>> TensorSpec("x", "float32", ("n", 224, "x_2", 3)).channels_first().shape
        ('n', 3, 224, 'x_3')
        """
        # A dimension without a name is called by its place, which is another one now.
        by_place = {f"{self.name}_{axis}": at for at, axis in enumerate(CHANNELS_FIRST)}
        dims = (self.shape[axis] for axis in CHANNELS_FIRST)
        named = (f"{self.name}_{by_place[dim]}" if dim in by_place else dim for dim in dims)
        return replace(self, shape=tuple(named))


@dataclass(frozen=True, slots=True)
class PixelInput:
    """Images as bytes: what is left to the caller of a graph that converts and normalises itself.

    The graph takes ``dtype`` of 0 to 255, in ``layout`` "nhwc" (N, H, W, C) or "nchw"
    (N, C, H, W), with the colours in ``order`` "rgb" or "bgr", or one channel, "grey". ``outside``
    is all of the preprocessing that is not in the graph.
    """

    layout: str = "nhwc"
    order: str = "rgb"
    dtype: str = "uint8"
    outside: tuple[str, ...] = ("decode", "resize", "crop")


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How an image becomes the model's input.

    Decode to RGB, make it grey where ``channel_order`` is "grey", scale the shorter side to
    ``resize`` (``None``: leave it; a pair: to exactly that height and width), cut ``crop`` pixels
    (height, width) from the centre, put the channels in ``channel_order`` ("rgb" or "bgr"), divide
    by 255, subtract ``mean``, divide by ``std``. Both are of pixels of 0 to 1, in the order of the
    network's channels: three numbers, or one of grey. With ``pixels`` the graph does all of it
    that comes after the crop, and is given bytes.

    Raises:
        UsageError: a mean or deviation of more or fewer numbers than channels.
    """

    crop: tuple[int, int]
    resize: int | tuple[int, int] | None = None
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    channel_order: str = "rgb"
    pixels: PixelInput | None = None

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise UsageError(
                    f"{name} {values} has {len(values)} numbers, images in {self.channel_order} "
                    f"need {self.channels}: one for each channel"
                )

    @classmethod
    def assumed(cls, crop: tuple[int, int], channels: int) -> Self:
        """What is taken where nobody says it: of images in colours ImageNet's way.

        Grey networks read digits, lines of text and radiographs, of which nothing is cut off: they
        are scaled to exactly ``crop``, and black to white becomes -1 to 1.
        """
        if channels == GREY:
            return cls(crop, crop, mean=(0.5,), std=(0.5,), channel_order=GREY_ORDER)
        # The published networks cut 224 out of 256; the same share holds for other sizes.
        return cls(crop, resize=round(min(crop) * 256 / 224))

    @property
    def channels(self) -> int:
        """Channels of the images: 1 of grey ones, else 3."""
        return GREY if self.channel_order == GREY_ORDER else RGB

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of one prepared image, (C, H, W)."""
        return self.channels, *self.crop

    @property
    def as_floats(self) -> Self:
        """The same for a graph that takes prepared images, float32 (N, C, H, W)."""
        return replace(self, pixels=None)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A definition with its choices made; ``build`` gives a fresh module.

    ``paper`` is a link; what is ``None`` is not known. ``parameters`` and ``multiply_adds`` (of
    one image) hold for the published number of classes and input size, whatever this spec's
    choices are. The last fields say where weights come from: a definition is untrained unless
    ``weights_file`` or ``built_in`` is given, or the user asks for others.
    """

    name: str
    title: str
    paper: str | None = None
    year: int | None = None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocessing: Preprocessing
    parameters: int | None = None
    multiply_adds: int | None = None
    labels: tuple[str, ...] | None = None
    torchvision: str | None = None
    """Name of the same network in torchvision, whose state dict then fits."""
    builder: Callable[[], nn.Module] = field(repr=False, compare=False)
    timm: str | None = None
    """Name in timm of the weights that ``--weights imagenet`` takes."""
    weights_file: Path | None = None
    """The definition's own weights, which are taken where no others are asked for."""
    built_in: str | None = None
    """How the manifest calls the weights that ``build`` brings with it."""
    source_sha256: str | None = None
    """Of the file that the definition was read from."""
    adapt_state: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = field(
        default=None, repr=False, compare=False
    )
    """Gives tensors of a state dict the names that the module of ``build`` has for them."""
    published: Callable[[ModelSpec], tuple[Mapping[str, Tensor], Any]] | None = field(
        default=None, repr=False, compare=False
    )
    """Fetches what ``--weights imagenet`` asks for: a state dict, and the record of it."""
    class_names: Callable[[], tuple[str, ...] | None] | None = field(
        default=None, repr=False, compare=False
    )
    """Looks the names of the classes up, where ``labels`` would need a heavy import."""
    preprocessing_assumed: bool = False
    """Whether nobody said how images are prepared: ImageNet's way is taken, with a note."""
    notes: tuple[str, ...] = ()
    """What the user must know of it, as an assumed preprocessing."""
    head: str | None = DEFAULT_HEAD
    """What the outputs mean: a name of `deploykit.heads`; ``None`` is read from the graph."""

    @property
    def num_classes(self) -> int:
        """Values per image of the first output."""
        return prod(int(size) for size in self.outputs[0].shape[1:])

    def known_labels(self) -> tuple[str, ...] | None:
        """Names of the classes, looked up where they are not at hand; ``None`` if not known."""
        if self.labels is None and self.class_names is not None:
            return self.class_names()
        return self.labels

    def build(self) -> nn.Module:
        """A new module in evaluation mode, initialised by torch's current random state."""
        return self.builder().eval()


@dataclass(frozen=True, slots=True, eq=False)
class SplitGraph:
    """A serialised ONNX graph, and the weights that it leaves to its runner, by name.

    The weights are those of the graph that it was made from: nobody writes to them.
    """

    content: bytes = field(repr=False)
    weights: Mapping[str, Array] = field(repr=False)


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Durations of one call in milliseconds; ``None`` where the backend has no such step."""

    wall_ms: float
    compute_ms: float | None = None
    h2d_ms: float | None = None
    d2h_ms: float | None = None
    enqueue_ms: float | None = None


class Closing(ABC):
    """What is closed at the end of a ``with`` block, however that ends."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class QueryQueue(Protocol):
    """Queries of one batch that overlap: ``depth`` of them may be under way."""

    @property
    def depth(self) -> int:
        """How many may be submitted before the oldest is finished."""

    def submit(self) -> None:
        """Begin one more query."""

    def finish(self) -> StepTimes:
        """Wait for the oldest query; return the duration of its steps."""

    def close(self) -> None:
        """Wait for what is under way, and give everything back."""


class Runner(Protocol):
    """Something that computes a model's outputs; the device is untouched until it is opened."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What ``run`` must be fed."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What ``run`` returns."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name for one batch of inputs by name."""

    def run_timed(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], StepTimes]:
        """As ``run``, with the duration of each step."""

    def close(self) -> None:
        """Give back what the runner holds; a second call does nothing."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
