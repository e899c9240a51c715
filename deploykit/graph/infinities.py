"""Infinities that a graph holds on purpose, as those of an attention mask, and how far they reach.

A score of -infinity is a probability of 0, and padding of -infinity never is the maximum. Such
infinities stand in the constants of a graph. Others that FP32 itself makes, as an exponential does
that something is divided by, are the network's own where its outputs are numbers all the same.
Every one that FP32 has not is a fault of a type that ends too soon.
"""

from __future__ import annotations

from hashlib import sha256
from math import inf
from typing import TYPE_CHECKING, Final

import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

Signs = frozenset[int]
"""Which of -1 and 1."""

_NONE: Final[Signs] = frozenset()
_BOTH: Final[Signs] = frozenset({-1, 1})

_CARRYING: Final = frozenset(
    {
        "Add", "Cast", "CastLike", "CenterCropPad", "Clip", "Compress", "Concat", "Constant",
        "ConstantOfShape", "CumSum", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather",
        "GatherElements", "GatherND", "GlobalMaxPool", "Identity", "LeakyRelu", "LogSoftmax",
        "Max", "MaxPool", "Min", "Neg", "OneHot", "Pad", "ReduceMax", "ReduceMin", "ReduceSum",
        "Reshape", "ReverseSequence", "ScatterElements", "ScatterND", "Slice",
        "SpaceToDepth", "Split", "Squeeze", "Sub", "Sum", "Tile", "TopK", "Transpose", "Trilu",
        "Unsqueeze", "Where",
    }
)  # fmt: skip
"""Operators that pass an infinity on; Neg and Sub turn its sign."""

_RISING: Final = frozenset({"Celu", "Elu", "Relu", "Selu", "Sqrt"})
"""Operators that pass on infinity, make a number of -infinity or NaN, and none of a number."""

_TURNING: Final = frozenset({"Abs", "Div", "Mul"})
"""Operators that pass it on with either sign."""

_FLOATS: Final = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
)


def carried_infinities(model: ir.Model, own: Collection[str] = ()) -> dict[ir.Value, Signs]:
    """The signs of the infinities that each computed value may have from constants of the graph.

    Operators that make a number of an infinity, as a softmax does, end it, and so does a MaxPool
    whose windows all reach beyond the padding. Values without any are left out. Those named by
    ``own`` may have either, as they were seen with some.
    """
    found: dict[ir.Value, Signs] = {}
    for node in model.graph:
        signs = _signs_made(node, found)
        for value in node.outputs:
            of = _BOTH if value.name in own else signs
            if of:
                found[value] = of
    return found


def _signs_made(node: ir.Node, found: Mapping[ir.Value, Signs]) -> Signs:
    if node.domain or node.op_type not in _CARRYING | _RISING | _TURNING:
        return _NONE
    given = [_signs_of(value, found) for value in node.inputs]
    if node.op_type in {"Constant", "ConstantOfShape"}:
        given = [_signs_of_tensor(_tensor_of(node))]
    elif node.op_type in {"Neg", "Sub"}:
        given[-1] = frozenset(-sign for sign in given[-1])
    elif node.op_type in {"Clip", "Div"}:
        given = given[:1]  # a bound that is infinite bounds nothing; a number / infinity is 0
    elif node.op_type in _RISING:
        given = [signs & {1} for signs in given]
    elif node.op_type == "MaxPool" and _sees_behind_padding(node, found):
        given = []
    signs = _NONE.union(*given)
    return _BOTH if signs and node.op_type in _TURNING else signs


def _tensor_of(node: ir.Node) -> ir.TensorProtocol | None:
    given = node.attributes.get("value")
    if given is not None and given.type == ir.AttributeType.TENSOR:
        return given.as_tensor()
    return None if node.op_type == "ConstantOfShape" else node.outputs[0].const_value


def _signs_of(value: ir.Value | None, found: Mapping[ir.Value, Signs]) -> Signs:
    if value is None:
        return _NONE
    if value.is_initializer():
        return _signs_of_tensor(value.const_value)
    return found.get(value, _NONE)


def _signs_of_tensor(tensor: ir.TensorProtocol | None) -> Signs:
    if tensor is None or tensor.dtype not in _FLOATS or not tensor.size:
        return _NONE
    data = tensor.numpy()
    # NaN among the numbers hides infinities here: then there is more to mend than a mask.
    return frozenset(
        sign for sign, end in ((1, data.max()), (-1, data.min())) if float(end) == sign * inf
    )


def _sees_behind_padding(pool: ir.Node, found: Mapping[ir.Value, Signs]) -> bool:
    """Whether a Pad made what ``pool`` reads, and every window reaches a value that was padded."""
    value = pool.inputs[0]
    pad = None if value is None else value.producer()
    kernel = pool.attributes.get_ints("kernel_shape", None)
    if pad is None or pad.op_type != "Pad" or kernel is None or _signs_of(pad.inputs[0], found):
        return False
    own = pool.attributes.get_ints("pads", None) or [0] * 2 * len(kernel)
    padded = _pads_of(pad, len(kernel) + 2)
    if padded is None or not _has_plain_windows(pool):
        return False
    rank, size = len(padded) // 2, len(kernel)
    outer = [padded[at] for end in (0, rank) for at in range(end, end + 2)]
    return not any(outer) and all(
        padded[side * rank + 2 + axis] + own[side * size + axis] < kernel[axis]
        for side in (0, 1)
        for axis in range(size)
    )


