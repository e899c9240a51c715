"""What each INT8 layer adds to the noise of the logits: it leaves INT8 alone, and less is left."""

from __future__ import annotations

from math import inf, isinf
from typing import TYPE_CHECKING

import numpy as np

from deploykit.onnx_graph import qdq

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from deploykit.specs import ProgressTask, Runner, SplitGraph

    Batches = Sequence[NDArray[np.float32]]


def measure_gains(
    model: ir.Model,
    plan: qdq.QdqPlan,
    amax: Mapping[str, float],
    judged: tuple[Batches, Batches],
    *,
    open_runner: Callable[[SplitGraph], Runner],
    task: ProgressTask,
) -> dict[str, float]:
    """By how many dB the logits gain when one layer alone computes in FP32, by layer.

    ``judged`` are batches (N, C, H, W) and their FP32 logits; there is one pass over them for each
    layer, and one more. ``open_runner`` must run Q/DQ pairs as they are written.

    Raises:
        DataError: ``amax`` lacks a value of the plan, or is not a number from 0 up.
        ModelFileError: the graph is too large without its weights.
    """
    batches, exact = judged[0], np.concatenate(judged[1])
    layers = [weight.node for weight in plan.weights]
    graph = qdq.switchable(model, plan, amax)
    with open_runner(graph) as runner:
        none = np.zeros(len(layers), np.bool_)
        quantized = qdq.sqnr_db(exact, _logits(runner, batches, none))
        gains = {}
        for index, layer in enumerate(layers):
            alone = np.arange(len(layers)) == index
            gains[layer] = _gain(qdq.sqnr_db(exact, _logits(runner, batches, alone)), quantized)
            task.update(index + 1, len(layers), "noise of each layer")
    return gains


def _logits(runner: Runner, batches: Batches, switches: NDArray[np.bool_]) -> NDArray[np.float32]:
    image, switch = (spec.name for spec in runner.inputs)
    name = runner.outputs[0].name
    rows = [runner.run({image: batch, switch: switches})[name] for batch in batches]
    return np.concatenate(rows).astype(np.float32, copy=False)


def _gain(without: float, quantized: float) -> float:
    if isinf(quantized):
        return 0.0
    return inf if isinf(without) else without - quantized
