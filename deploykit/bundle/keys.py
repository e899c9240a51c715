"""Signatures by keys, and by certificates of keys: both work without a network."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deploykit.bundle.signature import DIGITS, MOST_BYTES, Signature, Trust, exact_hashing
from deploykit.core.artifacts import sha256_of_bytes
from deploykit.core.environment import require
from deploykit.core.errors import SignatureError, UsageError, typed_first_line
from deploykit.core.regular_files import open_regular

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

NEW_PAIR: Final = (
    "make a pair: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem && "
    "openssl pkey -in key.pem -pubout -out key.pub"
)
CURVES: Final = ("secp256r1", "secp384r1", "secp521r1")
"""NIST's P-256, P-384 and P-521: those that ``model-signing`` takes."""

_LABEL: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----")
_PUBLIC: Final = "PUBLIC KEY"
_CERTIFICATE: Final = "CERTIFICATE"


@dataclass(frozen=True)
class KeyTrust(Trust):
    """A public key, or certificates of those who issue others, whose signatures are believed.

    ``key`` is the sha256 by which signatures name a key; ``None`` for certificates.
    """

    path: Path
    key: str | None

    @classmethod
    def read(cls, path: Path) -> KeyTrust:
        """The public key, or the certificates, in a PEM file.

        Raises:
            UsageError: the file is missing or holds something else.
            MissingDependencyError: ``model-signing`` is not installed.
        """
        content, labels = _read_pem(path, "public key", "--trust")
        if any(label.endswith("PRIVATE KEY") for label in labels):
            raise UsageError(
                f"{path} is a private key, which signs and is kept secret\n"
                f"give the public one of the pair: openssl pkey -in {path} -pubout -out key.pub"
            )
        if not {_PUBLIC, _CERTIFICATE} & {*labels}:
            raise _no_key(path, "public key or certificate", labels)
        require("model_signing")
        try:
            if _CERTIFICATE in labels:
                require("cryptography.x509").load_pem_x509_certificates(content)
                return cls(path, None)
            key = _serialization().load_pem_public_key(content)
        except Exception as exc:  # of several kinds, by what is wrong with it
            raise _unreadable(path, exc) from exc
        _require_curve(path, key)
        return cls(path, _id_of(key))

    @property
    def label(self) -> str:
        """The key or the certificates, for messages."""
        if self.key is None:
            return f"the certificates in {self.path}"
        return f"the key {self.key[:DIGITS]} in {self.path}"

    def _configure(self, config: Any) -> None:
        try:
            if self.key is None:
                config.use_certificate_verifier(certificate_chain=[self.path])
            else:
                config.use_elliptic_key_verifier(public_key=self.path)
        except Exception as exc:
            raise _unreadable(self.path, exc) from exc

    def _require_method(self, signature: Signature) -> None:
        expected = "x509CertificateChain" if self.key is None else "publicKey"
        if expected not in signature.material:
            raise SignatureError(
                f"{signature.place} is by {signature.signer}, and cannot be compared with "
                f"{self.label}\ntrust what it was made with, or sign again: {signature.again}"
            )
        if self.key not in (None, signature.key):
            raise SignatureError(
                f"{signature.place} is by {signature.signer}, trusted is {self.label}\n"
                "trust the key that signed it, if you know whose it is; or sign what you trust: "
                f"{signature.again}"
            )


def trust_of(given: Trust | str | os.PathLike[str]) -> Trust:
    """What a caller trusts: the key or the certificates in a PEM file, where it is a path.

    Raises:
        UsageError: the file is missing or holds something else.
        MissingDependencyError: ``model-signing`` is not installed.
    """
    return given if isinstance(given, Trust) else KeyTrust.read(Path(given))


