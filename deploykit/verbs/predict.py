"""`deploykit predict`: what a bundle says about some images."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit import images
from deploykit.core.errors import DataError, NoAnswerError, UsageError
from deploykit.core.progress import Progress, SilentProgress
from deploykit.core.serialization import to_plain
from deploykit.core.specs import HeadRecord
from deploykit.runtime.loading import load

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from deploykit.core.progress import ProgressTask
    from deploykit.heads import Head
    from deploykit.heads.multiclass import Prediction
    from deploykit.runtime.classifier import Classifier


@dataclass(frozen=True)
class PredictionReport:
    """The answers for each image that has one, and why there are none for the others.

    ``failed`` are all of the others; ``unreadable`` those of them that could not be read: for the
    rest the model gave NaN. ``weights`` says where the weights come from, and ``trained`` whether
    the answers mean anything; ``None`` where nobody can tell. ``skipped`` are files of folders that
    are no images, ``files`` those that arrays were written to, by the identity of their answer.
    ``doubts`` say why the verification of the bundle could not have failed.
    """

    bundle: str
    device: str
    choice: str
    weights: str
    trained: bool | None
    predictions: tuple[tuple[str, tuple[Prediction, ...]], ...]
    unreadable: tuple[tuple[str, str], ...]
    head: Head
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    record: HeadRecord = field(default_factory=HeadRecord)
    files: Mapping[int, str] = field(default_factory=dict)
    failed: tuple[tuple[str, str], ...] = ()
    doubts: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "bundle": self.bundle,
            "device": self.device,
            "choice": self.choice,
            "weights": {"source": self.weights, "trained": self.trained},
            "head": to_plain(self.record),
            "predictions": [
                {"image": image, "top": [_plain(each, self.files) for each in top]}
                for image, top in self.predictions
            ],
            "failed": _reasons(self.failed),
            "unreadable": _reasons(self.unreadable),
            "skipped": list(self.skipped),
            "notes": list(self.notes),
            "doubts": list(self.doubts),
        }


def predict(  # noqa: PLR0913 - options, by keyword
    bundle: Path,
    given: Sequence[Path],
    *,
    top_k: int = 5,
    threshold: float | None = None,
    device: str = "auto",
    fast: bool = False,
    output: Path | None = None,
    max_pixels: int | None = None,
    progress: Progress | None = None,
) -> PredictionReport:
    """Answer for image files and all those in folders; one without an answer does not stop others.

    ``threshold`` is where a binary or multilabel head says yes. With ``output`` the arrays of a
    head that has some go to ``.npy`` files in that folder. ``max_pixels`` is what an image may
    have; the default follows from the model's input.

    Raises:
        DataError: a folder has no images, or the files cannot be written.
        UsageError: the head has no threshold, or no arrays to write.
        DeploykitError: what `deploykit.load` raises.
    """
    sources = [_files_of(each) for each in given]
    paths = [path for source in sources for path in source.paths]
    skipped = [path for source in sources for path in source.skipped]
    progress = progress or SilentProgress()
    with progress.step("load"):
        model = load(bundle, device=device, fast=fast)
    with model, progress.step("predict") as task:
        if output is not None and not model.head.judges_all:
            raise UsageError(
                f"-o {output} is for arrays, which a {model.head.name} head has none of\n"
                "leave it out"
            )
        answers = model.predict_each(paths, top_k=top_k, threshold=threshold, max_pixels=max_pixels)
        outcomes = _followed(answers, len(paths), task)
        found = _report(bundle, model, paths, outcomes)
    files = {} if output is None else _write_arrays(found, output)
    taken = images.FileImages(tuple(paths), max_pixels=max_pixels)
    reduced = images.notes_on_reduced(taken, model.preprocessing)
    notes = (*images.notes_on_skipped(skipped), *reduced)
    return replace(found, skipped=tuple(map(str, skipped)), notes=notes, files=files)


def _reasons(images_and_why: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"image": image, "reason": reason} for image, reason in images_and_why]


def _plain(answer: Any, files: Mapping[int, str]) -> dict[str, Any]:
    """An answer for ``--json``; an array that is in a file is named, not repeated."""
    if id(answer) not in files:
        plain: dict[str, Any] = to_plain(answer)
        return plain
    kept = {name: value for name, value in _fields_of(answer).items() if name != "values"}
    return {**to_plain(kept), "file": files[id(answer)]}


def _fields_of(answer: Any) -> dict[str, Any]:
    """The fields of a dataclass, by name."""
    return {each.name: getattr(answer, each.name) for each in fields(answer)}


def _write_arrays(found: PredictionReport, folder: Path) -> dict[int, str]:
    """Write each array to a file that is called by the image's place, its name and the output's."""
    files = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for at, (image, answers) in enumerate(found.predictions):
            for each in answers:
                name = re.sub(r"[^\w.-]", "_", str(getattr(each, "output", None) or "output"))
                path = folder / f"{at:04d}-{PurePath(image).stem}-{name}.npy"
                np.save(path, getattr(each, "values"))  # noqa: B009 - of a raw answer
                files[id(each)] = str(path)
    except OSError as exc:
        raise DataError(f"cannot write to {folder}: {exc.strerror}") from exc
    return files


def _files_of(path: Path) -> images.FileImages:
    """A folder's images; anything else is taken for a file and looked at when its turn comes."""
    return images.image_files(path) if path.is_dir() else images.FileImages((path,))


def _followed(
    answers: Iterable[list[Prediction] | DataError], count: int, task: ProgressTask
) -> list[list[Prediction] | DataError]:
    outcomes = []
    for outcome in answers:
        outcomes.append(outcome)
        task.update(len(outcomes), count)
    return outcomes


def _report(
    bundle: Path,
    model: Classifier,
    paths: Sequence[Path],
    outcomes: Sequence[list[Prediction] | DataError],
) -> PredictionReport:
    pairs = list(zip(map(str, paths), outcomes, strict=True))
    failed = [(path, why) for path, why in pairs if isinstance(why, DataError)]
    weights = model.manifest.weights
    return PredictionReport(
        bundle=str(bundle),
        device=model.device,
        choice=model.choice,
        weights=str(weights.get("source")),
        trained=weights.get("trained"),
        predictions=tuple((p, tuple(top)) for p, top in pairs if not isinstance(top, DataError)),
        unreadable=tuple((p, str(why)) for p, why in failed if not isinstance(why, NoAnswerError)),
        failed=tuple((path, str(why)) for path, why in failed),
        head=model.head,
        record=model.manifest.head,
        doubts=model.doubts,
    )
