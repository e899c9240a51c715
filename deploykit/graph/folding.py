"""Constant folding by onnxscript, within limits.

Old files keep shapes as chains of ``Shape``, ``Gather`` and ``Concat``, weights behind a
``Transpose`` or a normalisation, and BatchNorms beside their convolutions. Stages that come later
see a weight only where it is a constant.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from math import ceil, prod
from typing import TYPE_CHECKING, Final

from onnx_ir.passes.common import InlinePass, RemoveUnusedOpsetsPass, ShapeInferencePass

from deploykit.core.errors import ModelFileError
from deploykit.graph.refusals import is_straight, require_plain
from deploykit.graph.shapes import complete_shapes, require_bounded
from deploykit.graph.tidy import tidy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import onnx_ir as ir
    from onnxscript.rewriter import RewriteRule

    ShouldFold = Callable[[ir.Node], bool]

_SMALL: Final = 4096
"""Elements that a folded constant may have in any case."""

_GROWTH_BYTES: Final = 2**20
"""Growth of the weights that folding may cause; beyond, only small results are folded."""

_UNLIMITED: Final = 2**62
"""Replaces onnxscript's limits on single tensors, which leave normalised weights unfolded."""

_TIMES: Final = 32
"""All results of folding together, by the limit of one: weights pass through a dozen operators."""

_WIDEST: Final = 16
"""Bytes of an element whose type is not known."""

_KEPT_OPS: Final = frozenset(
    {"ConstantOfShape", "DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"}
)
"""Operators that are not folded: one makes much of a few numbers, three hold quantization."""

_UNLISTED_WEIGHTS: Final = 4
"""The first version of the format whose weights need not be among the inputs."""

_ROUNDS: Final = 3
"""Most rounds of folding: each makes shapes known that the next one can fold."""


def fold(model: ir.Model) -> ir.Model:
    """A copy with constants folded, and BatchNorm and zero padding taken into the convolution.

    The same graph always gives the same copy, and one that is hardly larger. Functions of the
    file's own are written out. Where there is nothing to do, ``model`` itself is returned.

    Raises:
        ModelFileError: onnxscript cannot fold this graph.
    """
    limit = _weight_bytes(model) + _GROWTH_BYTES
    # Results that are each no larger than their inputs may still add up, where inputs are shared;
    # then only small results are folded.
    for fits in (_no_larger, _small):
        folded = model.clone()
        try:
            _fold(folded, _Budget(fits, limit))
        except ModelFileError:
            raise
        except Exception as exc:  # its passes raise errors of many unrelated classes
            reason = str(exc.__cause__ or exc).strip().splitlines()
            raise ModelFileError(
                f"constants cannot be folded\n{reason[0] if reason else type(exc).__name__}"
            ) from exc
        if _weight_bytes(folded) <= limit:
            break
    return model if _signature(folded) == _signature(model) else folded


def plain(model: ir.Model, name: str) -> ir.Model:
    """A tidied copy without functions, branches that are never taken, or lists of tensors.

    Raises:
        ModelFileError: some of these depend on the images, or a value would be enormous; ``name``
            is the file's.
    """
    require_bounded(model, name)
    straight = is_straight(model)
    copy = model.clone() if straight else fold(model)
    copy.ir_version = max(copy.ir_version or 0, _UNLISTED_WEIGHTS)
    tidy(copy, rename=False)
    require_plain(copy, name)
    return copy


def _fold(model: ir.Model, should_fold: ShouldFold) -> None:
    from onnxscript.optimizer import fold_constants_ir
    from onnxscript.rewriter import rewrite

    InlinePass()(model)
    require_bounded(model, "the graph")  # what a function makes is known now
    rules = _fusions()
    tidy(model, rename=False)  # only initializers count as constants for the rules
    with _quiet():
        for _ in range(_ROUNDS):
            before = _signature(model)
            ShapeInferencePass()(model)
            complete_shapes(model)
            fold_constants_ir(
                model,
                onnx_shape_inference=True,
                input_size_limit=_UNLIMITED,
                output_size_limit=_UNLIMITED,
                should_fold=should_fold,
            )
            names = _names(model)
            rewrite(model, rules)
            _keep_names(model, names)
            _forget_zeros(model)
            tidy(model, rename=False)
            if _signature(model) == before:
                break
    RemoveUnusedOpsetsPass()(model)


