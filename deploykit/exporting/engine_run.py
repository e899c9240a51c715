"""First run of a new engine, on the GPU that it is for, before a manifest names it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from deploykit.backends import EngineOptions, engine_fits
from deploykit.backends._registry import graph_judge
from deploykit.bundle.golden import limits_for, runners_of_bundle
from deploykit.bundle.manifest import REFERENCE
from deploykit.comparison.validation import outputs_of, validate
from deploykit.core.errors import EngineIncompatibleError, MissingDependencyError
from deploykit.core.gpu_choice import ENGINE_DEVICE
from deploykit.core.sizes import BATCH_AXIS, IMAGE_AXES
from deploykit.heads import head_of
from deploykit.images.batching import batch_sizes, sample_batches
from deploykit.images.side_inputs import SideInputs, with_side_inputs
from deploykit.runtime.choice import misfit_of_driver
from deploykit.runtime.inputs import AnyBatchRunner, BatchLimits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.backends import Compiler
    from deploykit.bundle.manifest import Bundle
    from deploykit.comparison.validation import ValidationReport
    from deploykit.core.artifacts import EngineRecord
    from deploykit.core.precision import Precision
    from deploykit.core.progress import Journal
    from deploykit.core.sizes import ShapeProfile
    from deploykit.heads import Head
    from deploykit.runtime.choice import Machine

    Batches = list[NDArray[np.float32]]


@dataclass(frozen=True)
class Expected:
    """What an engine must give: batches (N, C, H, W), and the outputs (N, ...) that belong to them.

    ``made_by`` made the outputs; ``side`` is what the model takes beside images.
    """

    batches: Batches
    outputs: Batches
    made_by: str
    precision: Precision
    head: Head
    side: SideInputs

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> Expected:
        """By the FP32 graph that the bundle keeps; without one, by its own graph on the CPU.

        The images are the photographs that come with deploykit, as its preprocessing makes them.
        """
        manifest, runners = bundle.manifest, runners_of_bundle(bundle)
        sizes = batch_sizes(manifest.onnx.inputs[0].fixed_batch)
        batches = sample_batches(manifest.preprocessing, None, sizes)
        has_reference = REFERENCE in manifest.files and (bundle.folder / REFERENCE).is_file()
        if has_reference:
            name, opened = REFERENCE, runners.open(bundle.folder / REFERENCE)
        else:
            graph = bundle.on_cpu(fast=False)
            name = graph.name
            judge = graph_judge().open_artifact(graph.artifact)
            opened = with_side_inputs(judge, runners.side)
        with opened as runner:
            outputs = outputs_of(runner, batches)
        head = head_of(manifest.head)
        return cls(batches, outputs, name, manifest.precision, head, runners.side)

    def covering(self, profile: ShapeProfile) -> Expected:
        """What an engine of several profiles is compared with: a batch for each of them too.

        Each profile has kernels of its own, so the first images are repeated to a batch that runs
        on it. One for images of other sizes gets none, nor one that a narrower one always stands in
        for; nor do outputs that have no entry per image. Batches of images whose sizes no profile
        has are left out.
        """
        if not profile.parts:
            return self
        pairs = zip(self.batches, self.outputs, strict=True)
        taken = [pair for pair in pairs if profile.takes(_image_sizes(pair[0].shape))]
        found = replace(self, batches=[b for b, _ in taken], outputs=[o for _, o in taken])
        images, outputs = taken[0]
        if len(outputs) != len(images):
            return found
        counts = (_count_for(profile, place, images.shape) for place in range(len(profile.parts)))
        chosen = [np.arange(count) % len(images) for count in counts if count]
        return replace(
            found,
            batches=[*found.batches, *(images[each] for each in chosen)],
            outputs=[*found.outputs, *(outputs[each] for each in chosen)],
        )


def _image_sizes(shape: tuple[int, ...]) -> dict[int, int]:
    return {axis: shape[axis] for axis in IMAGE_AXES}


def _count_for(profile: ShapeProfile, place: int, shape: tuple[int, ...]) -> int:
    """How many images of (N, C, H, W) run on the profile at ``place``; 0 where none do."""
    part = profile.parts[place]
    for count in (part.opt_batch, part.max_batch, part.min_batch):
        if profile.narrowest({BATCH_AXIS: count, **_image_sizes(shape)}) == place:
            return count
    return 0


@dataclass(frozen=True)
class EngineRun:
    """Runs what a compiler made on a machine, and tells it in a journal."""

    compiler: Compiler
    machine: Machine
    journal: Journal

    def first(
        self, record: EngineRecord, plan: Path, expect: Callable[[], Expected]
    ) -> EngineRecord:
        """Run an engine and compare its outputs; the record that says whether it ran.

        ``expect`` makes what it is compared with; it is called only where the engine runs. Where it
        does not fit the GPU that is here or its driver, there is none, or what runs engines is not
        installed, a note says so.

        Raises:
            ValidationError: its outputs are beyond the limits of its precision.
            EngineIncompatibleError: the machine does not load what it compiled.
            DeviceError: the GPU fails.
        """
        versions = {self.compiler.name: self.compiler.version}
        fits, reason = engine_fits(record, self.machine.gpus, versions)
        reason = misfit_of_driver(self.machine, self.compiler) if fits else reason
        if reason:
            return self._not_run(record, reason)
        try:
            with self.journal.stage("run engine"):
                report = self._compare(record, plan, expect)
        except MissingDependencyError as error:
            return self._not_run(record, "; ".join(str(error).splitlines()))
        except EngineIncompatibleError as error:
            raise self._not_loaded(record, error) from error
        report.require_pass()
        gpu = self.machine.gpus[0].name
        count = sum(batch.batch for batch in report.batches)
        self.journal.notes.append(
            f"{record.file} ran on {gpu}: {count} images within the limits of {report.precision}"
        )
        return replace(record, ran_on=gpu)

    def _not_run(self, record: EngineRecord, reason: str) -> EngineRecord:
        self.journal.notes.append(
            f"{record.file} was compiled, it did not run: {reason}; where it will: "
            f"deploykit check BUNDLE --device {ENGINE_DEVICE}"
        )
        return record

    def _not_loaded(
        self, record: EngineRecord, error: EngineIncompatibleError
    ) -> EngineIncompatibleError:
        """Without the advice of ``error``, which is to compile it here: that was just done."""
        said = "; ".join(str(error).splitlines()[:2])
        advice = "deploykit doctor says what works on this machine"
        if self.compiler.is_portable:
            advice += "; to compile it without running it hide the GPU: CUDA_VISIBLE_DEVICES=-1"
        return EngineIncompatibleError(
            f"{record.file} was compiled for this GPU, and does not run on it\n{said}\n{advice}"
        )

    def _compare(
        self, record: EngineRecord, plan: Path, expect: Callable[[], Expected]
    ) -> ValidationReport:
        options = EngineOptions(gpu_index=self.machine.gpu_index)
        engine = self.machine.open_engine(plan, self.compiler, record.profile, options)
        found = []
        with engine:
            expected = expect().covering(record.profile)
            for batch in expected.batches:
                limits = BatchLimits.of_engine(record.profile, batch.shape[2:])
                runner = with_side_inputs(AnyBatchRunner(engine, limits), expected.side)
                found += outputs_of(runner, [batch])
        return validate(
            found,
            expected.outputs,
            precision=limits_for(expected.precision, ENGINE_DEVICE),
            names=(record.file, expected.made_by),
            head=expected.head,
        )
