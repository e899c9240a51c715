"""`deploykit run`: the example of the docs, on small networks."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import deploykit as package
from deploykit.cli._as_steps import COMMANDS
from deploykit.core.errors import UsageError
from deploykit.recipes.reading import AFTER, EXPORT
from tests.bundles import SIZE, write_classifier
from tests.cli import deploykit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.cli._as_steps import ClickCommands
    from deploykit.recipes.options import Ran

PAGE = Path(__file__).parents[2] / "docs" / "recipe.md"
BUNDLES = ("classifier-fp16", "classifier-int8", "small-fp16")


def example() -> str:
    found = re.search(r"^```toml\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the example names."""
    folder = tmp_path_factory.mktemp("nets")
    for name, channels in (("classifier", 16), ("small", 8)):
        write_classifier(folder / f"{name}.onnx", channels=channels)
    (folder / "names.txt").write_text("ant\nbee\ncat\ndog\n", encoding="utf-8")
    pixels = np.random.default_rng(0).integers(0, 256, (64, SIZE, SIZE, 3), np.uint8)
    (folder / "calibration").mkdir()
    from PIL import Image

    for number, image in enumerate(pixels[:40]):
        Image.fromarray(image).save(folder / "calibration" / f"{number}.png")
    labels = np.arange(24) % 4
    np.savez(folder / "validation.npz", images=pixels[40:], labels=labels)
    (folder / "recipe.toml").write_text(example(), encoding="utf-8")
    return folder


def test_the_example_of_the_docs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.parent)
    recipe = Path(place.name) / "recipe.toml"
    lines = deploykit("run", recipe, "--dry-run").out.splitlines()
    assert len(lines) == 4 * len(BUNDLES)
    assert not any("done already" in line for line in lines)
    # Without its measurements, which take seconds each; the test below has one.
    recipe.write_text(example().partition("[bench]")[0], encoding="utf-8")
    done = deploykit("run", recipe, "--json")
    assert done.code == 0, done.err
    found = {Path(one["bundle"]).name: one for one in done.data["results"]}
    assert tuple(found) == BUNDLES
    for one in found.values():
        assert [step["status"] for step in one["steps"]] == ["done"] * 3
        assert 0 <= one["top1"] <= 1
    # As the command itself says it, from the line that the dry run shows.
    _, command, *rest = shlex.split(lines[2])
    judged = deploykit(command, "--json", *rest).data
    assert judged["top1"] == found["classifier-fp16"]["top1"]
    again = deploykit("run", recipe)
    assert again.code == 0
    assert again.err.count("done already") == 2 * len(BUNDLES)
    table = again.out.splitlines()
    assert max(map(len, table[:4])) <= 80
    assert table[1].split()[:3] == ["classifier-fp16", "fp16", "ok"]
    later = deploykit("run", recipe, "--dry-run").out.splitlines()
    assert later == [
        line if "deploykit check" in line else f"{line}  # done already"
        for line in lines
        if " bench " not in line
    ]
    monkeypatch.chdir(place)  # the paths of the recipe are the same ones
    report = package.run_recipe("recipe.toml", report="all.html", quiet=True)
    page = (place / "all.html").read_text(encoding="utf-8")
    assert all(f'"name": "{name}"' in page or f'"name":"{name}"' in page for name in BUNDLES)
    assert "images of validation.npz" in page
    assert (report.page, report.notes) == (Path("all.html"), ())
    repeated = [one.step.command for one in report.results if one.status == "done"]
    assert repeated == ["check"] * len(BUNDLES)
    assert "<td>classifier-int8</td>" in report._repr_html_()


@pytest.mark.usefixtures("known_peak", "steps_here")
def test_a_measurement(place: Path) -> None:
    recipe = place / "speed.toml"
    recipe.write_text(
        'backend = "none"\noutput = "speed"\nfp16 = true\n[export]\ntarget = "small.onnx"\n'
        '[bench]\nbackend = "ort"\nbatch = 1\nduration = 0.1\nwarmup = 0.05\nmin-samples = 5\n',
        encoding="utf-8",
    )
    called = deploykit("run", recipe, "--json")
    assert called.code == 0, called.err
    (found,) = called.data["results"]
    assert (found["batch"], found["backend"]) == (1, "ort")
    results = json.loads((place / "speed/bench/small-fp16.json").read_text(encoding="utf-8"))
    assert results["results"]
    assert found["latency_ms"] > 0


