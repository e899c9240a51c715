"""`deploykit serve` as a process, asked by Triton's own client, by curl's means, and wrongly."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.bundles import SIZE, write_bundle
from tests.fakes.batch_model import PATIENCE_S
from tests.services import Served, served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

RANDOM = np.random.default_rng(0)
BATCH = RANDOM.standard_normal((2, 3, SIZE, SIZE)).astype(np.float32)
MEANS = BATCH.mean(axis=(2, 3))
PIXELS = RANDOM.integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
COLOURS = PIXELS.mean(axis=(1, 2)) / 255
"""What the model answers for the pixels, (2, 3)."""

INFER = "/v2/models/many/infer"


def png(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


IMAGES = [png(each) for each in PIXELS]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A bundle by its own name, and another one in two versions."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "many").mkdir()
    for name in ("colours", "many/1", "many/2"):
        write_bundle(folder / name)
    limits = ("--max-request-bytes", 100_000, "--max-batch", 4, "--read-timeout-s", 2)
    with served(folder / "colours", folder / "many", *limits) as running:
        yield running


@pytest.fixture
def rest(service: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.http, timeout=PATIENCE_S) as client:
        yield client


# --- an independent client


@pytest.fixture(params=["http", "grpc"])
def triton(request: pytest.FixtureRequest, service: Served) -> Iterator[tuple[ModuleType, Any]]:
    """Triton's client for each protocol, connected."""
    kind = pytest.importorskip(f"tritonclient.{request.param}")
    address = service.grpc if request.param == "grpc" else urlsplit(service.http).netloc
    client = kind.InferenceServerClient(address)
    yield kind, client
    client.close()


def as_input(kind: ModuleType, values: Any, datatype: str = "FP32", name: str = "input") -> Any:
    made = kind.InferInput(name, values.shape, datatype)
    made.set_data_from_numpy(values)
    return made


def test_tritons_client_finds_the_models(triton: tuple[ModuleType, Any]) -> None:
    kind, client = triton
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("colours-fp32")
    assert client.is_model_ready("many", "1")
    is_grpc = kind.__name__.endswith("grpc")
    options = {"as_json": True} if is_grpc else {}
    server = client.get_server_metadata(**options)
    assert server["name"] == "deploykit"
    assert "binary_tensor_data" in server["extensions"]
    model = client.get_model_metadata("many", **options)
    assert (model["name"], model["versions"], model["platform"]) == (
        "many",
        ["1", "2"],
        "onnx_onnxv1",
    )
    (given,), (gives,) = model["inputs"], model["outputs"]
    assert (given["name"], given["datatype"]) == ("input", "FP32")
    assert list(map(int, given["shape"])) == [-1, 3, SIZE, SIZE]
    assert list(map(int, gives["shape"])) == [-1, 3]


@pytest.mark.parametrize("version", ["", "1"])
def test_tritons_client_gets_the_models_numbers(
    triton: tuple[ModuleType, Any], version: str
) -> None:
    kind, client = triton
    found = client.infer("many", [as_input(kind, BATCH)], model_version=version, request_id="q7")
    np.testing.assert_allclose(found.as_numpy("logits"), MEANS, rtol=1e-5, atol=1e-6)
    answer = found.get_response()
    is_json = isinstance(answer, dict)
    assert (answer["id"] if is_json else answer.id) == "q7"
    assert (answer["model_version"] if is_json else answer.model_version) == (version or "2")


def test_tritons_client_sends_images(triton: tuple[ModuleType, Any]) -> None:
    kind, client = triton
    images = np.array(IMAGES, object)
    found = client.infer("many", [as_input(kind, images, "BYTES")])
    np.testing.assert_allclose(found.as_numpy("logits"), COLOURS, atol=1e-6)


