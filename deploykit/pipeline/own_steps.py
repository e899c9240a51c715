"""What is done to a user's own graph before it is converted; each step is proven or left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deploykit import onnx_graph
from deploykit.errors import ModelFileError, ValidationError
from deploykit.pipeline.own_outputs import answers_of, logits_in, other_problems
from deploykit.specs import Precision
from deploykit.stages.validate import validate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import onnx_ir as ir

    from deploykit.artifacts import OnnxArtifact
    from deploykit.pipeline.journal import Journal
    from deploykit.pipeline.own_outputs import Answers, Images
    from deploykit.pipeline.runners import Runners
    from deploykit.stages.validate import ValidationReport

ORIGINAL = "the original file"


@dataclass(frozen=True)
class Judged:
    """Images, and what the untouched original answers to them in all of its outputs."""

    batches: list[Images]
    answers: list[Answers]
    logits_name: str

    @property
    def logits(self) -> list[Images]:
        """The logits (N, K) of each batch."""
        return logits_in(self.answers, self.logits_name)


@dataclass
class OwnGraph:
    """A user's graph on its way: the last form that was proven, which lies at ``path``."""

    model: ir.Model
    original: Path
    path: Path
    parents: tuple[str, ...]
    judged: Judged
    runners: Runners
    artifact: OnnxArtifact = field(init=False)
    report: ValidationReport = field(init=False)
    done: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.artifact, self.report = self._proven(self.model, self.judged)

    def attempt(
        self,
        name: str,
        step: Callable[[ir.Model], ir.Model],
        journal: Journal,
        judged: Judged | None = None,
    ) -> bool:
        """Go on with what ``step`` makes of the graph, if it computes what the original does.

        ``judged`` are other images than before. Where the step cannot be done or is wrong, the
        graph stays as it was, and a note says why.
        """
        wanted = judged or self.judged
        try:
            with journal.stage(name):
                changed = step(self.model)
                if changed is self.model:
                    return False
                onnx_graph.tidy(changed, rename=False)
                found = self._proven(changed, wanted)
        except (ModelFileError, ValidationError) as exc:
            reason = " ".join(str(exc).splitlines())
            journal.notes.append(f"{name} was left out: {reason}")
            self.artifact = onnx_graph.write_model(
                self.model, self.path, Precision.FP32, self.parents
            )
            return False
        self.done.append(f"{name} ({_difference(self.model, changed, wanted)})")
        self.model, self.judged = changed, wanted
        self.artifact, self.report = found
        return True

    def notes(self) -> list[str]:
        """What was done to the file, for the user."""
        return [f"done to the graph, and proven: {', '.join(self.done)}"] if self.done else []

    def _proven(self, model: ir.Model, judged: Judged) -> tuple[OnnxArtifact, ValidationReport]:
        artifact = onnx_graph.write_model(model, self.path, Precision.FP32, self.parents)
        with self.runners.open(self.path) as runner:
            answers = answers_of(runner, judged.batches)
        name = judged.logits_name
        got = logits_in(answers, name)
        names = ("the fp32 graph", ORIGINAL)
        report = validate(got, judged.logits, precision=Precision.FP32, names=names)
        report.require_pass()
        problems = other_problems(answers, judged.answers, name)
        if problems:
            raise ValidationError(
                f"the fp32 graph does not compute what {ORIGINAL} computes\n{problems[0]}"
            )
        return artifact, report


def _difference(before: ir.Model, after: ir.Model, judged: Judged) -> str:
    opsets = [model.graph.opset_imports.get("", 0) for model in (before, after)]
    if opsets[0] != opsets[1]:
        return f"from {opsets[0]} to {opsets[1]}"
    if before.graph.inputs[0].shape != after.graph.inputs[0].shape:
        sizes = ", ".join(str(len(batch)) for batch in judged.batches)
        return f"run at batches {sizes}, image by image"
    return f"{len(before.graph)} nodes became {len(after.graph)}"
