"""ONNX operators as torch functions, so that a graph can be differentiated.

Each follows the operator's page of https://onnx.ai/onnx/operators/. Those of convolutional networks
and transformers are here; a graph with another one, or with a rare attribute, is not fine-tuned.
Whether a network of them computes what onnxruntime does is checked before it is used.
"""

from __future__ import annotations

from functools import reduce
from math import prod
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn import functional as nnf

from deploykit.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx_ir as ir
    from torch import Tensor

    Operator = Callable[[ir.Node, Sequence[Any]], Tensor | Sequence[Tensor]]

FLOAT: Final = 1
"""Number of FP32 in ONNX."""

_TYPES: Final = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool}


class UnknownOperatorError(UsageError):
    """An operator, or a form of one, that has no torch function here."""


def apply(node: ir.Node, inputs: Sequence[Tensor | None]) -> Sequence[Tensor]:
    """The outputs of one node.

    Raises:
        UnknownOperatorError: it cannot be differentiated here.
    """
    operator = OPERATORS.get(node.op_type) if node.domain == "" else None
    if operator is None:
        raise UnknownOperatorError(f"{node.op_type} of node {node.name} has no gradient here")
    found = operator(node, inputs)
    return (found,) if isinstance(found, torch.Tensor) else tuple(found)


def _unless(*, known: bool, node: ir.Node, what: str) -> None:
    if not known:
        raise UnknownOperatorError(f"{node.op_type} of node {node.name} has {what}")


def _ints(node: ir.Node, inputs: Sequence[Any], at: int, name: str) -> list[int] | None:
    """Numbers that are an input in newer opsets and an attribute in older ones."""
    if len(inputs) > at and inputs[at] is not None:
        return [int(one) for one in inputs[at].reshape(-1).tolist()]
    return _numbers(node, name)


def _numbers(node: ir.Node, name: str) -> list[int] | None:
    """An attribute of several numbers, ``None`` where it is not there."""
    return list(node.attributes.get_ints(name)) if name in node.attributes else None


def _pads(node: ir.Node, rank: int) -> tuple[list[int], list[int]]:
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    _unless(known=auto in {"NOTSET", "VALID"}, node=node, what=f"auto_pad {auto}")
    pads = _numbers(node, "pads") or [0] * (2 * rank)
    return [int(one) for one in pads[:rank]], [int(one) for one in pads[rank:]]


def _padded(value: Tensor, begins: list[int], ends: list[int], fill: float = 0.0) -> Tensor:
    # torch names the last dimension first.
    sides = [each for pair in zip(begins[::-1], ends[::-1], strict=True) for each in pair]
    return nnf.pad(value, sides, value=fill) if any(sides) else value


def _conv(node: ir.Node, inputs: Sequence[Any]) -> Tensor:
    x, weight, bias = (*inputs, None)[:3]
    rank = weight.ndim - 2
    begins, ends = _pads(node, rank)
    even = begins == ends
    x = x if even else _padded(x, begins, ends)
    function = {1: nnf.conv1d, 2: nnf.conv2d, 3: nnf.conv3d}[rank]
    found: Tensor = function(
        x,
        weight,
        bias,
        (_numbers(node, "strides") or [1] * rank),
        begins if even else [0] * rank,
        (_numbers(node, "dilations") or [1] * rank),
        node.attributes.get_int("group", 1),
    )
    return found


def _conv_transpose(node: ir.Node, inputs: Sequence[Any]) -> Tensor:
    x, weight, bias = (*inputs, None)[:3]
    rank = weight.ndim - 2
    begins, ends = _pads(node, rank)
    plain = begins == ends and _numbers(node, "output_shape") is None
    _unless(known=plain and rank == 2, node=node, what="uneven pads or an output_shape")  # noqa: PLR2004
    return nnf.conv_transpose2d(
        x,
        weight,
        bias,
        (_numbers(node, "strides") or [1] * rank),
        begins,
        (_numbers(node, "output_padding") or [0] * rank),
        node.attributes.get_int("group", 1),
        (_numbers(node, "dilations") or [1] * rank),
    )


def _gemm(node: ir.Node, inputs: Sequence[Any]) -> Tensor:
    a, b, c = (*inputs, None)[:3]
    a = a.T if node.attributes.get_int("transA", 0) else a
    b = b.T if node.attributes.get_int("transB", 0) else b
    found = node.attributes.get_float("alpha", 1.0) * (a @ b)
    if c is not None:
        found = found + node.attributes.get_float("beta", 1.0) * c
    result: Tensor = found
    return result


def _clip(node: ir.Node, inputs: Sequence[Any]) -> Tensor:
    x, low, high = (*inputs, None, None)[:3]
    if low is None and "min" in node.attributes:
        low = torch.tensor(node.attributes.get_float("min"))
    if high is None and "max" in node.attributes:
        high = torch.tensor(node.attributes.get_float("max"))
    return x if low is None and high is None else torch.clamp(x, low, high)