def test_tritons_client_gets_classes(triton: tuple[ModuleType, Any]) -> None:
    kind, client = triton
    wanted = kind.InferRequestedOutput("logits", class_count=2)
    found = client.infer("many", [as_input(kind, BATCH)], outputs=[wanted]).as_numpy("logits")
    for row, means in zip(found, MEANS, strict=True):
        best = np.argsort(-means)[:2]
        names = [each.decode().split(":")[1:] for each in row]
        assert names == [[str(at), ("red", "green", "blue")[at]] for at in best]
        values = [float(each.decode().split(":")[0]) for each in row]
        assert values == pytest.approx(means[best].tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("model", "version", "change", "status", "message"),
    [
        ("none", "", {}, "404", "there is no model 'none', there are: colours-fp32, many"),
        ("many", "3", {}, "404", "many has no version '3', it has: 1, 2"),
        ("many", "", {"name": "pixels"}, "400", "the inputs are 'pixels', the model takes 'input'"),
        ("many", "", {"values": BATCH.astype(np.float64), "datatype": "FP64"}, "400",
         r"input 'input' is FP64 (2, 3, 8, 8), the model takes FP32 (N, 3, 8, 8)"),
        ("many", "", {"values": BATCH[..., :4]}, "400", "input 'input' is FP32 (2, 3, 8, 4)"),
        ("many", "", {"values": BATCH[0]}, "400", "input 'input' is FP32 (3, 8, 8)"),
        ("many", "", {"values": np.repeat(BATCH, 3, 0)}, "400", "has 6 images, expected 1 to 4"),
        ("many", "", {"values": BATCH[:0]}, "400", "has 0 images, expected 1 to 4"),
        ("many", "", {"values": np.full_like(BATCH, np.nan)}, "400", "384 of 384 values are NaN"),
        ("many", "", {"values": np.array([b"no"], object), "datatype": "BYTES"}, "400",
         "cannot read the image"),
        ("many", "", {"values": np.array([b""], object), "datatype": "BYTES"}, "400",
         "an image of 0 bytes came"),
        ("many", "", {"values": np.array([*IMAGES, b"no"], object), "datatype": "BYTES"}, "400",
         "image 2 of 3: cannot read the image"),
        ("many", "", {"values": np.array([IMAGES[0], b""], object), "datatype": "BYTES"}, "400",
         "image 1 of 2: an image of 0 bytes came"),
        ("many", "", {"values": np.array([[b"", b""]], object), "datatype": "BYTES"}, "400",
         "encoded images are a BYTES tensor (N,) or (N, 1), not (1, 2)"),
    ],
)  # fmt: skip
def test_tritons_client_is_refused_in_words(
    triton: tuple[ModuleType, Any], model: str, version: str, change: Any, status: str, message: str
) -> None:
    kind, client = triton
    utils = pytest.importorskip("tritonclient.utils")
    given = as_input(kind, **({"values": BATCH} | change))
    with pytest.raises(utils.InferenceServerException, match=re.escape(message)) as refused:
        client.infer(model, [given], model_version=version)
    of_grpc = {"400": "StatusCode.INVALID_ARGUMENT", "404": "StatusCode.NOT_FOUND"}
    assert refused.value.status() in (status, of_grpc[status])


def test_shared_memory_is_refused_in_words(triton: tuple[ModuleType, Any]) -> None:
    kind, client = triton
    utils = pytest.importorskip("tritonclient.utils")
    given = kind.InferInput("input", BATCH.shape, "FP32")
    given.set_shared_memory("region", BATCH.nbytes)
    wanted = kind.InferRequestedOutput("logits")
    wanted.set_shared_memory("region", 24)
    with pytest.raises(utils.InferenceServerException, match="'input' names a region of shared "):
        client.infer("many", [given])
    with pytest.raises(utils.InferenceServerException, match="'logits' names a region of shared "):
        client.infer("many", [as_input(kind, BATCH)], outputs=[wanted])


def test_tritons_client_is_told_of_a_large_request(triton: tuple[ModuleType, Any]) -> None:
    kind, client = triton
    utils = pytest.importorskip("tritonclient.utils")
    large = RANDOM.standard_normal((1, 3, 200, 200)).astype(np.float32)
    with pytest.raises(utils.InferenceServerException) as refused:
        client.infer("many", [as_input(kind, large)])
    assert refused.value.status() in ("413", "StatusCode.RESOURCE_EXHAUSTED")


# --- messages of gRPC that Triton's client does not send


