"""From image files to the numbers that a model takes; nothing here needs torch.

`open_images` and `sample_images` give an `ImageSet`, `batches` prepares it for a model; `decode`
and `preprocess` are the two steps of a single image. All follow what torchvision's evaluation
does, so that a pretrained model sees what it was trained on.
"""

from deploykit.images.batching import batches
from deploykit.images.decoding import decode
from deploykit.images.preprocessing import INTERPOLATIONS, preprocess, preprocess_array
from deploykit.images.sets import (
    IMAGE_SUFFIXES,
    ArrayImages,
    FileImages,
    ImageSet,
    open_images,
    sample_images,
)

__all__ = [
    "IMAGE_SUFFIXES",
    "INTERPOLATIONS",
    "ArrayImages",
    "FileImages",
    "ImageSet",
    "batches",
    "decode",
    "open_images",
    "preprocess",
    "preprocess_array",
    "sample_images",
]
