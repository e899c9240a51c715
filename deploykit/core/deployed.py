"""The form that a network is deployed in: what its graph takes, and what it ends in.

``--input uint8`` puts conversion, layout and normalisation into the graph, ``--result`` the end of
its head. Both are choices of an export; neither changes what the network computes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Self

from deploykit.core.choices import CHANNEL_ORDERS, COLOUR_ORDERS, GREY_ORDER
from deploykit.core.errors import UnknownNameError, UsageError
from deploykit.core.specs import PixelInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.core.choices import PreprocessingChoices
    from deploykit.core.sizes import ShapeProfile
    from deploykit.core.specs import Preprocessing

FLOATS: Final = "float32"
BYTES: Final = "uint8"
INPUTS: Final = (FLOATS, BYTES)
LAYOUTS: Final = ("nhwc", "nchw")

PROBABILITIES: Final = "probabilities"
LOG_PROBABILITIES: Final = "log_probabilities"
SCORES: Final = "scores"
"""What a graph of its own ranks classes by, where that is no probability."""
CLASSES: Final = "classes"
TOP_K: Final = "topk"
_DIGITS: Final = 10
"""Of a number of classes: more than any network has."""

RESULTS: Final = f"{PROBABILITIES}, {CLASSES} or {TOP_K}:K, as {TOP_K}:5"


@dataclass(frozen=True, slots=True)
class Result:
    """What a graph shall end in; ``count`` is how many classes ``topk`` gives."""

    kind: str
    count: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``probabilities``, ``classes`` or ``topk:K``.

        >>> Result.parse("topk:5")
        Result(kind='topk', count=5)
        >>> str(Result.parse("classes"))
        'classes'

        Raises:
            UsageError: it is none of these.
        """
        kind, mark, count = text.strip().lower().partition(":")
        if kind in (PROBABILITIES, CLASSES) and not mark:
            return cls(kind)
        is_number = count.isascii() and count.isdecimal() and len(count) < _DIGITS
        if kind == TOP_K and is_number and int(count) > 0:
            return cls(kind, int(count))
        raise UsageError(f"--result is {text!r}\npossible: {RESULTS}")

    def __str__(self) -> str:
        """As the option has it."""
        return self.kind if self.count is None else f"{self.kind}:{self.count}"


@dataclass(frozen=True, slots=True)
class DeployedForm:
    """What is put around a network; by default nothing, and it takes prepared images."""

    pixels: PixelInput | None = None
    result: Result | None = None
    order: str | None = None
    """Of the bytes, as it was asked for; ``None`` is "rgb", or "grey" for a grey network."""

    @classmethod
    def of(
        cls,
        given: str | None = None,
        layout: str | None = None,
        order: str | None = None,
        results: Sequence[str] = (),
    ) -> Self:
        """The form that ``--input``, ``--input-layout``, ``--input-order``, ``--result`` ask for.

        Raises:
            UnknownNameError: one of the first three is none that there is.
            UsageError: layout or order is given without bytes; or results are several, or none
                that there is.
        """
        _require_known("input", given, INPUTS)
        _require_known("input layout", layout, LAYOUTS)
        _require_known("input order", order, CHANNEL_ORDERS)
        is_bytes = given == BYTES
        for option, value in (("--input-layout", layout), ("--input-order", order)):
            if value is not None and not is_bytes:
                raise UsageError(
                    f"{option} {value} is for bytes, and the graph takes float32 (N, C, H, W)\n"
                    f"add --input {BYTES}, or leave {option} out"
                )
        if len(results) > 1:
            raise UsageError(
                f"--result is given {len(results)} times: {', '.join(results)}\n"
                "a graph ends in one of them: export it once for each"
            )
        pixels = PixelInput(layout or "nhwc", order or "rgb") if is_bytes else None
        return cls(pixels, Result.parse(results[0]) if results else None, order)

    def pixels_for(self, preprocessing: Preprocessing) -> PixelInput | None:
        """How a network of this ``preprocessing`` is given bytes, if it is.

        Raises:
            UsageError: the order of the bytes is for another number of channels.
        """
        if self.pixels is None:
            return None
        is_grey = preprocessing.channel_order == GREY_ORDER
        possible = (GREY_ORDER,) if is_grey else COLOUR_ORDERS
        if self.order not in (None, *possible):
            raise UsageError(
                f"--input-order {self.order}, and the network takes images in "
                f"{preprocessing.channel_order}\npossible: {' or '.join(possible)}; left out it is "
                f"{possible[0]}"
            )
        if not is_grey:
            return self.pixels
        return replace(self.pixels, order=GREY_ORDER, outside=("decode", "grey", "resize", "crop"))

    def require_sizes(self, profile: ShapeProfile) -> None:
        """Refuse a layout in which open heights and widths cannot be told.

        Raises:
            UsageError: the axes of ``profile`` are those of (N, C, H, W), the layout is another.
        """
        pixels = self.pixels
        if pixels is not None and pixels.layout != "nchw" and profile.has_image_sizes:
            raise UsageError(
                "--height and --width of a graph of bytes need its channels first\n"
                "add --input-layout nchw"
            )


def require_normalisation(name: str, choices: PreprocessingChoices, *, known: bool) -> None:
    """Refuse bytes for a network called ``name`` of which nobody said how they are normalised.

    Raises:
        UsageError: it is not ``known``, and ``choices`` leave mean or deviation open.
    """
    missing = [
        option
        for option, given in (("--mean", choices.mean), ("--std", choices.std))
        if given is None
    ]
    if known or not missing:
        return
    puts = f"--input {BYTES} puts the normalisation into the graph"
    if len(missing) == 1:
        (given,) = {"--mean", "--std"} - set(missing)
        raise UsageError(
            f"{puts}, and of that of {name} only {given} is given\n"
            f"{missing[0]} is missing: add it, as in training"
        )
    raise UsageError(
        f"{puts}, and that of {name} is not known\nsay it: --mean and --std, as in training"
    )


def _require_known(what: str, given: str | None, known: Sequence[str]) -> None:
    if given is not None and given not in known:
        raise UnknownNameError(what, given, known, ", ".join(known))
