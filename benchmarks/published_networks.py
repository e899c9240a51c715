"""Cost tables of the networks whose latency was published, for `benchmarks.estimate`.

    python -m benchmarks.published_networks [NAME ...]

Each network is built without training by torchvision or timm, exported at the size of the published
figure, and counted as `deploykit inspect` counts it, for one image in FP32. Kernels that are alike
are one entry with their number. The result is `published_networks.json`, so that fitting needs no
torch; a network that is in it already is left as it is, unless it is named.

Publishers' own definitions differ in details from those that are counted here: heads of HRNet,
widths of SE blocks. What batch normalisation adds is folded, so that VGG with and without it are
one network.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from benchmarks.estimate import NETWORKS, network_key, read_rows
from deploykit.core.atomic import write_whole

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from deploykit.costs.network import NetworkCost

TIMM: Final = {
    "DarkNet53": "darknet53",
    "GhostNet_x1_0": "ghostnet_100",
    "HRNet_W18_C": "hrnet_w18",
    "HRNet_W32_C": "hrnet_w32",
    "HRNet_W48_C": "hrnet_w48",
    "HRNet_W64_C": "hrnet_w64",
    "InceptionV4": "inception_v4",
    "MobileNetV1": "mobilenetv1_100",
    "MobileNetV2_x0_5": "mobilenetv2_050",
    "MobileNetV3_large_x1_0": "mobilenetv3_large_100",
    "MobileNetV3_small_x1_0": "mobilenetv3_small_100",
    "RegNetX_4GF": "regnetx_040",
    "ResNeSt50": "resnest50d",
    "ResNeXt101_32x8d_wsl": "resnext101_32x8d",
    "ResNeXt50_vd_32x4d": "resnext50d_32x4d",
    "ResNet50_vc": "resnet50c",
    "SE_ResNeXt101_32x4d": "seresnext101_32x4d",
    "SE_ResNeXt50_32x4d": "seresnext50_32x4d",
    **{f"EfficientNetB{size}": f"efficientnet_b{size}" for size in range(8)},
    **{f"ResNet{depth}_vd": f"resnet{depth}d" for depth in (18, 34, 50, 101, 152, 200)},
}
"""Names of Paddle's networks in timm; others are called alike, but for capital letters."""

WIDTHS: Final = {"MobileNetV2": 1.0, "MobileNetV2_x1_5": 1.5, "MobileNetV2_x2_0": 2.0}


def build(name: str) -> nn.Module:
    """The network of a published row, untrained, in evaluation mode."""
    import timm
    import torchvision
    from torch import nn

    plain = name.lower()
    if name in WIDTHS:
        found = torchvision.models.mobilenet_v2(width_mult=WIDTHS[name])
    elif plain.endswith("_features"):
        found = nn.Sequential(
            getattr(torchvision.models, plain.removesuffix("_features"))().features
        )
    elif plain in {"googlenet", "inceptionv3"}:
        chosen = plain.replace("nv3", "n_v3")
        found = torchvision.models.get_model(chosen, init_weights=False, aux_logits=False)
    elif plain.startswith("shufflenetv2"):
        width = plain.removeprefix("shufflenetv2") or "_x1_0"
        found = torchvision.models.get_model(f"shufflenet_v2{width}")
    elif name not in TIMM and plain in torchvision.models.list_models():
        found = torchvision.models.get_model(plain)
    else:
        found = timm.create_model(TIMM.get(name, plain))
    network: nn.Module = found.eval()
    return network


def counted(name: str, size: tuple[int, int]) -> NetworkCost:
    """The cost of one image of ``size`` in FP32."""
    import torch

    from deploykit import graph
    from deploykit.backends._registry import graph_judge
    from deploykit.graph.kernel_costs import network_cost

    with TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's tracer warns of its own internals
        path = Path(folder) / "traced.onnx"
        torch.onnx.export(
            build(name),
            (torch.zeros(1, 3, *size),),
            str(path),
            dynamo=False,
            opset_version=graph.OPSET,
            input_names=["input"],
            output_names=["output"],
            dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}},
        )
        model = graph.read_model(path)
        graph.tidy(model, rename=True)
        return network_cost(graph.fuse_written_out(model), 1, graph_judge().run_once)


def to_entry(cost: NetworkCost) -> dict[str, Any]:
    """Numbers of elements, and each kind of kernel with how many there are."""
    kernels = Counter(
        (
            "+".join(layer.kinds),
            None
            if (product := layer.product) is None
            else (product.rows, product.columns, product.channels, product.window, product.groups),
            layer.winograd,
            layer.weight_bytes // 4,
            layer.input_bytes // 4,
            layer.output_bytes // 4,
        )
        for layer in cost.layers
    )
    return {
        "kernels": [[count, *kernel] for kernel, count in kernels.items()],
        "weights": cost.weight_bytes // 4,
        "input": cost.input_bytes // 4,
        "output": cost.output_bytes // 4,
    }


def main(names: Iterable[str]) -> None:
    """Count what is missing, or what is named, and write the file after each network."""
    asked = set(names)
    found: dict[str, Any] = json.loads(NETWORKS.read_text()) if NETWORKS.exists() else {}
    for row in read_rows():
        key = network_key(row)
        if key in found and row.model not in asked:
            continue
        asked.discard(row.model)
        cost = counted(row.model, row.size)
        found[key] = to_entry(cost)
        sys.stderr.write(f"{key}: {cost.multiply_adds / 1e9:.2f} G multiply-adds\n")
        entries = ",\n".join(
            f"{json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found)
        )
        write_whole(NETWORKS, f"{{\n{entries}\n}}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
