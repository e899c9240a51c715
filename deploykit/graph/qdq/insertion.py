"""Carries out a plan: scales, weights of eight bits, a Q/DQ pair behind each value of it."""

from __future__ import annotations

from math import inf, isfinite, log10
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx_ir as ir

from deploykit.core.errors import DataError
from deploykit.graph.editing import Names, add_constant, drop_unused_initializers
from deploykit.graph.qdq.plan import INT8

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from deploykit.graph.qdq.plan import QdqFormat, QdqPlan, QuantizedWeight, Reader

    Logits = NDArray[np.float32]
    Floats = NDArray[np.float32]


def ratio_db(signal_power: float, noise_power: float) -> float:
    """Signal to noise, 10 log10 of the ratio of their powers.

    Infinite where there is no noise, minus infinity where there is noise but no signal.

    >>> ratio_db(1000.0, 1.0), ratio_db(0.0, 0.0), ratio_db(0.0, 1.0)
    (30.0, inf, -inf)
    """
    if noise_power == 0:
        return inf
    return 10 * log10(signal_power / noise_power) if signal_power else -inf


MIN_SCALE: Final = 2.0**-60
"""Smallest scale. A kernel multiplies the scales of its input and its weight: the product of two
such scales, 2^-120, is still a normal FP32 number (those end at 2^-126)."""

PIECE_NUMBERS: Final = 2**20
"""Numbers that are held in float64 at a time: 8 MiB."""


def scale_of(amax: float, wanted: QdqFormat = INT8) -> np.float32:
    """What is multiplied with, so that the format's largest number stands for ``amax``; never 0.

    >>> from deploykit.graph.qdq.plan import FP8
    >>> float(scale_of(254.0)), float(scale_of(896.0, FP8)), float(scale_of(0.0)) > 0
    (2.0, 2.0, True)
    """
    return np.float32(max(amax / wanted.largest, MIN_SCALE))


def channel_scales(weight: Floats, axis: int, wanted: QdqFormat = INT8) -> Floats:
    """A scale for each index of ``axis``, from the largest magnitude there; shape (C,)."""
    others = tuple(index for index in range(weight.ndim) if index != axis)
    amax = np.abs(weight).max(axis=others, initial=0.0)
    exact = np.maximum(amax.astype(np.float64) / wanted.largest, MIN_SCALE)
    return np.asarray(exact, np.float32)


def quantize(weight: Floats, scales: Floats, axis: int, wanted: QdqFormat = INT8) -> NDArray[Any]:
    """Round to the nearest number of the format, halves to the even one."""
    steps = weight / along(scales, weight.ndim, axis)
    if not wanted.dtype.is_floating_point():
        steps = np.rint(steps)  # halves to even, as QuantizeLinear does; the cast below cuts off
    steps = np.clip(steps, -wanted.largest, wanted.largest)
    stored: NDArray[Any] = steps.astype(wanted.dtype.numpy())
    return stored


def round_to(values: Floats, scales: Floats | np.float32, wanted: QdqFormat = INT8) -> Floats:
    """What a Q/DQ pair makes of values; ``scales`` is a number, or one for each last index.

    >>> round_to(np.float32([0.3, -0.8, 300.0]), np.float32(0.5)).tolist()
    [0.5, -1.0, 63.5]
    """
    steps = np.clip(values / scales, -wanted.largest, wanted.largest)
    if wanted.dtype.is_floating_point():
        steps = steps.astype(wanted.dtype.numpy()).astype(np.float32)
    else:
        steps = np.rint(steps)
    restored: Floats = steps * scales
    return restored


def dequantize(steps: NDArray[Any], scales: Floats, axis: int) -> Floats:
    """The values that quantized weights stand for."""
    values: Floats = steps.astype(np.float32) * along(scales, steps.ndim, axis)
    return values


def along(scales: Floats, ndim: int, axis: int) -> Floats:
    """(C,) as (1, ..., C, ..., 1), to be multiplied with a tensor of ``ndim`` dimensions."""
    return scales.reshape([-1 if index == axis else 1 for index in range(ndim)])


def sqnr_db(signal: Floats, approximation: Floats) -> float:
    """Signal to quantization noise ratio, 10 log10(sum x^2 / sum (x - q)^2), in dB.

    Infinite where there is no noise, minus infinity where there is noise but no signal.
    """
    power = noise = 0.0
    for exact, found in zip(_pieces(signal), _pieces(approximation), strict=True):
        power += float(np.square(exact).sum())
        noise += float(np.square(exact - found).sum())
    return ratio_db(power, noise)


def _pieces(values: Floats) -> Iterator[NDArray[np.float64]]:
    """All values in float64, in pieces: a whole classifier's weight would take gigabytes."""
    flat = values.reshape(-1)
    return (
        flat[at : at + PIECE_NUMBERS].astype(np.float64)
        for at in range(0, flat.size, PIECE_NUMBERS)
    )


def weight_sqnr_db(model: ir.Model, plan: QdqPlan) -> dict[str, float]:
    """SQNR of each weight of the plan in dB, by the name of its layer."""
    found = {}
    for item in plan.weights:
        constant = model.graph.initializers[item.tensor].const_value
        if constant is not None:
            weight = constant.numpy()
            scales = channel_scales(weight, item.axis, plan.format)
            stored = quantize(weight, scales, item.axis, plan.format)
            restored = dequantize(stored, scales, item.axis)
            found[item.node] = sqnr_db(weight, restored)
    return found


