"""Signatures: who is believed, and what is refused before anything is looked into."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import sys
import threading
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit import load
from deploykit.bundle import manifest as manifest_module
from deploykit.bundle import reading
from deploykit.bundle.keys import KeyTrust, SigningKey
from deploykit.bundle.manifest import GOLDEN, LABELS, MANIFEST, MODEL, SIGNATURE, Bundle
from deploykit.bundle.manifest import manifest_text as text_of
from deploykit.bundle.reading import read_bundle
from deploykit.bundle.signature import Trust, sign_bundle
from deploykit.core.artifacts import sha256_of_bytes
from deploykit.core.atomic import staged_folder
from deploykit.core.errors import (
    BundleError,
    IntegrityError,
    MissingDependencyError,
    SignatureError,
)
from deploykit.verbs.check import check
from deploykit.verbs.sign import sign
from deploykit.verbs.verify import verify
from tests.bundles import engine_record, write_bundle
from tests.fakes.engine_fake import ADA, FakeMachine
from tests.signing import (
    new_key,
    signed_digests,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return new_key(tmp_path / "key.pem")


@pytest.fixture
def folder(tmp_path: Path, key: Path) -> Path:
    """A signed bundle with one engine."""
    folder = write_bundle(tmp_path / "colours", engine_record())
    record = engine_record()
    renamed = replace(record, sha256=hashlib.sha256(record.file.encode()).hexdigest())
    manifest = replace(Bundle.open(folder).manifest, engines=(renamed,))
    (folder / MANIFEST).write_text(text_of(manifest), encoding="utf-8")
    sign_bundle(folder, SigningKey(key))
    return folder


@pytest.fixture
def public(key: Path) -> Path:
    return key.with_suffix(".pub")


def problem_of(folder: Path, public: Path) -> str:
    """The one problem of a refused bundle, which `load`, `check` and `verify` all have."""
    report, checked = verify(folder, public), check(folder, trust=public)
    assert not report.ok
    assert not checked.ok
    assert checked.engines == ()
    assert checked.problems == report.problems
    (problem,) = report.problems
    with pytest.raises(SignatureError) as caught:
        load(folder, device="cpu", trust=public)
    assert str(caught.value) == problem
    assert len(problem.splitlines()) <= 3
    return problem


# --- what is signed, judged by cryptography alone


@pytest.mark.parametrize("curve", ["SECP256R1", "SECP384R1", "SECP521R1"])
def test_a_signature_is_of_the_manifest_byte_for_byte(tmp_path: Path, curve: str) -> None:
    folder = write_bundle(tmp_path / "colours")
    own = new_key(tmp_path / "own.pem", curve)
    report = sign(folder, SigningKey(own))
    digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    public = own.with_suffix(".pub")
    assert signed_digests(folder / SIGNATURE, public) == {MANIFEST: digest}
    assert report.to_dict() == {
        "bundle": str(folder),
        "signature": str(folder / SIGNATURE),
        "signed_by": f"the key '{hashlib.sha256(public.read_bytes()).hexdigest()[:16]}'",
        "files": 3,
        "issuers": [],
    }
    found = verify(folder, public)
    assert found.ok
    assert found.to_dict()["signed_by"] == report.signed_by
    assert check(folder, trust=public).signed_by == report.signed_by
    with load(folder, device="cpu", trust=public) as model:
        model.self_test()


def test_openssfs_own_command_verifies_it(folder: Path, public: Path) -> None:
    from click.testing import CliRunner

    main: Any = pytest.importorskip("model_signing._cli").main
    call = ["verify", "key", folder, "--signature", folder / SIGNATURE, "--public_key", public]
    called = CliRunner().invoke(main, [*map(str, call), "--ignore_unsigned_files"])
    assert called.exit_code == 0, called.output
    (folder / MANIFEST).write_text("{}", encoding="utf-8")
    called = CliRunner().invoke(main, [*map(str, call), "--ignore_unsigned_files"])
    assert called.exit_code == 1


def test_signing_again_replaces_the_signature(folder: Path, tmp_path: Path, public: Path) -> None:
    other = new_key(tmp_path / "other.pem")
    sign(folder, SigningKey(other))
    assert verify(folder, other.with_suffix(".pub")).ok
    assert not verify(folder, public).ok
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_changed_bundle_is_not_signed(tmp_path: Path, key: Path) -> None:
    folder = write_bundle(tmp_path / "colours")
    (folder / LABELS).write_text("green\nred\nblue\n", encoding="utf-8")
    with pytest.raises(IntegrityError, match=r"colours: labels.txt has sha256 .*, the manifest"):
        sign(folder, SigningKey(key))
    assert not (folder / SIGNATURE).exists()


def test_a_bundle_that_changes_while_it_is_signed_is_not_signed(
    tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_bundle(tmp_path / "colours")

    def changed(bundle: Bundle) -> None:
        changed_manifest = replace(bundle.manifest, created="later")
        (bundle.folder / MANIFEST).write_text(text_of(changed_manifest), encoding="utf-8")
        monkeypatch.undo()

    monkeypatch.setattr(Bundle, "require_intact", changed)
    with pytest.raises(BundleError, match=r"colours was changed while it was signed, and is not s"):
        sign(folder, SigningKey(key))
    assert not (folder / SIGNATURE).exists()


# --- what is refused


def test_an_unsigned_bundle(tmp_path: Path, public: Path) -> None:
    folder = write_bundle(tmp_path / "my colours")
    problem = problem_of(folder, public)
    assert problem.startswith(f"{folder} is not signed: it has no model.sig, and trusted is the ")
    assert problem.endswith(f"sign what you trust: deploykit sign '{folder}' --key KEY")


def test_a_bundle_that_was_signed_by_another_key(folder: Path, tmp_path: Path, key: Path) -> None:
    other = new_key(tmp_path / "other.pem").with_suffix(".pub")
    problem = problem_of(folder, other)
    ids = [
        hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in (key.with_suffix(".pub"), other)
    ]
    assert f"is by the key '{ids[0]}', trusted is the key {ids[1]} in {other}\n" in problem


def test_a_signature_that_only_names_the_key(folder: Path, tmp_path: Path, public: Path) -> None:
    """The name of a key is no secret: whoever forges a signature writes the right one."""
    sign(folder, SigningKey(new_key(tmp_path / "other.pem")))
    body = json.loads((folder / SIGNATURE).read_text(encoding="utf-8"))
    hint = hashlib.sha256(public.read_bytes()).hexdigest()
    body["verificationMaterial"]["publicKey"]["hint"] = hint
    (folder / SIGNATURE).write_text(json.dumps(body), encoding="utf-8")
    assert f"does not verify with the key {hint[:16]} in " in problem_of(folder, public)
    del body["verificationMaterial"]["publicKey"]["hint"]
    (folder / SIGNATURE).write_text(json.dumps(body), encoding="utf-8")
    assert "model.sig is no signature: it has no 'hint'" in problem_of(folder, public)


def test_a_manifest_that_was_changed_with_its_own_digest(folder: Path, public: Path) -> None:
    """What a hash in the manifest cannot find: somebody wrote the hash anew."""
    (folder / LABELS).write_text("green\nred\nblue\n", encoding="utf-8")
    manifest = Bundle.open(folder).manifest
    files = {**manifest.files, LABELS: hashlib.sha256(b"green\nred\nblue\n").hexdigest()}
    (folder / MANIFEST).write_text(text_of(replace(manifest, files=files)), encoding="utf-8")
    assert check(folder).ok
    problem = problem_of(folder, public)
    found = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    assert f"{folder} is not what was signed: its manifest.json has sha256 {found}" in problem
    assert "\nthe bundle was changed since, as a build does, or the signature is another" in problem


def test_the_signature_of_another_bundle(folder: Path, tmp_path: Path, key: Path) -> None:
    other = write_bundle(tmp_path / "other", name="other-fp32")
    sign(other, SigningKey(key))
    shutil.copy(other / SIGNATURE, folder / SIGNATURE)
    signed = hashlib.sha256((other / MANIFEST).read_bytes()).hexdigest()
    assert f"signed is {signed} of 'other-fp32'\n" in problem_of(folder, key.with_suffix(".pub"))


@pytest.mark.parametrize("name", [MODEL, LABELS, GOLDEN, engine_record().file])
def test_a_file_that_was_changed(folder: Path, public: Path, name: str) -> None:
    (folder / name).write_bytes(b"other")
    (problem,) = verify(folder, public).problems
    assert problem.startswith(f"{name} has sha256 {sha256_of_bytes(b'other')}, the manifest gives")


def test_a_deleted_optional_file_leaves_the_signature_good(tmp_path: Path, key: Path) -> None:
    folder = write_bundle(tmp_path / "colours")
    (folder / "reference.onnx").write_bytes(b"graph")
    manifest = Bundle.open(folder).manifest
    files = {**manifest.files, "reference.onnx": sha256_of_bytes(b"graph")}
    (folder / MANIFEST).write_text(text_of(replace(manifest, files=files)), encoding="utf-8")
    sign(folder, SigningKey(key))
    (folder / "reference.onnx").unlink()
    assert verify(folder, key.with_suffix(".pub")).ok
    (folder / LABELS).unlink()
    assert verify(folder, key.with_suffix(".pub")).problems == ("labels.txt is missing",)


def test_what_nobody_signed_is_listed(folder: Path, public: Path) -> None:
    (folder / "tensorrt-rtx-1.7-sm89.cache").write_bytes(b"kernels")
    found = verify(folder, public)
    assert found.ok
    assert found.unsigned == ("tensorrt-rtx-1.7-sm89.cache",)


NOTHING = b'{"dsseEnvelope": {"payload": "e30="}, "verificationMaterial": %b}'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is no JSON"),
        (b"\xff", "it is no JSON"),
        (b"[]", "something in it is of another type"),
        (b"{}", "it has no 'dsseEnvelope'"),
        (b"[" * 100_000, "it is nested too deep"),
        (b'{"dsseEnvelope": {"payload": "!"}}', "something in it is not base64"),
        (NOTHING % b"{}", "it has no 'x509CertificateChain'"),
        (NOTHING % b'{"publicKey": {"hint": "a"}}', "it has no 'predicate'"),
        (NOTHING % b'{"x509CertificateChain": {"certificates": []}}', "a list in it is empty"),
        (
            NOTHING % b'{"x509CertificateChain": {"certificates": [{"rawBytes": "AAAA"}]}}',
            "a certificate in it cannot be read, or says too little",
        ),
        (b" " * 2**21, "it is no JSON"),
    ],
)
def test_a_file_that_is_no_signature(folder: Path, public: Path, content: bytes, said: str) -> None:
    (folder / SIGNATURE).write_bytes(content)
    problem = problem_of(folder, public)
    assert problem.startswith(f"{folder / SIGNATURE} is no signature: {said}\n")


def test_a_signature_that_is_no_file(folder: Path, public: Path) -> None:
    (folder / SIGNATURE).unlink()
    os.mkfifo(folder / SIGNATURE)
    assert "model.sig: it is a pipe (FIFO), not a regular file\n" in problem_of(folder, public)


def test_every_changed_byte_of_a_signature_is_refused_or_changes_nothing(
    folder: Path, public: Path
) -> None:
    chance = np.random.default_rng(0)
    content = (folder / SIGNATURE).read_bytes()
    trust, manifest = KeyTrust.read(public), (folder / MANIFEST).read_bytes()
    accepted = 0
    for _ in range(200):
        changed = bytearray(content)
        changed[chance.integers(len(content))] = chance.integers(256)
        (folder / SIGNATURE).write_bytes(changed)
        with suppress(SignatureError):
            trust.require(manifest, folder)
            accepted += 1
    assert accepted < 20  # bytes that say nothing of the content
    manifest_bytes = bytearray(manifest)
    (folder / SIGNATURE).write_bytes(content)
    for _ in range(50):
        place = int(chance.integers(len(manifest)))
        manifest_bytes[place] ^= int(chance.integers(1, 256))
        with pytest.raises(SignatureError, match="is not what was signed"):
            trust.require(bytes(manifest_bytes), folder)
        manifest_bytes[place] = manifest[place]


def test_a_signature_of_more_files_or_of_others_by_a_trusted_key(
    folder: Path, tmp_path: Path, key: Path
) -> None:
    """Somebody trusted signed them, with another program, and meant something else."""
    signing: Any = pytest.importorskip("model_signing.signing")
    hashing: Any = pytest.importorskip("model_signing.hashing")
    config = signing.Config().use_elliptic_key_signer(private_key=key)
    (folder / SIGNATURE).unlink()
    config.sign(folder, tmp_path / SIGNATURE)
    shutil.copy(tmp_path / SIGNATURE, folder / SIGNATURE)
    public = key.with_suffix(".pub")
    assert "model.sig is of golden.npz, labels.txt, manifest.json" in problem_of(folder, public)
    (empty := tmp_path / "empty").mkdir()
    ignoring = hashing.Config().set_ignored_paths(paths=[MANIFEST])
    config.set_hashing_config(ignoring).sign(empty, tmp_path / SIGNATURE)
    shutil.copy(tmp_path / SIGNATURE, folder / SIGNATURE)
    assert "model.sig is of ; expected manifest.json alone" in problem_of(folder, public)


def test_nothing_of_a_manifest_is_parsed_before_it_is_trusted(
    folder: Path, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = manifest_module.read_manifest

    def spied(text: str, place: Path) -> Any:
        read.append(text)
        return original(text, place)

    monkeypatch.setattr(manifest_module, "read_manifest", spied)
    assert verify(folder, public).ok
    assert len(read) == 1
    (folder / MANIFEST).write_text("[" * 100_000, encoding="utf-8")
    assert "is not what was signed" in problem_of(folder, public)
    assert len(read) == 1


# --- while it is swapped, built or used


def test_a_signature_read_beside_another_manifest_is_read_again(
    folder: Path, tmp_path: Path, key: Path, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its two files the bundle became another one, which is signed too."""
    other = write_bundle(tmp_path / "other", name="other-fp32")
    sign(other, SigningKey(key))
    original = Trust.require
    asked = []

    def swapping(self: Trust, manifest: bytes, place: Path) -> str:
        asked.append(manifest)
        if len(asked) == 1:
            for name in (MANIFEST, SIGNATURE):
                shutil.copy(other / name, tmp_path / "next")
                (tmp_path / "next").replace(place / name)
        return original(self, manifest, place)

    monkeypatch.setattr(Trust, "require", swapping)
    name = read_bundle(folder, lambda bundle: bundle.manifest.name, KeyTrust.read(public))
    assert (name, len(asked)) == ("other-fp32", 2)


