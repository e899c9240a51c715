"""Torch on a GPU, over a stand-in for ``torch.cuda`` on the CPU that keeps the order."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from deploykit.backends import ModuleOptions
from deploykit.backends.eager_cuda import EagerCudaRunner, ResidentModule, TorchGpu
from deploykit.core.errors import EngineIncompatibleError, UsageError
from deploykit.core.precision import Precision
from deploykit.core.specs import TensorSpec
from tests.graphs import normal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

INPUTS = (TensorSpec("input", "float32", ("batch", 3, 4, 4)),)
OUTPUTS = (TensorSpec("logits", "float32", ("batch", 2)),)


@dataclass
class Event:
    """Time is the number of things that happened."""

    log: list[str]
    name: str
    at: int = -1

    def record(self, stream: Any) -> None:
        self.at = len(self.log)
        self.log.append(f"{stream}: {self.name}")

    def elapsed_time(self, later: Event) -> float:
        assert self.at < later.at
        return float(later.at - self.at)


@dataclass
class Stream:
    log: list[str]
    name: str

    def synchronize(self) -> None:
        self.log.append(f"{self}: synchronised")

    def __str__(self) -> str:
        return self.name


@dataclass
class Recording:
    """As `TorchGpu`, on the CPU; ``log`` is what was asked in its order."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    log: list[str] = field(default_factory=list)
    streams: int = 0
    events: int = 0

    def new_stream(self) -> Stream:
        self.streams += 1
        return Stream(self.log, f"stream {self.streams}")

    @contextmanager
    def using(self, stream: Any) -> Iterator[None]:
        self.log.append(f"{stream}: begin")
        yield
        self.log.append(f"{stream}: end")

    def new_event(self) -> Event:
        self.events += 1
        return Event(self.log, f"event {self.events}")

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        self.log.append(f"pinned {tuple(shape)} {dtype}")
        return torch.full(shape, torch.nan, dtype=dtype)


class Noting(nn.Module):
    """A linear layer that keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 2, 4)
        self.given: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.given.append(images)
        found: torch.Tensor = self.layer(images).flatten(1)
        return found


def expected(module: Noting, images: NDArray[Any]) -> NDArray[np.float64]:
    """In numpy and FP64."""
    weight = module.layer.weight.detach().double().numpy().reshape(2, -1)
    bias = module.layer.bias
    assert bias is not None
    flat = images.reshape(len(images), -1).astype(np.float64)
    return np.asarray(flat @ weight.T + bias.detach().numpy(), np.float64)


@pytest.mark.parametrize(
    ("precision", "tolerance"), [(Precision.FP32, 1e-5), (Precision.FP16, 5e-3)]
)
def test_computes_the_module_in_its_precision(precision: Precision, tolerance: float) -> None:
    module, images = Noting(), normal(3, 3, 4, 4)
    want = expected(module, images)
    with EagerCudaRunner(
        module, INPUTS, OUTPUTS, ModuleOptions(precision=precision), gpu=Recording()
    ) as runner:
        logits = runner.run({"input": images})["logits"]
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits.astype(np.float64), want, atol=tolerance)
    is_half = precision is Precision.FP16
    (given,) = module.given
    assert given.dtype == (torch.float16 if is_half else torch.float32)
    assert given.is_contiguous(memory_format=torch.channels_last) == is_half
    assert not module.training


def test_steps_are_marked_on_one_stream_and_waited_for_before_results_are_read() -> None:
    gpu = Recording()
    with EagerCudaRunner(Noting(), INPUTS, OUTPUTS, gpu=gpu) as runner:
        images = normal(1, 3, 4, 4)
        runner.run({"input": images})
        gpu.log.clear()
        _, times = runner.run_timed({"input": images})
    # The pinned memory is kept; what is copied into it comes before the first event.
    assert gpu.log == [
        "stream 1: begin",
        *(f"stream 1: event {number}" for number in (1, 2, 3, 4)),
        "stream 1: synchronised",
        "stream 1: end",
    ]
    assert (times.h2d_ms, times.compute_ms, times.d2h_ms) == (1.0, 1.0, 1.0)
    assert times.enqueue_ms is not None
    assert 0 < times.enqueue_ms < times.wall_ms


def test_results_are_the_callers_own() -> None:
    """The pinned memory is used again by the next call."""
    with EagerCudaRunner(Noting(), INPUTS, OUTPUTS, gpu=Recording()) as runner:
        first = runner.run({"input": normal(2, 3, 4, 4)})["logits"]
        kept = first.copy()
        runner.run({"input": normal(2, 3, 4, 4, seed=1)})
    np.testing.assert_array_equal(first, kept)


def test_what_stays_on_the_gpu_is_not_copied() -> None:
    gpu, module, images = Recording(), Noting(), normal(2, 3, 4, 4)
    want = expected(module, images)
    with EagerCudaRunner(module, INPUTS, OUTPUTS, gpu=gpu) as runner:
        resident = ResidentModule(runner, runner.upload(images))
        found, times = resident.run_timed({})
    np.testing.assert_allclose(np.asarray(found["logits"]), want, atol=1e-5)
    assert not any("pinned" in line for line in gpu.log)
    assert (times.h2d_ms, times.d2h_ms, times.compute_ms) == (None, None, 1.0)


def test_compiling_is_no_part_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []

    def compile_module(module: nn.Module, *, mode: str, **_: Any) -> nn.Module:
        compiled.append(mode)
        return module

    monkeypatch.setattr(torch, "compile", compile_module)
    module = Noting()
    with EagerCudaRunner(module, INPUTS, OUTPUTS, compiled=True, gpu=Recording()) as runner:
        for batch in (1, 1, 2):
            runner.run({"input": normal(batch, 3, 4, 4)})
        remarks = runner.remarks
    assert compiled == ["max-autotune"]
    assert [one.shape[0] for one in module.given] == [1] * 5 + [2] * 4
    assert [remark.partition(" took ")[0] for remark in remarks] == ["torch.compile"] * 2
    assert remarks[1].endswith(" s for (2, 3, 4, 4); the times are without it")


def test_each_shape_is_compiled_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: torch's own choice is one graph for any batch from the second one on."""
    from torch._dynamo.testing import CompileCounter

    counter: Any = CompileCounter()
    compile_module = torch.compile

    def counted(module: nn.Module, *, mode: str, **chosen: Any) -> Any:
        del mode  # of the backend that is left out: it would compile for this processor
        return compile_module(module, backend=counter, **chosen)

    monkeypatch.setattr(torch, "compile", counted)
    module = nn.Sequential(nn.Conv2d(3, 2, 4), nn.Flatten())
    with EagerCudaRunner(module, INPUTS, OUTPUTS, compiled=True, gpu=Recording()) as runner:
        for batch in (2, 3, 4, 3, 2):
            ResidentModule(runner, runner.upload(normal(batch, 3, 4, 4))).run({})
    assert counter.frame_count == 3


