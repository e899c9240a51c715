"""Keys and certificates for tests, and a second reader of signatures that knows cryptography only.

DSSE, by which signatures are made: https://github.com/secure-systems-lab/dsse/blob/v1.0.0.
"""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# Any: the package is in [dev], and these tests are skipped where only a part of that is installed.
ec: Any = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec")
rsa: Any = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.rsa")
hashes: Any = pytest.importorskip("cryptography.hazmat.primitives.hashes")
serialization: Any = pytest.importorskip("cryptography.hazmat.primitives.serialization")
x509: Any = pytest.importorskip("cryptography.x509")
pytest.importorskip("model_signing")

PEM = serialization.Encoding.PEM
HASHES = {"secp256r1": hashes.SHA256, "secp384r1": hashes.SHA384, "secp521r1": hashes.SHA512}


def write_key(path: Path, key: Any, password: bytes | None = None) -> Path:
    """A private key at ``path``, its public one beside it as ``.pub``."""
    hidden = serialization.NoEncryption()
    if password is not None:
        hidden = serialization.BestAvailableEncryption(password)
    path.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, hidden))
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    path.with_suffix(".pub").write_bytes(key.public_key().public_bytes(PEM, form))
    return path


def new_key(path: Path, curve: str = "SECP256R1", password: bytes | None = None) -> Path:
    return write_key(path, ec.generate_private_key(getattr(ec, curve)()), password)


def private_key(path: Path) -> Any:
    return serialization.load_pem_private_key(path.read_bytes(), None)


_NOW = datetime.now(UTC)
"""One for all: an issuer whose certificate began a second after another's is refused for that."""


def write_certificate(
    path: Path,
    key: Path,
    subject: str,
    issuer: tuple[Path, str] | None,
    *,
    ca: bool | None = None,
    signs: bool | None = True,
    purposes: Sequence[Any] = (),
) -> Path:
    """A certificate of the key; by ``issuer``, its key and name, or by itself.

    ``ca`` is whether it may issue others, by default if nobody issued it; ``signs`` whether its
    KeyUsage has digitalSignature, ``None`` for no KeyUsage; ``purposes`` its ExtendedKeyUsage.
    """
    ca = issuer is None if ca is None else ca
    by_key, by_name = issuer or (key, subject)
    common = x509.oid.NameOID.COMMON_NAME
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
         "crl_sign", "encipher_only", "decipher_only"), False,
    )  # fmt: skip
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(common, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(common, by_name)]))
        .public_key(private_key(key).public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_NOW - timedelta(days=1))
        .not_valid_after(_NOW + timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if signs is not None:
        key_usage = x509.KeyUsage(digital_signature=signs, key_cert_sign=ca, **usage)
        made = made.add_extension(key_usage, critical=True)
    if purposes:
        made = made.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    path.write_bytes(made.sign(private_key(by_key), hashes.SHA256()).public_bytes(PEM))
    return path


def signed_digests(signature: Path, public: Path) -> dict[str, str]:
    """The files that a signature is of, with their sha256, verified with cryptography alone."""
    envelope = json.loads(signature.read_text(encoding="utf-8"))["dsseEnvelope"]
    payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"].encode()
    signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    key = serialization.load_pem_public_key(public.read_bytes())
    algorithm = HASHES[key.curve.name]()
    key.verify(base64.b64decode(envelope["signatures"][0]["sig"]), signed, ec.ECDSA(algorithm))
    resources = json.loads(payload)["predicate"]["resources"]
    return {resource["name"]: resource["digest"] for resource in resources}
