"""A graph in torch, exact or with the rounding of its Q/DQ pairs, part by part."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from deploykit.graph import qdq
from deploykit.precision.finetuning.operators import apply

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir
    from torch import Tensor

    from deploykit.graph.qdq import Block, QdqPlan
    from deploykit.graph.qdq.plan import QdqFormat


class _Rounded(torch.autograd.Function):
    """What a Q/DQ pair makes of values, with gradients for the values and for the scale.

    Rounding passes the gradient on as it is. Of the scale it is the step less the exact quotient,
    and the largest step where values are cut off (Esser et al. 2020, LSQ,
    https://arxiv.org/abs/1902.08153, equation 3).
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, largest: float, is_float: bool) -> Tensor:  # noqa: FBT001 - torch hands it on by place
        quotient = values / scale
        ctx.save_for_backward(quotient)
        ctx.setting = largest, is_float
        return _steps(quotient, largest, is_float=is_float) * scale

    @staticmethod
    def backward(ctx: Any, *given: Any) -> Any:
        (quotient,) = ctx.saved_tensors
        largest, is_float = ctx.setting
        (gradient,) = given
        inside = quotient.abs() <= largest
        of_values = gradient * inside
        steps = _steps(quotient, largest, is_float=is_float)
        of_scale = (gradient * steps).sum() - (of_values * quotient).sum()
        return of_values, of_scale, None, None


def _steps(quotient: Tensor, largest: float, *, is_float: bool) -> Tensor:
    steps = quotient.clamp(-largest, largest)
    if is_float:
        return steps.to(torch.float8_e4m3fn).to(torch.float32)
    return steps.round()


def rounded(values: Tensor, scale: Tensor, wanted: QdqFormat) -> Tensor:
    """Values as the format has them with one ``scale``, differentiable in both."""
    is_float = wanted.dtype.is_floating_point()
    found: Tensor = _Rounded.apply(values, scale, wanted.largest, is_float)
    return found


def nearest_steps(quotient: Tensor, wanted: QdqFormat) -> Tensor:
    """The format's nearest numbers, through which gradients pass as they are."""
    steps = _steps(quotient.detach(), wanted.largest, is_float=wanted.dtype.is_floating_point())
    return quotient + (steps - quotient).detach()


@dataclass(frozen=True)
class Narrow:
    """What a network of eight bits computes with.

    ``weights`` are on their grid, by the name of the weight; ``scales`` those of activations, by
    the name of the value; ``shifts`` (C,) are added to the outputs of layers, by their name.
    """

    weights: Mapping[str, Tensor] = field(default_factory=dict)
    scales: Mapping[str, Tensor] = field(default_factory=dict)
    shifts: Mapping[str, Tensor] = field(default_factory=dict)


class TorchNetwork:
    """The nodes of an FP32 graph as torch functions, and where ``plan`` rounds."""

    def __init__(self, model: ir.Model, plan: QdqPlan) -> None:
        self.plan = plan
        self.constants = {
            name: torch.from_numpy(values.copy())
            for name, values in qdq.constants_of(model).items()
        }
        self.blocks = qdq.blocks_of(model, plan)
        self.nodes = tuple(model.graph)
        self.image = self.blocks[0].start
        self.output = str(model.graph.outputs[0].name)
        self._read_narrow = {
            (reader.node, reader.position): tensor
            for tensor, readers in plan.activations.items()
            for reader in readers
        }
        self._weights = {(weight.node, weight.index): weight.tensor for weight in plan.weights}

    def whole(self, images: Tensor, narrow: Narrow | None = None) -> Tensor:
        """The first output for images (N, C, H, W); without ``narrow`` in FP32.

        Raises:
            UnknownOperatorError: there is no torch function for a node.
        """
        return self._run({self.image: images}, self.nodes, self.output, narrow)

    def part(self, block: Block, given: Tensor, narrow: Narrow | None = None) -> Tensor:
        """The value that a block ends with; ``given`` is the one that it starts from."""
        return self._run({block.start: given}, block.nodes, block.end, narrow)

    def largest_between(self, images: Tensor) -> int:
        """Numbers of the largest value that a block starts from or ends with, of one image."""
        sizes, given = [images[0].numel()], images
        with torch.no_grad():
            for block in self.blocks:
                given = self.part(block, given)
                sizes.append(given.numel() // len(images))
        return max(sizes)

    def _run(
        self,
        given: Mapping[str, Tensor],
        nodes: Sequence[ir.Node],
        wanted: str,
        narrow: Narrow | None,
    ) -> Tensor:
        values = dict(given)
        narrowed: dict[str, Tensor] = {}
        left = Counter(str(value.name) for node in nodes for value in node.inputs if value)
        for node in nodes:
            inputs = [
                None
                if value is None
                else self._read(node, at, str(value.name), values, narrowed, narrow)
                for at, value in enumerate(node.inputs)
            ]
            outputs = apply(node, inputs)
            for value, found in zip(node.outputs, outputs, strict=False):
                values[str(value.name)] = found
            self._shift(node, values, narrow)
            for read in node.inputs:
                name = "" if read is None else str(read.name)
                left[name] -= 1
                if not left[name] and name != wanted:
                    values.pop(name, None)  # without gradients nothing else holds it
                    narrowed.pop(name, None)
        return values[wanted]

    def _read(
        self,
        node: ir.Node,
        at: int,
        name: str,
        values: Mapping[str, Tensor],
        narrowed: dict[str, Tensor],
        narrow: Narrow | None,
    ) -> Tensor:
        place = str(node.name), at
        if narrow is not None and place in self._weights:
            return narrow.weights[self._weights[place]]
        exact = values[name] if name in values else self.constants[name]
        if narrow is None or place not in self._read_narrow:
            return exact
        if name not in narrowed:
            narrowed[name] = rounded(exact, narrow.scales[name], self.plan.format)
        return narrowed[name]

    def _shift(self, node: ir.Node, values: dict[str, Tensor], narrow: Narrow | None) -> None:
        shift = None if narrow is None else narrow.shifts.get(str(node.name))
        if shift is not None:
            output = str(node.outputs[0].name)
            rank = values[output].ndim
            sides = [-1 if at == 1 else 1 for at in range(rank)]
            values[output] = values[output] + shift.reshape(sides)
