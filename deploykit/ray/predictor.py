"""`Predictor`: a bundle as a class for ``ray.data.Dataset.map_batches``."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.bundle.manifest import MANIFEST
from deploykit.core.artifacts import sha256_of
from deploykit.core.errors import BundleError, DataError, UsageError, ValidationError
from deploykit.core.serialization import to_plain
from deploykit.runtime.loading import load

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.runtime.classifier import Classifier

CHUNK: Final = 32
"""Images in a run where nothing says what the model prefers."""


class Predictor:
    """Answers for a batch of images: loads its bundle once, in the actor that it lives in.

    ```
    found = ray.data.read_images("s3://photographs", include_paths=True).map_batches(
        deploykit.ray.Predictor,
        fn_constructor_kwargs={"bundle": "engines/resnet50-fp16"},
        batch_size=32, num_gpus=1, compute=ray.data.ActorPoolStrategy(size=4),
    )
    ```

    The column ``image`` holds encoded images (bytes), or pixels uint8 (H, W, 3) or (H, W). It is
    taken away; ``answers`` is new, a list for each image of what `Classifier.predict` gives, as
    dictionaries, and ``error``: why there are none, or ``None``. Other columns stay.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        *,
        column: str = "image",
        top_k: int = 5,
        threshold: float | None = None,
        device: str = "auto",
        threads: int | None = None,
    ) -> None:
        self.model: Classifier = load(bundle, device=device, threads=threads)
        self._column = column
        self._top_k = top_k
        self._threshold = threshold

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with ``answers`` and ``error`` in place of the images.

        Raises:
            UsageError: there is no such column.
        """
        if self._column not in batch:
            raise UsageError(
                f"the batch has no column {self._column!r}, it has {', '.join(batch) or 'none'}\n"
                "name the one with the images: Predictor(..., column=...)"
            )
        outcomes = self.model.predict_each(
            list(batch[self._column]), top_k=self._top_k, threshold=self._threshold
        )
        answers, errors = [], []
        for outcome in outcomes:
            failed = isinstance(outcome, DataError)
            answers.append([] if isinstance(outcome, DataError) else list(map(plain, outcome)))
            errors.append(str(outcome) if failed else None)
        others = {name: values for name, values in batch.items() if name != self._column}
        return {
            **others,
            "answers": _objects(answers),
            "error": _objects(errors),
        }


def plain(answer: Any) -> dict[str, Any]:
    """One answer as a dictionary of numbers, texts and flat lists."""
    found = {each.name: getattr(answer, each.name) for each in fields(answer)}
    return {
        name: value.reshape(-1).tolist() if isinstance(value, np.ndarray) else to_plain(value)
        for name, value in found.items()
    }


def kind_of(annotation: str) -> str:
    """The kind of a column for a field's type; a text where nothing else is known of it.

    >>> kind_of("float | None"), kind_of("tuple[int, ...]"), kind_of("NDArray[np.float32]")
    ('float', 'ints', 'floats')
    """
    if annotation.startswith(("NDArray", "tuple[float")):
        return "floats"
    if annotation.startswith("tuple[int"):
        return "ints"
    word = annotation.partition(" ")[0]
    return word if word in {"int", "float", "bool"} else "str"


def _objects(values: Sequence[Any]) -> NDArray[np.object_]:
    """A column of Python objects; numpy alone would make a matrix of lists of one length."""
    column = np.empty(len(values), dtype=object)
    for at, value in enumerate(values):
        column[at] = value
    return column


class PreparedPredictor:
    """The actor behind ``deploykit predict --ray``: answers for images that are decoded already."""

    def __init__(
        self, bundle: str, manifest_sha256: str, device: str, top_k: int, threshold: float | None
    ) -> None:
        # One thread on a CPU: the cluster gives each actor a processor.
        self._model = load(bundle, device=device, threads=1)
        if sha256_of(Path(bundle) / MANIFEST) != manifest_sha256:
            raise BundleError(
                f"{bundle} was replaced since this run began\n"
                "begin again in another folder, or put the bundle of before back"
            )
        model = self._model
        self._head = model.head if threshold is None else model.head.with_threshold(threshold)
        self._top_k = top_k

    @property
    def answer_fields(self) -> dict[str, str]:
        """Names of what an answer has, with their types in words: those of an answer to zeros."""
        shapes = {
            spec.name: [size if isinstance(size, int) else 1 for size in spec.shape[1:]]
            for spec in self._model.outputs
        }
        zeros = {name: np.zeros((1, *shape), np.float32) for name, shape in shapes.items()}
        return {
            each.name: kind_of(str(each.type)) for each in fields(self._answers(zeros, 1)[0][0])
        }

    def encoded(self, images: Sequence[bytes]) -> list[list[Any] | str]:
        """Answers for encoded images, or why there are none."""
        found = self._model.predict_each(images, top_k=self._top_k)
        return [str(each) if isinstance(each, DataError) else each for each in found]

    def prepared(self, images: NDArray[np.generic]) -> list[list[Any] | str]:
        """Answers for images (N, C, H, W) that are preprocessed, or why there are none."""
        size = self._model.profile.opt_batch if self._model.profile else CHUNK
        found: list[list[Any] | str] = []
        for at in range(0, len(images), size):
            found += self._run(images[at : at + size])
        return found

    def _run(self, images: NDArray[np.generic]) -> list[list[Any] | str]:
        outputs = self._model.run_all({self._model.inputs[0].name: images})
        try:
            return list(self._answers(outputs, len(images)))
        except ValidationError:  # one NaN is not the others' fault
            return [self._alone(outputs, at, len(images)) for at in range(len(images))]

    def _alone(self, outputs: Mapping[str, Any], at: int, count: int) -> list[Any] | str:
        own = {n: each[at : at + 1] for n, each in outputs.items() if each.shape[:1] == (count,)}
        try:
            return self._answers(own, 1)[0]
        except ValidationError as error:
            return str(error)

    def _answers(self, outputs: Mapping[str, Any], count: int) -> list[list[Any]]:
        if self._head.judges_all:
            return self._head.answers_of_all(outputs, count)
        name = self._model.outputs[0].name
        judged = outputs[name].astype(np.float32, copy=False)
        return self._head.answers(judged, self._model.labels, self._top_k)
