"""Options for a definition: what it does not state itself, or what is to differ."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Final

from deploykit.core.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from deploykit.core.specs import Preprocessing

    Channels = tuple[float, ...]
    """A number for each channel of the network: three, or one of a grey image."""


COLOUR_ORDERS: Final = ("rgb", "bgr")
GREY_ORDER: Final = "grey"
CHANNEL_ORDERS: Final = (*COLOUR_ORDERS, GREY_ORDER)

LARGEST_OF_UNIT: Final = 1.5
"""Largest mean or deviation of pixels of 0 to 1: the mean is at most 1, and 1 divides by nothing.

What is larger is on the scale of 0 to 255, as mmpretrain, mmdetection and Caffe write it.
"""


def of_bytes(*each: Channels) -> bool:
    """Whether one of these means and deviations is on the scale of pixels of 0 to 255.

    >>> of_bytes((123.675, 116.28, 103.53), (1, 1, 1)), of_bytes((0.5, 0.5, 0.5), (1, 1, 1))
    (True, False)
    """
    return any(abs(value) > LARGEST_OF_UNIT for channels in each for value in channels)


def to_unit(values: Channels) -> Channels:
    """The same mean or deviation for pixels of 0 to 1.

    >>> to_unit((127.5, 255, 51))
    (0.5, 1.0, 0.2)
    """
    # Ten digits are more than FP32 has: 123.675 becomes 0.485, not 0.48500000000000004.
    return tuple(float(f"{value / 255:.10g}") for value in values)


def channels_text(values: Channels) -> str:
    """As the options take them.

    >>> channels_text((0.485, 1.0, 1 / 255))
    '0.485,1,0.00392157'
    """
    return ",".join(f"{value:.6g}" for value in values)


@dataclass(frozen=True, slots=True)
class PreprocessingChoices:
    """What the user says of the preprocessing; ``None`` leaves it as it is known or assumed.

    ``mean`` and ``std`` are in the order of the network's channels, of pixels of 0 to 1; where
    both are of pixels of 0 to 255 they are converted by `applied_to`, and `conversions` says so.
    One number is that of every channel.

    Raises:
        UnknownNameError: no such channel order.
        UsageError: of ``mean`` and ``std`` only one is of pixels of 0 to 255, or they fit neither
            scale.
    """

    resize: int | tuple[int, int] | None = None
    interpolation: str | None = None
    mean: Channels | None = None
    std: Channels | None = None
    channel_order: str | None = None

    def __post_init__(self) -> None:
        if self.channel_order not in (None, *CHANNEL_ORDERS):
            known = ", ".join(CHANNEL_ORDERS)
            raise UnknownNameError("channel order", str(self.channel_order), CHANNEL_ORDERS, known)
        if self._is_of_bytes:
            _require_one_scale(self.mean, self.std)

    @property
    def _is_of_bytes(self) -> bool:
        return of_bytes(*(each for each in (self.mean, self.std) if each is not None))

    def applied_to(self, preprocessing: Preprocessing) -> Preprocessing:
        """``preprocessing`` with the choices in it.

        A mean and a deviation that are known belong to colours: with another channel order they
        change places, those that are chosen do not. How many channels there are is the network's:
        ``preprocessing`` knows it.

        >>> from deploykit.core.specs import Preprocessing
        >>> PreprocessingChoices(resize=256).applied_to(Preprocessing(crop=(224, 224))).resize
        256
        >>> PreprocessingChoices(channel_order="bgr").applied_to(Preprocessing((224, 224))).mean
        (0.406, 0.456, 0.485)

        Raises:
            UsageError: the channel order, mean or deviation is for another number of channels.
        """
        self._require_channels(preprocessing)
        chosen = {name: value for name, value in asdict(self).items() if value is not None}
        if self._is_of_bytes:
            chosen |= {name: to_unit(chosen[name]) for name in ("mean", "std")}
        for name in {"mean", "std"} & chosen.keys():
            if len(chosen[name]) == 1:
                chosen[name] *= preprocessing.channels
        if self.channel_order not in (None, preprocessing.channel_order):
            mean, std = preprocessing.mean[::-1], preprocessing.std[::-1]
            preprocessing = replace(preprocessing, mean=mean, std=std)
        return replace(preprocessing, **chosen)

    def _require_channels(self, preprocessing: Preprocessing) -> None:
        count = preprocessing.channels
        orders = COLOUR_ORDERS if count > 1 else (GREY_ORDER,)
        is_grey = "1 channel, grey" if count == 1 else f"{count} channels, in colours"
        if self.channel_order not in (None, *orders):
            raise UsageError(
                f"--channel-order {self.channel_order}, and the network takes images of {is_grey}\n"
                f"possible: {' or '.join(orders)}; left out it is {orders[0]}"
            )
        for name, given in (("mean", self.mean), ("std", self.std)):
            if given is not None and len(given) not in (1, count):
                raise UsageError(
                    f"--{name} {channels_text(given)} is of {len(given)} channels, and the network "
                    f"takes images of {is_grey}\n"
                    f"give one number, as --{name} {'0.1307' if name == 'mean' else '0.3081'}"
                )

    def conversions(self) -> list[str]:
        """What was made of a mean and a deviation of pixels of 0 to 255, in words.

        >>> PreprocessingChoices(mean=(127.5, 127.5, 127.5), std=(255, 255, 255)).conversions()
        ['mean 127.5,127.5,127.5 and std 255,255,255 are of pixels of 0 to 255: \
taken as 0.5,0.5,0.5 and 1,1,1 of pixels of 0 to 1']
        """
        if self.mean is None or self.std is None or not self._is_of_bytes:
            return []
        given = f"mean {channels_text(self.mean)} and std {channels_text(self.std)}"
        taken = f"{channels_text(to_unit(self.mean))} and {channels_text(to_unit(self.std))}"
        return [f"{given} are of pixels of 0 to 255: taken as {taken} of pixels of 0 to 1"]

    def assumptions(self, preprocessing: Preprocessing) -> list[str]:
        """What of ``preprocessing`` was neither chosen nor known from the model, in words.

        >>> from deploykit.core.specs import Preprocessing
        >>> PreprocessingChoices(256, "bilinear", (0, 0, 0), (1, 1, 1), "rgb").assumptions(
        ...     Preprocessing((224, 224))
        ... )
        []
        """
        assumed = [f.name for f in fields(self) if getattr(self, f.name) is None]
        if preprocessing.channel_order == GREY_ORDER:  # the network shows it
            assumed = [name for name in assumed if name != "channel_order"]
        if not assumed:
            return []
        said = ", ".join(f"{_words(name)} {_shown(preprocessing, name)}" for name in assumed)
        options = " ".join(f"--{name.replace('_', '-')}" for name in assumed)
        return [f"preprocessing is assumed: {said}; as in training? {options}"]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _shown(preprocessing: Preprocessing, name: str) -> Any:
    value = getattr(preprocessing, name)
    if name == "resize" and isinstance(value, tuple):
        return "x".join(map(str, value))  # as the option takes it
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value


def _require_one_scale(mean: Channels | None, std: Channels | None) -> None:
    """Refuse a pair of which nobody can say what is on the scale of 0 to 255."""
    # Caffe subtracts a mean of 0 to 255 and divides by nothing; others subtract nothing.
    whole = (
        mean is not None
        and std is not None
        and (of_bytes(mean) or not any(mean))
        and (of_bytes(std) or set(std) == {1})
    )
    if not whole:
        raise _other_scale({"mean": mean, "std": std})
    if mean and std and of_bytes(to_unit(mean), to_unit(std)):
        raise UsageError(
            f"mean {channels_text(mean)}, std {channels_text(std)}: too large even for 0 to 255\n"
            "expected values as 0.485,0.456,0.406, or as 123.675,116.28,103.53"
        )


def _other_scale(pair: Mapping[str, Channels | None]) -> UsageError:
    """Only one of mean and deviation is on the scale of 0 to 255, or only one was given."""
    given = {name: value for name, value in pair.items() if value is not None}
    told = ", ".join(f"{name} {channels_text(value)}" for name, value in given.items())
    unit = " ".join(
        f"--{name} {channels_text(to_unit(value) if of_bytes(value) else value)}"
        for name, value in given.items()
    )
    if len(given) == 1:
        (missing,) = pair.keys() - given.keys()
        return UsageError(
            f"{told} is of pixels of 0 to 255, and no {missing} is given\n"
            f"give --{missing} too, of the same pixels; of pixels of 0 to 1 it is {unit}"
        )
    return UsageError(
        f"{told}: one is of pixels of 0 to 255, the other of 0 to 1\n"
        f"give both of the same; of pixels of 0 to 1 they are {unit}"
    )


@dataclass(frozen=True, slots=True)
class DefinitionChoices:
    """What the user says of a definition; ``None`` is what it was published with.

    ``image_size`` is height and width of the input in pixels, ``arguments`` are the keyword
    arguments of a factory in a Python file. ``side_inputs`` is for a graph: an ``.npz`` with values
    of what it takes beside images. ``head`` says what the outputs mean, ``head_output`` which of a
    graph's outputs is meant. ``open_size`` is height and width of a file that leaves them open.
    """

    num_classes: int | None = None
    image_size: int | None = None
    arguments: Mapping[str, Any] | None = None
    preprocessing: PreprocessingChoices = field(default_factory=PreprocessingChoices)
    side_inputs: Path | None = None
    head: str | None = None
    head_output: str | None = None
    open_size: tuple[int, int] | None = None

    @property
    def size_of_file(self) -> tuple[int, int] | None:
        """Height and width of a file that leaves them open, by whichever option they are given.

        Raises:
            UsageError: both are given.
        """
        if self.image_size is None:
            return self.open_size
        if self.open_size is not None:
            raise UsageError(
                "--input-size and --height with --width say the same\n"
                "give --height and --width for an .onnx, --input-size for a definition"
            )
        return self.image_size, self.image_size
