"""Steps of a recipe: what is done, what is done already, and what one failure leaves."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from deploykit.core.atomic import locked
from deploykit.core.errors import BuildError, BundleError, UsageError
from deploykit.recipes import state as keeping
from deploykit.recipes.running import RecipeReport, Status, plan_recipe, run_planned
from tests.bundles import write_classifier
from tests.recipes import NotedCommands

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = """
precision = ["fp16", "int8"]
calib = "images"
[[export]]
target = "a.onnx"
[[export]]
target = "b.onnx"
precision = "fp16"
[check]
[eval]
data = "val.csv"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(b"one")
    (tmp_path / "val.csv").write_text("images/1.png,0\n", encoding="utf-8")
    for name in "ab":
        write_classifier(tmp_path / f"{name}.onnx")
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def run(recipe: Path, commands: NotedCommands | None = None, **options: Any) -> RecipeReport:
    said: list[str] = []
    noted = commands or NotedCommands()
    return run_planned(plan_recipe(recipe, noted, **options), noted, said.append)


def statuses(report: RecipeReport) -> dict[str, str]:
    return {one.step.name: str(one.status) for one in report.results}


def done(report: RecipeReport) -> set[str]:
    return {one.step.name for one in report.results if one.status is Status.DONE}


EVERY = {
    f"{bundle} {command}"
    for bundle in ("a-fp16", "a-int8", "b-fp16")
    for command in ("export", "check", "eval")
}


def test_calls_are_those_of_the_command_line(recipe: Path) -> None:
    commands = NotedCommands()
    report = run(recipe, commands)
    here, out = recipe.parent, recipe.parent / "engines"
    assert commands.called == [
        ("export", f"{here}/a.onnx", "--fp16", "-o", f"{out}/a-fp16"),
        ("check", f"{out}/a-fp16"),
        ("eval", f"{out}/a-fp16", "--data", f"{here}/val.csv"),
        ("export", f"{here}/a.onnx", "--int8", "--calib", f"{here}/images", "-o", f"{out}/a-int8"),
        ("check", f"{out}/a-int8"),
        ("eval", f"{out}/a-int8", "--data", f"{here}/val.csv"),
        ("export", f"{here}/b.onnx", "--fp16", "-o", f"{out}/b-fp16"),
        ("check", f"{out}/b-fp16"),
        ("eval", f"{out}/b-fp16", "--data", f"{here}/val.csv"),
    ]
    assert done(report) == EVERY
    lines = [result.step.command_line for result in report.results]
    assert lines[1] == f"deploykit check {out}/a-fp16"


def test_nothing_is_done_twice(recipe: Path) -> None:
    run(recipe)
    commands = NotedCommands()
    report = run(recipe, commands)
    assert commands.called == []
    assert set(statuses(report).values()) == {"done already"}
    assert all(plan_recipe(recipe, commands).before())
    assert done(run(recipe, again=True)) == EVERY


CHANGES: dict[str, set[str]] = {
    "images/2.png": {"a-int8 export", "a-int8 check", "a-int8 eval"},
    "val.csv": {each for each in EVERY if each.endswith("eval")},
    "a.onnx": {each for each in EVERY if each.startswith("a-")},
}


