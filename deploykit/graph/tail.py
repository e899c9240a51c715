"""The tail of a graph: which activation an output has behind it, and which layer gives its values.

A tail is read backwards from an output. Operators that only change the shape are passed over; the
first that changes the meaning (Softmax, ArgMax, ...) names the activation, and the last layer with
weights before it names the classes. A Softmax with a product behind it, as attention has, is never
reached: the product comes first. One file because its rules call one another at every step back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

_LAYOUT: Final = frozenset(
    {
        "Cast", "CastLike", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose",
        "Unsqueeze",
    }
)  # fmt: skip
"""Operators that keep the values as they are, or nearly so."""

_LAYERS: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

_AFFINE: Final = frozenset({"Add", "BatchNormalization", "Div", "Mul", "Sub", "Sum"})
"""Passed on the way to the layer where everything but one operand is constant: bias, scale."""

_PASSED: Final = frozenset(
    {
        "AveragePool", "Clip", "DequantizeLinear", "GlobalAveragePool", "GlobalMaxPool", "MaxPool",
        "Pad", "QuantizeLinear", "ReduceMean", "Relu",
    }
)  # fmt: skip
"""Passed on the way to the layer, and noted: classifiers of convolutions pool their classes."""

_SIMPLE: Final = {
    "ArgMax": "argmax",
    "HardSigmoid": "sigmoid",
    "LogSoftmax": "log_softmax",
    "LpNormalization": "l2",
    "ReduceMax": "maximum",
    "Sigmoid": "sigmoid",
    "Softmax": "softmax",
}
_OF_EACH: Final = frozenset({"l2", "log_softmax", "sigmoid", "softmax"})
"""Activations that give a value for each that they read: behind a part they leave a part."""

SQUASHING_OPS: Final = frozenset(_SIMPLE)
"""Operators behind which values are no logits any more."""

_JOINED: Final = frozenset({"Add", "Concat", "Max", "Mean", "Min", "Sum"})
"""Several activations in one output: an ensemble, or labels of several layers."""

_PARTING: Final = frozenset(
    {
        "Clip", "Concat", "Gather", "GatherElements", "Neg", "ReduceMean", "ReduceSum", "Slice",
        "Split",
    }
)  # fmt: skip
"""Operators that make something else of probabilities: some of them, their sum, one less them."""

_GATHERS: Final = frozenset({"Gather", "GatherElements", "GatherND"})
_IMAGE_AXES: Final = 4
"""Of images (N, C, H, W) or (N, H, W, C)."""

_FARTHEST: Final = 64
"""Operators that are followed back at most; a tail is a handful."""


@dataclass(frozen=True, slots=True)
class Tail:
    """What is known of one output from the operators before it.

    Attributes:
        output: its name.
        activation: ``none``, ``softmax``, ``log_softmax``, ``sigmoid``, ``argmax``, ``top_k``
            (class numbers), ``top_values``, ``maximum`` or ``l2``. One behind the values of a
            TopK leaves ``top_values``, as does a Gather at class numbers, and one behind a
            ReduceMax beside the ArgMax of the same values ``maximum``.
        layer: the value that the last Gemm, MatMul or Conv with weights of its own gives; ``None``
            where something else than bias, pooling and ReLU lies between.
        classes: values per position that the layer gives.
        between: operators between layer and activation that are neither bias nor a change of
            shape, the last first.
        feeds: the outputs that are computed from the values of this one.
        layers: how many layers with weights it depends on.
        is_inner: whether another output has a later layer, which these values go through.
        is_of_probabilities: whether they are made of nothing but a Softmax's or Sigmoid's values,
            as the column of one class is.
        is_mean: whether they are such values weighted by other numbers than 0 and 1, as an age is
            the mean of all ages.
        ranked: the probabilities, one for each class, of which an ArgMax, TopK or ReduceMax takes
            the largest; ``None`` where these are no probabilities.
        scale: the activation that such an operator is given, as ``softmax``.
        has_rankings: whether a TopK ranks several places of an image, each by itself.
    """

    output: str
    activation: str = "none"
    layer: str | None = None
    classes: int | None = None
    between: tuple[str, ...] = ()
    feeds: frozenset[str] = frozenset()
    layers: int = 0
    is_inner: bool = False
    is_of_probabilities: bool = False
    is_mean: bool = False
    ranked: str | None = None
    scale: str = "none"
    has_rankings: bool = False


def read_tails(model: ir.Model) -> dict[str, Tail]:
    """The tail of every output, by its name."""
    outputs = list(model.graph.outputs)
    before = {str(value.name): _before(value) for value in outputs}
    roots = {str(value.name): _behind_layout(value) for value in outputs}
    numbered = {value for root in roots.values() if (value := _numbered(root)) is not None}
    is_one = any(_is_one_image(value) for value in model.graph.inputs)
    tails = {}
    for name, root in roots.items():
        feeds = {other for other, known in before.items() if other != name and root in known}
        layers = {found.producer() for found in before[name]}
        count = sum(node is not None and _has_weights(node) for node in layers)
        tails[name] = replace(
            _tail(name, root, numbered),
            feeds=frozenset(feeds),
            layers=count,
            has_rankings=_has_rankings(root, is_one=is_one),
        )
    return {name: _placed(tail, tails) for name, tail in tails.items()}


def _placed(tail: Tail, tails: Mapping[str, Tail]) -> Tail:
    is_inner = any(tails[fed].layer != tail.layer for fed in tail.feeds)
    return replace(tail, is_inner=is_inner)


def _numbered(root: ir.Value) -> ir.Value | None:
    """The values whose class numbers ``root`` has."""
    kind, given = _applied(root)
    return _behind_layout(given) if kind in {"argmax", "top_k"} else None


def _tail(name: str, root: ir.Value, numbered: Collection[ir.Value]) -> Tail:
    activation, value = _part(root, numbered)
    layer, between = _last_layer(value)
    return Tail(
        output=name,
        activation=activation,
        layer=None if layer is None else str(layer.outputs[0].name),
        classes=None if layer is None else _classes(layer),
        between=between,
        is_of_probabilities=_is_of_probabilities(root),
        is_mean=_is_mean(root),
        ranked=_ranked(root),
        scale=_scale(root),
    )


def _part(root: ir.Value, numbered: Collection[ir.Value]) -> tuple[str, ir.Value]:
    """As `_activation`; the Sigmoid of the largest value is no yes or no beside its number."""
    kind, given = _activation(root)
    if kind not in _OF_EACH:
        return kind, given
    inner, value = _activation(_behind_layout(given))
    is_largest = inner == "maximum" and _behind_layout(value) in numbered
    return (inner, value) if is_largest else (kind, given)


def _ranked(root: ir.Value) -> str | None:
    is_probability = _scale(root) in {"sigmoid", "softmax"}
    return str(_behind_layout(_applied(root)[1]).name) if is_probability else None


def _scale(root: ir.Value) -> str:
    activation, value = _applied(root)
    if activation not in {"argmax", "maximum", "top_k", "top_values"}:
        return "none"
    return _activation(_behind_layout(value))[0]


def _is_of_probabilities(value: ir.Value, steps: int = _FARTHEST) -> bool:
    value = _behind_layout(value)
    node = value.producer()
    if node is None or node.domain or not steps or _is_at_numbers(node):
        return False
    if _activation(value)[0] in {"log_softmax", "sigmoid", "softmax"}:
        return True
    if (weighted := _weighted(node)) is not None:
        return _activation(_behind_layout(weighted))[0] == "softmax"
    if node.op_type not in _AFFINE | _PARTING:
        return False
    operands = list(_dynamic(node))
    # A gate, as x * Sigmoid(x) has, is made of more than probabilities.
    return bool(operands) and all(_is_of_probabilities(each, steps - 1) for each in operands)


def _weighted(node: ir.Node) -> ir.Value | None:
    """What a product sums up into one number, each by a weight of the file."""
    given = [value for value in node.inputs if value is not None]
    operands = [value for value in given if not is_constant(value)]
    if node.op_type not in _LAYERS | {"Einsum"} or len(operands) != 1 or len(given) == 1:
        return None
    weight = next(value for value in given if value is not operands[0])
    shape = [] if weight.shape is None else list(weight.shape)
    is_single = len(shape) == 1 or (node.op_type != "Einsum" and _classes(node) == 1)
    return operands[0] if is_single else None


def _is_mean(value: ir.Value, steps: int = _FARTHEST) -> bool:
    """Whether probabilities are weighted on the way to ``value``, which is made of them alone."""
    value = _behind_layout(value)
    node = value.producer()
    if node is None or not steps or not _is_of_probabilities(value):
        return False
    if _activation(value)[0] != "none":
        return False
    operand = _weighted(node)
    if operand is not None or node.op_type in {"Div", "Mul"}:
        weights = (each for each in node.inputs if each is not None and is_constant(each))
        if any(not _picks(each) for each in weights):
            return True
    return operand is None and any(_is_mean(each, steps - 1) for each in _dynamic(node))


def _picks(weight: ir.Value) -> bool:
    """Whether numbers are one for all classes, or take some and leave others."""
    tensor = ir.convenience.get_const_tensor(weight)
    if tensor is None:
        return False
    data = tensor.numpy()
    return data.size == 1 or bool(np.isin(data, (0, 1)).all())


def _before(value: ir.Value) -> set[ir.Value]:
    """Every value that ``value`` is computed from, itself included."""
    found: set[ir.Value] = {value}
    waiting = [value]
    while waiting:
        node = waiting.pop().producer()
        for given in () if node is None else node.inputs:
            if given is not None and given not in found:
                found.add(given)
                waiting.append(given)
    return found


def _behind_layout(value: ir.Value) -> ir.Value:
    for _ in range(_FARTHEST):
        node = value.producer()
        if node is None or node.op_type not in _LAYOUT or node.domain or node.inputs[0] is None:
            return value
        value = node.inputs[0]
    return value


def _activation(value: ir.Value) -> tuple[str, ir.Value]:
    """The activation that ends in ``value``, and what it was applied to.

    What is applied to some of the values, as the Softmax of the largest three, leaves some of them.
    """
    kind, given = _applied(value)
    if kind not in _OF_EACH or given is value:
        return kind, given
    inner = _activation(_behind_layout(given))
    return inner if inner[0] == "top_values" else (kind, given)


def _applied(value: ir.Value) -> tuple[str, ir.Value]:
    """The last activation before ``value``, whatever it was applied to."""
    node = value.producer()
    if node is None or node.domain or not node.inputs or node.inputs[0] is None:
        return "none", value
    given = node.inputs[0]
    if node.op_type == "TopK":
        if not _is_ranking(node):
            return "none", value
        return ("top_values" if value is node.outputs[0] else "top_k"), given
    if node.op_type in _SIMPLE:
        return _SIMPLE[node.op_type], given
    if node.op_type in _GATHERS:
        return _gathered(node, given, value)
    return _written_out(node) or _guarded(node) or _joined(node, value)


def _gathered(node: ir.Node, given: ir.Value, value: ir.Value) -> tuple[str, ir.Value]:
    """Values of those classes whose numbers were found, as by ``p.gather(1, p.argmax(1))``."""
    if is_constant(given) or not _is_at_numbers(node):
        return "none", value
    if _numbered(_behind_layout(node.inputs[1] or value)) is _behind_layout(given):
        return "top_values", given
    # At other places, as those after them: nobody knows which of the values these are.
    return ("top_values" if _is_of_probabilities(given) else "none"), value


def _is_at_numbers(node: ir.Node) -> bool:
    """Whether a Gather's places are computed from class numbers, and not from a count of images."""
    waiting = list(node.inputs[1:2]) if node.op_type in _GATHERS else []
    numbers, seen = {"ArgMax", "ArgMin", "TopK"}, set(waiting)
    while waiting and len(seen) < _FARTHEST:
        value = waiting.pop()
        maker = None if value is None else value.producer()
        if maker is None or maker.op_type in _LAYERS | {"Shape"}:
            continue
        if maker.op_type in numbers:
            return True
        waiting += [each for each in maker.inputs if each not in seen]
        seen.update(maker.inputs)
    return False


