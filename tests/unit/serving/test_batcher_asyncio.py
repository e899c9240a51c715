from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.core.errors import QueueFullError, UsageError
from deploykit.serving.micro_batcher import MicroBatcher
from tests.fakes.batch_model import NumberModel, image, images, logits

if TYPE_CHECKING:
    from numpy.typing import NDArray


async def until_called(model: NumberModel) -> None:
    await asyncio.to_thread(model.wait_until_called)


def test_many_tasks_share_batches() -> None:
    async def ask_all() -> list[NDArray[Any]]:
        return await asyncio.gather(*(batcher.run_async(image(n)) for n in range(64)))

    model = NumberModel()
    with MicroBatcher(model, max_batch=8, max_wait_ms=3_600_000) as batcher:
        rows = asyncio.run(ask_all())
    assert [row.tolist() for row in rows] == [logits(n) for n in range(64)]
    assert model.calls == [list(range(start, start + 8)) for start in range(0, 64, 8)]


def test_threads_and_two_event_loops_share_one_batcher() -> None:
    async def ask(numbers: list[int]) -> list[NDArray[Any]]:
        return await asyncio.gather(*(batcher.run_async(image(n)) for n in numbers))

    def loop(numbers: list[int]) -> None:
        found[numbers[0]] = [row.tolist() for row in asyncio.run(ask(numbers))]

    found: dict[int, list[object]] = {}
    groups = [list(range(start, start + 20)) for start in (0, 100)]
    with MicroBatcher(NumberModel()) as batcher:
        threads = [threading.Thread(target=loop, args=[numbers]) for numbers in groups]
        for thread in threads:
            thread.start()
        assert batcher.run(image(7)).tolist() == logits(7)
        for thread in threads:
            thread.join()
    assert found == {numbers[0]: [logits(n) for n in numbers] for numbers in groups}


def test_a_cancelled_task_is_not_computed_and_disturbs_nobody() -> None:
    gate = threading.Event()
    model = NumberModel(gate=gate)

    async def scenario() -> None:
        running = asyncio.create_task(batcher.run_async(image(0)))
        await until_called(model)
        waiting = [asyncio.create_task(batcher.run_async(image(n))) for n in (1, 2, 3)]
        await asyncio.sleep(0)  # each has submitted now
        waiting[1].cancel()
        running.cancel()  # too late for the model, its answer is dropped
        with pytest.raises(asyncio.CancelledError):
            await waiting[1]
        gate.set()
        assert (await waiting[0]).tolist() == logits(1)
        assert (await waiting[2]).tolist() == logits(3)
        with pytest.raises(asyncio.CancelledError):
            await running

    with MicroBatcher(model, max_wait_ms=0) as batcher:
        asyncio.run(scenario())
    assert model.calls == [[0], [1, 3]]
    assert batcher.stats().cancelled == 1


def test_a_loop_that_ends_before_its_answer_comes_disturbs_nobody() -> None:
    gate = threading.Event()
    model = NumberModel(gate=gate)

    async def leave() -> None:
        task = asyncio.create_task(batcher.run_async(image(1)))
        await until_called(model)
        task.cancel()

    with MicroBatcher(model, max_wait_ms=0) as batcher:
        asyncio.run(leave())
        gate.set()
        assert batcher.run(image(2)).tolist() == logits(2)


def test_an_error_is_raised_where_it_is_awaited() -> None:
    async def ask_both() -> list[NDArray[Any] | BaseException]:
        asked = (batcher.run_async(image(number)) for number in (1, 2))
        return await asyncio.gather(*asked, return_exceptions=True)

    model = NumberModel(poison=frozenset({1}))
    with MicroBatcher(model, max_batch=2, max_wait_ms=3_600_000) as batcher:
        bad, good = asyncio.run(ask_both())
    assert isinstance(bad, ValueError)
    assert isinstance(good, np.ndarray)
    assert good.tolist() == logits(2)


def test_a_full_queue_and_a_bad_image_are_errors_at_once() -> None:
    gate = threading.Event()
    model = NumberModel(gate=gate)

    async def scenario() -> None:
        running = asyncio.create_task(batcher.run_async(image(0)))
        await until_called(model)
        waiting = asyncio.create_task(batcher.run_async(images(1, 2)))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError, match="max_queue is 2"):
            await batcher.run_async(image(3))
        with pytest.raises(UsageError, match="expected one image"):
            await batcher.run_async([1.0, 2.0])
        gate.set()
        await asyncio.gather(running, waiting)

    with MicroBatcher(model, max_batch=2, max_wait_ms=0, max_queue=2) as batcher:
        asyncio.run(scenario())
