"""Golden sample of a bundle: one batch, and what the model gave for it at export."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import numpy as np

from deploykit.bundle.manifest import GOLDEN, SIDE_INPUTS
from deploykit.comparison.reference import Runners
from deploykit.core.errors import BundleError, ValidationError
from deploykit.core.npz import open_npz
from deploykit.core.precision import Precision
from deploykit.heads import head_of
from deploykit.heads.multiclass import MULTICLASS
from deploykit.heads.raw import comparable, raw_for
from deploykit.images.side_inputs import SideInputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.bundle.manifest import Bundle
    from deploykit.core.specs import Array
    from deploykit.heads import Figures, Head


BESIDE: Final = "beside images: "
"""Before the name of an input that takes something else, in the file."""
OTHER: Final = "output: "
"""Before the name of an output beside the first, in the file."""


_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Golden:
    """``batch`` (N, C, H, W), or bytes as the graph takes them, and the reference's ``outputs``.

    ``beside`` is what the model was fed beside the images, by name; ``head`` says what the outputs
    mean. ``others`` are the outputs beside the first that are compared too, by name: all of them
    for a head that judges all, for another one those that a conversion left as in FP32. Older
    bundles have none.
    """

    batch: Array
    outputs: NDArray[np.float32]
    beside: Mapping[str, Array] = field(default_factory=dict)
    head: Head = MULTICLASS
    others: Mapping[str, Array] = field(default_factory=dict)

    @classmethod
    def read(cls, bundle: Bundle) -> Self:
        """Verify and read the sample of ``bundle``.

        Raises:
            IntegrityError: the file is missing or not as it was written.
            BundleError: the bundle has none, or it cannot be read.
            UnknownNameError: its head comes from a package that is not installed.
        """
        if GOLDEN not in bundle.manifest.files:
            raise BundleError(f"{bundle.folder.name} has no {GOLDEN} to compare with")
        head, content = head_of(bundle.manifest.head), bundle.files.read(GOLDEN)
        try:
            with open_npz(bundle.folder / GOLDEN, content) as arrays:
                beside, others = (_marked(arrays, mark) for mark in (BESIDE, OTHER))
                batch, outputs = arrays["input"], arrays["logits"]
            _require_numbers({"input": batch, "logits": outputs, **beside, **others})
            return cls(batch, outputs, beside, head, others)
        # zipfile, zlib and numpy's header parser each raise their own kinds.
        except Exception as exc:
            raise BundleError(f"cannot read {bundle.folder / GOLDEN}: {exc}") from exc

    def feeds(self, images: str) -> dict[str, Array]:
        """What a runner is fed whose input ``images`` takes the batch."""
        return {images: self.batch, **self.beside}

    @property
    def of_images(self) -> Golden:
        """Without outputs that have no entry per image, which a filled-up batch changes."""
        count = len(self.batch)
        others = {name: each for name, each in self.others.items() if each.shape[:1] == (count,)}
        return replace(self, others=others)

    def pairs(self, found: Mapping[str, Array]) -> Iterator[Compared]:
        """Each of ``others`` beside what a model ``found``, and the head that judges the two.

        Raises:
            ValidationError: the model does not give one of them.
        """
        for name, wanted in self.others.items():
            if name not in found:
                raise ValidationError(
                    f"the golden sample has an output {name!r}, the model gives "
                    f"{', '.join(map(repr, found))}\nexport the bundle again"
                )
            yield Compared(name, comparable(found[name]), comparable(wanted), raw_for(wanted))

    def judge(
        self,
        outputs: NDArray[np.float32],
        limits: Precision,
        others: Mapping[str, Array] = _NOTHING,
    ) -> Figures:
        """Compare what a model gives for the batch, by the limits of a precision.

        ``outputs`` (N, ...) are the first output, ``others`` those beside it by name. Returns the
        figures of the first.

        Raises:
            ValidationError: one of them is beyond the limits, of another shape, or not there.
        """
        found = _judged(self.head.noun, outputs, self.outputs, self.head, limits)
        for name, got, wanted, head in self.pairs(others):
            _judged(f"values of output {name!r}", got, wanted, head, limits)
        return found


def floats_beside(bundle: Bundle) -> list[str]:
    """Names of the outputs beside the first whose values the sample of ``bundle`` has.

    Raises:
        BundleError: the sample cannot be read, see `Golden.read`.
    """
    others = Golden.read(bundle).others if GOLDEN in bundle.manifest.files else {}
    return [name for name, each in others.items() if each.dtype.kind == "f"]


def _require_numbers(arrays: Mapping[str, Array]) -> None:
    for name, each in arrays.items():
        if each.dtype.kind not in "biuf" or not (each.size or name == "logits"):
            raise ValueError(f"{name} is {each.dtype} {each.shape}, expected numbers")
    if not arrays["input"].ndim or not arrays["logits"].ndim:
        raise ValueError("input or logits is a single number, expected one for each image")
    images, logits = arrays["input"].dtype, arrays["logits"].dtype
    if images not in (np.float32, np.uint8) or logits.kind != "f":
        raise ValueError(
            f"input and logits are {images} and {logits}, expected float32, or uint8 images"
        )


class Compared(NamedTuple):
    """One output of a model and of the sample, each (N, ...) in FP32, and what judges them."""

    name: str
    got: NDArray[np.float32]
    wanted: NDArray[np.float32]
    head: Head


def _judged(
    noun: str,
    got: NDArray[np.float32],
    wanted: NDArray[np.float32],
    head: Head,
    limits: Precision,
) -> Figures:
    if got.shape != wanted.shape:
        raise ValidationError(
            f"the golden sample gives {noun} of shape {got.shape}, "
            f"at export they were {wanted.shape}"
        )
    found = head.compare(got, wanted)
    problems = head.problems_of(found, limits.facts.limits)
    if problems:
        raise ValidationError(
            f"the golden sample gives other {noun} than at export\n{'; '.join(problems[:2])}\n"
            "do not serve with it; deploykit check says more"
        )
    return found


def _marked(arrays: Mapping[str, Array], mark: str) -> dict[str, Array]:
    """The arrays whose names in the file begin with ``mark``, without it."""
    return {name.removeprefix(mark): arrays[name] for name in arrays if name.startswith(mark)}


def limits_for(precision: Precision, device: str) -> Precision:
    """The precision by whose limits a model on ``device`` is judged.

    Those of FP32 hold on CPUs only, see its facts.
    """
    other = None if device == "cpu" else precision.facts.gpu_limits_of
    return precision if other is None else Precision(other)


GOLDEN_BATCH: Final = 2


def write_golden(
    folder: Path,
    batches: list[NDArray[np.float32]],
    outputs: list[NDArray[np.float32]],
    side: SideInputs,
    others_of: Callable[[NDArray[np.float32]], Mapping[str, Array]],
) -> None:
    """Keep one batch and what the reference made of it, for `Classifier.self_test`.

    ``others_of`` gives for that batch the outputs beside the first that are to be compared, by
    name; an empty one has nothing to compare. All that is known of what the model takes beside
    images is kept too, for later commands.
    """
    # Two images where possible: enough to show a frozen batch, small enough to check in no time.
    distance = [abs(len(batch) - GOLDEN_BATCH) for batch in batches]
    at = distance.index(min(distance))
    beside = {f"{BESIDE}{name}": value for name, value in side.beside(batches[at]).items()}
    found = others_of(batches[at])
    others = {f"{OTHER}{name}": value for name, value in found.items() if value.size}
    np.savez(folder / GOLDEN, input=batches[at], logits=outputs[at], **beside, **others)  # type: ignore[arg-type]  # names
    if side.rows:
        side.save(folder / SIDE_INPUTS)


def runners_of_bundle(bundle: Bundle) -> Runners:
    """Runners that feed a model the side inputs that its bundle keeps.

    Raises:
        IntegrityError: they are not as they were written.
    """
    if SIDE_INPUTS not in bundle.manifest.files:
        return Runners()
    bundle.require_unchanged(SIDE_INPUTS)
    inputs = bundle.manifest.onnx.inputs
    found = SideInputs.read(bundle.folder / SIDE_INPUTS, inputs, inputs[0])
    return Runners(replace(found, source=str(bundle.manifest.model["side_inputs"])))
