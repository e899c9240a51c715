"""Signatures of bundles: made with a private key, verified before anything else is looked into.

The manifest is what is signed, byte for byte. It has the sha256 of every other file, and no file
is opened that it does not name. So a file that may be left out when shipping may be deleted after
signing, and what a runtime keeps beside an engine is no part of what was signed.

The signature is a file as OpenSSF's ``model-signing`` writes it, of a folder with the manifest
alone. That package does the cryptography; it is imported only where somebody signs or verifies.
Who is trusted and who signs is in ``keys.py`` and ``sigstore.py``.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import shlex
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from deploykit.bundle.manifest import MANIFEST, SIGNATURE, manifest_content
from deploykit.bundle.reading import read_bundle
from deploykit.core.artifacts import sha256_of_bytes
from deploykit.core.atomic import exclusive, replace_file, translated_write_errors
from deploykit.core.environment import require
from deploykit.core.errors import BundleError, DeploykitError, SignatureError
from deploykit.core.regular_files import open_regular

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from deploykit.bundle.manifest import Bundle

ISSUER_OID: Final = "1.3.6.1.4.1.57264.1.1"
"""Who knew the identity: https://github.com/sigstore/fulcio/blob/main/docs/oid-info.md."""

MOST_BYTES: Final = 2**20
"""Of a signature or a file of keys; they have some thousand."""

DIGITS: Final = 16
"""Of a key's sha256 in messages."""


class Trust(ABC):
    """Whose signatures are believed."""

    signs_with: ClassVar[str] = "--key KEY"
    """Options of ``deploykit sign`` that make such a signature, for messages."""

    @property
    @abstractmethod
    def label(self) -> str:
        """For messages."""

    @abstractmethod
    def _require_method(self, signature: Signature) -> None:
        """Refuse a signature that, by what it says of itself, is another's.

        Raises:
            SignatureError: it is.
        """

    @abstractmethod
    def _prepare(self, config: Any, signature: Signature, place: Path) -> bytes:
        """Tell ``model-signing`` what is trusted; files for it go to ``place``.

        Returns:
            The signature's file as the package is to verify it.

        Raises:
            SignatureError: whoever made the signature is not trusted.
        """

    def _told(self, error: Exception) -> str:
        """What the package says beside "no", where that helps."""
        del error
        return ""

    def require(self, manifest: bytes, folder: Path) -> str:
        """Who signed the ``manifest`` of the bundle in ``folder``: a key, certificate or identity.

        Raises:
            SignatureError: it is not signed, not as it is, or by somebody else.
            BundleError: that cannot be found out, for want of a network or of a temporary file.
        """
        signature = Signature.read(folder, self)
        self._require_method(signature)
        verifying = require("model_signing.verifying")
        config = verifying.Config().set_hashing_config(exact_hashing())
        with scratch("verify") as place:
            content = self._prepare(config, signature, place)
            (copy := place / "bundle").mkdir()
            (copy / MANIFEST).write_bytes(manifest)
            (place / SIGNATURE).write_bytes(content)
            try:
                config.verify(copy, place / SIGNATURE)
            except Exception as exc:  # each part of the package has its own kinds
                raise self._refusal(signature, manifest, exc) from exc
        if signature.digests != {MANIFEST: sha256_of_bytes(manifest)}:
            raise signature.of_another(manifest)
        return signature.signer

    def _refusal(self, signature: Signature, manifest: bytes, error: Exception) -> SignatureError:
        if str(error).startswith("Signature mismatch"):  # what it signs, by its key, is other bytes
            return signature.of_another(manifest)
        return SignatureError(
            f"{signature.place} does not verify with {self.label}{self._told(error)}\n"
            "it was changed, or made by somebody else: get the bundle again, or sign what you "
            f"trust: {signature.again}"
        )


