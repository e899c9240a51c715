"""Inputs of `Classifier.run`: checked before anything is computed, split into batches."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import starmap
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import numpy as np

from deploykit.core.errors import UsageError
from deploykit.core.sizes import IMAGE_AXES
from deploykit.core.specs import Closing, StepTimes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from deploykit.core.sizes import ShapeProfile
    from deploykit.core.specs import Array, Runner, TensorSpec

    Feeds: TypeAlias = dict[str, Any]
    Run = Callable[[Feeds], Feeds]
    Batch: TypeAlias = "SupportsDLPack | Mapping[str, SupportsDLPack]"


_HOST_DEVICES: Final = (1, 3)
"""kDLCPU and kDLCUDAHost (pinned memory) of dlpack.h; the rest is not for the processor to read."""


class SupportsDLPack(Protocol):
    """An array that other packages can read: numpy's, torch's, cupy's, jax's, ..."""

    @property
    def __dlpack__(self) -> Callable[..., Any]: ...

    @property
    def __dlpack_device__(self) -> Callable[[], tuple[Any, Any]]: ...


def is_on_gpu(array: Any) -> bool:
    """Whether ``array`` lies in memory that the processor cannot read."""
    if isinstance(array, np.ndarray):
        return False
    device = getattr(array, "__dlpack_device__", None)
    if device is None:
        return hasattr(array, "__cuda_array_interface__")
    return int(device()[0]) not in _HOST_DEVICES


def shape_of(array: Any) -> tuple[int, ...]:
    """The shape of an array, wherever it lies.

    Raises:
        UsageError: it does not say.
    """
    shape = getattr(array, "shape", None)
    if shape is None:
        shape = getattr(array, "__cuda_array_interface__", {}).get("shape")
    if shape is None:
        raise UsageError(
            f"this {type(array).__name__} on a GPU does not say its shape\n"
            "expected an array with .shape or __cuda_array_interface__"
        )
    return tuple(int(size) for size in shape)


class Inputs:
    """All inputs of a model; with ``takes_gpu_arrays`` they may lie on the GPU.

    ``profile`` is an engine's: an open height or width must be in it. Without one they must be in
    ``exported``, the sizes that a graph was compared with the original at, where it says them.
    """

    def __init__(
        self,
        specs: Sequence[TensorSpec],
        *,
        takes_gpu_arrays: bool,
        profile: ShapeProfile | None = None,
        exported: ShapeProfile | None = None,
    ) -> None:
        self._inputs = {spec.name: Input(spec, profile, exported) for spec in specs}
        self._only = specs[0].name if len(specs) == 1 else None
        self._takes_gpu_arrays = takes_gpu_arrays

    def feeds(self, batch: Batch) -> tuple[Feeds, int]:
        """What a runner is fed, checked, and how many images that is.

        Raises:
            UsageError: see `Input.host_array`; or an input is missing or unknown, is on a GPU that
                does not run the model, or has another number of images than the others.
        """
        # An array for the only input is the usual case, kept short.
        if isinstance(batch, np.ndarray) or not isinstance(batch, Mapping):
            name = self._require_only()
            array = self._checked(name, batch)
            return {name: array}, shape_of(array)[0]
        return self._named_feeds(batch)

    def _require_only(self) -> str:
        if self._only is None:
            raise UsageError(
                f"one array was given, the model takes {sorted(self._inputs)}\n"
                "give arrays by name: run({name: array, ...})"
            )
        return self._only

    def _named_feeds(self, given: Mapping[str, SupportsDLPack]) -> tuple[Feeds, int]:
        if given.keys() != self._inputs.keys():
            raise UsageError(f"the model was fed {sorted(given)}\nit takes {sorted(self._inputs)}")
        feeds = {name: self._checked(name, array) for name, array in given.items()}
        counts = {shape_of(array)[0] for array in feeds.values()}
        if len(counts) > 1:
            raise UsageError(f"the inputs have batches of {sorted(counts)}\nexpected one size")
        return feeds, counts.pop()

    def any_on_gpu(self, feeds: Feeds) -> bool:
        """Whether any of the arrays that `feeds` gave lies on the GPU."""
        arrays = feeds.values()
        return self._takes_gpu_arrays and not all(isinstance(a, np.ndarray) for a in arrays)

    def _checked(self, name: str, array: Any) -> Any:
        if not is_on_gpu(array):
            return self._inputs[name].host_array(array)
        if not self._takes_gpu_arrays:
            raise UsageError(
                f"input {name!r} lies on a GPU, the model takes arrays in main memory\n"
                'copy it there (of torch: batch.cpu()), or load with device="cuda"'
            )
        self._inputs[name].require_fitting(array)
        return array


class Input:
    """One input of a model, and the judge of what is fed to it; sizes are as in `Inputs`."""

    def __init__(
        self,
        spec: TensorSpec,
        profile: ShapeProfile | None = None,
        exported: ShapeProfile | None = None,
    ) -> None:
        self.name = spec.name
        self._dtype = np.dtype(spec.dtype)
        self._image = tuple(spec.shape[1:])
        open_axes = [axis for axis, dim in enumerate(spec.shape) if axis and isinstance(dim, str)]
        self._is_open = bool(open_axes)
        self._is_engine = profile is not None
        sizes = profile or exported
        ranges = {} if sizes is None else sizes.ranges
        self._ranges = {axis: ranges[axis] for axis in open_axes if axis in ranges}
        self._may_be_nan = self._dtype.kind == "f"

    def host_array(self, given: SupportsDLPack) -> NDArray[Any]:
        """``given`` as a C-contiguous array of the model's type, without a copy where possible.

        Raises:
            UsageError: no array in main memory, or one of another type, shape or layout, or of a
                size that the engine does not take; no image at all; NaN or infinite values.
        """
        array = given if isinstance(given, np.ndarray) else self._from_dlpack(given)
        if array.dtype != self._dtype or not self._fits(array.shape):
            raise self._misfit(array.dtype, array.shape)
        if self._ranges:
            self._require_within(array.dtype, array.shape)
        array = np.ascontiguousarray(array)
        if self._may_be_nan:
            self._require_finite(array)
        return array

    def require_fitting(self, given: Any) -> None:
        """Compare the shape of an array on the GPU; its type is the runner's to read.

        Raises:
            UsageError: another shape than the model takes.
        """
        shape = shape_of(given)
        dtype = getattr(given, "dtype", "an array")
        if not self._fits(shape):
            raise self._misfit(dtype, shape)
        self._require_within(dtype, shape)

    def _fits(self, shape: tuple[int, ...]) -> bool:
        return self._is_image(shape[1:]) and shape[:1] not in ((), (0,))

    def _is_image(self, shape: tuple[int, ...]) -> bool:
        """Whether ``shape`` is one image's; a name in the model's stands for any size."""
        if not self._is_open:
            return shape == self._image
        pairs = zip(shape, self._image, strict=False)
        fits = (got > 0 if isinstance(has, str) else got == has for got, has in pairs)
        return len(shape) == len(self._image) and all(fits)

    def _require_within(self, dtype: Any, shape: tuple[int, ...]) -> None:
        for axis, sizes in self._ranges.items():
            if shape[axis] not in sizes:
                label = IMAGE_AXES[axis]
                whose, more = (
                    ("engine", "build an engine for more sizes: deploykit build BUNDLE")
                    if self._is_engine
                    else ("bundle", "export it for more sizes, which it is compared at then: with")
                )
                raise UsageError(
                    f"input {self.name!r} was given as {dtype} {shape}: the {label} {shape[axis]} "
                    f"is not among the {whose}'s {sizes.min} to {sizes.max}\n"
                    f"resize or pad the images; or {more} --{label} MIN,OPT,MAX"
                )

    def _from_dlpack(self, given: Any) -> NDArray[Any]:
        if not hasattr(given, "__dlpack__"):
            raise UsageError(
                f"input {self.name!r} was given as {type(given).__name__}\n"
                f"expected a numpy array or another with DLPack, {self._expected}\n"
                "files and photographs are for predict()"
            )
        try:
            return np.from_dlpack(given)
        # Each package raises its own: torch for tensors that require gradients or are bfloat16 ...
        except Exception as error:
            raise UsageError(
                f"input {self.name!r}: this {type(given).__name__} cannot be read: {error}\n"
                f"expected {self._expected}"
            ) from error

    def _require_finite(self, array: NDArray[Any]) -> None:
        # An infinite product may be an overflow of finite values; vdot says nothing of it.
        if isfinite(np.vdot(array, array)):
            return
        bad = ~np.isfinite(array.reshape(-1))
        if bad.any():
            image = int(bad.argmax()) // (array.size // len(array))
            raise UsageError(
                f"input {self.name!r}: {np.count_nonzero(bad)} of {array.size} values are NaN or "
                f"infinite, the first in image {image}\n"
                "look at what prepares the batch; a standard deviation of 0 does this"
            )

    @property
    def _expected(self) -> str:
        named = (
            IMAGE_AXES.get(axis, dim) if isinstance(dim, str) else dim
            for axis, dim in enumerate(self._image, start=1)
        )
        return f"{self._dtype} ({', '.join(map(str, ('N', *named)))})"

    def _misfit(self, dtype: Any, shape: tuple[int, ...]) -> UsageError:
        takes_bytes = self._dtype == np.uint8
        remedy = self._remedy_for_bytes(shape) if takes_bytes else self._remedy(dtype, shape)
        return UsageError(
            f"input {self.name!r} was given as {dtype} {shape}, the model takes {self._expected}\n"
            f"{remedy}"
        )

    def _remedy(self, dtype: Any, shape: tuple[int, ...]) -> str:
        found = (
            (
                str(dtype) == "uint8",
                "pixels are for predict(), which preprocesses them: predict(list(images))",
            ),
            (self._is_image(shape), "one image lacks the batch dimension: batch[None]"),
            (
                len(shape) == len(self._image) + 1 and not shape[0],
                "the batch is empty: give at least one image",
            ),
            (
                self._is_image(_channels_first(shape)),
                "its layout is (N, H, W, C), turn it: batch.transpose(0, 3, 1, 2)",
            ),
            (self._is_image(_with_channel(shape)), _NO_CHANNEL.format("[:, None]")),
            (
                not self._is_image(shape[1:]),
                "predict() resizes, crops and normalises images as the model needs it",
            ),
        )
        other = f"convert it: batch.astype(numpy.{self._dtype})"
        return next((remedy for fits, remedy in found if fits), other)

    def _remedy_for_bytes(self, shape: tuple[int, ...]) -> str:
        """What to do about a batch for a graph that normalises itself."""
        found = (
            (self._is_image(shape), "one image lacks the batch dimension: batch[None]"),
            (not shape[:1] or not shape[0], "the batch is empty: give at least one image"),
            (
                self._is_image(_channels_first(shape)),
                "its layout is (N, H, W, C), turn it: batch.transpose(0, 3, 1, 2)",
            ),
            (
                self._is_image(_channels_last(shape)),
                "its layout is (N, C, H, W), turn it: batch.transpose(0, 2, 3, 1)",
            ),
            (self._is_image(_with_channel(shape)), _NO_CHANNEL.format("[:, None]")),
            (self._is_image((*shape[1:], 1)), _NO_CHANNEL.format("[..., None]")),
            (
                self._is_image(shape[1:]),
                "the graph takes pixels of 0 to 255, and normalises them itself",
            ),
        )
        other = "predict() resizes and crops images as the model needs it"
        return next((remedy for fits, remedy in found if fits), other)


_NO_CHANNEL: Final = "grey images (N, H, W) lack the axis of the channel: batch{}"


def _with_channel(shape: tuple[int, ...]) -> tuple[int, ...]:
    """One image (1, H, W) of a batch (N, H, W); of other shapes none."""
    return (1, *shape[1:]) if len(shape) == 3 else (0,)  # noqa: PLR2004 - N, H, W


def _channels_first(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[-1:], *shape[1:-1])


def _channels_last(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[2:], *shape[1:2])


_PREFERRED_ON_CPU: Final = 8
"""Images per run of a folder: onnxruntime on a CPU gains nothing from more, and needs memory."""


class BatchSplitWarning(UserWarning):
    """A batch was larger than the engine takes, and was run in several parts."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Smallest, preferred and largest batch of one run; ``largest`` ``None`` is any.

    ``ranges`` are the smallest and largest of each profile of an engine that has several: between
    them there may be batches that it does not take.
    """

    smallest: int = 1
    preferred: int = _PREFERRED_ON_CPU
    largest: int | None = None
    ranges: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of_engine(cls, profile: ShapeProfile, image: tuple[int, int] | None = None) -> BatchLimits:
        """What an engine's profile says; of several, those for an ``image`` of height and width."""
        sizes = {} if image is None else dict(zip(IMAGE_AXES, image, strict=True))
        taken = [each for each in profile.profiles if each.takes(sizes)] or list(profile.profiles)
        ranges = tuple(sorted({(each.min_batch, each.max_batch) for each in taken}))
        smallest, largest = ranges[0][0], max(each[1] for each in ranges)
        preferred = max(each.opt_batch for each in taken)
        return cls(smallest, preferred, largest, ranges if len(ranges) > 1 else ())

    @classmethod
    def of_graph(cls, inputs: Sequence[TensorSpec]) -> BatchLimits:
        """Any batch, unless the graph fixes one."""
        batch = inputs[0].shape[0]
        return cls() if isinstance(batch, str) else cls(batch, batch, batch)

    def too_many(self, count: int) -> bool:
        """Whether ``count`` images need more than one run."""
        return self.largest is not None and count > self.largest

    def in_one_run(self, count: int) -> bool:
        """Whether ``count`` images are run at once, neither split nor filled up."""
        return not self.too_many(count) and self.filled_up(count) == count

    def filled_up(self, count: int) -> int:
        """The least batch for ``count`` images, which are not `too_many`.

        >>> limits = BatchLimits(1, 8, 32, ranges=((1, 1), (8, 32)))
        >>> [limits.filled_up(count) for count in (1, 2, 9)]
        [1, 8, 9]
        """
        having = [max(count, least) for least, most in self.ranges if count <= most]
        return min(having, default=max(count, self.smallest))

    @property
    def words(self) -> str:
        """The batches of one run, "1 to 32" or "1, 8 to 32"."""
        ranges = self.ranges or ((self.smallest, self.largest),)
        return ", ".join(starmap(_to, ranges))

    def require_one_run(self, count: int, why: str) -> None:
        """Refuse what cannot be split or filled up, because of ``why``.

        Raises:
            UsageError: ``count`` images are too few or too many for one run.
        """
        if not self.in_one_run(count):
            raise UsageError(
                f"a batch of {count} with {why}: the engine takes {self.words} at once\n"
                "give it such a batch, or one in main memory, which is split or filled up"
            )

    def parts(self, feeds: Feeds, count: int) -> Iterator[tuple[Feeds, int]]:
        """Feeds for one run each, with how many of its images are not padding.

        All but the last are as large as possible. What a part lacks to the smallest batch is
        filled with its last image: real values, so that nothing overflows that would not anyway.
        """
        step = self.largest or count
        for start in range(0, count, step):
            real = min(step, count - start)
            part = {name: array[start : start + real] for name, array in feeds.items()}
            missing = self.filled_up(real) - real
            yield {name: _padded(array, missing) for name, array in part.items()}, real

    def run(self, run: Run, feeds: Feeds, count: int, output: str) -> NDArray[np.float32]:
        """One output for all of ``feeds``, in as many runs as it takes."""
        if self.in_one_run(count):
            found = run(feeds)[output]
        else:
            found = np.concatenate([run(part)[output][:n] for part, n in self.parts(feeds, count)])
        return np.asarray(found, np.float32)

    def run_all(
        self, run: Run, feeds: Feeds, count: int, names: Sequence[str] = ()
    ) -> dict[str, NDArray[Any]]:
        """As `run`, all outputs by name; or the ``names`` alone.

        Raises:
            UsageError: the batch needs several runs, and an output has no entry per image.
        """
        if self.in_one_run(count):
            return dict(run(feeds))
        parts = []
        for part, real in self.parts(feeds, count):
            fed = len(next(iter(part.values())))
            found = run(part)
            found = {name: found[name] for name in names or found}
            odd = [name for name, value in found.items() if value.shape[:1] != (fed,)]
            if odd:
                raise UsageError(
                    f"the output {odd[0]!r} {found[odd[0]].shape} has no entry per image, and a "
                    f"batch of {count} is run in parts or filled up\n"
                    f"give it {self.words} images"
                )
            parts.append({name: value[:real] for name, value in found.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _to(least: int, most: int | None) -> str:
    return str(least) if least == most else f"{least} to {most or 'any number of'}"


class AnyBatchRunner(Closing):
    """Runs a batch of any size on a runner of some: in parts, or filled up, as its limits say.

    Where it takes several runs, ``names`` are the outputs that are wanted; all if not given. It is
    closed with its runner.
    """

    def __init__(self, runner: Runner, limits: BatchLimits, names: Sequence[str] = ()) -> None:
        self.inputs = runner.inputs
        self.outputs = runner.outputs
        self._runner = runner
        self._limits = limits
        self._names = names

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name for one batch of inputs by name.

        Raises:
            UsageError: the batch needs several runs, and an output has no entry per image.
        """
        count = len(feeds[self.inputs[0].name])
        return self._limits.run_all(self._runner.run, dict(feeds), count, self._names)

    def run_timed(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], StepTimes]:
        """As ``run``, with the time of the whole call."""
        start = time.perf_counter()
        outputs = self.run(feeds)
        return outputs, StepTimes(wall_ms=(time.perf_counter() - start) * 1e3)

    def close(self) -> None:
        """Close the runner below."""
        self._runner.close()


def _padded(array: NDArray[Any], missing: int) -> NDArray[Any]:
    if not missing:
        return array
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])
