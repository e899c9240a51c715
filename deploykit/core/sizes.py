"""Sizes of open dimensions: the smallest, the preferred and the largest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log, prod
from typing import TYPE_CHECKING, Any, Final, Self

from deploykit.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

BATCH_AXIS: Final = 0
IMAGE_AXES: Final[Mapping[int, str]] = {2: "height", 3: "width"}
"""Of images (N, C, H, W): the dimensions beside the batch that may be open."""

IMAGE_DIMS: Final = 4
"""Of images (N, C, H, W)."""

RGB: Final = 3
"""Channels of an image in colours, in either order."""

GREY: Final = 1
"""Channels of a grey image."""

CHANNELS_FIRST: Final = (0, 3, 1, 2)
"""Order in which the axes of (N, H, W, C) make (N, C, H, W)."""

CHANNELS_LAST: Final = (0, 2, 3, 1)
"""Order in which the axes of (N, C, H, W) make (N, H, W, C)."""

AXIS_NAMES: Final[Mapping[int, str]] = {BATCH_AXIS: "batch", **IMAGE_AXES}

_COUNT: Final = 3


def are_images(shape: Sequence[int | str | None]) -> bool:
    """Whether a tensor of ``shape`` can be a batch of images, in colours or grey.

    >>> are_images(("batch", 3, 224, 224)), are_images((1, 224, 224, 3)), are_images((1, 1, 28, 28))
    (True, False, True)
    """
    return len(shape) == IMAGE_DIMS and (shape[1] == RGB or _is_grey(shape, 1))


def are_channels_last(shape: Sequence[int | str | None]) -> bool:
    """Whether a tensor of ``shape`` can be a batch of images (N, H, W, C), and of no others.

    >>> are_channels_last((1, 224, 224, 3)), are_channels_last(("batch", 3, 224, 224))
    (True, False)
    """
    if len(shape) != IMAGE_DIMS or are_images(shape):
        return False
    return shape[-1] == RGB or _is_grey(shape, IMAGE_DIMS - 1)


def _is_grey(shape: Sequence[int | str | None], axis: int) -> bool:
    """Whether ``axis`` holds the one channel of grey images, and no other can hold channels.

    An image of a single row or column is none: masks of tokens are shaped so.
    """
    sides = [dim for at, dim in enumerate(shape) if at not in (BATCH_AXIS, axis)]
    other = shape[1] if axis != 1 else shape[-1]
    return shape[axis] == GREY and GREY not in sides and other != RGB


def image_among(shapes: Mapping[str, Sequence[int | str | None]]) -> str | None:
    """Which of a graph's inputs, by name, is the images: the first in colours, else in grey.

    A grey one beside other inputs that is called a mask is none.

    >>> image_among({"x": (1, 1, 8, 8), "image": ("batch", 3, 224, 224)})
    'image'
    >>> image_among({"mask": (1, 1, 16, 16), "x": (1, 1, 8, 8)})
    'x'
    """
    for channels in (RGB, GREY):
        for is_laid_out, axis in ((are_images, 1), (are_channels_last, -1)):
            for name, shape in shapes.items():
                # Masks of pixels and of attention are shaped as grey images are.
                is_mask = channels == GREY and len(shapes) > 1 and "mask" in name.lower()
                if is_laid_out(shape) and shape[axis] == channels and not is_mask:
                    return name
    return None


def is_any_images(shape: Sequence[int | str | None]) -> bool:
    """Whether a tensor of ``shape`` can be a batch of images, wherever its channels are.

    >>> is_any_images(("batch", 224, 224, 3)), is_any_images(("batch", 1000))
    (True, False)
    """
    return are_images(shape) or are_channels_last(shape)


@dataclass(frozen=True, slots=True)
class SizeRange:
    """Smallest, preferred and largest height or width, in pixels.

    >>> SizeRange.parse("160,224,320", "--height")
    SizeRange(min=160, opt=224, max=320)
    >>> str(SizeRange.parse("224", "--height")), 200 in SizeRange(160, 224, 320)
    ('224', True)

    Raises:
        UsageError: not in ascending order, or below 1.
    """

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise UsageError(
                f"the sizes {self.min},{self.opt},{self.max} are not in order\n"
                "expected 1 <= MIN <= OPT <= MAX, for example 160,224,320"
            )

    def __contains__(self, size: int) -> bool:
        return self.min <= size <= self.max

    def __str__(self) -> str:
        """As an option of the command line has it."""
        return str(self.opt) if self.is_fixed else f"{self.min},{self.opt},{self.max}"

    @property
    def is_fixed(self) -> bool:
        """Whether there is one size only."""
        return self.min == self.max

    @classmethod
    def parse(cls, text: str, option: str) -> Self:
        """Read ``MIN,OPT,MAX``, or a single number; ``option`` is for the message.

        Raises:
            UsageError: not one or three positive whole numbers in ascending order.
        """
        return cls(*_whole_numbers(text, option, f"{option} 160,224,320"))


@dataclass(frozen=True, slots=True)
class ShapeProfile:
    """What an engine accepts: smallest, preferred and largest batch, height and width.

    ``height`` and ``width`` are ``None`` where the model fixes them. An engine of several
    optimisation profiles has them as ``parts``, in its own order; the rest encloses them all, with
    the preferred sizes of the first, and not each shape between belongs to one. See `of`.

    >>> ShapeProfile.parse("1,8,32").opt_batch
    8
    >>> ShapeProfile(1, 8, 32, height=SizeRange(160, 224, 320)).largest
    {0: 32, 2: 320}

    Raises:
        UsageError: sizes that are not in order, or parts that they do not enclose.
    """

    min_batch: int = 1
    opt_batch: int = 8
    max_batch: int = 32
    height: SizeRange | None = None
    width: SizeRange | None = None
    parts: tuple[ShapeProfile, ...] = ()

    @property
    def has_image_sizes(self) -> bool:
        """Whether a height or a width is given."""
        return self.height is not None or self.width is not None

    def __post_init__(self) -> None:
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch:
            got = f"{self.min_batch},{self.opt_batch},{self.max_batch}"
            raise UsageError(
                f"batch profile {got} is not in order\n"
                "expected 1 <= MIN <= OPT <= MAX, for example --batch 1,8,32"
            )
        if self.parts:
            self._require_parts()

    def _require_parts(self) -> None:
        whole = replace(self, parts=())
        if any(each.parts for each in self.parts) or whole != _enclosing(self.parts):
            raise UsageError(
                f"the profile {whole} does not enclose its parts {'; '.join(map(str, self.parts))}"
            )

    @property
    def profiles(self) -> tuple[ShapeProfile, ...]:
        """The optimisation profiles of the engine, each of one part."""
        return self.parts or (self,)

    @classmethod
    def of(cls, profiles: Sequence[ShapeProfile]) -> ShapeProfile:
        """What an engine of these optimisation profiles accepts; each counts once.

        >>> found = ShapeProfile.of([ShapeProfile(1, 1, 1), ShapeProfile(8, 16, 32)])
        >>> str(found), found.max_batch, found.narrowest({0: 16}), found.narrowest({0: 4})
        ('batch 1; batch 8,16,32', 32, 1, None)

        Raises:
            UsageError: some say the height or width and some do not, or there is none at all.
        """
        parts = tuple(dict.fromkeys(part for each in profiles for part in each.profiles))
        if not parts:
            raise UsageError("an engine needs at least one profile")
        return parts[0] if len(parts) == 1 else replace(_enclosing(parts), parts=parts)

    def narrowest(self, *shapes: Mapping[int, int]) -> int | None:
        """The place among `profiles` of the one for these shapes (sizes by axis), if there is.

        Of several it is the one with the fewest shapes in it, then the one that is tuned for the
        nearest to the first, by the logarithm of the ratio; then the first.
        """
        found = [
            (each.distance(shapes[0]), place)
            for place, each in enumerate(self.profiles)
            if all(map(each.takes, shapes))
        ]
        return min(found)[1] if found else None

    def takes(self, sizes: Mapping[int, int]) -> bool:
        """Whether one profile has a shape of ``sizes`` (by axis), fixed axes apart."""
        return any(
            all(sizes[axis] in each for axis, each in profile.ranges.items() if axis in sizes)
            for profile in self.profiles
        )

    def distance(self, sizes: Mapping[int, int]) -> tuple[int, float]:
        """How many shapes the profile has, and how far it is tuned from one of them."""
        ranges = self.ranges
        far = sum(abs(log(sizes[axis] / ranges[axis].opt)) for axis in ranges.keys() & sizes.keys())
        return prod(each.max - each.min + 1 for each in ranges.values()), far

    def __str__(self) -> str:
        if self.parts:
            return "; ".join(map(str, self.parts))
        ranges = self.ranges.items()
        return ", ".join(f"{AXIS_NAMES[axis]} {sizes}" for axis, sizes in ranges)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``MIN,OPT,MAX`` of the batch, or a single number for a fixed one.

        Raises:
            UsageError: not one or three positive whole numbers in ascending order.
        """
        return cls(*_whole_numbers(text, "the batch profile", "--batch 1,8,32"))

    @property
    def ranges(self) -> dict[int, SizeRange]:
        """By axis of images (N, C, H, W), for those that may be open."""
        batch = SizeRange(self.min_batch, self.opt_batch, self.max_batch)
        known = {BATCH_AXIS: batch, 2: self.height, 3: self.width}
        return {axis: sizes for axis, sizes in known.items() if sizes is not None}

    @property
    def smallest(self) -> dict[int, int]:
        """The least size by axis, for `TensorSpec.with_sizes`."""
        return {axis: sizes.min for axis, sizes in self.ranges.items()}

    @property
    def preferred(self) -> dict[int, int]:
        """The size by axis that the engine is tuned for."""
        return {axis: sizes.opt for axis, sizes in self.ranges.items()}

    @property
    def largest(self) -> dict[int, int]:
        """The greatest size by axis."""
        return {axis: sizes.max for axis, sizes in self.ranges.items()}