def _is_one_image(given: ir.Value) -> bool:
    shape = list(given.shape or ())
    return len(shape) == _IMAGE_AXES and shape[0] == 1


def _has_rankings(root: ir.Value, *, is_one: bool) -> bool:
    """Whether a TopK reads more than a row for each image, of which a file may take ``is_one``.

    Which axis is the batch is not known: one of any size may be, where the file takes several.
    """
    node = root.producer()
    if node is None or node.op_type != "TopK" or node.inputs[0] is None:
        return False
    shape = list(node.inputs[0].shape or ())
    ranked = node.attributes.get_int("axis", -1) % max(len(shape), 1)
    others = [size for axis, size in enumerate(shape) if axis != ranked and size != 1]
    known = [size for size in others if isinstance(size, int)]
    return len(known if is_one else others) > (0 if is_one else 1)


def _is_ranking(node: ir.Node) -> bool:
    """Whether the first place of a TopK is the largest value."""
    flags = (node.attributes.get_int(name, 1) for name in ("largest", "sorted"))
    return all(flags)


def _guarded(node: ir.Node) -> tuple[str, ir.Value] | None:
    """A probability behind a Clip, or a sum of several over their number."""
    if node.op_type not in {"Clip", "Div", "Mul"} or not _is_outer(node):
        return None
    found = _applied(_behind_layout(next(_dynamic(node))))
    return found if found[0] in {"sigmoid", "softmax"} else None