@pytest.mark.parametrize("locks", ["with locks", "without locks"])
def test_swaps_of_signed_bundles_are_no_false_alarm(
    tmp_path: Path, key: Path, public: Path, monkeypatch: pytest.MonkeyPatch, locks: str
) -> None:
    if locks == "without locks":
        monkeypatch.setattr(reading, "reading", lambda _folder: nullcontext())
        monkeypatch.setattr(reading, "ATTEMPTS", 10_000)
    kinds = [write_bundle(tmp_path / name, name=name) for name in ("one", "other")]
    for kind in kinds:
        sign(kind, SigningKey(key))
    place, over = tmp_path / "place", threading.Event()

    def swap(count: int) -> None:
        for kind in itertools.islice(itertools.cycle(kinds), count):
            with staged_folder(place, MANIFEST) as staged:
                shutil.copytree(kind, staged, dirs_exist_ok=True)

    def swap_often() -> None:
        swap(40)
        over.set()

    swap(1)
    thread = threading.Thread(target=swap_often)
    thread.start()
    seen = set()
    while not over.is_set():
        report = verify(place, public)
        assert report.ok, report.problems
        with load(place, device="cpu", trust=public) as model:
            seen.add(model.name)
    thread.join()
    assert seen <= {"one", "other"}


def test_a_build_removes_the_signature(folder: Path, tmp_path: Path, public: Path) -> None:
    (staged := tmp_path / "staged").write_text("new", encoding="utf-8")
    Bundle.open(folder).with_engine(engine_record("new-1.engine"), staged)
    assert not (folder / SIGNATURE).exists()
    assert "is not signed" in problem_of(folder, public)


