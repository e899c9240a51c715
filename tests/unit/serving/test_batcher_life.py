"""The end of a batcher: closed, never closed, interrupted, forked."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from deploykit.core.errors import UsageError
from deploykit.serving.micro_batcher import MicroBatcher
from tests.fakes.batch_model import PATIENCE_S, NumberModel, image, images, logits

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLOSED = "the batcher is closed; make a new one"


def test_close_runs_what_waits_without_waiting_for_company() -> None:
    batcher = MicroBatcher(NumberModel(), max_batch=4, max_wait_ms=3_600_000)
    futures = [batcher.submit(image(number)) for number in (1, 2)]
    batcher.close()
    assert [future.result(0).tolist() for future in futures] == [logits(1), logits(2)]


def test_close_without_draining_cancels_what_waits_and_ends_what_runs() -> None:
    gate = threading.Event()
    model = NumberModel(gate=gate)
    batcher = MicroBatcher(model, max_wait_ms=0)
    running = batcher.submit(image(1))
    model.wait_until_called()
    waiting = batcher.submit(image(2))
    with ThreadPoolExecutor() as pool:
        closing = pool.submit(batcher.close, drain=False)
        waiting.add_done_callback(lambda _: gate.set())  # by then the queue is empty
        closing.result(PATIENCE_S)
    assert waiting.cancelled()
    assert running.result(0).tolist() == logits(1)
    assert model.calls == [[1]]


def test_closing_twice_is_harmless_and_leaves_no_thread() -> None:
    before = threading.active_count()
    batcher = MicroBatcher(NumberModel(), workers=3)
    assert threading.active_count() == before + 3
    batcher.close()
    batcher.close(drain=False)
    batcher.close()
    assert threading.active_count() == before


def test_many_may_close_at_once() -> None:
    batcher = MicroBatcher(NumberModel())
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: batcher.close(), range(8))) == [None] * 8


def test_use_after_close() -> None:
    with MicroBatcher(NumberModel()) as batcher:
        batcher.run(image(1))
    with pytest.raises(UsageError, match=CLOSED):
        batcher.submit(image(1))
    with pytest.raises(UsageError, match=CLOSED):
        batcher.run(image(1), queue_timeout_s=None)
    assert batcher.stats().answered == 1


def test_an_error_in_the_block_cancels_what_waits() -> None:
    futures = []

    def fail() -> None:
        with MicroBatcher(NumberModel(), max_wait_ms=3_600_000) as batcher:
            futures.append(batcher.submit(image(1)))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert futures[0].cancelled()


def test_a_callback_may_close() -> None:
    batcher = MicroBatcher(NumberModel(), max_wait_ms=3_600_000, max_batch=2)
    closed = threading.Event()

    def close(_: Future[NDArray[Any]]) -> None:
        batcher.close()
        closed.set()

    batcher.submit(image(1)).add_done_callback(close)
    batcher.submit(image(2))
    assert closed.wait(PATIENCE_S)
    batcher.close()


def test_one_who_waits_for_a_place_is_told_of_the_end() -> None:
    gate = threading.Event()
    model = NumberModel(gate=gate)
    batcher = MicroBatcher(model, max_batch=2, max_wait_ms=0, max_queue=2)
    batcher.submit(image(0))
    model.wait_until_called()
    batcher.submit(images(1, 2))
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(batcher.submit, image(3), queue_timeout_s=None)
        while not batcher._tickets:
            threading.Event().wait(0.001)
        closing = pool.submit(batcher.close)
        assert str(waiting.exception(PATIENCE_S)) == CLOSED
        gate.set()
        closing.result(PATIENCE_S)
    assert model.calls == [[0], [1, 2]]


def python(code: str) -> str:
    program = (
        "import os, sys, threading\n"
        "from deploykit.serving.micro_batcher import MicroBatcher\n"
        "from tests.fakes.batch_model import NumberModel, image\n" + code
    )
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


def test_a_program_that_never_closes_it_ends_all_the_same() -> None:
    code = """
batcher = MicroBatcher(NumberModel(), max_wait_ms=3_600_000)
future = batcher.submit(image(1))
future.add_done_callback(lambda future: print("cancelled", future.cancelled()))
print("end")
"""
    assert python(code).split("\n") == ["end", "cancelled True", ""]


def test_a_forked_process_is_told_to_make_its_own() -> None:
    code = """
batcher = MicroBatcher(NumberModel())
batcher.run(image(1))
child = os.fork()
if not child:
    for use in (lambda: batcher.submit(image(2)), batcher.stats):
        try:
            use()
        except ValueError as error:
            print(str(error).replace(str(os.getppid()), "PARENT"))
    batcher.close()
    with MicroBatcher(NumberModel()) as own:
        print(own.run(image(3)).tolist())
    sys.stdout.flush()
    sys.exit(0)
os.waitpid(child, 0)
print(batcher.run(image(4)).tolist())
batcher.close()
"""
    refusal = [
        "this batcher was made in process PARENT, its threads are not in this one",
        "load the model and make the batcher after the fork",
    ]
    assert python(code).splitlines() == [*refusal, *refusal, "[3.0, 7.0]", "[4.0, 9.0]"]
