"""`deploykit eval --ray`: the same counts, of images that a cluster worked through."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit import images
from deploykit.bundle.manifest import Bundle
from deploykit.core.errors import DataError, UsageError
from deploykit.heads import head_of
from deploykit.ray.evaluating import outputs_on_cluster
from deploykit.verbs.evaluate import AccuracyReport

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.core.progress import Progress
    from deploykit.images import LabelledData
    from deploykit.ray.predicting import ClusterChoices


def evaluate_on_cluster(
    folder: Path, data: LabelledData, choices: ClusterChoices, progress: Progress
) -> AccuracyReport:
    """Top-1 and top-5 of the bundle on labelled files of images; each image counts once.

    The labels are read here, the images on the cluster, at the same paths.

    Raises:
        UsageError: the images are not files, or the bundle takes more than images.
        DataError: the images or their labels cannot be used.
        ValidationError: outputs that are not numbers.
    """
    bundle = Bundle.open(folder)
    bundle.require_intact()
    head, names = head_of(bundle.manifest.head), bundle.labels
    count = head.classes(bundle.manifest.onnx.outputs[0].shape)
    known = names if names is None or count in (None, len(names)) else None
    source = images.open_labelled(data, images.ModelClasses(count, known))
    if not isinstance(source, images.FileImages):
        raise UsageError(
            f"{data.path} is one file, whose images a cluster cannot share\n"
            "give a folder or a list of files, or leave --ray out"
        )
    if source.labels is None:
        raise DataError(
            f"the images of {data.path} have no labels\n"
            "expected a folder per class, a folder and a --labels-file, or a CSV list with labels"
        )
    tally = head.tally(source.labels)
    with progress.step("evaluate on Ray") as task:
        counted = 0
        for indices, outputs in outputs_on_cluster(folder, source.paths, choices, task):
            tally.add(indices, outputs)
            counted += len(indices)
    if counted != len(source):  # never a share of other images than were given
        raise DataError(f"{counted} of {len(source)} images were counted\nrun the same again")
    return AccuracyReport(
        head.evaluation(tally, None),
        known,
        bundle.on_cpu().artifact.path.name,
        choices.device,
        f"actors of a Ray cluster on {choices.device}",
        skipped=tuple(map(str, source.skipped)),
        notes=tuple(images.notes_on_skipped(source.skipped)),
    )
