"""From a verified FP32 graph to the fastest one, as predicted, whose loss is within a budget.

Each group of layers gets a format by its measured noise and its predicted time. INT8 and FP8 are
not mixed: compilers take one of them in a network, so each is solved for with FP16 and FP32, and
the frontier has the better points of both. Points are then made and judged as graphs of an engine.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deploykit.backends._registry import graph_judge
from deploykit.bundle.manifest import CALIBRATION, MANIFEST, MODEL, read_manifest
from deploykit.comparison.converted import FP32_GRAPH, require_valid
from deploykit.core.errors import DeploykitError, ModelFileError, ValidationError
from deploykit.core.precision import Precision
from deploykit.core.serialization import to_plain
from deploykit.graph import LoadedGraph, qdq, write_graph
from deploykit.graph.shapes import fix_image_size
from deploykit.precision import Converted
from deploykit.precision.budget.bounds import images_needed
from deploykit.precision.budget.frontier import BUDGET, POINTS, Frontier, Point, read_frontier
from deploykit.precision.budget.grouping import groups_of
from deploykit.precision.budget.judging import Judge, digest_of_judges, labels_of
from deploykit.precision.budget.making import Side
from deploykit.precision.budget.request import judges_of, require_resolvable
from deploykit.precision.budget.sensitivity import noise_table, open_noise, repaired
from deploykit.precision.budget.sides import HeldOut, SideMaker
from deploykit.precision.budget.solver import Assignment, pareto, spread
from deploykit.precision.budget.timing import group_costs, group_table
from deploykit.precision.calibration.graphs import calibrate_graph
from deploykit.precision.int8 import COMPARED_PIXELS, multiply_adds_of, require_opset
from deploykit.precision.quantization.conversion import QuantizedResult
from deploykit.precision.quantization.noise import (
    FEWEST_PROBES,
    PROBE_MULTIPLY_ADDS,
    fp32_answers,
)
from deploykit.precision.quantization.sampling import first_images, load_images

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from deploykit.comparison.reference import Reference
    from deploykit.core.progress import Journal, ProgressTask
    from deploykit.precision.budget.making import Made
    from deploykit.precision.budget.request import Budget, Judges
    from deploykit.precision.budget.timing import GroupCosts
    from deploykit.precision.calibration.graphs import Calibrated
    from deploykit.precision.quantization.request import QuantizationRequest

    Batches = list[NDArray[np.float32]]
    Answers = Mapping[str, NDArray[np.float32]]

PATIENCE: Final = 10
"""Times the multiply-adds that a plain export measures layers with: here they decide everything."""

MOST_PROBES: Final = 32
"""Images that groups are measured on at the most: ten logits of each tell noise to 0.3 dB."""


def convert_under_budget(
    reference: Reference,
    path: Path,
    request: QuantizationRequest,
    budget: Budget,
    journal: Journal,
) -> Converted:
    """Measure, choose, write the graph of the chosen point to ``path`` and validate it.

    Raises:
        DataError: too few images, or images that cannot be used.
        ModelFileError: a graph cannot be read or written, or there is nothing to choose.
        ValidationError: no image that judges can be read, or outputs have no steady shape.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _Conversion(reference, request, budget, journal, Path(folder)).run(path)