@pytest.mark.parametrize("before", ["none", "ieee", "tf32"])
def test_torchs_compiler_can_still_ask_for_the_precision(before: str) -> None:
    """It asks the older switch, which raises where the newer one alone was set."""
    matmul = torch.backends.cuda.matmul
    found = matmul.fp32_precision
    matmul.allow_tf32 = before == "tf32"
    matmul.fp32_precision = before
    try:
        with EagerCudaRunner(Noting(), INPUTS, OUTPUTS, gpu=Recording()):
            assert torch.get_float32_matmul_precision() == "high"
            assert matmul.allow_tf32
        assert matmul.fp32_precision == before
        assert torch.get_float32_matmul_precision() == ("high" if before == "tf32" else "highest")
    finally:
        matmul.allow_tf32 = found == "tf32"
        matmul.fp32_precision = found


def test_tf32_is_as_tensorrt_has_it_and_put_back() -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    conv: Any = getattr(cudnn, "conv")  # noqa: B009 - missing in the stubs
    before = matmul.fp32_precision, conv.fp32_precision
    runner = EagerCudaRunner(Noting(), INPUTS, OUTPUTS, gpu=Recording())
    assert (matmul.fp32_precision, conv.fp32_precision) == ("tf32", "tf32")
    runner.close()
    runner.close()
    assert (matmul.fp32_precision, conv.fp32_precision) == before


def test_a_closed_runner_and_wrong_feeds() -> None:
    runner = EagerCudaRunner(Noting(), INPUTS, OUTPUTS, gpu=Recording())
    with pytest.raises(UsageError, match=r"fed float32 \(1, 3, 5, 4\)"):
        runner.run({"input": normal(1, 3, 5, 4)})
    runner.close()
    with pytest.raises(UsageError, match="the runner is closed; open a new one"):
        runner.run({"input": normal(1, 3, 4, 4)})
    with pytest.raises(UsageError, match="the runner is closed; open a new one"):
        runner.run_resident(torch.zeros(1, 3, 4, 4))


def test_a_torch_without_a_gpu_says_so() -> None:
    with pytest.raises(
        EngineIncompatibleError, match=r"torch .* \(CUDA .*\) finds no GPU 99\ninstall the torch"
    ):
        TorchGpu(99)
