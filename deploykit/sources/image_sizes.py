"""Models that leave the height and width of their images open: which size stands for all others."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deploykit.core.errors import UsageError
from deploykit.core.serialization import profile_to_plain
from deploykit.core.sizes import IMAGE_AXES, IMAGE_DIMS, ShapeProfile, require_sizes
from deploykit.images.batching import sample_batches

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from deploykit.core.specs import Preprocessing, TensorSpec

    Size = tuple[int, int]


def preferred_size(name: str, image: TensorSpec, profile: ShapeProfile | None = None) -> Size:
    """Height and width that images of the model ``name`` are prepared for.

    They are the model's own, or where these are open the preferred ones of ``profile``.

    Raises:
        UsageError: one is open, and nothing says its size; or is fixed, and sizes are given for it;
            or both have one name, and other sizes are given for each.
    """
    if profile is None:
        require_known_sizes(name, image)
    else:
        require_sizes(name, image.shape, profile)
        _require_squares(name, image, profile)
    _, _, height, width = image.with_sizes((profile or ShapeProfile()).preferred)
    return height, width


def require_known_sizes(name: str, image: TensorSpec) -> None:
    """Refuse an open height or width where no option could say the size.

    Raises:
        UsageError: one is open.
    """
    if len(image.shape) == IMAGE_DIMS and any(
        isinstance(image.shape[axis], str) for axis in IMAGE_AXES
    ):
        raise UsageError(
            f"{name} takes images {image.shape_text}, and nothing here says their height and "
            "width\n"
            "export it with --height and --width, and give the bundle that this makes"
        )


def other_sizes(image: TensorSpec, profile: ShapeProfile) -> tuple[Size, ...]:
    """Heights and widths beside the preferred ones at which a graph has to be compared.

    They are the smallest, the largest, the two that are least like a square, and the preferred
    ones of further profiles. A model whose height and width have one name takes squares only.
    """
    small, _, large = (
        image.with_sizes(sizes)[2:]
        for sizes in (profile.smallest, profile.preferred, profile.largest)
    )
    corners = [small, large]
    if not _takes_squares_only(image):
        corners += [(small[0], large[1]), (large[0], small[1])]
    corners += [image.with_sizes(each.preferred)[2:] for each in profile.profiles]
    preferred = image.with_sizes(profile.preferred)[2:]
    return tuple((h, w) for h, w in dict.fromkeys(corners) if (h, w) != preferred)


def sample_other_sizes(
    sizes: tuple[Size, ...],
    preprocessing: Preprocessing,
    data: Path | None,
    batch: int,
    max_pixels: int | None = None,
) -> list[NDArray[np.float32]]:
    """A batch (N, C, H, W) of each size, of images that are scaled to exactly that.

    Raises:
        DataError: the images cannot be read.
    """
    return [
        sample_batches(replace(preprocessing, crop=size, resize=size), data, (batch,), max_pixels)[
            0
        ]
        for size in sizes
    ]


def _takes_squares_only(image: TensorSpec) -> bool:
    """In ONNX, dimensions of one name are of one size."""
    height, width = image.shape[2:]
    return isinstance(height, str) and height == width


def _require_squares(name: str, image: TensorSpec, profile: ShapeProfile) -> None:
    if _takes_squares_only(image) and profile.height != profile.width:
        raise UsageError(
            f"{name} calls its height and its width {image.shape[2]!r}: it takes squares only\n"
            f"--height {profile.height} and --width {profile.width} differ: give the same for both"
        )


def note_of_sizes(image: TensorSpec, profile: ShapeProfile) -> list[str]:
    """What the user must know of a graph with an open height or width; nothing of a fixed one."""
    recorded = recorded_sizes(image, profile)
    if not recorded:
        return []
    compared = (image.with_sizes(profile.preferred)[2:], *other_sizes(image, profile))
    sizes = ", ".join(f"{height} x {width}" for height, width in compared)
    return [f"open: {' and '.join(recorded)}; compared with the original at {sizes}"]


def recorded_sizes(image: TensorSpec, profile: ShapeProfile) -> dict[str, Any]:
    """What the manifest says of a model's open height and width; nothing where both are fixed."""
    plain = profile_to_plain(profile)
    return {
        label: plain[label]
        for axis, label in IMAGE_AXES.items()
        if isinstance(image.shape[axis], str)
    }
