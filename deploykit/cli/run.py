"""`deploykit run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploykit.cli._command import Answer, Command, examples, is_quiet
from deploykit.cli._printable import printable
from deploykit.cli._report import report_option, require_report, with_report

if TYPE_CHECKING:
    from rich.console import Console

    from deploykit.recipes.running import PlannedRecipe, RecipeReport


@click.command(
    "run",
    cls=Command,
    epilog=examples(
        "deploykit run recipe.toml --dry-run",
        "deploykit run recipe.toml -o engines",
    )
    + """

\b
A recipe:
  precision = ["fp16", "int8"]       # of every [[export]] that names none
  calib = "images/calibration"       # any option of `export`, without dashes

\b
  [[export]]
  target = ["resnet18", "resnet50"]
  weights = "imagenet"

\b
  [[export]]
  target = "mine.onnx"               # paths are relative to the recipe
  precision = "auto"
  max-drop = "1%"

\b
  [check]                            # what follows each export, with the
  [eval]                             # options of `check`, `eval`, `bench`
  data = "images/validation"
  [bench]
  batch = [1, 8]""",
)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Of all bundles; the `output` of an [[export]] is relative to it then.  [default: "
    "`output` of the recipe, or engines beside it]",
)
@click.option("--dry-run", is_flag=True, help="Print the command lines, and do nothing.")
@click.option("--again", is_flag=True, help="Do finished steps again too.")
@report_option
def command(
    recipe: Path, output: Path | None, *, dry_run: bool, again: bool, report_file: Path | None
) -> Answer:
    """Export, check, evaluate and measure what a recipe names.

    RECIPE is a TOML file whose keys are the options of the commands. Everything that is wrong with
    it is said before any work. A step that is finished is not repeated while its options, the files
    that it reads, what it made and this release are the same; [check] is always done. One that
    fails stops no other. Steps and what they found are kept in NAME.state.json beside the bundles.
    """
    from deploykit.cli._as_steps import COMMANDS
    from deploykit.recipes.running import plan_recipe, run_planned

    require_report(report_file)
    planned = plan_recipe(recipe, COMMANDS, output=output, again=again)
    if dry_run:
        return _planned(planned)
    try:
        report = run_planned(planned, COMMANDS, _say)
    except KeyboardInterrupt:
        click.echo("\ninterrupted; the same command goes on from here", err=True)
        raise
    answer = Answer(
        report.to_dict(),
        lambda out: _show(out, report),
        failed=bool(report.failures),
        verdict=None if report.failures else _verdict(report),
    )
    return with_report(answer, report_file, report.made, report.judged_on, report.unsound)


def _say(text: str) -> None:
    if is_quiet():
        return
    click.echo("\n".join(map(printable, text.splitlines())), err=True)


def _planned(planned: PlannedRecipe) -> Answer:
    steps = list(zip(planned.steps, planned.before(), strict=True))

    def show(out: Console) -> None:
        for step, is_done in steps:
            done = "  # done already" if is_done else ""
            out.print(f"{step.command_line}{done}", markup=False, soft_wrap=True)

    plain = [
        {"bundle": str(step.bundle), "command_line": step.command_line, "done": is_done}
        for step, is_done in steps
    ]
    return Answer({"steps": plain}, show)


def _show(out: Console, report: RecipeReport) -> None:
    from rich.markup import escape

    from deploykit.cli._show import table

    verdicts = report.verdicts
    numbers = ("accuracy", "latency")
    rows = table(("bundle", "precision", "verdict", *numbers), right=numbers)
    for one in verdicts:
        style = None if one.ok else "red"
        cells = one.name, one.precision, one.text
        figures = one.accuracy_text, one.latency_text
        rows.add_row(*map(escape, (*cells, *figures)), style=style)
    out.print(rows)
    for failure in report.failures:
        first = (failure.problem or "").splitlines()[:1]
        out.print(f"{failure.step.name}: {''.join(first)}", style="red", markup=False)
    for one in verdicts:
        for reason in one.doubts:
            text = f"{one.name}: WEAK VERIFICATION: {reason}"
            out.print(text, style="bold red", markup=False)
    out.print(_verdict(report), markup=False)


def _verdict(report: RecipeReport) -> str:
    good = sum(one.ok for one in report.verdicts)
    return f"{good} of {len(report.verdicts)} bundles are good; steps and figures: {report.state}"
