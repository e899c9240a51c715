"""`sign`, `verify` and `check --trust` as a user calls them; what a build does to a signature."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deploykit.backends import Compiler
from deploykit.bundle.manifest import LABELS, SIGNATURE
from deploykit.verbs import build
from tests.bundles import engine_record, write_bundle
from tests.cli import deploykit
from tests.fakes.sigstore_fake import SigstoreFake, write_token
from tests.signing import new_key, write_certificate

if TYPE_CHECKING:
    from deploykit.core.artifacts import EngineRecord


PAGE = Path(__file__).parents[2] / "docs" / "security.md"


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


@pytest.mark.parametrize(
    "name", ["x\nw5: every file is the one that was signed", "a\r\nb", "a\u2028b"]
)
def test_a_name_of_a_strangers_file_forges_no_line(folder: Path, key: Path, name: str) -> None:
    assert deploykit("sign", folder, "--key", key).code == 0
    plain = deploykit("verify", folder, "--trust", key.with_suffix(".pub")).out
    (folder / name).write_text("of nobody")
    called = deploykit("verify", folder, "--trust", key.with_suffix(".pub"))
    assert len(called.out.splitlines()) == len(plain.splitlines()) + 1
    assert name.encode("unicode_escape").decode() in called.out


def test_a_changed_file_has_a_remedy(folder: Path, key: Path) -> None:
    assert deploykit("sign", folder, "--key", key).code == 0
    (folder / LABELS).write_text("a\nb\nc\n", encoding="utf-8")
    called = deploykit("verify", folder, "--trust", key.with_suffix(".pub"))
    remedy = "copy the bundle again from whoever signed it; or export it again, and sign that"
    assert called.out.splitlines()[-1] == remedy
    found = deploykit("verify", folder, "--trust", key.with_suffix(".pub"), "--json").data
    assert found["remedy"] == remedy
    called = deploykit("check", folder)
    assert called.out.splitlines()[-1] == "copy or export the bundle again"


def test_a_file_in_place_of_its_bundle(tmp_path: Path, key: Path) -> None:
    folder = write_bundle(tmp_path / "rtx", engine_record())
    for name in (engine_record().file, "model.onnx", "manifest.json"):
        for call in (
            ("verify", "--trust", key.with_suffix(".pub")),
            ("check",),
            ("sign", "--key", key),
        ):
            called = deploykit(call[0], folder / name, *call[1:])
            assert called.code == 1
            said = " ".join(called.err.split())
            assert f"{name} is a file of a bundle, expected the bundle give the folder" in said
            assert f"that it lies in: {folder}" in said


def test_a_certificate_names_who_may_be_trusted(folder: Path, key: Path, tmp_path: Path) -> None:
    authority = new_key(tmp_path / "ca-key.pem")
    write_certificate(tmp_path / "ca.pem", authority, "Our authority", None)
    path = write_certificate(tmp_path / "cert.pem", key, "release", (authority, "Our authority"))
    called = deploykit("sign", folder, "--key", key, "--certificate", path)
    assert called.code == 0, called.err
    assert "by the certificate, or this one itself: 'CN=Our authority'\n" in called.out
    assert deploykit("sign", folder, "--key", key, "--json").data["issuers"] == []


def test_the_commands_of_the_page_on_security(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those for keys and those for certificates, as they stand there."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    monkeypatch.chdir(tmp_path)
    blocks = PAGE.read_text(encoding="utf-8").split("```")[1::2]
    lines = [line for block in blocks for line in block.splitlines() if block.count("openssl ")]
    calls = [line for line in lines if line.startswith(("openssl ", "printf ", "deploykit "))]
    assert sum(line.startswith("openssl ") for line in calls) >= 5
    for line in calls:
        if not line.startswith("deploykit "):
            subprocess.run(line, shell=True, check=True, capture_output=True)  # noqa: S602
            continue
        words = shlex.split(line, comments=True)[1:]
        called = deploykit(*(folder if "engines/" in word else word for word in words))
        assert called.code == 0, (line, called.out, called.err)


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
    called = deploykit("verify", folder, "--trust", "")
    assert called.code == 2
    assert "is the current folder, as an empty name is; expected a file" in called.err
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
