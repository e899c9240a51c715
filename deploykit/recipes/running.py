"""The run of a recipe: step by step, where one that fails stops no other that does not need it."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from deploykit.core.atomic import locked, translated_write_errors
from deploykit.core.errors import BundleError, DeploykitError, typed_first_line
from deploykit.core.html_tables import html_table
from deploykit.recipes.found import BundleVerdict, found_by, verdict_of
from deploykit.recipes.planning import Step, plan_steps
from deploykit.recipes.reading import EXPORT, Problems, read_recipe, with_keys
from deploykit.recipes.state import (
    State,
    done_before,
    finished,
    inputs_of,
    read_state,
    state_file,
    write_state,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from deploykit.recipes.options import Commands


_OTHER_MODELS: Final = frozenset({"compare", "reference"})
"""Options of `eval` that name a model to compare with."""


class Status(StrEnum):
    """What became of a step."""

    DONE = "done"
    BEFORE = "done already"
    FAILED = "failed"
    LEFT_OUT = "not run"


@dataclass(frozen=True)
class StepResult:
    """How a step ended; ``problem`` says why it failed or was not run."""

    step: Step
    status: Status
    seconds: float = 0.0
    found: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "command": self.step.command,
            "command_line": self.step.command_line,
            "status": str(self.status),
            "seconds": round(self.seconds, 3),
            "found": self.found,
            "problem": self.problem,
        }


@dataclass(frozen=True)
class RecipeReport:
    """What became of a recipe: all steps, and a verdict on each bundle.

    ``page`` is the HTML page that was asked for and written; ``notes`` say what it lacks, or why
    there is none.
    """

    recipe: Path
    state: Path
    results: tuple[StepResult, ...]
    page: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def verdicts(self) -> tuple[BundleVerdict, ...]:
        """One for each bundle, in the order of the recipe."""
        by_bundle: dict[Path, list[StepResult]] = {}
        for result in self.results:
            by_bundle.setdefault(result.step.bundle, []).append(result)
        return tuple(
            verdict_of(
                results[0].step,
                {one.step.command: one.found for one in results},
                [one.step.command for one in results if one.status is Status.FAILED],
                is_compared=any(_is_compared(one.step) for one in results),
            )
            for results in by_bundle.values()
        )

    @property
    def failures(self) -> tuple[StepResult, ...]:
        """Steps that failed."""
        return tuple(one for one in self.results if one.status is Status.FAILED)

    @property
    def made(self) -> tuple[Path, ...]:
        """The bundles that are there, whatever was found wrong with them."""
        exports = (one for one in self.results if one.step.command == EXPORT)
        return tuple(
            one.step.bundle for one in exports if one.status in {Status.DONE, Status.BEFORE}
        )

    @property
    def unsound(self) -> tuple[Path, ...]:
        """The bundles that failed their check."""
        return tuple(one.step.bundle for one in self.failures if one.step.command == "check")

    @property
    def judged_on(self) -> Path | None:
        """The images that the recipe evaluates on, if it does."""
        found = (one.step.reads.get("data") for one in self.results if one.step.command == "eval")
        return next(filter(None, found), None)

    def _repr_html_(self) -> str:
        """A table for a notebook."""
        names = "bundle", "precision", "verdict", "accuracy", "latency"
        rows = [
            (one.name, one.precision, one.text, one.accuracy_text, one.latency_text)
            for one in self.verdicts
        ]
        return html_table(names, rows, title=f"recipe {self.recipe.name}", right=names[-2:])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        results = []
        for verdict in self.verdicts:
            steps = [r.to_dict() for r in self.results if str(r.step.bundle) == verdict.bundle]
            results.append({**verdict.to_dict(), "steps": steps})
        failed = sum(not one.ok for one in self.verdicts)
        return {"results": results, "failed": failed, "state": str(self.state)}


@dataclass(frozen=True)
class PlannedRecipe:
    """A recipe without a mistake that its file and its calls show: all steps, and what is done."""

    path: Path
    steps: tuple[Step, ...]
    state_path: Path
    state: State
    again: bool = False

    def before(self) -> tuple[bool, ...]:
        """Whether each step is finished already, as far as the steps before it will not change."""
        found: list[bool] = []
        exported: set[Path] = set()
        for step in self.steps:
            needs = step.command != EXPORT and step.bundle not in exported
            is_done = not needs and done_before(step, self.state) is not None
            if is_done and step.command == EXPORT:
                exported.add(step.bundle)
            found.append(is_done)
        return tuple(found)


def plan_recipe(
    path: Path, commands: Commands, *, output: Path | None = None, again: bool = False
) -> PlannedRecipe:
    """Read a recipe and judge every call that it makes; nothing is done.

    ``output`` is the folder of the bundles in place of the one that the recipe names; with
    ``again`` nothing counts as finished.

    Raises:
        UsageError: everything that is wrong, with the table and the key.
        BundleError: the state of an earlier run cannot be read.
    """
    problems = Problems(path)
    recipe = read_recipe(path, commands, problems, output)
    steps = plan_steps(recipe, commands, problems)
    problems.require_none()
    state_path = state_file(recipe.output, path)
    state = State() if again else read_state(state_path)
    return PlannedRecipe(path, steps, state_path, state, again)


def run_planned(
    planned: PlannedRecipe, commands: Commands, say: Callable[[str], None]
) -> RecipeReport:
    """Do what is not finished; the state is written after each step, so that nothing is lost.

    ``say`` is told when a step begins, and what is wrong with one that fails.

    Raises:
        BundleError: the state cannot be written, or another run of the same recipe is going on.
    """
    results: list[StepResult] = []
    missing: set[Path] = set()
    with _alone(planned.state_path):
        # Not the plan's: another run may have finished steps since that was read.
        state = State() if planned.again else read_state(planned.state_path)
        for number, step in enumerate(planned.steps, 1):
            say(f"[{number}/{len(planned.steps)}] {step.command} {step.bundle}")
            if step.bundle in missing:
                result = StepResult(step, Status.LEFT_OUT, problem="its export failed")
            else:
                result = _done(step, state, commands)
                write_state(planned.state_path, state)
            if step.command == EXPORT and result.status is Status.FAILED:
                missing.add(step.bundle)
            results.append(result)
            if result.status is not Status.DONE:
                say(_ended(result))
    return RecipeReport(planned.path, planned.state_path, tuple(results))


def _ended(result: StepResult) -> str:
    """A step that was not done, in lines that are set in."""
    lines = (result.problem or "").splitlines()
    first = f"  {result.status}{': ' if lines else ''}{''.join(lines[:1])}"
    return "\n    ".join((first, *lines[1:]))


@contextmanager
def _alone(state_path: Path) -> Iterator[None]:
    """Keep other runs of the same recipe away."""
    with translated_write_errors(state_path):
        state_path.parent.mkdir(parents=True, exist_ok=True)
    lock = state_path.with_suffix(".lock")
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(lock, 0))
        except TimeoutError as error:
            raise BundleError(
                f"another run of this recipe is going on, it holds {lock}\n"
                "wait for it, or give this one another folder with -o"
            ) from error
        yield


def _done(step: Step, state: State, commands: Commands) -> StepResult:
    known = done_before(step, state)
    if known is not None:
        return StepResult(step, Status.BEFORE, known.seconds, known.found)
    state.steps.pop(step.name, None)
    start = time.perf_counter()
    inputs = inputs_of(step)  # before: files that change meanwhile count as changed
    try:
        ran = commands.run(step.command, step.arguments)
    except DeploykitError as error:
        return StepResult(
            step, Status.FAILED, time.perf_counter() - start, problem=with_keys(str(error))
        )
    except Exception as error:  # the others do not need it
        problem = f"an unexpected {typed_first_line(error)}"
        return StepResult(step, Status.FAILED, time.perf_counter() - start, problem=problem)
    seconds = time.perf_counter() - start
    found = found_by(step.command, ran.data)
    if ran.failed:
        problem = "; ".join(map(str, _problems(ran.data))) or "it says that something is bad"
        return StepResult(step, Status.FAILED, seconds, found, problem)
    state.steps[step.name] = finished(step, inputs, seconds, found, ran.data.get("files", ()))
    return StepResult(step, Status.DONE, seconds, found)


def _is_compared(step: Step) -> bool:
    """Whether it holds its bundle against another model than that which it was made from."""
    return step.command == "eval" and not _OTHER_MODELS.isdisjoint(step.said)


def _problems(data: Any) -> Sequence[object]:
    """What a command says that is bad: problems of a check, failures of a measurement."""
    failures = [one.get("reason", one) for one in data.get("failures", ())]
    return [*data.get("problems", ()), *failures]
