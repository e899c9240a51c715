"""Side inputs: what a model takes beside images, with values for any batch.

A classifier may look at more than pixels: a patient's age, a mask, a second view. All that
prepares and batches images goes on as if there was nothing else: `WithSideInputs` adds the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self
from zlib import crc32

import numpy as np

from deploykit.core.artifacts import sha256_of_bytes
from deploykit.core.errors import DataError, ModelFileError, UsageError
from deploykit.core.npz import open_npz
from deploykit.core.specs import Closing, StepTimes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.core.specs import Array, Runner, TensorSpec

    Images = NDArray[np.float32]

NOISE: Final = "standard normal values"
"""Source of values that the user did not give: they serve to compare arithmetic, not for ranges."""

_ROWS: Final = 64
"""Rows of noise: more than the images of any one comparison."""

_TYPES: Final = frozenset({"float32", "float16", "int8", "uint8", "int32", "int64", "bool"})
"""Element types of inputs that engines take, by their names in numpy."""

_EXPECTED: Final = "expected an .npz with an array for each input beside the images, by its name"


@dataclass(frozen=True, eq=False)
class SideInputs:
    """Values of the side inputs by name; empty for a model that takes images alone.

    ``rows`` are arrays (M, ...). The content of an image selects one of the M rows, the same of
    every input, so that an image has the same values in every batch and for every form of the
    model. ``source`` says where they come from.
    """

    rows: Mapping[str, Array] = field(default_factory=dict)
    source: str = NOISE

    @classmethod
    def read(cls, path: Path, inputs: Sequence[TensorSpec], image: TensorSpec) -> Self:
        """The values in an ``.npz`` for all of ``inputs`` but ``image``; pickles are never read.

        The inputs are as `require_per_image` wants them.

        Raises:
            DataError: it cannot be read, or has not one fitting array for each input.
        """
        wanted = _beside(inputs, image)
        found = _read_arrays(path)
        if found.keys() != wanted.keys():
            raise DataError(
                f"{path.name} has {sorted(found)}, beside the images the model takes "
                f"{sorted(wanted)}\n{_EXPECTED}"
            )
        rows = {name: _fitting(path.name, found[name], spec) for name, spec in wanted.items()}
        if len({len(value) for value in rows.values()}) > 1:
            counts = ", ".join(f"{name}: {len(value)}" for name, value in rows.items())
            raise DataError(
                f"{path.name} has not as many rows for each input, {counts}\n"
                "expected what belongs to one image in the same row of all"
            )
        return cls(rows, path.name)

    @classmethod
    def noise(cls, inputs: Sequence[TensorSpec], image: TensorSpec) -> Self:
        """Standard normal values for all of ``inputs`` but ``image``, always the same.

        The inputs are as `require_per_image` wants them.

        Raises:
            UsageError: one is not float32: which values it takes, nobody can guess.
        """
        random = np.random.default_rng(0)
        rows: dict[str, Array] = {}
        for name, spec in _beside(inputs, image).items():
            if spec.dtype != "float32":
                raise UsageError(
                    f"input {name!r} beside the images is {spec.dtype} {spec.shape_text}: which "
                    "values it takes, nobody can guess\n"
                    "give some to the export: --side-inputs FILE.npz, an array by the input's name"
                )
            shape = (_ROWS, *_sizes_per_image(spec))
            rows[name] = random.standard_normal(shape).astype(np.float32)
        return cls(rows)

    @property
    def is_noise(self) -> bool:
        """True if there are values and they are noise."""
        return bool(self.rows) and self.source == NOISE

    @property
    def digest(self) -> str:
        """SHA-256 of all names, types, shapes and values."""
        parts = [
            f"{name} {value.dtype} {value.shape} {sha256_of_bytes(value.tobytes())}"
            for name, value in sorted(self.rows.items())
        ]
        return sha256_of_bytes("\n".join(parts).encode())

    def beside(self, images: NDArray[Any]) -> dict[str, Array]:
        """The values for a batch (N, C, H, W), or of bytes as the model takes them."""
        if not self.rows:
            return {}
        # crc32 and not hash(), which differs between processes.
        content = [crc32(image.astype(np.float32, copy=False).tobytes()) for image in images]
        return {
            name: value[[number % len(value) for number in content]]
            for name, value in self.rows.items()
        }

    def save(self, path: Path) -> None:
        """Write the ``.npz`` that `read` reads."""
        # Opened here: numpy would add a suffix to a name that has another one.
        with path.open("wb") as file:
            np.savez(file, **self.rows)  # type: ignore[arg-type]  # names, not numpy's own options

    def notes(self) -> list[str]:
        """Notes for the user; empty where the values are real or there are none."""
        if not self.is_noise:
            return []
        named = ", ".join(map(repr, self.rows))
        return [f"{named} beside the images: {NOISE} were taken; real ones: --side-inputs FILE.npz"]


class WithSideInputs(Closing):
    """A runner that is fed images alone, and adds the values that its model takes beside them."""

    def __init__(self, runner: Runner, side: SideInputs) -> None:
        self._runner = runner
        self._side = side

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs that the caller feeds; the images are the first."""
        return tuple(spec for spec in self._runner.inputs if spec.name not in self._side.rows)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Specs of the arrays that ``run`` returns."""
        return self._runner.outputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name for one batch."""
        return self._runner.run({**feeds, **self.beside(feeds)})

    def run_timed(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], StepTimes]:
        """As ``run``, with the duration of each step."""
        return self._runner.run_timed({**feeds, **self.beside(feeds)})

    def beside(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Values that are added to ``feeds``."""
        return self._side.beside(feeds[self.inputs[0].name])

    def close(self) -> None:
        """Close the runner below."""
        self._runner.close()


def with_side_inputs(runner: Runner, side: SideInputs) -> Runner:
    """Wrap ``runner`` to add the side inputs; ``runner`` itself for a model of images alone."""
    return WithSideInputs(runner, side) if side.rows else runner


def all_inputs(runner: Runner, images: Images) -> dict[str, Array]:
    """All inputs by name that a model gets when ``runner`` is given a batch (N, C, H, W)."""
    feeds: dict[str, Array] = {runner.inputs[0].name: images}
    return {**feeds, **runner.beside(feeds)} if isinstance(runner, WithSideInputs) else feeds


def _beside(inputs: Sequence[TensorSpec], image: TensorSpec) -> dict[str, TensorSpec]:
    return {spec.name: spec for spec in inputs if spec.name != image.name}


def require_per_image(inputs: Sequence[TensorSpec], image: TensorSpec) -> None:
    """Refuse inputs beside ``image`` that no engine takes, or without an entry for each image.

    Raises:
        ModelFileError: there are such; says what to do.
    """
    for spec in _beside(inputs, image).values():
        if spec.dtype not in _TYPES:
            raise ModelFileError(
                f"input {spec.name!r} beside the images is {spec.dtype}, which no engine takes\n"
                f"possible are {', '.join(sorted(_TYPES))}: export the model with one of them"
            )
        first, batch = spec.shape[:1], image.shape[0]
        if not first or not (isinstance(first[0], str) or first[0] == batch):
            raise ModelFileError(
                f"input {spec.name!r} {spec.shape_text} beside the images {image.shape_text} has "
                "no batch: it is the same for all images\nexport the model with it as a constant"
            )
        if any(isinstance(size, str) for size in spec.shape[1:]):
            raise ModelFileError(
                f"input {spec.name!r} {spec.shape_text} has open dimensions beside the batch\n"
                "export the model with these fixed"
            )


def _sizes_per_image(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(size for size in spec.shape[1:] if isinstance(size, int))


def _read_arrays(path: Path) -> dict[str, Array]:
    try:
        with open_npz(path) as archive:
            return dict(archive)
    except DataError:
        raise
    # zipfile, zlib and numpy's header parser each raise their own kinds on damaged bytes.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"cannot read {path}: {reason}\n{_EXPECTED}") from error


def _fitting(file: str, value: NDArray[Any], spec: TensorSpec) -> Array:
    """``value`` cast to the input's type."""
    sizes = _sizes_per_image(spec)
    if value.shape[1:] != sizes or not value.ndim or not len(value):
        raise DataError(
            f"{spec.name!r} of {file} is {value.dtype} {value.shape}\n"
            f"expected {spec.dtype} {('rows', *sizes)}"
        )
    wanted = np.dtype(spec.dtype)
    # Integers may become floats; floats do not become integers, nor numbers booleans.
    kinds = {"f": "fiu", "b": "b"}.get(wanted.kind, "iu")
    cast = value.astype(wanted) if value.dtype.kind in kinds else None
    if cast is None or (wanted.kind != "f" and not np.array_equal(cast, value)):
        raise DataError(
            f"{spec.name!r} of {file} is {value.dtype}, the model takes {spec.dtype}\n"
            "its values do not go into that without a loss"
        )
    if not np.isfinite(cast).all():
        raise DataError(f"{spec.name!r} of {file} has values that are NaN or infinite")
    return cast
