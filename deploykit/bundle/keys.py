"""Signatures by keys, and by certificates of keys: both work without a network."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deploykit.bundle.signature import (
    DIGITS,
    MOST_BYTES,
    Signature,
    Trust,
    exact_hashing,
    subject_of,
)
from deploykit.core.artifacts import sha256_of_bytes
from deploykit.core.environment import require
from deploykit.core.errors import SignatureError, UsageError
from deploykit.core.regular_files import open_regular

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NEW_PAIR: Final = (
    "make a pair: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem && "
    "openssl pkey -in key.pem -pubout -out key.pub"
)
_ASK: Final = (
    "ask whoever signs for the public key, which they make of theirs: openssl pkey -in key.pem "
    "-pubout -out key.pub"
)
_ISSUE: Final = (
    "have one issued for signing: KeyUsage digitalSignature, and ExtendedKeyUsage codeSigning if "
    "any; docs/security.md shows how"
)
CURVES: Final = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
"""Those that ``model-signing`` takes, by the names that SEC 2 and NIST give them."""

_EXPECTED_KEY: Final = f"expected one on {', '.join(CURVES.values())} ({', '.join(CURVES)})"

_LABEL: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----")
_PUBLIC: Final = "PUBLIC KEY"
_CERTIFICATE: Final = "CERTIFICATE"


@dataclass(frozen=True)
class _Wanted:
    """What a file should hold, who says so, and what to do where it does not."""

    what: str
    named: str
    remedy: str


_TRUSTED: Final = _Wanted("public key", "which is to be trusted", _ASK)
_KEY: Final = _Wanted("private key", "which --key names", NEW_PAIR)
_OF_KEY: Final = _Wanted("certificate", "which --certificate names", _ISSUE)
_BETWEEN: Final = _Wanted(
    "certificate", "which --chain names", "give that of whoever issued --certificate, in PEM"
)


@dataclass(frozen=True)
class KeyTrust(Trust):
    """A public key, or certificates of those who issue others, whose signatures are believed.

    ``key`` is the sha256 by which signatures name a key; ``None`` for certificates. ``content`` is
    that of the file, so that it is read once.
    """

    path: Path
    key: str | None
    content: bytes = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> KeyTrust:
        """The public key, or the certificates, in a PEM file.

        Raises:
            UsageError: the file is missing or holds something else.
            MissingDependencyError: ``model-signing`` is not installed.
        """
        content, labels = _read_pem(path, _TRUSTED)
        if any(label.endswith("PRIVATE KEY") for label in labels):
            raise UsageError(
                f"{path} is a private key, which signs and is kept secret\n"
                f"give the public one of the pair: openssl pkey -in {path} -pubout -out key.pub"
            )
        if not {_PUBLIC, _CERTIFICATE} & {*labels}:
            raise _no_key(path, replace(_TRUSTED, what="public key or certificate"), labels)
        require("model_signing")
        if _CERTIFICATE in labels:
            _certificates(path, content, _TRUSTED)
            return cls(path, None, content)
        try:
            key = _serialization().load_pem_public_key(content)
        except Exception as exc:  # of several kinds, by what is wrong with it
            raise _unreadable(path, _TRUSTED) from exc
        _require_curve(path, key, _TRUSTED)
        return cls(path, _id_of(key), content)

    @property
    def label(self) -> str:
        """The key or the certificates, for messages."""
        if self.key is None:
            return f"the certificates in {self.path}"
        return f"the key {self.key[:DIGITS]} in {self.path}"

    def _prepare(self, config: Any, signature: Signature, place: Path) -> bytes:
        content, public = signature.content, self.content
        if self.key is None:
            # The chain is judged here, because model-signing takes a root alone for trusted, and
            # says of any refusal the same. The key of the certificate then is its to verify with.
            key = self._believed(signature).public_key()
            content, public = signature.by_key(_id_of(key)), _pem_of(key)
        (place / "key.pub").write_bytes(public)
        config.use_elliptic_key_verifier(public_key=place / "key.pub")
        return content

    def _believed(self, signature: Signature) -> Any:
        """The certificate that made a signature, if one that is trusted issued it.

        Raises:
            SignatureError: it may not sign, or nobody who is trusted issued it.
        """
        leaf, *between = signature.certificates
        trusted = _certificates(self.path, self.content, _TRUSTED)
        made = f"{signature.place} is by {signature.signer}"
        if why := _why_not_signing(leaf):
            raise SignatureError(
                f"{made}, which is not for signing: {why}\n"
                f"get a bundle that is signed with one that is, or sign it: {signature.again}"
            )
        broken = _why_not_issued(leaf, between, trusted)
        if broken is None:
            return leaf
        issuer = f"{subject_of(leaf, issuer=True)!r:.120}"
        if not broken:
            raise SignatureError(
                f"{made}, issued by {issuer}: none of {self.label} issued it\n"
                "trust the issuer's certificate, if you know whose it is, or one above it that "
                f"was signed in with --chain; or sign what you trust: {signature.again}"
            )
        raise SignatureError(
            f"{made}, issued by {issuer}, and cannot be believed: {broken}\n"
            f"get a bundle with a whole chain, or sign what you trust: {signature.again}"
        )

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
        UsageError: it is neither, or the file is missing or holds something else.
        MissingDependencyError: ``model-signing`` is not installed.
    """
    if isinstance(given, Trust):
        return given
    if isinstance(given, str) and "-----BEGIN" in given:
        raise UsageError(
            "trust is the text of a key\nexpected the path of a file that holds it: write it to one"
        )
    path: Any = given  # a program may give anything
    if isinstance(path, str | os.PathLike) and isinstance(os.fspath(path), str):
        return KeyTrust.read(Path(path))
    raise UsageError(
        f"trust={given!r:.80} is nobody\n"
        "expected the path of a public key or of certificates in PEM, or a "
        "deploykit.SigstoreIdentity; without trust no signature is asked for"
    )


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
            UsageError: a file is missing or holds something else, the password is wrong, or nobody
                would believe the certificate.
            MissingDependencyError: ``model-signing`` is not installed.
        """
        if self.chain and self.certificate is None:
            raise UsageError(
                "--chain has certificates of those who issued another\n"
                "give the one of the key too: --certificate CERT.pem"
            )
        content, labels = _read_pem(self.path, _KEY)
        if not any(label.endswith("PRIVATE KEY") for label in labels):
            raise _no_key(self.path, _KEY, labels)
        signing = require("model_signing.signing")
        key = self._opened(content)
        _require_curve(self.path, key, _KEY)
        config = signing.Config().set_hashing_config(exact_hashing())
        if self.certificate is None:
            config.use_elliptic_key_signer(private_key=self.path, password=self.password)
        else:
            self._use_certificate(config, key, self.certificate)
        sign: Callable[[Path, Path], None] = config.sign
        return sign

    def _opened(self, content: bytes) -> Any:
        try:
            return _serialization().load_pem_private_key(content, self.password)
        except TypeError as exc:  # of one that is encrypted, or not
            if self.password is None:
                raise UsageError(
                    f"{self.path} is encrypted\n"
                    "give a file with its password in the first line: --password-file FILE"
                ) from exc
            raise UsageError(
                f"{self.path} is not encrypted, and has no password\nleave out --password-file"
            ) from exc
        except Exception as exc:  # of several kinds, by what is wrong with it
            if self.password is None:
                raise _unreadable(self.path, _KEY) from exc
            raise UsageError(
                f"the password does not open {self.path}, or that is damaged\n"
                "expected the password in the first line of the file that --password-file names"
            ) from exc

    def _use_certificate(self, config: Any, key: Any, path: Path) -> None:
        if self.password is not None:  # model-signing has no place for it
            raise UsageError(
                f"{self.path} is encrypted, which does not go with --certificate\n"
                "give the key as it is: openssl pkey -in KEY -out plain.pem"
            )
        own = _read_certificates(path, _OF_KEY)[0]
        if own.public_key() != key.public_key():
            raise UsageError(
                f"{path} is the certificate of another key than {self.path}\n"
                "give the one of this key: --certificate CERT.pem"
            )
        if why := _why_not_signing(own):
            raise UsageError(f"nobody would believe what {path} signs: {why}\n{_ISSUE}")
        chain = [each for file in self.chain for each in _read_certificates(file, _BETWEEN)]
        _require_chain(own, [each for each in chain if each != own])
        config.use_certificate_signer(
            private_key=self.path,
            signing_certificate=path,
            certificate_chain=self.chain or [path],  # which may not be empty
        )


_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
"""Of UTF-8: editors write it, nobody types it."""


def read_password(path: Path) -> bytes:
    """The first line of a file, without a byte order mark.

    Raises:
        UsageError: it cannot be read, or is empty.
    """
    advice = "give a file with the password of the key in its first line: --password-file FILE"
    try:
        with open_regular(path) as file:
            line = file.readline(MOST_BYTES)
    except OSError as exc:
        raise UsageError(f"cannot read the password in {path}: {exc.strerror}\n{advice}") from exc
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UsageError(f"{path} is UTF-16, by its first bytes; expected UTF-8\n{advice}")
    password = line.removeprefix(_BYTE_ORDER_MARK).rstrip(b"\r\n")
    if not password:
        raise UsageError(f"the first line of {path} is empty\n{advice}")
    return password


def _read_pem(path: Path, wanted: _Wanted) -> tuple[bytes, list[str]]:
    """A file's content, and the kinds of its entries."""
    if path == Path():
        raise UsageError(
            f"the {wanted.what}, {wanted.named}, is the current folder, as an empty name is; "
            f"expected a file\n{wanted.remedy}"
        )
    try:
        with open_regular(path) as file:
            content = file.read(MOST_BYTES)
    except FileNotFoundError as exc:
        message = f"there is no {wanted.what} {path}, {wanted.named}\n{wanted.remedy}"
        raise UsageError(message) from exc
    except (OSError, ValueError) as exc:  # ValueError: a name with a NUL
        said = (isinstance(exc, OSError) and exc.strerror) or "it is no name of a file"
        raise UsageError(
            f"cannot read the {wanted.what} {path}, {wanted.named}: {said}\n{wanted.remedy}"
        ) from exc
    return content, [label.decode() for label in _LABEL.findall(content)]


