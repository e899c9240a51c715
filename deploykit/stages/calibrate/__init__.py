"""One pass over real images, and the range of every tensor by all methods."""

from deploykit.stages.calibrate.collection import COUNTED, collect, spacing
from deploykit.stages.calibrate.data import (
    FEW_IMAGES,
    HOLDOUT,
    CalibrationData,
    choose_images,
    few_images_warning,
    split_holdout,
)
from deploykit.stages.calibrate.ranging import MAX_CORRUPT, calibrate, ranges

__all__ = [
    "COUNTED",
    "FEW_IMAGES",
    "HOLDOUT",
    "MAX_CORRUPT",
    "CalibrationData",
    "calibrate",
    "choose_images",
    "collect",
    "few_images_warning",
    "ranges",
    "spacing",
    "split_holdout",
]