@dataclass(frozen=True)
class Signature:
    """A signature's file, and what it says of itself, which nobody may believe unverified."""

    folder: Path
    content: bytes
    material: dict[str, Any]
    statement: dict[str, Any]
    again: str
    """The command that signs the bundle anew."""

    @classmethod
    def read(cls, folder: Path, trust: Trust) -> Signature:
        """The signature in a bundle's folder.

        Raises:
            SignatureError: there is none.
        """
        again = f"deploykit sign {shlex.quote(str(folder))} {trust.signs_with}"
        try:
            with open_regular(folder / SIGNATURE) as file:
                content = file.read(MOST_BYTES)  # cut off, a larger one is no JSON
        except FileNotFoundError as exc:
            raise SignatureError(
                f"{folder} is not signed: it has no {SIGNATURE}, and trusted is {trust.label}\n"
                f"get a signed one, or sign what you trust: {again}"
            ) from exc
        except OSError as exc:
            raise SignatureError(
                f"cannot read {folder / SIGNATURE}: {exc.strerror}\n"
                f"get the bundle again, or sign what you trust: {again}"
            ) from exc
        return cls.of(folder, content, again)

    @classmethod
    def of(cls, folder: Path, content: bytes, again: str) -> Signature:
        """What a signature's file says.

        Raises:
            SignatureError: nothing that a signature says.
        """
        try:
            body = json.loads(content)
            statement = json.loads(base64.b64decode(body["dsseEnvelope"]["payload"], validate=True))
            signature = cls(
                folder, content, dict(body["verificationMaterial"]), dict(statement), again
            )
            _ = signature.signer, signature.digests, signature.name
        except DeploykitError:
            raise
        except Exception as exc:  # of many kinds: anybody may have written it
            raise SignatureError(
                f"{folder / SIGNATURE} is no signature: {_what_is_wrong(exc):.200}\n"
                f"get the bundle again, or sign what you trust: {again}"
            ) from exc
        return signature

    @property
    def place(self) -> str:
        """The file, for messages."""
        return f"the signature {self.folder / SIGNATURE}"

    @property
    def key(self) -> str | None:
        """The sha256 of the key that made it; ``None`` where it names no key."""
        named = self.material.get("publicKey")
        return None if named is None else str(named["hint"])

    @property
    def identity(self) -> Identity | None:
        """Whom Sigstore certified; ``None`` for a key and for a certificate by anybody else."""
        certificate = self.material.get("certificate")
        return None if certificate is None else Identity.of(_der(certificate))

    @property
    def signer(self) -> str:
        """Who made it, for messages."""
        if self.key is not None:
            return f"the key {self.key[:DIGITS]!r}"
        if self.identity is not None:
            return self.identity.label
        return f"the certificate {subject_of(self.certificates[0])!r:.120}"

    @property
    def certificates(self) -> list[Any]:
        """The certificate that made it, then others; for one by certificates only."""
        chain = self.material["x509CertificateChain"]["certificates"]
        return [_x509_of(_der(each)) for each in chain]

    @property
    def issuers(self) -> list[str]:
        """Who issued the certificate that made it, and who issued theirs, as far as it says."""
        if "x509CertificateChain" not in self.material:
            return []
        named = [subject_of(each, issuer=True) for each in self.certificates]
        return list(dict.fromkeys(named))

    def by_key(self, key: str) -> bytes:
        """The file as if the key of that sha256 had made it, and no certificate."""
        body = json.loads(self.content)
        body["verificationMaterial"] = {"publicKey": {"hint": key}, "tlogEntries": []}
        return json.dumps(body).encode()

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
        """The refusal of a good signature that is of something else."""
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
class Identity:
    """What a certificate of Sigstore says: names of one person or program, and who knew them."""

    names: tuple[str, ...]
    issuer: str

    @classmethod
    def of(cls, certificate: bytes) -> Identity:
        """Of a certificate in DER form.

        Raises:
            ValueError: it has no issuer, or is no certificate.
        """
        x509, extensions = require("cryptography.x509"), _x509_of(certificate).extensions
        names: list[Any] = []
        issuers: list[str] = []
        for extension in extensions:
            if extension.oid.dotted_string == ISSUER_OID:
                issuers.append(extension.value.value.decode())
            elif isinstance(extension.value, x509.SubjectAlternativeName):
                names += extension.value
        if not issuers:
            raise ValueError("a certificate without an issuer of identities")
        return cls(tuple(map(_text_of, names)), issuers[0])

    @property
    def label(self) -> str:
        """For messages."""
        return f"the identity {' or '.join(self.names)!r:.120} of {self.issuer!r:.120}"


