"""`deploykit serve` under clients that stall, and under images that are bombs."""

from __future__ import annotations

import asyncio
import io
import re
import shutil
import signal
import socket
import threading
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import grpc
import httpx
import numpy as np
import psutil
import pytest
from PIL import Image
from starlette.requests import Request

import deploykit
from deploykit import images
from deploykit.serving.limits import ServiceLimits
from tests.bundles import PLAIN, SIZE, write_bundle
from tests.cli import deploykit as deploykit_command
from tests.fakes.batch_model import PATIENCE_S
from tests.services import client_of, served
from tests.unit.images.test_pixel_limit import png_header

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 2**20
INFER = "/v2/models/colours-fp32/infer"
NAME = "colours-fp32"
IMAGE = {"Content-Type": "image/png"}
HEAD = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode()


def on_cpu(bundle: Path) -> deploykit.Classifier:
    return deploykit.load(bundle, device="cpu", threads=1)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "colours")


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service that waits for a second, and takes two images at a time."""
    bundle = write_bundle(tmp_path_factory.mktemp("impatient") / "colours")
    with served(bundle, "--read-timeout-s", 1, "--max-in-flight", 2) as running:
        yield running.http


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


RED = encoded(Image.new("RGB", (SIZE, SIZE), "red"))


def upload(client: httpx.Client, image: bytes, classes: int = 3) -> httpx.Response:
    return client.post(f"{INFER}?classification={classes}", content=image, headers=IMAGE)


def in_flight(client: httpx.Client) -> float:
    found = re.search(r"\ndeploykit_in_flight_requests (\S+)", client.get("/metrics").text)
    assert found is not None
    return float(found[1])


def connect(address: str) -> socket.socket:
    parts = urlsplit(address)
    return socket.create_connection((str(parts.hostname), int(parts.port or 0)), PATIENCE_S)


def answer_of(client: socket.socket) -> bytes:
    """All that comes until the service closes the connection."""
    received = b""
    while part := client.recv(65536):
        received += part
    return received


# --- a re-export below a running service


def test_readiness_stays_right_after_an_export_over_the_bundle(
    bundle: Path, fp16_bundle: Path
) -> None:
    async def scenario() -> None:
        async with client_of(on_cpu(bundle), ServiceLimits(self_test_every_s=0), NAME) as (
            client,
            _,
        ):
            shutil.rmtree(bundle)
            shutil.copytree(fp16_bundle, bundle)
            assert (await client.get("/v2/health/ready")).status_code == 200
            shutil.rmtree(bundle)
            assert (await client.get("/v2/health/ready")).status_code == 200

    asyncio.run(scenario())


# --- clients that stall


def test_a_body_that_does_not_come_gives_its_place_back(impatient: str) -> None:
    with httpx.Client(base_url=impatient) as good:
        stalled = [connect(impatient) for _ in range(2)]
        for client in stalled:
            client.sendall(HEAD + b"half")
        while in_flight(good) < 2:
            time.sleep(0.01)
        assert upload(good, RED).status_code == 429
        for client in stalled:
            said = answer_of(client)
            assert said.startswith(b"HTTP/1.1 408 Request Timeout")
            assert b"the request did not come within 1 s" in said
            client.close()
        assert upload(good, RED).status_code == 200
        assert in_flight(good) == 0


@pytest.mark.parametrize(
    "begun",
    [b"", b"POST /predict HT", b"GET /metrics HTTP/1.1\r\nHost: x\r\n"],
    ids=["nothing", "half a line", "half a head"],
)
def test_a_head_that_does_not_come_closes_the_connection(impatient: str, begun: bytes) -> None:
    with connect(impatient) as client:
        client.sendall(begun)
        assert answer_of(client) == b""


def test_a_second_head_that_trickles_closes_the_connection(impatient: str) -> None:
    with connect(impatient) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200 OK")
        stopped = threading.Event()

        def trickle() -> None:
            while not stopped.wait(0.05):
                try:
                    client.sendall(b"G")
                except OSError:
                    return

        sender = threading.Thread(target=trickle)
        sender.start()
        try:
            answer_of(client)
        except ConnectionResetError:  # closed, while a byte was on its way
            pass
        finally:
            stopped.set()
            sender.join()


def test_a_slow_answer_is_no_stalled_client(bundle: Path) -> None:
    """Time that the model or the decoder takes does not count."""
    large = encoded(Image.new("RGBA", (5000, 5000)))
    with (
        served(bundle, "--read-timeout-s", 0.2) as running,
        httpx.Client(base_url=running.http, timeout=PATIENCE_S) as good,
    ):
        assert upload(good, large).status_code == 200
        assert upload(good, RED).status_code == 200


def test_sigterm_does_not_wait_for_stalled_clients(bundle: Path) -> None:
    options = ("--read-timeout-s", 3600, "--graceful-timeout-s", 1)
    with served(bundle, *options) as running, httpx.Client(base_url=running.http) as good:
        process = running.process
        stalled = [connect(running.http) for _ in range(6)]
        for client in stalled[:3]:
            client.sendall(HEAD + b"half")
        for client in stalled[3:]:
            client.sendall(b"POST /pre")
        while in_flight(good) < 3:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=PATIENCE_S)
        assert b"503 Service Unavailable" in answer_of(stalled[0])
        for client in stalled:
            client.close()
    assert process.returncode == 0
    assert "stopping: 3 requests are in flight" in said
    assert "Traceback" not in said


# --- images that are bombs


class Peak:
    """The most memory that a process holds, looked at all the time."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.before = self.bytes = self._process.memory_info().rss

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(0.002):
            self.bytes = max(self.bytes, self._process.memory_info().rss)


