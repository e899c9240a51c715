"""The reference definitions: one architecture family is one file that reads like its paper.

A file of this folder without a leading underscore is a family. It holds a literal ``CARD`` (what
`names` and `get` need to know, read without executing the file, so that listing needs no torch)
and a function ``build(variant, *, num_classes, image_size)``. torchvision's own definitions are
not registered: `torchvision_spec` makes the spec of any of its image classifiers.
"""

from deploykit.models._registry import families, get, names
from deploykit.models._torchvision import torchvision_names, torchvision_spec
from deploykit.models._weights import WeightsRecord, build_with_weights

__all__ = [
    "WeightsRecord",
    "build_with_weights",
    "families",
    "get",
    "names",
    "torchvision_names",
    "torchvision_spec",
]
