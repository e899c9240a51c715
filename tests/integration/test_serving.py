"""The service of docs/serving: with a real bundle, with a model that does what a test wants, and as
a process of its own that answers on a port.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import threading
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import httpx
import numpy as np
import onnxruntime
import pytest
from PIL import Image

import deploykit
from deploykit.core.errors import DeviceError, ModelFileError, ValidationError
from deploykit.core.specs import Preprocessing
from deploykit.heads.multiclass import MULTICLASS
from docs.serving.app import Limits, create_app
from tests.fakes.batch_model import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from numpy.typing import NDArray

    from deploykit import Classifier
    from tests.digits import Digits

APP = Path(__file__).parents[2] / "docs" / "serving" / "app.py"
COUNT = 40


def png(pixels: NDArray[np.uint8]) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def uploads(digits: Digits) -> list[bytes]:
    with np.load(digits.test) as file:
        return [png(pixels) for pixels in file["images"][:COUNT]]


@pytest.fixture(scope="module")
def expected(digits: Digits, fp16_bundle: Path) -> NDArray[np.float64]:
    """Probabilities (COUNT, 10) by onnxruntime and numpy alone, one image at a time."""
    with np.load(digits.test) as file:
        pixels = file["images"][:COUNT]
    step = json.loads((fp16_bundle / "manifest.json").read_text())["preprocessing"]
    batch = ((pixels / 255 - step["mean"]) / step["std"]).transpose(0, 3, 1, 2).astype(np.float32)
    session = onnxruntime.InferenceSession(
        fp16_bundle / "model.onnx", providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    rows = np.concatenate([session.run(None, {name: batch[i : i + 1]})[0] for i in range(COUNT)])
    odds = np.exp(rows.astype(np.float64) - rows.max(axis=1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))


@asynccontextmanager
async def client_of(
    load: Callable[[], Classifier], limits: Limits | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(load, limits or Limits())
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://service") as client,
    ):
        yield client


def on_cpu(bundle: Path) -> Callable[[], Classifier]:
    return partial(deploykit.load, bundle, device="cpu", threads=1)


def check_predictions(answer: httpx.Response, expected: NDArray[np.float64]) -> None:
    assert answer.status_code == 200, answer.text
    found = answer.json()["predictions"]
    assert [each["index"] for each in found] == np.argsort(-expected)[: len(found)].tolist()
    for each in found:
        assert each["label"] == f"digit {each['index']}"
        assert each["probability"] == pytest.approx(expected[each["index"]], abs=2e-3)


def test_an_image_gets_its_classes(
    fp16_bundle: Path, uploads: list[bytes], expected: NDArray[np.float64]
) -> None:
    async def scenario() -> None:
        async with client_of(on_cpu(fp16_bundle)) as client:
            answer = await client.post("/predict?top_k=1", content=uploads[0])
            check_predictions(answer, expected[0])
            assert len(answer.json()["predictions"]) == 1
            three = await client.post("/predict", params={"top_k": 3}, content=uploads[0])
            assert len(three.json()["predictions"]) == 3

    asyncio.run(scenario())


def test_many_at_once_each_get_their_own(
    fp16_bundle: Path, uploads: list[bytes], expected: NDArray[np.float64]
) -> None:
    async def scenario() -> None:
        async with client_of(on_cpu(fp16_bundle)) as client:
            asked = (client.post("/predict?top_k=1", content=upload) for upload in uploads)
            for answer, row in zip(await asyncio.gather(*asked), expected, strict=True):
                check_predictions(answer, row)
            stats = (await client.get("/stats")).json()
            assert stats["answered"] == stats["images"] == COUNT
            assert stats["in_flight"] == stats["queued_images"] == 0
            assert (stats["device"], stats["model"]) == ("cpu", "resnet20-fp16")
            assert stats["mean_batch"] == COUNT / stats["batches"]

    asyncio.run(scenario())


def test_bad_uploads_are_refused_in_words(fp16_bundle: Path, uploads: list[bytes]) -> None:
    async def scenario() -> None:
        limits = Limits(max_upload_bytes=2000)
        async with client_of(on_cpu(fp16_bundle), limits) as client:
            text = await client.post("/predict", content=b"this is text")
            assert text.status_code == 400
            assert text.json()["detail"].startswith("cannot read the image\n")
            assert (await client.post("/predict")).status_code == 400
            cut = await client.post("/predict", content=uploads[0][:-30])
            assert cut.status_code == 400
            large = await client.post("/predict", content=b"x" * 2001)
            assert (large.status_code, large.json()["detail"]) == (
                413,
                "an image may have 2000 bytes",
            )
            none = await client.post("/predict?top_k=0", content=uploads[0])
            assert none.status_code == 422
            good = await client.post("/predict", content=uploads[0])
            assert good.status_code == 200

    asyncio.run(scenario())


def test_health_runs_the_golden_sample(fp16_bundle: Path) -> None:
    async def scenario() -> None:
        async with client_of(on_cpu(fp16_bundle)) as client:
            answer = await client.get("/health")
            assert (answer.status_code, answer.json()) == (200, {"status": "ok"})

    asyncio.run(scenario())


class Double:
    """A classifier of 2 x 2 images whose ``run`` waits for a gate, or fails with what is set."""

    name, device, choice = "double", "cpu", "none"
    labels = ("dark", "bright")
    head = MULTICLASS
    preprocessing = Preprocessing(crop=(2, 2))

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.run_error: Exception | None = None
        self.test_error: Exception | None = None
        self.is_closed = False

    def load(self) -> Classifier:
        return cast("Classifier", self)

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        self.entered.release()
        assert self.gate.wait(PATIENCE_S)
        if self.run_error is not None:
            raise self.run_error
        brightness = batch.mean(axis=(1, 2, 3))
        return np.stack([-brightness, brightness], axis=1)

    def self_test(self) -> None:
        if self.test_error is not None:
            raise self.test_error

    def close(self) -> None:
        self.is_closed = True


BRIGHT = png(np.full((2, 2, 3), 255, np.uint8))
DARK = png(np.zeros((2, 2, 3), np.uint8))


def top_label(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["predictions"][0]["label"])


def test_one_too_many_is_told_to_come_again() -> None:
    double = Double()

    async def scenario() -> None:
        async with client_of(double.load, Limits(max_in_flight=2, max_wait_ms=0)) as client:
            double.gate.clear()
            first = asyncio.create_task(client.post("/predict", content=BRIGHT))
            assert await asyncio.to_thread(double.entered.acquire, timeout=PATIENCE_S)
            second = asyncio.create_task(client.post("/predict", content=DARK))
            while (await client.get("/stats")).json()["queued_images"] != 1:
                await asyncio.sleep(0.001)
            refused = await client.post("/predict", content=BRIGHT)
            assert refused.status_code == 503
            assert refused.headers["Retry-After"] == "1"
            assert refused.json()["detail"] == "2 requests are in flight, try again later"
            assert (await client.get("/health")).status_code == 200
            double.gate.set()
            assert (top_label(await first), top_label(await second)) == ("bright", "dark")
            assert top_label(await client.post("/predict", content=BRIGHT)) == "bright"

    asyncio.run(scenario())
    assert double.is_closed


@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [
        (DeviceError("illegal address at 0x7f"), 503, "the GPU failed"),
        (ModelFileError("/secret/model.onnx failed to run"), 500, "the model failed"),
    ],
)
def test_a_failing_model_is_told_apart_and_its_words_stay_here(
    error: Exception, status: int, detail: str
) -> None:
    double = Double()

    async def scenario() -> None:
        async with client_of(double.load) as client:
            double.run_error = error
            answer = await client.post("/predict", content=BRIGHT)
            assert (answer.status_code, answer.json()) == (status, {"detail": detail})
            double.run_error = None
            assert top_label(await client.post("/predict", content=BRIGHT)) == "bright"

    asyncio.run(scenario())


def test_health_fails_when_the_golden_sample_does() -> None:
    double = Double()

    async def scenario() -> None:
        async with client_of(double.load) as client:
            double.test_error = ValidationError("other logits than at export")
            answer = await client.get("/health")
            assert answer.status_code == 503
            assert answer.json() == {"status": "failing", "reason": "other logits than at export"}

    asyncio.run(scenario())


def test_a_model_that_fails_its_golden_sample_is_not_served() -> None:
    double = Double()
    double.test_error = ValidationError("other logits than at export")

    async def scenario() -> None:
        async with client_of(double.load):
            pytest.fail("it was served")

    with pytest.raises(ValidationError, match="other logits"):
        asyncio.run(scenario())


@contextmanager
def served(bundle: Path, *options: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and its address once it answers."""
    command: list[Any] = [sys.executable, APP, bundle, "--device", "cpu", "--port", "0"]
    command += map(str, options)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process, _address(process)
        finally:
            process.kill()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        found = re.search(r"running on (http://\S+)", line)
        if found:
            return found[1]
    raise AssertionError("".join(said))


def test_as_a_process_on_a_port(
    fp16_bundle: Path, uploads: list[bytes], expected: NDArray[np.float64]
) -> None:
    with served(fp16_bundle) as (process, address):
        with httpx.Client(base_url=address, timeout=PATIENCE_S) as client:
            assert client.get("/health").json() == {"status": "ok"}
            check_predictions(client.post("/predict?top_k=1", content=uploads[0]), expected[0])
            assert client.post("/predict", content=b"text").status_code == 400
            assert "/predict" in client.get("/openapi.json").json()["paths"]
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert "Application shutdown complete" in said
    assert "Traceback" not in said


def test_the_page_names_the_options_that_there_are() -> None:
    page = (APP.parent / "README.md").read_text(encoding="utf-8")
    done = subprocess.run(
        [sys.executable, APP, "--help"], capture_output=True, text=True, check=True
    )
    named = set(re.findall(r"--(?:max|device|port|host|read|graceful|trust)[a-z-]*", page))
    assert named == set(re.findall(r"--[a-z-]+", done.stdout)) - {"--help", "--host"}