def _no_key(path: Path, wanted: _Wanted, labels: list[str]) -> UsageError:
    found, remedy = "is no PEM file", wanted.remedy
    if labels:
        found = f"holds {', '.join(dict.fromkeys(labels)):.80}"
    else:
        start = path.read_bytes()[:MOST_BYTES]
        if start.startswith(b"\x30"):  # a sequence of ASN.1
            found, remedy = "is in DER", f"convert it: {_from_der(path, start, wanted)}"
        elif start.startswith((b"ssh-", b"ecdsa-sha2-")):
            found = "is a public key of ssh"
            if wanted.what != _KEY.what:
                remedy = f"convert it: ssh-keygen -e -m PKCS8 -f {path} > key.pub"
    return UsageError(f"{path} {found}; expected a {wanted.what}, in PEM\n{remedy}")


def _from_der(path: Path, content: bytes, wanted: _Wanted) -> str:
    if wanted.what == _KEY.what:
        return f"openssl pkey -inform DER -in {path} -out key.pem"
    try:
        require("cryptography.x509").load_der_x509_certificate(content)
    except ValueError:
        return f"openssl pkey -pubin -inform DER -in {path} -out key.pub"
    return f"openssl x509 -inform DER -in {path} -out cert.pem"


def _unreadable(path: Path, wanted: _Wanted) -> UsageError:
    return UsageError(
        f"cannot use {path}: the {wanted.what} in it is damaged, or of an unknown kind\n"
        f"give another; or {wanted.remedy}"
    )