def _hard_sigmoid(node: ir.Node, inputs: Sequence[Any]) -> Tensor:
    alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    return torch.clamp(alpha * inputs[0] + beta, 0, 1)


def _gelu(node: ir.Node, inputs: Sequence[Any]) -> Tensor:
    return nnf.gelu(inputs[0], approximate=node.attributes.get_string("approximate", "none"))


def _softmax(node: ir.Node, inputs: Sequence[Any]) -> Tensor:
    return torch.softmax(inputs[0], node.attributes.get_int("axis", -1))


def _layer_norm(node: ir.Node, inputs: Sequence[Any]) -> Tensor:
    x, scale, bias = (*inputs, None)[:3]
    axis = node.attributes.get_int("axis", -1) % x.ndim
    return nnf.layer_norm(
        x, x.shape[axis:], scale, bias, node.attributes.get_float("epsilon", 1e-5)
    )


def _batch_norm(node: ir.Node, inputs: Sequence[Any]) -> Tensor:
    x, scale, bias, mean, variance = inputs[:5]
    return nnf.batch_norm(
        x, mean, variance, scale, bias, eps=node.attributes.get_float("epsilon", 1e-5)
    )


def _pool_setting(node: ir.Node) -> tuple[list[int], list[int], list[int], list[int], bool]:
    kernel = list(node.attributes.get_ints("kernel_shape"))
    _unless(known=len(kernel) == 2, node=node, what="another rank")  # noqa: PLR2004
    strides = _numbers(node, "strides") or [1] * len(kernel)
    begins, ends = _pads(node, len(kernel))
    dilations = _numbers(node, "dilations") or [1] * len(kernel)
    _unless(known=set(dilations) == {1}, node=node, what="dilations")
    return kernel, strides, begins, ends, bool(node.attributes.get_int("ceil_mode", 0))


def _max_pool(node: ir.Node, inputs: Sequence[Any]) -> Tensor:
    kernel, strides, begins, ends, ceil = _pool_setting(node)
    x = _padded(inputs[0], begins, ends, float("-inf"))
    return nnf.max_pool2d(x, kernel, strides, ceil_mode=ceil)


def _average_pool(node: ir.Node, inputs: Sequence[Any]) -> Tensor:
    kernel, strides, begins, ends, ceil = _pool_setting(node)
    _unless(known=begins == ends, node=node, what="uneven pads")
    counts = bool(node.attributes.get_int("count_include_pad", 0))
    return nnf.avg_pool2d(inputs[0], kernel, strides, begins, ceil, counts)


def _global_average(_node: ir.Node, inputs: Sequence[Any]) -> Tensor:
    found: Tensor = inputs[0].mean(dim=tuple(range(2, inputs[0].ndim)), keepdim=True)
    return found


def _reduce(
    function: Callable[..., Tensor],
) -> Operator:
    def reduced(node: ir.Node, inputs: Sequence[Any]) -> Tensor:
        axes = _ints(node, inputs, 1, "axes")
        keep = bool(node.attributes.get_int("keepdims", 1))
        noop = node.attributes.get_int("noop_with_empty_axes", 0)
        if axes is None and noop:
            return inputs[0]  # type: ignore[no-any-return]
        return function(inputs[0], axes or tuple(range(inputs[0].ndim)), keepdim=keep)

    return reduced


def _flatten(node: ir.Node, inputs: Sequence[Any]) -> Tensor:
    x = inputs[0]
    axis = node.attributes.get_int("axis", 1)
    axis += x.ndim if axis < 0 else 0
    found: Tensor = x.reshape(prod(x.shape[:axis]), -1)
    return found


def _reshape(node: ir.Node, inputs: Sequence[Any]) -> Tensor:
    x, shape = inputs[0], inputs[1].tolist()
    zeros = bool(node.attributes.get_int("allowzero", 0)) and 0 in shape
    _unless(known=not zeros, node=node, what="a dimension of 0")
    found: Tensor = x.reshape([x.shape[at] if one == 0 else one for at, one in enumerate(shape)])
    return found


def _transpose(node: ir.Node, inputs: Sequence[Any]) -> Tensor:
    order = _numbers(node, "perm") or range(inputs[0].ndim)[::-1]
    found: Tensor = inputs[0].permute(tuple(order))
    return found


def _squeeze(node: ir.Node, inputs: Sequence[Any]) -> Tensor:
    axes = _ints(node, inputs, 1, "axes")
    found: Tensor = inputs[0].squeeze() if axes is None else inputs[0].squeeze(tuple(axes))
    return found