def _is_outer(node: ir.Node) -> bool:
    """Whether it only guards a probability, or divides a sum of several by their number."""
    operands = list(_dynamic(node))
    if len(operands) != 1:
        return False
    inner = _behind_layout(operands[0]).producer()
    return node.op_type == "Clip" or (inner is not None and inner.op_type in {"Add", "Sum"})


def _joined(node: ir.Node, value: ir.Value) -> tuple[str, ir.Value]:
    operands = list(_dynamic(node))
    if node.op_type not in _JOINED or len(operands) < 2:  # noqa: PLR2004 - one is a bias
        return "none", value
    kinds = {_activation(_behind_layout(operand))[0] for operand in operands}
    return ("sigmoid", value) if kinds == {"sigmoid"} else ("none", value)


def _written_out(node: ir.Node) -> tuple[str, ir.Value] | None:
    """An activation that several operators make together."""
    for read in (_log, _softmax, _sigmoid, _l2):
        found = read(node)
        if found is not None:
            return found
    return None


def _log(node: ir.Node) -> tuple[str, ir.Value] | None:
    inner = _made_by(node, "Log")
    if inner is None:
        return None
    kind, value = _applied(_behind_layout(inner))
    return ("log_softmax", value) if kind == "softmax" else None


def _softmax(node: ir.Node) -> tuple[str, ir.Value] | None:
    """Read exp(x) / sum(exp(x)), x less its maximum or not."""
    if node.op_type != "Div" or None in node.inputs:
        return None
    above, below = (_behind_layout(value) for value in node.inputs if value is not None)
    exponentials, total = above.producer(), below.producer()
    if exponentials is None or total is None or exponentials.op_type != "Exp":
        return None
    if total.op_type != "ReduceSum" or total.inputs[0] is not above:
        return None
    inner = exponentials.inputs[0]
    shifted = None if inner is None else inner.producer()
    if shifted is not None and shifted.op_type == "Sub" and _is_maximum(shifted.inputs[1]):
        inner = shifted.inputs[0]
    return None if inner is None else ("softmax", inner)


