"""`sign`, `verify` and `check --trust` as a user calls them; what a build does to a signature."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deploykit.bundle.manifest import LABELS, SIGNATURE
from deploykit.verbs import build
from tests.bundles import engine_record, write_bundle
from tests.cli import deploykit
from tests.signing import new_key

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.core.artifacts import EngineRecord


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return new_key(tmp_path / "key.pem")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "colours")


def test_a_bundle_is_signed_verified_and_checked(folder: Path, key: Path) -> None:
    public = key.with_suffix(".pub")
    called = deploykit("sign", folder, "--key", key)
    assert called.code == 0, called.err
    assert "the manifest, which has the hash of 3 other files" in called.out
    assert f"wrote {folder / SIGNATURE}" in called.out
    called = deploykit("verify", folder, "--trust", public)
    assert called.code == 0, called.err
    assert f"{folder}: every file is the one that was signed, by the key '" in called.out
    called = deploykit("check", folder, "--trust", public)
    assert called.code == 0, called.err
    assert "signed by the key '" in called.out
    (folder / "own.txt").write_text("of nobody")
    found = deploykit("verify", folder, "--trust", public, "--json").data
    assert found["ok"]
    assert found["unsigned"] == ["own.txt"]
    assert (
        "nobody signed, and nothing loads with --trust: own.txt"
        in deploykit("verify", folder, "--trust", public).out
    )


@pytest.mark.parametrize("command", ["verify", "check"])
def test_refusals_are_an_answer(folder: Path, key: Path, command: str) -> None:
    public = key.with_suffix(".pub")
    called = deploykit(command, folder, "--trust", public)
    assert called.code == 1
    assert "problem: " in called.out
    assert "is not signed: it has no model.sig" in " ".join(called.out.split())
    found = deploykit(command, folder, "--trust", public, "--json")
    assert (found.code, found.data["ok"]) == (1, False)
    assert deploykit("sign", folder, "--key", key).code == 0
    (folder / LABELS).write_text("a\nb\nc\n", encoding="utf-8")
    called = deploykit(command, folder, "--trust", public)
    assert called.code == 1
    assert "problem: labels.txt has sha256 " in called.out


def test_a_wrong_call(folder: Path, key: Path, tmp_path: Path) -> None:
    called = deploykit("sign", folder, "--key", tmp_path / "none.pem")
    assert called.code == 2
    assert "there is no private key" in called.err
    called = deploykit("verify", folder, "--trust", key)
    assert called.code == 2
    assert "is a private key, which signs and is kept secret" in called.err
    called = deploykit("sign", folder, "--key", key, "--password-file", tmp_path / "none")
    assert called.code == 2
    assert "cannot read the password in" in called.err
    called = deploykit("verify", tmp_path, "--trust", key.with_suffix(".pub"))
    assert called.code == 1
    assert "is not a bundle: it has no manifest.json" in called.err


def test_a_build_says_that_the_signature_is_gone(
    folder: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(_artifact: object, place: Path, *_: object, **__: object) -> EngineRecord:
        record = engine_record("new-1.engine")
        (place / record.file).write_text(record.file)
        return record

    monkeypatch.setattr(build, "choose_compiler", lambda *_: object())
    monkeypatch.setattr(build, "build_engine", compiled)
    called = deploykit("build", folder)
    assert called.code == 0, called.err
    assert "note:" not in called.out
    assert deploykit("sign", folder, "--key", key).code == 0
    called = deploykit("build", folder)
    assert called.code == 0, called.err
    assert (
        "note: the signature was of the bundle without this engine and is removed; sign again: "
        f"deploykit sign {folder} --key KEY" in called.out
    )
    assert not (folder / SIGNATURE).exists()
    assert deploykit("verify", folder, "--trust", key.with_suffix(".pub")).code == 1
    assert deploykit("build", folder, "--json").data["notes"] == []


def test_an_export_over_a_signed_bundle_says_so(
    tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.bundles import write_classifier

    monkeypatch.chdir(tmp_path)
    model = write_classifier(tmp_path / "small.onnx")
    call = ("export", model, "--fp32", "--backend", "none", "-o", tmp_path / "out", "--json")
    assert deploykit(*call).code == 0
    assert deploykit("sign", tmp_path / "out", "--key", key).code == 0
    called = deploykit(*call)
    assert called.code == 0, called.err
    (note,) = [note for note in called.data["notes"] if "signed" in note]
    assert note == (
        "the bundle that was here was signed, this one is not; sign it: "
        f"deploykit sign {tmp_path / 'out'} --key KEY"
    )
    assert not (tmp_path / "out" / SIGNATURE).exists()