def _unsqueeze(node: ir.Node, inputs: Sequence[Any]) -> Tensor:
    x, axes = inputs[0], _ints(node, inputs, 1, "axes") or []
    rank = x.ndim + len(axes)
    for axis in sorted(one % rank for one in axes):
        x = x.unsqueeze(axis)
    result: Tensor = x
    return result


def _split(node: ir.Node, inputs: Sequence[Any]) -> Sequence[Tensor]:
    axis, sizes = node.attributes.get_int("axis", 0), _ints(node, inputs, 1, "split")
    if sizes is None:
        return torch.chunk(inputs[0], len(node.outputs), axis)
    return torch.split(inputs[0], sizes, axis)


def _slice(_node: ir.Node, inputs: Sequence[Any]) -> Tensor:
    x, starts, ends, axes, steps = (*inputs, None, None)[:5]
    axes = range(len(starts)) if axes is None else axes.tolist()
    steps = [1] * len(starts) if steps is None else steps.tolist()
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), axes, steps, strict=True):
        places = range(x.shape[axis])[slice(start, end if end >= -x.shape[axis] else None, step)]
        x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64))
    result: Tensor = x
    return result


def _gather(node: ir.Node, inputs: Sequence[Any]) -> Tensor:
    x, indices = inputs[0], inputs[1]
    axis = node.attributes.get_int("axis", 0) % x.ndim
    flat = torch.remainder(indices.reshape(-1), x.shape[axis])
    found: Tensor = x.index_select(axis, flat).reshape(
        *x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]
    )
    return found


def _shape(node: ir.Node, inputs: Sequence[Any]) -> Tensor:
    end = node.attributes.get_int("end", None)
    return torch.tensor(list(inputs[0].shape)[node.attributes.get_int("start", 0) : end])


def _pad(node: ir.Node, inputs: Sequence[Any]) -> Tensor:
    x, pads, fill, axes = (*inputs, None, None)[:4]
    mode = node.attributes.get_string("mode", "constant")
    _unless(known=mode == "constant" and axes is None, node=node, what=f"mode {mode}, or axes")
    sides = pads.tolist()
    return _padded(x, sides[: x.ndim], sides[x.ndim :], 0.0 if fill is None else float(fill))


def _cast(node: ir.Node, inputs: Sequence[Any]) -> Tensor:
    wanted = _TYPES.get(node.attributes.get_int("to"))
    _unless(known=wanted is not None, node=node, what="another type")
    found: Tensor = inputs[0].to(wanted)
    return found


def _div(_node: ir.Node, inputs: Sequence[Any]) -> Tensor:
    if inputs[0].is_floating_point():
        return inputs[0] / inputs[1]  # type: ignore[no-any-return]
    return torch.div(inputs[0], inputs[1], rounding_mode="trunc")


def _concat(node: ir.Node, inputs: Sequence[Any]) -> Tensor:
    return torch.cat(list(inputs), node.attributes.get_int("axis"))


def _one(function: Callable[..., Any]) -> Operator:
    """An operator without attributes that is torch's function of its inputs."""
    return lambda _node, inputs: function(*inputs)


def _fold(function: Callable[..., Any]) -> Operator:
    return lambda _node, inputs: reduce(function, inputs)


OPERATORS: Final[Mapping[str, Operator]] = {
    "Abs": _one(torch.abs),
    "Add": _one(torch.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": _div,
    "Dropout": lambda _node, inputs: inputs[0],
    "Elu": lambda node, x: nnf.elu(x[0], node.attributes.get_float("alpha", 1.0)),
    "Equal": _one(torch.eq),
    "Erf": _one(torch.erf),
    "Exp": _one(torch.exp),
    "Expand": lambda _node, x: x[0] * torch.ones(x[1].tolist(), dtype=x[0].dtype),
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _one(nnf.hardswish),
    "Identity": _one(lambda x: x),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda node, x: nnf.leaky_relu(x[0], node.attributes.get_float("alpha", 0.01)),
    "LogSoftmax": lambda node, x: torch.log_softmax(x[0], node.attributes.get_int("axis", -1)),
    "MatMul": _one(torch.matmul),
    "Max": _fold(torch.maximum),
    "MaxPool": _max_pool,
    "Min": _fold(torch.minimum),
    "Mish": _one(nnf.mish),
    "Mul": _one(torch.mul),
    "Neg": _one(torch.neg),
    "PRelu": _one(lambda x, slope: torch.where(x < 0, x * slope, x)),
    "Pad": _pad,
    "Pow": _one(lambda x, power: torch.pow(x, power.to(x.dtype))),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "Relu": _one(torch.relu),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": _one(torch.sigmoid),
    "Slice": _slice,
    "Softmax": _softmax,
    "Softplus": _one(nnf.softplus),
    "Split": _split,
    "Sqrt": _one(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _one(torch.sub),
    "Tanh": _one(torch.tanh),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _one(torch.where),
}
