"""`deploykit sign`: a signature that says who stands for a bundle as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploykit.bundle.manifest import SIGNATURE
from deploykit.bundle.signature import sign_bundle

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.bundle.signature import Signer


@dataclass(frozen=True)
class SignReport:
    """The signature's file, whose it is, and of how many files beside the manifest.

    ``issuers`` are those whose certificates may be trusted in place of the signer's own.
    """

    bundle: str
    signature: str
    signed_by: str
    files: int
    issuers: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "bundle": self.bundle,
            "signature": self.signature,
            "signed_by": self.signed_by,
            "files": self.files,
            "issuers": list(self.issuers),
        }


def sign(folder: Path, signer: Signer) -> SignReport:
    """Compare every file with its hash, and sign the manifest that has these hashes.

    Raises:
        UsageError: the key or the identity token cannot be used.
        MissingDependencyError: model-signing is not installed.
        IntegrityError: a file is not as it was written.
        BundleError: no bundle there, or it cannot be written to; Sigstore does not sign.
    """
    bundle, made = sign_bundle(folder, signer)
    files, place = len(bundle.files.expected), str(folder / SIGNATURE)
    return SignReport(str(folder), place, made.signer, files, tuple(made.issuers))