def test_kernels_that_nobody_signed_are_not_loaded(tmp_path: Path, key: Path) -> None:
    name = "tensorrt-rtx-1.7.1.116.engine"
    record = engine_record(
        name,
        compiler="tensorrt-rtx",
        compiler_version="1.7.1.116",
        compute_capabilities=("8.9",),
    )
    folder = write_bundle(tmp_path / "rtx", record)
    sign(folder, SigningKey(key))
    (folder / "tensorrt-rtx-1.7.1.116-sm89.cache").write_bytes(b"kernels of a stranger")
    fake = FakeMachine(ADA)
    with load(folder, machine=fake(), trust=str(key.with_suffix(".pub"))):
        assert fake.opened[0].cache is None
    (folder / name).write_bytes(b"kernels of a stranger")
    fake = FakeMachine(ADA)
    with pytest.raises(IntegrityError, match=r"engine has sha256"):
        load(folder, machine=fake(), trust=key.with_suffix(".pub"))
    assert fake.opened == []


# --- where something is missing


def test_without_the_package(
    folder: Path, key: Path, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("model_signing", "model_signing.signing", "model_signing.verifying"):
        monkeypatch.setitem(sys.modules, name, None)
    message = r"model_signing.*not installed\ninstall it: pip install model-signing pyopenssl$"
    for use in (
        lambda: verify(folder, public),
        lambda: check(folder, trust=public),
        lambda: load(folder, trust=public),
        lambda: sign(folder, SigningKey(key)),
    ):
        with pytest.raises(MissingDependencyError, match=message):
            use()
    assert check(folder).ok  # nobody asked for a signature


def test_without_a_place_for_a_copy(
    folder: Path, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(folder / "none"))
    with pytest.raises(BundleError, match=r"cannot verify: no place for a temporary .*\nname a fo"):
        verify(folder, public)
