"""Cost of a graph: its layers as rows, and arithmetic and bytes per kernel after the usual fusions.

- A convolution or matrix product takes in the elementwise layers behind it: BatchNorm, the
  residual addition, activations. Elementwise layers in a row become one kernel.
- Q/DQ pairs, casts and changes of shape vanish: a tensor is read and written in the narrowest type
  on its way, as the kernel before or behind the pair does it.

What a compiler fuses beyond that (pooling, concatenation) only makes the real cost smaller in
`LayerCost.input_bytes` and `output_bytes`; arithmetic and weights are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import ceil, prod
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir as ir

from deploykit.core.errors import ModelFileError, UsageError
from deploykit.core.sizes import shape_text
from deploykit.costs.network import LayerCost, LayerInfo, ModelSummary, NetworkCost
from deploykit.graph.element_types import precision_of_type, quantized_precision
from deploykit.graph.external_weights import split_own
from deploykit.graph.files import infer_shapes
from deploykit.graph.foreign import mended_of
from deploykit.graph.half import HEAVY_OPS
from deploykit.graph.products import multiply_adds, product_of, shape_of
from deploykit.graph.shapes import fixed_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from deploykit.core.precision import Precision
    from deploykit.core.specs import Array, SplitGraph

    RunGraph = Callable[[SplitGraph, Mapping[str, Array]], Mapping[str, Array]]


def describe_layers(
    model: ir.Model, name: str, batch: int, run: RunGraph | None = None
) -> ModelSummary:
    """One row per node, in graph order, with open dimensions filled in.

    Integers of unknown length (indices, shapes) have no row. ``run`` computes the outputs of a
    graph: shapes that cannot be inferred are then those of a run.

    Raises:
        UsageError: a dimension beside the batch is open, so that no shape can be given.
        ModelFileError: there is no input, or shape inference finds no shape for a value.
    """
    fixed = model.clone()
    image = next((v for v in fixed.graph.inputs if not v.is_initializer()), None)
    if image is None:
        raise ModelFileError(f"{name} takes no input, so there is nothing to follow through it")
    fix_batch(fixed, batch, run)
    rows = [_row(node) for node in fixed.graph if node.outputs and not _counts_places(node)]
    # A set: the parameters of a weight that several layers share count once.
    weights = {value for node in fixed.graph for value in _weights(node)}
    return ModelSummary(
        name=name,
        input_shape=shape_of(image),
        layers=tuple(rows),
        parameters=sum(prod(shape_of(value)) for value in weights),
        notes=mended_of(model).notes,
    )


def fix_batch(model: ir.Model, batch: int, run: RunGraph | None = None) -> None:
    """Give an open first dimension the size ``batch``, and infer all shapes again.

    Where inference finds none, the shape that was known before is kept, with the batch in it, and
    else ``run`` tells it.

    Raises:
        UsageError: a dimension beside the batch is open.
    """
    known = {value: value.shape for node in model.graph for value in node.outputs}
    for value in known:
        value.shape = None  # inferred again for this batch
    sizes: dict[str, int] = {}
    for value in model.graph.inputs:
        dims = list(value.shape or ())
        if any(not isinstance(dim, int) for dim in dims[1:]):
            shown = shape_text(dim if isinstance(dim, int) else dim.value for dim in dims)
            raise UsageError(
                f"input {value.name!r} has open dimensions: {shown}\n"
                "give its height and width, for example --height 224 --width 224, or "
                "--input-size 224"
            )
        if dims and not isinstance(dims[0], int):
            if dims[0].value is not None:
                sizes[dims[0].value] = batch
            value.shape = ir.Shape([batch, *dims[1:]])
    infer_shapes(model)
    # A second time, for the values behind those whose shape was put back.
    if _remember(known, sizes):
        infer_shapes(model)
    missing = [value for value in known if value.name and not _is_known(value)]
    if missing and run is not None:
        _measure(model, missing, run)


def _remember(known: Mapping[ir.Value, ir.Shape | None], sizes: Mapping[str, int]) -> bool:
    """Give values without a complete shape the one that they had; True if there were any."""
    found = False
    for value, shape in known.items():
        if shape is None or (value.shape is not None and value.shape.is_static()):
            continue
        dims = [dim if isinstance(dim, int) else sizes.get(str(dim.value)) for dim in shape]
        if None not in dims:
            value.shape = ir.Shape(dims)
            found = True
    return found


def _is_known(value: ir.Value) -> bool:
    return value.shape is not None and value.shape.is_static()


def _measure(model: ir.Model, missing: Sequence[ir.Value], run: RunGraph) -> None:
    """Give ``missing`` the shapes that they have in a run on noise."""
    names = [str(value.name) for value in missing]
    noise = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for value in model.graph.inputs:
        if not value.is_initializer():
            dtype = np.dtype(np.float32) if value.dtype is None else value.dtype.numpy()
            feeds[str(value.name)] = noise.random(shape_of(value)).astype(dtype)
    found = run(split_own(_shapes_as_outputs(model, names), "the graph with its shapes"), feeds)
    for value in missing:
        value.shape = ir.Shape([int(size) for size in found[_shape_name(str(value.name))]])
    infer_shapes(model)  # types too, which follow from what is known now


def _shapes_as_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy whose outputs are the shapes of the values ``names``: a few numbers each."""
    shown = model.clone()
    computed = {value.name: value for node in shown.graph for value in node.outputs}
    shown.graph.outputs.clear()
    for name in names:
        shape = ir.Value(
            name=_shape_name(name),
            type=ir.TensorType(ir.DataType.INT64),
            shape=ir.Shape([None]),
        )
        shown.graph.append(ir.Node("", "Shape", [computed[name]], outputs=[shape]))
        shown.graph.outputs.append(shape)
    return shown