def _has_plain_windows(pool: ir.Node) -> bool:
    """Whether windows have no gaps, and none begins behind the last value."""
    is_said = pool.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
    has_gaps = any(step > 1 for step in pool.attributes.get_ints("dilations", ()))
    return is_said and not has_gaps and not pool.attributes.get_int("ceil_mode", 0)


def _pads_of(pad: ir.Node, rank: int) -> Sequence[int] | None:
    """What is added before and behind each axis; ``None`` where the file does not say."""
    amounts = pad.inputs[1] if len(pad.inputs) > 1 else None
    axes = pad.inputs[3] if len(pad.inputs) > 3 else None  # noqa: PLR2004
    if amounts is None or amounts.const_value is None:
        return pad.attributes.get_ints("pads", None)  # as it was before opset 11
    given = [int(each) for each in amounts.const_value.numpy().reshape(-1)]
    if axes is None:
        return given if len(given) == 2 * rank else None
    if axes.const_value is None:
        return None
    places = [int(axis) % rank for axis in axes.const_value.numpy().reshape(-1)]
    full = [0] * 2 * rank
    for at, axis in enumerate(places):
        full[axis], full[rank + axis] = given[at], given[len(places) + at]
    return full


def mended(model: ir.Model) -> frozenset[str]:
    """Names of results of a Softmax, and their casts, of which a Where takes no NaN.

    PyTorch's exporter writes an attention so: a row that is masked as a whole is NaN, and 0 behind.
    """
    found: set[ir.Value] = set()
    for node in model.graph:
        if node.op_type == "Softmax" and not node.domain:
            chain = _with_casts(node.outputs[0])
            uses = [use for value in chain for use in value.uses()]
            is_safe = all(_takes_no_nan(use.node, use.idx, chain) for use in uses)
            is_chosen = any(use.node.op_type == "Where" for use in uses)
            if is_safe and is_chosen and not any(value.is_graph_output() for value in chain):
                found.update(chain)
    return frozenset(str(value.name) for value in found)


def _with_casts(value: ir.Value) -> list[ir.Value]:
    found = [value]
    for each in found:
        found += [use.node.outputs[0] for use in each.uses() if use.node.op_type == "Cast"]
    return found


def _takes_no_nan(reader: ir.Node, index: int, chain: Collection[ir.Value]) -> bool:
    if reader.op_type != "Where":
        return reader.op_type in {"Cast", "IsNaN"}
    condition = reader.inputs[0]
    test = None if condition is None else condition.producer()
    is_tested = test is not None and test.op_type == "IsNaN" and test.inputs[0] in chain
    return is_tested and index == len(reader.inputs) - 1


def placed_by_images(model: ir.Model, own: Collection[str] = ()) -> frozenset[str]:
    """Names of values whose infinities are at places that depend on what the graph is given.

    A threshold on scores chooses them, say: rounding moves a score that is close to it to the
    other side, as it does everywhere. ``own`` as for `carried_infinities`.
    """
    infinities = carried_infinities(model, own)
    given: set[ir.Value | None] = {v for v in model.graph.inputs if not v.is_initializer()}
    found: set[ir.Value | None] = set()
    for node in model.graph:
        depends = not given.isdisjoint(node.inputs) and node.op_type not in {"Shape", "Size"}
        if depends:
            given.update(node.outputs)
        # What chooses are conditions and places: numbers of another type than those chosen from.
        choosers = [value for value in node.inputs if value is not None and _chooses(value)]
        is_chosen = (node.op_type == "TopK" and depends) or not given.isdisjoint(choosers)
        if is_chosen or not found.isdisjoint(node.inputs):
            found.update(value for value in node.outputs if value in infinities)
    return frozenset(str(value.name) for value in found if value is not None)


def _chooses(value: ir.Value) -> bool:
    return value.dtype is not None and not value.dtype.is_floating_point()


def digest_of_signs(signs: NDArray[np.int8]) -> str:
    """What tells where infinities are and of which sign; empty where there is none.

    ``signs`` are -1, 1, and 0 where a number is.
    """
    return sha256(signs.tobytes()).hexdigest() if signs.any() else ""


def counterparts(converted: ir.Model, known: Collection[str]) -> dict[str, str]:
    """Which of the values ``known`` of the graph before a conversion each value stands for.

    By its name, or through casts: where a value is an output of the graph, a conversion gives its
    name to what is behind a cast of it.
    """
    found: dict[str, str] = {}
    casts: list[tuple[str, str]] = []
    for node in converted.graph:
        source = node.inputs[0] if node.op_type == "Cast" and not node.domain else None
        for value in node.outputs:
            name = str(value.name)
            if name in known:
                found[name] = name
            if source is not None:
                casts.append((str(source.name), name))
    for source_name, name in casts:
        if source_name in found:
            found.setdefault(name, found[source_name])
    for source_name, name in reversed(casts):
        if name in found:
            found.setdefault(source_name, found[name])
    return found
