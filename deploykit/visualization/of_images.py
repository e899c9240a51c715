"""Maps of where the evidence lies: Grad-CAM of a module, occlusion of anything that runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.core.errors import DataError, UsageError
from deploykit.images import batches, name_of, pixels_before, prepare, sample_indices
from deploykit.visualization.gradcam import grad_cam
from deploykit.visualization.occlusion import Square, occlusion_map
from deploykit.visualization.pictures import heat, scaled_to
from deploykit.visualization.results import (
    Findings,
    Item,
    Picture,
    PictureGroup,
    Section,
    file_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.core.progress import Progress, ProgressTask
    from deploykit.core.specs import Preprocessing
    from deploykit.images import ImageSet
    from deploykit.visualization.layers import ShownNetwork
    from deploykit.visualization.occlusion import Scores
    from deploykit.visualization.tracing import TracedLayer

SHOWN: Final = 8
"""Images with a map, at most."""

_SIDE_PX: Final = (128, 224)
_SCORES: Final = 2
"""Dimensions of (N, K)."""

GRADCAM_TEXT: Final = (
    "Warm where a layer's maps, weighted by the gradient of the answer's score, speak for the "
    "answer. Each map has a scale of its own."
)
OCCLUSION_TEXT: Final = (
    "Warm where the score of the answer falls when a square of the mean colour covers the place, "
    "blue where it rises. The maps of one image share a scale."
)


@dataclass(frozen=True)
class Covered:
    """Images as a network takes them, and the names of its classes."""

    images: ImageSet
    preprocessing: Preprocessing
    labels: Sequence[str] | None


def show_grad_cam(
    network: ShownNetwork,
    layers: Sequence[TracedLayer],
    covered: Covered,
    findings: Findings,
    progress: Progress,
) -> None:
    """Add Grad-CAM of layers with positions, on images spread evenly over those given."""
    images, labels = covered.images, covered.labels
    look = network.preprocessing
    chosen = spread_images(Covered(images, look, labels)).indices
    groups: list[PictureGroup] = []
    told: list[dict[str, Any]] = []
    with progress.step("Grad-CAM") as task:
        prepared = np.stack([prepare(images, index, look) for index in chosen])
        for done, layer in enumerate(layers, 1):
            maps, outputs = grad_cam(network, layer, prepared)
            rows = zip(chosen, prepared, maps, outputs, strict=True)
            items = []
            for index, image, found, scores in rows:
                answer = int(scores.argmax())
                file = f"gradcam/{file_name(layer.name)}-{index}.png"
                pixels = scaled_to(pixels_before(image, look), *_SIDE_PX)
                shown = Picture.of(file, heat(pixels, found, float(found.max())), layer.name)
                text = f"{name_text(answer, labels)}, score {scores[answer]:.3g}"
                items.append(Item(short_name(images, index), (shown,), text))
                told.append(
                    {
                        "layer": layer.name,
                        "image": name_of(images, index),
                        "index": index,
                        "answer": answer,
                        "score": float(scores[answer]),
                        "largest": float(found.max()),
                    }
                )
            groups.append(PictureGroup(layer.name, tuple(items)))
            task.update(done, len(layers))
    findings.sections.append(Section("Grad-CAM", GRADCAM_TEXT, tuple(groups)))
    findings.numbers["gradcam"] = told


def short_name(images: ImageSet, index: int) -> str:
    """The file's name without its folder."""
    return name_of(images, index).rpartition("/")[2]


def name_text(answer: int, labels: Sequence[str] | None) -> str:
    """A class by its name, or its number."""
    known = labels is not None and answer < len(labels)
    return labels[answer] if labels is not None and known else f"class {answer}"


@dataclass(frozen=True)
class Seen:
    """One model that is covered up: what it is called, and its scores (N, K)."""

    name: str
    scores: Scores


class NoScoresError(UsageError):
    """The network's output is no score per class, which occlusion watches."""


def scores_of(run: Callable[[NDArray[np.float32]], NDArray[Any]], name: str) -> Scores:
    """``run``, whose outputs are checked to have a value per class.

    Raises:
        NoScoresError: by the function that is returned: they have not.
    """

    def scores(images: NDArray[np.float32]) -> NDArray[np.float32]:
        found = run(images)
        if found.ndim != _SCORES or found.dtype.kind != "f":
            raise NoScoresError(
                f"{name} gives {found.dtype} {found.shape}: occlusion needs a score per class, "
                "(N, K) floating-point values\npossible for it: --method filters"
            )
        return np.asarray(found, np.float32)

    return scores


@dataclass(frozen=True)
class ChosenImages:
    """Images to be covered up: their indices, and why these; how many cannot be read."""

    indices: tuple[int, ...]
    text: str
    numbers: Mapping[str, Any]
    unreadable: int = 0


