"""Early checks of a call: what it alone shows to be wrong, before torch takes its seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.core.errors import DataError
from deploykit.images import read_class_names, require_images_at
from deploykit.sources.kinds import kind_for
from deploykit.sources.state_dict import IMAGENET, require_weights_file, split_entry

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def require_call(
    targets: Iterable[str],
    *,
    weights: str | None = None,
    images: Iterable[Path | None] = (),
    labels: Path | None = None,
    files: Iterable[Path | None] = (),
) -> None:
    """Refuse targets and files that are not there, and names that nobody knows.

    ``images`` are paths of images and ``files`` other paths that are read, of which some may not
    have been given. What is there is opened later, but for the names of the classes.

    Raises:
        DeploykitError: as the step that needs it would say.
    """
    kinds = {target: kind_for(target) for target in targets}
    for target, kind in kinds.items():
        kind.require(target)
    for path in images:
        if path is not None:
            require_images_at(path)
    for path in files:
        if path is not None and not path.exists():
            raise DataError(f"there is no {path}")
    if labels is not None:
        read_class_names(labels)
    # A graph refuses weights of any kind, which is the better answer.
    takes_weights = not any(kind.is_graph for kind in kinds.values())
    if weights is not None and weights != IMAGENET and takes_weights:
        require_weights_file(split_entry(weights)[0])