def _shape_name(name: str) -> str:
    return f"{name}/shape-of-a-run"


def _row(node: ir.Node) -> LayerInfo:
    parameters = sum(prod(shape_of(value)) for value in _weights(node))
    return LayerInfo(
        name=str(node.name),
        kind=node.op_type,
        output_shape=shape_of(node.outputs[0]),
        parameters=parameters,
        multiply_adds=multiply_adds(node),
    )


def _counts_places(node: ir.Node) -> bool:
    """True if it computes integers whose number only a run tells: indices, shapes."""
    value = node.outputs[0]
    return not _is_known(value) and value.dtype is not None and value.dtype.is_integer()


def _weights(node: ir.Node) -> Iterator[ir.Value]:
    """Constants that were trained: neither scales and zero points, nor shapes."""
    quantizes = node.op_type in {"DequantizeLinear", "QuantizeLinear"}
    for value in node.inputs[:1] if quantizes else node.inputs:
        if value is None or not value.is_initializer() or value.dtype is None:
            continue
        if quantizes or value.dtype.is_floating_point():
            yield value


VANISHING_OPS: Final = frozenset({
    "Cast", "DequantizeLinear", "Dropout", "Flatten", "Identity", "QuantizeLinear", "Reshape",
    "Squeeze", "Unsqueeze",
})  # fmt: skip
"""Operators without a kernel of their own in a compiled network."""

_ELEMENTWISE = """
Abs Add BatchNormalization Celu Clip Div Elu Erf Exp Gelu HardSigmoid HardSwish LeakyRelu Log Max
Min Mish Mul Neg PRelu Pow Reciprocal Relu Selu Sigmoid Softplus Softsign Sqrt Sub Tanh
ThresholdedRelu Where
"""
ELEMENTWISE_OPS: Final = frozenset(_ELEMENTWISE.split())
"""Operators that compilers append to the kernel whose result they read."""

_WINOGRAD_KERNEL: Final = (3, 3)
_BN_SCALE, _BN_BIAS = 1, 2


def network_cost(model: ir.Model, batch: int, run: RunGraph | None = None) -> NetworkCost:
    """Count a graph in any precision; ``model`` must be one that `tidy` has seen.

    ``run`` is for shapes that cannot be inferred, as of `describe_layers`.

    Raises:
        UsageError: no positive batch, the graph's batch is fixed at another, or a dimension beside
            it is open.
        ModelFileError: shape inference finds no shape for a value.
    """
    _check_batch(model, batch)
    fixed = model.clone()
    fix_batch(fixed, batch, run)
    flow = _Flow(fixed.graph)
    kernels = _fuse(flow)
    # A set: a weight that several layers share is stored, and read, once.
    weights = {item for kernel in kernels for item in flow.weights_of(kernel)}
    return NetworkCost(
        batch=batch,
        layers=tuple(_layer(kernel, flow) for kernel in kernels),
        weight_bytes=_total(weights),
        input_bytes=sum(_bytes(value, _bits(value)) for value in flow.inputs),
        output_bytes=sum(_bytes(value, _bits(value)) for value in fixed.graph.outputs),
        activation_bytes=_most_alive(kernels, flow),
    )


