"""Hostile clients beside good ones against `deploykit serve`, for `faults.py`.

The service runs as a process of its own with its default limits but for the size of a request. The
right answers are means of colours that numpy computes from the pixels. The kernel keeps the peak of
the service's memory.
"""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from benchmarks.faults_judge import Row, swap_in, two_kinds
from tests.bundles import SIZE, write_bundle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

IMAGE: Final = {"Content-Type": "image/png"}
INFER: Final = "/v2/models/colours-fp32/infer"
MIB: Final = 2**20
MAX_PIXELS: Final = 50_000_000
"""What the service takes by default for a model of small images."""

BYTES_PER_PIXEL: Final = 12
"""Of PNG and JPEG, at most; the service decodes two images' worth of pixels at a time."""

UPLOAD: Final = 10 * MIB
OPTIONS: Final = ("--max-request-bytes", str(UPLOAD), "--self-test-every-s", "0")
"""Readiness runs the golden sample each time, which an export below the service must not change."""

READ_TIMEOUT_S: Final = 10.0
PATIENCE_S: Final = 60.0
"""A client that has waited so long for an answer, or for its connection's end, calls it a hang."""

LEFT: Final = f"left after {PATIENCE_S:g} s"
HEALTH: Final = b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
SIGTERM_S: Final = 20
"""Bound for the service's end: 8 s for requests that were accepted, and what is being decoded."""


# --- the service


@dataclass(frozen=True)
class Service:
    """A running service, and the file that its log goes to."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def memory_mib(self, what: str = "VmRSS") -> float:
        """Resident memory: ``VmRSS`` now, ``VmHWM`` at its peak."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        found = re.search(rf"{what}:\s+(\d+) kB", status)
        return int(found[1]) / 1024 if found else float("nan")

    def connect(self) -> socket.socket:
        """A new connection."""
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE_S)

    def stop(self) -> float:
        """Seconds from SIGTERM to the end, at most twice `SIGTERM_S`."""
        start = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(2 * SIGTERM_S)
        return time.monotonic() - start


@contextmanager
def served(bundle: Path, *options: str) -> Iterator[Service]:
    """The service over ``bundle``, once it answers."""
    log = bundle.with_name(f"{bundle.name}.log")
    command = [sys.executable, "-m", "deploykit", "serve", str(bundle), "--device", "cpu"]
    command += ["--http-port", "0", "--grpc-port", "0", *OPTIONS, *options]
    with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            yield Service(process, _port(process, log), log)
        finally:
            process.kill()


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    while process.poll() is None:
        found = re.search(r"listening on http://[^,\s]+:(\d+)", log.read_text(encoding="utf-8"))
        if found:
            return int(found[1])
        time.sleep(0.05)
    sys.exit(f"the service did not start:\n{log.read_text(encoding='utf-8')}")


# --- what is uploaded


