"""The reference definitions: one architecture family is one file that reads like its paper.

A file of this folder without a leading underscore is a family. It holds a literal ``CARD`` (what
`names` and `get` need to know, read without executing the file, so that listing needs no torch)
and a function ``build(variant, *, num_classes, image_size)``. Definitions of others are not
registered: `torchvision_spec` and `timm_spec` make the spec of any of their image classifiers.
"""

from deploykit.models._inference_form import InferenceForm, inference_form
from deploykit.models._record import WeightsRecord
from deploykit.models._registry import families, get, names
from deploykit.models._timm import timm_names, timm_spec
from deploykit.models._torchvision import torchvision_names, torchvision_spec
from deploykit.models._weights import build_with_weights

__all__ = [
    "InferenceForm",
    "WeightsRecord",
    "build_with_weights",
    "families",
    "get",
    "inference_form",
    "names",
    "timm_names",
    "timm_spec",
    "torchvision_names",
    "torchvision_spec",
]
