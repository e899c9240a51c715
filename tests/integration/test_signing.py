"""`sign`, `verify` and `check --trust` as a user calls them; what a build does to a signature."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deploykit.backends import Compiler
from deploykit.bundle.manifest import LABELS, SIGNATURE
from deploykit.verbs import build
from tests.bundles import engine_record, write_bundle
from tests.cli import deploykit
from tests.fakes.sigstore_fake import SigstoreFake, write_token
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
        "nobody signed, and nothing loads with --trust or --identity: own.txt"
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

    compiler = Compiler("tensorrt", "11.4.0.106", None)
    monkeypatch.setattr(build, "choose_compiler", lambda *_: compiler)
    monkeypatch.setattr(build, "build_engine", compiled)
    called = deploykit("build", folder)
    assert called.code == 0, called.err
    assert "note: new-1.engine was compiled, it did not run: no GPU on this machine" in called.out
    assert "signature" not in called.out
    assert deploykit("sign", folder, "--key", key).code == 0
    called = deploykit("build", folder)
    assert called.code == 0, called.err
    assert (
        "note: the signature was of the bundle without this engine and is removed; sign again: "
        f"deploykit sign {folder} --key KEY" in called.out
    )
    assert not (folder / SIGNATURE).exists()
    assert deploykit("verify", folder, "--trust", key.with_suffix(".pub")).code == 1
    notes = deploykit("build", folder, "--json").data["notes"]
    assert not any("signature" in note for note in notes)


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


def test_a_bundle_is_signed_and_verified_by_an_identity(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SigstoreFake(monkeypatch, tmp_path / "home")
    anna = ("--identity", "anna@example.org", "--issuer", "https://accounts.google.com")
    token = write_token(tmp_path / "token", anna[1], anna[3])
    called = deploykit("sign", folder, "--sigstore", "--identity-token", token)
    assert called.code == 0, called.err
    by = "by the identity 'anna@example.org' of 'https://accounts.google.com'"
    assert f"signed {folder} {by}: the manifest" in called.out
    called = deploykit("verify", folder, *anna)
    assert (called.code, f"is the one that was signed, {by}" in called.out) == (0, True)
    found = deploykit("check", folder, *anna, "--json")
    assert (found.code, found.data["signed_by"]) == (0, by.removeprefix("by "))
    called = deploykit("check", folder, "--identity", "bob@example.org", *anna[2:])
    assert called.code == 1
    assert "trusted is the identity 'bob@example.org'" in " ".join(called.out.split())


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (("sign",), "give either --key"),
        (("sign", "--key", "k", "--sigstore"), "give either --key"),
        (("sign", "--sigstore", "--certificate", "c"), "give either --key"),
        (("sign", "--key", "k", "--identity-token", "t"), "give either --key"),
        (("verify",), "nobody is trusted"),
        (("verify", "--identity", "a"), "--identity NAME and --issuer URL go together"),
        (("check", "--issuer", "https://a"), "--identity NAME and --issuer URL go together"),
        (("verify", "--trust", "k", "--identity", "a", "--issuer", "https://a"), "without --trust"),
        (("check", "--identity", "a", "--issuer", "a"), "is nobody's; expected a name, and an iss"),
    ],
)
def test_options_that_do_not_go_together(folder: Path, call: tuple[str, ...], said: str) -> None:
    called = deploykit(call[0], folder, *call[1:])
    assert called.code == 2
    assert said in " ".join(called.err.split())
