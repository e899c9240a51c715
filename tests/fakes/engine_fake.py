"""The runner of an engine without a GPU: it computes the bundle of `tests.bundles` in numpy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from deploykit.backends import Compiler, EngineHeader, EngineOptions
from deploykit.core.environment import Gpu
from deploykit.core.errors import UsageError
from deploykit.core.specs import StepTimes, TensorSpec
from deploykit.runtime.choice import Machine
from tests.bundles import SIZE, colours_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from deploykit.core.sizes import ShapeProfile

HOPPER, ADA = Gpu("Hopper", "9.0", 1), Gpu("Ada", "8.9", 1)
VERSIONS = {"tensorrt": "11.4.0.106", "tensorrt-rtx": "1.7.1.116"}


@dataclass(frozen=True)
class OnGpu:
    """An array that says it lies on a GPU."""

    content: NDArray[np.float32]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.content.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.content.dtype

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("nobody here can read a GPU")


@dataclass
class FakeEngine:
    """Remembers what it was made for and fed; ``offset`` is what it gets wrong."""

    plan: Path
    compiler: Compiler
    profile: ShapeProfile
    cuda_graphs: bool
    cache: Path | None
    offset: float = 0.0
    error: Exception | None = None
    batches: list[int] = field(default_factory=list)
    fed: list[Any] = field(default_factory=list)
    is_open: bool = False
    closed: int = 0
    inputs: tuple[TensorSpec, ...] = (TensorSpec("input", "float32", ("batch", 3, SIZE, SIZE)),)
    outputs: tuple[TensorSpec, ...] = (TensorSpec("logits", "float32", ("batch", 3)),)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        batch = feeds["input"]
        self.fed.append(batch)
        self.batches.append(batch.shape[0])
        if not self.profile.takes({0: batch.shape[0]}):
            raise UsageError("outside the profile")
        content = batch.content if isinstance(batch, OnGpu) else batch
        return {"logits": colours_of(content) + self.offset}

    def run_on_device(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        return {"logits": OnGpu(self.run(feeds)["logits"])}

    def run_timed(self, feeds: Mapping[str, Any]) -> tuple[dict[str, Any], StepTimes]:
        return self.run(feeds), StepTimes(wall_ms=2.0, compute_ms=1.0, h2d_ms=0.5)

    def close(self) -> None:
        self.closed += 1

    def __enter__(self) -> Self:
        if self.error is not None:
            raise self.error
        self.is_open = True
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _load(name: str) -> Compiler:
    return Compiler(name, VERSIONS[name], None, is_portable=name == "tensorrt-rtx")


class FakeMachine:
    """A machine with this GPU and both compilers; ``opened`` are the engines that were made,
    with these ``options``."""

    def __init__(
        self,
        gpu: Gpu | None = HOPPER,
        *,
        offset: float = 0.0,
        error: Exception | None = None,
        image: tuple[int | str, ...] = (SIZE, SIZE),
    ) -> None:
        self.opened: list[FakeEngine] = []
        self.options: list[EngineOptions] = []
        self.inputs = (TensorSpec("input", "float32", ("batch", 3, *image)),)
        self.gpu, self.offset, self.error = gpu, offset, error

    def __call__(self, **changes: Any) -> Machine:
        known: dict[str, Any] = {
            "gpus": () if self.gpu is None else (self.gpu,),
            "driver": "13.0" if self.gpu else None,
            "load_compiler": _load,
            "cuda_major": lambda _name: 13,
            "read_header": lambda _plan, _compiler: EngineHeader("unknown", ""),
            "open_engine": self._open,
        }
        return Machine(**(known | changes))

    def _open(
        self, plan: Path, compiler: Compiler, profile: ShapeProfile, options: EngineOptions
    ) -> FakeEngine:
        engine = FakeEngine(
            plan,
            compiler,
            profile,
            options.cuda_graphs,
            options.cache,
            offset=self.offset,
            error=self.error,
            inputs=self.inputs,
        )
        self.opened.append(engine)
        self.options.append(options)
        return engine