def spread_images(covered: Covered) -> ChosenImages:
    """At most eight, spread evenly; the next one stands in for one that cannot be read.

    Raises:
        DataError: that of the first image, if none can be read.
    """
    images = covered.images
    spread = sample_indices(len(images), SHOWN)
    indices: list[int] = []
    errors: list[DataError] = []
    for first, end in zip(spread, [*spread[1:], len(images)], strict=True):
        for index in range(first, end):
            try:
                prepare(images, index, covered.preprocessing)
            except DataError as exc:
                errors.append(exc)
            else:
                indices.append(index)
                break
    if not indices:
        raise errors[0]
    said = f"{len(indices)} of {len(images)} images, spread evenly"
    said += f"; {len(errors)} cannot be read" if errors else ""
    return ChosenImages(tuple(indices), said, {}, len(errors))


def changed_images(
    models: tuple[Seen, Seen],
    covered: Covered,
    losses: Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float64]],
    task: ProgressTask,
) -> ChosenImages:
    """The first images to which the second model answers otherwise than the first.

    Without any, those whose scores differ most. ``losses`` (N,) is above 0 for another answer.
    """
    changed: list[int] = []
    furthest: list[tuple[float, int]] = []
    count, seen = 0, 0
    images = covered.images
    for prepared, indices in batches(images, covered.preprocessing, _BATCH, on_corrupt="skip"):
        wanted, got = (model.scores(prepared) for model in models)
        at = np.flatnonzero(losses(got, wanted) > 0)
        changed += [indices[each] for each in at[: max(0, SHOWN - len(changed))]]
        count += len(at)
        apart = np.abs(got - wanted).max(axis=1)
        pairs = [(-float(each), index) for each, index in zip(apart, indices, strict=True)]
        furthest = sorted([*furthest, *pairs])[:SHOWN]
        seen += len(indices)
        task.update(indices[-1] + 1, len(images))
    numbers = {"images": seen, "changed": count}
    unreadable = len(images) - seen
    if changed:
        text = f"{count} of {seen} answers changed; {len(changed)} are shown"
        return ChosenImages(tuple(changed), text, numbers, unreadable)
    indices_found = tuple(index for _, index in furthest)
    text = f"none of {seen} answers changed; shown are those whose scores differ most"
    return ChosenImages(indices_found, text, numbers, unreadable)


_BATCH: Final = 16


def show_occlusion(
    models: Sequence[Seen],
    chosen: ChosenImages,
    covered: Covered,
    findings: Findings,
    progress: Progress,
) -> None:
    """Add occlusion maps of each model side by side, of the first one's answer."""
    images, preprocessing, labels = covered.images, covered.preprocessing, covered.labels
    square = Square.for_image(*preprocessing.crop)
    items, told = [], []
    for index in chosen.indices:
        image = prepare(images, index, preprocessing)
        with progress.step(f"occlusion of {short_name(images, index)}") as task:
            answer = int(models[0].scores(image[None])[0].argmax())
            maps = [occlusion_map(each.scores, image, answer, square, task) for each in models]
        largest = max(float(np.abs(one).max()) for one in maps)
        pixels = scaled_to(pixels_before(image, preprocessing), *_SIDE_PX)
        pictures = [Picture.of(f"occlusion/{index}-image.png", pixels, "image")]
        answers = {each.name: int(each.scores(image[None])[0].argmax()) for each in models}
        for number, (model, found) in enumerate(zip(models, maps, strict=True)):
            caption = f"{model.name}: {name_text(answers[model.name], labels)}"
            file = f"occlusion/{index}-{number}.png"
            pictures.append(Picture.of(file, heat(pixels, found, largest), caption))
        text = f"covered up for {name_text(answer, labels)}; full colour is {largest:.3g}"
        items.append(Item(short_name(images, index), tuple(pictures), text))
        told.append(
            {
                "image": name_of(images, index),
                "index": index,
                "answer": answer,
                "answers": answers,
                "largest": {m.name: float(f.max()) for m, f in zip(models, maps, strict=True)},
                "map_cosine": _cosine(maps) if len(maps) > 1 else None,
            }
        )
    about = f"{OCCLUSION_TEXT} Square of {square.side} px, step {square.step} px; {chosen.text}."
    findings.sections.append(Section("Occlusion", about, (PictureGroup("", tuple(items)),)))
    findings.numbers["occlusion"] = {"square": [square.side, square.step], **chosen.numbers}
    findings.numbers["occlusion"]["maps"] = told


def _cosine(maps: Sequence[NDArray[np.float32]]) -> float | None:
    """How alike the first two maps are; ``None`` where one is 0 all over."""
    first, second = (one.ravel().astype(np.float64) for one in maps[:2])
    size = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second / size) if size else None
