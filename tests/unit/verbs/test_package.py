"""The verb behind `deploykit package`: whole or not at all, and nothing of anybody's replaced."""

from __future__ import annotations

import json
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

import deploykit as face
from deploykit.bundle.manifest import MANIFEST, Bundle
from deploykit.core.artifacts import sha256_of
from deploykit.core.errors import (
    BundleError,
    IntegrityError,
    SignatureError,
    UnknownNameError,
    UsageError,
)
from deploykit.packaging import PackageChoices, place_named
from deploykit.verbs.package import RECORD, package
from tests.bundles import engine_record, write_bundle
from tests.cli import deploykit

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", engine_record())


def snapshot(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256_of(p) for p in folder.rglob("*") if p.is_file()}


def test_the_record_names_every_file_and_what_it_was_made_of(bundle: Path, tmp_path: Path) -> None:
    report = package(bundle, "triton", tmp_path / "out")
    record = json.loads((tmp_path / "out" / RECORD).read_text(encoding="utf-8"))
    assert record["manifest.json"] == sha256_of(bundle / MANIFEST)
    assert {**record["files"], RECORD: sha256_of(tmp_path / "out" / RECORD)} == snapshot(
        tmp_path / "out"
    )
    assert set(report.files) == snapshot(tmp_path / "out").keys()


def test_a_package_is_replaced_only_where_it_was_allowed(bundle: Path, tmp_path: Path) -> None:
    package(bundle, "docker", tmp_path / "out")
    before = snapshot(tmp_path / "out")
    with pytest.raises(BundleError, match=r"holds a package already\nchoose .* --replace"):
        package(bundle, "triton", tmp_path / "out")
    assert snapshot(tmp_path / "out") == before
    package(bundle, "triton", tmp_path / "out", replace=True)
    assert (tmp_path / "out" / "models").is_dir()
    assert not (tmp_path / "out" / "Dockerfile").exists()


def test_a_package_does_not_go_into_a_bundle_or_another_package(
    bundle: Path, tmp_path: Path
) -> None:
    package(bundle, "docker", tmp_path / "out")
    before = snapshot(tmp_path)
    for place, what in (("bundle/a/b", "the bundle"), ("out/inside", "the package")):
        with pytest.raises(BundleError, match=rf"lies in {what} .*/{place.split('/')[0]}, which"):
            package(bundle, "triton", tmp_path / place)
    assert snapshot(tmp_path) == before


def test_a_package_may_go_below_a_manifest_of_something_else(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "a web page", "icons": []}')
    package(bundle, "triton", tmp_path / "out")
    assert (tmp_path / "out" / "models").is_dir()


@pytest.mark.parametrize("name", ["mine.txt", "models/colours-fp32/1/model-sm80.plan", "README.md"])
def test_files_of_the_user_stop_a_replacement(name: str, bundle: Path, tmp_path: Path) -> None:
    package(bundle, "triton", tmp_path / "out")
    (tmp_path / "out" / name).write_text("hours")
    before = snapshot(tmp_path / "out")
    with pytest.raises(BundleError, match=rf"did not write, or .*: {name}\nmove them away, or"):
        package(bundle, "triton", tmp_path / "out", replace=True)
    assert snapshot(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "out"]


def test_many_files_of_the_user_are_counted(bundle: Path, tmp_path: Path) -> None:
    package(bundle, "triton", tmp_path / "out")
    for number in range(6):
        (tmp_path / "out" / f"{number}\n.txt").touch()
    (tmp_path / "out" / "6").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r": 0\\n\.txt, .*, 3\\n\.txt and 3 more\n"):
        package(bundle, "triton", tmp_path / "out", replace=True)


