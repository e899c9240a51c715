"""`deploykit verify`: whether somebody trusted signed a bundle as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploykit.bundle.keys import trust_of
from deploykit.bundle.manifest import MANIFEST, SIGNATURE
from deploykit.bundle.reading import read_bundle
from deploykit.core.errors import IntegrityError

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.bundle.manifest import Bundle
    from deploykit.bundle.signature import Trust


@dataclass(frozen=True)
class VerifyReport:
    """What is wrong with a signed bundle, and what lies in its folder that nobody signed."""

    bundle: str
    trusted: str
    problems: tuple[str, ...]
    signed_by: str | None = None
    unsigned: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the signature is trusted and every file is the one that was signed."""
        return not self.problems

    @property
    def remedy(self) -> str:
        """What to do about files that are not those that were signed."""
        if self.ok or self.signed_by is None:  # other problems say it themselves
            return ""
        return "copy the bundle again from whoever signed it; or export it again, and sign that"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "bundle": self.bundle,
            "ok": self.ok,
            "problems": list(self.problems),
            "remedy": self.remedy,
            "trusted": self.trusted,
            "signed_by": self.signed_by,
            "unsigned": list(self.unsigned),
        }


def verify(folder: Path, trust: Path | Trust) -> VerifyReport:
    """Verify the signature, then the hash of every file; nothing is run or deserialised.

    ``trust`` is a public key, or certificates, in a PEM file; or an identity of Sigstore.

    Raises:
        BundleError: ``folder`` is no bundle at all; Sigstore does not answer.
        UsageError: ``trust`` is no key.
        MissingDependencyError: model-signing is not installed.
    """
    trusted = trust_of(trust)

    def compare(bundle: Bundle) -> VerifyReport:
        problems = tuple(bundle.changed_files())
        left = _unsigned(bundle)
        return VerifyReport(str(folder), trusted.label, problems, bundle.signed_by, left)

    try:
        return read_bundle(folder, compare, trusted)
    except IntegrityError as exc:
        return VerifyReport(str(folder), trusted.label, (str(exc),))


def _unsigned(bundle: Bundle) -> tuple[str, ...]:
    signed = {MANIFEST, SIGNATURE, *bundle.files.expected}
    return tuple(sorted({path.name for path in bundle.folder.iterdir()} - signed))
