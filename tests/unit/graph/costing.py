"""The cost of a graph that is written as text, and graphs of published networks."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from deploykit.graph import read_model, tidy
from deploykit.graph.kernel_costs import network_cost
from deploykit.models import get
from tests.graphs import graph, save

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx
    from numpy.typing import NDArray

    from deploykit.costs.network import NetworkCost


def load(source: onnx.ModelProto, folder: Path) -> ir.Model:
    model = read_model(save(source, folder / "m.onnx"))
    tidy(model, rename=False)
    return model


def cost(
    folder: Path, text: str, constants: Mapping[str, NDArray[Any]] | None = None, batch: int = 1
) -> NetworkCost:
    return network_cost(load(graph(text, constants), folder), batch)


def hollow_export(name: str, folder: Path) -> ir.Model:
    """A published definition at its own size, without its weights' values."""
    path = folder / f"{name}.onnx"
    with torch.device("meta"):
        module = get(name).build().eval()
    module.to_empty(device="cpu")
    for index, tensor in enumerate(module.state_dict().values()):
        tensor.zero_().reshape(-1)[:1] = index  # the exporter merges weights that are equal
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own internals
        torch.onnx.export(
            module,
            (torch.zeros(1, 3, 224, 224),),
            str(path),
            dynamo=False,
            opset_version=20,
            export_params=False,
            do_constant_folding=False,
            input_names=["images"],
            dynamic_axes={"images": {0: "batch"}},
        )
    model = read_model(path)
    for weight in model.graph.inputs[1:]:
        shape = tuple(int(dim) for dim in weight.shape or () if isinstance(dim, int))
        values = np.broadcast_to(np.float32(1), shape)  # one number, whatever the shape
        weight.const_value = ir.Tensor(values, name=weight.name)
        model.graph.register_initializer(weight)
    tidy(model, rename=False)
    return model
