"""A PyTorch module behind the `Runner` protocol, on the CPU."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.backends._backend import CPU, ModuleBackend, ModuleOptions, not_installed
from deploykit.backends._feeds import check_feeds
from deploykit.core.errors import UsageError
from deploykit.core.precision import Precision
from deploykit.core.specs import Closing, StepTimes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from deploykit.core.specs import Array, TensorSpec


_DEFAULTS: Final = ModuleOptions()


class EagerRunner(Closing):
    """Runs a module of one input and one output, set to evaluation mode, without gradients.

    The threads of the options are those of torch in this process, which has one number for all
    modules.
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        options: ModuleOptions = _DEFAULTS,
        /,
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self._module: nn.Module | None = module.eval()
        if options.threads is not None:
            import torch

            torch.set_num_threads(options.threads)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name for one batch of inputs by name.

        Raises:
            UsageError: names, types or shapes of ``feeds`` are not the module's, or it is closed.
        """
        return self._run(feeds)[0]

    def run_timed(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], StepTimes]:
        """As ``run``; ``compute_ms`` is the time within the module, ``wall_ms`` of the call."""
        start = time.perf_counter()
        outputs, compute_ms = self._run(feeds)
        wall_ms = (time.perf_counter() - start) * 1e3
        return outputs, StepTimes(wall_ms=wall_ms, compute_ms=compute_ms)

    def _run(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], float]:
        """The outputs, and the milliseconds within the module."""
        import torch

        if self._module is None:
            raise UsageError("the runner is closed; open a new one")
        check_feeds("the module", feeds, self.inputs)
        # A copy, because torch takes neither read-only arrays nor ones with negative strides.
        images = torch.from_numpy(np.array(feeds[self.inputs[0].name], order="C"))
        with torch.inference_mode():
            start = time.perf_counter()
            result = self._module(images)
            compute_ms = (time.perf_counter() - start) * 1e3
        return {self.outputs[0].name: result.numpy()}, compute_ms

    def close(self) -> None:
        """Let go of the module; a second call does nothing."""
        self._module = None


def _product(left: Array, right: Array, threads: int) -> Callable[[], object]:
    """The product by torch, into memory that is there."""
    import torch

    torch.set_num_threads(threads)
    factors = torch.from_numpy(left), torch.from_numpy(right)
    return partial(torch.mm, *factors, out=torch.empty(len(left), right.shape[1]))


BACKEND: Final = ModuleBackend(
    name="eager",
    label="torch eager",
    rank=50,
    device=CPU,
    precisions=(Precision.FP32,),
    usual=(Precision.FP32,),
    problem=lambda _gpus: not_installed("torch"),
    # None: what needs torch is to export, which has a row of its own.
    abilities=lambda _gpus: (),
    product=_product,
    open=EagerRunner,
)
