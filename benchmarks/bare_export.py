"""What a user would write without deploykit: export, halve, compile. No check of any kind.

The peer of `export_cost.py`; takes the path of the engine to write.
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import tensorrt_rtx as trt
import torch
import torchvision
from onnxruntime.transformers.float16 import convert_float_to_float16


def main(engine: Path) -> None:
    torch.manual_seed(0)
    module = torchvision.models.resnet50(weights=None).eval()
    program = torch.onnx.export(
        module,
        (torch.zeros(2, 3, 224, 224),),
        dynamo=True,
        opset_version=20,
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    assert program is not None  # noqa: S101 - a measuring script may stop here
    half = convert_float_to_float16(program.model_proto, keep_io_types=True)
    path = engine.with_suffix(".onnx")
    onnx.save(half, path)

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    flag = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flag)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(path))  # noqa: S101
    config = builder.create_builder_config()
    config.num_compute_capabilities = 5
    for index, name in enumerate(("SM80", "SM86", "SM89", "SM120", "SM121")):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    profile = builder.create_optimization_profile()
    profile.set_shape("input", (1, 3, 224, 224), (8, 3, 224, 224), (32, 3, 224, 224))
    config.add_optimization_profile(profile)
    engine.write_bytes(bytes(builder.build_serialized_network(network, config)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
