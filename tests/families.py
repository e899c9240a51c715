"""Networks of each family as FP32 graphs, for tests of where Q/DQ pairs go."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torchvision

from deploykit.graph import read_graph
from deploykit.graph.qdq import QdqPolicy
from deploykit.models import get
from deploykit.precision.quantization.conversion import plan_int8
from deploykit.sources.torch_export import export_module
from deploykit.sources.torchvision import torchvision_spec
from tests.drawing import Repeated

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import onnx_ir as ir
    from torch import nn

    from deploykit.graph import LoadedGraph
    from deploykit.graph.qdq import QdqPlan

IMAGE_SIZES = {
    "alexnet2012": 63,
    "vgg11": 32,
    "nin": 63,
    "googlenet": 64,
    "resnet18": 32,
    "resnet50": 32,
    "resnext50_32x4d": 32,
    "resnet20": 32,
}
FEATURES_ONLY = ("alexnet2012", "vgg11")
"""Their classifiers are 90 % of the parameters and four plain layers."""

TORCHVISION = ("mobilenet_v2", "regnet_y_400mf", "efficientnet_b0")
"""Their blocks add convolutions without a ReLU, and have small layers inside."""

TORCHVISION_SIZE = 32


@dataclass(frozen=True)
class Family:
    """A network's FP32 graph, and its plan by the default policy."""

    graph: LoadedGraph
    model: ir.Model
    plan: QdqPlan

    def readers(self, tensor: str) -> set[str]:
        return {f"{r.node}:{r.position}" for r in self.plan.activations.get(tensor, ())}

    def nodes(self, *op_types: str) -> list[ir.Node]:
        return [node for node in self.model.graph if node.op_type in op_types]

    def int8_operands(self, node: ir.Node) -> set[int]:
        """Which inputs of a node are read as INT8."""
        found = (r for readers in self.plan.activations.values() for r in readers)
        return {reader.position for reader in found if reader.node == node.name}


class Families(dict[str, Family]):
    """Each network by its name, exported when a test first asks for it, once for all workers."""

    def __init__(self, made_once: Callable[[str, Callable[[Path], object]], Path]) -> None:
        super().__init__()
        self._made_once = made_once

    def __missing__(self, name: str) -> Family:
        folder = self._made_once(f"family-{name}", lambda folder: export(name, folder))
        graph = read_graph(folder / f"{name}.onnx")
        self[name] = Family(graph, graph.model, plan_int8(graph, QdqPolicy()))
        return self[name]


def export(name: str, folder: Path) -> None:
    folder.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name in TORCHVISION:
            of_torchvision(name, folder)
        else:
            own_network(name, folder)


def own_network(name: str, folder: Path) -> None:
    spec = get(name, image_size=IMAGE_SIZES[name], num_classes=16)
    with torch.device("meta" if name in FEATURES_ONLY else "cpu"), Repeated():
        module = spec.build()
    if name in FEATURES_ONLY:
        module = features_of(module)
        spec = replace(spec, outputs=(replace(spec.outputs[0], name="features"),))
    export_module(spec, module, folder / f"{name}.onnx", "torchscript")


def of_torchvision(name: str, folder: Path) -> None:
    """With torchvision's own first weights: ``spec.build`` takes seconds to settle better ones."""
    spec = torchvision_spec(name, image_size=TORCHVISION_SIZE, num_classes=16)
    module = torchvision.models.get_model(name, weights=None, num_classes=16)
    export_module(spec, module, folder / f"{name}.onnx", "torchscript")


def features_of(module: nn.Module) -> nn.Module:
    features = module.get_submodule("features").to_empty(device="cpu")
    for parameter in features.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return features
