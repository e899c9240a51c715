"""`deploykit predict`: what a bundle says about some images."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from deploykit import images
from deploykit.core.errors import DataError
from deploykit.core.progress import Progress, SilentProgress
from deploykit.runtime.loading import load

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from deploykit.core.progress import ProgressTask
    from deploykit.heads import Head
    from deploykit.heads.multiclass import Prediction
    from deploykit.runtime.classifier import Classifier


@dataclass(frozen=True)
class PredictionReport:
    """The answers for each image that could be read, and why there are none for the others.

    ``weights`` says where the weights come from, and ``trained`` whether the answers mean anything;
    ``None`` where nobody can tell. ``skipped`` are files of folders that are no images.
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

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "bundle": self.bundle,
            "device": self.device,
            "choice": self.choice,
            "weights": {"source": self.weights, "trained": self.trained},
            "predictions": [
                {"image": image, "top": [asdict(each) for each in top]}
                for image, top in self.predictions
            ],
            "unreadable": [{"image": image, "reason": reason} for image, reason in self.unreadable],
            "skipped": list(self.skipped),
            "notes": list(self.notes),
        }


def predict(
    bundle: Path,
    given: Sequence[Path],
    *,
    top_k: int = 5,
    device: str = "auto",
    fast: bool = False,
    progress: Progress | None = None,
) -> PredictionReport:
    """Answer for image files and all those in folders; an unreadable one does not stop the others.

    Raises:
        DataError: a folder has no images.
        DeploykitError: what `deploykit.load` raises.
    """
    sources = [_files_of(each) for each in given]
    paths = [path for source in sources for path in source.paths]
    skipped = [path for source in sources for path in source.skipped]
    progress = progress or SilentProgress()
    with progress.step("load"):
        model = load(bundle, device=device, fast=fast)
    with model, progress.step("predict") as task:
        report = _report(bundle, model, paths, _outcomes(model, paths, top_k, task))
    notes = tuple(images.notes_on_skipped(skipped))
    return replace(report, skipped=tuple(map(str, skipped)), notes=notes)


def _files_of(path: Path) -> images.FileImages:
    """A folder's images; anything else is taken for a file and looked at when its turn comes."""
    return images.image_files(path) if path.is_dir() else images.FileImages((path,))


def _outcomes(
    model: Classifier, paths: Sequence[Path], top_k: int, task: ProgressTask
) -> list[list[Prediction] | DataError]:
    outcomes = []
    for outcome in model.predict_each(paths, top_k=top_k):
        outcomes.append(outcome)
        task.update(len(outcomes), len(paths))
    return outcomes


def _report(
    bundle: Path,
    model: Classifier,
    paths: Sequence[Path],
    outcomes: Sequence[list[Prediction] | DataError],
) -> PredictionReport:
    pairs = list(zip(map(str, paths), outcomes, strict=True))
    weights = model.manifest.weights
    return PredictionReport(
        bundle=str(bundle),
        device=model.device,
        choice=model.choice,
        weights=str(weights.get("source")),
        trained=weights.get("trained"),
        predictions=tuple((p, tuple(top)) for p, top in pairs if not isinstance(top, DataError)),
        unreadable=tuple((p, str(why)) for p, why in pairs if isinstance(why, DataError)),
        head=model.head,
    )