@pytest.fixture
def stub(service: Served) -> Iterator[tuple[Any, Any]]:
    """Calls and messages, as Triton's client has them generated."""
    grpc = pytest.importorskip("grpc")
    messages = pytest.importorskip("tritonclient.grpc.service_pb2")
    calls = pytest.importorskip("tritonclient.grpc.service_pb2_grpc")
    with grpc.insecure_channel(service.grpc) as channel:
        yield calls.GRPCInferenceServiceStub(channel), messages


def request_of(messages: Any, **contents: Any) -> Any:
    made = messages.ModelInferRequest(model_name="many", id="i")
    tensor = made.inputs.add(name="input", datatype="FP32", shape=BATCH.shape)
    for name, values in contents.items():
        getattr(tensor.contents, name).extend(values)
    return made


def test_contents_of_their_own_type(stub: tuple[Any, Any]) -> None:
    calls, messages = stub
    found = calls.ModelInfer(request_of(messages, fp32_contents=BATCH.ravel().tolist()))
    (raw,) = found.raw_output_contents
    values = np.frombuffer(raw, "<f4").reshape(2, 3)
    np.testing.assert_allclose(values, MEANS, rtol=1e-5, atol=1e-6)
    assert (found.model_name, found.model_version, found.id) == ("many", "2", "i")


@pytest.mark.parametrize(
    ("contents", "raw", "message"),
    [
        ({}, [], "input 'input' has 0 values, (2, 3, 8, 8) has 384"),
        ({"fp32_contents": [1.0]}, [], "input 'input' has 1 values"),
        ({"int_contents": [1]}, [], "is 'FP32' and has int_contents, expected fp32_contents"),
        ({"fp32_contents": [1.0]}, [b"\0" * 1536], "has contents beside raw_input_contents"),
        ({}, [b"\0" * 1535], "input 'input' came as 1535 bytes, FP32 (2, 3, 8, 8) has 1536"),
        ({}, [b"\0" * 1536] * 2, "2 raw_input_contents came for 1 inputs"),
    ],
)
def test_wrong_messages_are_refused(
    stub: tuple[Any, Any], contents: Any, raw: list[bytes], message: str
) -> None:
    grpc = pytest.importorskip("grpc")
    calls, messages = stub
    wrong = request_of(messages, **contents)
    wrong.raw_input_contents.extend(raw)
    with pytest.raises(grpc.RpcError, match=re.escape(message)) as refused:
        calls.ModelInfer(wrong)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_call_without_a_message_ends_in_time(service: Served) -> None:
    grpc = pytest.importorskip("grpc")
    ended = threading.Event()

    def nothing() -> Iterator[bytes]:
        ended.wait(PATIENCE_S)
        yield from ()

    with grpc.insecure_channel(service.grpc) as channel:
        call = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError, match="the request did not come within 2 s") as refused:
            call(nothing())
        ended.set()
    assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


# --- HTTP, by hand


def json_request(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "input", "shape": list(BATCH.shape), "datatype": "FP32"}
    return {"inputs": [tensor | {"data": BATCH.ravel().tolist()}]} | changes


def test_json_in_and_out(rest: httpx.Client) -> None:
    answer = rest.post(INFER, json=json_request(id="42"))
    assert answer.status_code == 200
    found = answer.json()
    (output,) = found.pop("outputs")
    assert found == {"model_name": "many", "model_version": "2", "id": "42"}
    assert output.pop("data") == pytest.approx(MEANS.ravel().tolist(), abs=1e-5)
    assert output == {"name": "logits", "datatype": "FP32", "shape": [2, 3]}


def test_states_and_metadata(rest: httpx.Client) -> None:
    assert rest.get("/v2/health/live").json() == {"live": True}
    assert rest.get("/v2/health/ready").json() == {"live": True, "ready": True}
    assert rest.get("/v2/models/many/versions/1/ready").json() == {"name": "many", "ready": True}
    index = rest.post("/v2/repository/index").json()
    assert [(each["name"], each["version"], each["state"]) for each in index] == [
        ("colours-fp32", "1", "READY"), ("many", "1", "READY"), ("many", "2", "READY"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        ("GET", "/v2/models/none", 404, "there is no model 'none', there are: colours-fp32, many"),
        ("GET", "/v2/models/many/versions/x/ready", 404, "many has no version 'x', it has: 1, 2"),
        ("GET", "/v3", 404, "there is no GET /v3"),
        ("GET", INFER, 405, f"no method GET {INFER}"),
        (
            "POST",
            "/v2/repository/models/many/x",
            404,
            "there is no POST /v2/repository/models/many/x",
        ),
    ],
)
def test_wrong_paths(rest: httpx.Client, method: str, path: str, status: int, error: str) -> None:
    answer = rest.request(method, path)
    assert (answer.status_code, answer.json()) == (status, {"error": error})


