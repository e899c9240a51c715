"""Steps of a recipe: what is done, what is done already, and what one failure leaves."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from deploykit.core.atomic import locked
from deploykit.core.environment import package_version
from deploykit.core.errors import BuildError, BundleError, UsageError
from deploykit.recipes import state as keeping
from deploykit.recipes.options import Form
from deploykit.recipes.running import RecipeReport, Status, plan_recipe, run_planned
from tests.bundles import engine_record, write_bundle, write_classifier
from tests.recipes import OPTIONS, NotedCommands, option

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
        ("export", "--fp16", "-o", f"{out}/a-fp16", "--", f"{here}/a.onnx"),
        ("check", "--", f"{out}/a-fp16"),
        ("eval", "--data", f"{here}/val.csv", "--", f"{out}/a-fp16"),
        (
            *("export", "--int8", "--calib", f"{here}/images", "-o", f"{out}/a-int8"),
            *("--", f"{here}/a.onnx"),
        ),
        ("check", "--", f"{out}/a-int8"),
        ("eval", "--data", f"{here}/val.csv", "--", f"{out}/a-int8"),
        ("export", "--fp16", "-o", f"{out}/b-fp16", "--", f"{here}/b.onnx"),
        ("check", "--", f"{out}/b-fp16"),
        ("eval", "--data", f"{here}/val.csv", "--", f"{out}/b-fp16"),
    ]
    assert done(report) == EVERY
    lines = [result.step.command_line for result in report.results]
    assert lines[1] == f"deploykit check -- {out}/a-fp16"


def test_nothing_is_done_twice(recipe: Path) -> None:
    run(recipe)
    commands = NotedCommands()
    report = run(recipe, commands)
    assert {each[0] for each in commands.called} == {"check"}
    assert done(report) == CHECKS
    assert set(statuses(report).values()) == {"done", "done already"}
    assert plan_recipe(recipe, commands).before() == (True, False, True) * 3
    assert done(run(recipe, again=True)) == EVERY


CHECKS = {each for each in EVERY if each.endswith("check")}
"""Steps that are done each time: they look at the files as they are."""

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
    assert done(report) == again | CHECKS


def test_an_image_of_a_list_that_changes_counts(recipe: Path) -> None:
    run(recipe)
    image = recipe.parent / "images" / "1.png"
    facts = image.stat()
    os.utime(image, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    assert done(run(recipe)) >= {each for each in EVERY if each.endswith("eval")}


def test_options_and_the_release_count(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(recipe)
    recipe.write_text(RECIPE.replace("[check]", '[check]\ndevice = "cuda"'), encoding="utf-8")
    commands = NotedCommands()
    assert done(run(recipe, commands)) == CHECKS
    assert commands.called[0][:3] == ("check", "--device", "cuda")
    recipe.write_text(RECIPE.replace("val.csv", "images"), encoding="utf-8")
    assert done(run(recipe)) == EVERY - {each for each in EVERY if each.endswith("export")}
    monkeypatch.setattr(keeping, "__version__", "99.0")
    assert done(run(recipe)) == EVERY


def test_a_bundle_that_is_gone_is_made_again(recipe: Path) -> None:
    run(recipe)
    (recipe.parent / "engines/a-fp16/manifest.json").unlink()
    assert done(run(recipe)) == {"a-fp16 export", *CHECKS}
    assert plan_recipe(recipe, NotedCommands()).before() == (True, False, True) * 3


@pytest.mark.parametrize("file", ["model.onnx", "golden.npz", "model.engine"])
@pytest.mark.parametrize("is_gone", [False, True])
def test_a_bundle_whose_files_changed_is_made_again(
    file: str, recipe: Path, *, is_gone: bool
) -> None:
    run(recipe)
    folder = recipe.parent / "engines/a-fp16"
    write_bundle(folder, engine_record("model.engine"))
    run(recipe)
    assert done(run(recipe)) == CHECKS
    path = folder / file
    if is_gone:
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    assert plan_recipe(recipe, NotedCommands()).before()[0] is False
    assert "a-fp16 export" in done(run(recipe))


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
    assert report.unsound == (recipe.parent / "engines/b-fp16",)


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
    assert commands.called[-1][-6:] == (
        *("--work", f"{out}/bench", "-o", f"{out}/bench/a-fp16.json"),
        *("--", f"{out}/a-fp16"),
    )


@pytest.mark.parametrize("key", ["compare", "reference"])
def test_agreement_with_another_model_is_not_that_with_the_original(
    key: str, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OPTIONS, "eval", (*OPTIONS["eval"], option(key, Form.PATH)))
    recipe.write_text(
        f'[export]\ntarget = "a.onnx"\n[eval]\ndata = "val.csv"\n{key} = "b.onnx"',
        encoding="utf-8",
    )
    exported = {"engines": [], "validation": [{"batches": [{"batch": 4, "agreement": 0.75}]}]}
    commands = NotedCommands({"eval": {"top1": 0.5, "agreement": 0.25}, "export": exported})
    (verdict,) = run(recipe, commands).verdicts
    assert (verdict.top1, verdict.agreement) == (0.5, 0.75)


def test_a_comparison_that_could_not_fail_is_said(recipe: Path) -> None:
    recipe.write_text('[export]\ntarget = "a.onnx"', encoding="utf-8")
    found = {"batches": [], "blind_spots": ["one image alone was compared"]}
    commands = NotedCommands({"export": {"engines": [], "validation": [found, found]}})
    (verdict,) = run(recipe, commands).verdicts
    assert (verdict.text, verdict.ok) == ("weakly verified", True)
    assert verdict.to_dict()["doubts"] == ["one image alone was compared"]


def test_figures_that_are_no_number(recipe: Path) -> None:
    nan = {"backend": "ort", "precision": "fp32", "batch": 1, "throughput_per_s": float("inf")}
    rows = [{**nan, "latency_ms": {"p50": float("nan")}}]
    recipe.write_text('[export]\ntarget = "a.onnx"\n[bench]', encoding="utf-8")
    commands = NotedCommands({"bench": {"results": rows}})
    first, second = run(recipe, commands), run(recipe, commands)
    assert [one.verdicts[0].latency_ms for one in (first, second)] == [None, None]
    text = first.state.read_text(encoding="utf-8")
    read = json.loads(text, parse_constant=pytest.fail)
    (row,) = read["steps"]["a-fp32 bench"]["found"]["results"]
    assert (row["p50_ms"], row["throughput_per_s"], row["batch"]) == (None, None, 1)


def test_results_that_are_deleted_are_measured_again(recipe: Path) -> None:
    recipe.write_text('[export]\ntarget = "a.onnx"\n[bench]', encoding="utf-8")
    folder = recipe.parent / "engines/bench"
    folder.mkdir(parents=True)
    files = [folder / f"a-fp32.{suffix}" for suffix in ("json", "md", "csv", "html")]
    for file in files:
        file.write_text("results", encoding="utf-8")
    commands = NotedCommands({"bench": {"results": [], "files": [str(file) for file in files]}})
    run(recipe, commands)
    assert done(run(recipe, commands)) == set()
    files[1].unlink()
    assert plan_recipe(recipe, commands).before() == (True, False)
    assert done(run(recipe, commands)) == {"a-fp32 bench"}


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
    moved = [here / "other" / name for name in ("mine", "more/a-fp16", "more/b-fp16")]
    assert [step.bundle for step in other.steps] == moved


def test_bundles_of_one_name_are_apart(recipe: Path) -> None:
    entries = [
        f'[[export]]\ntarget = ["a.onnx", "b.onnx"]\noutput = "{folder}"\n'
        for folder in ("x", "y", "engines/x")
    ]
    recipe.write_text("fp16 = true\n" + "".join(entries) + "[bench]", encoding="utf-8")
    commands = NotedCommands()
    report = run(recipe, commands)
    names = [one.step.name for one in report.results]
    assert len(set(names)) == len(names) == 12
    assert {"../x/a-fp16 bench", "x/a-fp16 export"} < set(names)
    results = {each[each.index("-o") + 1] for each in commands.called if each[0] == "bench"}
    assert len(results) == 6
    assert all(each.startswith(f"{recipe.parent}/engines/bench/") for each in results)
    assert done(run(recipe)) == set()
    assert len({one.name for one in report.verdicts}) == 6


TWO_IN_ONE = """
[[export]]
target = "a.onnx"
output = "x"
[[export]]
target = "b.onnx"
output = "x/deep/b"
"""

LYING: dict[str, tuple[str, str]] = {
    "in another": (
        TWO_IN_ONE,
        "[[export]] 2, output: FOLDER/x/deep/b lies in FOLDER/x, the bundle of [[export]] 1; ch",
    ),
    "around all": (
        '[export]\ntarget = "a.onnx"\noutput = "engines"',
        "[[export]], output: FOLDER/engines would hold FOLDER/engines, where results of all bun",
    ),
    "results": (
        '[export]\ntarget = "a.onnx"\noutput = "engines/bench"\n[bench]',
        "[[export]], output: FOLDER/engines/bench would hold FOLDER/engines/bench, where results",
    ),
    "in one that is there": (
        '[export]\ntarget = "a.onnx"\noutput = "there/deep/a"',
        "[[export]], output: FOLDER/there/deep/a lies in the bundle FOLDER/there; choose another",
    ),
    "around one that is there": (
        '[export]\ntarget = "a.onnx"\noutput = "outer"',
        "[[export]], output: FOLDER/outer holds the bundle FOLDER/outer/deep/inner; choose",
    ),
    "around some": (
        '[export]\ntarget = "a.onnx"\noutput = "outer/deep"',
        "[[export]], output: FOLDER/outer/deep lies in the bundle FOLDER/outer; choose another",
    ),
    "around a folder of bundles": (
        '[export]\ntarget = "a.onnx"\noutput = "many"',
        "[[export]], output: FOLDER/many holds the bundle FOLDER/many/one; choose another output",
    ),
}


@pytest.mark.parametrize("case", LYING)
def test_bundles_do_not_lie_in_one_another(case: str, recipe: Path) -> None:
    text, said = LYING[case]
    (recipe.parent / "outer/deep").mkdir(parents=True)
    (recipe.parent / "many").mkdir()
    for name in ("there", "outer", "outer/deep/inner", "many/one"):
        write_bundle(recipe.parent / name)
    recipe.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        plan_recipe(recipe, NotedCommands())
    assert said in str(caught.value).replace(str(recipe.parent.resolve()), "FOLDER")
    assert not (recipe.parent / "engines").exists()


def test_a_manifest_of_something_else_is_no_bundle(recipe: Path) -> None:
    write_bundle(recipe.parent)
    manifest = recipe.parent / "manifest.json"
    with pytest.raises(UsageError, match="lies in the bundle"):
        plan_recipe(recipe, NotedCommands())
    written = manifest.read_text(encoding="utf-8")
    manifest.write_text(written.replace("colours", "colors"), encoding="utf-8")
    with pytest.raises(UsageError, match="lies in the bundle"):
        plan_recipe(recipe, NotedCommands())
    manifest.write_text('{"name": "a web page", "icons": []}', encoding="utf-8")
    assert plan_recipe(recipe, NotedCommands()).steps


def test_the_version_of_a_library_counts(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = recipe.parent / "hub"
    hub.mkdir()
    (hub / "config.json").write_text("{}", encoding="utf-8")
    recipe.write_text(
        '[export]\ntarget = ["torchvision:a", "timm:b", "hub", "resnet18", "a.onnx"]',
        encoding="utf-8",
    )
    every = ("torchvision-a", "timm-b", "hub", "resnet18", "a")
    for library, named in {
        "torchvision": every[:1],
        "timm": every[1:2],
        "transformers": every[2:3],
    }.items():
        run(recipe)
        assert done(run(recipe)) == set()
        monkeypatch.setattr(
            keeping,
            "package_version",
            lambda name, changed=library: "99.0" if name == changed else package_version(name),
        )
        assert done(run(recipe)) == {f"{each}-fp32 export" for each in named}
        monkeypatch.undo()


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


@pytest.mark.parametrize("steps", ["{}", '{"a export": {"other": 1}}'])
def test_a_state_of_another_form_is_refused(steps: str, recipe: Path) -> None:
    place = recipe.parent / "engines/recipe.state.json"
    place.parent.mkdir()
    written = f'{{"format": 9, "steps": {steps}, "more": 1}}'
    place.write_text(written, encoding="utf-8")
    with pytest.raises(BundleError, match=r"has format 9, deploykit .* reads 1\n.* --again"):
        run(recipe)
    assert place.read_text(encoding="utf-8") == written
    assert done(run(recipe, again=True)) == EVERY


def test_steps_that_another_run_has_finished_meanwhile_are_not_repeated(recipe: Path) -> None:
    commands = NotedCommands()
    planned = plan_recipe(recipe, commands)
    run(recipe)
    assert done(run_planned(planned, commands, lambda _: None)) == CHECKS
    assert {each[0] for each in commands.called} == {"check"}


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
    assert done(run(recipe)) == {each for each in EVERY if each.startswith("b-")} | CHECKS
