"""The loss of a converted graph on images that nothing was chosen by, in an engine's arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from deploykit import images
from deploykit.comparison.converted import open_rounding
from deploykit.core.artifacts import sha256_of_bytes
from deploykit.core.errors import DataError, ValidationError
from deploykit.images import FileImages, LabelledData, ModelClasses, open_labelled
from deploykit.precision.budget.frontier import TOP1, Loss
from deploykit.precision.quantization.noise import judged_answers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.comparison.reference import Reference
    from deploykit.core.progress import ProgressTask
    from deploykit.core.specs import Runner
    from deploykit.graph import LoadedGraph
    from deploykit.images import ImageSet
    from deploykit.precision.budget.request import Budget, Judges

    Answers = Mapping[str, NDArray[np.float32]]

BATCH_PIXELS = 8 * 224 * 224
"""Of the images that are run at once."""

MOST_AT_ONCE = 64

LEAST_RIGHT = 0.5
"""Share of the labels that FP32 must get right: an image that is wrong already cannot be lost."""


def labels_of(
    budget: Budget, judges: Judges, reference: Reference, max_pixels: int | None
) -> NDArray[np.int64] | None:
    """The class of each image of ``--data`` in the model's numbers; ``None``: agreement judges.

    Raises:
        DataError: the images have labels that do not fit the model.
    """
    given, first = judges.source.labels, reference.outputs[0][:1]
    if budget.data is None or given is None:
        return None
    if reference.head.right_answers(first, given[: len(first)]) is None:
        return None  # a class says nothing of such outputs
    classes = reference.head.classes(reference.outputs[0].shape)
    known = ModelClasses(classes, reference.labels)
    try:
        labels = open_labelled(LabelledData(budget.data, max_pixels=max_pixels), known).labels
    except DataError as exc:
        raise DataError(
            f"the labels of {budget.data} cannot be numbered as the model's classes\n"
            f"{str(exc).splitlines()[0]}\n"
            "give them as numbers in an .npz or a .csv list, or images without labels"
        ) from exc
    if labels is not None and classes is not None and int(labels.max()) >= classes:
        raise DataError(
            f"{budget.data} has the label {int(labels.max())}, the model tells {classes} classes "
            f"apart\nexpected labels from 0 to {classes - 1}: are these images for another model?"
        )
    return labels


def digest_of_judges(judges: Judges, labels: NDArray[np.int64] | None) -> str:
    """SHA-256 of the images that judge, in their order, and their labels.

    Raises:
        DataError: a file cannot be read.
    """
    source: ImageSet = judges.source
    if isinstance(source, FileImages):
        digest = FileImages(tuple(source.paths[at] for at in judges.indices)).digest
    else:
        digest = f"{source.digest} {list(judges.indices)}"
    numbers = "" if labels is None else str(labels[list(judges.indices)].tolist())
    return sha256_of_bytes(f"{digest} {numbers}".encode())


@dataclass
class Judge:
    """Runs graphs on the images that judge; the FP32 answers are kept in files of ``folder``."""

    reference: Reference
    judges: Judges
    labels: NDArray[np.int64] | None
    folder: Path
    _right: list[NDArray[np.bool_] | None] = field(default_factory=list)
    _names: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What FP32 itself gets right."""

    def prepare(self, task: ProgressTask) -> None:
        """Ask the FP32 graph once."""
        head = self.reference.head
        with self.reference.runners.open(self.reference.graph.split()) as runner:
            for at, (inputs, indices) in enumerate(self._batches(task, "FP32")):
                found = self._answers(runner, inputs, len(indices), None)
                self._names = list(found)
                np.savez(self._file(at), *found.values())
                labels = None if self.labels is None else self.labels[indices]
                first = next(iter(found.values()))
                self._right.append(None if labels is None else head.right_answers(first, labels))
        self._doubt_labels()

    def _doubt_labels(self) -> None:
        """Judge by changed answers where FP32 gets so few labels right that they may not fit."""
        known = [right for right in self._right if right is not None]
        if not known:
            return
        right = np.concatenate(known)
        said = f"FP32 gets {right.mean():.1%} of {len(right)} labels right"
        if right.mean() < LEAST_RIGHT:
            self._right = [None] * len(self._right)
            said += ": do they fit the model? Changed answers judge in their place"
        self.notes.append(said)

    def loss_of(self, graph: LoadedGraph, task: ProgressTask, name: str) -> Loss:
        """What ``graph`` loses against FP32.

        Raises:
            ValidationError: an output has another shape than in FP32, or no image can be read.
        """
        head, images_seen, lost, gained = self.reference.head, 0, 0.0, 0
        measure = head.loss_measure
        with open_rounding(self.reference.runners, graph) as runner:
            for at, (inputs, indices) in enumerate(self._batches(task, name)):
                with np.load(self._file(at)) as kept:
                    wanted = dict(zip(self._names, kept.values(), strict=True))
                found = self._answers(runner, inputs, len(indices), self._names)
                images_seen += len(indices)
                right = self._right[at]
                first = next(iter(wanted))
                if right is not None and self.labels is not None:
                    measure = TOP1
                    now = head.right_answers(found[first], self.labels[indices])
                    lost += int((right & ~now).sum())  # type: ignore[operator]  # the head gave one for FP32
                    gained += int((now & ~right).sum())  # type: ignore[operator]  # likewise
                else:
                    lost += float(self._losses(found, wanted).sum())
        if not images_seen:
            raise ValidationError(
                "none of the images that judge the loss can be read\ngive others: --data PATH"
            )
        return Loss(measure, images_seen, lost, gained)

    def _losses(self, found: Answers, wanted: Answers) -> NDArray[np.float64]:
        """Of each image, of the output that loses most."""
        rows = []
        for name, expected in wanted.items():
            if found[name].shape != expected.shape:
                raise ValidationError(
                    f"output {name!r} has shape {found[name].shape}, {expected.shape} in FP32\n"
                    "its size depends on its values: end the graph before what selects them"
                )
            rows.append(self.reference.head.losses(found[name], expected))
        worst: NDArray[np.float64] = np.max(rows, axis=0)
        return worst

    def _file(self, at: int) -> Path:
        return self.folder / f"answers-{at}.npz"

    def _batches(
        self, task: ProgressTask, name: str
    ) -> Iterator[tuple[NDArray[np.float32], list[int]]]:
        preprocessing = self.reference.preprocessing
        height, width = preprocessing.crop
        size = self._fixed or min(MOST_AT_ONCE, max(1, BATCH_PIXELS // (height * width)))
        source, wanted = self.judges.source, list(self.judges.indices)
        done = count(step=size)
        loaded = images.batches(source, preprocessing, size, wanted, on_corrupt="skip")
        for (inputs, indices), before in zip(loaded, done, strict=False):
            yield inputs, indices
            task.update(before + len(indices), len(wanted), name)

    @property
    def _fixed(self) -> int | None:
        return self.reference.artifact.inputs[0].fixed_batch

    def _answers(
        self,
        runner: Runner,
        inputs: NDArray[np.float32],
        images_here: int,
        names: Sequence[str] | None,
    ) -> dict[str, NDArray[np.float32]]:
        """Outputs by name of so many images; a batch that is too small is filled up."""
        fed = inputs if self._fixed is None else np.resize(inputs, (self._fixed, *inputs.shape[1:]))
        if names is None:
            (found,) = judged_answers(runner, [fed], self.reference.head)
        else:
            outputs = runner.run({runner.inputs[0].name: fed})
            found = {name: outputs[name].astype(np.float32) for name in names}
        return {name: values[:images_here] for name, values in found.items()}