def hostile(most: int) -> Iterator[tuple[bytes, int]]:
    """Uploads, and the status that each is answered with."""
    side = int(most**0.5)
    yield encoded(Image.new("I;16", (13300, 13300))), 400
    yield encoded(Image.new("RGBA", (side + 1, side + 1))), 400
    yield png_header(2**31 - 1, 2**31 - 1), 400
    yield encoded(Image.new("I;16", (side, side))), 200
    yield encoded(Image.new("RGBA", (side, side))), 200
    yield encoded(Image.new("LA", (side // 2, side // 2))), 200
    yield encoded(Image.new("RGB", (2, most // 2))), 200
    yield zlib.compress(bytes(10**6)), 400


def test_memory_is_bounded_under_hostile_images(bundle: Path) -> None:
    """16 bombs at a time beside good clients: two images of the limit, at 12 bytes a pixel."""
    most = 4_000_000
    uploads = list(hostile(most)) * 2
    with deploykit.load(bundle, device="cpu") as model:
        expected = model.predict([RED], top_k=1)[0][0].index
    with (
        served(bundle, "--max-pixels", most) as running,
        httpx.Client(base_url=running.http, timeout=PATIENCE_S) as client,
    ):
        warm = encoded(Image.new("LA", (1200, 1200)))
        assert upload(client, warm).status_code == 200
        with Peak(running.process.pid) as peak, ThreadPoolExecutor(32) as pool:
            bad = [pool.submit(upload, client, image) for image, _ in uploads]
            good = [pool.submit(upload, client, RED, 1) for _ in range(40)]
            for answer in good:
                (found,) = answer.result().json()["outputs"][0]["data"]
                assert int(found.split(":")[1]) == expected
            for answer, (_, status) in zip(bad, uploads, strict=True):
                assert answer.result().status_code == status, answer.result().text
        assert client.get("/v2/health/ready").status_code == 200
    assert peak.bytes - peak.before < 2 * 12 * most + 48 * MIB


def infer_call(address: str) -> tuple[Any, Any]:
    """A channel of its own, and the call of ModelInfer with bytes."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    channel = grpc.insecure_channel(address, options=options)
    return channel, channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")


def message_of(side: int) -> bytes:
    """A ModelInferRequest of one image of zeros, as Triton's client has it generated."""
    messages = pytest.importorskip("tritonclient.grpc.service_pb2")
    made = messages.ModelInferRequest(model_name="colours-fp32")
    made.inputs.add(name="input", datatype="FP32", shape=(1, 3, side, side))
    made.raw_input_contents.append(bytes(12 * side * side))
    return bytes(made.SerializeToString())


def test_memory_is_bounded_under_large_messages_of_grpc(tmp_path: Path) -> None:
    """80 messages of 7.5 MB, where 16 MB may be held and as much be read."""
    bundle = write_bundle(tmp_path / "colours", image="H, W")
    most, sent = 8_000_000, message_of(790)
    # Waiting for one another, so that there is always one too many.
    gathered = ("--max-batch", 16, "--max-wait-ms", 100)
    limits = ("--max-request-bytes", most, "--max-held-bytes", 2 * most)

    def ask(address: str) -> Counter[str]:
        channel, call = infer_call(address)
        with channel:
            asked = [call.future(iter([sent]), timeout=PATIENCE_S) for _ in range(5)]
            refusals = [each.exception() for each in asked]
            for each in filter(None, refusals):
                assert each.details().startswith("requests in flight hold ")
                assert dict(each.trailing_metadata()) == {"grpc-retry-pushback-ms": "1000"}
            return Counter(each.code().name for each in asked)

    with served(bundle, *limits, *gathered) as running:
        assert ask(running.grpc).total() == 5
        with Peak(running.process.pid) as peak, ThreadPoolExecutor(16) as pool:
            found = sum(pool.map(ask, [running.grpc] * 16), Counter[str]())
        assert found.keys() == {"OK", "RESOURCE_EXHAUSTED"}
        assert found.total() == 80
        held = httpx.get(f"{running.http}/metrics").text
        assert "deploykit_held_bytes 0.0" in held
    # What is held and what is read, with the copies that parsing makes; all that came is 600 MB.
    assert peak.bytes - peak.before < 5 * (2 * most + 2 * most)


def test_a_call_without_a_message_does_not_hold_up_others(bundle: Path) -> None:
    """One message is read at a time, and the first call has an hour for its own."""
    ended = threading.Event()

    def nothing() -> Iterator[bytes]:
        ended.wait(PATIENCE_S)
        yield from ()

    options = ("--read-timeout-s", 3600, "--max-held-bytes", 10**6, "--max-request-bytes", 10**6)
    with served(bundle, *options) as running, httpx.Client(base_url=running.http) as good:
        channel, call = infer_call(running.grpc)
        with channel:
            stalled = call.future(nothing())
            while in_flight(good) < 1:
                time.sleep(0.01)
            assert call(iter([message_of(SIZE)]), timeout=PATIENCE_S)
            with pytest.raises(grpc.RpcError, match=r"within 1 s, and others waited") as refused:
                stalled.result(PATIENCE_S)
            ended.set()
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert dict(refused.value.trailing_metadata()) == {"grpc-retry-pushback-ms": "1000"}


def test_large_images_hold_up_neither_refusals_nor_those_who_stay(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a large image is decoded: one above the limit is refused, one whose client has left
    is not decoded afterwards.
    """
    decoded: list[tuple[int, int]] = []
    held = threading.Event()

    def decode(source: bytes, max_pixels: int, **options: Any) -> Image.Image:
        image = images.decode(source, max_pixels, **options)
        decoded.append(image.size)
        if image.width == 600:
            held.wait(PATIENCE_S)
        return image

    async def is_gone(self: Request) -> bool:
        return "x-gone" in self.headers

    monkeypatch.setattr(Request, "is_disconnected", is_gone)
    monkeypatch.setattr(
        "deploykit.serving.decoder.images", SimpleNamespace(**vars(images) | {"decode": decode})
    )
    first, left, stays = (encoded(Image.new("RGB", (side, 600))) for side in (600, 601, 602))

    async def scenario() -> None:
        async with client_of(on_cpu(bundle), ServiceLimits(max_pixels=400_000), NAME) as (
            client,
            _,
        ):
            one = asyncio.create_task(client.post(INFER, content=first, headers=IMAGE))
            while (600, 600) not in decoded:
                await asyncio.sleep(0)
            away = IMAGE | {"x-gone": "1"}
            gone = asyncio.create_task(client.post(INFER, content=left, headers=away))
            last = asyncio.create_task(client.post(INFER, content=stays, headers=IMAGE))
            wide = encoded(Image.new("L", (1000, 401)))
            refused = await client.post(INFER, content=wide, headers=IMAGE)
            assert refused.status_code == 400
            assert not one.done()
            held.set()
            answers = await asyncio.gather(one, gone, last)
            assert [answer.status_code for answer in answers] == [200, 400, 200]
            assert answers[1].json() == {"error": "the client went away"}

    asyncio.run(scenario())
    assert decoded == [(600, 600), (602, 600)]


def test_a_refused_image_is_told_the_limit(bundle: Path) -> None:
    async def scenario() -> None:
        async with client_of(on_cpu(bundle), None, NAME) as (client, _):
            answer = await client.post(INFER, content=png_header(13300, 13300), headers=IMAGE)
            assert answer.status_code == 400
            # Nothing of the options of the service, which its clients cannot change.
            assert answer.json()["error"] == (
                "the image has 13300 x 13300 = 176,890,000 pixels, the limit is 50,000,000\n"
                "scale it down"
            )

    asyncio.run(scenario())


@pytest.mark.parametrize(("resize", "status"), [(None, 400), (SIZE, 200), (400, 400)])
def test_a_jpeg_is_reduced_only_where_the_model_sees_the_same(
    tmp_path: Path, resize: int | None, status: int
) -> None:
    steps = replace(PLAIN, resize=resize)
    bundle = write_bundle(tmp_path / "resizing", preprocessing=steps)
    buffer = io.BytesIO()
    Image.new("RGB", (1200, 800), "red").save(buffer, "JPEG")

    async def scenario() -> None:
        async with client_of(on_cpu(bundle), ServiceLimits(max_pixels=300_000), NAME) as (
            client,
            _,
        ):
            answer = await client.post(INFER, content=buffer.getvalue(), headers=IMAGE)
            assert answer.status_code == status
            if status == 400:
                assert answer.json()["error"] == (
                    "the image has 1200 x 800 = 960,000 pixels, the limit is 300,000\nscale it down"
                )

    asyncio.run(scenario())


def test_a_bundle_that_nobody_trusted_signed_is_not_served(tmp_path: Path) -> None:
    signing = pytest.importorskip("tests.signing")
    key = signing.new_key(tmp_path / "key.pem")
    bundle = write_bundle(tmp_path / "colours")
    call = ("--trust", key.with_suffix(".pub"))
    with pytest.raises(AssertionError, match=r"colours is not signed"), served(bundle, *call):
        raise OSError("it was served")
    assert deploykit_command("sign", bundle, "--key", key).code == 0
    with served(bundle, *call) as running:
        assert httpx.get(f"{running.http}/v2/health/ready").status_code == 200


def test_pixels_of_good_images_are_what_they_were(bundle: Path) -> None:
    random = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)

    async def scenario() -> None:
        async with client_of(on_cpu(bundle), None, NAME) as (client, _):
            image = encoded(Image.fromarray(random))
            answer = await client.post(INFER, content=image, headers=IMAGE)
            with deploykit.load(bundle, device="cpu") as model:
                (expected,) = model.predict([random])
            found = answer.json()["outputs"][0]["data"]
            logits = {each.index: each.logit for each in expected}
            assert found == pytest.approx([logits[index] for index in range(3)], abs=1e-6)

    asyncio.run(scenario())
