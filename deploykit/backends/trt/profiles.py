"""Which shapes an engine accepts, from the input shapes of a parsed network."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deploykit.errors import BuildError, UsageError
from deploykit.sizes import AXIS_NAMES, BATCH_AXIS, IMAGE_DIMS, require_sizes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.specs import ShapeProfile

    InputShapes = Mapping[str, tuple[int, ...]]


def input_shapes(network: Any) -> InputShapes:
    """Shape of every input of an ``INetworkDefinition`` by name, -1 where it is open."""
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    # Dims of the binding cannot be compared or hashed.
    return {tensor.name: tuple(tensor.shape) for tensor in tensors}


def open_inputs(inputs: InputShapes) -> InputShapes:
    """The inputs with an open batch, or with an open height or width of images (N, C, H, W).

    Raises:
        BuildError: another dimension is open.
    """
    dynamic = {name: shape for name, shape in inputs.items() if -1 in shape}
    for name, shape in dynamic.items():
        possible = AXIS_NAMES if len(shape) == IMAGE_DIMS else {BATCH_AXIS}
        open_axes = [axis for axis, size in enumerate(shape) if size == -1]
        others = [str(axis) for axis in open_axes if axis not in possible]
        if others:
            raise BuildError(
                f"input {name!r} has the shape {shape}: dimension {', '.join(others)} is open\n"
                "only the batch, and the height and width of images (N, C, H, W), may be\n"
                "export the model with the others fixed"
            )
    return dynamic


def fitting_profile(name: str, inputs: InputShapes, asked: ShapeProfile) -> ShapeProfile:
    """``asked``, with the one batch of a network that fixes it; ``name`` is for messages.

    Raises:
        UsageError: the profile that was asked does not contain the fixed batch, lacks the sizes of
            an open height or width, or has some for a fixed one.
    """
    shapes = [shape for shape in inputs.values() if shape]
    images = [shape for shape in shapes if len(shape) == IMAGE_DIMS]
    # Open where any of several inputs is.
    require_sizes(name, tuple(map(min, zip(*images, strict=True))), asked)
    if not shapes or any(shape[BATCH_AXIS] == -1 for shape in shapes):
        return asked
    return _with_batch(asked, shapes[0][BATCH_AXIS])


def _with_batch(asked: ShapeProfile, batch: int) -> ShapeProfile:
    if not asked.min_batch <= batch <= asked.max_batch:
        raise UsageError(
            f"the model's batch is fixed at {batch}, outside the profile "
            f"{asked.min_batch},{asked.opt_batch},{asked.max_batch}\n"
            f"ask for --batch {batch}, or export the model with an open batch"
        )
    return replace(asked, min_batch=batch, opt_batch=batch, max_batch=batch)
