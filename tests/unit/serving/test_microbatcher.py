from __future__ import annotations

import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.core.errors import QueueFullError, UsageError
from deploykit.serving.micro_batcher import BatcherStats, MicroBatcher
from tests.fakes.batch_model import PATIENCE_S, NumberModel, image, images, logits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from numpy.typing import NDArray

HOUR_MS = 3_600_000
NEVER_MIND = 0.0


def answer(future: Future[NDArray[Any]]) -> object:
    return future.result(PATIENCE_S).tolist()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def busy(gate: threading.Event) -> Iterator[MicroBatcher]:
    """Its worker stands in the model with image 0; what is submitted now waits for the gate."""
    model = NumberModel(gate=gate)
    with MicroBatcher(model, max_batch=4, max_wait_ms=NEVER_MIND, max_queue=6) as batcher:
        batcher.submit(image(0))
        model.wait_until_called()
        yield batcher
        gate.set()


def calls(batcher: MicroBatcher) -> list[list[float]]:
    model = batcher._model
    assert isinstance(model, NumberModel)
    return model.calls


def eventually(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    while not condition():  # pytest's own time limit ends this if it must
        pause.wait(0.001)


def test_one_image_gets_a_row_and_a_few_get_rows() -> None:
    with MicroBatcher(NumberModel()) as batcher:
        assert batcher.run(image(3)).tolist() == logits(3)
        assert batcher.run(images(5)).tolist() == [logits(5)]
        assert batcher.run(images(7, 9)).tolist() == [logits(7), logits(9)]


def test_what_comes_while_the_model_is_busy_is_the_next_batch(
    busy: MicroBatcher, gate: threading.Event
) -> None:
    futures = [busy.submit(image(1)), busy.submit(images(2, 3)), busy.submit(image(4))]
    gate.set()
    assert [answer(future) for future in futures] == [
        logits(1), [logits(2), logits(3)], logits(4),
    ]  # fmt: skip
    assert calls(busy) == [[0], [1, 2, 3, 4]]


def test_more_than_a_batch_goes_in_several_in_the_order_of_arrival(
    busy: MicroBatcher, gate: threading.Event
) -> None:
    futures = [busy.submit(images(1, 2, 3)), busy.submit(images(4, 5)), busy.submit(image(6))]
    gate.set()
    for future in futures:
        answer(future)
    assert calls(busy) == [[0], [1, 2, 3], [4, 5, 6]]


def test_a_full_batch_never_waits() -> None:
    model = NumberModel()
    with MicroBatcher(model, max_batch=3, max_wait_ms=HOUR_MS) as batcher:
        futures = [batcher.submit(image(number)) for number in (1, 2, 3)]
        assert [answer(future) for future in futures] == [logits(1), logits(2), logits(3)]
    assert model.calls == [[1, 2, 3]]


def test_a_batch_that_does_not_fill_up_goes_when_its_time_has_come() -> None:
    with MicroBatcher(NumberModel(), max_batch=1000, max_wait_ms=1, max_queue=1000) as batcher:
        assert batcher.run(image(1)).tolist() == logits(1)


def test_shapes_and_types_never_share_a_batch(busy: MicroBatcher, gate: threading.Event) -> None:
    small, large = busy.submit(image(1)), busy.submit(image(2, size=4))
    double, small_again = busy.submit(image(3).astype(np.float64)), busy.submit(image(4))
    gate.set()
    assert [answer(f) for f in (small, large, double, small_again)] == [
        logits(number) for number in (1, 2, 3, 4)
    ]
    assert calls(busy) == [[0], [1, 4], [2], [3]]


def test_answers_are_the_callers_own(busy: MicroBatcher, gate: threading.Event) -> None:
    first, second = busy.submit(images(1, 2)), busy.submit(images(3))
    gate.set()
    rows = first.result(PATIENCE_S)
    rows[:] = -1
    assert rows.base is None
    assert answer(second) == [logits(3)]


def test_two_workers_run_two_batches_at_once(gate: threading.Event) -> None:
    model = NumberModel(gate=gate)
    with MicroBatcher(model, max_wait_ms=NEVER_MIND, workers=2) as batcher:
        first = batcher.submit(image(1))
        model.wait_until_called()
        second = batcher.submit(image(2))
        model.wait_until_called()  # with one worker it would never come
        gate.set()
        assert [answer(first), answer(second)] == [logits(1), logits(2)]


@pytest.mark.parametrize("workers", [1, 3])
def test_each_of_32_threads_gets_its_own_answers(workers: int) -> None:
    def ask(caller: int) -> int:
        random = np.random.default_rng(caller)
        right = 0
        for _ in range(40):
            numbers = random.integers(100_000, size=random.integers(1, 6)).tolist()
            rows = batcher.run(images(*numbers), queue_timeout_s=None)
            right += rows.tolist() == [logits(number) for number in numbers]
        return right

    with (
        MicroBatcher(NumberModel(), max_wait_ms=0.2, max_queue=16, workers=workers) as batcher,
        ThreadPoolExecutor(32) as pool,
    ):
        assert list(pool.map(ask, range(32))) == [40] * 32
    assert batcher.stats().answered == 32 * 40


def test_a_cancelled_request_is_not_computed(busy: MicroBatcher, gate: threading.Event) -> None:
    cancelled, kept = busy.submit(image(1)), busy.submit(image(2))
    assert cancelled.cancel()
    assert busy.stats().queued_images == 1
    gate.set()
    assert answer(kept) == logits(2)
    with pytest.raises(CancelledError):
        cancelled.result(PATIENCE_S)
    assert calls(busy) == [[0], [2]]


def test_one_that_is_being_computed_can_no_longer_be_cancelled(gate: threading.Event) -> None:
    model = NumberModel(gate=gate)
    with MicroBatcher(model, max_wait_ms=NEVER_MIND) as batcher:
        future = batcher.submit(image(1))
        model.wait_until_called()
        assert not future.cancel()
        gate.set()
        assert answer(future) == logits(1)


def test_an_interrupted_caller_leaves_nothing_behind(
    busy: MicroBatcher, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = busy.submit

    def interrupted(*arguments: object, **options: object) -> Future[NDArray[Any]]:
        future = submit(image(1))
        monkeypatch.setattr(future, "result", interrupt)
        return future

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(busy, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        busy.run(image(1))
    assert busy.stats().cancelled == 1
    assert busy.stats().queued_images == 0


def test_a_full_queue_refuses_at_once(busy: MicroBatcher) -> None:
    busy.submit(images(1, 2, 3, 4))
    with pytest.raises(QueueFullError) as caught:
        busy.submit(images(5, 6, 7))
    assert str(caught.value) == (
        "a request of 3 images found 4 waiting, max_queue is 6\n"
        "try again later; a service answers 503"
    )
    busy.submit(images(8, 9))  # what fits is still taken
    assert busy.stats().refused == 1


def test_a_full_queue_refuses_after_the_time_a_caller_is_willing_to_wait(
    busy: MicroBatcher,
) -> None:
    busy.submit(images(1, 2, 3, 4))
    with pytest.raises(QueueFullError, match="found 4 waiting"):
        busy.run(images(5, 6, 7), queue_timeout_s=0.01)
    assert busy.stats().queued_images == 4


def test_a_caller_that_waits_gets_its_place(busy: MicroBatcher, gate: threading.Event) -> None:
    busy.submit(images(1, 2, 3, 4))
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(busy.run, images(5, 6, 7), queue_timeout_s=None)
        eventually(lambda: len(busy._tickets) == 1)
        gate.set()
        assert waiting.result(PATIENCE_S).tolist() == [logits(5), logits(6), logits(7)]


def test_nobody_slips_in_before_one_who_waits_for_a_place(busy: MicroBatcher) -> None:
    early = [busy.submit(images(1, 2, 3, 4)), busy.submit(image(5)), busy.submit(image(6))]
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(busy.submit, images(7, 8), queue_timeout_s=None)
        eventually(lambda: len(busy._tickets) == 1)
        early[1].cancel()  # room for one, and two are wanted
        with pytest.raises(QueueFullError, match="a request of 1 images found 5 waiting"):
            busy.submit(image(9))
        early[2].cancel()
        assert not waiting.result(PATIENCE_S).done()
    assert busy.stats().queued_images == 6


def test_statistics_say_what_happened(busy: MicroBatcher, gate: threading.Event) -> None:
    assert busy.stats() == BatcherStats(accepted=1, batches=1, images=1)
    futures = [busy.submit(images(1, 2)), busy.submit(image(3)), busy.submit(image(4))]
    futures[2].cancel()
    assert busy.stats().queued_images == 3
    gate.set()
    for future in futures[:2]:
        answer(future)
    busy.close()
    assert busy.stats() == BatcherStats(
        accepted=4, answered=3, cancelled=1, batches=2, images=4, queued_images=0
    )
    assert busy.stats().mean_batch == 2
    assert BatcherStats().mean_batch == 0


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_batch": 0}, "max_batch=0, workers=1: expected at least 1 of each"),
        ({"workers": 0}, "max_batch=8, workers=0: expected at least 1 of each"),
        ({"max_wait_ms": -1}, "max_wait_ms=-1: expected 0 to 3600000"),
        ({"max_wait_ms": float("nan")}, "max_wait_ms=nan: expected 0 to 3600000"),
        (
            {"max_batch": 8, "max_queue": 7},
            "max_queue=7 is less than max_batch=8\nexpected room for at least one full batch",
        ),
    ],
)
def test_limits_that_make_no_sense(limits: dict[str, Any], message: str) -> None:
    before = threading.active_count()
    with pytest.raises(UsageError) as caught:
        MicroBatcher(NumberModel(), **limits)
    assert str(caught.value) == message
    assert threading.active_count() == before
