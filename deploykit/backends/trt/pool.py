"""A bounded number of lanes for any number of threads."""

from __future__ import annotations

import logging
from threading import Condition, Lock
from typing import TYPE_CHECKING, Final

from deploykit.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from deploykit.backends.trt.lane import Lane

_log = logging.getLogger("deploykit")

LANES: Final = 4
"""Calls on the GPU at the same time; more wait for one to end. A GPU is filled by a few streams,
and each costs buffers for the largest batch and image, and the engine's scratch memory."""


class LanePool:
    """Lends each lane to one call at a time; lanes are made when calls first overlap."""

    def __init__(self, name: str, new_lane: Callable[[], Lane], limit: int = LANES) -> None:
        self._name = name
        self._new_lane = new_lane
        self._limit = limit
        self._lock = Lock()
        self._changed = Condition(self._lock)
        self._idle: list[Lane] = []
        self._count = 0
        self._closed = False

    def take(self) -> Lane:
        """An idle lane, the one used last; waits where all that may be are lent.

        Raises:
            UsageError: the pool is closed.
            DeviceError: the GPU has no memory for even one lane.
        """
        while True:
            with self._lock:
                if not self._idle:
                    self._changed.wait_for(self._may_go_on)
                if self._closed:
                    raise UsageError(f"the runner of {self._name} is closed; open a new one")
                if self._idle:
                    return self._idle.pop()
                self._count += 1
            lane = self._grow()
            if lane is not None:
                return lane

    def give_back(self, lane: Lane) -> None:
        """The lane can be lent again."""
        with self._lock:
            self._idle.append(lane)
            self._changed.notify()

    def discard(self, lane: Lane) -> None:
        """The lane is given up: a call left it in a state that nobody knows."""
        try:
            lane.close()
        finally:
            self._shrink()

    def close(self) -> None:
        """Let nobody in, wait for the lanes that are lent, and close them all."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self._idle) == self._count)
            lanes, self._idle, self._count = self._idle, [], 0
        for lane in lanes:
            lane.close()

    def _may_go_on(self) -> bool:
        return self._closed or bool(self._idle) or self._count < self._limit

    def _grow(self) -> Lane | None:
        """A new lane; ``None`` where there is no memory for one more, then fewer have to do."""
        try:
            return self._new_lane()
        except DeviceError as error:
            others = self._shrink()
            if not others:
                raise
            self._limit = others
            _log.warning("%s: %d calls at a time have to do: %s", self._name, others, error)
            return None
        except BaseException:
            self._shrink()
            raise

    def _shrink(self) -> int:
        with self._lock:
            self._count -= 1
            self._changed.notify_all()
            return self._count
