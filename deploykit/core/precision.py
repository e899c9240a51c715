"""Precisions that a graph can have, ours and those of installed packages, with the facts of each.

A package adds one by a module in the room ``precision`` (see `deploykit.core.plugs`) with its
`PrecisionFacts` as ``FACTS`` and its conversion as ``CONVERSION``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Final, Self

from deploykit.core.errors import MissingDependencyError, UnknownNameError, UsageError
from deploykit.core.plugs import import_plug, plugs

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a candidate may be from its reference, and why that far.

    ``share_within`` is the share of images that must be within ``min_cosine`` and ``max_kl``.
    ``near_ties`` images may get another class, however few there are, where a graph gives the
    numbers of classes alone: these do not show how near a tie was. Of many a share may.
    """

    max_relative: float
    min_cosine: float
    max_kl: float
    min_agreement: float
    reason: str
    share_within: float = 1.0
    near_ties: int = 1

    @property
    def share_of_ties(self) -> float:
        """The share of class numbers that may change: in FP32 one of 10,000 is a tie."""
        return 1 - self.min_agreement if self.near_ties else 1e-4


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How good an input counts at best, how much one node may lose, and why; both in dB."""

    healthy_db: float
    drop_db: float
    reason: str


@dataclass(frozen=True, slots=True)
class Census:
    """Data types of TensorRT that prove an engine's precision.

    At least one convolution or matrix layer must be of ``needed``; others may be of ``beside``,
    and as many FLOAT ones as were kept on purpose. Where FLOAT is needed, all must be of these.
    """

    needed: frozenset[str]
    beside: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Overflow:
    """The type that a graph has beside FP32 which ends soonest, and where it ends.

    ``largest`` is its largest finite number, ``least`` the smallest with all its digits.
    """

    type_name: str
    largest: float
    least: float


@dataclass(frozen=True, slots=True)
class EngineDoubt:
    """What a user must know of a portable engine that has a layer of the kind."""

    layer_kind: str
    text: str


@dataclass(frozen=True, slots=True)
class PrecisionFacts:
    """All that is known of a precision but its conversion.

    Attributes:
        name: how it is asked for, and what manifests and results record.
        help: a line for its flag.
        limits: how far logits may be from those of the reference.
        tolerance: how much a single layer may lose.
        weight_bits: width of a stored weight.
        operand_bits: width of what is multiplied; less than ``weight_bits`` in no precision.
        element_type: the ONNX type of what is multiplied, as ``FLOAT16``; of a quantized one that
            behind QuantizeLinear. A file of another program is known by it.
        census: what the compiled network must have.
        rate: the peak rate of a device that it computes at: ``fp32``, ``fp16`` or ``int8``.
        is_source: what a network has before any conversion, and what others are compared with.
        quantized: the graph has Q/DQ pairs, so it is judged node by node, without optimisations.
        needs_calibration: a conversion needs images, or a table of ranges.
        rounding: largest relative error of one rounding; ``None`` where it is not what limits.
        overflow: the end of the range of what is not FP32.
        gpu_limits_of: whose limits hold on a GPU, if not its own.
        doubts: what is said of engines that nobody vouches for.
        least_compute_capability: ``None`` where every GPU has it.
        needs_cpu_form: no program but a compiler of engines has kernels for its graph; elsewhere
            the form runs that `deploykit.graph.rounding` makes of it.
    """

    name: str
    help: str
    limits: Limits
    tolerance: Tolerance
    weight_bits: int
    operand_bits: int
    element_type: str
    census: Census
    rate: str
    is_source: bool = False
    quantized: bool = False
    needs_calibration: bool = False
    rounding: float | None = None
    overflow: Overflow | None = None
    gpu_limits_of: str | None = None
    doubts: tuple[EngineDoubt, ...] = ()
    least_compute_capability: tuple[int, int] | None = None
    needs_cpu_form: bool = False

    def runs_on(self, compute_capability: str) -> bool:
        """Whether a GPU of this compute capability has the arithmetic.

        >>> FACTS["fp16"].runs_on("7.5")
        True
        """
        major, minor = compute_capability.split(".")
        least = self.least_compute_capability
        return least is None or (int(major), int(minor)) >= least


FP16_END: Final = Overflow("FP16", 65504.0, 2.0**-14)
"""Ends of FP16 (IEEE 754 binary16)."""

_FP32: Final = PrecisionFacts(
    name="fp32",
    help="32 bits.",
    limits=Limits(
        max_relative=1e-3,
        min_cosine=0.99999,
        max_kl=1e-5,
        min_agreement=0.99,
        reason="same arithmetic, another order of summation: FP32 rounds at 6e-8, and a hundred "
        "layers of sums over thousands of terms stay well below 1e-3 of the largest logit",
        near_ties=0,
    ),
    tolerance=Tolerance(
        healthy_db=100.0,
        drop_db=20.0,
        reason="rounding at 6e-8 leaves some 140 dB, another order of summation 120; under 80 dB "
        "(1e-4 of the signal) something else is computed",
    ),
    weight_bits=32,
    operand_bits=32,
    element_type="FLOAT",
    census=Census(frozenset({"FLOAT"})),
    rate="fp32",
    is_source=True,
    # On a GPU both TensorRT and onnxruntime multiply FP32 as TF32, whose mantissa of 10 bits
    # rounds as FP16's does.
    gpu_limits_of="fp16",
)

_FP16: Final = PrecisionFacts(
    name="fp16",
    help="16 bits, inputs and outputs stay FP32.",
    limits=Limits(
        max_relative=2e-2,
        min_cosine=0.999,
        max_kl=1e-2,
        min_agreement=0.98,
        reason="FP16 rounds at 4.9e-4; errors of independent layers add as their square root, "
        "so a hundred layers come to 0.5 %, and four times that means something is broken",
    ),
    tolerance=Tolerance(
        healthy_db=60.0,
        drop_db=20.0,
        reason="rounding at 4.9e-4 leaves some 73 dB, a hundred layers of it 53; a sum whose terms "
        "cancel may lose 10 dB more, 20 in one node is an error ten times its inputs'",
    ),
    weight_bits=16,
    operand_bits=16,
    element_type="FLOAT16",
    census=Census(frozenset({"HALF"})),
    rate="fp16",
    rounding=2.0**-11,
    overflow=FP16_END,
)

_BF16: Final = PrecisionFacts(
    name="bf16",
    help="16 bits with FP32's range and 8 binary digits, inputs and outputs stay FP32.",
    limits=Limits(
        max_relative=0.16,
        min_cosine=0.99,
        max_kl=0.1,
        min_agreement=0.95,
        reason="BF16 rounds at 3.9e-3, eight times FP16's 4.9e-4; errors of independent layers add "
        "as their square root, so a hundred layers come to 4 %, and four times that means "
        "something is broken",
    ),
    tolerance=Tolerance(
        healthy_db=42.0,
        drop_db=20.0,
        reason="rounding at 3.9e-3 leaves some 55 dB, a hundred layers of it 35; a sum whose terms "
        "cancel may lose 10 dB more, 20 in one node is an error ten times its inputs'",
    ),
    weight_bits=16,
    operand_bits=16,
    element_type="BFLOAT16",
    census=Census(frozenset({"BF16"})),
    rate="fp16",
    rounding=2.0**-8,
    least_compute_capability=(8, 0),
    needs_cpu_form=True,
)

_INT8: Final = PrecisionFacts(
    name="int8",
    help="8 bits where it pays, the rest as --rest says; needs --calib.",
    limits=Limits(
        max_relative=0.5,
        min_cosine=0.95,
        max_kl=1.0,
        min_agreement=0.9,
        reason="eight bits are one part in 127 of each tensor's range, so single logits may move; "
        "what passes these limits is broken, what lies within them is judged by its accuracy; one "
        "image in ten may be beyond, as a broken network is on all of them",
        share_within=0.9,
    ),
    tolerance=Tolerance(
        healthy_db=30.0,
        drop_db=15.0,
        reason="127 steps leave 25 to 40 dB of an activation, clipped outliers 20; a layer that "
        "keeps under 15 dB of good inputs gives the rest of the network more noise than any other",
    ),
    weight_bits=8,
    operand_bits=8,
    element_type="INT8",
    # What is not quantized is FP16 or BF16, or FP32 on purpose.
    census=Census(frozenset({"INT8"}), beside=frozenset({"HALF", "BF16"})),
    rate="int8",
    quantized=True,
    needs_calibration=True,
    overflow=FP16_END,
    doubts=(
        # Support matrix of TensorRT for RTX 1.7: INT8 is weight-only GEMM there.
        EngineDoubt(
            "CONVOLUTION",
            "NVIDIA lists INT8 of TensorRT for RTX for matrix products only; for INT8 "
            "convolutions use TensorRT: deploykit build BUNDLE --backend tensorrt",
        ),
    ),
)

_FP8: Final = PrecisionFacts(
    name="fp8",
    help="8 bits of floating point (E4M3) where it pays, the rest as --rest says; needs --calib.",
    limits=_INT8.limits,
    tolerance=Tolerance(
        healthy_db=28.0,
        drop_db=15.0,
        reason="four binary digits round at 6 % at the most, 2.6 % on average, which leaves 31 dB "
        "of a layer whatever its range is; a layer that keeps under 15 dB of good inputs gives "
        "the rest of the network more noise than any other",
    ),
    weight_bits=8,
    operand_bits=8,
    element_type="FLOAT8E4M3FN",
    census=Census(frozenset({"FP8"}), beside=frozenset({"HALF", "BF16"})),
    # Tensor cores of Ada, Hopper and Blackwell multiply FP8 at the rate that they have for INT8.
    rate="int8",
    quantized=True,
    needs_calibration=True,
    overflow=FP16_END,
    least_compute_capability=(8, 9),
)

FACTS: Final[Mapping[str, PrecisionFacts]] = {
    row.name: row for row in (_FP32, _FP16, _BF16, _INT8, _FP8)
}
"""The precisions that come with deploykit, the widest first."""


ROOM: Final = "precision"


class Precision(StrEnum):
    """What the arithmetic of a graph runs in; a property of the ONNX file, not of the build.

    There is one object for each name, also for a name that is no member: ours that has a row of
    facts only, or an installed package's.

    >>> Precision("fp16") is Precision.FP16
    True
    >>> Precision("fp12")
    Traceback (most recent call last):
    ...
    ValueError: 'fp12' is not a valid Precision
    """

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    FP8 = "fp8"

    @classmethod
    def _missing_(cls, value: object) -> Precision | None:
        # Names of plug-ins are looked up last: finding them reads every installed package.
        if isinstance(value, str) and (value in FACTS or value in plugs(ROOM)):
            return _plugged(value)
        return None

    @classmethod
    def _of(cls, name: str) -> Self:
        # An enumeration makes no members later; a member is a string with these two attributes.
        member = str.__new__(cls, name)
        member._name_, member._value_ = name.upper(), name
        return member

    @property
    def facts(self) -> PrecisionFacts:
        """All that is known of it but its conversion.

        Raises:
            MissingDependencyError: an installed package's module has no facts of this name.
        """
        return FACTS[self] if self in FACTS else _facts_of_plug(self.value)


@cache
def _plugged(name: str) -> Precision:
    return Precision._of(name)  # noqa: SLF001 - the other half of `_missing_`


OWN: Final = tuple(map(Precision, FACTS))
"""The precisions that come with deploykit, the widest first."""


def precisions() -> tuple[Precision, ...]:
    """All that there are: our own, the widest first, then those of installed packages by name."""
    plugged = sorted(plugs(ROOM).keys() - FACTS.keys())
    return (*OWN, *map(Precision, plugged))


def find_precision(name: str) -> Precision:
    """The precision that a user named.

    Raises:
        UnknownNameError: there is none of this name; close ones are suggested.
    """
    known = precisions()
    if name not in known:
        raise UnknownNameError("precision", name, known, ", ".join(known))
    return Precision(name)


AUTO: Final = "auto"
"""In place of a precision's name: one is chosen for each layer, under a budget."""

