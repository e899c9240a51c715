"""The network that NVIDIA's parser returns: its tensors and layers, and the parser's errors."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class DataType(Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    BF16 = 7
    INT64 = 8
    FP8 = 6


LayerType = Enum(
    "LayerType",
    "CONVOLUTION MATRIX_MULTIPLY POOLING ELEMENTWISE SHUFFLE CAST CONSTANT QUANTIZE DEQUANTIZE",
)


class ErrorCode(Enum):
    UNSUPPORTED_NODE = 8
    MODEL_DESERIALIZE_FAILED = 3


@dataclass
class ITensor:
    name: str
    dtype: DataType = DataType.FLOAT
    shape: tuple[int, ...] = ()


@dataclass
class ILayer:
    type: Enum
    inputs: Sequence[ITensor]
    output: ITensor

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return 1

    def get_input(self, index: int) -> ITensor:
        return self.inputs[index]

    def get_output(self, index: int) -> ITensor:
        assert index == 0
        return self.output


@dataclass
class INetworkDefinition:
    inputs: Sequence[ITensor] = ()
    layers: Sequence[ILayer] = ()
    num_outputs: int = 1

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_input(self, index: int) -> ITensor:
        return self.inputs[index]

    def get_layer(self, index: int) -> ILayer:
        return self.layers[index]


@dataclass(frozen=True)
class ParserError:
    said: str
    error_code: ErrorCode = ErrorCode.UNSUPPORTED_NODE
    name: str = ""
    operator: str = ""
    number: int = -1

    def code(self) -> ErrorCode:
        return self.error_code

    def desc(self) -> str:
        return self.said

    def node(self) -> int:
        return self.number

    def node_name(self) -> str:
        return self.name

    def node_operator(self) -> str:
        return self.operator
