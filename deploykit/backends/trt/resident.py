"""An engine whose inputs and outputs stay on the GPU, for measuring the computation alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit.specs import Closing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.backends.trt.runner import TrtRunner
    from deploykit.specs import StepTimes, TensorSpec


class ResidentRunner(Closing):
    """Runs what `upload` has put on the GPU; the outputs are computed and left there.

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
        """The duration of computing and enqueueing; there are no outputs, as none was fetched."""
        return {}, self._runner.time_on_device(feeds)

    def close(self) -> None:
        """Nothing: what was uploaded is freed with the last reference to it."""
