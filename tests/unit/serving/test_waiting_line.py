from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.serving.waiting_line import Request, WaitingLine

MAX_BATCH = 4


def request(count: int = 1, size: int = 2, arrived_s: float = 0.0) -> Request:
    return Request(np.zeros((count, 3, size, size), np.float32), count == 1, arrived_s)


def line_of(*requests: Request, max_wait_s: float = 5.0) -> WaitingLine:
    line = WaitingLine(MAX_BATCH, max_wait_s)
    for one in requests:
        line.add(one)
    return line


def test_nothing_is_due_while_nothing_waits() -> None:
    line = line_of()
    assert line.due_in_s(1e9) is None
    assert line.take() == []


@pytest.mark.parametrize(("now_s", "due_in_s"), [(10, 5), (12, 3), (15, 0), (99, 0)])
def test_the_oldest_request_sets_the_time(now_s: float, due_in_s: float) -> None:
    line = line_of(request(arrived_s=10), request(arrived_s=11), request(size=4, arrived_s=11))
    assert line.due_in_s(now_s) == due_in_s


def test_the_next_one_sets_the_time_when_the_oldest_is_cancelled() -> None:
    oldest = request(arrived_s=10)
    line = line_of(oldest, request(arrived_s=12))
    line.discard(oldest.future)
    assert line.due_in_s(12) == 5


@pytest.mark.parametrize("counts", [(4,), (3, 1), (1, 1, 1, 1), (3, 2), (1, 4)])
def test_a_full_batch_is_due_at_once(counts: tuple[int, ...]) -> None:
    assert line_of(*map(request, counts)).due_in_s(0) == 0


def test_images_of_another_shape_fill_no_batch() -> None:
    assert line_of(request(2, size=2), request(2, size=4)).due_in_s(0) == 5


def test_a_full_batch_ends_the_waiting_of_an_older_request_of_another_shape() -> None:
    alone, full = request(1, size=2, arrived_s=0), request(4, size=4, arrived_s=1)
    line = line_of(alone, full)
    assert line.due_in_s(1) == 0
    assert line.take() == [alone]
    assert line.take() == [full]


def test_takes_shapes_apart_and_the_oldest_first() -> None:
    first, other, second = request(size=2), request(size=4), request(size=2)
    line = line_of(first, other, second)
    assert line.take() == [first, second]
    assert line.take() == [other]


def test_types_are_apart_as_shapes_are() -> None:
    single = request()
    double = Request(single.images.astype(np.float64), is_single=True, arrived_s=0)
    line = line_of(single, double)
    assert line.take() == [single]


def test_a_large_request_is_not_overtaken_by_a_small_one_that_would_fit() -> None:
    first, large, small = request(3), request(2), request(1)
    line = line_of(first, large, small)
    assert line.take() == [first]
    assert line.take() == [large, small]


def test_forgets_what_is_discarded_and_does_not_mind_strangers() -> None:
    known, stranger = request(2), request(1)
    line = line_of(known)
    line.discard(stranger.future)
    assert (len(line), line.images) == (1, 2)
    line.discard(known.future)
    line.discard(known.future)
    assert (len(line), line.images) == (0, 0)


def test_clear_gives_all_back() -> None:
    requests = [request(1), request(2, size=4)]
    line = line_of(*requests)
    assert line.clear() == requests
    assert (len(line), line.images, line.due_in_s(0)) == (0, 0, None)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.integers(1, MAX_BATCH), st.sampled_from([2, 4])),  # a request
        st.just("take"),
        st.integers(0, 5),  # cancel the request of that number
    ),
    max_size=60,
)


@given(STEPS)
def test_nobody_is_lost_mixed_overtaken_or_crowded(steps: list[object]) -> None:
    line = WaitingLine(MAX_BATCH, 1.0)
    waiting: list[Request] = []  # the model: a plain list
    for number, step in enumerate([*steps, *["take"] * len(steps)]):
        if isinstance(step, tuple):
            count, size = step
            waiting.append(request(count, size, arrived_s=number))
            line.add(waiting[-1])
        elif step == "take":
            check_batch(line.take(), waiting)
        elif isinstance(step, int) and step < len(waiting):
            line.discard(waiting.pop(step).future)
        assert line.images == sum(len(one.images) for one in waiting)
        assert line.has_full_batch == (largest_group(waiting) >= MAX_BATCH)
    assert waiting == []


def check_batch(batch: list[Request], waiting: list[Request]) -> None:
    """The oldest and those after it of its shape, as many as fit; takes them off ``waiting``."""
    if not waiting:
        assert batch == []
        return
    alike = [one for one in waiting if one.key == waiting[0].key]
    assert batch == alike[: len(batch)]
    assert 1 <= sum(len(one.images) for one in batch) <= MAX_BATCH
    following = alike[: len(batch) + 1]
    assert following == batch or sum(len(one.images) for one in following) > MAX_BATCH
    for one in batch:
        waiting.remove(one)


def largest_group(waiting: list[Request]) -> int:
    images: defaultdict[object, int] = defaultdict(int)
    for one in waiting:
        images[one.key] += len(one.images)
    return max(images.values(), default=0)
