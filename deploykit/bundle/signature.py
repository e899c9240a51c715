"""Signatures of bundles: made with a private key, verified before anything else is looked into.

The manifest is what is signed, byte for byte. It has the sha256 of every other file, and no file
is opened that it does not name. So a file that may be left out when shipping may be deleted after
signing, and what a runtime keeps beside an engine is no part of what was signed.

The signature is a file as OpenSSF's ``model-signing`` writes it, of a folder with the manifest
alone. That package does the cryptography; it is imported only where somebody signs or verifies.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from deploykit.bundle.manifest import MANIFEST, SIGNATURE, manifest_content
from deploykit.bundle.reading import read_bundle
from deploykit.core.artifacts import sha256_of_bytes
from deploykit.core.atomic import exclusive, replace_file, translated_write_errors
from deploykit.core.environment import require
from deploykit.core.errors import BundleError, SignatureError, UsageError, typed_first_line
from deploykit.core.regular_files import open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploykit.bundle.manifest import Bundle

NEW_PAIR: Final = (
    "make a pair: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem && "
    "openssl pkey -in key.pem -pubout -out key.pub"
)
CURVES: Final = ("secp256r1", "secp384r1", "secp521r1")
"""NIST's P-256, P-384 and P-521: those that ``model-signing`` takes."""

_MOST_BYTES: Final = 2**20
"""Of a signature or a file of keys; they have some thousand."""

_LABEL: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----")
_PUBLIC: Final = "PUBLIC KEY"
_CERTIFICATE: Final = "CERTIFICATE"
_DIGITS: Final = 16
"""Of a key's sha256 in messages."""


@dataclass(frozen=True)
class Trust:
    """Whose signatures are believed: a public key, or certificates of those who issue others.

    ``key`` is the sha256 by which signatures name a key; ``None`` for certificates.
    """

    path: Path
    key: str | None

    @classmethod
    def read(cls, path: Path) -> Trust:
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
        return f"the key {self.key[:_DIGITS]} in {self.path}"

    def require(self, manifest: bytes, folder: Path) -> str:
        """Who signed the ``manifest`` of the bundle in ``folder``, a key or a certificate.

        Raises:
            SignatureError: it is not signed, not as it is, or by somebody else.
        """
        signature = _Signature.read(folder, self)
        self._require_method(signature)
        verifying = require("model_signing.verifying")
        config = verifying.Config().set_hashing_config(_exact_hashing())
        try:
            if self.key is None:
                config.use_certificate_verifier(certificate_chain=[self.path])
            else:
                config.use_elliptic_key_verifier(public_key=self.path)
        except Exception as exc:
            raise _unreadable(self.path, exc) from exc
        with _scratch("verify") as scratch:
            (copy := scratch / "bundle").mkdir()
            (copy / MANIFEST).write_bytes(manifest)
            (scratch / SIGNATURE).write_bytes(signature.content)
            try:
                config.verify(copy, scratch / SIGNATURE)
            except Exception as exc:  # each part of the package has its own kinds
                raise self._refusal(signature, manifest, exc) from exc
        if signature.digests != {MANIFEST: sha256_of_bytes(manifest)}:
            raise signature.of_another(manifest)
        return signature.signer

    def _require_method(self, signature: _Signature) -> None:
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

    def _refusal(self, signature: _Signature, manifest: bytes, error: Exception) -> SignatureError:
        if str(error).startswith("Signature mismatch"):  # what it signs, by its key, is other bytes
            return signature.of_another(manifest)
        return SignatureError(
            f"{signature.place} does not verify with {self.label}: {typed_first_line(error):.200}\n"
            "it was changed, or made by somebody else: get the bundle again, or sign what you "
            f"trust: {signature.again}"
        )


@dataclass(frozen=True)
class _Signature:
    """A signature's file, and what it says of itself, which nobody may believe unverified."""

    folder: Path
    content: bytes
    material: dict[str, Any]
    statement: dict[str, Any]

    @classmethod
    def read(cls, folder: Path, trust: Trust) -> _Signature:
        try:
            with open_regular(folder / SIGNATURE) as file:
                content = file.read(_MOST_BYTES)  # cut off, a larger one is no JSON
        except FileNotFoundError as exc:
            raise SignatureError(
                f"{folder} is not signed: it has no {SIGNATURE}, and trusted is {trust.label}\n"
                f"get a signed one, or sign what you trust: {_again(folder)}"
            ) from exc
        except OSError as exc:
            raise SignatureError(
                f"cannot read {folder / SIGNATURE}: {exc.strerror}\n"
                f"get the bundle again, or sign what you trust: {_again(folder)}"
            ) from exc
        return cls.of(folder, content)

    @classmethod
    def of(cls, folder: Path, content: bytes) -> _Signature:
        try:
            body = json.loads(content)
            statement = json.loads(base64.b64decode(body["dsseEnvelope"]["payload"], validate=True))
            signature = cls(folder, content, dict(body["verificationMaterial"]), dict(statement))
            _ = signature.signer, signature.digests, signature.name
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as exc:
            raise SignatureError(
                f"{folder / SIGNATURE} is no signature: {typed_first_line(exc):.200}\n"
                f"get the bundle again, or sign what you trust: {_again(folder)}"
            ) from exc
        return signature

    @property
    def place(self) -> str:
        return f"the signature {self.folder / SIGNATURE}"

    @property
    def again(self) -> str:
        return _again(self.folder)

    @property
    def key(self) -> str | None:
        named = self.material.get("publicKey")
        return None if named is None else str(named["hint"])

    @property
    def signer(self) -> str:
        if self.key is not None:
            return f"the key {self.key[:_DIGITS]!r}"
        chain = self.material.get("x509CertificateChain")
        if chain is None:
            return "an identity of Sigstore"
        content = base64.b64decode(chain["certificates"][0]["rawBytes"], validate=True)
        subject = require("cryptography.x509").load_der_x509_certificate(content).subject
        return f"the certificate {subject.rfc4514_string()!r:.120}"

    @property
    def digests(self) -> dict[str, str]:
        """The sha256 of each file that was signed."""
        resources = self.statement["predicate"]["resources"]
        return {str(each["name"]): str(each["digest"]) for each in resources}

    @property
    def name(self) -> str:
        """What the signed bundle was called."""
        return str(self.statement["subject"][0]["name"])

    def of_another(self, manifest: bytes) -> SignatureError:
        found, signed = sha256_of_bytes(manifest), self.digests.get(MANIFEST)
        if signed in (None, found):
            return SignatureError(
                f"{self.place} is of {', '.join(self.digests):.80}; expected {MANIFEST} alone\n"
                f"sign what you trust: {self.again}"
            )
        return SignatureError(
            f"{self.folder} is not what was signed: its {MANIFEST} has sha256 {found}, signed is "
            f"{signed:.64} of {self.name!r:.80}\n"
            "the bundle was changed since, as a build does, or the signature is another bundle's\n"
            f"get both again, or sign what you trust: {self.again}"
        )


