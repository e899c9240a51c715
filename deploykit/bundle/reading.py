"""One bundle from the first file that is read to the last, whoever exports over it meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from deploykit.bundle.files import stamp_at
from deploykit.bundle.manifest import MANIFEST, SIGNATURE, Bundle
from deploykit.core.errors import BundleError, DeploykitError, SignatureError
from deploykit.core.sharing import reading

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from deploykit.bundle.files import Stamp
    from deploykit.bundle.signature import Trust

Made = TypeVar("Made")

ATTEMPTS: Final = 20
"""How often a bundle is read that is replaced each time; where locks work the second one does."""


def read_bundle(folder: Path, use: Callable[[Bundle], Made], trust: Trust | None = None) -> Made:
    """What ``use`` makes of the bundle in ``folder``, all of it from one bundle.

    An export swaps the whole folder, and libraries open its files by their paths. So a lock asks
    writers to wait a moment, and afterwards each file that was compared is looked at again: where
    one is another by then, or where ``use`` failed on a folder that was replaced, ``use`` is called
    again with the new bundle. What it made before is closed if it has a ``close``. With ``trust``
    it is only called with what was signed: its manifest, and thereby the hash of each file.

    Raises:
        BundleError: no bundle there, or it is replaced each time.
        SignatureError: nobody whom ``trust`` believes signed the bundle as it is.
        DeploykitError: what ``use`` raises.
    """
    for _ in range(ATTEMPTS):
        with reading(folder):
            before = _signed_files(folder)
            try:
                bundle = Bundle.open(folder, trust)
            except SignatureError:
                if before != _signed_files(folder):
                    continue  # the signature of one bundle, the manifest of another
                raise
            try:
                made = use(bundle)
            except DeploykitError:
                if bundle.files.changed_since():
                    continue
                raise
            if not bundle.files.changed_since():
                return made
            _close(made)
    raise BundleError(
        f"{folder} was replaced {ATTEMPTS} times while it was read\n"
        "try again when nobody exports to it, or give each export a folder of its own"
    )


def read_bundles(folders: Sequence[Path], use: Callable[[Mapping[Path, Bundle]], Made]) -> Made:
    """As `read_bundle`, of several folders at once."""
    if not folders:
        return use({})
    first, *others = folders
    return read_bundle(
        first, lambda bundle: read_bundles(others, lambda more: use({first: bundle, **more}))
    )


def _signed_files(folder: Path) -> tuple[Stamp | None, Stamp | None]:
    return stamp_at(folder / MANIFEST), stamp_at(folder / SIGNATURE)


def _close(made: object) -> None:
    close = getattr(made, "close", None)
    if close is not None:
        close()
