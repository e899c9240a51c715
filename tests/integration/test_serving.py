"""`deploykit serve`: a trained bundle, a model that does what a test wants, its start and end."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import TYPE_CHECKING, Any, cast

import httpx
import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner
from PIL import Image

import deploykit
from deploykit.bundle.manifest import GOLDEN, MANIFEST, MODEL
from deploykit.cli import main
from deploykit.cli.serve import command
from deploykit.core.errors import (
    DataError,
    DeviceError,
    ModelFileError,
    UsageError,
    ValidationError,
)
from deploykit.core.sizes import ShapeProfile, SizeRange
from deploykit.core.specs import PixelInput, Preprocessing, TensorSpec
from deploykit.heads.binary import BINARY
from deploykit.heads.multiclass import MULTICLASS
from deploykit.serving.limits import ServiceLimits
from deploykit.serving.server import Address, run
from tests.bundles import SIZE, engine_record, write_bundle
from tests.documents import ROOT
from tests.fakes.batch_model import PATIENCE_S
from tests.services import client_of, served

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit import Classifier
    from deploykit.heads import Head
    from tests.digits import Digits

COUNT = 40
INFER = "/v2/models/colours/infer"
PNG = {"Content-Type": "image/png"}


def png(pixels: NDArray[np.uint8]) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


# --- a trained bundle


@pytest.fixture(scope="module")
def uploads(digits: Digits) -> list[bytes]:
    with np.load(digits.test) as file:
        return [png(pixels) for pixels in file["images"][:COUNT]]


@pytest.fixture(scope="module")
def expected(digits: Digits, fp16_bundle: Path) -> NDArray[np.float64]:
    """Logits (COUNT, 10) by onnxruntime and numpy alone, one image at a time."""
    with np.load(digits.test) as file:
        pixels = file["images"][:COUNT]
    step = json.loads((fp16_bundle / "manifest.json").read_text())["preprocessing"]
    batch = ((pixels / 255 - step["mean"]) / step["std"]).transpose(0, 3, 1, 2).astype(np.float32)
    session = onnxruntime.InferenceSession(
        fp16_bundle / "model.onnx", providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    rows = [session.run(None, {name: batch[i : i + 1]})[0] for i in range(COUNT)]
    return np.concatenate(rows).astype(np.float64)


def check_classes(answer: httpx.Response, expected: NDArray[np.float64]) -> None:
    assert answer.status_code == 200, answer.text
    (output,) = answer.json()["outputs"]
    found = [each.split(":") for each in output["data"]]
    assert [int(index) for _, index, _ in found] == np.argsort(-expected)[: len(found)].tolist()
    for value, index, label in found:
        assert label == f"digit {index}"
        assert float(value) == pytest.approx(expected[int(index)], abs=0.03)


def test_many_at_once_each_get_their_own(
    fp16_bundle: Path, uploads: list[bytes], expected: NDArray[np.float64]
) -> None:
    async def scenario() -> None:
        model = deploykit.load(fp16_bundle, device="cpu", threads=1)
        async with client_of(model) as (client, service):
            path = f"{INFER}?classification=1"
            asked = (client.post(path, content=upload, headers=PNG) for upload in uploads)
            for answer, row in zip(await asyncio.gather(*asked), expected, strict=True):
                check_classes(answer, row)
            three = await client.post(f"{INFER}?classification=3", content=uploads[0], headers=PNG)
            check_classes(three, expected[0])
            assert len(three.json()["outputs"][0]["data"]) == 3
            text = service.metrics.text().decode()
            batches = re.search(r'batch_images_count\{model="colours",version="1"\} (\S+)', text)
            assert batches is not None
            assert 1 < float(batches[1]) <= COUNT + 1
            assert (service.in_flight, service.held_bytes) == (0, 0)

    asyncio.run(scenario())


def test_images_in_json(fp16_bundle: Path, uploads: list[bytes]) -> None:
    data = [base64.b64encode(each).decode() for each in uploads[:2]]

    async def scenario() -> None:
        with deploykit.load(fp16_bundle, device="cpu", threads=1) as same:
            best = [found[0].index for found in same.predict(uploads[:2], top_k=1)]
            name = same.inputs[0].name
        model = deploykit.load(fp16_bundle, device="cpu", threads=1)
        given: dict[str, Any] = {"name": name, "shape": [2], "datatype": "BYTES", "data": data}
        given["parameters"] = {"content_type": "base64"}
        async with client_of(model) as (client, _):
            answer = await client.post(INFER, json={"inputs": [given]})
            (output,) = answer.json()["outputs"]
            rows = np.reshape(output["data"], output["shape"])
            assert rows.argmax(axis=1).tolist() == best

    asyncio.run(scenario())


# --- a model that does what a test wants


class Double:
    """A classifier of 2 x 2 images whose ``run_all`` waits for a gate, or fails as it is told."""

    name, device, choice, file = "double", "cpu", "none", "model.onnx"
    labels: tuple[str, ...] = ("dark", "bright")
    head: Head = MULTICLASS
    preprocessing: Preprocessing = Preprocessing(crop=(2, 2))
    profile: Any = None
    inputs: tuple[TensorSpec, ...] = (TensorSpec("x", "float32", ("batch", 3, 2, 2)),)
    outputs: tuple[TensorSpec, ...] = (TensorSpec("y", "float32", ("batch", 2)),)

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.run_error: Exception | None = None
        self.test_error: Exception | None = None
        self.tests = 0
        self.is_closed = False

    def run_all(self, batch: Any) -> Mapping[str, NDArray[np.float32]]:
        self.entered.release()
        assert self.gate.wait(PATIENCE_S)
        if self.run_error is not None:
            raise self.run_error
        return {"y": self.answer(batch)}

    def answer(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        brightness = batch.mean(axis=(1, 2, 3))
        return np.stack([-brightness, brightness], axis=1)

    def self_test(self) -> None:
        self.tests += 1
        if self.test_error is not None:
            raise self.test_error

    def close(self) -> None:
        self.is_closed = True

    def as_model(self) -> Classifier:
        return cast("Classifier", self)


BRIGHT = png(np.full((2, 2, 3), 255, np.uint8))
DARK = png(np.zeros((2, 2, 3), np.uint8))


def top_label(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["outputs"][0]["data"][0].rpartition(":")[2])


async def asked(client: httpx.AsyncClient, image: bytes = BRIGHT) -> httpx.Response:
    return await client.post(f"{INFER}?classification=1", content=image, headers=PNG)


def test_one_too_many_is_told_to_come_again() -> None:
    double = Double()

    async def scenario() -> None:
        limits = ServiceLimits(max_in_flight=2, max_wait_ms=0)
        async with client_of(double.as_model(), limits) as (client, service):
            double.gate.clear()
            first = asyncio.create_task(asked(client))
            assert await asyncio.to_thread(double.entered.acquire, timeout=PATIENCE_S)
            second = asyncio.create_task(asked(client, DARK))
            while service.in_flight < 2:
                await asyncio.sleep(0.001)
            refused = await asked(client)
            assert refused.status_code == 429
            assert refused.headers["Retry-After"] == "1"
            assert refused.json() == {"error": "2 requests are in flight, try again later"}
            assert (await client.get("/v2/health/ready")).status_code == 200
            double.gate.set()
            assert (top_label(await first), top_label(await second)) == ("bright", "dark")
            assert top_label(await asked(client)) == "bright"
            assert b'deploykit_rejected_total{why="in_flight"} 1.0' in service.metrics.text()

    asyncio.run(scenario())
    assert double.is_closed


def test_a_full_queue_is_told_to_come_again() -> None:
    double = Double()

    async def scenario() -> None:
        limits = ServiceLimits(max_queue=1, max_batch=1, max_wait_ms=0)
        async with client_of(double.as_model(), limits) as (client, service):
            double.gate.clear()
            first = asyncio.create_task(asked(client))
            assert await asyncio.to_thread(double.entered.acquire, timeout=PATIENCE_S)
            second = asyncio.create_task(asked(client))
            while b'queue_images{model="colours",version="1"} 1.0' not in service.metrics.text():
                await asyncio.sleep(0.001)
            refused = await asked(client)
            assert refused.status_code == 429
            assert refused.json()["error"].startswith(
                "a request of 1 images found 1 waiting, max_q"
            )
            double.gate.set()
            assert (top_label(await first), top_label(await second)) == ("bright", "bright")

    asyncio.run(scenario())


def test_bytes_of_all_requests_are_limited() -> None:
    double = Double()

    async def scenario() -> None:
        limits = ServiceLimits(max_held_bytes=len(BRIGHT) + 10, max_wait_ms=0)
        async with client_of(double.as_model(), limits) as (client, service):
            double.gate.clear()
            first = asyncio.create_task(asked(client))
            assert await asyncio.to_thread(double.entered.acquire, timeout=PATIENCE_S)
            refused = await asked(client)
            assert refused.status_code == 429
            assert refused.json()["error"].startswith(
                f"requests in flight hold {len(BRIGHT)} bytes"
            )
            double.gate.set()
            assert top_label(await first) == "bright"
            assert service.held_bytes == 0

    asyncio.run(scenario())


def test_a_slow_model_is_not_waited_for() -> None:
    double = Double()

    async def scenario() -> None:
        async with client_of(double.as_model(), ServiceLimits(infer_timeout_s=0.05)) as (
            client,
            service,
        ):
            double.gate.clear()
            late = await asked(client)
            assert (late.status_code, late.json()) == (504, {"error": "no answer within 0.05 s"})
            assert service.in_flight == 0
            double.gate.set()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (DeviceError("illegal address at 0x7f"), 503, "the GPU failed"),
        (ModelFileError("/secret/model.onnx failed to run"), 500, "the model failed"),
    ],
)
def test_a_failing_model_is_told_apart_and_its_words_stay_here(
    error: Exception, status: int, text: str
) -> None:
    double = Double()

    async def scenario() -> None:
        async with client_of(double.as_model()) as (client, _):
            double.run_error = error
            answer = await asked(client)
            assert (answer.status_code, answer.json()) == (status, {"error": text})
            double.run_error = None
            assert top_label(await asked(client)) == "bright"
            ready = await client.get("/v2/health/ready")
            is_lost = isinstance(error, DeviceError)
            assert ready.status_code == (503 if is_lost else 200)
            assert ready.json()["ready"] is not is_lost

    asyncio.run(scenario())


def test_readiness_is_the_golden_sample() -> None:
    double = Double()

    async def scenario() -> None:
        limits = ServiceLimits(self_test_every_s=0)
        async with client_of(double.as_model(), limits) as (client, _):
            assert (await client.get("/v2/models/colours/ready")).status_code == 200
            double.test_error = ValidationError("other logits than at export")
            for path in ("/v2/health/ready", "/v2/models/colours/ready"):
                answer = await client.get(path)
                assert answer.status_code == 503
                assert answer.json()["ready"] is False
                assert answer.json()["reason"] == (
                    "colours, version 1: other logits than at export"
                )
            assert (await client.get("/v2/health/live")).json() == {"live": True}
            (state,) = (await client.get("/v2/repository/index")).json()
            assert state["state"] == "UNAVAILABLE"
            double.test_error = None
            assert (await client.get("/v2/health/ready")).status_code == 200
            assert double.tests == 5

    asyncio.run(scenario())


class OfBytes(Double):
    """Bytes (N, 2, 2, 3) of blue, green and red."""

    preprocessing = Preprocessing(crop=(2, 2), pixels=PixelInput("nhwc", "bgr"))
    inputs = (TensorSpec("x", "uint8", ("batch", 2, 2, 3)),)


@pytest.mark.parametrize(
    ("double", "layout", "order"), [(OfBytes, "nhwc", "bgr"), (Double, "nchw", "rgb")]
)
def test_metadata_say_axes_and_colours(double: type[Double], layout: str, order: str) -> None:
    async def scenario() -> None:
        async with client_of(double().as_model()) as (client, _):
            (image,) = (await client.get("/v2/models/colours")).json()["inputs"]
            assert image["parameters"] == {"layout": layout, "channel_order": order}

    asyncio.run(scenario())


def test_metadata_do_not_guess_axes() -> None:
    async def scenario() -> None:
        double = Double()
        double.inputs = (TensorSpec("x", "float32", ("batch", 12)),)
        async with client_of(double.as_model()) as (client, _):
            (given,) = (await client.get("/v2/models/colours")).json()["inputs"]
            assert "parameters" not in given

    asyncio.run(scenario())


READY = 'deploykit_ready{model="colours",version="1"}'


def test_the_ready_metric_needs_no_one_who_asks() -> None:
    double = Double()

    async def scenario() -> None:
        async with client_of(double.as_model()) as (client, _):
            assert f"{READY} 1.0\n" in (await client.get("/metrics")).text
            double.run_error = DeviceError("the context is lost")
            assert (await asked(client)).status_code == 503
            assert f"{READY} 0.0\n" in (await client.get("/metrics")).text

    asyncio.run(scenario())
    assert double.tests == 0


def test_a_fresh_golden_sample_is_not_run_again() -> None:
    double = Double()

    async def scenario() -> None:
        async with client_of(double.as_model()) as (client, _):
            for _ in range(5):
                assert (await client.get("/v2/health/ready")).status_code == 200

    asyncio.run(scenario())
    assert double.tests == 0  # it ran when the bundle was loaded


class OfTwo(Double):
    """Two inputs, two outputs, and a value of the second that belongs to no image."""

    inputs = (*Double.inputs, TensorSpec("scale", "int64", ("batch", 1)))
    outputs = (*Double.outputs, TensorSpec("sum", "float32", (1,)))

    def run_all(self, batch: Any) -> Mapping[str, NDArray[np.float32]]:
        found = self.answer(batch["x"]) * batch["scale"]
        return {"y": found, "sum": batch["x"].sum(keepdims=True).reshape(1)}


class OfMany(Double):
    """Two outputs for each image, of different types."""

    outputs = (*Double.outputs, TensorSpec("best", "int64", ("batch",)))

    def run_all(self, batch: Any) -> Mapping[str, NDArray[Any]]:
        found = self.answer(batch)
        return {"y": found, "best": found.argmax(axis=1)}


class OfBinary(Double):
    """One value for each image, of the positive class."""

    head = BINARY
    outputs = (TensorSpec("y", "float32", ("batch", 1)),)

    def answer(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.stack([batch.mean(axis=(1, 2, 3))], axis=1)


class OfMoreLabels(Double):
    """Labels that are not those of the columns."""

    labels = ("dark", "bright", "neither")


@pytest.mark.parametrize(("double", "entry"), [(OfBinary, "0:bright"), (OfMoreLabels, "1")])
def test_a_value_has_the_name_of_its_own_class(double: type[Double], entry: str) -> None:
    async def scenario() -> None:
        async with client_of(double().as_model()) as (client, _):
            values = tensor("x", np.full((1, 3, 2, 2), 0.25, np.float32), "FP32")
            wanted = {"name": "y", "parameters": {"classification": 1}}
            answer = await client.post(INFER, json={"inputs": [values], "outputs": [wanted]})
            assert answer.json()["outputs"][0]["data"] == [f"0.250000:{entry}"]

    asyncio.run(scenario())


def tensor(name: str, array: NDArray[Any], datatype: str) -> dict[str, Any]:
    shape, data = list(array.shape), array.ravel().tolist()
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def test_several_inputs_are_run_one_by_one() -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
    scale = np.array([[3], [5]])

    async def scenario() -> None:
        async with client_of(OfTwo().as_model()) as (client, service):
            (served_model,) = service.models.in_order
            assert not served_model.gathers
            both = [tensor("scale", scale, "INT64"), tensor("x", values, "FP32")]
            answer = await client.post(INFER, json={"inputs": both})
            y, total = answer.json()["outputs"]
            brightness = values.mean(axis=(1, 2, 3)) * scale[:, 0]
            assert np.reshape(y["data"], (2, 2)) == pytest.approx(
                np.stack([-brightness, brightness], 1)
            )
            assert total["data"] == [values.sum()]
            one = await client.post(INFER, json={"inputs": both[1:]})
            assert one.status_code == 400
            assert one.json()["error"].startswith("the inputs are 'x', the model takes 'x' FP32")
            both[0] = tensor("scale", scale[:1], "INT64")
            uneven = await client.post(INFER, json={"inputs": both})
            assert uneven.json() == {
                "error": "the inputs have batches of [1, 2], expected one size"
            }

    asyncio.run(scenario())


def test_several_inputs_have_a_full_queue_too() -> None:
    double = OfTwo()
    held, entered = threading.Event(), threading.Event()
    compute = double.run_all

    def run_all(batch: Any) -> Any:
        entered.set()
        assert held.wait(PATIENCE_S)
        return compute(batch)

    double.run_all = run_all  # type: ignore[method-assign]
    both = [
        tensor("scale", np.ones((2, 1), int), "INT64"),
        tensor("x", np.ones((2, 3, 2, 2)), "FP32"),
    ]

    async def scenario() -> None:
        async with client_of(double.as_model(), ServiceLimits(max_queue=3)) as (client, service):
            tasks = [asyncio.create_task(client.post(INFER, json={"inputs": both}))]
            await asyncio.to_thread(entered.wait, PATIENCE_S)
            tasks.append(asyncio.create_task(client.post(INFER, json={"inputs": both})))
            while b'queue_images{model="colours",version="1"} 2.0' not in service.metrics.text():
                await asyncio.sleep(0.001)
            refused = await client.post(INFER, json={"inputs": both})
            assert refused.status_code == 429
            tasks[1].cancel()
            held.set()
            assert (await tasks[0]).status_code == 200
            assert (await client.post(INFER, json={"inputs": both})).status_code == 200

    asyncio.run(scenario())


def test_several_outputs_share_a_batch() -> None:
    values = np.stack([np.full((3, 2, 2), each, np.float32) for each in (2, -3)])

    async def scenario() -> None:
        async with client_of(OfMany().as_model(), ServiceLimits(max_wait_ms=50)) as (
            client,
            service,
        ):
            bodies = [{"inputs": [tensor("x", each[None], "FP32")]} for each in values]
            answers = await asyncio.gather(*(client.post(INFER, json=each) for each in bodies))
            found = [{each["name"]: each for each in one.json()["outputs"]} for one in answers]
            assert [one["y"]["data"] for one in found] == [[-2, 2], [3, -3]]
            assert [(one["best"]["datatype"], one["best"]["data"]) for one in found] == [
                ("INT64", [1]), ("INT64", [0]),
            ]  # fmt: skip
            assert b'batch_images_count{model="colours",version="1"} 1.0' in service.metrics.text()
            only = await client.post(INFER, json=bodies[0] | {"outputs": [{"name": "best"}]})
            assert [each["name"] for each in only.json()["outputs"]] == ["best"]

    asyncio.run(scenario())


class OfFour(Double):
    """Four images at once, neither fewer nor more, each answered for itself."""

    inputs = (TensorSpec("x", "float32", (4, 3, 2, 2)),)
    outputs = (TensorSpec("y", "float32", (4, 2)),)


class OfMean(OfFour):
    """Subtracts the mean of its batch."""

    def answer(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return super().answer(batch - batch.mean(axis=0))


class OfPlaces(OfFour):
    """Weighs each place of its batch otherwise; of bytes, which it gives class numbers for."""

    inputs = (TensorSpec("x", "uint8", (4, 3, 2, 2)),)
    outputs = (TensorSpec("y", "int64", (4,)),)

    def answer(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        assert batch.dtype == np.uint8
        return cast("NDArray[np.float32]", np.arange(len(batch)))


class OfNoNoise(OfFour):
    """Answers NaN, which is refused, for images of noise."""

    def run_all(self, batch: Any) -> Mapping[str, NDArray[np.float32]]:
        raise DataError(f"NaN for {len(batch)} images")


@pytest.mark.parametrize(
    ("kind", "gathers"), [(OfFour, True), (OfMean, False), (OfPlaces, False), (OfNoNoise, False)]
)
def test_a_fixed_batch_is_shared_only_where_no_image_changes_anothers_answer(
    kind: type[Double], *, gathers: bool
) -> None:
    async def scenario() -> None:
        async with client_of(kind().as_model()) as (_, service):
            (served_model,) = service.models.in_order
            assert served_model.gathers is gathers

    asyncio.run(scenario())


class OfSizes(Double):
    """Images of an open height and width, as an engine takes them: up to 4 of them at once."""

    inputs = (TensorSpec("x", "float32", ("batch", 3, "h", "w")),)
    profile: Any = ShapeProfile(1, 2, 4, height=SizeRange(2, 4, 8), width=SizeRange(2, 4, 8))
    file = "a.engine"


def test_sizes_and_batches_are_those_of_the_engine() -> None:
    async def scenario() -> None:
        async with client_of(OfSizes().as_model()) as (client, _):

            async def sent(*shape: int) -> httpx.Response:
                values = tensor("x", np.ones(shape, np.float32), "FP32")
                return await client.post(INFER, json={"inputs": [values]})

            assert (await sent(4, 3, 2, 8)).status_code == 200
            low = await sent(1, 3, 1, 8)
            assert low.json()["error"] == (
                "input 'x' is FP32 (1, 3, 1, 8): the height is not among the engine's 2 to 8"
            )
            many = await sent(5, 3, 2, 8)
            assert many.json() == {"error": "input 'x' has 5 images, expected 1 to 4"}
            none = await sent(1, 3, 2, 0)
            assert none.json() == {"error": "input 'x' is FP32 (1, 3, 2, 0): a size is 0"}
            metadata = (await client.get("/v2/models/colours")).json()
            assert metadata["platform"] == "tensorrt_plan"
            assert metadata["inputs"][0]["shape"] == [-1, 3, -1, -1]

    asyncio.run(scenario())


# --- as a process: what is said before it listens, and its end


def test_sizes_on_the_cpu_are_those_of_the_export(tmp_path: Path) -> None:
    sizes = {"name": "colours", "num_classes": 3, "height": (4, 8, 64), "width": (4, 8, 64)}
    folder = write_bundle(tmp_path / "colours", image="height, width", model=sizes)

    async def scenario() -> None:
        async with client_of(deploykit.load(folder, device="cpu")) as (client, _):

            async def sent(height: int, width: int) -> httpx.Response:
                images = np.ones((2, 3, height, width), np.float32)
                return await client.post(INFER, json={"inputs": [tensor("input", images, "FP32")]})

            assert (await sent(64, 4)).json()["outputs"][0]["data"] == [1.0] * 6
            refused = await sent(8, 700)
            assert refused.status_code == 400
            assert "the width 700 is not among the bundle's 4 to 64" in refused.json()["error"]
            assert (await sent(4, 64)).status_code == 200

    asyncio.run(scenario())


def test_sigterm_answers_what_was_accepted_and_refuses_the_rest(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "colours")
    half = b"POST /v2/models/colours-fp32/infer HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    image = png(np.full((SIZE, SIZE, 3), 255, np.uint8))
    with served(bundle) as running:
        with socket.create_connection(("127.0.0.1", running.http_port), PATIENCE_S) as accepted:
            accepted.sendall(half + f"Content-Length: {len(image)}\r\n\r\n".encode())
            with httpx.Client(base_url=running.http) as other:
                while "in_flight_requests 1.0" not in other.get("/metrics").text:
                    time.sleep(0.01)
                running.process.send_signal(signal.SIGTERM)
                while (ready := other.get("/v2/health/ready")).status_code == 200:
                    time.sleep(0.01)
                assert ready.json()["reason"] == "the service is stopping"
                refused = other.post("/v2/models/colours-fp32/infer", content=b"{}")
                assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
            accepted.sendall(image)
            assert accepted.recv(65536).startswith(b"HTTP/1.1 200 OK")
        _, said = running.process.communicate(timeout=PATIENCE_S)
    assert running.process.returncode == 0, said
    assert "Traceback" not in said


HANGS = """colours (float[{batch}, 3, {image}] input) => (float[{batch}, 3] logits)
{{
    mean = GlobalAveragePool (input)  logits0 = Flatten (mean)
    most = ReduceMax <keepdims = 0> (input)  limit = Constant <value_float = 100.0> ()
    above = Sub (most, limit)  count0 = Relu (above)
    huge = Constant <value_float = 1e12> ()  count1 = Mul (count0, huge)
    count = Cast <to = 7> (count1)
    logits = Loop (count, , logits0) <body = step
        (int64 i, bool going, float[a, b] x) => (bool on, float[a, b] y)
        {{ on = Identity (going)  y = Identity (x) }}>
}}"""
"""`COLOURS` for pixels, and a loop that takes years where a value is beyond 100."""


@pytest.mark.parametrize("as_json", [False, True])
def test_a_model_that_hangs_does_not_hold_the_end(tmp_path: Path, *, as_json: bool) -> None:
    bundle = write_bundle(tmp_path / "colours", source=HANGS)
    given = tensor("input", np.full((1, 3, SIZE, SIZE), 1000.0, np.float32), "FP32")
    options = ("--graceful-timeout-s", 0.5, "--end-timeout-s", 0.5, *["--json"] * as_json)

    def ask(address: str) -> httpx.Response:
        path = f"{address}/v2/models/colours-fp32/infer"
        return httpx.post(path, json={"inputs": [given]}, timeout=PATIENCE_S)

    with served(bundle, *options) as running, ThreadPoolExecutor(2) as clients:
        answers = [clients.submit(ask, running.http) for _ in range(2)]
        with httpx.Client(base_url=running.http) as other:
            while "in_flight_requests 2.0" not in other.get("/metrics").text:
                time.sleep(0.01)
        running.process.send_signal(signal.SIGTERM)
        answer, said = running.process.communicate(timeout=PATIENCE_S)
        assert [each.result().status_code for each in answers] == [503, 503]
    assert running.process.returncode == 1, said
    told = "colours-fp32, version 1, is still computing; 2 requests were given up\n"
    assert f"Error: {told}" in said
    assert answer == "" if not as_json else json.loads(answer)["error"]["message"].startswith(told)
    assert "Traceback" not in said


def refusal(*arguments: object) -> tuple[int, str]:
    found = CliRunner().invoke(main, ["serve", *map(str, arguments)])
    return found.exit_code, found.output


def newer(folder: Path) -> None:
    (folder / MANIFEST).write_text('{"schema_version": 99}', encoding="utf-8")


def changed(folder: Path) -> None:
    with (folder / MODEL).open("ab") as file:
        file.write(b"x")


def without_sample(folder: Path) -> None:
    (folder / GOLDEN).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (newer, "a newer deploykit wrote it: install a later version"),
        (changed, MODEL),
        (without_sample, "is not served"),
        (lambda folder: (folder / MANIFEST).write_text("{"), MANIFEST),
        (lambda folder: (folder / MANIFEST).unlink(), "is no bundle and has no versions of one"),
    ],
)
def test_a_bad_bundle_is_refused_before_anything_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], object], message: str
) -> None:
    monkeypatch.setattr("deploykit.serving.server.run", lambda *_: pytest.fail("it listened"))
    good = write_bundle(tmp_path / "good")
    bad = write_bundle(tmp_path / "bad")
    damage(bad)
    code, said = refusal(good, bad, "--http-port", 0, "--grpc-port", 0, "--device", "cpu")
    assert code == 1
    assert message in said
    assert "Traceback" not in said


def test_engines_of_another_compiler_are_refused_on_a_gpu(tmp_path: Path) -> None:
    engine = engine_record("a.engine", compiler="openvino")
    bundle = write_bundle(tmp_path / "colours", engine)
    code, said = refusal(bundle, "--http-port", 0, "--grpc-port", 0, "--device", "cuda")
    assert code == 1
    assert "a.engine" in said


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for option in ("--http-port", "--grpc-port"):
            code, said = refusal(write_bundle(tmp_path / "colours"), option, port)
            assert code == 2
            assert f"cannot listen on 127.0.0.1:{port}: " in said
            assert f"give another --host or {option}; 0 is any free port" in said


def test_one_port_for_both_protocols_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    bundle = write_bundle(tmp_path / "colours")
    code, said = refusal(bundle, "--http-port", port, "--grpc-port", port)
    assert code == 2
    assert f"--http-port and --grpc-port are both {port}\ngive each its own; 0 is any" in said


def test_a_grpc_port_that_is_taken_meanwhile_ends_the_start() -> None:
    double = Double()
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("", 0)) as http:
        address = Address(grpc_port=taken.getsockname()[1])
        loaded = [("colours", "1", double.as_model())]
        with pytest.raises(UsageError, match=r"gRPC cannot listen on 127\.0\.0\.1:\d+: .*\ngive"):
            run(
                loaded,
                ServiceLimits(),
                address,
                http,
                lambda *_: pytest.fail("it started"),
                lambda error: pytest.fail(str(error)),
            )
    assert double.is_closed


def test_wrong_calls_are_refused(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "colours")
    same = ("--http-port", 0, "--grpc-port", 0, "--device", "cpu")
    code, said = refusal(bundle, bundle, *same)
    assert code == 2
    assert f"two bundles are called colours-fp32, version 1: {bundle} and {bundle}" in said
    code, said = refusal(bundle, "--max-queue", 0)
    assert (code, "max_queue=0 lets nothing through" in said) == (2, True)
    assert refusal(tmp_path / "none")[0] == 1
    assert refusal()[0] == 2


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploykit.verbs.serve.NEEDED", ("prometheus_client.none",))
    code, said = refusal(write_bundle(tmp_path / "colours"))
    assert code == 1
    assert "pip install starlette uvicorn grpcio protobuf prometheus-client" in said


def test_the_page_names_the_options_that_there_are() -> None:
    page = (ROOT / "docs" / "serving" / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(--[a-z-]+)", page))
    known = {option for each in command.params for option in each.opts if option[:2] == "--"}
    own = {"--json", "--quiet", "--debug"}
    assert named == known - own