@dataclass(frozen=True)
class SigningKey:
    """A private key in a PEM file; with ``certificate`` those who trust its issuer believe it."""

    path: Path
    password: bytes | None = None
    certificate: Path | None = None
    chain: tuple[Path, ...] = ()

    def signer(self) -> Any:
        """The configuration of ``model-signing`` that signs with it.

        Raises:
            UsageError: a file is missing or holds something else, or the password is wrong.
            MissingDependencyError: ``model-signing`` is not installed.
        """
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
        return self._configured(content)

    def _configured(self, content: bytes) -> Any:
        signing = require("model_signing.signing")
        try:
            key = _serialization().load_pem_private_key(content, self.password)
        except Exception as exc:  # of several kinds, by what is wrong with it
            raise _unreadable(self.path, exc) from exc
        _require_curve(self.path, key)
        config = signing.Config().set_hashing_config(_exact_hashing())
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
            return file.readline(_MOST_BYTES).rstrip(b"\r\n")
    except OSError as exc:
        raise UsageError(
            f"cannot read the password in {path}: {exc.strerror}\n"
            "give a file with the password of the key in its first line: --password-file FILE"
        ) from exc


def sign_bundle(folder: Path, key: SigningKey) -> tuple[Bundle, str]:
    """Sign the bundle in ``folder``, whose files are compared with their hashes before.

    A signature that was there is replaced.

    Returns:
        The bundle, and who signed it: a key or a certificate.

    Raises:
        UsageError: the key cannot be used.
        MissingDependencyError: ``model-signing`` is not installed.
        IntegrityError: a file is not as it was written.
        BundleError: no bundle there, or it was changed meanwhile.
    """
    signer = key.signer()
    manifest, _ = manifest_content(folder)
    bundle = read_bundle(folder, _intact)
    signature = _sign(signer, manifest, bundle.manifest.name)
    with translated_write_errors(folder), exclusive(folder):
        if manifest_content(folder)[0] != manifest:
            raise BundleError(
                f"{folder} was changed while it was signed, and is not signed\n"
                "look at what it is now, and sign it again"
            )
        replace_file(folder / SIGNATURE, signature)
    return bundle, _Signature.of(folder, signature).signer


def _intact(bundle: Bundle) -> Bundle:
    bundle.require_intact()
    return bundle


def _sign(signer: Any, manifest: bytes, name: str) -> bytes:
    with _scratch("sign") as scratch:
        # The package takes the name of what is signed from the folder.
        copy = scratch / "signed" / re.sub(r"[^\w.+-]", "-", name)[:100].strip(".")
        copy.mkdir(parents=True)
        (copy / MANIFEST).write_bytes(manifest)
        signer.sign(copy, scratch / SIGNATURE)
        return (scratch / SIGNATURE).read_bytes()


@contextmanager
def _scratch(verb: str) -> Iterator[Path]:
    """A folder for copies of what was read, as the package takes paths: it works on these bytes."""
    try:
        with TemporaryDirectory() as folder:
            yield Path(folder)
    except OSError as exc:
        raise BundleError(
            f"cannot {verb}: no place for a temporary file: {exc.strerror}\n"
            "name a folder that can be written to: TMPDIR=FOLDER"
        ) from exc


def _exact_hashing() -> Any:
    """Every file of the folder, also those of git, by its sha256."""
    return (
        require("model_signing.hashing")
        .Config()
        .set_ignored_paths(paths=(), ignore_git_paths=False)
    )


def _again(folder: Path) -> str:
    return f"deploykit sign {shlex.quote(str(folder))} --key KEY"


def _read_pem(path: Path, what: str, option: str) -> tuple[bytes, list[str]]:
    """A file's content, and the kinds of its entries."""
    try:
        with open_regular(path) as file:
            content = file.read(_MOST_BYTES)
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