def png(width: int, height: int, *, colour: int, depth: int) -> bytes:
    """A PNG of zeros, made row by row: its maker needs no memory for its pixels."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    row = bytes(1 + width * channels * depth // 8)
    packer, packed = zlib.compressobj(6), bytearray()
    for _ in range(height):
        packed += packer.compress(row)
    packed += packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", bytes(packed)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def jpeg(width: int, height: int) -> bytes:
    file = BytesIO()
    Image.new("RGB", (width, height)).save(file, "JPEG", progressive=True)
    return file.getvalue()


@dataclass(frozen=True)
class Upload:
    """A hostile body, and the status that it must be answered with."""

    name: str
    body: bytes
    status: int

    def outcomes(self) -> set[str]:
        """What may come of it; large images wait for one another, so they may be too late."""
        return {"200", "504", LEFT} if self.status == http.HTTPStatus.OK else {str(self.status)}


def hostile_uploads() -> list[Upload]:
    side = int(MAX_PIXELS**0.5)
    return [
        Upload("16-bit grey of 177 megapixels", png(13300, 13300, colour=0, depth=16), 400),
        Upload("RGBA above the limit", png(side + 9, side + 9, colour=6, depth=8), 400),
        Upload("16-bit grey at the limit", png(side, side, colour=0, depth=16), 200),
        Upload("RGBA at the limit", png(side, side, colour=6, depth=8), 200),
        Upload("grey and alpha, half the limit", png(side, side // 2, colour=4, depth=8), 200),
        Upload("2 pixels wide", png(2, MAX_PIXELS // 8, colour=2, depth=8), 200),
        Upload("progressive JPEG at the limit", jpeg(side, side), 200),
        Upload("a header alone", png(8, 8, colour=2, depth=8)[:33], 400),
        Upload("half a PNG", png(900, 900, colour=6, depth=16)[:700], 400),
        Upload("a deflate bomb that is no image", zlib.compress(bytes(10**8), 9), 400),
        Upload("nothing", b"", 400),
    ]


@dataclass(frozen=True)
class Good:
    """An image of a good client and its right answer."""

    body: bytes
    logits: NDArray[np.float64]
    """(3,): the mean of each colour, from 0 to 1."""

    def problem(self, answer: Any) -> str | None:
        """What is wrong with an answer, or ``None``."""
        names = ("red", "green", "blue")
        order = np.argsort(-self.logits)
        (output,) = answer["outputs"]
        found = [each.split(":") for each in output["data"]]
        if [int(index) for _, index, _ in found] != order.tolist():
            return f"classes {found}, right are {order.tolist()}"
        for (value, _, label), index in zip(found, order, strict=True):
            off = abs(float(value) - self.logits[index])
            if label != names[index] or not off < 1e-5:  # noqa: PLR2004 - FP32's rounding
                return f"class {index} is {value} {label}, right is {self.logits[index]:.6f}"
        return None


def good_images(count: int, seed: int = 0) -> list[Good]:
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        base = random.permutation([40, 120, 200])
        pixels = (base + random.integers(-30, 31, (SIZE, SIZE, 3))).astype(np.uint8)
        file = BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        made.append(Good(file.getvalue(), pixels.mean(axis=(0, 1)) / 255))
    return made


# --- hostile clients


def request(body: bytes, *, length: int | None = None, query: str = "") -> bytes:
    head = f"POST {INFER}{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    head += "Content-Type: image/png\r\nContent-Length: "
    return f"{head}{len(body) if length is None else length}\r\n\r\n".encode() + body


def said(client: socket.socket) -> bytes:
    """All that comes until the service ends the connection; a reset is such an end."""
    received = b""
    with suppress(ConnectionError):
        while part := client.recv(65536):
            received += part
    return received


def sent(service: Service, data: bytes) -> str:
    """The status that is answered; "closed" where the connection ends without one."""
    with service.connect() as client:
        with suppress(ConnectionError):
            client.sendall(data)
        answer = said(client)
    return answer[9:12].decode() if answer.startswith(b"HTTP/1.1 ") else "closed"


def trickled(service: Service, data: bytes, stop: threading.Event) -> str:
    """A byte at a time until the service has had enough."""
    start = time.monotonic()
    with service.connect() as client:
        client.settimeout(0.25)
        while not stop.is_set():
            if time.monotonic() - start > PATIENCE_S:
                return "hung"
            try:
                client.sendall(data[:1])
                if not (answer := client.recv(4096)):
                    return "closed"
                return answer[9:12].decode(errors="replace")
            except TimeoutError:
                continue
            except ConnectionError:
                return "closed"
    return "stopped"


def left(service: Service, data: bytes) -> str:
    """Half of a request, from a client that goes away."""
    with service.connect() as client:
        client.sendall(data[: len(data) // 2])
    return "left"


Hostile = tuple["str", "Callable[[Service, threading.Event], str]", "set[str]"]


def hostile_acts() -> list[Hostile]:
    """Each: its name, what is done, and what may come of it."""
    acts: list[Hostile] = [
        (each.name, lambda s, _, body=each.body: sent(s, request(body)), each.outcomes())  # type: ignore[misc]
        for each in hostile_uploads()
    ]
    head = request(b"", length=1000)
    large = bytes(UPLOAD + MIB)
    return [
        *acts,
        ("a stalled body", lambda s, _: sent(s, head + b"half"), {"408"}),
        ("a stalled head", lambda s, _: sent(s, head[:40]), {"closed"}),
        ("no request at all", lambda s, _: sent(s, b""), {"closed"}),
        ("a trickling head", lambda s, e: trickled(s, b"P", e), {"closed", "stopped"}),
        ("an upload above the limit", lambda s, _: sent(s, request(large)), {"413", "closed"}),
        ("a client that goes away", lambda s, _: left(s, request(bytes(MIB))), {"left"}),
        ("no HTTP", lambda s, _: sent(s, b"\x16\x03\x01\x02\x00\x01\r\n\r\n" * 9), {"400"}),
        ("a head of 200 KB", lambda s, _: sent(s, b"GET /" + b"a" * 200_000), {"400", "closed"}),
        (
            "10^9 classes",
            lambda s, _: sent(s, request(b"x", query="?classification=1000000000")),
            {"400"},
        ),
        ("a length below zero", lambda s, _: sent(s, request(b"x", length=-1)), {"400"}),
    ]


@dataclass
class Seen:
    """What one client has seen."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def attack(service: Service, acts: list[Hostile], seed: int, stop: threading.Event) -> Seen:
    """One hostile client: one act after the other with a pause of up to two seconds."""
    random, seen = np.random.default_rng(seed), Seen()
    while not stop.wait(random.uniform(0, 2)):
        name, act, right = acts[int(random.integers(len(acts)))]
        try:
            outcome = act(service, stop)
        except TimeoutError:
            outcome = LEFT if LEFT in right else "hung"
        except OSError as error:
            outcome = type(error).__name__
        seen.counts[f"{name}: {outcome}"] += 1
        if outcome not in right:
            seen.problems.append(f"{name}: {outcome}, right is {' or '.join(sorted(right))}")
    return seen