def shape_text(shape: Iterable[int | str | None]) -> str:
    """A shape as a message shows it: names without quotes, ``?`` for what nobody knows.

    >>> shape_text(("N", 3, None, "?")), shape_text([8])
    ('(N, 3, ?, ?)', '(8,)')
    """
    dims = ["?" if dim is None else str(dim) for dim in shape]
    return f"({dims[0]},)" if len(dims) == 1 else f"({', '.join(dims)})"


def _enclosing(parts: Sequence[ShapeProfile]) -> ShapeProfile:
    """The smallest and largest of all sizes, with the preferred ones of the first part."""
    first = parts[0]
    found: dict[int, SizeRange] = {}
    for axis in AXIS_NAMES:
        ranges = [each.ranges[axis] for each in parts if axis in each.ranges]
        if ranges and len(ranges) < len(parts):
            raise UsageError(
                f"{len(ranges)} of {len(parts)} profiles say the {AXIS_NAMES[axis]}\n"
                "say it for each, or for none"
            )
        if ranges:
            smallest, largest = min(r.min for r in ranges), max(r.max for r in ranges)
            found[axis] = SizeRange(smallest, first.ranges[axis].opt, largest)
    batch = found[BATCH_AXIS]
    height, width = (found.get(axis) for axis in IMAGE_AXES)
    return ShapeProfile(batch.min, batch.opt, batch.max, height, width)


