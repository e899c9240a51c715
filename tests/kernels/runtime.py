"""A runtime whose engine is a few CUDA kernels: real work in the order of a real stream.

It stands where the module ``tensorrt`` would, so that `TrtRunner` runs it as it is: on a GPU of any
kind, compiled by NVRTC, and on a stand-in driver that has the same kernels for the processor. It
knows one network, that of `small_models.convolution`, whose ONNX file is the plan.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

from tests.device_arrays import core
from tests.fakes.execution_fake import CudaEngine, ExecutionContext
from tests.fakes.runtime_fake import FakeRuntime

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tests.fakes.runtime_fake import RuntimeConfig, Script
    from tests.fakes.tensorrt_fake import ILogger

FOLDER = Path(__file__).parent
FEATURES, CLASSES = 16, 10
MOST_IMAGES, MOST_PIXELS = 20, 24 * 20
"""The largest batch, and the largest image, that the scratch memory is for."""

_FEATURE_BYTES = MOST_IMAGES * FEATURES * MOST_PIXELS * 4
_THREADS = 128


@cache
def compiled() -> Any:
    """All kernels for GPU 0, a ``cuda.core.ObjectCode``."""
    source = "".join((FOLDER / name).read_text() for name in ("gpu.cuh", "small_network.cu"))
    options = core.ProgramOptions(std="c++17", arch=f"sm_{core.Device(0).arch}")
    return core.Program(source, "c++", options).compile("cubin")


@cache
def kernel(name: str) -> Any:
    """One kernel, a ``cuda.core.Kernel``."""
    return compiled().get_kernel(name)


def launch(stream: Any, name: str, threads: int, *arguments: object) -> None:
    """Queue a kernel with at least ``threads`` threads on a ``cuda.core.Stream``."""
    config = core.LaunchConfig(grid=-(-threads // _THREADS), block=_THREADS)
    core.launch(stream, config, kernel(name), *arguments)


def spin(stream: Any, cycles: int, elapsed_ns: int = 0) -> None:
    """Queue a wait of one thread; the address ``elapsed_ns`` gets what it took, an INT64 in ns."""
    config = core.LaunchConfig(grid=1, block=1)
    core.launch(stream, config, kernel("spin"), np.int64(cycles), np.int64(elapsed_ns))


def on_gpu(array: NDArray[Any]) -> Any:
    """A ``cuda.core.Buffer`` with the values of an array."""
    device = core.Device(0)
    stream = device.create_stream()
    flat = np.ascontiguousarray(array)
    buffer = device.allocate(flat.nbytes, stream=stream)
    host = core.Buffer.from_handle(flat.ctypes.data, flat.nbytes, owner=flat)
    buffer.copy_from(host, stream=stream)
    stream.sync()
    return buffer


class KernelEngine(CudaEngine):
    """``spin_cycles`` are waited before each computation, so that what does not wait is seen."""

    device_memory_size_v2 = _FEATURE_BYTES + MOST_IMAGES * FEATURES * 4
    spin_cycles = 0

    def __init__(
        self, script: Script, plan: bytes, logger: ILogger, config: type[RuntimeConfig]
    ) -> None:
        super().__init__(script, plan, logger, config)
        graph = onnx.load_from_string(plan).graph
        weights = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
        assert weights["k"].shape == (FEATURES, 8, 3, 3)
        assert weights["m"].shape == (CLASSES, FEATURES)
        self.convolution, self.matrix = on_gpu(weights["k"]), on_gpu(weights["m"])

    def _new_context(self) -> KernelContext:
        return KernelContext(self)


class KernelContext(ExecutionContext):
    _engine: KernelEngine

    def _queue(self, stream: int) -> None:
        engine, on = self._engine, core.Stream.from_handle(stream)
        images, _, height, width = self._shapes["x"]
        size = height * width
        assert images <= MOST_IMAGES
        assert size <= MOST_PIXELS
        if engine.spin_cycles:
            spin(on, engine.spin_cycles)
        x, y = self._addresses["x"], self._addresses["y"]
        convolution, matrix = int(engine.convolution.handle), int(engine.matrix.handle)
        features, means = self._scratch, self._scratch + _FEATURE_BYTES
        count, sizes = np.int32(images), (np.int32(height), np.int32(width))
        values = images * FEATURES
        launch(on, "convolve", values * size, x, convolution, features, count, *sizes)
        launch(on, "pool", values, features, means, count, np.int32(size))
        launch(on, "linear", images * CLASSES, means, matrix, y, count)


class KernelRuntime(FakeRuntime):
    """Stands for the imported module; ``script`` is the fake's, but queues no other work."""

    def __init__(self, script: Script, *, spin_cycles: int = 0) -> None:
        kind = type("SpinningEngine", (KernelEngine,), {"spin_cycles": spin_cycles})
        super().__init__(script, engine=kind)
