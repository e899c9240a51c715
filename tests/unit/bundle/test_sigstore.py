"""Signatures by identities of Sigstore, up to the edge of its service, which is not run."""

from __future__ import annotations

import shutil
import socket
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

import deploykit
from deploykit.bundle import sigstore
from deploykit.bundle.keys import SigningKey
from deploykit.bundle.manifest import MANIFEST, SIGNATURE, Bundle
from deploykit.bundle.sigstore import SigstoreIdentity, SigstoreSigner
from deploykit.core.artifacts import sha256_of_bytes
from deploykit.core.errors import (
    BundleError,
    MissingDependencyError,
    SignatureError,
    UsageError,
)
from deploykit.verbs.check import check
from deploykit.verbs.sign import sign
from deploykit.verbs.verify import verify
from tests.bundles import write_bundle
from tests.fakes.sigstore_fake import (
    SigstoreFake,
    forged,
    models,
    name_of,
    oidc,
    requests,
    signed_with,
    signer,
    write_token,
)
from tests.signing import new_key, serialization, signed_digests, write_certificate, x509

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

GOOGLE, GITHUB = "https://accounts.google.com", "https://token.actions.githubusercontent.com"
ANNA = SigstoreIdentity("anna@example.org", GOOGLE)
WORKFLOW = SigstoreIdentity(
    "https://github.com/example/models/.github/workflows/release.yml@refs/tags/v1", GITHUB
)
OFFLINE = "\nkeys and certificates work offline: deploykit sign BUNDLE --key KEY, then --trust"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SigstoreFake:
    return SigstoreFake(monkeypatch, tmp_path / "home")


@pytest.fixture
def token(tmp_path: Path) -> Path:
    return write_token(tmp_path / "token", ANNA.identity, ANNA.issuer)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "colours")


@pytest.fixture
def signed(folder: Path, fake: SigstoreFake, token: Path) -> Path:
    """A bundle that Anna signed; nobody was asked for anything since."""
    sign(folder, SigstoreSigner(token))
    fake.requests.clear()
    fake.calls.clear()
    return folder


def problem_of(folder: Path, trust: Any) -> str:
    """The one problem of a refused bundle, which `load`, `check` and `verify` all have."""
    (problem,) = verify(folder, trust).problems
    assert check(folder, trust=trust).problems == (problem,)
    with pytest.raises(SignatureError) as caught:
        deploykit.load(folder, device="cpu", trust=trust)
    assert str(caught.value) == problem
    assert len(problem.splitlines()) <= 3
    return problem


# --- signed and believed


@pytest.mark.parametrize("who", [ANNA, WORKFLOW], ids=["person", "workflow"])
def test_a_bundle_signed_with_a_token(
    folder: Path, fake: SigstoreFake, tmp_path: Path, who: SigstoreIdentity
) -> None:
    token = write_token(tmp_path / "token", who.identity, who.issuer)
    report = sign(folder, SigstoreSigner(token))
    assert report.signed_by == f"the identity {who.identity!r} of {who.issuer!r}"
    given = {"identity_token": token.read_text().strip()}
    assert fake.calls == [("use_sigstore_signer", given)]
    public = tmp_path / "found.pub"
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    key = signed_with(folder / SIGNATURE)
    public.write_bytes(key.public_bytes(serialization.Encoding.PEM, form))
    digest = sha256_of_bytes((folder / MANIFEST).read_bytes())
    assert signed_digests(folder / SIGNATURE, public) == {MANIFEST: digest}

    fake.calls.clear()
    found = verify(folder, who)
    assert (found.problems, found.signed_by) == ((), report.signed_by)
    asked = {"identity": who.identity, "oidc_issuer": who.issuer}
    assert fake.calls == [("use_sigstore_verifier", asked)]
    assert check(folder, trust=who).signed_by == report.signed_by
    with deploykit.load(folder, device="cpu", trust=who) as model:
        model.self_test()


