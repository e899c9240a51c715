"""A PyTorch module behind the `Runner` protocol on a GPU, eagerly or compiled by torch.compile.

It is what a user would pick instead of an engine, measured in the same table: from pinned memory,
with CUDA events, in FP32 with TF32 as TensorRT has it by default, or in FP16.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from deploykit.backends._backend import GPU, NO_GPU, ModuleBackend, ModuleOptions, not_installed
from deploykit.backends._feeds import check_feeds
from deploykit.core.errors import EngineIncompatibleError, UsageError
from deploykit.core.precision import Precision
from deploykit.core.specs import Closing, StepTimes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    import torch
    from torch import nn

    from deploykit.core.specs import Array, Runner, TensorSpec

_DEFAULTS: Final = ModuleOptions()

_BEGIN, _COPIED, _COMPUTED, _END = range(4)
"""Events of one call: before the copy to the GPU, before and after the module, after the copy."""


class TorchCuda(Protocol):
    """The part of ``torch.cuda`` that is used, for one GPU."""

    device: torch.device

    def new_stream(self) -> Any:
        """A stream of its own."""

    def using(self, stream: Any) -> AbstractContextManager[Any]:
        """Within it what is queued goes to ``stream``."""

    def new_event(self) -> Any:
        """An event that records the time."""

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Page-locked memory of the host."""


