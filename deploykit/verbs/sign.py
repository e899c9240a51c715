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
    """The signature's file, whose it is, and of how many files beside the manifest."""

    bundle: str
    signature: str
    signed_by: str
    files: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "bundle": self.bundle,
            "signature": self.signature,
            "signed_by": self.signed_by,
            "files": self.files,
        }


def sign(folder: Path, signer: Signer) -> SignReport:
    """Compare every file with its hash, and sign the manifest that has these hashes.

    Raises:
        UsageError: the key or the identity token cannot be used.
        MissingDependencyError: model-signing is not installed.
        IntegrityError: a file is not as it was written.
        BundleError: no bundle there, or it cannot be written to; Sigstore does not sign.
    """
    bundle, signed_by = sign_bundle(folder, signer)
    files = len(bundle.files.expected)
    return SignReport(str(folder), str(folder / SIGNATURE), signed_by, files)
