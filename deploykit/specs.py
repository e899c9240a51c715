"""The nouns that every layer shares: tensors, profiles, preprocessing, models, runners.

Nothing here imports numpy or torch at run time, so that ``deploykit list`` stays fast.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, Self

from deploykit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    Array = NDArray[np.generic]

BATCH = "batch"
"""Name of the dynamic first dimension of every exported model."""


class Precision(StrEnum):
    """What the arithmetic of a graph runs in; a property of the ONNX file, not of the build."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, numpy dtype name and shape; a string in the shape is a named dynamic dimension."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def is_dynamic(self) -> bool:
        """Whether any dimension is open."""
        return any(isinstance(dim, str) for dim in self.shape)

    def with_batch(self, batch: int) -> tuple[int, ...]:
        """The shape with the batch dimension filled in.

        >>> TensorSpec("input", "float32", ("batch", 3, 224, 224)).with_batch(4)
        (4, 3, 224, 224)

        Raises:
            UsageError: another dimension than the first is dynamic.
        """
        filled = (batch if isinstance(dim, str) else dim for dim in self.shape[:1])
        fixed = [dim for dim in self.shape[1:] if isinstance(dim, int)]
        if len(fixed) != len(self.shape[1:]):
            raise UsageError(f"{self.name} {self.shape}: only the first dimension may be dynamic")
        return (*filled, *fixed)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of ``dataclasses.asdict`` after a trip through JSON."""
        return cls(str(data["name"]), str(data["dtype"]), tuple(data["shape"]))


@dataclass(frozen=True, slots=True)
class ShapeProfile:
    """Smallest, preferred and largest batch that an engine accepts.

    >>> ShapeProfile.parse("1,8,32")
    ShapeProfile(min_batch=1, opt_batch=8, max_batch=32)
    >>> ShapeProfile.parse("4")
    ShapeProfile(min_batch=4, opt_batch=4, max_batch=4)
    """

    min_batch: int = 1
    opt_batch: int = 8
    max_batch: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch:
            got = f"{self.min_batch},{self.opt_batch},{self.max_batch}"
            raise UsageError(
                f"batch profile {got} is not in order\n"
                "expected 1 <= MIN <= OPT <= MAX, for example --batch 1,8,32"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``MIN,OPT,MAX``, or a single number for a fixed batch.

        Raises:
            UsageError: not one or three positive whole numbers in ascending order.
        """
        try:
            numbers = [int(part) for part in text.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) == 1:
            numbers *= 3
        if len(numbers) != 3:  # noqa: PLR2004
            raise UsageError(
                f"cannot read the batch profile {text!r}\n"
                "expected MIN,OPT,MAX or one number, for example --batch 1,8,32"
            )
        return cls(*numbers)


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How an image becomes the model's input.

    Decode to RGB, scale the shorter side to ``resize`` (``None``: leave it), cut ``crop`` pixels
    (height, width) from the centre, divide by 255, subtract ``mean``, divide by ``std``.
    """

    crop: tuple[int, int]
    resize: int | None = None
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict`` after a trip through JSON."""
        height, width = data["crop"]
        return cls(
            crop=(height, width),
            resize=data["resize"],
            interpolation=data["interpolation"],
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
        )


@dataclass(frozen=True)
class ModelSpec:
    """A definition with its choices made; ``build`` gives fresh, untrained weights.

    ``paper`` is a link; ``year`` is ``None`` where it is not known. ``parameters`` and
    ``multiply_adds`` (of one image) hold for the published number of classes and input size,
    whatever this spec's choices are.
    """

    name: str
    title: str
    paper: str
    year: int | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocessing: Preprocessing
    parameters: int
    multiply_adds: int
    labels: tuple[str, ...] | None
    torchvision: str | None
    """Name of the same network in torchvision, whose state dict then fits."""
    builder: Callable[[], nn.Module] = field(repr=False, compare=False)

    @property
    def num_classes(self) -> int:
        """Length of the logits."""
        return int(self.outputs[0].shape[-1])

    def build(self) -> nn.Module:
        """A new module in evaluation mode, initialised by torch's current random state."""
        return self.builder().eval()


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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


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


class ProgressTask(Protocol):
    """One running step of a progress display."""

    def update(self, done: float, total: float | None = None, detail: str = "") -> None:
        """Say how far the step is; ``total`` ``None`` keeps what was said before."""


class Progress(Protocol):
    """Where long steps report to; the command line shows a bar, a library call nothing."""

    def step(self, name: str) -> AbstractContextManager[ProgressTask]:
        """Open the display of one step; it ends with the ``with`` block."""


class _SilentTask:
    def update(self, done: float, total: float | None = None, detail: str = "") -> None:
        """Nothing to show."""


class SilentProgress:
    """Shows nothing: the default of every verb."""

    @contextmanager
    def step(self, name: str) -> Iterator[ProgressTask]:  # noqa: ARG002
        """A step that nobody watches."""
        yield _SilentTask()
