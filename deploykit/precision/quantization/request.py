"""Request for a conversion that needs calibration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from deploykit.core.errors import UnknownNameError
from deploykit.core.precision import Precision, require_images
from deploykit.graph.qdq import QdqPolicy
from deploykit.precision.calibration.calibrators import METHODS
from deploykit.precision.quantization.choice import AUTO, Int8Choices

if TYPE_CHECKING:
    from deploykit.precision.calibration.data import CalibrationOptions


@dataclass(frozen=True)
class QuantizationRequest:
    """Calibration images, what the user fixed of the choices, and what is not quantized.

    ``policy`` holds for what ``int8_choices`` leaves open until a trial shows that another pays.
    """

    calibration: CalibrationOptions
    int8_choices: Int8Choices = field(default_factory=Int8Choices)
    policy: QdqPolicy = field(default_factory=QdqPolicy)
    rest: Precision = Precision.FP16
    finetune: bool = False
    """Whether roundings, scales and biases are fitted to FP32 after the choices are made."""

    def __post_init__(self) -> None:
        known = (AUTO, *METHODS)
        if self.int8_choices.method not in known:
            raise UnknownNameError(
                "calibration method", self.int8_choices.method, known, ", ".join(known)
            )


def require_request(
    precision: Precision, request: QuantizationRequest | None
) -> QuantizationRequest:
    """The request of a precision that needs one.

    Raises:
        UsageError: there is none.
    """
    require_images(precision, given=request is not None)
    return cast("QuantizationRequest", request)