RANDOM: Final = "random"
"""In place of calibration images: for trying out sizes and speed. The ranges then mean nothing."""


def calibrated_flags() -> str:
    """The flags of the precisions that need images, for messages: ``--int8 and --fp8``."""
    return " and ".join(f"--{each}" for each in precisions() if each.facts.needs_calibration)


def require_images(precision: str, *, given: bool) -> None:
    """Refuse a precision without the calibration images that it needs, and images without a use.

    ``precision`` is one by its name, or "auto".

    Raises:
        UsageError: they do not fit.
    """
    if precision == AUTO:
        if not given:
            raise UsageError(
                "--precision auto measures the loss of each format on images: --calib PATH\n"
                "it needs those of the calibration, and others to judge on"
            )
        return
    needs = find_precision(precision).facts.needs_calibration
    if needs and not given:
        raise UsageError(
            f"{precision.upper()} needs images to calibrate with: --calib PATH\n"
            "for trying out sizes and speed only, noise will do: --calib random"
        )
    if given and not needs:
        raise UsageError(f"--calib is for {calibrated_flags()} only, not for {precision}")


def _facts_of_plug(name: str) -> PrecisionFacts:
    facts = getattr(import_plug(ROOM, name), "FACTS", None)
    if not isinstance(facts, PrecisionFacts) or facts.name != name:
        found = facts.name if isinstance(facts, PrecisionFacts) else type(facts).__name__
        raise MissingDependencyError(
            f"FACTS of the plug-in {name!r} of deploykit.{ROOM} is {found}\n"
            f"expected PrecisionFacts(name={name!r}, ...) in {plugs(ROOM)[name]}\n"
            "repair or uninstall the package that it comes from"
        )
    return facts


HEAVY_KINDS: Final = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM")
"""Layer kinds that hold nearly all multiplications: they decide what an engine's precision is."""

PRECISIONS: Final[Mapping[str, Precision]] = {
    type_name: precision for precision in OWN for type_name in precision.facts.census.needed
}
"""Our precisions by the compilers' names of them."""


def label_of(type_name: str) -> str:
    """The precision that is proven by a type of the compiler, or the type where it is none of ours.

    >>> label_of("HALF"), label_of("INT64")
    ('fp16', 'INT64')
    """
    return str(PRECISIONS.get(type_name, type_name))
