"""One bundle from the first file that is read to the last, whoever exports over it meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from deploykit.bundle.manifest import Bundle
from deploykit.core.errors import BundleError, DeploykitError
from deploykit.core.sharing import reading

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

Made = TypeVar("Made")

ATTEMPTS: Final = 20
"""How often a bundle is read that is replaced each time; where locks work the second one does."""


def read_bundle(folder: Path, use: Callable[[Bundle], Made]) -> Made:
    """What ``use`` makes of the bundle in ``folder``, all of it from one bundle.

    An export swaps the whole folder, and libraries open its files by their paths. So a lock asks
    writers to wait a moment, and afterwards each file that was compared is looked at again: where
    one is another by then, or where ``use`` failed on a folder that was replaced, ``use`` is called
    again with the new bundle. What it made before is closed if it has a ``close``.

    Raises:
        BundleError: no bundle there, or it is replaced each time.
        DeploykitError: what ``use`` raises.
    """
    for _ in range(ATTEMPTS):
        with reading(folder):
            bundle = Bundle.open(folder)
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


def _close(made: object) -> None:
    close = getattr(made, "close", None)
    if close is not None:
        close()
