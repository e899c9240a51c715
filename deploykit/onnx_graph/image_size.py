"""One height and width for a graph that leaves them open: for counting, not for running."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from deploykit.sizes import IMAGE_AXES, IMAGE_DIMS

if TYPE_CHECKING:
    from collections.abc import Sequence


def fix_image_size(model: ir.Model, size: Sequence[int]) -> bool:
    """Give the open height and width of its images (N, C, H, W) the size (height, width).

    Returns:
        Whether one of them was open.
    """
    sizes = dict(zip(IMAGE_AXES, size, strict=True))
    changed = False
    for value in model.graph.inputs:
        dims = list(value.shape or ())
        if len(dims) == IMAGE_DIMS and not all(isinstance(dims[axis], int) for axis in sizes):
            filled = (
                dim if isinstance(dim, int) else sizes.get(axis, dim)
                for axis, dim in enumerate(dims)
            )
            value.shape = ir.Shape(list(filled))
            changed = True
    return changed