def test_what_comes_meanwhile_stops_a_replacement(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(bundle, "triton", tmp_path / "out")
    place = place_named("triton")
    write = place.write

    def slow(opened: Bundle, folder: Path, choices: PackageChoices) -> Any:
        (tmp_path / "out" / "build.log").write_text("compiling")
        return write(opened, folder, choices)

    monkeypatch.setattr(type(place), "write", lambda _, *given: slow(*given))
    with pytest.raises(BundleError, match=r"did not write, or .*: build\.log\n"):
        package(bundle, "triton", tmp_path / "out", replace=True)
    assert (tmp_path / "out" / "build.log").read_text() == "compiling"


@pytest.mark.parametrize("text", ["", "[]", '{"files": 3}', "{}"])
def test_a_record_that_cannot_be_read_stops_a_replacement(
    text: str, bundle: Path, tmp_path: Path
) -> None:
    package(bundle, "triton", tmp_path / "out")
    (tmp_path / "out" / RECORD).write_text(text)
    with pytest.raises(BundleError, match="so which files deploykit wrote is not known"):
        package(bundle, "triton", tmp_path / "out", replace=True)


def wheel_at(path: Path, name: str = "deploykit/_version.py") -> Path:
    with zipfile.ZipFile(path, "w") as made:
        made.writestr(name, "")
    return path


def test_the_wheel_that_was_put_there_is_taken_over_each_time(bundle: Path, tmp_path: Path) -> None:
    package(bundle, "docker", tmp_path / "out")
    wheel = wheel_at(tmp_path / "out" / "wheel" / "deploykit_vision-1-py3-none-any.whl")
    before = wheel.read_bytes()
    for _ in range(2):
        report = package(bundle, "docker", tmp_path / "out", replace=True)
        assert wheel.read_bytes() == before
        assert not any("put the wheel" in note for note in report.packed.notes)
    other = PackageChoices(wheel=wheel_at(tmp_path / "deploykit_vision-2-py3-none-any.whl"))
    package(bundle, "docker", tmp_path / "out", other, replace=True)
    assert [path.name for path in wheel.parent.iterdir()] == ["deploykit_vision-2-py3-none-any.whl"]


def test_a_wheel_that_would_be_lost_is_named(bundle: Path, tmp_path: Path) -> None:
    package(bundle, "docker", tmp_path / "out")
    wheel = wheel_at(tmp_path / "out" / "wheel" / "deploykit_vision-1-py3-none-any.whl")
    other = PackageChoices(wheel=wheel_at(tmp_path / "deploykit_vision-2-py3-none-any.whl"))
    for place, choices in (("docker", other), ("triton", None)):
        with pytest.raises(BundleError, match=rf"did not write, or .*: wheel/{wheel.name}\n"):
            package(bundle, place, tmp_path / "out", choices, replace=True)
    wheel_at(wheel, "other.py")
    with pytest.raises(BundleError, match=rf"did not write, or .*: wheel/{wheel.name}\n"):
        package(bundle, "docker", tmp_path / "out", replace=True)


def test_what_is_no_package_is_never_replaced(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(BundleError, match="exists and is not a package, so it is not replaced"):
        package(bundle, "triton", tmp_path / "mine", replace=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


def test_an_empty_folder_is_filled(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    package(bundle, "triton", tmp_path / "out")
    assert (tmp_path / "out" / RECORD).is_file()


def test_a_failure_leaves_nothing(bundle: Path, tmp_path: Path) -> None:
    (bundle / engine_record().file).write_text("something else")
    with pytest.raises(IntegrityError, match="has sha256"):
        package(bundle, "triton", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_a_bundle_that_is_replaced_meanwhile_is_packaged_whole(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt writes files of the bundle of before; none of them is left."""
    place, attempts = place_named("triton"), []
    write = place.write

    def slow(opened: Bundle, folder: Path, choices: PackageChoices) -> Any:
        attempts.append(opened.manifest.name)
        made = write(opened, folder, choices)
        if len(attempts) == 1:
            write_bundle(bundle, engine_record(), name="newer-fp32")
        return made

    monkeypatch.setattr(type(place), "write", lambda _, *given: slow(*given))
    package(bundle, "triton", tmp_path / "out")
    assert attempts == ["colours-fp32", "newer-fp32"]
    assert [path.name for path in (tmp_path / "out/models").iterdir()] == ["newer-fp32"]


@pytest.mark.parametrize(
    ("place", "choices", "message"),
    [
        ("tritn", PackageChoices(), "unknown place 'tritn'\ndid you mean: triton"),
        ("triton", PackageChoices(server="triton"), "--server is not for --to triton"),
        ("triton", PackageChoices(storage_uri="s3://x"), "--storage-uri is not for --to triton"),
        ("docker", PackageChoices(image="x"), "--image is not for --to docker\nit takes --wheel"),
    ],
)
def test_what_is_wrong_with_the_call(
    place: str, choices: PackageChoices, message: str, bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        package(bundle, place, tmp_path / "out", choices)
    assert not (tmp_path / "out").exists()


def test_what_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="not a bundle"):
        package(tmp_path / "empty", "triton", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unsigned_bundle_is_refused_where_trust_is_asked(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    from tests import signing

    key = signing.new_key(tmp_path / "key.pem").with_suffix(".pub")
    with pytest.raises(SignatureError):
        package(bundle, "triton", tmp_path / "out", trust=key)


# --- the command, and the function


def test_the_command_prints_one_object(bundle: Path, tmp_path: Path) -> None:
    called = deploykit("package", bundle, "--to", "triton", "-o", tmp_path / "out", "--json")
    assert called.code == 0, called.err
    assert called.data["platform"] == "tensorrt_plan"
    assert called.data["plans"] == {"9.0": "model-sm90.plan"}
    assert "README.md" in called.data["files"]


def test_the_command_shows_what_is_inside_and_what_is_unknown(bundle: Path, tmp_path: Path) -> None:
    called = deploykit("package", bundle, "--to", "triton", "-o", tmp_path / "out")
    assert called.code == 0
    assert "models/colours-fp32/config.pbtxt" in called.out
    assert "note: which container has TensorRT 11.4.0.106 is not known here" in called.out


def test_a_wrong_call_has_the_exit_code_of_one(bundle: Path, tmp_path: Path) -> None:
    called = deploykit("package", bundle, "--to", "kserve", "-o", tmp_path / "out")
    assert called.code == 2
    assert "--storage-uri" in called.err


def test_the_help_names_the_places() -> None:
    called = deploykit("package", "--help")
    assert "docker, kserve, triton." in called.out


def test_from_python(bundle: Path, tmp_path: Path) -> None:
    report = face.package(bundle, "docker", tmp_path / "out", quiet=True)
    assert report.place == "docker"
    with pytest.raises(UsageError, match=r"storage_uri is nothing"):
        face.package(bundle, "kserve", tmp_path / "other", quiet=True)
    with pytest.raises(UnknownNameError, match="unknown place"):
        face.package(bundle, "mars", tmp_path / "other", quiet=True)