def _most_alive(kernels: Sequence[_Kernel], flow: _Flow) -> int:
    """Bytes of all results that some kernel has still to read, at the kernel where they are most.

    A result needs its place from the kernel that writes it to the last that reads it; those of the
    network are needed to the end.
    """
    turn = {node: at for at, kernel in enumerate(kernels) for node in kernel.nodes}
    change = [0] * (len(kernels) + 1)
    for at, kernel in enumerate(kernels):
        for value in kernel.made:
            size = _bytes(value, _written_bits(value, kernel, flow))
            readers = [reader for reader, _ in flow.readers.get(value, ())]
            last = max((turn.get(each, at) for each in readers if each), default=at)
            change[at] += size
            change[len(kernels) if None in readers else last + 1] -= size
    return max(accumulate(change), default=0)


def _check_batch(model: ir.Model, batch: int) -> None:
    if batch < 1:
        raise UsageError(f"a batch of {batch} has no cost\nexpected a whole number from 1 up")
    size = fixed_batch(model)
    if size is not None and size != batch:
        images = next(value for value in model.graph.inputs if not value.is_initializer())
        raise UsageError(
            f"input {images.name!r} has a fixed batch of {size}, not {batch}\n"
            "ask for that batch, or export the model with an open one"
        )


@dataclass(frozen=True, slots=True)
class _Read:
    """One input of a node, traced back through vanishing operators to the value that is stored."""

    source: ir.Value
    bits: int
    """Width of an element, the narrowest on the way."""
    quantized: Precision | None
    """Precision of the last Q/DQ pair on the way; ``None`` if there is none."""


@dataclass
class _Kernel:
    """Nodes that become one kernel; ``tail`` is what the last of them computes."""

    nodes: list[ir.Node]

    @property
    def head(self) -> ir.Node:
        return self.nodes[0]

    @property
    def tail(self) -> ir.Value:
        return self.nodes[-1].outputs[0]

    @property
    def made(self) -> set[ir.Value]:
        return {value for node in self.nodes for value in node.outputs}


class _Flow:
    """Values and their readers in a graph, without the nodes that vanish."""

    def __init__(self, graph: ir.Graph) -> None:
        self.inputs = [value for value in graph.inputs if not value.is_initializer()]
        self.position = {node: index for index, node in enumerate(graph) if _computes(node)}
        self.reads = {node: list(self._reads(node)) for node in self.position}
        self.readers: dict[ir.Value, list[tuple[ir.Node | None, int]]] = {}
        for node, reads in self.reads.items():
            for _, read in reads:
                self.readers.setdefault(read.source, []).append((node, read.bits))
        for value in graph.outputs:  # read by the caller, in the type that is declared
            self.readers.setdefault(_follow(value).source, []).append((None, _bits(value)))

    def weights_of(self, kernel: _Kernel) -> Iterator[tuple[ir.Value, int]]:
        """Constants that a kernel reads, with the bits of an element."""
        for node in kernel.nodes:
            for index, read in self.reads[node]:
                if read.source.is_initializer() and not _is_folded(node, index, kernel):
                    yield read.source, read.bits

    def serves_only(self, value: ir.Value, node: ir.Node) -> bool:
        """True if only ``node`` and elementwise nodes right behind it read ``value``.

        In x * sigmoid(x) the product is such a node behind the sigmoid.
        """
        chain: set[ir.Node | None] = {node}
        behind = self._sole_reader(node)
        while behind is not None and behind.op_type in ELEMENTWISE_OPS:
            chain.add(behind)
            behind = self._sole_reader(behind)
        return {reader for reader, _ in self.readers[value]} <= chain

    def _sole_reader(self, node: ir.Node) -> ir.Node | None:
        readers = {reader for reader, _ in self.readers.get(node.outputs[0], ())}
        return readers.pop() if len(readers) == 1 else None

    def _reads(self, node: ir.Node) -> Iterator[tuple[int, _Read]]:
        for index, value in enumerate(node.inputs):
            if value is not None and _is_data(value):
                yield index, _follow(value)


def _fuse(flow: _Flow) -> list[_Kernel]:
    kernels: list[_Kernel] = []
    open_kernels: dict[ir.Value, _Kernel] = {}
    for node in flow.position:
        kernel = _host(node, flow, open_kernels)
        if kernel is None:
            kernel = _Kernel([node])
            kernels.append(kernel)
        else:
            del open_kernels[kernel.tail]
            kernel.nodes.append(node)
        # Pooling, concatenation and the like do not take in what follows them.
        if kernel.head.op_type in HEAVY_OPS | ELEMENTWISE_OPS:
            open_kernels[kernel.tail] = kernel
    return kernels


