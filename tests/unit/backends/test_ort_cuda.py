"""CUDA's libraries from pip packages: loaded before onnxruntime's CUDA provider needs them."""

from __future__ import annotations

import subprocess
import sys
import warnings
from importlib.metadata import distributions
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest

from deploykit.backends import ort as backend
from deploykit.backends.ort import OrtRunner
from deploykit.core.errors import EngineIncompatibleError
from tests.unit.backends.test_ort import LINEAR, WEIGHT, serialised

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CUDA = "CUDAExecutionProvider"
REAL = onnxruntime.InferenceSession


@pytest.fixture(autouse=True)
def never_asked() -> Iterator[None]:
    backend._load_cuda_libraries.cache_clear()
    yield
    backend._load_cuda_libraries.cache_clear()


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


class Session:
    """A session that has the CUDA provider where the libraries were loaded before."""

    def __init__(self, loaded: list[str]) -> None:
        self._loaded = loaded

    def __call__(self, model: Any, options: Any, *, providers: list[Any], **_: Any) -> Any:
        cpu: Any = REAL(model, options, providers=["CPUExecutionProvider"])
        started = providers == [(CUDA, {"device_id": "0"})] and bool(self._loaded)
        cpu.get_providers = lambda: [CUDA] if started else ["CPUExecutionProvider"]
        return cpu


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], list[str]]:
    """A machine whose CUDA provider starts after ``preload``, which says how that goes."""
    loaded: list[str] = []

    def make(preload: Callable[[], None]) -> list[str]:
        def preload_dlls() -> None:
            preload()
            loaded.append("libcublas")

        monkeypatch.setattr(onnxruntime, "preload_dlls", preload_dlls)
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA])
        monkeypatch.setattr(onnxruntime, "InferenceSession", Session(loaded))
        return loaded

    return make


def test_the_libraries_are_loaded_before_the_session_once(
    machine: Callable[..., list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    loaded = machine(lambda: say("Failed to load libcufft.so.12: no such file"))
    batch = np.ones((2, 3), np.float32)
    for _ in range(2):
        with OrtRunner(serialised(LINEAR), device="cuda") as runner:
            expected = np.maximum(batch @ WEIGHT, 0)
            np.testing.assert_array_equal(runner.run({"images": batch})["logits"], expected)
    assert loaded == ["libcublas"]
    assert capfd.readouterr().out == ""


def fail() -> None:
    say("Failed to load libcudnn.so.9: no such file")
    say("Please follow https://onnxruntime.ai/docs/install/#cuda-and-cudnn to install CUDA.")
    raise RuntimeError("Invalid parameter of directory=None")


def warn() -> None:
    warnings.warn("Failed to register bundled CUDA plugin EP", stacklevel=1)
    raise OSError("libcudart.so.13: cannot open")


@pytest.mark.parametrize(
    ("preload", "said"),
    [
        (fail, "could not start it; Failed to load libcudnn.so.9: no such file; .*=None\ndeploy"),
        (warn, "could not start it; libcudart.so.13: cannot open; Failed to register bundled"),
    ],
)
def test_what_is_missing_is_told_where_the_provider_does_not_start(
    machine: Callable[..., list[str]],
    capfd: pytest.CaptureFixture[str],
    preload: Callable[[], None],
    said: str,
) -> None:
    machine(preload)
    with pytest.raises(EngineIncompatibleError, match=f"cannot run on cuda: onnxruntime {said}"):
        OrtRunner(serialised(LINEAR), device="cuda").__enter__()
    assert capfd.readouterr().out == ""


def test_nothing_is_loaded_for_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "preload_dlls", fail)
    with OrtRunner(serialised(LINEAR)) as runner:
        assert runner.run({"images": np.zeros((1, 3), np.float32)})["logits"].shape == (1, 2)


MAPPED = f"""
import sys
from deploykit.backends.ort import OrtRunner
from deploykit.core.errors import DeploykitError
from tests.unit.backends.test_ort import LINEAR, serialised
try:
    OrtRunner(serialised({LINEAR!r}), device="cuda").__enter__()
except DeploykitError:
    pass
assert "torch" not in sys.modules
sys.stderr.write(open("/proc/self/maps").read())
"""


def installed() -> list[str]:
    return [str(each.metadata["Name"]) for each in distributions()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_real_libraries_are_there_without_torch() -> None:
    if not any(name.startswith("nvidia-cublas") for name in installed()):
        pytest.skip("no pip package of cuBLAS is installed")
    if CUDA not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime was built without CUDA")
    done = subprocess.run(
        [sys.executable, "-c", MAPPED], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "libcublas.so" in done.stderr
