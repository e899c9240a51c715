"""Keys and certificates: which are taken, and what is said of the others."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit import load
from deploykit.bundle.keys import CURVES, KeyTrust, SigningKey, read_password
from deploykit.bundle.manifest import MANIFEST, SIGNATURE
from deploykit.core.errors import BundleError, SignatureError, UsageError
from deploykit.verbs.check import check
from deploykit.verbs.sign import sign
from deploykit.verbs.verify import verify
from tests.bundles import write_bundle
from tests.signing import (
    ec,
    new_key,
    private_key,
    rsa,
    serialization,
    signed_digests,
    write_certificate,
    write_key,
    x509,
)

ed25519: Any = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
PURPOSES = x509.oid.ExtendedKeyUsageOID
ASK = "\nask whoever signs for the public key"
MAKE = "\nmake a pair: openssl genpkey -algorithm EC"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return new_key(tmp_path / "key.pem")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "colours")


@pytest.fixture
def public(key: Path) -> Path:
    return key.with_suffix(".pub")


def problem_of(folder: Path, trust: Path) -> str:
    (problem,) = verify(folder, trust).problems
    assert check(folder, trust=trust).problems == (problem,)
    with pytest.raises(SignatureError, match=f"^{re.escape(problem)}$"):
        load(folder, device="cpu", trust=trust)
    assert len(problem.splitlines()) <= 3
    return problem


def refusal_of(folder: Path, signer: SigningKey) -> str:
    with pytest.raises(UsageError) as caught:
        sign(folder, signer)
    assert not (folder / SIGNATURE).exists()
    return str(caught.value)


def test_curves_are_those_that_model_signing_takes() -> None:
    assert {getattr(ec, name.upper())().name for name in CURVES} == set(CURVES)


# --- passwords


def test_an_encrypted_key(tmp_path: Path, folder: Path) -> None:
    key = new_key(tmp_path / "hidden.pem", password=b"over the rainbow")
    assert re.match(
        r".*hidden.pem is encrypted\n.*--password-file FILE", refusal_of(folder, SigningKey(key))
    )
    wrong = refusal_of(folder, SigningKey(key, b"under the rainbow"))
    assert wrong.startswith(f"the password does not open {key}, or that is damaged\n")
    assert "--password-file" in wrong
    (tmp_path / "word").write_bytes(b"over the rainbow\r\nsecond line\n")
    sign(folder, SigningKey(key, read_password(tmp_path / "word")))
    assert verify(folder, key.with_suffix(".pub")).ok


def test_a_password_for_a_key_that_has_none(folder: Path, key: Path) -> None:
    said = refusal_of(folder, SigningKey(key, b"word"))
    assert said == f"{key} is not encrypted, and has no password\nleave out --password-file"


def test_a_password_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "word").write_bytes("over the rainbow\n".encode("utf-8-sig"))
    assert read_password(tmp_path / "word") == b"over the rainbow"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read the password in .*word: No such file or directory"),
        (b"", "the first line of .*word is empty"),
        (b"\r\nword", "the first line of .*word is empty"),
        (b"\xef\xbb\xbf", "the first line of .*word is empty"),
        ("word".encode("utf-16"), "word is UTF-16, by its first bytes; expected UTF-8"),
    ],
)
def test_a_file_without_a_password(tmp_path: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / "word").write_bytes(content)
    with pytest.raises(UsageError, match=said + r"\ngive a file with the password .* first line"):
        read_password(tmp_path / "word")


# --- files that are no keys


def test_files_that_nobody_can_trust(tmp_path: Path, folder: Path, key: Path) -> None:
    plain, broken = tmp_path / "plain.txt", tmp_path / "broken.pem"
    plain.write_text("a key", encoding="utf-8")
    broken.write_text("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    bad = tmp_path / "bad.pem"
    bad.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    old = write_key(tmp_path / "rsa.pem", rsa.generate_private_key(65537, 2048))
    edwards = write_key(tmp_path / "ed.pem", ed25519.Ed25519PrivateKey.generate())
    curve = new_key(tmp_path / "bitcoin.pem", "SECP256K1")
    expected = "; expected one on P-256, P-384, P-521 (secp256r1, secp384r1, secp521r1)"
    none, named = tmp_path / "none", "which is to be trusted"
    messages = {
        none: f"there is no public key {none}, {named}{ASK}",
        tmp_path: f"cannot read the public key {tmp_path}, {named}: Is a directory{ASK}",
        Path(): f"{named}, is the current folder, as an empty name is; expected a file{ASK}",
        Path("a\0b"): f", which is to be trusted: it is no name of a file{ASK}",
        plain: f"{plain} is no PEM file; expected a public key or certificate, in PEM{ASK}",
        broken: f"cannot use {broken}: the public key in it is damaged, or of an unknown kind\n",
        bad: f"cannot use {bad}: the certificate in it is damaged, or of an unknown kind\n",
        key: f"{key} is a private key, which signs and is kept secret\ngive the public one",
        old.with_suffix(".pub"): f"is of the kind RSA{expected}{ASK}",
        edwards.with_suffix(".pub"): f"is of the kind Ed25519{expected}{ASK}",
        curve.with_suffix(".pub"): f"is on the curve secp256k1{expected}{ASK}",
    }
    for path, message in messages.items():
        for use in (verify, lambda place, trust: check(place, trust=trust)):
            with pytest.raises(UsageError) as caught:
                use(folder, path)
            assert message in str(caught.value)
            assert "--trust" not in str(caught.value)


def test_files_that_cannot_sign(tmp_path: Path, folder: Path, key: Path, public: Path) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text("a key", encoding="utf-8")
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    old = write_key(tmp_path / "rsa.pem", rsa.generate_private_key(65537, 2048))
    curve = new_key(tmp_path / "bitcoin.pem", "SECP256K1")
    messages = {
        tmp_path / "none": f"there is no private key {tmp_path / 'none'}, which --key names{MAKE}",
        plain: f"{plain} is no PEM file; expected a private key, in PEM{MAKE}",
        broken: f"cannot use {broken}: the private key in it is damaged, or of an unknown kind\n",
        public: f"{public} holds PUBLIC KEY; expected a private key, in PEM{MAKE}",
        old: "is of the kind RSA; expected one on P-256",
        curve: "is on the curve secp256k1; expected one on P-256",
    }
    for path, message in messages.items():
        assert message in refusal_of(folder, SigningKey(path))


IN_DER = "is in DER; expected a public key or certificate, in PEM\nconvert it: openssl "
OF_SSH = (
    "is a public key of ssh; expected a public key or certificate, in PEM\nconvert it: ssh-keygen"
)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("DER", f"{IN_DER}pkey -pubin -inform DER -in "),
        ("certificate in DER", f"{IN_DER}x509 -inform DER -in "),
        ("ssh", f"{OF_SSH} -e -m PKCS8 -f "),
    ],
)
def test_keys_in_other_forms_are_converted_as_the_message_says(
    tmp_path: Path, folder: Path, key: Path, public: Path, form: str, said: str
) -> None:
    """The command of the message is run, where the machine has its program."""
    sign(folder, SigningKey(key))
    own = private_key(key).public_key()
    encoding, forms = serialization.Encoding, serialization.PublicFormat
    other = tmp_path / "other"
    if form == "ssh":
        other.write_bytes(own.public_bytes(encoding.OpenSSH, forms.OpenSSH))
    elif form == "DER":
        other.write_bytes(own.public_bytes(encoding.DER, forms.SubjectPublicKeyInfo))
    else:
        made = write_certificate(tmp_path / "cert.pem", key, "release", None)
        loaded = x509.load_pem_x509_certificate(made.read_bytes())
        other.write_bytes(loaded.public_bytes(encoding.DER))
    with pytest.raises(UsageError) as caught:
        verify(folder, other)
    assert f"{other} " in str(caught.value)
    assert said in str(caught.value)
    command = str(caught.value).partition("convert it: ")[2]
    if shutil.which(command.split()[0]) is None:
        return
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)  # noqa: S602
    if form == "certificate in DER":
        assert (tmp_path / "cert.pem").read_bytes().startswith(b"-----BEGIN CERTIFICATE-----")
    else:
        assert verify(folder, tmp_path / "key.pub").ok


def test_a_private_key_in_der(tmp_path: Path, folder: Path, key: Path) -> None:
    form, hidden = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    other = tmp_path / "key.der"
    der = serialization.Encoding.DER
    other.write_bytes(private_key(key).private_bytes(der, form, hidden))
    said = refusal_of(folder, SigningKey(other))
    assert said == (
        f"{other} is in DER; expected a private key, in PEM\n"
        f"convert it: openssl pkey -inform DER -in {other} -out key.pem"
    )


@pytest.mark.parametrize("trust", [0, False, b"key.pub", [], (), 3.5, {"a": 1}])
def test_what_can_be_nobody(folder: Path, trust: Any) -> None:
    for use in (
        lambda: load(folder, trust=trust),
        lambda: check(folder, trust=trust),
        lambda: verify(folder, trust),
    ):
        with pytest.raises(UsageError) as caught:
            use()
        assert str(caught.value).startswith(f"trust={trust!r} is nobody\nexpected the path of a ")


def test_the_text_of_a_key_is_not_taken_for_a_path(folder: Path, public: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load(folder, trust=public.read_text(encoding="utf-8"))
    assert str(caught.value) == (
        "trust is the text of a key\nexpected the path of a file that holds it: write it to one"
    )


def test_a_folder_where_the_signature_goes(folder: Path, key: Path) -> None:
    (folder / SIGNATURE).mkdir()
    with pytest.raises(
        BundleError, match=r"model.sig is a folder, where the .* goes\nmove it away"
    ):
        sign(folder, SigningKey(key))


# --- certificates


@pytest.fixture
def authority(tmp_path: Path) -> tuple[Path, str]:
    key = new_key(tmp_path / "ca-key.pem")
    write_certificate(tmp_path / "ca.pem", key, "Our authority", None)
    return key, "Our authority"


@pytest.fixture
def between(tmp_path: Path, authority: tuple[Path, str]) -> tuple[Path, str]:
    key = new_key(tmp_path / "between-key.pem")
    write_certificate(tmp_path / "between.pem", key, "Between", authority, ca=True)
    return key, "Between"


def test_a_certificate_whose_issuer_is_trusted(
    tmp_path: Path, folder: Path, key: Path, authority: tuple[Path, str]
) -> None:
    certificate = write_certificate(tmp_path / "cert.pem", key, "release", authority)
    report = sign(folder, SigningKey(key, certificate=certificate))
    assert report.signed_by == "the certificate 'CN=release'"
    assert report.issuers == ("CN=Our authority",)
    assert signed_digests(folder / SIGNATURE, key.with_suffix(".pub")).keys() == {MANIFEST}
    for trusted in ("ca.pem", "cert.pem"):
        found = verify(folder, tmp_path / trusted)
        assert found.ok, found.problems
        assert found.signed_by == "the certificate 'CN=release'"
    stranger = new_key(tmp_path / "stranger.pem")
    # Of the same name, so that only its key tells it from ours.
    write_certificate(tmp_path / "other-ca.pem", stranger, "Our authority", None)
    problem = problem_of(folder, tmp_path / "other-ca.pem")
    assert "is by the certificate 'CN=release', issued by 'CN=Our authority': " in problem
    assert (
        f"none of the certificates in {tmp_path / 'other-ca.pem'} issued it\ntrust the" in problem
    )
    problem = problem_of(folder, key.with_suffix(".pub"))
    assert "is by the certificate 'CN=release', and cannot be compared with the key " in problem
    (folder / MANIFEST).write_text("{}", encoding="utf-8")
    assert "is not what was signed" in problem_of(folder, tmp_path / "ca.pem")


@pytest.mark.parametrize(
    ("chain", "trusted", "ok"),
    [
        ((), "between.pem", True),
        ((), "ca.pem", False),
        (("between.pem",), "between.pem", True),
        (("between.pem",), "ca.pem", True),
        (("ca.pem", "between.pem"), "ca.pem", True),
        (("cert.pem", "between.pem"), "ca.pem", True),
    ],
)
def test_anything_above_a_certificate_may_be_trusted(  # noqa: PLR0917
    tmp_path: Path,
    folder: Path,
    key: Path,
    between: tuple[Path, str],
    chain: tuple[str, ...],
    trusted: str,
    ok: bool,
) -> None:
    """As `openssl verify -partial_chain` says, where the machine has it."""
    certificate = write_certificate(tmp_path / "cert.pem", key, "release", between)
    files = tuple(tmp_path / name for name in chain)
    issuers = sign(folder, SigningKey(key, certificate=certificate, chain=files)).issuers
    assert issuers[0] == "CN=Between"
    assert ("CN=Our authority" in issuers) == bool(chain)
    assert verify(folder, tmp_path / trusted).ok is ok
    if not ok:
        assert f"none of the certificates in {tmp_path / trusted} issued it" in problem_of(
            folder, tmp_path / trusted
        )
    if shutil.which("openssl") is None:
        return
    call = ["openssl", "verify", "-partial_chain", "-trusted", str(tmp_path / trusted)]
    untrusted = [part for file in files for part in ("-untrusted", str(file))]
    done = subprocess.run([*call, *untrusted, str(certificate)], capture_output=True, check=False)
    assert (done.returncode == 0) is ok


UNSUITABLE: dict[str, dict[str, Any]] = {
    "no usage": {"signs": None},
    "no signature": {"signs": False},
    "of a web server": {"purposes": [PURPOSES.SERVER_AUTH, PURPOSES.CLIENT_AUTH]},
    "of mail, by its purpose alone": {"signs": None, "purposes": [PURPOSES.EMAIL_PROTECTION]},
}
WHY = {
    "no usage": "it has neither KeyUsage digitalSignature nor ExtendedKeyUsage codeSigning",
    "no signature": "it has neither KeyUsage digitalSignature nor ExtendedKeyUsage codeSigning",
    "of a web server": "its ExtendedKeyUsage is for something else and not for codeSigning",
    "of mail, by its purpose alone": "it has neither KeyUsage digitalSignature nor Extended",
}


@pytest.mark.parametrize("kind", UNSUITABLE)
def test_a_certificate_that_is_not_for_signing(
    tmp_path: Path,
    folder: Path,
    key: Path,
    authority: tuple[Path, str],
    kind: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "cert.pem"
    write_certificate(path, key, "release", authority, **UNSUITABLE[kind])
    said = refusal_of(folder, SigningKey(key, certificate=path))
    assert said.startswith(f"nobody would believe what {path} signs: {WHY[kind]}")
    # Somebody else's program signs with it all the same.
    signing: Any = pytest.importorskip("model_signing.signing")
    (copy := tmp_path / "copy").mkdir()
    shutil.copy(folder / MANIFEST, copy)
    config = signing.Config().use_certificate_signer(
        private_key=key, signing_certificate=path, certificate_chain=[path]
    )
    config.sign(copy, folder / SIGNATURE)
    problem = problem_of(folder, tmp_path / "ca.pem")
    assert f"is by the certificate 'CN=release', which is not for signing: {WHY[kind]}" in problem
    assert caplog.records == []


@pytest.mark.parametrize(
    "suitable",
    [
        {},
        {"signs": None, "purposes": [PURPOSES.CODE_SIGNING]},
        {"purposes": [PURPOSES.SERVER_AUTH, PURPOSES.CODE_SIGNING]},
        {"purposes": [PURPOSES.ANY_EXTENDED_KEY_USAGE]},
    ],
    ids=["usage", "purpose", "both", "any purpose"],
)
def test_certificates_that_are_for_signing(
    tmp_path: Path,
    folder: Path,
    key: Path,
    authority: tuple[Path, str],
    suitable: dict[str, Any],
) -> None:
    path = write_certificate(tmp_path / "cert.pem", key, "release", authority, **suitable)
    sign(folder, SigningKey(key, certificate=path))
    assert verify(folder, tmp_path / "ca.pem").ok


def test_a_chain_through_a_certificate_that_may_not_issue(
    tmp_path: Path, folder: Path, key: Path, authority: tuple[Path, str]
) -> None:
    other = new_key(tmp_path / "other.pem")
    middle = write_certificate(tmp_path / "middle.pem", other, "Middle", authority)
    path = write_certificate(tmp_path / "cert.pem", key, "release", (other, "Middle"))
    said = refusal_of(folder, SigningKey(key, certificate=path, chain=(middle,)))
    assert said.startswith(
        "nobody would believe the chain of 'CN=release': 'CN=Middle': invalid CA"
    )
    assert "basicConstraints CA:TRUE" in said
    sign(folder, SigningKey(key, certificate=path))
    problem = problem_of(folder, middle)
    assert "issued by 'CN=Middle', and cannot be believed: 'CN=Middle': invalid CA" in problem


def test_a_chain_of_something_else(
    tmp_path: Path, folder: Path, key: Path, between: tuple[Path, str]
) -> None:
    path = write_certificate(tmp_path / "cert.pem", key, "release", between)
    stranger = new_key(tmp_path / "stranger.pem")
    # Of the right name: its signature alone says that it issued nothing here.
    other = write_certificate(tmp_path / "other.pem", stranger, "Between", None)
    for chain in ((other,), (tmp_path / "between.pem", other), (tmp_path / "ca.pem",)):
        said = refusal_of(folder, SigningKey(key, certificate=path, chain=chain))
        assert "in --chain issued neither 'CN=release' nor another certificate" in said


def test_certificates_that_do_not_fit(
    tmp_path: Path, folder: Path, key: Path, authority: tuple[Path, str]
) -> None:
    other = new_key(tmp_path / "other.pem")
    certificate = write_certificate(tmp_path / "cert.pem", other, "release", authority)
    said = refusal_of(folder, SigningKey(key, certificate=certificate))
    assert said.startswith(f"{certificate} is the certificate of another key than {key}\n")
    said = refusal_of(folder, SigningKey(key, certificate=key))
    assert "key.pem holds PRIVATE KEY; expected a certificate, in PEM" in said
    said = refusal_of(folder, SigningKey(key, chain=(certificate,)))
    assert re.match(r"--chain has certificates .*\ngive the one of the key", said)
    hidden = write_key(tmp_path / "hidden.pem", private_key(other), b"word")
    said = refusal_of(folder, SigningKey(hidden, b"word", certificate))
    assert "is encrypted, which does not go with --certificate\ngive the key" in said
    said = refusal_of(folder, SigningKey(other, certificate=certificate, chain=(tmp_path / "no",)))
    assert said.startswith(f"there is no certificate {tmp_path / 'no'}, which --chain names\n")
    said = refusal_of(folder, SigningKey(other, certificate=tmp_path / "no"))
    assert said.startswith(
        f"there is no certificate {tmp_path / 'no'}, which --certificate names\n"
    )


def test_a_certificate_of_an_rsa_key(
    tmp_path: Path, folder: Path, key: Path, authority: tuple[Path, str]
) -> None:
    """Such a signature cannot be made here, but somebody can send one."""
    path = write_certificate(tmp_path / "cert.pem", key, "release", authority)
    sign(folder, SigningKey(key, certificate=path))
    old = write_key(tmp_path / "rsa.pem", rsa.generate_private_key(65537, 2048))
    of_rsa = write_certificate(tmp_path / "rsa-cert.pem", old, "release", authority)
    lines = [file.read_text(encoding="ascii").split("-----")[2].split() for file in (path, of_rsa)]
    before, after = ("".join(each) for each in lines)
    text = (folder / SIGNATURE).read_text(encoding="utf-8")
    assert before in text
    (folder / SIGNATURE).write_text(text.replace(before, after), encoding="utf-8")
    problem = problem_of(folder, tmp_path / "ca.pem")
    assert "which is not for signing: its key is of the kind RSA; expected one on P-256" in problem


def test_a_certificate_beside_a_signature_of_another_key(
    tmp_path: Path, folder: Path, key: Path, authority: tuple[Path, str]
) -> None:
    path = write_certificate(tmp_path / "cert.pem", key, "release", authority)
    other = new_key(tmp_path / "other.pem")
    of_other = write_certificate(tmp_path / "other-cert.pem", other, "release", authority)
    sign(folder, SigningKey(key, certificate=path))
    lines = [
        file.read_text(encoding="ascii").split("-----")[2].split() for file in (path, of_other)
    ]
    before, after = ("".join(each) for each in lines)
    text = (folder / SIGNATURE).read_text(encoding="utf-8")
    (folder / SIGNATURE).write_text(text.replace(before, after), encoding="utf-8")
    problem = problem_of(folder, tmp_path / "ca.pem")
    assert f"does not verify with the certificates in {tmp_path / 'ca.pem'}\nit was chan" in problem


def test_every_changed_certificate_is_refused_or_changes_nothing(
    tmp_path: Path, folder: Path, key: Path, between: tuple[Path, str]
) -> None:
    """200 bytes of the certificates in a signature: some are no ASN.1 then, some another's."""
    path = write_certificate(tmp_path / "cert.pem", key, "release", between)
    sign(folder, SigningKey(key, certificate=path, chain=(tmp_path / "between.pem",)))
    chance = np.random.default_rng(0)
    trust, manifest = KeyTrust.read(tmp_path / "ca.pem"), (folder / MANIFEST).read_bytes()
    body = json.loads((folder / SIGNATURE).read_text(encoding="utf-8"))
    chain = body["verificationMaterial"]["x509CertificateChain"]["certificates"]
    assert trust.require(manifest, folder) == "the certificate 'CN=release'"
    for number in range(200):
        each = chain[number % len(chain)]
        whole = each["rawBytes"]
        der = bytearray(base64.b64decode(whole))
        der[chance.integers(len(der))] ^= chance.integers(1, 256)
        each["rawBytes"] = base64.b64encode(der).decode()
        (folder / SIGNATURE).write_text(json.dumps(body), encoding="utf-8")
        with pytest.raises(SignatureError):
            trust.require(manifest, folder)
        each["rawBytes"] = whole
