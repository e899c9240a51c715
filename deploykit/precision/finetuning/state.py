"""Variables of fine-tuning: weights on their grid, scales of activations, shifts of biases."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from deploykit.graph import qdq
from deploykit.precision.finetuning.network import Narrow, nearest_steps

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import onnx_ir as ir
    from numpy.typing import NDArray
    from torch import Tensor

    from deploykit.graph.qdq import QdqPlan
    from deploykit.graph.qdq.plan import QdqFormat, QuantizedWeight

    Floats = NDArray[np.float32]


_INSIDE = 0.499
"""Of a step: what is no further from a whole number is rounded to it."""


@dataclass(frozen=True)
class Grid:
    """A weight in steps: ``exact`` as it was before rounding, ``steps`` as it is stored.

    ``scale`` is in a shape that multiplies them. ``is_held`` marks what stays as it is: the largest
    number of each channel, which the scale is found from again when the graph is written.
    """

    exact: Tensor
    steps: Tensor
    scale: Tensor
    is_held: Tensor

    @classmethod
    def of(cls, weight: Floats, axis: int, wanted: QdqFormat) -> Grid:
        """The grid that insertion gives a weight, rounded to the nearest."""
        scales = qdq.channel_scales(weight, axis, wanted)
        shape = [-1 if at == axis else 1 for at in range(weight.ndim)]
        scale = torch.from_numpy(scales).reshape(shape)
        exact = torch.from_numpy(weight.copy()) / scale
        exact = exact.clamp(-wanted.largest, wanted.largest)
        steps = nearest_steps(exact, wanted)
        is_end = steps.abs() >= wanted.largest
        others = [at for at in range(weight.ndim) if at != axis]
        return cls(exact, steps, scale, is_end | ~is_end.amax(others, keepdim=True))

    @property
    def values(self) -> Tensor:
        """The numbers that the stored steps stand for."""
        return self.steps * self.scale

    def neighbours(self, wanted: QdqFormat) -> tuple[Tensor, Tensor]:
        """The format's numbers below and above each exact one; equal where it is held."""
        if wanted.dtype.is_floating_point():
            known = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float32)
            known = torch.unique(known[torch.isfinite(known)])
            at = torch.searchsorted(known, self.exact, right=True) - 1
            lower, upper = known[at], known[(at + 1).clamp(max=len(known) - 1)]
        else:
            lower = torch.floor(self.exact)
            upper = (lower + 1).clamp(max=wanted.largest)
        return (
            torch.where(self.is_held, self.steps, lower),
            torch.where(self.is_held, self.steps, upper),
        )

    def start(self, wanted: QdqFormat) -> Tensor:
        """Numbers that round to ``steps`` and lie as near to the exact ones as they can."""
        if wanted.dtype.is_floating_point():
            return self.steps.clone()
        near = torch.maximum(torch.minimum(self.exact, self.steps + _INSIDE), self.steps - _INSIDE)
        return torch.where(self.is_held, self.steps, near)

    def rounded(self, free: Tensor, wanted: QdqFormat) -> Tensor:
        """The steps of ``free`` numbers, through which gradients pass; what is held stays."""
        return torch.where(self.is_held, self.steps, nearest_steps(free, wanted))


