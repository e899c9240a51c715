"""`deploykit eval --ray`: the same counts, of images that a cluster worked through."""

from __future__ import annotations

import pickle
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit import images
from deploykit.backends import CPU
from deploykit.bundle.manifest import MANIFEST
from deploykit.core.artifacts import sha256_of
from deploykit.core.errors import BundleError, DataError, UsageError
from deploykit.evaluation.labelled import (
    batch_size,
    count,
    first_outputs,
    require_labels,
    tallies_of,
)
from deploykit.ray.evaluating import CountsFolder, LabelledParts, outputs_on_cluster
from deploykit.verbs.evaluate import accuracy_report, labelled_images

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.core.progress import Progress
    from deploykit.core.specs import Preprocessing
    from deploykit.evaluation.labelled import EvaluatedModel
    from deploykit.heads._head import Tally
    from deploykit.images import LabelledData
    from deploykit.ray.predicting import ClusterChoices
    from deploykit.ray.sources import Part
    from deploykit.verbs.evaluate import AccuracyReport, Subjects

_OF = ("", "other_")
"""What columns of the bundle and of the model beside it begin with."""


def evaluate_on_cluster(
    subjects: Subjects,
    data: LabelledData,
    choices: ClusterChoices,
    *,
    batch: int,
    output: Path | None,
    progress: Progress,
) -> AccuracyReport:
    """As `evaluate_bundle`, on labelled files of images; each image counts once.

    The labels are read here, the images on the cluster, at the same paths, and so are the models.
    With ``output`` what was counted is written there part by part, and the same call goes on where
    it was interrupted.

    Raises:
        UsageError: the images are not files, or the bundle takes more than images.
        DataError: the images or their labels cannot be used.
        ValidationError: outputs that are not numbers.
        BundleError: a model was replaced meanwhile, or ``output`` holds something else.
    """
    subjects = _resolved(subjects)
    # Here on the CPU: what cannot be opened, or not be fed, is said before there is a cluster.
    with replace(subjects, device=CPU).opened() as opened:
        source, classes = labelled_images(opened, data)
        run = _Run.of(subjects, opened.models, batch)
    if not isinstance(source, images.FileImages):
        raise UsageError(
            f"{data.path} is one file, whose images a cluster cannot share\n"
            "give a folder or a list of files, or leave --ray out"
        )
    tallies = tallies_of(opened.models, source, opened.head)
    manifest = opened.subject.bundle.manifest
    labelled = LabelledParts(source.paths, require_labels(source), manifest, run.batch)
    with ExitStack() as stack, progress.step("evaluate on Ray") as task:
        left, folder = labelled.parts, None
        if output is not None:
            plan = {"device": choices.device, "threshold": subjects.threshold}
            folder = CountsFolder(output, labelled, {**run.digests, **plan})
            done = stack.enter_context(folder.parts.opened())
            left = list(_left(folder, labelled, done, tallies))
        counted = len(labelled.parts) - len(left)
        flow = outputs_on_cluster(labelled, left, run.kinds, run.actor, choices, task)
        # Closed while there is a cluster, also where what is counted cannot be written.
        for part, outputs in stack.enter_context(closing(flow)) if left else ():
            indices = labelled.indices(part)
            count(tallies, indices, outputs, opened.head.noun)
            counted += 1
            if folder is not None:
                folder.commit(part, _columns(tallies, indices))
    if counted != len(labelled.parts):  # never a share of other images than were given
        raise DataError(
            f"{counted} of {len(labelled.parts)} parts were counted\nrun the same again"
        )
    found = opened.head.evaluation(tallies[0], tallies[1] if len(tallies) > 1 else None)
    report = accuracy_report(found, opened, source, classes)
    choice = f"actors of a Ray cluster on {choices.device}"
    return replace(report, device=choices.device, choice=choice)


def _resolved(subjects: Subjects) -> Subjects:
    """With paths that are the same from whatever folder."""
    reference, compare = subjects.reference, subjects.compare
    return replace(
        subjects,
        folder=subjects.folder.resolve(),
        reference=None if reference is None else reference.resolve(),
        compare=None if compare is None else compare.resolve(),
    )


def _digests(subjects: Subjects) -> dict[str, str | None]:
    """SHA-256 of each model by what it is to the run: of a bundle that of its manifest."""
    paths = {
        "bundle": subjects.folder,
        "reference": subjects.reference,
        "compare": subjects.compare,
    }
    return {name: None if path is None else _digest(path) for name, path in paths.items()}


def _digest(path: Path) -> str:
    return sha256_of(path / MANIFEST if path.is_dir() else path)


def _left(
    folder: CountsFolder, labelled: LabelledParts, done: set[int], tallies: Sequence[Tally]
) -> Iterator[Part]:
    """The parts that are still to be counted; the others are put into the tallies."""
    for part in labelled.parts:
        columns = folder.counted(part) if part.number in done else None
        if columns is None:
            yield part
            continue
        for tally, of in zip(tallies, _OF, strict=False):
            indices = labelled.indices(part)
            names = tally.counted(indices)
            tally.restore(indices, {name: columns[f"{of}{name}"] for name in names})


def _columns(tallies: Sequence[Tally], indices: Sequence[int]) -> dict[str, NDArray[np.int64]]:
    return {
        f"{of}{name}": column
        for tally, of in zip(tallies, _OF, strict=False)
        for name, column in tally.counted(indices).items()
    }


@dataclass(frozen=True)
class _Run:
    """What an actor is told: the models, and for each which of the prepared inputs it takes."""

    subjects: Subjects
    digests: Mapping[str, str | None]
    batch: int
    kinds: tuple[Preprocessing, ...]
    places: tuple[int, ...]

    @classmethod
    def of(cls, subjects: Subjects, models: Sequence[EvaluatedModel], batch: int) -> _Run:
        """An image is prepared once for models of the same preprocessing."""
        kinds = tuple(dict.fromkeys(each.preprocessing for each in models))
        places = tuple(kinds.index(each.preprocessing) for each in models)
        size = batch_size(models, batch)
        return cls(subjects, _digests(subjects), size, kinds, places)

    @property
    def actor(self) -> tuple[type, dict[str, Any]]:
        """The class of the actors with its arguments."""
        return _Actor, {"run": self}


class _Actor:
    """First outputs of each model for the images of a part."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        # One thread on a CPU: the cluster gives each actor a processor.
        opened = replace(run.subjects, threads=1).opened()
        self._stack = ExitStack()
        self._models = self._stack.enter_context(opened).models
        if _digests(run.subjects) != run.digests:
            raise BundleError(
                f"{run.subjects.folder} or the model beside it was replaced since this run began\n"
                "begin again, or put the models of before back"
            )

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        # From a task of this very run.
        reasons, inputs = pickle.loads(row["payload"])  # noqa: S301
        outputs = [] if reasons else [self._of(at, inputs) for at in range(len(self._models))]
        return {"part": row["part"], "outputs": pickle.dumps((reasons, outputs))}

    def _of(self, at: int, inputs: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        given, size = inputs[self._run.places[at]], self._run.batch
        runner = self._models[at].runner
        pieces = [
            first_outputs(runner, given[start : start + size])
            for start in range(0, len(given), size)
        ]
        return np.concatenate(pieces)