@pytest.mark.parametrize("changed", CHANGES)
def test_what_reads_a_changed_file_is_done_again(
    changed: str, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(recipe)
    path = recipe.parent / changed
    if path.suffix == ".onnx":
        write_classifier(path, channels=8)
    else:
        path.write_text("images/1.png,1\n", encoding="utf-8")
    report = run(recipe)
    # The stand-in's export writes the same bundle again, so that what judges it may stay.
    again = {each for each in CHANGES[changed] if "export" in each or changed == "val.csv"}
    assert done(report) == again


def test_an_image_of_a_list_that_changes_counts(recipe: Path) -> None:
    run(recipe)
    image = recipe.parent / "images" / "1.png"
    facts = image.stat()
    os.utime(image, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    assert done(run(recipe)) >= {each for each in EVERY if each.endswith("eval")}


def test_options_and_the_release_count(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(recipe)
    recipe.write_text(RECIPE.replace("[check]", '[check]\ndevice = "cuda"'), encoding="utf-8")
    assert done(run(recipe)) == {each for each in EVERY if each.endswith("check")}
    monkeypatch.setattr(keeping, "__version__", "99.0")
    assert done(run(recipe)) == EVERY


def test_a_bundle_that_is_gone_is_made_again(recipe: Path) -> None:
    run(recipe)
    (recipe.parent / "engines/a-fp16/manifest.json").unlink()
    found = done(run(recipe))
    assert "a-fp16 export" in found
    assert not any(each.startswith("b-") for each in found)
    assert plan_recipe(recipe, NotedCommands()).before() == (True,) * 9


def test_what_failed_stops_only_what_needs_it(recipe: Path) -> None:
    target = f"export {recipe.parent / 'a.onnx'}"
    error = BuildError("the compiler refused\nleave out --max-drop 1%")
    commands = NotedCommands(failing={target: error, "check": ZeroDivisionError("oh")})
    said: list[str] = []
    report = run_planned(plan_recipe(recipe, commands), commands, said.append)
    assert statuses(report) == {
        **{f"a-{p} {c}": "not run" for p in ("fp16", "int8") for c in ("check", "eval")},
        **{f"a-{p} export": "failed" for p in ("fp16", "int8")},
        "b-fp16 export": "done",
        "b-fp16 check": "failed",
        "b-fp16 eval": "done",
    }
    text = [one.text for one in report.verdicts]
    assert text == ["not exported", "not exported", "failed: check"]
    assert report.to_dict()["failed"] == 3
    assert '  failed: the compiler refused\n    leave out max-drop = "1%"' in said
    assert "  failed: an unexpected ZeroDivisionError: oh" in said
    assert "  not run: its export failed" in said
    assert done(run(recipe)) == EVERY - {"b-fp16 export", "b-fp16 eval"}


def test_a_bad_answer_is_a_failure(recipe: Path) -> None:
    commands = NotedCommands({"check": {"problems": ["model.onnx was changed", "no golden"]}})
    report = run(recipe, commands)
    assert {one.step.command for one in report.failures} == {"check"}
    assert report.failures[0].problem == "model.onnx was changed; no golden"


def test_figures_of_a_bundle(recipe: Path) -> None:
    def row(batch: int, p50: float, backend: str) -> dict[str, Any]:
        return {
            "backend": backend,
            "precision": "fp16",
            "batch": batch,
            "throughput_per_s": 1e3 / p50,
            "latency_ms": {"p50": p50, "p50_interval": None},
        }

    rows = [row(8, 0.5, "ort"), row(1, 2.0, "eager"), row(1, 1.25, "ort")]
    recipe.write_text(
        'fp16 = true\n[export]\ntarget = "a.onnx"\n[eval]\ndata = "val.csv"\n[bench]\nbatch = 1',
        encoding="utf-8",
    )
    judged = {"top1": 0.75, "agreement": 0.5, "confusions": [1]}
    commands = NotedCommands({"bench": {"results": rows}, "eval": judged})
    report = run(recipe, commands)
    (found,) = report.to_dict()["results"]
    assert (found["top1"], found["agreement"]) == (0.75, 0.5)
    assert (found["latency_ms"], found["batch"], found["backend"]) == (1.25, 1, "ort")
    assert found["steps"][1]["found"] == {"top1": 0.75, "agreement": 0.5}
    (verdict,) = report.verdicts
    assert (verdict.accuracy_text, verdict.latency_text) == ("75.00% top-1", "1.25 ms, b1 ort")
    assert "<td>a-fp16</td>" in report._repr_html_()
    out = recipe.parent / "engines"
    assert commands.called[-1][-4:] == ("--work", f"{out}/bench", "-o", f"{out}/bench/a-fp16.json")


def test_an_entry_may_name_its_folder(recipe: Path) -> None:
    recipe.write_text(
        'fp16 = true\n[[export]]\ntarget = "a.onnx"\noutput = "mine"\n'
        '[[export]]\ntarget = ["a.onnx", "b.onnx"]\noutput = "more"',
        encoding="utf-8",
    )
    found = [step.bundle for step in plan_recipe(recipe, NotedCommands()).steps]
    here = recipe.parent
    assert found == [here / "mine", here / "more/a-fp16", here / "more/b-fp16"]
    other = plan_recipe(recipe, NotedCommands(), output=here / "other")
    assert other.state_path == here / "other/recipe.state.json"


REFUSED: dict[str, tuple[str, str]] = {
    "twice": (
        '[[export]]\ntarget = "a.onnx"\n[[export]]\ntarget = "a.onnx"',
        "engines/a-fp32 is the bundle of [[export]] 1 already; give one of them an output of its",
    ),
    "idle": (
        '[export]\ntarget = "a.onnx"\nfp16 = true\ncalib = "images"\nmax-drop = "1%"',
        (
            "[[export]], calib: is for int8, fp8, auto, not for fp16\n"
            "recipe.toml, [[export]], max-drop: is for auto, not for fp16"
        ),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_planned(case: str, recipe: Path) -> None:
    text, said = REFUSED[case]
    recipe.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        plan_recipe(recipe, NotedCommands())
    assert said in str(caught.value)


def test_what_a_command_refuses_is_said_by_its_table(recipe: Path) -> None:
    commands = NotedCommands(refusing={"eval": "no images at val\nsay --data PATH"})
    with pytest.raises(UsageError, match=r"recipe\.toml, \[eval\]: no images at val; say data = P"):
        plan_recipe(recipe, commands)


def test_a_state_that_cannot_be_read(recipe: Path) -> None:
    place = recipe.parent / "engines/recipe.state.json"
    place.parent.mkdir()
    place.write_text('{"steps": 3}', encoding="utf-8")
    with pytest.raises(BundleError, match=r"is no state of a recipe: .*\nremove it, or write over"):
        plan_recipe(recipe, NotedCommands())
    assert done(run(recipe, again=True)) == EVERY
    assert set(json.loads(place.read_text(encoding="utf-8"))["steps"]) == EVERY
    place.unlink()
    place.mkdir()
    with pytest.raises(BundleError, match=r"^cannot read .*recipe\.state\.json: Is a directory"):
        plan_recipe(recipe, NotedCommands())


def test_a_state_of_another_form_is_begun_again(recipe: Path) -> None:
    place = recipe.parent / "engines/recipe.state.json"
    place.parent.mkdir()
    place.write_text('{"format": 9, "steps": {}}', encoding="utf-8")
    assert done(run(recipe)) == EVERY


def test_two_runs_at_once(recipe: Path) -> None:
    folder = recipe.parent / "engines"
    folder.mkdir()
    with (
        locked(folder / "recipe.state.lock", 0),
        pytest.raises(BundleError, match=r"another run of this recipe is going on, it holds .*\n"),
    ):
        run(recipe)
    assert done(run(recipe)) == EVERY


def test_interrupted_goes_on(recipe: Path) -> None:
    commands = NotedCommands(failing={f"export {recipe.parent / 'b.onnx'}": KeyboardInterrupt()})  # type: ignore[dict-item]  # no Exception
    with pytest.raises(KeyboardInterrupt):
        run(recipe, commands)
    assert done(run(recipe)) == {each for each in EVERY if each.startswith("b-")}
