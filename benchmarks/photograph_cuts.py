"""Random square cuts of photographs, as images for `transformer_int8`: to calibrate, and two tests.

    python -m benchmarks.photograph_cuts FOLDER

FOLDER gets ``calib`` (48 cuts of deploykit's eight sample photographs), ``same`` (16 other cuts of
these) and ``other`` (16 cuts of the two photographs that come with scikit-learn, whose subjects no
calibration saw), and ``more`` (16 others of these two). The same numbers are drawn each time.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image

import deploykit

if TYPE_CHECKING:
    from collections.abc import Sequence

SIDE: Final = 224
SMALLEST: Final = 180
"""Side of a cut in the photograph's own pixels; the photographs have 300 and more."""


def cut(photographs: Sequence[Path], count: int, folder: Path, random: np.random.Generator) -> None:
    """Write ``count`` cuts, of each photograph in turn."""
    folder.mkdir(parents=True)
    for number in range(count):
        with Image.open(photographs[number % len(photographs)]) as opened:
            image = opened.convert("RGB")
        width, height = image.size
        side = int(random.integers(SMALLEST, min(width, height) + 1))
        left = int(random.integers(0, width - side + 1))
        top = int(random.integers(0, height - side + 1))
        image = image.crop((left, top, left + side, top + side))
        image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        if random.random() < 0.5:  # noqa: PLR2004
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image.save(folder / f"{number:03d}.png")


def main() -> None:
    import sklearn

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    samples = sorted((Path(deploykit.__file__).parent / "samples").glob("*.jpg"))
    others = Path(sklearn.__file__).parent / "datasets" / "images"
    random = np.random.default_rng(0)
    cut(samples, 48, folder / "calib", random)
    cut(samples, 16, folder / "same", random)
    unseen = [others / "china.jpg", others / "flower.jpg"]
    cut(unseen, 16, folder / "other", random)
    cut(unseen, 16, folder / "more", np.random.default_rng(1))


if __name__ == "__main__":
    main()
