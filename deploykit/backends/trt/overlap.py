"""Queries that overlap: the next is queued while the last one computes, as trtexec does it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.core.errors import DeviceError
from deploykit.core.specs import Closing, StepTimes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from deploykit.backends.trt.lane import Lane

DEPTH: Final = 2
"""Queries under way, as in trtexec (samples/common/sampleInference.cpp, ``Iteration``): its inputs
and outputs have no more buffers, and one query in advance hides launches and transfers already."""

_START, _COPIED_IN, _LAUNCHED, _COMPUTED, _COPIED_OUT = range(5)


class _Query:
    """One place of the queue: buffers, events, and the batch that is fed each time."""

    def __init__(self, lane: Lane, feeds: Mapping[str, Any], *, transfers: bool) -> None:
        self.stream = lane.stream
        self.clock = lane.new_clock(5)
        self._transfers = transfers
        self._batch, self._sources = lane.prepare(feeds)
        # Once, as trtexec's inputs lie in page-locked memory from the start.
        self._batch.stage(self._sources)
        self._copies = any(isinstance(source, np.ndarray) for source in self._sources)
        self._begun_s = self._enqueue_s = 0.0

    def submit(self, before: _Query | None) -> None:
        """Queue copies and computation, which waits for that of the query before."""
        mark, stream = self.clock.mark, self.stream
        self._begun_s = time.perf_counter()
        mark(_START, stream)
        addresses = self._batch.copy_in(self._sources)
        mark(_COPIED_IN, stream)
        if before is not None and before.stream is not stream:
            # One engine computes one query at a time: only its copies run beside another's kernels.
            before.clock.hold(_COMPUTED, stream)
        mark(_LAUNCHED, stream)
        begun_s = time.perf_counter()
        self._batch.launch(addresses)
        self._enqueue_s = time.perf_counter() - begun_s
        mark(_COMPUTED, stream)
        if self._transfers:
            self._batch.copy_out()
        mark(_COPIED_OUT, stream)

    def finish(self) -> StepTimes:
        """Wait for the end of this query alone."""
        self.clock.synchronise(_COPIED_OUT)
        wall_s = time.perf_counter() - self._begun_s
        between_ms = self.clock.between_ms
        return StepTimes(
            wall_ms=wall_s * 1e3,
            compute_ms=between_ms(_LAUNCHED, _COMPUTED),
            h2d_ms=between_ms(_START, _COPIED_IN) if self._copies else None,
            d2h_ms=between_ms(_COMPUTED, _COPIED_OUT) if self._transfers else None,
            enqueue_ms=self._enqueue_s * 1e3,
        )

    def outputs(self) -> dict[str, Any]:
        """The outputs on the host; the query is finished."""
        return self._batch.results()


class OverlappedQueries(Closing):
    """A queue of one batch, `DEPTH` deep; `submit` and `finish` by turns, from one thread.

    With ``transfers`` each place has a lane of its own, so that copies run beside kernels; without
    them inputs and outputs stay on the GPU, and one lane has both. ``guard`` makes the GPU current
    and translates the driver's errors.

    Raises:
        DeviceError: the GPU has too little memory.
        UsageError: the feeds are not the engine's.
    """

    depth = DEPTH

    def __init__(
        self,
        new_lane: Callable[[], Lane],
        guard: Callable[[], AbstractContextManager[None]],
        feeds: Mapping[str, Any],
        *,
        transfers: bool,
    ) -> None:
        self._guard = guard
        self._lanes: list[Lane] = []
        self._count = 0
        self._finished = 0
        self._queries: list[_Query] = []
        try:
            with guard():
                for _ in range(DEPTH if transfers else 1):
                    self._lanes.append(new_lane())
                for index in range(DEPTH):
                    lane = self._lanes[index % len(self._lanes)]
                    self._queries.append(_Query(lane, feeds, transfers=transfers))
        except BaseException:
            self.close()
            raise

    def submit(self) -> None:
        """Queue one more query; at most `DEPTH` may be under way."""
        before = self._queries[(self._count - 1) % DEPTH] if self._count else None
        with self._guard():
            self._queries[self._count % DEPTH].submit(before)
        self._count += 1

    def finish(self) -> StepTimes:
        """Wait for the oldest query; ``wall_ms`` counts from its `submit`."""
        with self._guard():
            steps = self._queries[self._finished % DEPTH].finish()
        self._finished += 1
        return steps

    def outputs(self) -> dict[str, Any]:
        """The outputs of the query that was finished last, on the host."""
        return self._queries[(self._finished - 1) % DEPTH].outputs()

    def close(self) -> None:
        """Wait for what is queued, and free everything."""
        self._queries, lanes, self._lanes = [], self._lanes, []
        try:
            with self._guard():
                for lane in lanes:
                    lane.close()
        except DeviceError:
            # A GPU that failed cannot be made current; the caller is on its way with that error.
            for lane in lanes:
                lane.close()