WRONG = """\
wrong.toml, the top, bakend: is no key; did you mean backend?
wrong.toml, [[export]] 2, optimization-level: is 9: 9 is not in the range 0<=x<=5.
wrong.toml, [eval], batch: is 0: 0 is not in the range x>=1.
wrong.toml, [eval], data: is missing, expected a path, as a text
wrong.toml, [bench], scenario: is "all": 'all' is not one of 'single-stream', 'offline', 'server'.
wrong.toml, [[export]] 2, target: there is no file FOLDER/none.onnx
wrong.toml, [[export]] 1: INT8 needs images to calibrate with: calib = PATH; for trying out sizes \
and speed only, noise will do: calib = "random"
"""


def test_what_is_wrong_is_said_with_its_place(place: Path) -> None:
    wrong = place / "wrong.toml"
    wrong.write_text(
        'precision = "int8"\nbakend = "none"\n[[export]]\ntarget = "small.onnx"\n'
        '[[export]]\ntarget = "none.onnx"\ncalib = "calibration"\noptimization-level = 9\n'
        "[eval]\nbatch = 0\n[bench]\nscenario = 'all'\n",
        encoding="utf-8",
    )
    called = deploykit("run", wrong)
    assert called.code == 2
    said = called.err.replace(str(place), "FOLDER").splitlines()
    assert said[0] == "Error: FOLDER/wrong.toml has 7 problems, nothing was done"
    assert said[1:] == WRONG.splitlines()
    assert not (place / "wrong.state.json").exists()
    assert not (place / "engines" / "wrong.state.json").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('calib = "gone"\nint8 = true', "no images at gone: it does not exist"),
        ('labels = "gone.txt"', "cannot read"),
        ('head = "raw"\nmean = "1,2"', "mean is '1,2'; expected three numbers"),
        ("batch = [8, 1]", "batch profile '8,1'"),
        ('fp16 = true\nprecision = "auto"', 'precision = "auto" needs to know what may be lost'),
    ],
)
def test_a_value_that_the_command_refuses(text: str, said: str, place: Path) -> None:
    wrong = place / "value.toml"
    wrong.write_text(f'{text}\n[export]\ntarget = "small.onnx"\n', encoding="utf-8")
    called = deploykit("run", wrong)
    assert called.code == 2
    assert said in called.err.replace(f"{place}/", "")


