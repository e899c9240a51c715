"""Packages: what a bundle needs to be served elsewhere, one file for each place to ship to.

A place is one file of this room, or one that another package adds by an entry point in the group
``deploykit.packaging``; it has its `ShippingPlace` as ``PLACE``.
"""

from deploykit.packaging._place import (
    PackageChoices,
    Packed,
    ShippingPlace,
    place_named,
    place_names,
)

__all__ = ["PackageChoices", "Packed", "ShippingPlace", "place_named", "place_names"]
