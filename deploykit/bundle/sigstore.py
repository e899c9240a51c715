"""Signatures by an identity of Sigstore: no key to keep, but a network to sign and to verify.

Sigstore certifies for some minutes that somebody has an address or is a program of a CI, and
writes each signature into a public log. Its packages wait for minutes where nothing answers; so
one request with a short limit comes before.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING, Any, ClassVar, Final

from deploykit.bundle.signature import MOST_BYTES, Identity, Trust, exact_hashing
from deploykit.core.environment import require
from deploykit.core.errors import (
    BundleError,
    DeploykitError,
    SignatureError,
    UsageError,
    typed_first_line,
)
from deploykit.core.regular_files import open_regular

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from deploykit.bundle.signature import Signature

ROOT: Final = "https://tuf-repo-cdn.sigstore.dev"
"""Where Sigstore's package gets the keys that it trusts."""

WAIT_SECONDS: Final = 5

_OFFLINE: Final = (
    "keys and certificates work offline: deploykit sign BUNDLE --key KEY, then --trust PUBLIC_KEY"
)


@dataclass(frozen=True)
class SigstoreIdentity(Trust):
    """An identity whose signatures are believed, if ``issuer`` knew it when it signed.

    ``identity`` is an address of mail, or the URL of a CI's workflow. ``issuer`` is who logs people
    or workflows in, as "https://accounts.google.com" or
    "https://token.actions.githubusercontent.com".

    Raises:
        UsageError: no identity, or an issuer that is no address.
    """

    identity: str
    issuer: str

    signs_with: ClassVar[str] = "--sigstore"

    def __post_init__(self) -> None:
        if not self.identity or not self.issuer.startswith("https://"):  # empty is anybody's
            raise UsageError(
                f"identity {self.identity!r:.120} of issuer {self.issuer!r:.120} is nobody's; "
                "expected a name, and an issuer's https:// address\n"
                "for example: --identity me@example.org --issuer https://accounts.google.com"
            )

    @property
    def label(self) -> str:
        """The identity and who knows it, for messages."""
        return Identity((self.identity,), self.issuer).label

    def _require_method(self, signature: Signature) -> None:
        found = signature.identity
        if found is None:
            raise SignatureError(
                f"{signature.place} is by {signature.signer}, and cannot be compared with "
                f"{self.label}\ntrust what it was made with, or sign again: {signature.again}"
            )
        if self.identity not in found.names or self.issuer != found.issuer:
            raise SignatureError(
                f"{signature.place} is by {found.label}, trusted is {self.label}\n"
                "trust the identity that signed it, if you know whose it is; or sign what you "
                f"trust: {signature.again}"
            )

    def _prepare(self, config: Any, signature: Signature, place: Path) -> bytes:
        del place
        _require_network("verify")
        try:
            config.use_sigstore_verifier(identity=self.identity, oidc_issuer=self.issuer)
        except Exception as exc:  # each part of the package has its own kinds
            raise _failure("verify", exc) from exc
        return signature.content

    def _told(self, error: Exception) -> str:
        return f": {typed_first_line(error):.200}"


@dataclass(frozen=True)
class SigstoreSigner:
    """Whoever logs in with a browser, or whom the identity token in a file is of."""

    token: Path | None = None

    def ready(self) -> Callable[[Path, Path], None]:
        """What signs a folder with it.

        Raises:
            UsageError: the file holds no token that is valid now.
            MissingDependencyError: ``model-signing`` is not installed.
            BundleError: Sigstore does not answer.
        """
        signing = require("model_signing.signing")
        token = None if self.token is None else _read_token(self.token)
        _require_network("sign")
        config = signing.Config().set_hashing_config(exact_hashing())

        def sign(folder: Path, signature: Path) -> None:
            try:
                with redirect_stdout(sys.stderr):  # what Sigstore asks is no part of an answer
                    config.use_sigstore_signer(identity_token=token).sign(folder, signature)
            except Exception as exc:  # each part of the package has its own kinds
                raise _failure("sign", exc) from exc

        return sign


def _read_token(path: Path) -> str:
    advice = (
        "give a file with a token for the audience sigstore, as a CI has: --identity-token FILE"
    )
    try:
        with open_regular(path) as file:
            token = file.read(MOST_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError) as exc:
        said = (isinstance(exc, OSError) and exc.strerror) or "it is no text"
        raise UsageError(f"cannot read the identity token in {path}: {said}\n{advice}") from exc
    try:
        require("sigstore.oidc").IdentityToken(token)
    except Exception as exc:  # its own, and those of what it is made with
        raise UsageError(
            f"{path} holds no identity token that is valid now: "
            f"{typed_first_line(exc.__cause__ or exc):.200}\n{advice}"
        ) from exc
    return token


def _require_network(verb: str) -> None:
    require("model_signing")
    requests = require("requests")
    problems: list[Exception] = [TimeoutError(f"no answer within {WAIT_SECONDS} seconds")]

    def ask() -> None:
        try:
            requests.head(ROOT, timeout=WAIT_SECONDS)
        except requests.exceptions.SSLError:  # it answers; Sigstore's package may know the issuer
            problems.clear()
        except Exception as exc:
            problems.append(exc)
        else:
            problems.clear()

    # In a thread, because no limit of a request covers the resolution of a name.
    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(WAIT_SECONDS)
    for problem in problems[-1:]:
        raise _unreachable(verb, problem) from problem


def _failure(verb: str, error: Exception) -> DeploykitError:
    if isinstance(error, EOFError):  # it asked a terminal that is none
        return UsageError(
            f"cannot {verb}: Sigstore asks for a login, and there is neither browser nor terminal\n"
            "give a file with an identity token, as a CI has: --identity-token FILE"
        )
    if any(map(_is_of_network, _causes(error))):
        return _unreachable(verb, error)
    return BundleError(
        f"cannot {verb}: Sigstore failed: {_told(error)}\n"
        f"try again, or update it: pip install -U sigstore model-signing\n{_OFFLINE}"
    )


def _unreachable(verb: str, error: Exception) -> BundleError:
    first = typed_first_line(_causes(error)[-1])  # those after it tell of retries
    return BundleError(
        f"cannot {verb}: Sigstore cannot be reached: {first:.200}\n"
        f"an identity needs a network, to {ROOT} among others\n{_OFFLINE}"
    )


def _is_of_network(error: BaseException) -> bool:
    """Not a file's error, which has a name, and not a server's answer."""
    return (
        isinstance(error, OSError)
        and error.filename is None
        and getattr(error, "response", None) is None
    )


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what led to it, the first one last."""
    found: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and each not in found:
        found.append(each)
        each = each.__cause__ or each.__context__
    return found


def _told(error: BaseException) -> str:
    """What the package says, and what led to it: either may be the one that helps."""
    said = dict.fromkeys(typed_first_line(each) for each in (error, _causes(error)[-1]))
    return "; ".join(f"{each:.200}" for each in said)
