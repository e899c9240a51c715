"""Which batches an engine accepts, from the input shapes of a parsed network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit.errors import BuildError, UsageError
from deploykit.specs import ShapeProfile

if TYPE_CHECKING:
    from collections.abc import Mapping

    InputShapes = Mapping[str, tuple[int, ...]]


def input_shapes(network: Any) -> InputShapes:
    """Shape of every input of an ``INetworkDefinition`` by name, -1 where it is open."""
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    # Dims of the binding cannot be compared or hashed.
    return {tensor.name: tuple(tensor.shape) for tensor in tensors}


def open_inputs(inputs: InputShapes) -> InputShapes:
    """The inputs with an open batch.

    Raises:
        BuildError: another dimension than the first is open.
    """
    dynamic = {name: shape for name, shape in inputs.items() if -1 in shape}
    for name, shape in dynamic.items():
        others = [str(axis) for axis, size in enumerate(shape) if size == -1 and axis > 0]
        if others:
            raise BuildError(
                f"input {name!r} has the shape {shape}: dimension {', '.join(others)} is open\n"
                "only the first dimension, the batch, may be\n"
                "export the model with a fixed image size"
            )
    return dynamic


def fixed_profile(inputs: InputShapes, asked: ShapeProfile) -> ShapeProfile:
    """The one batch of a network without open inputs.

    Raises:
        UsageError: the profile that was asked does not contain it.
    """
    batch = next((shape[0] for shape in inputs.values() if shape), None)
    if batch is None:
        return asked
    if not asked.min_batch <= batch <= asked.max_batch:
        raise UsageError(
            f"the model's batch is fixed at {batch}, outside the profile "
            f"{asked.min_batch},{asked.opt_batch},{asked.max_batch}\n"
            f"ask for --batch {batch}, or export the model with an open batch"
        )
    return ShapeProfile(batch, batch, batch)