class _Conversion:
    """One conversion, with what its steps hand on."""

    def __init__(
        self,
        reference: Reference,
        request: QuantizationRequest,
        budget: Budget,
        journal: Journal,
        folder: Path,
    ) -> None:
        self._reference, self._request, self._budget = reference, request, budget
        self._journal, self._folder = journal, folder
        self._groups = groups_of(reference.graph.model)
        self._batch = reference.artifact.inputs[0].fixed_batch or budget.batch
        self._plain = Side(Precision.FP16, reference, reference.graph)
        if not self._groups:
            raise ModelFileError(
                f"{reference.model['name']} has no convolution and no matrix product whose "
                "precision could be chosen\nuse --fp16"
            )

    def run(self, path: Path) -> Converted:
        """All steps; ``path`` is the file to write."""
        calibrated, usable = self._calibrated()
        compared = self._compared(calibrated)
        kept = self._kept(calibrated)
        if kept is not None:
            sides = self._sides(calibrated, self._needed(kept), compared, kept.int8)
            made = self._converted(kept.point, sides, path)
            if kept.point.sha256 in (None, made.artifact.sha256):
                self._journal.notes.append(
                    "measurements of the bundle that was here are used again: same model, images "
                    "and settings"
                )
                return self._finished(kept, made, compared, calibrated, path)
            self._journal.notes.append("measured anew: the chosen point came out otherwise")
        sides = self._sides(calibrated, usable, compared)
        points = self._solved(sides, compared)
        judges = require_resolvable(self._budget, self._request.calibration)
        judge = Judge(self._reference, judges, self._labels(judges), self._folder)
        frontier = self._judged(points, sides, judge, self._key(calibrated, judges))
        while True:
            made = self._converted(frontier.point, sides, path)
            try:
                return self._finished(frontier, made, compared, calibrated, path)
            except ValidationError as exc:
                # FP32, the first point, is not validated again: this ends.
                reason = str(exc).splitlines()[-1]
                self._journal.notes.append(f"a faster point was left out: {reason}")
                frontier = replace(frontier, points=frontier.points[: frontier.chosen])

    def _labels(self, judges: Judges) -> NDArray[np.int64] | None:
        limit = self._request.calibration.max_pixels
        return labels_of(self._budget, judges, self._reference, limit)

    # What is measured first

    def _calibrated(self) -> tuple[Calibrated, tuple[Precision, ...]]:
        """The ranges, and the formats of eight bits that the GPU and the graph have."""
        reference, graph = self._reference, self._reference.graph
        usable, notes = self._budget.formats()
        self._journal.notes += notes
        found = []
        for each in usable:
            try:
                require_opset(reference.artifact)
                plan = _plan_of(each)(graph.model, self._request.policy)
            except ModelFileError as exc:
                self._journal.notes.append(f"no {each.upper()}: {str(exc).splitlines()[0]}")
                continue
            if plan.layers:
                found.append(each)
            else:
                self._journal.notes.append(f"no {each.upper()}: no layer of it can be")
        calibrated = calibrate_graph(
            graph,
            str(reference.model["name"]),
            reference.preprocessing,
            self._request.calibration,
            self._journal,
            reference.runners,
            # Of both formats, so that a table serves for each GPU.
            tensors=qdq.fp8_calibration_tensors(graph.model),
        )
        return calibrated, tuple(found)

    def _compared(self, calibrated: Calibrated) -> HeldOut:
        held_out = calibrated.data.held_out
        artifact = self._reference.artifact
        batches = load_images(calibrated.data, held_out, artifact, COMPARED_PIXELS)
        answers, expected = fp32_answers(self._reference, batches)
        return HeldOut(batches, list(answers), expected)

    def _sides(
        self,
        calibrated: Calibrated,
        usable: Sequence[Precision],
        compared: HeldOut,
        known: Mapping[str, Any] | None = None,
    ) -> dict[Precision, Side]:
        """What graphs of each eight-bit format are made from; ``known`` of INT8 needs no trial."""
        maker = SideMaker(
            self._reference, self._request, calibrated, compared, self._folder, self._journal
        )
        return {each: maker.made(each, known or {}) for each in usable}

    # The frontier

    def _solved(
        self, sides: Mapping[Precision, Side], compared: HeldOut
    ) -> list[tuple[Assignment, tuple[Precision, ...], float]]:
        """Choices with their formats and noise, the slowest first, all but that of FP32."""
        with self._journal.stage("predict times"):
            costs = self._costs()
        found: list[tuple[Assignment, tuple[Precision, ...], float]] = []
        for precision in sides or {Precision.FP16: self._plain}:
            formats = _formats_with(precision)
            with self._journal.stage(f"noise of {precision}") as task:
                found += self._points_of(sides.get(precision), formats, costs, compared, task)
        return _unbeaten(found)

    def _points_of(
        self,
        side: Side | None,
        formats: Sequence[Precision],
        costs: GroupCosts,
        compared: HeldOut,
        task: ProgressTask,
    ) -> list[tuple[Assignment, tuple[Precision, ...], float]]:
        level = side or replace(self._plain, plan=lambda *_: _NO_PLAN)
        probes = self._probes(len(formats))
        some = first_images(compared.batches, compared.answers, probes, self._reference.artifact)
        with open_noise(level, self._groups, some) as noise:
            can_narrow = side.can_narrow if side is not None else frozenset()
            rows = noise_table(noise, self._groups, formats, can_narrow, task)
            table = group_table(costs, formats, rows, self._budget.peak, can_narrow)
            points = []
            for choice in spread(pareto(table), POINTS):
                better, measured = repaired(noise, table, choice, formats)
                named = tuple(formats[at] for at in better.formats)
                points.append((better, named, measured))
        return [each for each in points if set(each[1]) != {Precision.FP32}]

    def _costs(self) -> GroupCosts:
        model = self._reference.graph.model.clone()
        fix_image_size(model, self._reference.preprocessing.crop)
        return group_costs(model, self._groups, self._batch, graph_judge().run_once)

    def _probes(self, formats: int) -> int:
        """Images that groups are measured on."""
        crop = self._reference.preprocessing.crop
        passes = sum(multiply_adds_of(self._reference.graph, crop).values())
        passes *= (formats - 1) * len(self._groups)
        affordable = PATIENCE * PROBE_MULTIPLY_ADDS // passes if passes else FEWEST_PROBES
        return min(MOST_PROBES, max(FEWEST_PROBES, affordable))

    def _judged(
        self,
        points: Sequence[tuple[Assignment, tuple[Precision, ...], float]],
        sides: Mapping[Precision, Side],
        judge: Judge,
        key: Mapping[str, Any],
    ) -> Frontier:
        """The frontier with the loss of each point, of graphs that are made for it."""
        budget = self._budget
        fp32 = tuple([Precision.FP32] * len(self._groups))
        found = [Point(Precision.FP32, _fp32_ms(self._costs(), budget), 0.0, fp32)]
        with self._journal.stage("judge") as task:
            judge.prepare(task)
            self._journal.notes += judge.notes
            for at, (choice, formats, noise) in enumerate(points):
                point = Point(_precision_of(formats), choice.ms, noise, formats)
                with tempfile.TemporaryDirectory(dir=self._folder) as place:
                    # A large graph names its file of weights after itself.
                    made = self._make(point, sides, Path(place) / MODEL, task)
                    loss = judge.loss_of(made.graph, task, f"point {at + 1} of {len(points)}")
                found.append(replace(point, loss=loss, sha256=made.artifact.sha256))
        int8 = sides.get(Precision.INT8)
        return Frontier(
            budget.max_drop,
            budget.peak.name,
            self._batch,
            self._groups,
            tuple(found),
            key,
            {} if int8 is None else int8.record,
        )

    def _converted(self, point: Point, sides: Mapping[Precision, Side], path: Path) -> _Made:
        with self._journal.stage(f"convert to {point.precision}") as task:
            return self._make(point, sides, path, task)

    def _make(
        self, point: Point, sides: Mapping[Precision, Side], path: Path, task: ProgressTask
    ) -> _Made:
        if point.precision is Precision.FP32:
            artifact = self._reference.artifact
            parents = (artifact.sha256, *artifact.parents)
            model = self._reference.graph.model
            return _Made(write_graph(model, path, Precision.FP32, parents))
        side = sides.get(point.precision, self._plain)
        made = side.make(self._groups, point.formats, path, task)
        return _Made(made.graph, made, side)

    # The end

    def _finished(
        self,
        frontier: Frontier,
        made: _Made,
        compared: HeldOut,
        calibrated: Calibrated,
        path: Path,
    ) -> Converted:
        reference, pairs = self._reference, (compared.batches, compared.expected)
        conversion = {
            **reference.conversion,
            **({} if made.result is None else made.result.to_dict()),
            "kept_heavy": 0 if made.result is None else made.result.kept_heavy,
            BUDGET: frontier.to_dict(),
        }
        reports = [reference.report]
        if made.result is not None:
            reports.append(
                require_valid(reference, made.graph, pairs, self._journal, made_by=FP32_GRAPH)
            )
        self._say(frontier)
        record = None
        if isinstance(made.result, QuantizedResult) and made.side is not None:
            calibrated.table.save(path.with_name(CALIBRATION))
            record = {
                **calibrated.to_dict(),
                "method": made.side.record["method"],
                "policy": to_plain(made.side.policy),
                "trials": [],
            }
        return Converted(made.artifact, tuple(reports), conversion, pairs, record, graph=made.graph)

    def _say(self, frontier: Frontier) -> None:
        """How the loss was judged, and what was assumed."""
        notes, point = self._journal.notes, frontier.point
        judges = judges_of(self._budget, self._request.calibration)
        notes.append(judges.first(int(frontier.key["images"])).resolution)
        if self._budget.gpu is None:
            notes.append(
                f"no GPU is named: times are predicted for {frontier.gpu}; name yours: --gpu NAME"
            )
        if point.precision is Precision.FP32:
            notes.append(
                f"FP32: no faster choice has a loss of {frontier.max_drop:.2%} at most, with 95 % "
                "confidence"
            )

    # Measurements of an earlier export

    def _key(self, calibrated: Calibrated, judges: Judges) -> dict[str, Any]:
        """What the measurements depend on, as plain data."""
        request = self._request
        return {
            "model": self._reference.artifact.sha256,
            "calibration": calibrated.table.digest,
            "images": len(judges.indices),
            "judged": digest_of_judges(judges, self._labels(judges)),
            "formats": [str(each) for each in self._budget.formats()[0]],
            "policy": to_plain(request.policy),
            "choices": to_plain(request.int8_choices),
        }

    def _kept(self, calibrated: Calibrated) -> Frontier | None:
        """The frontier of the bundle that is to be replaced, if it was measured on the same."""
        found = self._recorded()
        count = None if found is None else found.key.get("images")
        if found is None or not isinstance(count, int):
            return None
        if count < images_needed(self._budget.max_drop):
            return None
        judges = judges_of(self._budget, self._request.calibration).first(count)
        # As it comes back from JSON: tuples are lists.
        key = json.loads(json.dumps(self._key(calibrated, judges)))
        if key != dict(found.key) or found.groups != self._groups:
            return None
        same = (found.gpu, found.batch) == (self._budget.peak.name, self._batch)
        return found.under(self._budget.max_drop) if same else None

    def _recorded(self) -> Frontier | None:
        place = self._budget.place
        if place is None or not (place / MANIFEST).is_file():
            return None
        try:
            manifest = read_manifest((place / MANIFEST).read_text(encoding="utf-8"), place)
        except (DeploykitError, OSError, UnicodeDecodeError):
            return None
        return read_frontier(manifest.conversion.get(BUDGET, {}))

    def _needed(self, frontier: Frontier) -> tuple[Precision, ...]:
        precision = frontier.point.precision
        return (precision,) if precision.facts.quantized else ()


