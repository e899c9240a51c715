"""How `faults.py` judges what comes of a planted fault, and the bundles that it plants them in.

The judge shares no code with deploykit: the right logits are means of colours by numpy, hashes are
those of hashlib.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import deploykit
from deploykit.bundle.manifest import (
    GOLDEN,
    LABELS,
    MANIFEST,
    MODEL,
    Bundle,
    Manifest,
    manifest_text,
)
from deploykit.core.atomic import staged_folder
from deploykit.core.errors import DeploykitError
from tests.bundles import COLOURS, SIZE, colours_of, engine_record, write_bundle
from tests.graphs import graph, save

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.core.artifacts import EngineRecord

OUTCOMES: Final = ("survived", "lost", "lied", "traceback", "hung", "swelled")
"""Survived: the right answer, or a refusal in words with the former bundle whole. Lost: that is
gone or unreadable. Lied: a wrong answer, damage called whole or the reverse. Traceback: an error
that is not deploykit's, or a crash. Hung: over the bound of seconds. Swelled: over that of memory.
"""

GRAPH: Final = COLOURS.format(batch="N", image=f"{SIZE}, {SIZE}")
NEGATED: Final = GRAPH.replace("logits = F", "f = F").replace("}", " logits = Neg(f) }")
PROBE: Final = np.random.default_rng(7).normal(size=(2, 3, SIZE, SIZE)).astype(np.float32)
SHOWN: Final = 5


class HungError(BaseException):
    """The time for one fault is over; no ``except Exception`` may catch it."""


@dataclass
class Row:
    """One kind of fault: how often it was planted and what came of it."""

    kind: str
    bound_s: float
    counts: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    slowest_s: float = 0.0
    shown: list[str] = field(default_factory=list)
    left_out: str = ""

    @property
    def tried(self) -> int:
        """Faults that were planted."""
        return self.counts.total()

    def add(self, outcome: str, what: str, seconds: float = 0.0) -> None:
        """Count one fault."""
        self.counts[outcome] += 1
        self.slowest_s = max(self.slowest_s, seconds)
        if outcome != "survived" and len(self.shown) < SHOWN:
            self.shown.append(f"{outcome}: {what}")

    def plant(self, what: str, use: Callable[[], object], judge: Callable[[Any], str]) -> None:
        """Use what is faulty; ``judge`` is given the answer, or deploykit's error."""
        start = time.monotonic()
        try:
            with within(self.bound_s):
                try:
                    found = use()
                except DeploykitError as error:
                    found = error
            self.refused += is_refusal(found)
            outcome, said = judge(found), str(found)
        except HungError:
            outcome, said = "hung", f"over {self.bound_s:g} s"
        except Exception as error:  # whatever it is, it is a finding
            outcome, said = "traceback", f"{type(error).__name__}: {error}"
        self.add(outcome, f"{what}: {said[:300]}", time.monotonic() - start)


def is_refusal(found: object) -> bool:
    """An error of deploykit's, a report with problems, or a command's status that is not 0."""
    is_status = isinstance(found, int) and not isinstance(found, bool) and found != 0
    is_error = isinstance(found, Exception) or getattr(found, "ok", None) is False
    return is_status or is_error or getattr(found, "code", 0) != 0


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise `HungError` in the main thread when the block takes longer."""

    def stop(*_: object) -> None:
        raise HungError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- bundles


def two_kinds(folder: Path) -> dict[str, Path]:
    """Two bundles that differ in graph, labels and name: the other one negates its logits."""
    one, other = (write_bundle(folder / name, engine_record()) for name in ("one", "other"))
    save(graph(NEGATED), other / MODEL)
    np.savez(other / GOLDEN, input=PROBE, logits=-colours_of(PROBE))
    (other / LABELS).write_text("cyan\nmagenta\nyellow\n", encoding="utf-8")
    manifest = Bundle.open(other).manifest
    files = {name: digest_of(other / name) for name in manifest.files}
    write_manifest(other, replace(manifest, name="other-fp32", files=files))
    return {"colours-fp32": one, "other-fp32": other}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_text(manifest_text(manifest), encoding="utf-8")


def digest_of(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def swap_in(kind: Path, place: Path) -> None:
    """What an export does at its end."""
    with staged_folder(place, MANIFEST) as folder:
        shutil.copytree(kind, folder, dirs_exist_ok=True)


def engine_of(content: bytes) -> EngineRecord:
    """As a build writes it: the name ends in digits of the content's hash."""
    digest = sha256(content).hexdigest()
    record = engine_record(f"tensorrt-11.4.0.106-sm90-{digest[:8]}.engine")
    return replace(record, sha256=digest, bytes=len(content))


def add_engine(folder: Path, content: bytes) -> Bundle:
    """What a build does at its end."""
    staged = folder.parent / f"staged-{os.getpid()}"
    staged.write_bytes(content)
    return Bundle.open(folder).with_engine(engine_of(content), staged)


# --- judges


@dataclass(frozen=True)
class Answer:
    """What a load gave: of which bundle it is, and whether all of it is."""

    name: str
    labels: tuple[str, ...] | None
    logits: NDArray[np.float32]


def loaded(folder: Path, trust: Path | None = None) -> Answer:
    with deploykit.load(folder, device="cpu", threads=1, trust=trust) as model:
        return Answer(model.name, model.labels, model.run(PROBE))


def is_right(answer: Answer) -> bool:
    """Whether name, labels and logits are of one of the two bundles."""
    means = PROBE.mean(axis=(2, 3), dtype=np.float64)
    of = {"colours-fp32": (1, ("red", "green", "blue"))}
    of["other-fp32"] = (-1, ("cyan", "magenta", "yellow"))
    sign, labels = of.get(answer.name, (0, ()))
    return answer.labels == labels and bool(np.allclose(answer.logits, sign * means, atol=1e-5))


def whole(folder: Path) -> str:
    """Judge a bundle after a fault: every file as its manifest says, and the right answer."""
    try:
        body = Bundle.open(folder).manifest
        named = {**body.files, **{engine.file: engine.sha256 for engine in body.engines}}
        if any(digest_of(folder / name) != digest for name, digest in named.items()):
            return "lost"
        return "survived" if is_right(loaded(folder)) else "lied"
    except (DeploykitError, OSError):
        return "lost"


# --- calls that are stopped


class Stopped:
    """The calls of ``os`` that change the disk; number ``turn`` kills the process, or fails."""

    CALLS = ("rename", "replace", "fsync", "unlink", "mkdir", "rmdir")

    def __init__(self, turn: int, death: str) -> None:
        self.turn, self.death, self.calls = turn, death, 0
        for name in self.CALLS:
            setattr(os, name, self._watched(getattr(os, name)))

    def _watched(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self.turn:
                if self.death == "killed":
                    os._exit(9)
                number = int(getattr(errno, self.death))
                raise OSError(number, os.strerror(number))
            return real(*args, **kwargs)

        return call


def stopped_at(turn: int, death: str, use: Callable[[], object], bound_s: float) -> str:
    """Run ``use`` in a child that is stopped there: "done" where it has no such call."""
    child = os.fork()
    if child == 0:
        code = 3
        with suppress(BaseException):
            stop = Stopped(turn, death)
            with suppress(DeploykitError):
                use()
            code = 0 if stop.calls < turn else 1
        os._exit(code)
    deadline_s = time.monotonic() + bound_s
    while time.monotonic() < deadline_s:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            return {0: "done", 1: "stopped", 9: "stopped"}.get(code, "traceback")
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hung"