def _host(node: ir.Node, flow: _Flow, open_kernels: dict[ir.Value, _Kernel]) -> _Kernel | None:
    """The kernel that an elementwise node is appended to.

    Of the two operands of a residual addition it is the one without a Q/DQ pair, and of two plain
    ones that which is computed last.
    """
    if node.op_type not in ELEMENTWISE_OPS:
        return None
    found = [
        (not read.quantized, flow.position[kernel.nodes[-1]], kernel)
        for _, read in flow.reads[node]
        if (kernel := open_kernels.get(read.source)) is not None
        # A smaller operand is broadcast: its kernel computes another shape.
        and shape_of(kernel.tail) == shape_of(node.outputs[0])
        and flow.serves_only(read.source, node)
    ]
    return max(found, key=lambda item: item[:2])[2] if found else None


def _layer(kernel: _Kernel, flow: _Flow) -> LayerCost:
    made = kernel.made
    inputs: dict[ir.Value, int] = {}
    for node in kernel.nodes:
        for _, read in flow.reads[node]:
            if read.source not in made and not read.source.is_initializer():
                # A value that two nodes of a kernel read is loaded once, in the wider of the types.
                inputs[read.source] = max(read.bits, inputs.get(read.source, 0))
    outputs = {value: _written_bits(value, kernel, flow) for value in made}
    return LayerCost(
        name=str(kernel.head.name),
        kinds=tuple(node.op_type for node in kernel.nodes),
        precision=_precision(kernel.head, flow),
        multiply_adds=sum(multiply_adds(node) for node in kernel.nodes),
        weight_bytes=_total(dict(flow.weights_of(kernel)).items()),
        input_bytes=_total(inputs.items()),
        output_bytes=_total(item for item in outputs.items() if item[1]),
        winograd=_may_be_winograd(kernel.head),
        nodes=tuple(str(node.name) for node in kernel.nodes),
        product=product_of(kernel.head),
    )


def _written_bits(value: ir.Value, kernel: _Kernel, flow: _Flow) -> int:
    """Bits of an element that the kernel writes; 0 if no other kernel reads the value."""
    readers = flow.readers.get(value, ())
    return max((bits for reader, bits in readers if reader not in kernel.nodes), default=0)


def _precision(head: ir.Node, flow: _Flow) -> Precision:
    reads = dict(flow.reads[head])
    operands = [reads[index] for index in (0, 1) if index in reads]
    if head.op_type in HEAVY_OPS and operands:
        quantized = {read.quantized for read in operands}
        widest = max(quantized, key=lambda each: 0 if each is None else each.facts.operand_bits)
        if widest is not None and None not in quantized:
            return widest
    return precision_of_type(head.outputs[0].dtype)


def _may_be_winograd(node: ir.Node) -> bool:
    if node.op_type != "Conv" or node.inputs[1] is None:
        return False
    steps = [node.attributes.get(name) for name in ("strides", "dilations")]
    dense = all(step is None or set(step.as_ints()) == {1} for step in steps)
    return dense and shape_of(node.inputs[1])[2:] == _WINOGRAD_KERNEL


def _is_folded(node: ir.Node, index: int, kernel: _Kernel) -> bool:
    """True if a constant of a BatchNorm becomes part of others when the graph is compiled.

    Four vectors become a scale and a bias; behind a convolution the scale goes into its weights.
    """
    if node.op_type != "BatchNormalization":
        return False
    return index != _BN_BIAS and not (index == _BN_SCALE and node is kernel.head)


def _computes(node: ir.Node) -> bool:
    """True if a node computes data: neither shapes, nor one that vanishes."""
    if _vanishes(node):
        return False
    return any(_is_data(value) for value in node.outputs)


def _is_data(value: ir.Value) -> bool:
    # What has no known type is not passed over, so that its missing shape is complained about.
    return value.dtype is None or value.dtype.is_floating_point()


def _vanishes(node: ir.Node) -> bool:
    return node.op_type in VANISHING_OPS and not node.domain


def _follow(value: ir.Value) -> _Read:
    bits, quantized = _bits(value), None
    node = value.producer()
    while node is not None and _vanishes(node) and node.inputs[0] is not None:
        if node.op_type == "DequantizeLinear":
            quantized = quantized or quantized_precision(node)
        value = node.inputs[0]
        bits = min(bits, _bits(value))
        node = value.producer()
    # What the caller binds is read as it is, whatever the first kernel makes of it.
    bound = node is None and not value.is_initializer()
    return _Read(value, _bits(value) if bound else bits, quantized)


def _bits(value: ir.Value) -> int:
    dtype = ir.DataType.FLOAT if value.dtype is None else value.dtype
    return dtype.bitwidth


def _bytes(value: ir.Value, bits: int) -> int:
    return ceil(prod(shape_of(value)) * bits / 8)


def _total(values: Iterable[tuple[ir.Value, int]]) -> int:
    return sum(_bytes(value, bits) for value, bits in values)