def ask(service: Service, images: list[Good], client: int, every_s: float, stop: Any) -> Seen:
    """One good client on one connection, which asks every ``every_s`` seconds."""
    random, seen = np.random.default_rng(client), Seen()
    link = http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE_S)
    while not stop.wait(every_s * random.uniform(0.5, 1.5)):
        image = images[int(random.integers(len(images)))]
        start = time.monotonic()
        try:
            link.request("POST", f"{INFER}?classification=3", image.body, IMAGE)
            answer = link.getresponse()
            body = answer.read()
            problem = image.problem(json.loads(body)) if answer.status == http.HTTPStatus.OK else ""
            outcome = "right" if problem is None else "wrong" if problem else f"{answer.status}"
        except TimeoutError:
            outcome, problem = "hung", None
            link.close()
        except (OSError, http.client.HTTPException) as error:
            outcome, problem = type(error).__name__, None
            link.close()
        seen.seconds.append(time.monotonic() - start)
        seen.counts[outcome] += 1
        if outcome != "right":
            seen.problems.append(f"good client {client}: {outcome} {problem or ''}")
    link.close()
    return seen


# --- ten minutes


def hostile_minutes(
    folder: Path, minutes: float, *, hostile: int = 64, good: int = 4, every_s: float = 0.25
) -> dict[str, Any]:
    """``hostile`` clients beside ``good`` ones for so long; what was answered, and the memory."""
    bundle, acts, images = write_bundle(folder / "colours"), hostile_acts(), good_images(24)
    stop = threading.Event()
    with served(bundle) as service, ThreadPoolExecutor(hostile + good) as pool:
        before = service.memory_mib()
        bad = [pool.submit(attack, service, acts, seed, stop) for seed in range(hostile)]
        kind = [pool.submit(ask, service, images, one, every_s, stop) for one in range(good)]
        try:
            memory = watched(service, 60 * minutes)
        finally:
            stop.set()
        health = sent(service, HEALTH)
        seen, asked = [each.result() for each in bad], [each.result() for each in kind]
        peak, alive = service.memory_mib("VmHWM"), service.process.poll() is None
        ended_s = service.stop()
        log = service.log.read_text(encoding="utf-8", errors="replace")
    bound = 2 * BYTES_PER_PIXEL * MAX_PIXELS / MIB + hostile * UPLOAD / MIB + 48
    seconds = np.array([second for each in asked for second in each.seconds] or [0.0])
    return {
        "minutes": minutes,
        "hostile_clients": hostile,
        "good_clients": good,
        "hostile": dict(sorted(sum((each.counts for each in seen), Counter()).items())),
        "good": dict(sum((each.counts for each in asked), Counter())),
        "problems": [problem for each in (*seen, *asked) for problem in each.problems],
        "latency_ms": {
            name: round(1000 * float(np.percentile(seconds, share)), 1)
            for name, share in (("p50", 50), ("p95", 95), ("p99", 99), ("max", 100))
        },
        "memory": {
            "before_mib": round(before, 1),
            "peak_mib": round(peak, 1),
            "bound_mib": round(before + bound, 1),
            "is_bounded": peak < before + bound,
            "mib_by_minute": memory,
        },
        "health": health,
        "alive": alive,
        "sigterm_s": round(ended_s, 2),
        "tracebacks": log.count("Traceback"),
    }