@pytest.mark.parametrize("kind", ["image/png", "Image/PNG"])
def test_an_image_as_it_lies_on_disk(rest: httpx.Client, kind: str) -> None:
    as_image = {"Content-Type": kind, "Content-Encoding": "Identity"}
    answer = rest.post(INFER, content=IMAGES[0], headers=as_image)
    (output,) = answer.json()["outputs"]
    assert output["data"] == pytest.approx(COLOURS[0].tolist(), abs=1e-6)
    answer = rest.post(f"{INFER}?classification=1", content=IMAGES[0], headers=as_image)
    (output,) = answer.json()["outputs"]
    best = int(np.argmax(COLOURS[0]))
    assert output["shape"] == [1, 1]
    assert output["data"][0].endswith(f":{best}:{('red', 'green', 'blue')[best]}")
    wrong = rest.post(f"{INFER}?classification=-1", content=IMAGES[0], headers=as_image)
    assert wrong.status_code == 400
    assert wrong.json() == {"error": "classification is '-1', expected a number of classes"}


@pytest.mark.parametrize(
    ("query", "kind", "said"),
    [
        ("classificaton=1", "image/png", "the query has 'classificaton', possible: classification"),
        ("classification=1&top=2", "image/png", "the query has 'top', possible: classification=N"),
        ("top_k", "application/json", "the query has 'top_k'"),
        ("classification=1", "application/json", "?classification=N is for an image as the body"),
        ("classification=1", "application/octet-stream", 'of an output: {"classification": N}'),
    ],
)
def test_words_of_a_query_are_not_ignored(
    rest: httpx.Client, query: str, kind: str, said: str
) -> None:
    body = IMAGES[0] if kind == "image/png" else json.dumps(json_request()).encode()
    refused = rest.post(f"{INFER}?{query}", content=body, headers={"Content-Type": kind})
    assert refused.status_code == 400
    assert said in refused.json()["error"]


def test_base64_that_is_not_said_to_be_is_named(rest: httpx.Client) -> None:
    def sent(text: str, **parameters: str) -> httpx.Response:
        given = {"name": "input", "shape": [1], "datatype": "BYTES", "data": [text]}
        return rest.post(INFER, json={"inputs": [given | {"parameters": parameters}]})

    image = base64.b64encode(IMAGES[0]).decode()
    assert sent(image, content_type="base64").status_code == 200
    refused = sent(image)
    assert refused.status_code == 400
    assert refused.json()["error"] == (
        "an image came as text in base64: send its bytes, or in JSON say it in the input's "
        'parameters: {"content_type": "base64"}'
    )
    # Base64 of something else, and what is none, are no images and nothing more.
    for text in (base64.b64encode(b"no image at all").decode(), "no image, no base64"):
        other = sent(text)
        assert other.status_code == 400
        assert "cannot identify image file" in other.json()["error"]


@pytest.mark.parametrize("action", ["load", "unload"])
def test_models_are_neither_loaded_nor_unloaded_while_it_runs(
    rest: httpx.Client, triton: tuple[ModuleType, Any], action: str
) -> None:
    kind, client = triton
    found = rest.get("/v2").json()["extensions"]
    assert "classification" in found
    assert "model_repository" not in found  # that of Triton has load and unload
    answer = rest.post(f"/v2/repository/models/many/{action}", json={})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(f"a model cannot be {action}ed while the service runs")
    if kind.__name__.endswith("http"):
        refusal = pytest.importorskip("tritonclient.utils").InferenceServerException
        with pytest.raises(refusal, match="while the service runs"):
            getattr(client, f"{action}_model")("many")
    assert rest.get("/v2/models/many/ready").status_code == 200


