"""Heights and widths that a bundle was made for, where its graph leaves them open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.core.sizes import IMAGE_AXES, ShapeProfile, SizeRange

if TYPE_CHECKING:
    from deploykit.bundle.manifest import Manifest


def exported_sizes(manifest: Manifest) -> dict[str, SizeRange | None]:
    """By "height" and "width" those at which the graph was compared with the original."""
    return {
        label: None if (sizes := manifest.model.get(label)) is None else SizeRange(*sizes)
        for label in IMAGE_AXES.values()
    }


def sizes_of_graph(manifest: Manifest) -> ShapeProfile | None:
    """Heights and widths that the graph may be given: `exported_sizes`, and those of its engines.

    ``None`` where the manifest has none; the batch in it says nothing.
    """
    found: dict[str, SizeRange] = {}
    for axis, label in IMAGE_AXES.items():
        known = exported_sizes(manifest)[label]
        if known is not None:
            later = (each.profile.ranges.get(axis) for each in manifest.engines)
            ranges = [known, *(each for each in later if each is not None)]
            smallest, largest = min(r.min for r in ranges), max(r.max for r in ranges)
            found[label] = SizeRange(smallest, known.opt, largest)
    if not found:
        return None
    return ShapeProfile(height=found.get("height"), width=found.get("width"))