def watched(service: Service, seconds: float) -> list[tuple[float, float]]:
    """Resident memory every five seconds: minutes since the start, MiB."""
    start, samples = time.monotonic(), []
    while (passed := time.monotonic() - start) < seconds and service.process.poll() is None:
        samples.append((round(passed / 60, 3), round(service.memory_mib(), 1)))
        time.sleep(min(5.0, seconds / 10))
    return samples


def is_clean(result: dict[str, Any]) -> bool:
    """Whether nothing went wrong."""
    return (
        not result["problems"]
        and set(result["good"]) == {"right"}
        and result["memory"]["is_bounded"]
        and result["health"] == "200"
        and result["alive"]
        and result["sigterm_s"] < SIGTERM_S
        and not result["tracebacks"]
    )


def show(result: dict[str, Any]) -> str:
    """As Markdown."""
    memory, latency = result["memory"], result["latency_ms"]
    lines = ["| what hostile clients did: what came | times |", "|---|---|"]
    lines += [f"| {name} | {count} |" for name, count in result["hostile"].items()]
    good = ", ".join(f"{count} {name}" for name, count in result["good"].items())
    latencies = ", ".join(f"{name} {value:g} ms" for name, value in latency.items())
    sizes = f"MiB: {memory['before_mib']:.0f}, at most {memory['peak_mib']:.0f}"
    after = f"ready afterwards: {result['health']}; SIGTERM: {result['sigterm_s']:.1f} s"
    faults = f"tracebacks in the log: {result['tracebacks']}, problems: {len(result['problems'])}"
    lines += [
        "",
        f"good answers: {good}; {latencies}",
        f"{sizes}, bound {memory['bound_mib']:.0f}",
        f"{after}; {faults}",
    ]
    return "\n".join(lines)


# --- single faults, for the table


def exports_below(folder: Path, count: int, row: Row) -> None:
    """Another bundle is swapped in below a running service, which must stay what it was."""
    one, other = two_kinds(folder).values()
    place, images = folder / "place", good_images(4)
    swap_in(one, place)
    with served(place) as service:
        for turn in range(count):
            swap_in(other if turn % 2 == 0 else one, place)
            row.plant(f"turn {turn}, health", lambda: sent(service, HEALTH), _is("200"))
            for image in images:
                row.plant(f"turn {turn}, predict", lambda im=image: _ask_once(service, im), _is(""))  # type: ignore[misc]


def _is_of(right: set[str], found: Any) -> str:
    return "survived" if found in right else "lied"


def _is(right: str) -> Callable[[Any], str]:
    return partial(_is_of, {right})


def _ask_once(service: Service, image: Good) -> str:
    """What is wrong with the answer to one good request; empty where nothing is."""
    with service.connect() as client:
        client.sendall(request(image.body, query="?classification=3"))
        head, _, body = said(client).partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        return head.decode(errors="replace")
    return image.problem(json.loads(body)) or ""


def stalled_clients(folder: Path, count: int, row: Row) -> None:
    """Clients that stop in the middle: each is closed, a good one is answered, SIGTERM ends it."""
    bundle, head = write_bundle(folder / "colours"), request(b"", length=1000)
    (image,) = good_images(1)
    begun = (b"", b"POST /pre", head[:40], head, head + b"half")
    with served(bundle, "--read-timeout-s", "1", "--max-in-flight", "4") as service:
        for turn in range(count):
            data = begun[turn % len(begun)]
            right = {"closed"} if data in begun[:3] else {"408", "429"}
            with ThreadPoolExecutor(8) as pool:
                for each in [pool.submit(sent, service, data) for _ in range(8)]:
                    row.plant(f"turn {turn}", each.result, partial(_is_of, right))
            row.plant("a good client after it", lambda: _ask_once(service, image), _is(""))
    options = ("--read-timeout-s", "3600", "--graceful-timeout-s", "1")
    for _ in range(max(1, count // 8)):
        with served(bundle, *options) as service:
            stalled = [service.connect() for _ in begun]
            for client, data in zip(stalled, begun, strict=True):
                client.sendall(data)
            row.plant("SIGTERM", service.stop, lambda s: "survived" if s < SIGTERM_S else "hung")
            for client in stalled:
                client.close()