def test_a_bundle_signed_by_whoever_logs_in(
    folder: Path, fake: SigstoreFake, token: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.login = token
    assert "anna@example.org" in sign(folder, SigstoreSigner()).signed_by
    assert fake.calls == [("use_sigstore_signer", {"identity_token": None})]
    assert fake.requests == [
        ("https://tuf-repo-cdn.sigstore.dev", {"timeout": 5}),
        ("https://oauth2.sigstore.dev/auth", None),
    ]
    shown = capsys.readouterr()
    assert (shown.out, "link in a browser" in shown.err) == ("", True)
    assert verify(folder, ANNA).ok


def test_where_the_package_gets_what_it_trusts() -> None:
    tuf: Any = pytest.importorskip("sigstore._internal.tuf")
    assert tuf.DEFAULT_TUF_URL == sigstore.ROOT


def test_a_changed_bundle(signed: Path, tmp_path: Path, token: Path) -> None:
    other = write_bundle(tmp_path / "other", name="other-fp32")
    sign(other, SigstoreSigner(token))
    shutil.copy(other / SIGNATURE, signed / SIGNATURE)
    problem = problem_of(signed, ANNA)
    assert "is not what was signed: its manifest.json has sha256 " in problem
    assert problem.endswith(f"sign what you trust: deploykit sign {signed} --sigstore")
    (signed / SIGNATURE).unlink()
    assert "is not signed: it has no model.sig, and trusted is the identity 'anna@" in problem_of(
        signed, ANNA
    )


# --- by somebody else, or of another kind: nobody is asked


@pytest.mark.parametrize(
    "trusted",
    [
        SigstoreIdentity("mallory@example.org", GOOGLE),
        SigstoreIdentity("anna@example.org", GITHUB),
        SigstoreIdentity("anna@example.or", GOOGLE),
        WORKFLOW,
    ],
)
def test_another_identity(signed: Path, fake: SigstoreFake, trusted: SigstoreIdentity) -> None:
    problem = problem_of(signed, trusted)
    found = f"is by the identity 'anna@example.org' of {GOOGLE!r}, trusted is the identity "
    assert f"{found}{trusted.identity!r} of {trusted.issuer!r}\n" in problem
    assert fake.requests == fake.calls == []


def test_a_key_where_an_identity_is_trusted(folder: Path, tmp_path: Path) -> None:
    key = new_key(tmp_path / "key.pem")
    sign(folder, SigningKey(key))
    problem = problem_of(folder, ANNA)
    assert "is by the key '" in problem
    assert f"cannot be compared with the identity 'anna@example.org' of {GOOGLE!r}\n" in problem
    authority = (new_key(tmp_path / "ca-key.pem"), "Our authority")
    certificate = write_certificate(tmp_path / "cert.pem", key, "release", authority)
    sign(folder, SigningKey(key, certificate=certificate))
    assert "is by the certificate 'CN=release', and cannot be comp" in problem_of(folder, ANNA)


def test_an_identity_where_a_key_is_trusted(signed: Path, tmp_path: Path) -> None:
    key = new_key(tmp_path / "key.pem")
    by = f"is by the identity 'anna@example.org' of {GOOGLE!r}, and cannot be compared with "
    assert f"{by}the key " in problem_of(signed, key.with_suffix(".pub"))
    write_certificate(tmp_path / "ca.pem", key, "Our authority", None)
    assert f"{by}the certificates in " in problem_of(signed, tmp_path / "ca.pem")


def test_the_right_name_in_a_certificate_of_somebody_else(
    signed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the service's own keys, and the package's own verification."""
    forged(signed / SIGNATURE, [name_of(ANNA.identity)], ANNA.issuer)
    assert "does not verify with the identity 'anna@example.org' of " in problem_of(signed, ANNA)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(requests, "head", lambda *_, **__: None)
    production = models.ClientTrustConfig.production
    monkeypatch.setattr(models.ClientTrustConfig, "production", lambda: production(offline=True))
    assert "failed to build timestamp certificate chain" in problem_of(signed, ANNA)


@pytest.mark.parametrize(
    ("names", "issuer", "said"),
    [
        ([name_of(ANNA.identity)], None, "is no signature: a certificate in it cannot be read, or"),
        ([], GOOGLE, "is by the identity '' of 'https://accounts.google.com', trusted is "),
        ([x509.DNSName("anna@example.org")], GOOGLE, "does not verify with the identity"),
        ([name_of("mallory@example.org")], "\x1b[2Jhttps://", r"of '\x1b[2Jhttps://', trusted is"),
    ],
)
def test_certificates_that_say_something_else(
    signed: Path, names: list[Any], issuer: str | None, said: str
) -> None:
    forged(signed / SIGNATURE, names, issuer)
    assert said in problem_of(signed, ANNA)


# --- without a network


@contextmanager
def proxy(monkeypatch: pytest.MonkeyPatch, *, answers: bool) -> Iterator[None]:
    """Every request goes to a port that refuses it, or to one that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        if answers:
            server.close()
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, address)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "")
        yield


