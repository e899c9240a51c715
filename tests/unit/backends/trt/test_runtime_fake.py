"""The fake runtime, and the protocols of the runner, have no name that the real packages lack."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deploykit.backends.trt import api
from tests.fakes import execution_fake, runtime_fake
from tests.fakes.tensorrt_fake import ILogger
from tests.unit.backends.trt import small_models

if TYPE_CHECKING:
    from collections.abc import Sequence

REAL_NAMES: dict[type, str] = {
    execution_fake.CudaEngine: "ICudaEngine",
    execution_fake.ExecutionContext: "IExecutionContext",
    execution_fake.EngineInspector: "EngineInspector",
    runtime_fake.Runtime: "Runtime",
    runtime_fake.RtxRuntimeConfig: "IRuntimeConfig",
    runtime_fake.RuntimeCache: "IRuntimeCache",
}
PROTOCOLS: dict[type, str] = {
    api.CudaEngine: "ICudaEngine",
    api.ExecutionContext: "IExecutionContext",
    api.EngineInspector: "EngineInspector",
    api.Runtime: "Runtime",
    api.RuntimeConfig: "IRuntimeConfig",
    api.RtxRuntimeConfig: "IRuntimeConfig",
    api.RuntimeCache: "IRuntimeCache",
}
ENUMS = (
    runtime_fake.CudaGraphStrategy,
    runtime_fake.DynamicShapesKernelSpecializationStrategy,
    runtime_fake.LayerInformationFormat,
    execution_fake.DataType,
    execution_fake.ExecutionContextAllocationStrategy,
    execution_fake.TensorIOMode,
)
OWN = {"numpy_type", "shapes"}  # of the fake, for itself


@pytest.fixture
def real() -> Any:
    return pytest.importorskip(
        "tensorrt_rtx", reason="the package tensorrt-rtx-cu13 is not installed"
    )


def public_methods(kind: type) -> list[tuple[str, Any]]:
    found = inspect.getmembers(kind, inspect.isfunction)
    return [pair for pair in found if not pair[0].startswith("_") and pair[0] not in OWN]


def properties(kind: type) -> list[str]:
    found = [name for name, value in vars(kind).items() if isinstance(value, property)]
    return [name for name in found if name not in OWN]


def parameters(method: Any) -> list[str]:
    return [name for name in inspect.signature(method).parameters if name != "self"]


def real_parameters(method: Any) -> list[list[str]]:
    """Of each overload; pybind11 writes signatures into the docstring, defaults as <A.B: 0>."""
    name = re.escape(method.__name__)
    text = re.sub(r"<[^>]*>", "", method.__doc__)
    signatures = re.findall(rf"^(?:\d+\. )?{name}\((self: .*)\) ->", text, re.MULTILINE)
    overloads = [re.findall(r"(\w+): ", signature) for signature in signatures]
    return [[key for key in names if key != "self"] for names in overloads]


@pytest.mark.parametrize("kind", [*REAL_NAMES, *PROTOCOLS], ids=lambda kind: str(kind.__qualname__))
def test_methods_and_parameters_exist_in_the_real_class(kind: type, real: Any) -> None:
    genuine = getattr(real, {**REAL_NAMES, **PROTOCOLS}[kind])
    found = public_methods(kind)
    assert found
    for name, method in found:
        assert parameters(method) in real_parameters(getattr(genuine, name)), name


@pytest.mark.parametrize("kind", [*REAL_NAMES, *PROTOCOLS], ids=lambda kind: str(kind.__qualname__))
def test_properties_exist_in_the_real_class(kind: type, real: Any) -> None:
    genuine = getattr(real, {**REAL_NAMES, **PROTOCOLS}[kind])
    for name in properties(kind):
        assert isinstance(getattr(genuine, name), property), name


def test_the_rest_of_what_is_read_exists(real: Any) -> None:
    assert isinstance(real.ICudaEngine.device_memory_size_v2, property)
    assert isinstance(real.IExecutionContext.nvtx_verbosity, property)
    assert isinstance(real.EngineInspector.execution_context, property)
    assert isinstance(real.IRuntimeConfig.cuda_graph_strategy, property)
    assert real_parameters(real.Runtime.__init__) == [["logger"]]


@pytest.mark.parametrize("fake", ENUMS, ids=lambda fake: str(fake.__name__))
def test_enum_members_are_those_of_the_real_enum(fake: Any, real: Any) -> None:
    genuine = getattr(real, fake.__name__).__members__
    assert {name: int(genuine[name]) for name in fake.__members__} == {
        name: member.value for name, member in fake.__members__.items()
    }


def test_the_fake_module_offers_nothing_that_the_real_one_lacks(real: Any) -> None:
    fake = runtime_fake.FakeRuntime(runtime_fake.Script())
    names = [name for name in dir(fake) if not name.startswith("_")]
    assert names
    assert [name for name in names if not hasattr(real, name)] == []


def test_the_fake_has_all_that_the_protocols_name() -> None:
    pairs: Sequence[tuple[type, type]] = (
        (execution_fake.CudaEngine, api.CudaEngine),
        (execution_fake.ExecutionContext, api.ExecutionContext),
        (execution_fake.EngineInspector, api.EngineInspector),
        (runtime_fake.Runtime, api.Runtime),
        (runtime_fake.RtxRuntimeConfig, api.RtxRuntimeConfig),
        (runtime_fake.RuntimeCache, api.RuntimeCache),
    )
    for fake, protocol in pairs:
        for name, method in public_methods(protocol):
            assert parameters(getattr(fake, name)) == parameters(method), (fake, name)
        assert set(properties(protocol)) <= set(dir(fake))


def test_a_fake_shape_equals_no_tuple(tmp_path: Path) -> None:
    """The real one raises where it is compared."""
    script = runtime_fake.Script()
    logger = ILogger()
    runtime = runtime_fake.FakeRuntime(script).Runtime(logger)
    plan = small_models.convolution(tmp_path / "model.onnx").read_bytes()
    engine = runtime.deserialize_cuda_engine(plan)
    assert engine is not None
    shape = engine.get_tensor_shape("x")
    assert api.as_tuple(shape) == (-1, *small_models.IMAGE)
    assert tuple(shape) != shape  # type: ignore[comparison-overlap]  # what is to be shown


def test_tensorrt_has_what_the_runner_uses(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = request.config.getoption("--tensorrt-stubs", default=None)
    if folder is None:
        pytest.skip("needs the package tensorrt-stubs: run pytest with --tensorrt-stubs DIR")
    (tmp_path / "tensorrt.pyi").write_text(
        needed((Path(folder) / "tensorrt_bindings" / "tensorrt.pyi").read_text())
    )
    # Alone, so that mypy does not read the rest of the package, and all that it imports, anew.
    alone = tmp_path / "deploykit" / "backends" / "trt"
    alone.mkdir(parents=True)
    shutil.copy(str(api.__file__), alone)
    right = Path(__file__).with_name("runtime_types.py")
    assert complaints(tmp_path, right) == []
    # And the check does check: what is not as it is used is found.
    wrong = tmp_path / "wrong.py"
    wrong.write_text(WRONG)
    found = "\n".join(complaints(tmp_path, wrong))
    assert '"type[Runtime]" has no attribute "deserialize"' in found
    assert 'expected "RuntimeCache"' in found


WRONG = """
import tensorrt as trt
from deploykit.backends.trt import api
trt.Runtime.deserialize
def engine(made: trt.IExecutionContext) -> api.RuntimeCache:
    return made