def _require_curve(path: Path, key: Any, wanted: _Wanted) -> None:
    if found := _wrong_kind(key):
        raise UsageError(f"the key {path} is {found}; {_EXPECTED_KEY}\n{wanted.remedy}")


def _wrong_kind(key: Any) -> str:
    """What a key is that cannot sign here; empty of one that can."""
    curve = getattr(getattr(key, "curve", None), "name", None)
    if curve is not None:
        return "" if curve in CURVES else f"on the curve {curve}"
    # Classes of cryptography are called RSAPublicKey, Ed25519PrivateKey ...
    return f"of the kind {re.sub('(Public|Private)Key$', '', type(key).__name__).strip('_')}"


def _read_certificates(path: Path, wanted: _Wanted) -> list[Any]:
    content, labels = _read_pem(path, wanted)
    if _CERTIFICATE not in labels:
        raise _no_key(path, wanted, labels)
    return _certificates(path, content, wanted)


def _certificates(path: Path, content: bytes, wanted: _Wanted) -> list[Any]:
    try:
        found: list[Any] = require("cryptography.x509").load_pem_x509_certificates(content)
        for each in found:
            _ = each.extensions, each.subject, each.issuer  # which are parsed on first use
    except Exception as exc:  # of several kinds, by what is wrong with it
        raise _unreadable(path, replace(wanted, what=_OF_KEY.what)) from exc
    return found


