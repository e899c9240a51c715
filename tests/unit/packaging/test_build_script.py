"""The script of a model repository that compiles plans, run with stand-ins for its programs."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from deploykit.bundle.manifest import Bundle
from deploykit.core.sizes import ShapeProfile, SizeRange
from deploykit.packaging import PackageChoices, place_named
from tests.bundles import engine_record, write_bundle
from tests.unit.packaging.test_triton import config

if TYPE_CHECKING:
    from pathlib import Path

TRTEXEC = """#!/bin/sh
echo "&&&& RUNNING TensorRT.trtexec [TensorRT v$(cat "$STAND_IN/version")] [b9] # trtexec $*"
case $1 in --help) cat "$STAND_IN/help"; exit 1 ;; esac
printf '%s\\n' "$*" >>"$STAND_IN/calls"
[ -z "${FAILS_ON-}" ] || case $* in *--device="$FAILS_ON"*) echo "no kernel"; exit 1 ;; esac
for word in "$@"; do
    case $word in
    --saveEngine=*) printf 'plan of %s' "$(cat "$STAND_IN/version")" >"${word#*=}" ;;
    esac
done
"""
NVIDIA_SMI = """#!/bin/sh
cat "$STAND_IN/gpus"
"""
DOCKER = """#!/bin/sh
printf '%s\\n' "$*" >>"$STAND_IN/docker.calls"
while [ "$1" != -v ]; do shift; done
folder=${2%:/package}
exec /bin/sh "$folder/build.sh" --here
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A folder of programs, and of the files that say what they do."""
    folder = tmp_path / "stand_in"
    folder.mkdir()
    for name, text in {"trtexec": TRTEXEC, "nvidia-smi": NVIDIA_SMI, "docker": DOCKER}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "version").write_text("110100")
    (folder / "help").write_text("--onnx=<file>\n")
    (folder / "gpus").write_text("0, 9.0\n1, 9.0\n2, 8.9\n")
    return folder


def package(tmp_path: Path, *engines: Any) -> Path:
    folder = tmp_path / "a package"  # a space, as folders of people have
    folder.mkdir()
    bundle = Bundle.open(write_bundle(tmp_path / "bundle", *engines))
    place_named("triton").write(bundle, folder, PackageChoices())
    return folder


def run(
    folder: Path, stand_in: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    # Of the machine's own programs those that every shell has, and no docker or nvidia-smi.
    path = f"{stand_in}:/usr/bin:/bin"
    return subprocess.run(
        ["/bin/sh", str(folder / "build.sh"), *arguments],
        env={"PATH": path, "STAND_IN": str(stand_in), **environment},
        cwd=folder.parent,
        capture_output=True,
        text=True,
        check=False,
    )


def plans(folder: Path) -> dict[str, str]:
    found = (folder / "models/colours-fp32/1").glob("*.plan")
    return {path.name: path.read_text() for path in found}


def test_it_compiles_a_plan_for_each_kind_of_gpu_and_swaps_the_platform(
    tmp_path: Path, stand_in: Path
) -> None:
    folder = package(tmp_path)
    assert config(folder).platform == "onnxruntime_onnx"
    done = run(folder, stand_in, "--here")
    assert done.returncode == 0, done.stderr
    found = config(folder)
    assert found.platform == "tensorrt_plan"
    assert dict(found.cc_model_filenames) == {"9.0": "model-sm90.plan", "8.9": "model-sm89.plan"}
    assert plans(folder).keys() == {"model-sm90.plan", "model-sm89.plan"}
    calls = (stand_in / "calls").read_text().splitlines()
    assert [call.partition("--device=")[2][0] for call in calls] == ["0", "2"]
    shapes = "--minShapes=input:1x3x8x8 --optShapes=input:8x3x8x8 --maxShapes=input:32x3x8x8"
    assert all(shapes in call and "--stronglyTyped" not in call for call in calls)
    assert f"--onnx={folder}/models/colours-fp32/1/model.onnx" in calls[0]
    assert not list(folder.rglob("*.new"))


def test_on_the_host_it_runs_in_the_named_container(tmp_path: Path, stand_in: Path) -> None:
    folder = package(tmp_path)
    done = run(folder, stand_in, "triton:mine")
    assert done.returncode == 0, done.stderr
    (call,) = (stand_in / "docker.calls").read_text().splitlines()
    assert f"-v {folder}:/package --entrypoint /bin/sh triton:mine /package/build.sh" in call
    assert "--gpus all" in call
    assert config(folder).platform == "tensorrt_plan"
    run(folder, stand_in)
    assert "nvcr.io/nvidia/tritonserver:26.07-py3" in (stand_in / "docker.calls").read_text()


def test_a_weakly_typed_default_is_switched_off(tmp_path: Path, stand_in: Path) -> None:
    (stand_in / "version").write_text("101303")
    (stand_in / "help").write_text("  --stronglyTyped   Create a strongly typed network\n")
    done = run(package(tmp_path), stand_in, "--here")
    assert done.returncode == 0, done.stderr
    assert "--stronglyTyped" in (stand_in / "calls").read_text()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("version", "8601", "TensorRT v8601 has no strongly typed networks"),
        ("version", "101303", "TensorRT v101303 does not know --stronglyTyped"),
        ("version", "", "does not say its version"),
        ("gpus", "", "there is no GPU"),
    ],
)
def test_what_it_refuses(
    file: str, content: str, message: str, tmp_path: Path, stand_in: Path
) -> None:
    folder = package(tmp_path)
    before = (folder / "models/colours-fp32/config.pbtxt").read_text()
    (stand_in / file).write_text(content)
    done = run(folder, stand_in, "--here")
    assert done.returncode == 1
    assert message in done.stderr
    assert (folder / "models/colours-fp32/config.pbtxt").read_text() == before


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("trtexec", "there is no trtexec"),
        ("nvidia-smi", "there is no nvidia-smi"),
        ("docker", "there is no docker here"),
    ],
)
def test_a_missing_program_is_named(
    program: str, message: str, tmp_path: Path, stand_in: Path
) -> None:
    folder = package(tmp_path)
    (stand_in / program).unlink()
    if shutil.which(program, path="/usr/bin:/bin"):
        pytest.skip(f"{program} is on this machine")
    done = run(folder, stand_in, *(() if program == "docker" else ("--here",)))
    assert done.returncode == 1
    assert message in done.stderr


def test_a_failure_leaves_what_triton_runs(tmp_path: Path, stand_in: Path) -> None:
    folder = package(tmp_path)
    done = run(folder, stand_in, "--here", FAILS_ON="2")
    assert done.returncode == 1
    assert "no kernel" in done.stderr
    assert config(folder).platform == "onnxruntime_onnx"
    assert plans(folder) == {}
    assert not list(folder.rglob("*.new"))
    # The same again, when nothing fails: what is there is not in the way.
    assert run(folder, stand_in, "--here").returncode == 0
    assert config(folder).platform == "tensorrt_plan"


def test_plans_of_another_version_go_and_those_of_other_gpus_stay(
    tmp_path: Path, stand_in: Path
) -> None:
    folder = package(tmp_path)
    assert run(folder, stand_in, "--here").returncode == 0
    (stand_in / "gpus").write_text("0, 12.0\n")
    assert run(folder, stand_in, "--here").returncode == 0
    assert dict(config(folder).cc_model_filenames) == {
        "8.9": "model-sm89.plan",
        "9.0": "model-sm90.plan",
        "12.0": "model-sm120.plan",
    }
    (stand_in / "version").write_text("110400")
    assert run(folder, stand_in, "--here").returncode == 0
    assert plans(folder) == {"model-sm120.plan": "plan of 110400"}
    assert dict(config(folder).cc_model_filenames) == {"12.0": "model-sm120.plan"}


def test_every_profile_of_the_engine_is_compiled(tmp_path: Path, stand_in: Path) -> None:
    profile = ShapeProfile.of([ShapeProfile(1, 1, 1), ShapeProfile(2, 8, 16)])
    engine = engine_record("a.engine", compiler="tensorrt-rtx", profile=profile)
    folder = package(tmp_path, engine)
    assert run(folder, stand_in, "--here").returncode == 0
    call = (stand_in / "calls").read_text().splitlines()[0]
    assert "--profile=0 --minShapes=input:1x3x8x8" in call
    assert "--profile=1 --minShapes=input:2x3x8x8 --optShapes=input:8x3x8x8" in call
    assert [tuple(group.profile) for group in config(folder).instance_group] == [("0", "1")]


def test_open_sizes_have_their_range(tmp_path: Path, stand_in: Path) -> None:
    folder = tmp_path / "package"
    folder.mkdir()
    profile = ShapeProfile(1, 2, 4, height=SizeRange(6, 8, 12), width=SizeRange(8, 8, 8))
    engine = engine_record("a.engine", compiler="tensorrt-rtx", profile=profile)
    bundle = write_bundle(tmp_path / "bundle", engine, image="H, W")
    place_named("triton").write(Bundle.open(bundle), folder, PackageChoices())
    assert run(folder, stand_in, "--here").returncode == 0
    call = (stand_in / "calls").read_text().splitlines()[0]
    assert "--minShapes=input:1x3x6x8 --optShapes=input:2x3x8x8 --maxShapes=input:4x3x12x8" in call


def test_shellcheck_has_nothing_to_say(tmp_path: Path) -> None:
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("needs shellcheck: apt-get install shellcheck")
    script = package(tmp_path) / "build.sh"
    done = subprocess.run([shellcheck, str(script)], capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert done.returncode == 0
    assert os.access(script, os.X_OK)
