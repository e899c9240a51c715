"""A candidate for an INT8 graph, in memory: what is not INT8 stays FP32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from deploykit.onnx_graph.files import serialise
from deploykit.onnx_graph.qdq.bias_correction import correct_biases
from deploykit.onnx_graph.qdq.insertion import insert_qdq

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from deploykit.onnx_graph.qdq.plan import QdqPlan


def trial_graph(
    model: ir.Model,
    plan: QdqPlan,
    amax: Mapping[str, float],
    shifts: Mapping[str, NDArray[np.float32]],
) -> bytes:
    """The serialised graph; ``shifts`` (C,) are added to the biases of the named layers.

    Raises:
        DataError: ``amax`` lacks a value of the plan, or is not a number from 0 up.
        ModelFileError: it does not fit in one file.
    """
    corrected, _ = correct_biases(model, shifts) if shifts else (model, 0)
    return serialise(ir.to_proto(insert_qdq(corrected, plan, amax)), "a candidate for INT8")