def _is_maximum(value: ir.Value | None) -> bool:
    node = None if value is None else value.producer()
    return node is not None and node.op_type == "ReduceMax"


def _sigmoid(node: ir.Node) -> tuple[str, ir.Value] | None:
    """Read 1 / (1 + exp(-x))."""
    below = node.inputs[-1] if node.op_type in {"Div", "Reciprocal"} else None
    if below is None or (node.op_type == "Div" and not _is_number(node.inputs[0], 1.0)):
        return None
    total = below.producer()
    if total is None or total.op_type != "Add":
        return None
    ones = [value for value in total.inputs if _is_number(value, 1.0)]
    operands = list(_dynamic(total))
    if len(ones) != 1 or len(operands) != 1:
        return None
    exponential = operands[0].producer()
    inner = None if exponential is None else _made_by(exponential, "Exp")
    negative = None if inner is None else inner.producer()
    given = None if negative is None else _made_by(negative, "Neg")
    return None if given is None else ("sigmoid", given)


def _l2(node: ir.Node) -> tuple[str, ir.Value] | None:
    """Read x over its norm, which may be guarded by Clip, Max or Add."""
    if node.op_type not in {"Div", "Mul"} or len(node.inputs) < 2:  # noqa: PLR2004
        return None
    left, right = node.inputs[0], node.inputs[1]
    pairs = [(left, right)] if node.op_type == "Div" else [(left, right), (right, left)]
    for value, factor in pairs:
        if value is None or factor is None:
            continue
        if node.op_type == "Mul":
            inverse = factor.producer()
            factor = None if inverse is None else _made_by(inverse, "Reciprocal")  # noqa: PLW2901
        if factor is not None and _is_norm_of(factor, value):
            return "l2", value
    return None