def _why_not_signing(certificate: Any) -> str:
    """Why a certificate is not for signing files (RFC 5280, 4.2.1.3 and 4.2.1.12), or nothing."""
    x509 = require("cryptography.x509")
    if kind := _wrong_kind(certificate.public_key()):
        return f"its key is {kind}; {_EXPECTED_KEY}"
    found = {type(each.value): each.value for each in certificate.extensions}
    usage, extended = found.get(x509.KeyUsage), found.get(x509.ExtendedKeyUsage)
    purposes = x509.oid.ExtendedKeyUsageOID
    signs_code = extended is not None and purposes.CODE_SIGNING in extended
    if not signs_code and (usage is None or not usage.digital_signature):
        return "it has neither KeyUsage digitalSignature nor ExtendedKeyUsage codeSigning"
    # Web authorities issue such to whoever has a domain.
    if extended is not None and not signs_code and purposes.ANY_EXTENDED_KEY_USAGE not in extended:
        return "its ExtendedKeyUsage is for something else and not for codeSigning"
    return ""


_NO_ISSUER: Final = frozenset({2, 7, 18, 19, 20, 21, 27})
"""Codes of OpenSSL's X509_V_ERR of chains that end before anything that is trusted.

7 is of a signature by another key of the trusted one's name.
"""


def _why_not_issued(leaf: Any, between: Sequence[Any], trusted: Sequence[Any]) -> str | None:
    """Why a chain does not hold; ``None`` where it does, empty where it leads to nobody trusted.

    As ``model-signing`` does, it looks at the time when ``leaf`` began to be valid. Other than
    there, anything that is trusted ends a chain, not only what issued itself.
    """
    crypto = require("OpenSSL.crypto")
    openssl = crypto.X509.from_cryptography
    store = crypto.X509Store()
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    store.set_time(leaf.not_valid_before_utc)
    try:
        for each in trusted:
            store.add_cert(openssl(each))
        context = crypto.X509StoreContext(store, openssl(leaf), [openssl(each) for each in between])
        context.verify_certificate()
    except crypto.Error:  # cryptography takes some that OpenSSL does not
        return "a certificate of the chain is damaged"
    except crypto.X509StoreContextError as exc:
        code, _, said = exc.errors
        if code in _NO_ISSUER:
            return ""
        return f"{subject_of(exc.certificate.to_cryptography())!r:.120}: {said}"
    return None


def _require_chain(own: Any, chain: Sequence[Any]) -> None:
    """Refuse certificates that did not issue one another up from ``own``, or may not have."""
    path, left = [own], list(chain)
    while left:
        above = next((each for each in left if _issued(path[-1], each)), None)
        if above is None:
            raise UsageError(
                f"{subject_of(left[0])!r:.120} in --chain issued neither {subject_of(own)!r:.120} "
                "nor another certificate of the chain\n"
                "give the certificates between that one and a trusted one: --chain FILE.pem"
            )
        left.remove(above)
        path.append(above)
    if len(path) > 1 and (why := _why_not_issued(own, path[1:-1], path[-1:])):
        raise UsageError(
            f"nobody would believe the chain of {subject_of(own)!r:.120}: {why}\n"
            "give certificates of authorities (basicConstraints CA:TRUE, keyCertSign): --chain "
            "FILE.pem"
        )


def _issued(certificate: Any, above: Any) -> bool:
    try:
        certificate.verify_directly_issued_by(above)
    # By these it says that the names, the kinds of key or the signature do not fit.
    except (ValueError, TypeError, require("cryptography.exceptions").InvalidSignature):
        return False
    return True


def _id_of(key: Any) -> str:
    """The sha256 by which ``model-signing`` names a public key: of its PEM form."""
    return sha256_of_bytes(_pem_of(key))


def _pem_of(key: Any) -> bytes:
    serialization = _serialization()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    pem: bytes = key.public_bytes(serialization.Encoding.PEM, form)
    return pem


def _serialization() -> Any:
    return require("cryptography.hazmat.primitives.serialization")
