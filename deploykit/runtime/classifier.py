"""A loaded bundle: batches to outputs, images to answers."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, cast, overload

import numpy as np

from deploykit import images
from deploykit.backends import EngineRunner
from deploykit.bundle.golden import Golden, limits_for
from deploykit.bundle.manifest import doubts_of
from deploykit.core.errors import (
    BundleError,
    DataError,
    NoAnswerError,
    UsageError,
    ValidationError,
)
from deploykit.core.specs import Closing, StepTimes
from deploykit.heads import head_of
from deploykit.heads._results import chances_of
from deploykit.heads.multiclass import with_probabilities
from deploykit.images import is_one_image
from deploykit.runtime.inputs import AnyBatchRunner, BatchSplitWarning, Inputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.bundle.manifest import Bundle, Manifest
    from deploykit.core.precision import Precision
    from deploykit.core.sizes import ShapeProfile
    from deploykit.core.specs import Array, Preprocessing, Runner, TensorSpec
    from deploykit.heads import Figures, Head
    from deploykit.heads.multiclass import Prediction
    from deploykit.images.given import ImageLike
    from deploykit.runtime.choice import Chosen
    from deploykit.runtime.inputs import Batch, Feeds, Run

    Outputs: TypeAlias = NDArray[np.float32]


class PreparedImages:
    """Images as a caller gave them, decoded and preprocessed when they are asked for."""

    def __init__(
        self,
        given: Iterable[ImageLike],
        preprocessing: Preprocessing,
        max_pixels: int | None = None,
    ) -> None:
        _require_several(given)
        if max_pixels is None:
            max_pixels = images.default_max_pixels(preprocessing)
        self._images = images.GivenImages(given, max_pixels, reduce_for=preprocessing)
        self._preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self._images)

    def prepared(self, ahead: int) -> Iterator[NDArray[np.float32] | DataError]:
        """The input (C, H, W) of each image, or why there is none; ``ahead`` of them in threads."""
        if len(self) == 1:
            return map(self._prepare, range(1))
        return images.load_ahead(self._prepare, range(len(self)), ahead)

    def _prepare(self, index: int) -> NDArray[np.float32] | DataError:
        try:
            return images.preprocess(self._images.load(index), self._preprocessing)
        except DataError as error:
            named = DataError(f"image {index}: {error}")
            named.__cause__ = error.__cause__
            return named


def _require_several(given: Any) -> None:
    if is_one_image(given):
        raise UsageError("several images are taken one by one\na single one: predict(image)")
    if not isinstance(given, Iterable):
        raise UsageError(
            f"predict() was given {type(given).__name__}\n{images.EXPECTED}, in a list"
        )


def require_top_k(top_k: int) -> None:
    """Refuse to give fewer than one class.

    Raises:
        UsageError: ``top_k`` is below 1.
    """
    if top_k < 1:
        raise UsageError(f"top_k={top_k} leaves no prediction\nexpected 1 or more")


class Classifier(Closing):
    """A bundle that is loaded and ready; `deploykit.load` makes it.

    Any number of threads may use one at the same time. It belongs to the process that loaded it: a
    fork has to load its own. Close it, or use it in a ``with`` block.

    Attributes:
        name: of the bundle, as "resnet50-fp16".
        precision: of its graph.
        device: what was taken: "cuda" (an engine), "cpu" or "ort-cuda" (the ONNX graph); with the
            GPU's number where that is not the first, as "cuda:1".
        choice: which engine or graph was taken and why, a sentence.
        file: name of that engine or graph in the bundle.
        runner: the `Runner` below, for measurements; it checks little.
        inputs: what `run` takes; a name in a shape is an open dimension.
        profile: the batches, heights and widths that the engine takes; a fixed height or width is
            not in it. ``None`` for a graph, which takes what it was exported for.
        outputs: what the model gives; the first is what `run` returns.
        manifest: all that is known of the bundle; `manifest.weights` says whether it is trained.
        doubts: why the verification at the export could not have failed; empty where it could.
        labels: names of the classes by index, or ``None``.
        preprocessing: what `predict` does to an image.
        head: what the outputs mean; `head.name` is "multiclass" for a classifier.
    """

    name: str
    precision: Precision
    device: str
    choice: str
    file: str
    runner: Runner
    inputs: tuple[TensorSpec, ...]
    profile: ShapeProfile | None
    outputs: tuple[TensorSpec, ...]
    manifest: Manifest
    doubts: tuple[str, ...]
    labels: tuple[str, ...] | None
    preprocessing: Preprocessing
    head: Head

    def __init__(self, bundle: Bundle, chosen: Chosen) -> None:
        self.manifest = bundle.manifest
        self.doubts = tuple(doubts_of(bundle.manifest.validation))
        self.name = bundle.manifest.name
        self.precision = bundle.manifest.precision
        self.device = chosen.device
        self.choice = chosen.choice
        self.file = chosen.file
        self.runner = chosen.runner
        self.labels = bundle.labels
        self.preprocessing = bundle.manifest.preprocessing
        self.head = head_of(bundle.manifest.head)
        self._golden = _golden_of(bundle)
        self._limits = chosen.limits
        self.inputs = chosen.runner.inputs
        self.outputs = chosen.runner.outputs
        self.profile = chosen.profile
        is_engine = isinstance(chosen.runner, EngineRunner)
        self._inputs = Inputs(
            self.inputs,
            takes_gpu_arrays=is_engine,
            profile=chosen.profile,
            exported=chosen.exported,
        )
        self._output = self.outputs[0].name
        self._chances = chances_of(self.head, bundle.manifest.conversion)
        self._pid = os.getpid()
        self._is_closed = self._has_warned = False

    @overload
    def run(self, batch: Batch, *, keep_on_device: Literal[False] = False) -> Outputs: ...

    @overload
    def run(self, batch: Batch, *, keep_on_device: bool) -> Any: ...

    def run(self, batch: Batch, *, keep_on_device: bool = False) -> Any:
        """The outputs, float32, of a batch (N, C, H, W) that is already preprocessed.

        A classifier gives logits (N, classes), or what its graph makes of them: `head.activation`
        says it. Of a model of several outputs it is the first, see `run_all`.

        Args:
            batch: an array of numpy or of any package with DLPack; pixels of 0 to 255 for a bundle
                of bytes, as `inputs` says. On ``device="cuda"`` one that lies on the GPU is used
                there, without a copy and without a look for NaN. A model of several inputs takes
                arrays by name. A batch larger than the engine's profile is run in parts
                (`BatchSplitWarning`, once), a smaller one is filled up.
            keep_on_device: leave the outputs on the GPU, as an array with DLPack and
                ``__cuda_array_interface__``. On the CPU they are where they always are.

        Raises:
            UsageError: the wrong type, shape or layout, a height or width outside `profile` or
                outside those that a graph was exported for, an empty batch, NaN or infinite
                values; or the classifier is closed, or was loaded by another process.
            DeviceError: the GPU failed; the classifier is of no more use.
        """
        engine = self.runner if keep_on_device and isinstance(self.runner, EngineRunner) else None
        feeds, count = self._feeds(batch, must_stay=engine is not None)
        if engine is not None:
            return engine.run_on_device(feeds)[self._output]
        self._warn_of_split(count)
        return self._outputs_of(feeds, count, self.runner.run)

    def run_all(self, batch: Batch) -> dict[str, Array]:
        """As `run`, with every output by its name, each in its own type.

        Raises:
            UsageError: as `run`; or an output has no entry per image, and the batch is one that has
                to be run in parts or filled up.
            DeviceError: as `run`.
        """
        feeds, count = self._feeds(batch, must_stay=False)
        self._warn_of_split(count)
        return self._limits.run_all(self.runner.run, feeds, count)

    def run_timed(self, batch: Batch) -> tuple[Outputs, StepTimes]:
        """As `run`, with the duration of each step; those of several parts are added up.

        Raises:
            UsageError: as `run`.
            DeviceError: as `run`.
        """
        feeds, count = self._feeds(batch, must_stay=False)
        times: list[StepTimes] = []

        def run(part: Feeds) -> Feeds:
            outputs, steps = self.runner.run_timed(part)
            times.append(steps)
            return outputs

        outputs = self._outputs_of(feeds, count, run)
        return outputs, _sum(times)

    # A path is a text, and a text is an iterable of texts too: the first that fits is meant.
    @overload
    def predict(  # type: ignore[overload-overlap]
        self,
        images: ImageLike,
        *,
        top_k: int = 5,
        threshold: float | None = None,
        max_pixels: int | None = None,
    ) -> list[Prediction]: ...

    @overload
    def predict(
        self,
        images: Iterable[ImageLike],
        *,
        top_k: int = 5,
        threshold: float | None = None,
        max_pixels: int | None = None,
    ) -> list[list[Prediction]]: ...

    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        top_k: int = 5,
        threshold: float | None = None,
        max_pixels: int | None = None,
    ) -> list[Prediction] | list[list[Prediction]]:
        """The likeliest classes of each image, after the bundle's own preprocessing.

        Of one image it is a list of predictions, of several a list of such lists.

        Other heads give answers of their own: a binary one a `BinaryAnswer`, a multilabel one
        `LabelAnswer`s, a raw one a `RawAnswer` for each output (`deploykit.heads`).

        Args:
            images: a path, encoded bytes, a Pillow image, a uint8 array (H, W, 3), or grey
                (H, W, 1) or (H, W); or several of them, mixed, which are decoded in threads.
            top_k: classes per image; all of them where there are fewer.
            threshold: probability from which a binary or multilabel head says yes; 0.5 if not
                given.
            max_pixels: pixels that a file or encoded bytes may decode to; if not given, 256 for
                each that the model sees, within 50 and 89 million. A sequential JPEG above that
                is decoded at a half or a quarter of its width and height, where it stays twice as
                wide and high as what it is resized to. Each thread may hold one image of the
                limit, of about 8 bytes a pixel.

        Raises:
            DataError: an image cannot be read, or has too many pixels; the message says which.
                `predict_each` goes on.
            NoAnswerError: the model gave NaN for an image; likewise.
            UsageError: something else than images, ``top_k`` or ``max_pixels`` below 1, a
                ``threshold`` that the head has no use for, or a model of several inputs.
        """
        is_one = is_one_image(images)
        several = cast("Iterable[ImageLike]", [images] if is_one else images)
        found = []
        for outcome in self.predict_each(
            several, top_k=top_k, threshold=threshold, max_pixels=max_pixels
        ):
            if isinstance(outcome, DataError):
                raise outcome
            found.append(outcome)
        return found[0] if is_one else found

    def predict_each(
        self,
        images: Iterable[ImageLike],
        *,
        top_k: int = 5,
        threshold: float | None = None,
        max_pixels: int | None = None,
    ) -> Iterator[list[Prediction] | DataError]:
        """As `predict`, one after the other; an image that cannot be read gives its error.

        So does one that the model gives NaN for, a `NoAnswerError`, which is a `DataError` too.
        Memory holds about two batches, however many images there are.

        Raises:
            UsageError: as `predict`, by the call itself.
        """
        self._require_usable()
        require_top_k(top_k)
        head = self.head if threshold is None else self.head.with_threshold(threshold)
        if len(self.inputs) > 1:
            others = ", ".join(repr(spec.name) for spec in self.inputs[1:])
            raise UsageError(
                f"{self.name} takes {others} beside the images, which predict() alone prepares\n"
                "give all of them: run({name: array, ...})"
            )
        return self._outcomes(PreparedImages(images, self.preprocessing, max_pixels), head, top_k)

    def self_test(self) -> Figures:
        """Run the golden sample and compare it with what the reference gave at export.

        It is for a service's health check: it goes the same way as every other batch. Of a head
        that judges all outputs each one is compared; the figures are those of the first. Where the
        sample has to be split or filled up, outputs without an entry per image are left out. The
        sample is the one that was there when the bundle was loaded, also after an export over it.

        Raises:
            ValidationError: the outputs are beyond the limits of the bundle's precision.
            BundleError: the bundle had no sample, or a damaged one.
        """
        self._require_usable()
        if isinstance(self._golden, BundleError):
            raise self._golden
        golden = self._golden
        feeds, count = golden.feeds(self.inputs[0].name), len(golden.batch)
        limits = limits_for(self.precision, self.device)
        if not golden.others:
            return golden.judge(self._outputs_of(feeds, count, self.runner.run), limits)
        if not self._limits.in_one_run(count):
            golden = golden.of_images
        found = self._limits.run_all(self.runner.run, feeds, count, (self._output, *golden.others))
        return golden.judge(np.asarray(found[self._output], np.float32), limits, found)

    def as_runner(self, outputs: Sequence[str] = ()) -> Runner:
        """A runner of the same model that takes a batch of any size, as `run_all` does.

        It is fed by name, looks for no NaN, and closing it closes this one's too. Where a batch is
        run in parts it gives the ``outputs`` alone, all of them if not given.
        """
        return AnyBatchRunner(self.runner, self._limits, outputs)

    def close(self) -> None:
        """Give back what the model holds; a second call does nothing."""
        self._is_closed = True
        self.runner.close()

    def __enter__(self) -> Self:
        self._require_usable()
        return self

    def __repr__(self) -> str:
        return f"<Classifier {self.name} on {self.device}: {self.choice}>"

    def _require_usable(self) -> None:
        if self._is_closed:
            raise UsageError(f"{self.name} is closed\nload it again: deploykit.load(...)")
        if self._pid != os.getpid():
            raise UsageError(
                f"{self.name} was loaded by process {self._pid}, this is its fork {os.getpid()}\n"
                "threads and GPU memory do not survive a fork: load after it, in each process"
            )

    def _feeds(self, batch: Batch, *, must_stay: bool) -> tuple[Feeds, int]:
        self._require_usable()
        feeds, count = self._inputs.feeds(batch)
        if must_stay or self._inputs.any_on_gpu(feeds):
            self._limits.require_one_run(count, "arrays that stay on the GPU")
        return feeds, count

    def _outputs_of(self, feeds: Feeds, count: int, run: Run) -> Outputs:
        return self._limits.run(run, feeds, count, self._output)

    def _warn_of_split(self, count: int) -> None:
        if self._has_warned or not self._limits.too_many(count):
            return
        self._has_warned = True
        warnings.warn(
            f"a batch of {count} is run in parts: {self.name} takes {self._limits.largest} at once "
            "(said once); build an engine for more with deploykit build --batch",
            BatchSplitWarning,
            stacklevel=3,
        )

    def _outcomes(
        self, given: PreparedImages, head: Head, top_k: int
    ) -> Iterator[list[Prediction] | DataError]:
        batch = self._limits.preferred
        prepared, done = given.prepared(ahead=batch), 0
        while group := list(islice(prepared, batch)):
            readable = {
                done + at: each for at, each in enumerate(group) if not isinstance(each, DataError)
            }
            found = iter(self._best(readable, head, top_k) if readable else ())
            for each in group:
                yield each if isinstance(each, DataError) else next(found)
            done += len(group)

    def _best(
        self, prepared: Mapping[int, Outputs], head: Head, top_k: int
    ) -> list[list[Prediction] | DataError]:
        """The answers for prepared images by their place among all."""
        self._require_usable()  # again: somebody may have closed it between two batches
        count, feeds = len(prepared), {self.inputs[0].name: _stacked(list(prepared.values()))}
        found: Mapping[str, Array]
        if head.judges_all:
            found = self._limits.run_all(self.runner.run, feeds, count)
        elif self._chances is not None:
            names = self._output, self._chances
            found = self._limits.run_all(self.runner.run, feeds, count, names)
            if count == 1 and found[self._chances].shape[:1] != (1,):
                # A bundle of a file for one image may have them without an axis for it.
                found = {**found, self._chances: found[self._chances][None]}
        else:
            found = {self._output: self._outputs_of(feeds, count, self.runner.run)}
        try:
            return list(self._answers(found, count, head, top_k))
        except ValidationError:  # one NaN is not the others' fault
            return [
                self._answer_alone(_of_image(found, at, count), index, head, top_k)
                for at, index in enumerate(prepared)
            ]

    def _answers(
        self, found: Mapping[str, Array], count: int, head: Head, top_k: int
    ) -> list[list[Prediction]]:
        if head.judges_all:
            return head.answers_of_all(found, count)
        outputs: Outputs = found[self._output].astype(np.float32, copy=False)
        answers = head.answers(outputs, self.labels, top_k)
        if self._chances is None:
            return answers
        return with_probabilities(answers, found[self._chances])

    def _answer_alone(
        self, alone: Mapping[str, Array], index: int, head: Head, top_k: int
    ) -> list[Prediction] | DataError:
        """The answer for one image by its outputs; ``index`` is its place among all."""
        try:
            return self._answers(alone, 1, head, top_k)[0]
        except ValidationError as error:
            named = NoAnswerError(f"image {index}: {error}")
            named.__cause__ = error
            return named


def _stacked(images: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Images in one batch; a single one is not copied for it."""
    return images[0][None] if len(images) == 1 else np.stack(images)


def _of_image(found: Mapping[str, Array], at: int, count: int) -> dict[str, Array]:
    """Of outputs for ``count`` images those of one, without what belongs to none of them."""
    return {name: each[at : at + 1] for name, each in found.items() if each.shape[:1] == (count,)}


def _golden_of(bundle: Bundle) -> Golden | BundleError:
    """The sample of ``bundle``, or why there is none: a model serves without one, too."""
    try:
        return Golden.read(bundle)
    except BundleError as error:
        return error


def _sum(times: Sequence[StepTimes]) -> StepTimes:
    """Of a batch that was run in parts."""
    return StepTimes(
        wall_ms=sum(part.wall_ms for part in times),
        compute_ms=_total(part.compute_ms for part in times),
        h2d_ms=_total(part.h2d_ms for part in times),
        d2h_ms=_total(part.d2h_ms for part in times),
        enqueue_ms=_total(part.enqueue_ms for part in times),
    )


def _total(step_ms: Iterable[float | None]) -> float | None:
    """``None`` for a step that the backend does not have."""
    known = [duration for duration in step_ms if duration is not None]
    return sum(known) if known else None
