"""The runner on a real GPU, with engines that are compiled there. From the repository's root:

    pytest -n 0 tests/gpu

The scenarios are those of `tests/runner_scenarios.py`, which the stand-in driver runs too. Each
compiler that is not installed, or whose engines this GPU cannot run, is skipped with its reason.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deploykit.backends import CompileOptions
from deploykit.backends.trt.builder import compile_onnx
from deploykit.backends.trt.compiler import TENSORRT, TENSORRT_RTX, load_compiler
from deploykit.backends.trt.runner import TrtRunner
from deploykit.backends.trt.targets import known_compute_capabilities
from deploykit.core import environment
from deploykit.core.errors import MissingDependencyError, UsageError
from deploykit.core.sizes import ShapeProfile, SizeRange
from tests.runner_scenarios import PROFILE, Bench, RunnerScenarios, images
from tests.unit.backends.trt import small_models

REASON = "no GPU on this machine"
ROOT = Path(__file__).parents[2]


def compiled(
    name: str,
    folder: Path,
    profile: ShapeProfile = PROFILE,
    shape: tuple[int | str, ...] = ("batch", *small_models.IMAGE),
) -> Bench:
    """TensorRT multiplies FP32 on tensor cores with TF32's ten bits: hence the tolerance."""
    gpus = environment.gpus()
    if not gpus:
        pytest.skip(REASON)
    try:
        compiler = load_compiler(name)
    except MissingDependencyError as error:
        pytest.skip(str(error))
    own = gpus[0].compute_capability
    targets: tuple[str, ...] = ()
    if compiler.is_portable:
        if own not in known_compute_capabilities(compiler):
            pytest.skip(f"{compiler.label} does not compile for compute capability {own}")
        targets = (own,)
    onnx = small_models.convolution(folder / "model.onnx", shape=shape)
    plan = folder / "model.engine"
    options = CompileOptions(profile, compute_capabilities=targets)
    plan.write_bytes(compile_onnx(compiler, onnx, options).plan)
    return Bench(plan, onnx, compiler, tolerance=5e-3, leak_bytes=8 << 20)


@pytest.fixture(scope="module")
def tensorrt(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return compiled(TENSORRT, tmp_path_factory.mktemp("tensorrt"))


@pytest.fixture(scope="module")
def rtx(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return compiled(TENSORRT_RTX, tmp_path_factory.mktemp("rtx"))


class TestTensorrt(RunnerScenarios):
    @pytest.fixture
    def bench(self, tensorrt: Bench) -> Bench:
        return tensorrt


class TestRtx(RunnerScenarios):
    @pytest.fixture
    def bench(self, rtx: Bench) -> Bench:
        return rtx

    def test_the_runtime_cache_is_kept_and_read(self, bench: Bench, tmp_path: Path) -> None:
        cache = tmp_path / "model.engine.cache"
        check = bench.oracle()
        for content in (None, b"damaged"):
            if content is not None:
                cache.write_bytes(content)
            with bench.runner(cache=cache) as runner:
                check(images(1), runner.run({"x": images(1)}))
            assert len(cache.read_bytes()) > len(b"damaged")


OPEN = ShapeProfile(1, 2, 4, SizeRange(8, 16, 24), SizeRange(12, 16, 20))


@pytest.mark.parametrize("name", [TENSORRT, TENSORRT_RTX])
def test_every_height_and_width_of_a_profile(name: str, tmp_path: Path) -> None:
    bench = compiled(name, tmp_path, OPEN, ("batch", 8, "height", "width"))
    check = bench.oracle()
    sizes = [(1, 8, 16, 16), (4, 8, 24, 20), (1, 8, 8, 12), (3, 8, 9, 13), (4, 8, 8, 20)]
    with TrtRunner(bench.plan, bench.compiler, OPEN) as runner:
        for turn in range(3):  # runs plainly, is captured, is replayed
            for size in sizes:
                given = np.random.default_rng(turn).normal(size=size).astype(np.float32)
                check(given, runner.run({"x": given}))
        with pytest.raises(UsageError, match="height 25, its profile is 8 to 24"):
            runner.run({"x": np.zeros((1, 8, 25, 16), np.float32)})


# A kernel that stops with a fault: it poisons the process's CUDA context, as a defect would.
FAULT = """
import sys
from pathlib import Path
import cuda.core as core
from cuda.bindings import driver
from deploykit.backends.trt.compiler import load_compiler
from deploykit.backends.trt.runner import TrtRunner
from deploykit.core.errors import DeviceError
from tests.runner_scenarios import PROFILE, images

PTX = b'''
.version 7.0
.target sm_75
.address_size 64
.visible .entry fault() { trap; }
\\0'''

name, plan = sys.argv[1:]
runner = TrtRunner(Path(plan), load_compiler(name), PROFILE)
runner.run({"x": images(1)})
status, module = driver.cuModuleLoadData(PTX)
assert status == 0, status
status, kernel = driver.cuModuleGetFunction(module, b"fault")
assert status == 0, status
stream = core.Device(0).create_stream()
driver.cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, stream.handle, 0, 0)
driver.cuStreamSynchronize(stream.handle)
for _ in range(2):
    try:
        runner.run({"x": images(1)})
    except DeviceError as error:
        assert "start the process again" in str(error), error
    else:
        raise SystemExit("a broken GPU gave an answer")
runner.close()
print("told", flush=True)
import os
os._exit(0)
"""


def told(script: str, name: str, bench: Bench) -> None:
    """Run a script in a process of its own; it says "told" at its end."""
    done = subprocess.run(
        [sys.executable, "-c", script, name, str(bench.plan)],
        cwd=ROOT,  # from where it imports the tests
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip().endswith("told"), done.stdout + done.stderr


@pytest.mark.parametrize("name", [TENSORRT, TENSORRT_RTX])
def test_a_fault_on_the_gpu_breaks_the_runner(name: str, tmp_path: Path) -> None:
    told(FAULT, name, compiled(name, tmp_path))


# An address that is none may be told before anything runs, or be a fault of the GPU that no process
# survives: so it has one to itself.
ADDRESS = """
import sys
from pathlib import Path
from deploykit.backends.trt.compiler import load_compiler
from deploykit.backends.trt.runner import TrtRunner
from deploykit.core.errors import DeviceError, UsageError
from tests.device_arrays import ByInterface
from tests.runner_scenarios import PROFILE, images

name, plan = sys.argv[1:]
runner = TrtRunner(Path(plan), load_compiler(name), PROFILE)
runner.run({"x": images(1)})
wrong = ByInterface(images(1), data=(0x1000, False))
try:
    runner.run({"x": wrong})
except UsageError:
    runner.run({"x": images(1)})
except DeviceError as error:
    assert "start the process again" in str(error), error
else:
    raise SystemExit("an address that is none gave an answer")
runner.close()
print("told", flush=True)
import os
os._exit(0)
"""


@pytest.mark.parametrize("name", [TENSORRT, TENSORRT_RTX])
def test_an_address_that_is_none_is_told(name: str, tmp_path: Path) -> None:
    told(ADDRESS, name, compiled(name, tmp_path))