def test_wrong_recipes_import_nothing_heavy(place: Path) -> None:
    """So that the answer comes at once."""
    path = place / "heavy.toml"
    path.write_text('int8 = true\n[export]\ntarget = "small.onnx"\n[check]\n', encoding="utf-8")
    code = (
        "import sys; from click.testing import CliRunner; from deploykit.cli import main\n"
        f"assert CliRunner().invoke(main, ['run', {str(path)!r}]).exit_code == 2\n"
        "print({'torch', 'onnx', 'onnxruntime'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("command", [EXPORT, *AFTER])
def test_every_option_is_a_key(command: str) -> None:
    """Also one that nobody has thought of here."""
    options = COMMANDS.options(command)
    helped = deploykit(command, "--help").out
    listed = set(re.findall(r"^ +(?:-\w, )?--([a-z0-9-]+)", helped, re.M))
    assert listed - {"json", "debug", "help", "quiet", "report", "verbose"} == set(options)


@pytest.mark.parametrize("command", AFTER)
def test_a_call_can_be_judged_and_nothing_is_done(command: str, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "image.png").touch()  # an empty folder is refused
    needed = ("--data", str(tmp_path / "x")) if command == "eval" else ()
    bundle = tmp_path / "bundle"
    COMMANDS.require(command, (str(bundle), *needed))
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_failures_and_the_exit_code(place: Path) -> None:
    (place / "bad.onnx").write_bytes(b"no graph")
    recipe = place / "fails.toml"
    recipe.write_text(
        'fp16 = true\nbackend = "none"\noutput = "other"\n'
        '[export]\ntarget = ["bad.onnx", "small.onnx"]\n[check]\n',
        encoding="utf-8",
    )
    called = deploykit("run", recipe)
    assert called.code == 1
    assert "not run: its export failed" in called.err
    lines = called.out.splitlines()
    assert lines[1].split()[:4] == ["bad-fp16", "fp16", "not", "exported"]
    assert lines[2].split()[:3] == ["small-fp16", "fp16", "ok"]
    assert "bad-fp16 export: bad.onnx is truncated or not an ONNX file" in lines[3]
    assert lines[-1].startswith("1 of 2 bundles are good; steps and figures: ")
    state = json.loads((place / "other/fails.state.json").read_text(encoding="utf-8"))
    assert set(state["steps"]) == {"small-fp16 export", "small-fp16 check"}


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A recipe of two bundles that are checked."""
    for name in "ab":
        write_classifier(tmp_path / f"{name}.onnx", channels=4)
    recipe = tmp_path / "two.toml"
    recipe.write_text(
        'fp16 = true\nbackend = "none"\n[export]\ntarget = ["a.onnx", "b.onnx"]\n[check]\n',
        encoding="utf-8",
    )
    return recipe


def test_a_page_that_cannot_be_written_loses_no_answer(two: Path) -> None:
    place = two.parent / "a.onnx" / "all.html"  # a file is no folder
    called = deploykit("run", two, "--report", place)
    assert called.code == 1, called.err
    assert "2 of 2 bundles are good" in called.out
    assert f"no report {place}: cannot write" in called.out
    quiet = deploykit("run", two, "--report", place, "-q")
    assert quiet.code == 1
    assert [line[:12] for line in quiet.out.splitlines()[:2]] == ["2 of 2 bundl", "no report /t"]
    plain = deploykit("run", two, "--report", place, "--json").data
    assert plain["report"] is None
    assert plain["report_notes"][0].startswith(f"no report {place}: cannot write")
    assert len(plain["results"]) == 2
    report = package.run_recipe(two, report=place, quiet=True)
    assert report.page is None
    assert report.notes == tuple(plain["report_notes"])


def test_the_page_leaves_out_what_failed_its_check(
    two: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deploykit("run", two).code == 0
    golden = two.parent / "engines/b-fp16/golden.npz"
    run = type(COMMANDS).run

    def damaging(commands: ClickCommands, command: str, arguments: Sequence[str]) -> Ran:
        if command == "check" and arguments[-1].endswith("b-fp16"):
            golden.write_bytes(b"no sample")
        return run(commands, command, arguments)

    monkeypatch.setattr(type(COMMANDS), "run", damaging)
    file = two.parent / "all.html"
    called = deploykit("run", two, "--report", file)
    assert called.code == 1
    left_out = f"the report leaves out {golden.parent}: it failed its check"
    assert f"report: {file}\n{left_out}" in called.out
    page = file.read_text(encoding="utf-8")
    assert "a-fp16" in page
    assert "b-fp16" not in page
    report = package.run_recipe(two, report=file)
    assert report.notes == (left_out,)
    assert f"note: {left_out}" in capsys.readouterr().err


def test_a_report_of_nothing(two: Path) -> None:
    (two.parent / "a.onnx").write_bytes(b"no graph")
    (two.parent / "b.onnx").write_bytes(b"no graph")
    file = two.parent / "all.html"
    called = deploykit("run", two, "--report", file)
    assert called.code == 1
    assert "0 of 2 bundles are good" in called.out
    assert f"no report {file}: there is no sound bundle to report on" in called.out
    assert not file.exists()


def test_a_damaged_bundle_is_made_again(two: Path) -> None:
    assert deploykit("run", two).code == 0
    graph = two.parent / "engines/a-fp16/model.onnx"
    good = graph.read_bytes()
    graph.write_bytes(good[:-4] + b"\0\1\2\3")
    called = deploykit("run", two, "--json")
    assert called.code == 0, called.err
    statuses = [[one["status"] for one in each["steps"]] for each in called.data["results"]]
    assert statuses == [["done", "done"], ["done already", "done"]]
    assert deploykit("check", graph.parent).code == 0


@pytest.mark.parametrize("target", ["--help", "--fp32", "-q"])
def test_a_target_is_no_option(target: str, tmp_path: Path) -> None:
    recipe = tmp_path / "dash.toml"
    recipe.write_text(f'[export]\ntarget = "{target}"', encoding="utf-8")
    called = deploykit("run", recipe, "--dry-run")
    assert called.code == 2
    assert called.out == ""
    assert f"dash.toml, [[export]]: unknown architecture '{target}'" in called.err


def test_a_command_line_that_asks_for_help_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^check was asked for its help, and does nothing\nleave"):
        COMMANDS.require("check", ("--help",))


def test_debug_shows_the_traceback_of_each_step_that_fails(two: Path) -> None:
    (two.parent / "a.onnx").write_bytes(b"no graph")
    assert "Traceback" not in deploykit("run", two).err
    called = deploykit("run", two, "--debug")
    assert called.code == 1
    assert called.err.count("Traceback (most recent call last)") >= 1
    assert "ModelFileError: a.onnx is truncated" in called.err
    assert "1 of 2 bundles are good" in called.out


def test_a_folder_that_is_told_has_all_bundles(two: Path) -> None:
    text = two.read_text(encoding="utf-8")
    two.write_text(text.replace("[check]", 'output = "mine"'), encoding="utf-8")
    shown = deploykit("run", two, "-o", two.parent / "told", "--dry-run", "--json").data
    places = [Path(each["bundle"]).relative_to(two.parent) for each in shown["steps"]]
    assert list(map(str, places)) == ["told/mine/a-fp16", "told/mine/b-fp16"]