_NORM_STEPS: Final = frozenset({"Add", "Clip", "Expand", "Max", "Pow", "Sqrt", *_LAYOUT})


def _is_norm_of(norm: ir.Value, value: ir.Value) -> bool:
    root = _behind_layout(value)
    for _ in range(_FARTHEST):
        node = norm.producer()
        if node is None:
            return False
        if node.op_type in {"ReduceL2", "ReduceSum", "ReduceSumSquare"}:
            return _is_of_squares(node, root)
        operands = list(_dynamic(node))
        if node.op_type not in _NORM_STEPS or not operands:
            return False
        norm = operands[0]
    return False


def _is_of_squares(node: ir.Node, root: ir.Value) -> bool:
    """Whether the reduction sums up the squares of ``root``; their sum alone is no norm."""
    given = node.inputs[0]
    if node.op_type == "ReduceSum":
        squares = None if given is None else given.producer()
        is_square = squares is not None and squares.op_type in {"Mul", "Pow"}
        given = squares.inputs[0] if squares is not None and is_square else None
    return given is not None and _behind_layout(given) is root


def _last_layer(value: ir.Value) -> tuple[ir.Node | None, tuple[str, ...]]:
    """The last layer with weights of its own before ``value``, and what lies between."""
    between: list[str] = []
    for _ in range(_FARTHEST):
        value = _behind_layout(value)
        node = value.producer()
        if node is None or node.domain:
            break
        if _has_weights(node):
            return node, tuple(between)
        operands = list(_dynamic(node))
        if node.op_type in _PASSED or node.op_type in _SIMPLE:
            between.append(node.op_type)
        elif node.op_type not in _AFFINE or len(operands) != 1:
            between.append(node.op_type)
            break
        if not operands:
            break
        value = operands[0]
    return None, tuple(between)


def _classes(layer: ir.Node) -> int | None:
    weight = layer.inputs[1] or layer.inputs[0]
    shape = None if weight is None else weight.shape
    if shape is None or not all(isinstance(size, int) for size in shape):
        return None
    sizes = [int(size) for size in shape if isinstance(size, int)]
    if layer.op_type == "Conv":
        return sizes[0]
    if layer.op_type == "ConvTranspose":
        return sizes[1] * layer.attributes.get_int("group", 1)
    return sizes[0] if layer.attributes.get_int("transB", 0) else sizes[-1]


def _has_weights(node: ir.Node) -> bool:
    if node.op_type not in _LAYERS or node.domain:
        return False
    return any(value is not None and is_constant(value) for value in node.inputs[:2])


def is_constant(value: ir.Value, steps: int = 8) -> bool:
    """Whether the numbers of ``value`` are in the file, whatever was done to them since."""
    if value.const_value is not None:
        return True
    node = value.producer()
    if node is None or not steps:
        return False
    return all(given is None or is_constant(given, steps - 1) for given in node.inputs)


def _dynamic(node: ir.Node) -> Iterator[ir.Value]:
    """The operands that depend on the image; the first of an operator whose others are options."""
    given: Sequence[ir.Value | None] = node.inputs
    if node.op_type not in _AFFINE | _JOINED:
        given = given[:1]
    return (value for value in given if value is not None and not is_constant(value))


def _made_by(node: ir.Node, op_type: str) -> ir.Value | None:
    return node.inputs[0] if node.op_type == op_type else None


def _is_number(value: ir.Value | None, number: float) -> bool:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return tensor is not None and tensor.size == 1 and float(tensor.numpy().item()) == number