def require_sizes(name: str, shape: Sequence[int | str], asked: ShapeProfile) -> None:
    """Compare the height and width that were asked for with images ``shape`` (N, C, H, W).

    ``name`` is the model's, for the message; an open dimension is a name or -1.

    Raises:
        UsageError: one is open and no sizes are given for it, or the other way round.
    """
    needed = []
    for axis, label in IMAGE_AXES.items():
        given, size = asked.ranges.get(axis), shape[axis] if axis < len(shape) else None
        if given is None and _is_open(size):
            needed.append(label)
        if given is not None and not _is_open(size):
            has = f"it has no {label}" if size is None else f"its {label} is fixed to {size}"
            raise UsageError(
                f"--{label} {given} for {name}: {has}\n"
                f"leave --{label} out; it is for .onnx files whose {label} is open"
            )
    if needed:
        options = " ".join(f"--{label} MIN,OPT,MAX" for label in needed)
        example = " ".join(f"--{label} 160,224,320" for label in needed)
        raise UsageError(
            f"{name} takes images whose {' and '.join(needed)} may be anything\n"
            f"its sizes must be known here: {options} (or one number each)\n"
            f"for example {example}"
        )


def _is_open(size: int | str | None) -> bool:
    return isinstance(size, str) or (size is not None and size < 1)


def _whole_numbers(text: str, name: str, example: str) -> tuple[int, int, int]:
    """The numbers of ``MIN,OPT,MAX``, or three times a single one."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, _COUNT):
        raise UsageError(
            f"cannot read {name} {text!r}\n"
            f"expected MIN,OPT,MAX or one number, for example {example}"
        )
    smallest, preferred, largest = numbers * _COUNT if len(numbers) == 1 else numbers
    return smallest, preferred, largest


def filled(shape: Sequence[int | str], sizes: Mapping[int, int]) -> tuple[int, ...] | None:
    """``shape`` with ``sizes`` (by axis) for its names and -1; ``None`` where one is not given.

    >>> filled(("batch", 3, "height", 8), {0: 2, 2: 6, 3: 6})
    (2, 3, 6, 8)
    """
    found: list[int] = []
    for axis, dim in enumerate(shape):
        size: Any = sizes.get(axis) if _is_open(dim) else dim
        if size is None:
            return None
        found.append(size)
    return tuple(found)
