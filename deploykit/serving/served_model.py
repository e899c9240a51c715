"""One version of a model in a service: what it takes, how a request goes through it."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit import images
from deploykit.core.errors import DeploykitError, DeviceError, ImageError, first_line
from deploykit.core.sizes import IMAGE_AXES, are_images, shape_text
from deploykit.runtime.inputs import BatchLimits
from deploykit.serving.classification import Classification
from deploykit.serving.decoder import Preparation
from deploykit.serving.dependence import images_depend
from deploykit.serving.limits import DEFAULT_MAX_BATCH
from deploykit.serving.metrics import ModelMetrics
from deploykit.serving.queues import Gathered, OneByOne
from deploykit.serving.refusals import Reason, RefusedError, invalid, refusal_of
from deploykit.serving.requests import InferAnswer, Wanted
from deploykit.serving.tensors import BYTES, Tensor, datatype_of, output_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from deploykit.core.specs import TensorSpec
    from deploykit.runtime.classifier import Classifier
    from deploykit.serving.decoder import Decoder, IsGone
    from deploykit.serving.limits import ServiceLimits
    from deploykit.serving.metrics import Metrics
    from deploykit.serving.queues import Queue
    from deploykit.serving.requests import InferRequest

ENGINE_PLATFORM: Final = "tensorrt_plan"
GRAPH_PLATFORM: Final = "onnx_onnxv1"
"""Names of the protocol for what runs a model."""

log = logging.getLogger("deploykit.serving")


class ServingModel:
    """A loaded bundle with its queue; made in the event loop's thread.

    Raises:
        UsageError: a tensor has a type that the protocol has no name for.
    """

    def __init__(
        self, name: str, version: str, model: Classifier, limits: ServiceLimits, metrics: Metrics
    ) -> None:
        self.name = name
        self.version = version
        self.model = model
        self.max_batch = _max_batch(model, limits)
        self.max_pixels = limits.max_pixels or images.default_max_pixels(model.preprocessing)
        self.inputs = {spec.name: (datatype_of(spec), spec) for spec in model.inputs}
        self.outputs = {spec.name: (datatype_of(spec), spec) for spec in model.outputs}
        own = ModelMetrics(metrics, name, version)
        self._ready = metrics.ready.labels(name, version)
        self._ready.set(1)  # loading ran the golden sample
        self._preparation = Preparation(model.preprocessing, self.max_pixels, own)
        self.gathers = (
            len(model.inputs) == 1
            and all(_is_per_image(spec, model.inputs[0]) for spec in model.outputs)
            and not images_depend(model, model.run_all)
        )
        self._classification = Classification(model)
        self._queue: Queue = (
            Gathered(model, self.max_batch, limits, own)
            if self.gathers
            else OneByOne(model, limits, own)
        )
        self._requests: set[Future[Any]] = set()
        own.watch_queue(lambda: self._queue.waiting)
        self._test = _SelfTest(model, limits.self_test_every_s)

    @property
    def platform(self) -> str:
        """What runs it, in a name of the protocol."""
        return ENGINE_PLATFORM if self.model.file.endswith(".engine") else GRAPH_PLATFORM

    @property
    def pixels(self) -> dict[str, str]:
        """Axes and colours of the image as a tensor; empty where nobody knows the axes."""
        steps, shape = self.model.preprocessing, self.model.inputs[0].shape
        if steps.pixels is not None:
            return {"layout": steps.pixels.layout, "channel_order": steps.pixels.order}
        if not are_images(shape):
            return {}
        return {"layout": "nchw", "channel_order": steps.channel_order}

    @property
    def is_computing(self) -> bool:
        """Whether a request is being computed, or the golden sample; from any thread."""
        return self._test.is_running or any(each.running() for each in self._requests.copy())

    async def problem(self) -> str | None:
        """Why it is not ready, ``None`` where its golden sample agrees."""
        problem = await self._test.problem()
        self._ready.set(problem is None)
        return problem

    async def infer(self, request: InferRequest, decoder: Decoder, is_gone: IsGone) -> InferAnswer:
        """The answer to a request.

        Raises:
            RefusedError: it does not fit the model.
            DeploykitError: what became of it; `refusal_of` puts it in words for its sender.
        """
        wanted = self._wanted(request)
        feeds = await self._feeds(request, decoder, is_gone)
        future = self._queue.submit(feeds)
        self._requests.add(future)
        future.add_done_callback(self._requests.discard)
        try:
            found = self._queue.result_of(await asyncio.wrap_future(future))
        except DeviceError as error:
            self._test.fail(error)
            self._ready.set(0)
            raise
        finally:
            future.cancel()  # of a sender that gave up; does nothing to one that is done
        outputs = tuple((self._output(found, each), each) for each in wanted)
        return InferAnswer(self.name, self.version, request.id, outputs)

    def close(self) -> None:
        """Answer what waits, then give everything back."""
        self._queue.close()
        self.model.close()

    # --- what goes in

    async def _feeds(
        self, request: InferRequest, decoder: Decoder, is_gone: IsGone
    ) -> dict[str, NDArray[Any]]:
        given = [each.name for each in request.inputs]
        if len(set(given)) < len(given) or set(given) != self.inputs.keys():
            names = ", ".join(f"{name!r:.40}" for name in given[:8]) or "none"
            raise invalid(f"the inputs are {names}, the model takes {_listed(self.inputs)}")
        feeds = {}
        for tensor in request.inputs:
            if tensor.datatype == BYTES and tensor.name == self.model.inputs[0].name:
                feeds[tensor.name] = await self._decoded(tensor, decoder, is_gone)
            else:
                feeds[tensor.name] = self._checked(tensor)
        counts = {len(array) for array in feeds.values()}
        if len(counts) > 1:
            raise invalid(f"the inputs have batches of {sorted(counts)}, expected one size")
        return feeds

    async def _decoded(self, tensor: Tensor, decoder: Decoder, is_gone: IsGone) -> NDArray[Any]:
        """Encoded images (N,) or (N, 1) as the model takes them, (N, C, H, W)."""
        is_list = tensor.shape[1:] in ((), (1,))
        if not is_list or not tensor.shape:
            raise invalid(
                f"input {tensor.name!r}: encoded images are a BYTES tensor (N,) or (N, 1), not "
                f"{shape_text(tensor.shape)}"
            )
        self._require_count(tensor.name, tensor.shape[0])
        images_of = range(len(tensor.elements))
        return np.stack(
            await asyncio.gather(
                *(self._prepared(tensor, each, decoder, is_gone) for each in images_of)
            )
        )

    async def _prepared(
        self, tensor: Tensor, index: int, decoder: Decoder, is_gone: IsGone
    ) -> NDArray[Any]:
        """One of the images of a request; of several, what is wrong names its place from 0."""
        try:
            return await decoder.prepare(tensor.elements[index], self._preparation, is_gone)
        except (ImageError, RefusedError) as error:
            refusal = refusal_of(error)
            if len(tensor.elements) == 1 or refusal.reason is not Reason.INVALID:
                raise
            raise invalid(f"image {index} of {len(tensor.elements)}: {refusal}") from error

    def _checked(self, tensor: Tensor) -> NDArray[Any]:
        datatype, spec = self.inputs[tensor.name]
        got = f"input {tensor.name!r} is {tensor.datatype} {shape_text(tensor.shape)}"
        fits = len(tensor.shape) == len(spec.shape) and all(
            isinstance(dim, str) or size == dim
            for size, dim in zip(tensor.shape[1:], spec.shape[1:], strict=True)
        )
        if tensor.datatype != datatype or not fits:
            beside = ", or BYTES (N,) of encoded images" if spec is self.model.inputs[0] else ""
            raise invalid(f"{got}, the model takes {datatype} {spec.shape_text}{beside}")
        if 0 in tensor.shape[1:]:
            raise invalid(f"{got}: a size is 0")
        self._require_count(tensor.name, tensor.shape[0])
        self._require_sizes(got, tensor.shape, spec)
        return tensor.array

    def _require_count(self, name: str, count: int) -> None:
        if not 1 <= count <= self.max_batch:
            raise invalid(f"input {name!r} has {count} images, expected 1 to {self.max_batch}")

    def _require_sizes(self, got: str, shape: tuple[int, ...], spec: TensorSpec) -> None:
        ranges = {} if self.model.profile is None else self.model.profile.ranges
        for axis, sizes in ranges.items():
            is_open = 0 < axis < len(shape) and isinstance(spec.shape[axis], str)
            if is_open and shape[axis] not in sizes:
                raise invalid(
                    f"{got}: the {IMAGE_AXES.get(axis, axis)} is not among the engine's "
                    f"{sizes.min} to {sizes.max}"
                )

    # --- what comes out

    def _wanted(self, request: InferRequest) -> tuple[Wanted, ...]:
        for each in request.wanted:
            if each.name not in self.outputs:
                raise invalid(
                    f"output {each.name!r:.80} is unknown, the model gives {_listed(self.outputs)}"
                )
            if each.classes:
                self._classification.require(each.name)
        everything = tuple(Wanted(name, request.is_binary) for name in self.outputs)
        return request.wanted or everything

    def _output(self, found: Mapping[str, NDArray[Any]], wanted: Wanted) -> Tensor:
        if not wanted.classes:
            return output_tensor(wanted.name, found[wanted.name])
        return self._classification.of(found, wanted.name, wanted.classes)


def _max_batch(model: Classifier, limits: ServiceLimits) -> int:
    """Images that a request may have, and that a batch is gathered of."""
    profile = model.profile
    largest = (
        BatchLimits.of_engine(profile) if profile else BatchLimits.of_graph(model.inputs)
    ).largest
    wanted = limits.max_batch or largest or DEFAULT_MAX_BATCH
    return wanted if largest is None else min(wanted, largest)


def _is_per_image(output: TensorSpec, images: TensorSpec) -> bool:
    """Whether an output has an entry per image, as far as its shape says it."""
    batch = images.shape[0]
    if isinstance(batch, str):
        return isinstance(next(iter(output.shape), None), str)
    return output.shape[:1] == (batch,)


def _listed(tensors: Mapping[str, tuple[str, TensorSpec]]) -> str:
    return ", ".join(
        f"{name!r} {datatype} {spec.shape_text}" for name, (datatype, spec) in tensors.items()
    )


class _SelfTest:
    """The golden sample, run again when somebody asks and the last run is old."""

    def __init__(self, model: Classifier, every_s: float) -> None:
        self._model = model
        self._every_s = every_s
        self._lock = asyncio.Lock()
        self._problem: str | None = None
        self._failed = False
        self._ran_s = time.monotonic()  # loading ran it

    @property
    def is_running(self) -> bool:
        """Whether the golden sample is being computed."""
        return self._lock.locked()

    def fail(self, error: DeviceError) -> None:
        """The GPU failed: no later run of this process would do better."""
        self._failed = True
        self._problem = f"the GPU failed: {first_line(error)}"

    async def problem(self) -> str | None:
        """What is wrong, by a run that is not older than ``every_s``."""
        async with self._lock:
            if not self._failed and time.monotonic() - self._ran_s >= self._every_s:
                self._problem = await asyncio.to_thread(self._run)
                self._ran_s = time.monotonic()
            return self._problem

    def _run(self) -> str | None:
        try:
            self._model.self_test()
        except DeploykitError as error:
            log.exception("the golden sample of %s failed", self._model.name)
            return str(error)
        return None
