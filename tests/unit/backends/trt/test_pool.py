from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING, Any, cast

import pytest

from deploykit.backends.trt.runner import LanePool
from deploykit.core.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable


class Lane:
    is_closed = False

    def close(self) -> None:
        assert not self.is_closed
        self.is_closed = True


def pool_of(make: Callable[[], Lane], limit: int = 2) -> LanePool:
    return LanePool("model.engine", cast("Callable[[], Any]", make), limit)


def test_a_lane_is_lent_again_the_last_one_first() -> None:
    pool = pool_of(Lane)
    first, second = pool.take(), pool.take()
    assert first is not second
    pool.give_back(first)
    pool.give_back(second)
    assert pool.take() is second
    assert pool.take() is first


def test_whoever_comes_late_waits() -> None:
    pool = pool_of(Lane)
    lent = [pool.take(), pool.take()]
    with ThreadPoolExecutor(1) as threads:
        late = threads.submit(pool.take)
        assert not late.done()
        pool.give_back(lent[0])
        assert late.result() is lent[0]


def test_a_discarded_lane_makes_room_for_another() -> None:
    pool = pool_of(Lane, limit=1)
    lane = pool.take()
    pool.discard(lane)
    assert cast("Any", lane).is_closed
    assert pool.take() is not lane


def test_a_lane_that_cannot_even_be_closed_makes_room_too() -> None:
    class Stuck(Lane):
        def close(self) -> None:
            raise ValueError("stuck")

    pool = pool_of(Stuck, limit=1)
    with pytest.raises(ValueError, match="stuck"):
        pool.discard(pool.take())
    assert isinstance(pool.take(), Stuck)


def test_where_memory_ends_fewer_lanes_have_to_do(caplog: pytest.LogCaptureFixture) -> None:
    lanes = [Lane()]
    tried = Event()

    def make() -> Lane:
        if lanes:
            return lanes.pop()
        tried.set()
        raise DeviceError("no memory left")

    pool = pool_of(make, limit=8)
    only = pool.take()
    with ThreadPoolExecutor(3) as threads:
        others = [threads.submit(turn, pool) for _ in range(3)]
        tried.wait()
        pool.give_back(only)
        assert [other.result() for other in others] == [only] * 3
    assert "model.engine: 1 calls at a time have to do: no memory left" in caplog.text


def turn(pool: LanePool) -> Any:
    lane = pool.take()
    pool.give_back(lane)
    return lane


def test_memory_for_no_lane_at_all_is_an_error() -> None:
    def make() -> Lane:
        raise DeviceError("no memory left")

    pool = pool_of(make)
    for _ in range(3):
        with pytest.raises(DeviceError, match="no memory left"):
            pool.take()


def test_a_defect_while_making_a_lane_is_not_hidden_and_not_counted() -> None:
    errors = [KeyError("a defect")] * 3

    def make() -> Lane:
        if errors:
            raise errors.pop()
        return Lane()

    pool = pool_of(make)
    pool.give_back(pool_take_after(pool, 3))


def pool_take_after(pool: LanePool, failures: int) -> Any:
    for _ in range(failures):
        with pytest.raises(KeyError, match="a defect"):
            pool.take()
    return pool.take()


def test_closing_waits_for_what_is_lent_and_sends_the_waiting_away() -> None:
    made: list[Lane] = []

    def make() -> Lane:
        made.append(Lane())
        return made[-1]

    pool = pool_of(make, limit=1)
    lane = pool.take()
    closing = Event()

    def close() -> None:
        closing.set()
        pool.close()

    with ThreadPoolExecutor(2) as threads:
        waiting = threads.submit(pool.take)
        closed = threads.submit(close)
        closing.wait()
        with pytest.raises(UsageError, match=r"the runner of model\.engine is closed; open a new"):
            waiting.result()
        assert not closed.done()
        pool.give_back(lane)
        closed.result()
    assert [one.is_closed for one in made] == [True]
    pool.close()
    with pytest.raises(UsageError, match="is closed"):
        pool.take()