def _names(model: ir.Model) -> dict[str, tuple[str, str]]:
    """Operator and name of each value's producer; for a BatchNorm, those of the node before it."""
    found = {}
    for node in model.graph:
        before = node.inputs[0].producer() if node.inputs and node.inputs[0] else None
        named = before if before and node.op_type == "BatchNormalization" else node
        found[str(node.outputs[0].name)] = (named.op_type, str(named.name))
    return found


def _keep_names(model: ir.Model, names: dict[str, tuple[str, str]]) -> None:
    # A rewritten node has a new name, and users know their layers by the old ones.
    for node in model.graph:
        op_type, name = names.get(str(node.outputs[0].name), ("", ""))
        if op_type == node.op_type:
            node.name = name


def _fusions() -> list[RewriteRule]:
    from onnxscript.rewriter.rules import common

    return [
        common.fuse_batchnorm_into_conv_rule,
        common.fuse_batchnorm_into_conv_transpose_rule,
        common.fuse_batchnorm_into_gemm_rule,
        common.fuse_pad_into_conv_rule,
        common.materialize_reshape_shape_rule,
        common.no_op_cast_rule,
        common.no_op_expand_rule,
        common.no_op_transpose_rule,
    ]


class _Budget:
    """Decision which nodes are folded: those that fit, until the results are too much together.

    All that is folded is held until the round ends. So a result may have as many bytes as the graph
    may have in the end, and all of them together `_TIMES` as many; beyond, only small ones follow.
    """

    def __init__(self, fits: ShouldFold, limit_bytes: int) -> None:
        self._fits = fits
        self._limit_bytes = limit_bytes
        self._left_bytes = _TIMES * limit_bytes

    def __call__(self, node: ir.Node) -> bool:
        if not self._fits(node):
            return False
        needed = sum(map(_bytes_of, node.outputs))
        if needed > min(self._limit_bytes, self._left_bytes):
            return _small(node)
        self._left_bytes -= needed
        return True


def _bytes_of(value: ir.Value) -> int:
    elements = 0 if value.shape is None else prod(value.shape.numpy())
    return ceil(elements * (_WIDEST if value.dtype is None else value.dtype.itemsize))


def _no_larger(node: ir.Node) -> bool:
    """True if the result is small, or has no more elements than its constant inputs together.

    An input counts once: a value joined with itself is larger than it was.
    """
    inputs = {value for value in node.inputs if value and value.const_value}
    return _fits(node, max(_SMALL, sum(value.const_value.size for value in inputs)))  # type: ignore[union-attr, misc]


def _small(node: ir.Node) -> bool:
    return _fits(node, _SMALL)


def _fits(node: ir.Node, limit: int) -> bool:
    if node.op_type in _KEPT_OPS:
        return False
    shapes = [value.shape for value in node.outputs]
    return all(s is not None and s.is_static() and prod(s.numpy()) <= limit for s in shapes)


def _forget_zeros(model: ir.Model) -> None:
    # onnxscript says of each shape that a zero in it would be one; most have none, and not every
    # parser knows the word.
    for node in model.graph:
        shape = node.inputs[1] if node.op_type == "Reshape" else None
        if shape is not None and shape.const_value is not None and shape.const_value.numpy().all():
            node.attributes.pop("allowzero", None)


def _weight_bytes(model: ir.Model) -> int:
    weights = [value.const_value for value in model.graph.initializers.values()]
    constants = [node.attributes.get("value") for node in model.graph if node.op_type == "Constant"]
    tensors = [attribute.as_tensor() for attribute in constants if attribute is not None]
    return sum(tensor.nbytes for tensor in (*weights, *tensors) if tensor is not None)


def _signature(model: ir.Model) -> list[tuple[object, ...]]:
    """Nodes, names and shapes, all that a round can change; equal signatures end the folding."""
    return [
        (node.op_type, *(v and v.name for v in node.inputs), *(str(v.shape) for v in node.outputs))
        for node in model.graph
    ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence onnxscript's warnings about nodes that it leaves as they are."""
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
