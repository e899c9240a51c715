"""`deploykit serve` beside the bare micro-batcher: throughput, latency; and a soak.

Run it from the root of the repository with nothing else on the machine:
``python -m benchmarks.serve``. One bundle of a small convolutional network runs on onnxruntime with
one thread. Closed loops of clients ask it for one image at a time: threads around a
`MicroBatcher` in one process, and a process of clients over HTTP (Triton's binary extension), gRPC
(raw contents) and HTTP with a PNG to decode. The processor time is the service's, and of the bare
batcher the whole process's. The ways alternate in rounds; every answer is compared
with onnxruntime's own.

``--minutes 10`` is the soak: clients of all three ways at once for so long, every answer compared,
the service's memory over time. Results are in ``results/serve.json`` and
``results/serve_soak.json``.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import psutil
from PIL import Image

import deploykit
from benchmarks.soak import flatness
from deploykit.core.environment import describe
from deploykit.core.serialization import to_plain
from deploykit.images import preprocess
from deploykit.serving.compiled import SERVICE, message
from deploykit.verbs.from_python import export
from tests.bundles import write_classifier
from tests.services import Served, served

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

RESULTS: Final = Path(__file__).parent / "results"
SIDE: Final = 64
CHANNELS: Final = 128
IMAGES: Final = 16
CLIENTS: Final = 16
MAX_BATCH: Final = 8
MAX_WAIT_MS: Final = 2.0
TOLERANCE: Final = 1e-4
"""Between a batch and single images, of logits of about 1."""

OPTIONS: Final = (
    "--threads", 1, "--max-batch", MAX_BATCH, "--max-wait-ms", MAX_WAIT_MS,
)  # fmt: skip


@dataclass(frozen=True)
class Question:
    """An image in each form that a way sends, and its right answer (classes,)."""

    batch: NDArray[np.float32]
    png: bytes
    right: NDArray[np.float32]


@dataclass
class Tally:
    """What one client has seen."""

    seconds: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)


def make_bundle(folder: Path) -> Path:
    """An FP32 bundle of the network, untrained."""
    source = write_classifier(folder / "net.onnx", f"{SIDE}, {SIDE}", channels=CHANNELS)
    bundle = folder / "net"
    export(source, output=bundle, backend="none")
    return bundle


def questions_for(bundle: Path) -> list[Question]:
    random = np.random.default_rng(0)
    made = []
    with deploykit.load(bundle, device="cpu", threads=1) as model:
        for _ in range(IMAGES):
            image = Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
            batch = preprocess(image, model.preprocessing)[None]
            file = BytesIO()
            image.save(file, "PNG")
            made.append(Question(batch, file.getvalue(), model.run(batch)[0]))
    return made


# --- the ways


def bare(bundle: Path, questions: list[Question], seconds: float) -> list[Tally]:
    """Threads around a batcher, in this process."""
    with (
        deploykit.load(bundle, device="cpu", threads=1) as model,
        deploykit.MicroBatcher(model, max_batch=MAX_BATCH, max_wait_ms=MAX_WAIT_MS) as batcher,
    ):
        return loops(lambda: lambda one: batcher.run(one.batch)[0], questions, seconds)


def by_http(port: int, name: str, *, as_png: bool) -> Callable[[Question], NDArray[np.float32]]:
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    path = f"/v2/models/{name}/infer"

    def ask(one: Question) -> NDArray[np.float32]:
        body, headers = (one.png, {"Content-Type": "image/png"}) if as_png else _binary(one)
        link.request("POST", path, body, headers)
        answer = link.getresponse()
        content = answer.read()
        if answer.status != http.client.OK:
            raise RuntimeError(f"{answer.status} {content!r:.200}")
        if as_png:
            return np.array(json.loads(content)["outputs"][0]["data"], np.float32)
        length = int(answer.headers["Inference-Header-Content-Length"])
        return np.frombuffer(content[length:], "<f4")

    return ask


def _binary(one: Question) -> tuple[bytes, dict[str, str]]:
    raw = one.batch.tobytes()
    tensor: dict[str, Any] = {"name": "input", "datatype": "FP32", "shape": one.batch.shape}
    tensor["parameters"] = {"binary_data_size": len(raw)}
    asked = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    head = json.dumps(asked).encode()
    return head + raw, {"Inference-Header-Content-Length": str(len(head))}


def by_grpc(channel: Any, name: str) -> Callable[[Question], NDArray[np.float32]]:
    call = channel.unary_unary(
        f"/{SERVICE}/ModelInfer",
        request_serializer=message("ModelInferRequest").SerializeToString,
        response_deserializer=message("ModelInferResponse").FromString,
    )

    def ask(one: Question) -> NDArray[np.float32]:
        request = message("ModelInferRequest")(model_name=name)
        request.inputs.add(name="input", datatype="FP32", shape=one.batch.shape)
        request.raw_input_contents.append(one.batch.tobytes())
        return np.frombuffer(call(request, timeout=60).raw_output_contents[0], "<f4")

    return ask


@cache
def channel_to(address: str) -> Any:
    """One for all threads of a process."""
    import grpc

    return grpc.insecure_channel(address)


WAYS: Final = ("HTTP, binary", "gRPC, raw", "HTTP, PNG")


def asker(way: str, http_port: int, grpc: str, name: str) -> Callable[[], Any]:
    if way == "gRPC, raw":
        return lambda: by_grpc(channel_to(grpc), name)
    return lambda: by_http(http_port, name, as_png=way == "HTTP, PNG")


def clients(
    way: str, http_port: int, grpc: str, name: str, questions: list[Question], seconds: float
) -> list[Tally]:
    """A process of clients of one way."""
    return loops(asker(way, http_port, grpc, name), questions, seconds)


def loops(make: Callable[[], Any], questions: list[Question], seconds: float) -> list[Tally]:
    """`CLIENTS` closed loops in threads, and a warm-up that does not count."""
    until = time.monotonic() + 0.2 * seconds
    with ThreadPoolExecutor(CLIENTS) as pool:
        asks = [make() for _ in range(CLIENTS)]
        for end in (until, until + seconds):
            done = [pool.submit(loop, ask, questions, at, end) for at, ask in enumerate(asks)]
            tallies = [each.result() for each in done]
    return tallies


def loop(ask: Any, questions: list[Question], at: int, until: float) -> Tally:
    tally = Tally()
    while time.monotonic() < until:
        at += 1
        one = questions[at % len(questions)]
        start = time.monotonic()
        tally.outcomes[outcome(ask, one)] += 1
        tally.seconds.append(time.monotonic() - start)
    return tally


def outcome(ask: Any, one: Question) -> str:
    """Whether an answer is right, or what was wrong."""
    try:
        found = ask(one)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    return "right" if np.allclose(found, one.right, atol=TOLERANCE) else "wrong"


# --- what came of it


def compared(bundle: Path, seconds: float, rounds: int) -> dict[str, Any]:
    """Every way in each round; the pooled answers of all rounds."""
    questions = questions_for(bundle)
    found: dict[str, list[Tally]] = {way: [] for way in ("bare batcher", *WAYS)}
    spawn = multiprocessing.get_context("spawn")
    with served(bundle, *OPTIONS) as service, ProcessPoolExecutor(1, spawn) as pool:
        threading.Thread(target=_drained, args=(service,), daemon=True).start()
        spent = dict.fromkeys(("bare batcher", *WAYS), 0.0)
        for _ in range(rounds):
            start_s = time.process_time()
            found["bare batcher"] += bare(bundle, questions, seconds)
            spent["bare batcher"] += time.process_time() - start_s
            for way in WAYS:
                told = (way, service.http_port, service.grpc, name_in(bundle), questions, seconds)
                start_s = cpu_s(service)
                found[way] += pool.submit(clients, *told).result()
                spent[way] += cpu_s(service) - start_s
    return {
        way: figures(tallies, seconds * rounds)
        | {"cpu_ms_per_image": per_image(spent[way], tallies)}
        for way, tallies in found.items()
    }


def cpu_s(service: Served) -> float:
    """Processor time that the service has taken so far."""
    times = psutil.Process(service.process.pid).cpu_times()
    return float(times.user + times.system)


def per_image(spent_s: float, tallies: list[Tally]) -> float:
    """Milliseconds of the processor; the warm-up, a fifth as long, is divided out."""
    asked = sum(len(tally.seconds) for tally in tallies)
    return round(1e3 * spent_s / (1.2 * asked), 2)


def name_in(bundle: Path) -> str:
    name: str = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["name"]
    return name


def _drained(service: Served) -> None:
    """Read its log, so that it never waits for the pipe."""
    for _ in service.process.stderr or ():
        pass


def figures(tallies: list[Tally], seconds: float) -> dict[str, Any]:
    """Images per second, and the latency in milliseconds."""
    times = np.array([each for tally in tallies for each in tally.seconds])
    outcomes: Counter[str] = sum((tally.outcomes for tally in tallies), Counter())
    shares = {"p50": 50, "p99": 99, "max": 100}
    return {
        "throughput_per_s": round(len(times) / seconds, 1),
        "latency_ms": {
            name: round(1e3 * float(np.percentile(times, share)), 2)
            for name, share in shares.items()
        },
        "outcomes": dict(outcomes),
    }


def soaked(bundle: Path, minutes: float) -> dict[str, Any]:
    """Clients of all ways at once for so long; the memory, the errors."""
    questions = questions_for(bundle)
    until = time.monotonic() + 60 * minutes
    samples: list[tuple[float, float]] = []
    with served(bundle, *OPTIONS) as service, ThreadPoolExecutor(2 * len(WAYS)) as pool:
        threading.Thread(target=_drained, args=(service,), daemon=True).start()
        process, start = psutil.Process(service.process.pid), time.monotonic()
        makes = [asker(way, service.http_port, service.grpc, name_in(bundle)) for way in WAYS] * 2
        done = [pool.submit(loop, make(), questions, at, until) for at, make in enumerate(makes)]
        while time.monotonic() < until:
            passed = (time.monotonic() - start) / 60
            samples.append((passed, process.memory_info().rss / 2**20))
            time.sleep(min(5.0, minutes))
        tallies = [each.result() for each in done]
        service.process.terminate()
        code = service.process.wait(60)
    return figures(tallies, 60 * minutes) | {"memory": flatness(samples), "exit_code": code}


def show(found: dict[str, Any]) -> str:
    """As Markdown."""
    lines = [
        "| way | images per s | p50 ms | p99 ms | CPU ms | wrong or refused |",
        "|" + "---|" * 6,
    ]
    for way, each in found.items():
        p50, p99 = (each["latency_ms"][name] for name in ("p50", "p99"))
        bad = sum(count for name, count in each["outcomes"].items() if name != "right")
        cpu = each.get("cpu_ms_per_image", "")
        cells = (way, f"{each['throughput_per_s']:g}", f"{p50:g}", f"{p99:g}", cpu, bad)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each way in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, help="soak for so long in place of comparing")
    given = parser.parse_args()
    about: dict[str, Any] = {"clients": CLIENTS, "max_batch": MAX_BATCH, "max_wait_ms": MAX_WAIT_MS}
    about |= {"network": f"one convolution of {CHANNELS} channels, {SIDE} x {SIDE}, FP32, 1 thread"}
    about |= {"date": datetime.now(UTC).isoformat(timespec="seconds")}
    about |= {"load_average": psutil.getloadavg()[0]}
    result: dict[str, Any] = about | {"environment": to_plain(describe())}
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(Path(folder))
        if given.minutes:
            result |= {"minutes": given.minutes} | soaked(bundle, given.minutes)
            name, shown = "serve_soak.json", show({"soak": result})
        else:
            result |= {"seconds": given.seconds, "rounds": given.rounds}
            result["ways"] = compared(bundle, given.seconds, given.rounds)
            name, shown = "serve.json", show(result["ways"])
    (RESULTS / name).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(shown)


if __name__ == "__main__":
    main()