@dataclass(frozen=True)
class SigningKey:
    """A private key in a PEM file; with ``certificate`` those who trust its issuer believe it."""

    path: Path
    password: bytes | None = None
    certificate: Path | None = None
    chain: tuple[Path, ...] = ()

    def ready(self) -> Callable[[Path, Path], None]:
        """What signs a folder with it.

        Raises:
            UsageError: a file is missing or holds something else, or the password is wrong.
            MissingDependencyError: ``model-signing`` is not installed.
        """
        if self.chain and self.certificate is None:
            raise UsageError(
                "--chain has certificates of those who issued another\n"
                "give the one of the key too: --certificate CERT.pem"
            )
        content, labels = _read_pem(self.path, "private key", "--key")
        if not any(label.endswith("PRIVATE KEY") for label in labels):
            raise _no_key(self.path, "private key", labels)
        if self.password is None and (b"ENCRYPTED" in content):
            raise UsageError(
                f"{self.path} is encrypted\n"
                "give a file with its password in the first line: --password-file FILE"
            )
        for path in filter(None, (self.certificate, *self.chain)):
            if _CERTIFICATE not in (found := _read_pem(path, "certificate", "--certificate")[1]):
                raise _no_key(path, "certificate", found)
        sign: Callable[[Path, Path], None] = self._configured(content).sign
        return sign

    def _configured(self, content: bytes) -> Any:
        signing = require("model_signing.signing")
        try:
            key = _serialization().load_pem_private_key(content, self.password)
        except Exception as exc:  # of several kinds, by what is wrong with it
            raise _unreadable(self.path, exc) from exc
        _require_curve(self.path, key)
        config = signing.Config().set_hashing_config(exact_hashing())
        if self.certificate is None:
            config.use_elliptic_key_signer(private_key=self.path, password=self.password)
            return config
        if self.password is not None:  # model-signing has no place for it
            raise UsageError(
                f"{self.path} is encrypted, which does not go with --certificate\n"
                "give the key as it is: openssl pkey -in KEY -out plain.pem"
            )
        try:
            config.use_certificate_signer(
                private_key=self.path,
                signing_certificate=self.certificate,
                certificate_chain=self.chain or [self.certificate],  # which may not be empty
            )
        except Exception as exc:
            raise _unreadable(self.certificate, exc) from exc
        return config


def read_password(path: Path) -> bytes:
    """The first line of a file.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        with open_regular(path) as file:
            return file.readline(MOST_BYTES).rstrip(b"\r\n")
    except OSError as exc:
        raise UsageError(
            f"cannot read the password in {path}: {exc.strerror}\n"
            "give a file with the password of the key in its first line: --password-file FILE"
        ) from exc


def _read_pem(path: Path, what: str, option: str) -> tuple[bytes, list[str]]:
    """A file's content, and the kinds of its entries."""
    try:
        with open_regular(path) as file:
            content = file.read(MOST_BYTES)
    except FileNotFoundError as exc:
        raise UsageError(f"there is no {what} {path}, which {option} names\n{NEW_PAIR}") from exc
    except OSError as exc:
        raise UsageError(f"cannot read the {what} {path}: {exc.strerror}\n{NEW_PAIR}") from exc
    return content, [label.decode() for label in _LABEL.findall(content)]


def _no_key(path: Path, what: str, labels: list[str]) -> UsageError:
    found = f"holds {', '.join(dict.fromkeys(labels)):.80}" if labels else "is no PEM file"
    return UsageError(f"{path} {found}; expected a {what}, in PEM\n{NEW_PAIR}")


def _unreadable(path: Path, error: Exception) -> UsageError:
    return UsageError(
        f"cannot use {path}: {typed_first_line(error):.200}\ngive another; or {NEW_PAIR}"
    )


def _require_curve(path: Path, key: Any) -> None:
    curve = getattr(getattr(key, "curve", None), "name", None)
    if curve not in CURVES:
        found = "no elliptic curve" if curve is None else f"the curve {curve}"
        raise UsageError(
            f"the key {path} has {found}; expected one of {', '.join(CURVES)}\n{NEW_PAIR}"
        )


def _id_of(key: Any) -> str:
    """The sha256 by which ``model-signing`` names a public key: of its PEM form."""
    serialization = _serialization()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return sha256_of_bytes(key.public_bytes(serialization.Encoding.PEM, form))


def _serialization() -> Any:
    return require("cryptography.hazmat.primitives.serialization")