@dataclass
class TuningState:
    """All that a network of eight bits computes with.

    ``grids`` are by the name of the weight; ``scales`` by the name of the first value of a group
    that shares one; ``shifts`` by layer. ``weights`` are those that one node alone reads. ``units``
    (C,) are how far the rounding of its input moves each output channel of a layer.
    """

    plan: QdqPlan
    grids: dict[str, Grid]
    scales: dict[str, Tensor]
    shifts: dict[str, Tensor]
    group_of: Mapping[str, str]
    weights: Mapping[str, QuantizedWeight]
    units: Mapping[str, Tensor]

    @classmethod
    def of(
        cls,
        model: ir.Model,
        plan: QdqPlan,
        amax: Mapping[str, float],
        shifts: Mapping[str, Floats],
        weights: Mapping[str, Floats],
    ) -> TuningState:
        """As the conversion would write them; ``weights`` (K, N) are rounded already."""
        rounded = qdq.constants_of(qdq.set_weights(model, weights) if weights else model)
        group_of = {name: min(plan.group_of(name)) for name in plan.activations}
        scales = qdq.activation_scales(plan, amax)
        channels = qdq.biased_layers(model, plan)
        own = qdq.own_weights(model, plan)
        grids = {w.tensor: Grid.of(rounded[w.tensor], w.axis, plan.format) for w in plan.weights}
        inputs = {
            reader.node: scales[name]
            for name, readers in plan.activations.items()
            for reader in readers
            if reader.position == 0
        }
        return cls(
            plan,
            grids,
            {group_of[name]: torch.tensor(scale) for name, scale in scales.items()},
            {
                layer: torch.from_numpy(shifts[layer].copy()) if layer in shifts else torch.zeros(n)
                for layer, n in channels.items()
            },
            group_of,
            {w.tensor: w for w in plan.weights if w.tensor in own},
            {
                w.node: _unit(grids[w.tensor], w.axis, inputs.get(w.node), channels[w.node])
                for w in plan.weights
                if w.node in channels
            },
        )

    def narrow(
        self,
        steps: Mapping[str, Tensor] | None = None,
        scales: Mapping[str, Tensor] | None = None,
        shifts: Mapping[str, Tensor] | None = None,
    ) -> Narrow:
        """For a pass of the network, with others in place of what is named."""
        given, chosen = steps or {}, {**self.scales, **(scales or {})}
        return Narrow(
            {
                name: given[name] * grid.scale if name in given else grid.values
                for name, grid in self.grids.items()
            },
            {name: chosen[group] for name, group in self.group_of.items()},
            {**self.shifts, **(shifts or {})},
        )

    def changed(
        self,
        steps: Mapping[str, Tensor],
        scales: Mapping[str, Tensor],
        shifts: Mapping[str, Tensor],
    ) -> TuningState:
        """Another state with these in place of its own."""
        grids = dict(self.grids)
        for name, found in steps.items():
            old = grids[name]
            grids[name] = Grid(old.exact, found.detach(), old.scale, old.is_held)
        return TuningState(
            self.plan,
            grids,
            {**self.scales, **{name: each.detach() for name, each in scales.items()}},
            {**self.shifts, **{name: each.detach() for name, each in shifts.items()}},
            self.group_of,
            self.weights,
            self.units,
        )

    # What the conversion is told

    def amax(self, amax: Mapping[str, float]) -> dict[str, float]:
        """Ranges by value: the calibrated ``amax`` with those of the scales that were changed."""
        before = qdq.activation_scales(self.plan, amax)
        found = dict(amax)
        for name, group in self.group_of.items():
            scale = float(self.scales[group])
            if scale == float(before[name]):
                continue
            for member in self.plan.group_of(name):
                found[member] = scale * self.plan.format.largest
        return found

    def layer_weights(self, model: ir.Model, given: Mapping[str, Floats]) -> dict[str, Floats]:
        """Weights that are not the nearest numbers, by layer, as `qdq.set_weights` takes them.

        ``given`` are those that were so before.
        """
        nodes = {str(node.name): node for node in model.graph}
        plain = qdq.constants_of(model)
        found = dict(given)
        for name, weight in self.weights.items():
            grid = self.grids[name]
            nearest = Grid.of(plain[name], weight.axis, self.plan.format)
            if torch.equal(grid.steps, nearest.steps) and weight.node not in given:
                continue
            stored: Any = grid.values.numpy()
            transposed = nodes[weight.node].attributes.get_int("transB", 0)
            found[weight.node] = np.ascontiguousarray(stored.T) if transposed else stored
        return found

    def layer_shifts(self, given: Mapping[str, Floats]) -> dict[str, Floats]:
        """What is added to biases: ``given`` for layers that cannot be corrected."""
        ours = {layer: shift.numpy() for layer, shift in self.shifts.items() if bool(shift.any())}
        return {**{layer: given[layer] for layer in given if layer not in self.shifts}, **ours}


def _unit(grid: Grid, axis: int, scale: np.float32 | None, channels: int) -> Tensor:
    """Standard deviation of what even rounding of the inputs adds to an output: step / sqrt(12)."""
    others = [at for at in range(grid.steps.ndim) if at != axis]
    norms = grid.values.square().sum(others).sqrt()
    norms = norms.repeat(channels // len(norms))  # the groups of a transposed convolution
    return norms * float(scale or 0.0) / sqrt(12)


class Moved:
    """Scales of some groups, in logarithms, and shifts of some layers, in their units, to fit."""

    def __init__(self, state: TuningState, nodes: Iterable[str]) -> None:
        names = frozenset(nodes)
        self._state = state
        self._logs = {
            group: state.scales[group].log().requires_grad_()
            for group in sorted(_groups_read_in(state, names))
        }
        self._moves = {
            layer: torch.zeros_like(shift).requires_grad_()
            for layer, shift in state.shifts.items()
            if layer in names
        }

    def parameters(self, scale_rate: float, shift_rate: float) -> list[dict[str, Any]]:
        """For an optimiser, with how far a step may go."""
        return [
            {"params": list(self._logs.values()), "lr": scale_rate},
            {"params": list(self._moves.values()), "lr": shift_rate},
        ]

    @property
    def scales(self) -> dict[str, Tensor]:
        """Scales by group."""
        return {group: log.exp() for group, log in self._logs.items()}

    @property
    def shifts(self) -> dict[str, Tensor]:
        """Shifts by layer."""
        before, units = self._state.shifts, self._state.units
        return {name: before[name] + units[name] * move for name, move in self._moves.items()}


def _groups_read_in(state: TuningState, inside: frozenset[str]) -> frozenset[str]:
    """Groups of activations that these nodes read, none of which another node reads as well."""
    read: dict[str, set[str]] = {}
    for name, readers in state.plan.activations.items():
        if name not in state.plan.known:
            read.setdefault(state.group_of[name], set()).update(each.node for each in readers)
    return frozenset(group for group, found in read.items() if found <= inside)
