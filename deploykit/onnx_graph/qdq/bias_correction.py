"""Bias correction: give back the mean that rounding and clipping take from each channel.

Nagel et al. 2019, Data-Free Quantization through Weight Equalization and Bias Correction,
https://arxiv.org/abs/1906.04721, section 4.2, and Finkelstein et al. 2019, Fighting Quantization
Bias With Bias, https://arxiv.org/abs/1906.03193. The mean is measured on calibration images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from deploykit.onnx_graph.constants import add_constant
from deploykit.onnx_graph.naming import Names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


def correct_biases(model: ir.Model, shifts: Mapping[str, Floats]) -> tuple[ir.Model, int]:
    """A copy of an FP32 graph with ``shifts`` (C,) added to the biases of the named layers.

    A layer without a bias gets one. Returns the number of layers that could be corrected: a Gemm
    that scales its bias, or whose bias is not a row of (C,), is left alone.
    """
    result = model.clone()
    names = Names(ir.convenience.create_value_mapping(result.graph))
    corrected = 0
    for node in result.graph:
        shift = shifts.get(str(node.name))
        bias = None if shift is None else _bias_of(node, len(shift))
        if shift is None or bias is None:
            continue
        fresh = names.fresh(f"{node.name}_corrected_bias")
        value = add_constant(result.graph, fresh, (bias + shift).astype(np.float32))
        _set_bias(node, value)
        corrected += 1
    for value in list(result.graph.initializers.values()):
        if not value.uses() and not value.is_graph_output():
            result.graph.initializers.pop(str(value.name))
    return result, corrected


def _bias_of(node: ir.Node, channels: int) -> Floats | None:
    given = node.inputs[2] if len(node.inputs) > 2 else None  # noqa: PLR2004
    if given is None:
        return np.zeros(channels, np.float32)
    if given.const_value is None or node.attributes.get_float("beta", 1.0) != 1.0:
        return None
    bias: Floats = given.const_value.numpy()
    return bias if bias.shape == (channels,) else None


def _set_bias(node: ir.Node, value: ir.Value) -> None:
    if len(node.inputs) < 3:  # noqa: PLR2004
        node.resize_inputs(3)
    node.replace_input_with(2, value)