class TorchGpu:
    """``torch.cuda`` itself.

    Raises:
        EngineIncompatibleError: this torch has no CUDA, or it finds no such GPU.
    """

    def __init__(self, index: int) -> None:
        import torch

        if not torch.cuda.is_available() or index >= torch.cuda.device_count():
            built = torch.version.cuda or "none"
            raise EngineIncompatibleError(
                f"torch {torch.__version__} (CUDA {built}) finds no GPU {index}\n"
                "install the torch that fits the driver; deploykit doctor says what works here"
            )
        self.device = torch.device("cuda", index)

    def new_stream(self) -> Any:
        """A stream of its own."""
        import torch

        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def using(self, stream: Any) -> AbstractContextManager[Any]:
        """Within it what is queued goes to ``stream``."""
        import torch

        return torch.cuda.stream(stream)

    def new_event(self) -> Any:
        """An event that records the time."""
        import torch

        return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Page-locked memory of the host."""
        import torch

        return torch.empty(shape, dtype=dtype, pin_memory=True)


_SETTLING_CALLS: Final = 3
"""Calls of a compiled module: the first compiles, the second records a CUDA graph, which the third
replays."""


@dataclass
class _Lane:
    """What one thread has to itself; its pinned memory is kept by shape and type."""

    stream: Any
    events: list[Any]
    pinned: dict[tuple[tuple[int, ...], Any], torch.Tensor] = field(default_factory=dict)

    def mark(self, event: int) -> None:
        self.events[event].record(self.stream)

    def between_ms(self, first: int, second: int) -> float:
        return float(self.events[first].elapsed_time(self.events[second]))


class EagerCudaRunner(Closing):
    """Runs a module of one input and one output on a GPU; each thread has a stream of its own.

    The input is float32 and so is the output, as an engine's; a module in FP16 casts both on the
    GPU, and has its weights and activations in ``channels_last``, which its convolutions want. With
    ``compiled`` it is compiled anew for each shape: ``remarks`` says how long that took.
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        options: ModuleOptions = _DEFAULTS,
        /,
        *,
        compiled: bool = False,
        gpu: TorchCuda | None = None,
    ) -> None:
        import torch

        self.inputs = inputs
        self.outputs = outputs
        self.remarks: list[str] = []
        self._gpu = gpu or TorchGpu(options.gpu_index)
        is_half = options.precision is Precision.FP16
        self._dtype = torch.float16 if is_half else torch.float32
        self._format = torch.channels_last if is_half else torch.contiguous_format
        placed = module.eval().to(device=self._gpu.device, dtype=self._dtype)
        self._module: Any = placed.to(memory_format=self._format)
        if compiled:
            # By default the second batch size would make one graph for any, which is slower.
            self._module = torch.compile(self._module, mode="max-autotune", dynamic=False)
        self._compiled: set[tuple[int, ...]] | None = set() if compiled else None
        self._compiling = threading.Lock()
        self._own = threading.local()
        self._tf32 = _use_tf32()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name for one batch of inputs by name.

        Raises:
            UsageError: names, types or shapes of ``feeds`` are not the module's, or it is closed.
        """
        return self.run_timed(feeds)[0]

    def run_timed(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], StepTimes]:
        """As ``run``; the steps are those of an engine's runner, by CUDA events.

        What is copied to pinned memory before, and out of it behind, is in ``wall_ms`` alone.
        """
        self._require_open()
        check_feeds("the module", feeds, self.inputs)
        array = feeds[self.inputs[0].name]
        lane = self._lane()
        self._compile_for(lane, tuple(array.shape))
        start = time.perf_counter()
        staged = self._pinned(lane, array.shape, _of_numpy(array))
        staged.numpy()[...] = array
        with _inference(), self._gpu.using(lane.stream):
            begun = time.perf_counter()
            lane.mark(_BEGIN)
            fed = staged.to(self._gpu.device, non_blocking=True)
            lane.mark(_COPIED)
            given = self._compute(fed)
            lane.mark(_COMPUTED)
            result = self._pinned(lane, given.shape, given.dtype)
            result.copy_(given, non_blocking=True)
            lane.mark(_END)
            enqueue_ms = (time.perf_counter() - begun) * 1e3
            lane.stream.synchronize()
        outputs = {self.outputs[0].name: np.array(result.numpy())}
        return outputs, StepTimes(
            wall_ms=(time.perf_counter() - start) * 1e3,
            compute_ms=lane.between_ms(_COPIED, _COMPUTED),
            h2d_ms=lane.between_ms(_BEGIN, _COPIED),
            d2h_ms=lane.between_ms(_COMPUTED, _END),
            enqueue_ms=enqueue_ms,
        )

    def run_resident(self, fed: torch.Tensor) -> tuple[torch.Tensor, StepTimes]:
        """One batch that lies on the GPU, whose output stays there."""
        self._require_open()
        lane = self._lane()
        self._compile_for(lane, tuple(fed.shape))
        start = time.perf_counter()
        with _inference(), self._gpu.using(lane.stream):
            lane.mark(_COPIED)
            given = self._compute(fed)
            lane.mark(_COMPUTED)
            enqueue_ms = (time.perf_counter() - start) * 1e3
            lane.stream.synchronize()
        wall_ms = (time.perf_counter() - start) * 1e3
        compute_ms = lane.between_ms(_COPIED, _COMPUTED)
        return given, StepTimes(wall_ms=wall_ms, compute_ms=compute_ms, enqueue_ms=enqueue_ms)

    def upload(self, array: Array) -> torch.Tensor:
        """A batch on the GPU."""
        import torch

        # A tensor of another kind than the one it was compiled with would be compiled for again.
        with _inference():
            return torch.from_numpy(np.array(array, order="C")).to(self._gpu.device)

    def close(self) -> None:
        """Let go of the module, and leave TF32 as it was; a second call does nothing."""
        if self._module is not None:
            self._module = None
            _restore_tf32(self._tf32)

    def _require_open(self) -> None:
        if self._module is None:
            raise UsageError("the runner is closed; open a new one")

    def _compute(self, fed: torch.Tensor) -> torch.Tensor:
        import torch

        images = fed.to(dtype=self._dtype)
        if images.dim() == 4:  # noqa: PLR2004 - (N, C, H, W): no other has this layout
            images = images.contiguous(memory_format=self._format)
        found: torch.Tensor = self._module(images).to(dtype=torch.float32)
        return found

    def _compile_for(self, lane: _Lane, shape: tuple[int, ...]) -> None:
        """Compile for a shape that is new, which is no part of any call's time."""
        if self._compiled is None or shape in self._compiled:
            return
        import torch

        with self._compiling:
            if shape in self._compiled:
                return
            start = time.perf_counter()
            with _inference(), self._gpu.using(lane.stream):
                for _ in range(_SETTLING_CALLS):
                    self._compute(torch.zeros(shape, device=self._gpu.device))
                lane.stream.synchronize()
            self.remarks.append(
                f"torch.compile took {time.perf_counter() - start:.1f} s for {shape}; "
                "the times are without it"
            )
            self._compiled.add(shape)

    def _lane(self) -> _Lane:
        if not hasattr(self._own, "lane"):
            events = [self._gpu.new_event() for _ in range(_END + 1)]
            self._own.lane = _Lane(self._gpu.new_stream(), events)
        lane: _Lane = self._own.lane
        return lane

    def _pinned(self, lane: _Lane, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        key = (tuple(shape), dtype)
        if key not in lane.pinned:
            lane.pinned[key] = self._gpu.pinned(*key)
        return lane.pinned[key]


class ResidentModule(Closing):
    """A runner whose batch lies on the GPU and whose output stays there; it is the other's."""

    def __init__(self, runner: EagerCudaRunner, fed: torch.Tensor) -> None:
        self.inputs = runner.inputs
        self.outputs = runner.outputs
        self.remarks = runner.remarks
        self._runner = runner
        self._fed = fed

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The output on the GPU, whatever is fed."""
        return self.run_timed(feeds)[0]

    def run_timed(self, _feeds: Mapping[str, Array]) -> tuple[dict[str, Any], StepTimes]:
        """As ``run``, with its times."""
        found, times = self._runner.run_resident(self._fed)
        return {self.outputs[0].name: found}, times

    def close(self) -> None:
        """Nothing of its own is held."""


def _inference() -> AbstractContextManager[Any]:
    import torch

    return torch.inference_mode()


def _of_numpy(array: Array) -> torch.dtype:
    import torch

    return torch.from_numpy(np.empty(0, array.dtype)).dtype


def _use_tf32() -> tuple[str, str]:
    """Let products of FP32 matrices be in TF32, which TensorRT does by default; what was before."""
    matmul, conv = _fp32_settings()
    before = matmul.fp32_precision, conv.fp32_precision
    # The older switch sets the newer one too. The newer alone makes torch raise where its own
    # compiler asks for the older one, as max-autotune does before each product of matrices.
    matmul.allow_tf32 = True
    conv.fp32_precision = "tf32"
    return before


def _restore_tf32(before: tuple[str, str]) -> None:
    matmul, conv = _fp32_settings()
    matmul.allow_tf32 = before[0] == "tf32"
    matmul.fp32_precision, conv.fp32_precision = before


def _fp32_settings() -> tuple[Any, Any]:
    from torch import backends

    cudnn: Any = backends.cudnn
    return backends.cuda.matmul, cudnn.conv


def _resident(runner: Any, feeds: Mapping[str, Array]) -> tuple[Runner, Mapping[str, Array]]:
    """``runner`` is what `EagerCudaRunner` made; it stays the caller's."""
    (array,) = feeds.values()
    return ResidentModule(runner, runner.upload(array)), feeds


def _backend(name: str, label: str, rank: int, *, compiled: bool) -> ModuleBackend:
    return ModuleBackend(
        name=name,
        label=label,
        rank=rank,
        device=GPU,
        precisions=(Precision.FP32, Precision.FP16),
        usual=(Precision.FP32, Precision.FP16),
        # Whether torch finds its CUDA libraries shows only when it is imported.
        problem=lambda gpus: not_installed("torch") if gpus else NO_GPU,
        notes=lambda precision, _streams: (_NOTE[precision],),
        # None: it would say yes where torch is built without CUDA.
        abilities=lambda _gpus: (),
        # Compiling takes minutes for each shape.
        by_default=not compiled,
        resident=_resident,
        open=partial(EagerCudaRunner, compiled=compiled),
    )


_NOTE: Final = {
    Precision.FP32: "torch with TF32, as TensorRT has it by default",
    Precision.FP16: "torch in FP16, channels last",
}

BACKENDS: Final = (
    _backend("eager-cuda", "torch eager (cuda)", 42, compiled=False),
    _backend("compile-cuda", "torch.compile (cuda)", 44, compiled=True),
)