@dataclass(frozen=True)
class _Made:
    """A graph, and what became of its layers; ``None`` of FP32, which is the reference."""

    graph: LoadedGraph
    result: Made | None = None
    side: Side | None = None

    @property
    def artifact(self) -> Any:
        """The file."""
        return self.graph.artifact


_NO_PLAN: Final = qdq.QdqPlan({}, ())


def _plan_of(precision: Precision) -> Any:
    return qdq.plan_fp8 if precision is Precision.FP8 else qdq.plan_qdq


def _formats_with(precision: Precision) -> tuple[Precision, ...]:
    """The formats of one graph, the narrowest first."""
    rest = (Precision.FP16, Precision.FP32)
    return (precision, *rest) if precision.facts.quantized else rest


def _precision_of(formats: Sequence[Precision]) -> Precision:
    """What a graph with these counts as: what its narrowest layers are."""
    return min(formats, key=lambda each: each.facts.operand_bits)


def _fp32_ms(costs: GroupCosts, budget: Budget) -> float:
    return sum(costs.ms(group, Precision.FP32, budget.peak) for group in costs.kernels)


def _unbeaten(
    points: Sequence[tuple[Assignment, tuple[Precision, ...], float]],
) -> list[tuple[Assignment, tuple[Precision, ...], float]]:
    """The points that no other beats in time and measured noise, the slowest first, spread out."""
    kept: list[tuple[Assignment, tuple[Precision, ...], float]] = []
    least = inf
    for each in sorted(points, key=lambda point: (point[0].ms, point[2])):
        if each[2] < least:
            least = each[2]
            kept.append(each)
    kept.reverse()
    wanted = spread([each[0] for each in kept], POINTS - 1)
    return [each for each in kept if each[0] in wanted]
