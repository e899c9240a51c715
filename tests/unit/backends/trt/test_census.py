from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.backends.trt.census import take_census
from deploykit.backends.trt.compiler import Messages, logger_into
from tests.fakes.network_fake import DataType, ILayer, INetworkDefinition, ITensor, LayerType
from tests.unit.backends.trt import small_models

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.backends import Compiler


def census_of(compiler: Compiler, path: Path) -> dict[str, int]:
    """Parse only; every object stays referenced as long as the network is used."""
    module = compiler.module
    logger = logger_into(Messages(), module)
    builder = module.Builder(logger)
    network = builder.create_network(1)
    parser = module.OnnxParser(network, logger)
    assert parser.parse_from_file(str(path))
    return take_census(network)


@pytest.mark.parametrize(("dtype", "name"), [(np.float32, "FLOAT"), (np.float16, "HALF")])
def test_plain_networks(rtx: Compiler, tmp_path: Path, dtype: type, name: str) -> None:
    path = small_models.convolution(tmp_path / "model.onnx", dtype)
    assert census_of(rtx, path) == {
        f"ACTIVATION {name}": 1,
        f"CONVOLUTION {name}": 1,
        f"MATRIX_MULTIPLY {name}": 1,
        f"REDUCE {name}": 1,
    }


def test_a_half_converted_network(rtx: Compiler, tmp_path: Path) -> None:
    census = census_of(rtx, small_models.half_converted(tmp_path / "model.onnx"))
    assert census == {"CONVOLUTION FLOAT": 1, "CONVOLUTION HALF": 1}


@pytest.mark.parametrize(("dtype", "name"), [(np.float32, "FLOAT"), (np.float16, "HALF")])
def test_quantized_layers_count_as_int8(
    rtx: Compiler, tmp_path: Path, dtype: type, name: str
) -> None:
    census = census_of(rtx, small_models.quantized(tmp_path / "model.onnx", dtype))
    assert census == {"CONVOLUTION INT8": 1, "MATRIX_MULTIPLY INT8": 1, f"REDUCE {name}": 1}


def test_quantized_weights_alone_are_not_int8(rtx: Compiler, tmp_path: Path) -> None:
    path = small_models.quantized(tmp_path / "model.onnx", np.float16, weights_only=True)
    census = census_of(rtx, path)
    assert census["CONVOLUTION HALF"] == census["MATRIX_MULTIPLY HALF"] == 1
    assert not [kind for kind in census if kind.endswith("INT8")]


def layer(kind: str, source: ITensor, target: ITensor, *others: ITensor) -> ILayer:
    return ILayer(LayerType[kind], (source, *others), target)


def test_the_way_back_passes_shuffles_and_casts() -> None:
    tensors = {name: ITensor(name) for name in ("data", "d", "moved", "weights", "w", "cast", "y")}
    tensors["data"].dtype = tensors["weights"].dtype = DataType.INT8
    network = INetworkDefinition(
        layers=[
            layer("DEQUANTIZE", tensors["data"], tensors["d"]),
            layer("SHUFFLE", tensors["d"], tensors["moved"]),
            layer("DEQUANTIZE", tensors["weights"], tensors["w"]),
            layer("CAST", tensors["w"], tensors["cast"]),
            layer("MATRIX_MULTIPLY", tensors["moved"], tensors["y"], tensors["cast"]),
        ]
    )
    assert take_census(network) == {"MATRIX_MULTIPLY INT8": 1}
    tensors["data"].dtype = DataType.HALF
    assert take_census(network) == {"MATRIX_MULTIPLY FLOAT": 1}


def test_shape_arithmetic_is_left_out() -> None:
    source, target = ITensor("shape", DataType.INT64), ITensor("sum", DataType.INT64)
    network = INetworkDefinition(layers=[layer("ELEMENTWISE", source, target)])
    assert take_census(network) == {}
