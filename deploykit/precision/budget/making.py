"""The graph of a choice of formats: eight bits, FP16 and FP32 side by side."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from deploykit.core.precision import Precision
from deploykit.graph import LoadedGraph, qdq, write_graph
from deploykit.graph.half_range import NOTHING_UNFIT, Unfit
from deploykit.precision.budget.grouping import formats_by_layer
from deploykit.precision.fp16 import (
    HalfResult,
    MeasuredMagnitudes,
    halve,
    measure_magnitudes,
    measure_unfit,
)
from deploykit.precision.quantization.conversion import (
    QuantizationErrors,
    QuantizedResult,
    quantize_by_plan,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import onnx_ir as ir

    from deploykit.comparison.reference import Reference
    from deploykit.core.progress import ProgressTask
    from deploykit.core.specs import Runner, SplitGraph
    from deploykit.graph import HalfPlan
    from deploykit.graph.qdq import QdqPlan, QdqPolicy
    from deploykit.precision.budget.grouping import Group

    Plan = Callable[[ir.Model, QdqPolicy], QdqPlan]
    Made = QuantizedResult | HalfResult

_KEPT: Final = "chosen so under the budget of --max-drop"


@dataclass
class Side:
    """What graphs with one format of eight bits are made from, or with none of them.

    ``graph`` is FP32; ``amax`` are the ranges of its values and ``trial_amax`` those without the
    images that formats are chosen by. ``plan`` places Q/DQ pairs under ``policy``.
    """

    precision: Precision
    reference: Reference
    graph: LoadedGraph
    plan: Plan | None = None
    policy: QdqPolicy = field(default_factory=qdq.QdqPolicy)
    amax: Mapping[str, float] = field(default_factory=dict)
    trial_amax: Mapping[str, float] = field(default_factory=dict)
    errors: QuantizationErrors = field(default_factory=QuantizationErrors)
    record: Mapping[str, Any] = field(default_factory=dict)
    _magnitudes: MeasuredMagnitudes | None = None
    _unfit: Unfit = NOTHING_UNFIT

    def planned(self, left_out: Sequence[str] = ()) -> QdqPlan:
        """The plan of all layers but those ``left_out``."""
        assert self.plan is not None  # noqa: S101 - of a side with a format of eight bits
        return self.plan(self.graph.model, replace(self.policy, over_budget=tuple(left_out)))

    @cached_property
    def can_narrow(self) -> frozenset[str]:
        """The layers that can be of eight bits."""
        return self.planned().layers if self.plan is not None else frozenset()

    def make(
        self, groups: Sequence[Group], formats: Sequence[Precision], path: Path, task: ProgressTask
    ) -> Made:
        """Write the graph of a choice to ``path``.

        Raises:
            ModelFileError: the result is not a valid model.
            ValidationError: FP32 itself gives values that are no numbers.
        """
        chosen = formats_by_layer(groups, formats)
        fp32 = {name for name, each in chosen.items() if each is Precision.FP32}
        if self.plan is None:
            return self._halved(fp32, path, task)
        others = [name for name in chosen if chosen[name] is not self.precision]
        plan = self.planned([name for name in others if name in self.can_narrow])
        shifts = {name: each for name, each in self.errors.shifts.items() if name in plan.layers}
        return quantize_by_plan(
            self.graph,
            plan,
            self.amax,
            path,
            self.precision,
            halve=lambda model: self._halve(model, fp32, plan.layers, task),
            errors=replace(self.errors, shifts=shifts),
        )

    def _halved(self, fp32: set[str], path: Path, task: ProgressTask) -> HalfResult:
        artifact = self.graph.artifact
        model, plan = self._halve(self.graph.model, fp32, frozenset(), task)
        parents = (artifact.sha256, *artifact.parents)
        written = write_graph(model, path, Precision.FP16, parents)
        kept = plan.kept_heavy(self.graph.model)
        return HalfResult(written, len(plan.halved), None, plan.kept, kept)

    def _halve(
        self, model: ir.Model, fp32: set[str], narrow: frozenset[str], task: ProgressTask
    ) -> tuple[ir.Model, HalfPlan]:
        """FP16 where ``fp32`` does not say otherwise, and where values fit."""
        measured, unfit = self._measured(task)
        kept = Unfit(nodes=dict.fromkeys(fp32, _KEPT)).joined(unfit.without(narrow))
        found = halve(
            model, measured, kept, self.reference.batches, open_runner=self._open(narrow), task=task
        )
        return found.model, found.plan

    def _open(self, narrow: frozenset[str]) -> Callable[[SplitGraph], Runner]:
        runners = self.reference.runners
        return runners.measuring_unoptimised if narrow else runners.measuring

    def _measured(self, task: ProgressTask) -> tuple[MeasuredMagnitudes, Unfit]:
        """Magnitudes of the FP32 graph, measured once for all choices."""
        if self._magnitudes is None:
            model, batches = self.graph.model, self.reference.batches
            measuring = self.reference.runners.measuring
            self._magnitudes = measure_magnitudes(model, batches, open_runner=measuring, task=task)
            self._unfit = measure_unfit(
                model, self._magnitudes.amax, batches, open_runner=measuring, task=task
            )
        return self._magnitudes, self._unfit