class Signer(Protocol):
    """Who signs."""

    def ready(self) -> Callable[[Path, Path], None]:
        """What signs a folder, the first path, into a file, the second.

        Raises:
            UsageError: it would not be able to.
        """


def sign_bundle(folder: Path, signer: Signer) -> tuple[Bundle, Signature]:
    """Sign the bundle in ``folder``, whose files are compared with their hashes before.

    A signature that was there is replaced.

    Returns:
        The bundle, and the signature, which says who signed it.

    Raises:
        UsageError: the key or the token cannot be used.
        MissingDependencyError: ``model-signing`` is not installed.
        IntegrityError: a file is not as it was written.
        BundleError: no bundle there, or it was changed meanwhile; Sigstore does not sign.
    """
    sign = signer.ready()
    if (folder / SIGNATURE).is_dir():
        raise BundleError(
            f"{folder / SIGNATURE} is a folder, where the signature goes\nmove it away"
        )
    manifest, _ = manifest_content(folder)
    bundle = read_bundle(folder, _intact)
    content = _sign(sign, manifest, bundle.manifest.name)
    signature = Signature.of(folder, content, f"deploykit sign {shlex.quote(str(folder))}")
    remedy = "free some space, or let this user write to the folder"
    with translated_write_errors(folder, remedy), exclusive(folder):
        if manifest_content(folder)[0] != manifest:
            raise BundleError(
                f"{folder} was changed while it was signed, and is not signed\n"
                "look at what it is now, and sign it again"
            )
        replace_file(folder / SIGNATURE, content)
    return bundle, signature


def _intact(bundle: Bundle) -> Bundle:
    bundle.require_intact()
    return bundle


def _sign(sign: Callable[[Path, Path], None], manifest: bytes, name: str) -> bytes:
    with scratch("sign") as place:
        # The package takes the name of what is signed from the folder.
        copy = place / "signed" / re.sub(r"[^\w.+-]", "-", name)[:100].strip(".")
        copy.mkdir(parents=True)
        (copy / MANIFEST).write_bytes(manifest)
        sign(copy, place / SIGNATURE)
        return (place / SIGNATURE).read_bytes()


@contextmanager
def scratch(verb: str) -> Iterator[Path]:
    """A folder for copies of what was read, as the package takes paths: it works on these bytes."""
    try:
        with TemporaryDirectory() as folder:
            yield Path(folder)
    except OSError as exc:
        raise BundleError(
            f"cannot {verb}: no place for a temporary file: {exc.strerror}\n"
            "name a folder that can be written to: TMPDIR=FOLDER"
        ) from exc


def exact_hashing() -> Any:
    """Every file of the folder, also those of git, by its sha256."""
    return (
        require("model_signing.hashing")
        .Config()
        .set_ignored_paths(paths=(), ignore_git_paths=False)
    )


def _der(certificate: dict[str, str]) -> bytes:
    return base64.b64decode(certificate["rawBytes"], validate=True)


def _x509_of(certificate: bytes) -> Any:
    found = require("cryptography.x509").load_der_x509_certificate(certificate)
    # Parsed on first use, and refused then.
    _ = found.subject, found.issuer, found.extensions, found.not_valid_before_utc
    found.public_key()
    return found


def subject_of(certificate: Any, *, issuer: bool = False) -> str:
    """Whose a certificate is, or whose that is by which it was issued, as "CN=release"."""
    name = certificate.issuer if issuer else certificate.subject
    return str(name.rfc4514_string())


def _what_is_wrong(error: Exception) -> str:  # noqa: PLR0911 - one case for each kind
    """Of a file that is no signature, in words; what Python says of it helps nobody."""
    match error:
        case RecursionError():
            return "it is nested too deep"
        case KeyError():
            return f"it has no {error}"
        case IndexError():
            return "a list in it is empty"
        case TypeError() | AttributeError():
            return "something in it is of another type"
        case json.JSONDecodeError() | UnicodeDecodeError():
            return "it is no JSON"
        case binascii.Error():
            return "something in it is not base64"
        case _:
            return "a certificate in it cannot be read, or says too little"


def _text_of(name: Any) -> str:
    """A name in a certificate; of the kind "other", Sigstore's own, it is UTF-8 with a header."""
    return name.value.decode() if isinstance(name.value, bytes) else str(name.value)
