"""Images for models: decoding, preprocessing, sets of images and labels; needs no torch.

`open_images` and `sample_images` give an `ImageSet`, `batches` prepares it for a model; `decode`
and `preprocess` are the two steps of a single image. `open_labelled` also reads ImageNet's own
layouts. All follow what torchvision's evaluation does, so that a pretrained model sees what it was
trained on.
"""

from deploykit.images.batching import (
    Unusable,
    batches,
    load_ahead,
    notes_on_reduced,
    prepare,
    sample_indices,
)
from deploykit.images.decoding import decode, image_suffixes, pixels_of, to_rgb
from deploykit.images.given import (
    EXPECTED,
    GivenImages,
    PreparedTensors,
    images_of,
    is_one_image,
)
from deploykit.images.label_files import (
    read_class_names,
    read_class_names_with_note,
    require_lines,
)
from deploykit.images.labelling import LabelledData, ModelClasses, open_labelled
from deploykit.images.pixel_limit import PixelBudget, default_max_pixels, require_max_pixels
from deploykit.images.preprocessing import (
    INTERPOLATIONS,
    InputRange,
    doubts,
    pixels_before,
    preprocess,
    preprocess_array,
)
from deploykit.images.sets import (
    ArrayImages,
    FileImages,
    ImageSet,
    image_files,
    name_of,
    notes_on_data,
    notes_on_skipped,
    open_images,
    require_images_at,
    sample_images,
)

__all__ = [
    "EXPECTED",
    "INTERPOLATIONS",
    "ArrayImages",
    "FileImages",
    "GivenImages",
    "ImageSet",
    "InputRange",
    "LabelledData",
    "ModelClasses",
    "PixelBudget",
    "PreparedTensors",
    "Unusable",
    "batches",
    "decode",
    "default_max_pixels",
    "doubts",
    "image_files",
    "image_suffixes",
    "images_of",
    "is_one_image",
    "load_ahead",
    "name_of",
    "notes_on_data",
    "notes_on_reduced",
    "notes_on_skipped",
    "open_images",
    "open_labelled",
    "pixels_before",
    "pixels_of",
    "prepare",
    "preprocess",
    "preprocess_array",
    "read_class_names",
    "read_class_names_with_note",
    "require_images_at",
    "require_lines",
    "require_max_pixels",
    "sample_images",
    "sample_indices",
    "to_rgb",
]