@pytest.mark.parametrize("answers", [True, False], ids=["refused", "silent"])
def test_without_a_network(
    signed: Path, token: Path, monkeypatch: pytest.MonkeyPatch, *, answers: bool
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(sigstore, "WAIT_SECONDS", 5 if answers else 0.2)
    before = (signed / SIGNATURE).read_bytes()
    with proxy(monkeypatch, answers=answers):
        uses: list[tuple[str, Callable[[], object]]] = [
            ("verify", lambda: verify(signed, ANNA)),
            ("verify", lambda: check(signed, trust=ANNA)),
            ("verify", lambda: deploykit.load(signed, device="cpu", trust=ANNA)),
            ("sign", lambda: sign(signed, SigstoreSigner(token))),
        ]
        for verb, use in uses:
            with pytest.raises(BundleError) as caught:
                use()
            assert not isinstance(caught.value, SignatureError)  # nobody was found to be wrong
            said = f"cannot {verb}: Sigstore cannot be reached: "
            assert str(caught.value).startswith(said)
            assert OFFLINE in str(caught.value)
            assert len(str(caught.value).splitlines()) <= 3
    assert (signed / SIGNATURE).read_bytes() == before
    assert check(signed).ok


def test_a_network_that_ends_in_between(
    signed: Path, token: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(requests, "head", lambda *_, **__: None)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    said = r"Sigstore cannot be reached: ConnectionRefusedError: .*\n.*\nkeys and certif"
    with proxy(monkeypatch, answers=True):
        with pytest.raises(BundleError, match=f"cannot verify: {said}"):
            verify(signed, ANNA)
        with pytest.raises(BundleError, match=f"cannot sign: {said}"):
            sign(signed, SigstoreSigner(token))


# --- what else may fail


def test_what_the_service_refuses(
    folder: Path, fake: SigstoreFake, token: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(_: Any) -> None:
        answer = requests.Response()
        answer.status_code = 400
        raise RuntimeError("There was an error") from requests.HTTPError("400", response=answer)

    monkeypatch.setattr(signer, "_signing_cert", refuse)
    said = r"cannot sign: Sigstore failed: RuntimeError: There was an error; HTTPError: 400\ntry ag"
    with pytest.raises(BundleError, match=said):
        sign(folder, SigstoreSigner(token))
    assert not (folder / SIGNATURE).exists()

    def ask(*_: Any, **__: Any) -> None:
        raise EOFError

    monkeypatch.setattr(oidc.Issuer, "identity_token", ask)
    with pytest.raises(UsageError, match=r"there is neither browser nor terminal\n.*--identity-to"):
        sign(folder, SigstoreSigner())
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(BundleError, match=r"cannot sign: Sigstore failed: NotADirectoryError: "):
        sign(folder, SigstoreSigner(token))
    assert len(fake.calls) == 3


def test_tokens_that_are_none(folder: Path, fake: SigstoreFake, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("secret\n")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    write_token(tmp_path / "old", ANNA.identity, GOOGLE, exp=1_700_000_000)
    write_token(tmp_path / "other", ANNA.identity, GOOGLE, aud="another service")
    for name, said in {
        "none": "cannot read the identity token in .*none: No such file",
        "bytes": "cannot read the identity token in .*bytes: it is no text",
        "text": "text holds no identity token that is valid now: DecodeError: Not enough segments",
        "old": "old holds no identity token that is valid now: .*expired",
        "other": "other holds no identity token that is valid now: .*[Aa]udience",
    }.items():
        with pytest.raises(UsageError, match=f"{said}.*\n.*--identity-token FILE") as caught:
            sign(folder, SigstoreSigner(tmp_path / name))
        assert "secret" not in str(caught.value)
    assert fake.requests == []


@pytest.mark.parametrize(
    ("identity", "issuer"), [("", GOOGLE), ("anna", ""), ("anna", "google.com"), (GOOGLE, "anna")]
)
def test_identities_of_nobody(identity: str, issuer: str) -> None:
    with pytest.raises(UsageError, match=r"is nobody's; expected a name, and an issuer's https:"):
        SigstoreIdentity(identity, issuer)


def test_without_the_package(signed: Path, token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("model_signing", "model_signing.signing", "model_signing.verifying"):
        monkeypatch.setitem(sys.modules, name, None)
    message = r"model_signing.*not installed\ninstall it: pip install model-signing pyopenssl$"
    for use in (
        lambda: verify(signed, ANNA),
        lambda: check(signed, trust=ANNA),
        lambda: deploykit.load(signed, trust=ANNA),
        lambda: sign(signed, SigstoreSigner(token)),
    ):
        with pytest.raises(MissingDependencyError, match=message):
            use()
    assert Bundle.open(signed).signed_by is None  # nobody asked for a signature