@pytest.mark.parametrize(
    ("content", "headers", "status", "error"),
    [
        (b"{}", {"Content-Encoding": "gzip"}, 415, "a compressed body is not taken"),
        (b" " * 100_001, {}, 413, "a request may have 100000 bytes"),
        (b"{}", {"Inference-Header-Content-Length": "3"}, 400, "Inference-Header-Content"),
        (json.dumps(json_request(inputs=[])).encode(), {}, 400, "the inputs are none, the model"),
        (json.dumps(json_request(inputs=json_request()["inputs"] * 2)).encode(), {}, 400,
         "the inputs are 'input', 'input', the model takes 'input'"),
        (json.dumps(json_request(outputs=[{"name": "x"}])).encode(), {}, 400,
         "output 'x' is unknown, the model gives 'logits' FP32 (N, 3)"),
        (b'{"inputs": [{"name": "input", "shape": [1, 3, 8, 0], "datatype": "FP32", "data": []}]}',
         {}, 400, "input 'input' is FP32 (1, 3, 8, 0), the model takes FP32 (N, 3, 8, 8)"),
        (b"[" * 90_000, {}, 400, "the request is no JSON of the protocol"),
    ],
)  # fmt: skip
def test_wrong_bodies(
    rest: httpx.Client, content: bytes, headers: dict[str, str], status: int, error: str
) -> None:
    answer = rest.post(INFER, content=content, headers=headers)
    assert answer.status_code == status
    assert answer.json()["error"].startswith(error)
    assert rest.post(INFER, json=json_request()).status_code == 200


def test_a_body_in_parts_ends_at_the_limit(rest: httpx.Client) -> None:
    answer = rest.post(INFER, content=(bytes(1000) for _ in range(200)))
    assert answer.status_code == 413


def test_a_truncated_binary_body(rest: httpx.Client) -> None:
    tensor = {"name": "input", "shape": [1], "datatype": "BYTES"}
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": 500}}]}).encode()
    tail = struct.pack("<I", 496) + bytes(100)
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = rest.post(INFER, content=head + tail, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"] == (
        "input 'input': binary_data_size is 500, 104 bytes are left of the body"
    )


def test_a_head_without_end_closes_the_connection(service: Served) -> None:
    """What is meant as a head of 1 GB is cut off after the limit of 64 KiB."""
    sent = 0
    with socket.create_connection(("127.0.0.1", service.http_port), PATIENCE_S) as client:
        client.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\nX-Large: ")
        try:
            while sent < 2**30:
                sent += client.send(b"a" * 65536)
        except ConnectionError:
            pass
    assert sent < 2**27


def test_metrics_are_what_happened(rest: httpx.Client) -> None:
    def counts() -> dict[str, float]:
        lines = rest.get("/metrics").text.splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    before = counts()
    assert rest.post(INFER, json=json_request()).status_code == 200
    assert rest.post(INFER, content=IMAGES[0], headers={"Content-Type": "image/png"}).is_success
    assert rest.post(INFER, json=json_request(inputs=[])).status_code == 400
    after = counts()
    rose = {name: value - before.get(name, 0) for name, value in after.items()}
    http = 'model="many",outcome="{}",protocol="http",version="2"'
    assert rose[f"deploykit_requests_total{{{http.format('answered')}}}"] == 2
    assert rose[f"deploykit_requests_total{{{http.format('invalid')}}}"] == 1
    steps = {"queue": 2, "decode": 1, "preprocess": 1, "compute": 2}
    for step, count in steps.items():
        name = f'deploykit_step_seconds_count{{model="many",step="{step}",version="2"}}'
        assert rose[name] == count
    assert rose['deploykit_batch_images_sum{model="many",version="2"}'] == 3
    assert after["deploykit_in_flight_requests"] == after["deploykit_held_bytes"] == 0
    assert after['deploykit_ready{model="many",version="2"}'] == 1
    assert after["process_resident_memory_bytes"] > 2**20


def test_it_says_what_runs_each_bundle(service: Served) -> None:
    line = "serving colours-fp32, version 1, on cpu: model.onnx on onnxruntime (cpu): asked for"
    assert f"{line} with device='cpu'; pixels nchw, rgb\n" in service.said
    assert service.said.count("\nserving many, version") == 2
