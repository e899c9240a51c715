"""Sigstore where there is no network: what `model_signing` and `sigstore` do without it is theirs.

The certificate that the service would issue is made here, and signed by itself. So nobody asks
whether the service issued it, nor its log; signatures and the policy of identities are compared.
"""

from __future__ import annotations

import base64
import json
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.signing import ec, hashes, serialization, x509

if TYPE_CHECKING:
    from pathlib import Path

# Any: as in `tests.signing`.
requests: Any = pytest.importorskip("requests")
jwt: Any = pytest.importorskip("jwt")
oidc: Any = pytest.importorskip("sigstore.oidc")
dsse: Any = pytest.importorskip("sigstore.dsse")
models: Any = pytest.importorskip("sigstore.models")
log: Any = pytest.importorskip("sigstore_models.rekor.v1")
log_id: Any = pytest.importorskip("sigstore_models.common.v1").LogId
signer: Any = pytest.importorskip("sigstore.sign").Signer
verifier: Any = pytest.importorskip("sigstore.verify").Verifier
signing: Any = pytest.importorskip("model_signing.signing")
verifying: Any = pytest.importorskip("model_signing.verifying")

ISSUER = "1.3.6.1.4.1.57264.1.1"
"""https://github.com/sigstore/fulcio/blob/main/docs/oid-info.md"""


def write_token(path: Path, subject: str, issuer: str, **changed: Any) -> Path:
    """An identity token of somebody; ``changed`` are other claims, or others' values."""
    now = int(datetime.now(UTC).timestamp())
    claims = {"aud": "sigstore", "iss": issuer, "sub": subject, "iat": now, "exp": now + 600}
    if "@" in subject:
        claims["email"] = subject
    path.write_text(jwt.encode(claims | changed, "s" * 32, algorithm="HS256") + "\n")
    return path


def certificate_of(key: Any, names: list[Any], issuer: str | None) -> Any:
    """As Sigstore's, by itself."""
    now, nobody = datetime.now(UTC), x509.Name([])
    made = (
        x509.CertificateBuilder()
        .subject_name(nobody)
        .issuer_name(nobody)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(minutes=10))
    )
    if names:
        made = made.add_extension(x509.SubjectAlternativeName(names), critical=True)
    if issuer is not None:
        oid = x509.ObjectIdentifier(ISSUER)
        made = made.add_extension(x509.UnrecognizedExtension(oid, issuer.encode()), critical=False)
    return made.sign(key, hashes.SHA256())


def name_of(identity: str) -> Any:
    return (x509.RFC822Name if "@" in identity else x509.UniformResourceIdentifier)(identity)


def signed_with(signature: Path) -> Any:
    """The public key in a signature's certificate, read with cryptography alone."""
    material = json.loads(signature.read_text(encoding="utf-8"))["verificationMaterial"]
    raw = base64.b64decode(material["certificate"]["rawBytes"])
    return x509.load_der_x509_certificate(raw).public_key()


class SigstoreFake:
    """The service, and what it and the two packages were asked for."""

    def __init__(self, patch: pytest.MonkeyPatch, home: Path) -> None:
        self.requests: list[tuple[str, Any]] = []
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.login: Path | None = None
        """The token of who logs in with a browser."""
        patch.setenv("XDG_DATA_HOME", str(home / "data"))
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        patch.setattr(requests, "head", lambda url, **how: self.requests.append((url, how)))
        production = models.ClientTrustConfig.production  # has the service's real keys in itself
        patch.setattr(models.ClientTrustConfig, "production", lambda: production(offline=True))
        patch.setattr(oidc.Issuer, "__init__", lambda _, url: self.requests.append((url, None)))
        patch.setattr(oidc.Issuer, "identity_token", lambda _, **__: self._logged_in())
        patch.setattr(signer, "_signing_cert", _issue)
        patch.setattr(signer, "_finalize_sign", _log)
        patch.setattr(verifier, "verify_dsse", _verify)
        self._spy(patch, signing.Config, "use_sigstore_signer")
        self._spy(patch, verifying.Config, "use_sigstore_verifier")

    def _spy(self, patch: pytest.MonkeyPatch, config: Any, name: str) -> None:
        original = getattr(config, name)

        def called(of: Any, **given: Any) -> Any:
            self.calls.append((name, given))
            return original(of, **given)

        patch.setattr(config, name, called)

    def _logged_in(self) -> Any:
        sys.stdout.write("Go to the following link in a browser:")
        assert self.login is not None
        return oidc.IdentityToken(self.login.read_text().strip())


def _issue(of: Any) -> Any:
    token = of._identity_token
    return certificate_of(of._private_key, [name_of(token.identity)], token.issuer)


def _log(_: Any, certificate: Any, content: Any, __: Any) -> Any:
    return models.Bundle._from_parts(certificate, content, entry())


def entry() -> Any:
    """Of a log that is none."""
    nothing = base64.b64encode(b"nothing")
    return models.TransparencyLogEntry(
        log.TransparencyLogEntry(
            log_index="1",
            log_id=log_id(key_id=nothing),
            kind_version=log.KindVersion(kind="dsse", version="0.0.1"),
            integrated_time=str(int(datetime.now(UTC).timestamp())),
            inclusion_promise=log.InclusionPromise(signed_entry_timestamp=nothing),
            inclusion_proof=log.InclusionProof(
                log_index="1",
                root_hash=nothing,
                tree_size="2",
                hashes=[],
                checkpoint=log.Checkpoint(envelope="nothing"),
            ),
            canonicalized_body=nothing,
        )
    )


def _verify(_: Any, *, bundle: Any, policy: Any) -> tuple[str, bytes]:
    policy.verify(bundle.signing_certificate)
    envelope = bundle._dsse_envelope
    payload: bytes = dsse._verify(bundle.signing_certificate.public_key(), envelope)
    return envelope._inner.payload_type, payload


def forged(signature: Path, names: list[Any], issuer: str | None) -> None:
    """Change the certificate of a signature to one of a new key, with these names."""
    body = json.loads(signature.read_text(encoding="utf-8"))
    made = certificate_of(ec.generate_private_key(ec.SECP256R1()), names, issuer)
    raw = base64.b64encode(made.public_bytes(serialization.Encoding.DER)).decode()
    body["verificationMaterial"]["certificate"]["rawBytes"] = raw
    signature.write_text(json.dumps(body), encoding="utf-8")
