"""Golden sample of a bundle: one batch, and what the model gave for it at export."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from deploykit.bundle.manifest import GOLDEN, SIDE_INPUTS
from deploykit.comparison.reference import Runners
from deploykit.core.errors import BundleError, ValidationError
from deploykit.core.precision import Precision
from deploykit.heads import head_of
from deploykit.heads.multiclass import MULTICLASS
from deploykit.images.side_inputs import SideInputs

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.bundle.manifest import Bundle
    from deploykit.core.specs import Array
    from deploykit.heads import Figures, Head


BESIDE: Final = "beside images: "
"""Before the name of an input that takes something else, in the file."""


@dataclass(frozen=True, eq=False)
class Golden:
    """``batch`` (N, C, H, W) and the reference's ``outputs`` (N, ...).

    ``beside`` is what the model was fed beside the images, by name; ``head`` says what the outputs
    mean.
    """

    batch: NDArray[np.float32]
    outputs: NDArray[np.float32]
    beside: Mapping[str, Array] = field(default_factory=dict)
    head: Head = MULTICLASS

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
        bundle.require_unchanged(GOLDEN)
        head = head_of(bundle.manifest.head)
        try:
            # Opened here, because numpy leaves a damaged file open.
            with (
                (bundle.folder / GOLDEN).open("rb") as file,
                np.load(file, allow_pickle=False) as arrays,
            ):
                names = [name for name in arrays if name.startswith(BESIDE)]
                beside = {name.removeprefix(BESIDE): arrays[name] for name in names}
                return cls(arrays["input"], arrays["logits"], beside, head)
        # zipfile, zlib and numpy's header parser each raise their own kinds.
        except Exception as exc:
            raise BundleError(f"cannot read {bundle.folder / GOLDEN}: {exc}") from exc

    def feeds(self, images: str) -> dict[str, Array]:
        """What a runner is fed whose input ``images`` takes the batch."""
        return {images: self.batch, **self.beside}

    def judge(self, outputs: NDArray[np.float32], limits: Precision) -> Figures:
        """Compare what a model gives for the batch, by the limits of a precision.

        Raises:
            ValidationError: it is beyond them, or of another shape.
        """
        noun = self.head.noun
        if outputs.shape != self.outputs.shape:
            raise ValidationError(
                f"the golden sample gives {noun} of shape {outputs.shape}, "
                f"at export they were {self.outputs.shape}"
            )
        found = self.head.compare(outputs, self.outputs)
        problems = self.head.problems_of(found, limits.facts.limits)
        if problems:
            raise ValidationError(
                f"the golden sample gives other {noun} than at export\n{'; '.join(problems[:2])}\n"
                "do not serve with it; deploykit check says more"
            )
        return found


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
) -> None:
    """Keep one batch and what the reference made of it, for `Classifier.self_test`.

    All that is known of what the model takes beside images is kept too, for later commands.
    """
    # Two images where possible: enough to show a frozen batch, small enough to check in no time.
    distance = [abs(len(batch) - GOLDEN_BATCH) for batch in batches]
    at = distance.index(min(distance))
    beside = {f"{BESIDE}{name}": value for name, value in side.beside(batches[at]).items()}
    np.savez(folder / GOLDEN, input=batches[at], logits=outputs[at], **beside)  # type: ignore[arg-type]  # names
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
