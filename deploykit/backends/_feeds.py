"""What a runner is fed, compared with what its model takes, before native code sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from deploykit.specs import Array, TensorSpec


def check_feeds(model: str, feeds: Mapping[str, Array], inputs: Iterable[TensorSpec]) -> None:
    """Compare names, types and shapes; ``model`` is for the message.

    Raises:
        UsageError: an input is missing, unknown, or of another type or shape.
    """
    expected = {spec.name: spec for spec in inputs}
    if feeds.keys() != expected.keys():
        raise UsageError(f"{model} was fed {sorted(feeds)}, it takes {sorted(expected)}")
    for name, array in feeds.items():
        spec = expected[name]
        if array.dtype.name != spec.dtype or not _fits(array.shape, spec.shape):
            raise UsageError(
                f"input {name!r} of {model} was fed {array.dtype} {array.shape}, "
                f"it takes {spec.dtype} {spec.shape}"
            )


def _fits(got: tuple[int, ...], expected: tuple[int | str, ...]) -> bool:
    """Whether the sizes agree where ``expected`` is a number; a name stands for any size."""
    pairs = zip(got, expected, strict=False)
    return len(got) == len(expected) and all(isinstance(e, str) or g == e for g, e in pairs)