"""


USED = (
    "DataType",
    "Dims",
    "EngineInspector",
    "ExecutionContextAllocationStrategy",
    "HardwareCompatibilityLevel",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "ILogger",
    "IOptimizationProfile",
    "IRuntimeConfig",
    "ITimingCache",
    "LayerInformationFormat",
    "ProfilingVerbosity",
    "Runtime",
    "TensorIOMode",
)


def needed(stubs: str) -> str:
    """The classes that are used. The whole file is one that mypy cannot read: some signatures of
    plugins are not Python, and a variable takes the name ``bool``.
    """
    blocks = re.findall(r"^class \w+.*?(?=^\S)", stubs, re.MULTILINE | re.DOTALL)
    names = [re.split(r"\W", block)[1] for block in blocks]
    kept = {name: block for name, block in zip(names, blocks, strict=True) if name in USED}
    assert sorted(kept) == sorted(USED)
    return "\n".join(["import typing", "import typing_extensions", *kept.values()])


def complaints(folder: Path, file: Path) -> list[str]:
    """What mypy has to say of the file; of the stubs it has more."""
    options = ["--strict", "--config-file=", "--cache-dir=cache", "--no-error-summary"]
    options.append("--explicit-package-bases")
    # With the checkout on PYTHONPATH mypy would find the whole package, and 2,700 files in all.
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(file)],
        env={**own, "MYPYPATH": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr
    return [line for line in done.stdout.splitlines() if file.name in line]