def insert_qdq(model: ir.Model, plan: QdqPlan, amax: Mapping[str, float]) -> ir.Model:
    """A copy of an FP32 graph with the plan carried out; all else stays FP32.

    ``amax`` is the magnitude that the outermost step stands for, by name of the value; the
    members of a group take the largest of theirs. Scales are FP32 and zero points 0.

    Raises:
        DataError: ``amax`` lacks a value of the plan, or is not a number from 0 up.
    """
    scales = activation_scales(plan, amax)
    result = model.clone()
    inserter = _Inserter(result, plan.format)
    for weight in plan.weights:
        inserter.quantize_weight(weight)
    for tensor, readers in plan.activations.items():
        inserter.quantize_activation(tensor, readers, scales[tensor])
    drop_unused_initializers(result.graph)
    return result


def activation_scales(plan: QdqPlan, amax: Mapping[str, float]) -> dict[str, np.float32]:
    """Scale of each activation of the plan.

    Raises:
        DataError: ``amax`` lacks a value of the plan, or is not a number from 0 up.
    """
    missing = [name for name in plan.tensors if name not in amax]
    if missing:
        raise DataError(
            f"the calibration has no figure for {missing[0]!r}"
            f"{f' and {len(missing) - 1} other values' if missing[1:] else ''}\n"
            "calibrate this graph with this policy again"
        )
    for name in plan.tensors:
        if not (isfinite(amax[name]) and amax[name] >= 0):
            raise DataError(
                f"the calibration gives {name!r} a range of {amax[name]}\n"
                "expected a number from 0 up: calibrate again"
            )
    largest = {**amax, **plan.known}
    return {
        name: scale_of(max(largest[member] for member in plan.group_of(name)), plan.format)
        for name in plan.activations
    }


class _Inserter:
    """Adds Q/DQ pairs to one graph; a weight that several nodes read is quantized once."""

    def __init__(self, model: ir.Model, wanted: QdqFormat) -> None:
        self._format = wanted
        self._graph = model.graph
        self._values = ir.convenience.create_value_mapping(model.graph)
        self._nodes = {str(node.name): node for node in model.graph}
        self._value_names = Names(self._values)
        self._node_names = Names(self._nodes)
        self._weights: dict[tuple[str, int], ir.Value] = {}

    def quantize_weight(self, weight: QuantizedWeight) -> None:
        """Replace the node's weight by an initializer of eight bits behind a DequantizeLinear."""
        key = (weight.tensor, weight.axis)
        if key not in self._weights:
            self._weights[key] = self._dequantized_weight(*key)
        self._nodes[weight.node].replace_input_with(weight.index, self._weights[key])

    def quantize_activation(
        self, tensor: str, readers: tuple[Reader, ...], scale: np.float32
    ) -> None:
        """Put a Q/DQ pair behind a value; only ``readers`` read its result."""
        value = self._values[tensor]
        step = self._constant(f"{tensor}_scale", np.asarray(scale))
        dtype = self._format.dtype
        zero = self._constant(f"{tensor}_zero_point", np.zeros((), dtype.numpy()))
        quantizer = self._node("QuantizeLinear", tensor, [value, step, zero], dtype, value.shape)
        restored = self._node(
            "DequantizeLinear",
            tensor,
            [quantizer.outputs[0], step, zero],
            ir.DataType.FLOAT,
            value.shape,
        )
        self._insert_behind(value, quantizer, restored)
        for reader in readers:
            self._nodes[reader.node].replace_input_with(reader.position, restored.outputs[0])

    def _dequantized_weight(self, tensor: str, axis: int) -> ir.Value:
        weight = self._values[tensor]
        data = ir.convenience.get_const_tensor(weight).numpy()  # type: ignore[union-attr]  # the plan names constants only
        scales = channel_scales(data, axis, self._format)
        steps = quantize(data, scales, axis, self._format)
        stored = self._constant(f"{tensor}_quantized", steps)
        # No zero point: the operator's default is 0 of the stored type.
        scale = self._constant(f"{tensor}_scale", scales)
        node = self._node(
            "DequantizeLinear",
            tensor,
            [stored, scale],
            ir.DataType.FLOAT,
            weight.shape,
            [ir.AttrInt64("axis", axis)],
        )
        self._graph.insert_before(self._graph[0], node)
        return node.outputs[0]

    def _node(
        self,
        op_type: str,
        tensor: str,
        inputs: list[ir.Value],
        dtype: ir.DataType,
        shape: ir.Shape | None,
        attributes: list[ir.Attr] | None = None,
    ) -> ir.Node:
        ending = "quantized" if op_type == "QuantizeLinear" else "dequantized"
        name = self._value_names.fresh(f"{tensor}_{ending}")
        result = ir.Value(name=name, type=ir.TensorType(dtype), shape=shape)
        return ir.Node(
            "",
            op_type,
            inputs,
            attributes or [],
            outputs=[result],
            name=self._node_names.fresh(f"{tensor}/{op_type}"),
        )

    def _constant(self, name: str, data: NDArray[np.generic]) -> ir.Value:
        return add_constant(self._graph, self._value_names.fresh(name), data)

    def _insert_behind(self, value: ir.Value, *nodes: ir.Node) -> None:
        producer = value.producer()
        if producer is None:
            self._graph.insert_before(self._graph[0], nodes)
        else:
            self._graph.insert_after(producer, nodes)
