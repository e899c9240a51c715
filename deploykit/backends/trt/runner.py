"""TensorRT and TensorRT for RTX behind the `Runner` protocol."""

from __future__ import annotations

import logging
import os
import time
from contextlib import contextmanager
from functools import partial
from threading import Condition, Lock
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from deploykit.backends._cuda.device import Device, cuda_failure, is_out_of_memory
from deploykit.backends._engines import EngineOptions
from deploykit.backends.trt.engine import Engine
from deploykit.backends.trt.inspection import conversions_among, read_layers
from deploykit.backends.trt.lane import Lane
from deploykit.backends.trt.overlap import OverlappedQueries
from deploykit.core.errors import DeviceError, UsageError
from deploykit.core.specs import Closing, StepTimes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.backends._cuda.arrays import DeviceArray
    from deploykit.backends._engines import Compiler, LayerConversion
    from deploykit.core.sizes import ShapeProfile
    from deploykit.core.specs import TensorSpec


_log = logging.getLogger("deploykit")

_DEFAULTS: Final = EngineOptions()

LANES: Final = 4
"""Most calls on the GPU at the same time; further ones wait. A few streams fill a GPU, and each
costs buffers for the largest batch and image, and the engine's scratch memory."""


class LanePool:
    """A pool of lanes, each for one call at a time; lanes are made when calls first overlap."""

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
        """Take the idle lane that was used last; wait if all lanes are taken.

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
            # Outside the lock: making a lane takes long, and others may take or return theirs
            # meanwhile.
            lane = self._grow()
            if lane is not None:
                return lane

    def give_back(self, lane: Lane) -> None:
        """Return a lane to the pool."""
        with self._lock:
            self._idle.append(lane)
            self._changed.notify()

    def discard(self, lane: Lane) -> None:
        """Close a lane for good, after a call that left it in an unknown state."""
        try:
            lane.close()
        finally:
            self._shrink()

    def close(self) -> None:
        """Refuse further calls, wait for running ones, and close all lanes."""
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
        """Make a lane; ``None`` if memory is short, which limits the pool to what it has."""
        try:
            return self._new_lane()
        except DeviceError as error:
            others = self._shrink()
            if not others:
                raise
            # More lanes would fail again; callers wait for the ones there are.
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


Result = TypeVar("Result")


class _Opened:
    """The GPU, the engine on it and its lanes, opened and closed together."""

    def __init__(
        self, open_engine: Callable[[], Engine], profile: ShapeProfile, options: EngineOptions
    ) -> None:
        self.device = device = Device(options.gpu_index, spin=options.spin)
        with device.current():
            self.engine = engine = open_engine()
        self.new_lane = lambda: Lane(device, engine, profile)
        self.pool = LanePool(engine.name, self.new_lane)


class TrtRunner(Closing):
    """Runs one engine, from any number of threads.

    ``plan`` is an ``.engine`` file whose hash was checked: an engine is code. ``profile`` is that
    of its manifest. The GPU is untouched until the first use. Each call has a stream and an
    execution context to itself, taken from a pool of a few (`LANES`); calls beyond that wait.

    An input is a numpy array of any layout, or an array on the GPU by DLPack or the CUDA array
    interface, which is used where it lies: it must not be written before the call has returned.
    With ``cuda_graphs`` a shape is captured as a graph when it comes for the second time from
    the same addresses, and TensorRT for RTX decides that by itself. ``cache`` is the file for what
    TensorRT for RTX compiles at run time; it is read on opening, and written after the first call
    of each shape and on closing. ``spin`` is how all of this process waits for the GPU from now on:
    by asking again and again, or asleep; ``None`` is the driver's own choice.
    """

    def __init__(
        self,
        plan: Path,
        compiler: Compiler,
        profile: ShapeProfile,
        options: EngineOptions = _DEFAULTS,
    ) -> None:
        self._name = plan.name
        self._profile = profile
        self._options = options
        self._open_engine = lambda: Engine(
            plan, compiler, profile, cuda_graphs=options.cuda_graphs, cache=options.cache
        )
        self._opening = Lock()
        self._opener: int | None = None  # the process that opens it, or has opened it
        self._opened: _Opened | None = None
        self._closed = False
        self._broken: str | None = None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Specs of the inputs of ``run``; opens the engine, and raises what that raises."""
        return self._open().engine.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Specs of the outputs of ``run``; opens the engine, and raises what that raises."""
        return self._open().engine.outputs

    def run(self, feeds: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Outputs by name for one batch of inputs by name.

        Raises:
            UsageError: names, types, shapes or places of ``feeds`` are not the engine's, its batch,
                height or width is outside the profile, the runner is closed, or was opened before
                a fork.
            DeviceError: the GPU failed, now or in an earlier call, or has too little memory.
            MissingDependencyError: ``cuda.core`` is not installed.
            EngineIncompatibleError: no driver, or the engine does not load on this machine.
        """
        return self._call(Lane.run, feeds)

    def run_on_device(self, feeds: Mapping[str, Any]) -> dict[str, DeviceArray]:
        """As ``run``, but the outputs stay on the GPU, each in memory of its own.

        They are complete when they are returned, and outlive later calls and the runner.
        """
        return self._call(Lane.run_on_device, feeds)

    def run_timed(self, feeds: Mapping[str, Any]) -> tuple[dict[str, NDArray[Any]], StepTimes]:
        """As ``run``, with the duration of each step, taken by CUDA events.

        ``h2d_ms`` is ``None`` where all inputs lie on the GPU; ``wall_ms`` has everything in it,
        the copies into page-locked memory too.
        """
        start = time.perf_counter()
        outputs, steps = self._call(Lane.run_timed, feeds)
        return outputs, StepTimes(wall_ms=(time.perf_counter() - start) * 1e3, **steps)

    def time_on_device(self, feeds: Mapping[str, Any]) -> StepTimes:
        """Compute on inputs that lie on the GPU, and leave the outputs there, unread."""
        start = time.perf_counter()
        steps = self._call(Lane.time_on_device, feeds)
        return StepTimes(wall_ms=(time.perf_counter() - start) * 1e3, **steps)

    def upload(self, feeds: Mapping[str, Any]) -> dict[str, DeviceArray]:
        """Copies of inputs on the GPU, each in memory of its own; raises what ``run`` does."""
        return self._call(Lane.upload, feeds)

    def conversions(self, feeds: Mapping[str, Any]) -> tuple[LayerConversion, ...]:
        """Layers that only convert, of the engine as it runs feeds of these shapes.

        Raises what ``run`` does, and `DataError` where the runtime's answer is not understood.
        """
        said = self._call(lambda lane, given: lane.prepare(given)[0].information(), feeds)
        return conversions_among(read_layers(said))

    def overlapped(self, feeds: Mapping[str, Any], *, transfers: bool) -> OverlappedQueries:
        """A queue of queries that overlap, to be closed before the runner.

        Raises what ``run`` does. With ``transfers`` inputs of the host are copied in, and outputs
        out, in each query.
        """
        opened = self._open()
        self._refuse_if_broken()
        return OverlappedQueries(
            opened.new_lane, partial(self._on_gpu, opened), feeds, transfers=transfers
        )

    def close(self) -> None:
        """Wait for running calls, then give everything back; a second call does nothing."""
        # A child of fork has addresses of things that only its parent can use or free, and the
        # lock, where another thread of the parent was opening the engine, will never be released.
        if self._is_of_another_process():
            self._closed = True
            return
        with self._opening:
            opened, self._opened = self._opened, None
            self._closed = True
        if opened is None:
            return
        try:
            # CUDA's current device is per thread, and this thread may not have called before.
            with opened.device.current():
                self._release(opened)
                return
        except Exception as error:
            self._note_fault(error)  # no device can be made current: there is nothing to keep
        self._release(opened)

    def __enter__(self) -> Self:
        self._open()
        return self

    def _open(self) -> _Opened:
        opened = self._opened
        if self._is_of_another_process():
            raise UsageError(
                f"{self._name} was loaded before this process was forked; CUDA cannot be used "
                "in both\nload it after the fork, in each process"
            )
        if opened is not None:
            return opened
        self._opener = os.getpid()  # before the lock, which a fork may find taken
        with self._opening:
            if self._closed:
                raise UsageError(f"the runner of {self._name} is closed; open a new one")
            if self._opened is None:
                # Checked again under the lock: another thread may have opened it meanwhile.
                self._opened = _Opened(self._open_engine, self._profile, self._options)
            return self._opened

    def _is_of_another_process(self) -> bool:
        return self._opener is not None and self._opener != os.getpid()

    def _release(self, opened: _Opened) -> None:
        try:
            opened.pool.close()
            opened.device.trim()
        except Exception as error:
            self._note_fault(error)
        finally:
            opened.engine.close(save=self._broken is None)

    def _note_fault(self, error: Exception) -> None:
        """Log what the driver says when all is given back; another error is raised again.

        Raised it would take the place of the error that the caller is on its way with.
        """
        said = cuda_failure(error)
        if said is None:
            raise error
        self._broken = self._broken or said
        _log.warning("%s: the GPU failed before it was closed: %s", self._name, said)

    def _call(
        self, work: Callable[[Lane, Mapping[str, Any]], Result], feeds: Mapping[str, Any]
    ) -> Result:
        opened = self._open()
        self._refuse_if_broken()
        with self._on_gpu(opened):
            return self._in_lane(opened, work, feeds)

    @contextmanager
    def _on_gpu(self, opened: _Opened) -> Iterator[None]:
        """Make the GPU current; what the driver says is translated."""
        try:
            with opened.device.current():
                yield
        except Exception as error:
            said = cuda_failure(error)
            if said is None:
                raise
            # A fault of the GPU, whoever caused it, stays: the driver gives it as the answer to
            # whatever is asked afterwards. Too little memory passes.
            if not is_out_of_memory(error):
                self._broken = self._broken or said
            self._refuse_if_broken(error)
            raise DeviceError(
                f"{self._name}: the CUDA driver refuses a call\nit says: {said}\n"
                "deploykit doctor says what works on this machine"
            ) from error

    def _in_lane(
        self,
        opened: _Opened,
        work: Callable[[Lane, Mapping[str, Any]], Result],
        feeds: Mapping[str, Any],
    ) -> Result:
        lane = opened.pool.take()
        try:
            self._refuse_if_broken()  # by the call that this one waited for
            result = work(lane, feeds)
        # Raised by the checks of the feeds: the lane is as good as before.
        except UsageError:
            opened.pool.give_back(lane)
            raise
        except BaseException as error:
            failure = lane.failure()
            if failure is not None:
                self._broken = self._broken or cuda_failure(error) or failure
            opened.pool.discard(lane)
            if isinstance(error, Exception):
                self._refuse_if_broken(error)
            raise
        opened.pool.give_back(lane)
        return result

    def _refuse_if_broken(self, cause: Exception | None = None) -> None:
        if self._broken is not None:
            raise DeviceError(
                f"{self._name}: the GPU failed, and this process cannot use it any more\n"
                f"it says: {self._broken}\nstart the process again"
            ) from cause


class ResidentRunner(Closing):
    """A runner of inputs that `upload` has put on the GPU; outputs stay there.

    The runner behind it stays the caller's.
    """

    def __init__(self, runner: TrtRunner) -> None:
        self._runner = runner
        self.inputs: tuple[TensorSpec, ...] = runner.inputs
        self.outputs: tuple[TensorSpec, ...] = runner.outputs

    def upload(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Copies of arrays on the host, for any number of runs."""
        return self._runner.upload(feeds)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs by name, on the GPU; raises what `TrtRunner.run` does."""
        return self._runner.run_on_device(feeds)

    def run_timed(self, feeds: Mapping[str, Any]) -> tuple[dict[str, Any], StepTimes]:
        """Times of computing and enqueueing; the outputs are empty, as none is fetched."""
        return {}, self._runner.time_on_device(feeds)

    def conversions(self, feeds: Mapping[str, Any]) -> tuple[LayerConversion, ...]:
        """As those of the runner behind it."""
        return self._runner.conversions(feeds)

    def close(self) -> None:
        """Do nothing: an upload is freed with the last reference to it."""
