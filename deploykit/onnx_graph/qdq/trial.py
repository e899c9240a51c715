"""A candidate for an INT8 graph, in memory: what is not INT8 stays FP32."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.onnx_graph.qdq.bias_correction import correct_biases
from deploykit.onnx_graph.qdq.insertion import insert_qdq
from deploykit.onnx_graph.splitting import split

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from deploykit.onnx_graph.qdq.plan import QdqPlan
    from deploykit.specs import SplitGraph


def trial_graph(
    model: ir.Model,
    plan: QdqPlan,
    amax: Mapping[str, float],
    shifts: Mapping[str, NDArray[np.float32]],
) -> SplitGraph:
    """The graph for a runner; ``shifts`` (C,) are added to the biases of the named layers.

    Raises:
        DataError: ``amax`` lacks a value of the plan, or is not a number from 0 up.
        ModelFileError: it is too large without its weights.
    """
    corrected, _ = correct_biases(model, shifts) if shifts else (model, 0)
    return split(insert_qdq(corrected, plan, amax), "a candidate for INT8")
