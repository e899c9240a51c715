"""What the threads of `soak.py` do to the one model, and how they judge its answers."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.core.errors import UsageError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from numpy.typing import NDArray

    import deploykit

    Random = np.random.Generator

LARGEST_RUN: Final = 12
"""Images of one ``run``: more than the engine on the stand-in takes, so that it is split."""


class WrongAnswerError(Exception):
    """An answer that is not the one computed beforehand."""


@dataclass(frozen=True)
class Material:
    """Images as the calls take them, and the logits that each must give within ``tolerance``."""

    encoded: list[bytes]
    batch: NDArray[np.float32]
    logits: NDArray[np.float32]
    tolerance: float

    def check(self, chosen: NDArray[np.int64], logits: NDArray[np.float32]) -> None:
        """Raise `WrongAnswerError` unless the logits are those of the chosen images."""
        error = float(np.abs(logits - self.logits[chosen]).max())
        if not error <= self.tolerance:
            raise WrongAnswerError(f"{len(chosen)} images: logits are off by {error:.3g}")

    def check_best(self, image: int, best: deploykit.Prediction) -> None:
        """As ``check``, for the likeliest class of one image."""
        expected = self.logits[image]
        off = max(abs(best.logit - expected[best.index]), (expected.max() - best.logit))
        if not off <= self.tolerance:
            raise WrongAnswerError(f"predict: class {best.index} is off by {off:.3g}")


@dataclass(frozen=True)
class Subject:
    """What is called."""

    model: deploykit.Classifier
    batcher: deploykit.MicroBatcher
    material: Material


@dataclass
class Tally:
    """What one thread has seen."""

    calls: Counter[str] = field(default_factory=Counter)
    images: int = 0
    problems: list[str] = field(default_factory=list)


def some(subject: Subject, random: Random, largest: int) -> NDArray[np.int64]:
    """Which images of the material, between 1 and ``largest`` of them."""
    count = len(subject.material.batch)
    return random.integers(count, size=random.integers(1, largest + 1))


def call_run(subject: Subject, random: Random) -> int:
    chosen = some(subject, random, LARGEST_RUN)
    subject.material.check(chosen, subject.model.run(subject.material.batch[chosen]))
    return len(chosen)


def call_predict(subject: Subject, random: Random) -> int:
    chosen = some(subject, random, 3)
    uploads = [subject.material.encoded[image] for image in chosen]
    for image, found in zip(chosen, subject.model.predict(uploads, top_k=3), strict=True):
        subject.material.check_best(int(image), found[0])
    return len(chosen)


def call_batcher(subject: Subject, random: Random) -> int:
    chosen = some(subject, random, 3)
    answer = subject.batcher.run(subject.material.batch[chosen], queue_timeout_s=None)
    subject.material.check(chosen, answer)
    return len(chosen)


def call_asyncio(subject: Subject, random: Random) -> int:
    async def ask() -> list[NDArray[Any]]:
        asked = (subject.batcher.run_async(subject.material.batch[image]) for image in chosen)
        return await asyncio.gather(*asked)

    chosen = some(subject, random, 6)
    subject.material.check(chosen, np.stack(asyncio.run(ask())))
    return len(chosen)


def call_and_cancel(subject: Subject, random: Random) -> int:
    chosen = some(subject, random, 3)
    future = subject.batcher.submit(subject.material.batch[chosen], queue_timeout_s=None)
    time.sleep(random.choice([0, 0.002, 0.01]))  # waiting, being computed, or done by then
    if future.cancel():
        return 0
    subject.material.check(chosen, future.result())
    return len(chosen)


def call_badly(subject: Subject, random: Random) -> int:
    bad = subject.material.batch[some(subject, random, 3)]
    bad[-1, 0, 0, 0] = np.nan
    call = subject.model.run if random.random() < 0.5 else subject.batcher.run  # noqa: PLR2004
    try:
        call(bad)
    except UsageError:
        return 0
    raise WrongAnswerError("NaN was answered")


CALLS: Final[dict[str, Callable[[Subject, Random], int]]] = {
    "run": call_run,
    "predict": call_predict,
    "batcher.run": call_batcher,
    "batcher.run_async": call_asyncio,
    "submit and cancel": call_and_cancel,
    "NaN": call_badly,
}


def work(subject: Subject, seed: int, stop: threading.Event) -> Tally:
    random, tally = np.random.default_rng(seed), Tally()
    while not stop.is_set():
        name = str(random.choice(list(CALLS)))
        tally.calls[name] += 1
        try:
            tally.images += CALLS[name](subject, random)
        except Exception as error:  # noqa: BLE001, RUF100 - whatever it is, it is a finding
            tally.problems.append(f"{name}: {type(error).__name__}: {error}")
    return tally
