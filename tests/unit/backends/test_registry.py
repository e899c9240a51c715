"""The registry of backends: what it finds, in which order, and what it says of the rest."""

from __future__ import annotations

import re
import sys
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from deploykit.backends import (
    CPU,
    GPU,
    Ability,
    EngineBackend,
    EngineHeader,
    EngineRunner,
    GraphBackend,
    ModuleBackend,
)
from deploykit.backends._registry import (
    backends,
    choose_compiler,
    engine_backend,
    engine_backends,
    find_backend,
    graph_backend_on,
    graph_judge,
    load_devices,
    module_judge,
    read_header,
    unavailable_backends,
)
from deploykit.core.environment import Gpu
from deploykit.core.errors import MissingDependencyError, UnknownNameError, UsageError
from deploykit.core.plugs import plugs
from tests.plugins import install_plug

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

L4 = Gpu("NVIDIA L4", "8.9", 24_000_000_000)
H100 = Gpu("NVIDIA H100", "9.0", 80_000_000_000)
PLUG = """
from deploykit.backends import CPU, GraphBackend
from deploykit.core.precision import Precision

BACKEND = GraphBackend(
    name="{name}", label="Toy", rank=35, device=CPU, precisions=(Precision.FP32,),
    usual=(Precision.FP32,), problem=lambda gpus: "{problem}", open=None, load_device="toy",
)
"""


@pytest.fixture(autouse=True)
def _forget_plugs() -> Iterator[None]:
    """What a test installs is gone with its folder."""
    yield
    plugs.cache_clear()
    for name in [name for name in sys.modules if name.startswith("plugged_")]:
        del sys.modules[name]


def install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, name: str = "toy", problem: str = ""
) -> None:
    source = PLUG.format(name=name, problem=problem)
    install_plug(folder, "backends", "toy", source, monkeypatch)


def test_the_best_comes_first() -> None:
    assert [backend.name for backend in backends()] == [
        "tensorrt",
        "tensorrt-rtx",
        "ort-cuda",
        "ort",
        "eager-cuda",
        "compile-cuda",
        "eager",
    ]
    assert [backend.name for backend in engine_backends()] == ["tensorrt", "tensorrt-rtx"]
    assert [backend.device for backend in backends()] == [GPU, GPU, GPU, CPU, GPU, GPU, CPU]


def test_what_a_package_installs_has_its_place_by_its_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch)
    assert [backend.name for backend in backends()][2:5] == ["ort-cuda", "toy", "ort"]
    assert find_backend("toy").label == "Toy"
    assert load_devices() == ("toy", "cpu", "ort-cuda")
    assert graph_backend_on("toy") is find_backend("toy")


def test_unknown_names_say_what_there_is() -> None:
    with pytest.raises(UnknownNameError, match="unknown backend 'ortt'") as caught:
        find_backend("ortt")
    assert "all of them: tensorrt, tensorrt-rtx, ort-cuda, ort, eager" in str(caught.value)
    with pytest.raises(UnknownNameError, match="unknown compiler 'ort'"):
        engine_backend("ort")
    with pytest.raises(UnknownNameError, match="all of them: auto, tensorrt, tensorrt-rtx, none"):
        choose_compiler("ort", ())


def test_a_name_belongs_to_one_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, name="ort")
    expected = "two backends are called 'ort': onnxruntime (cpu) and Toy\na backend has one name"
    with pytest.raises(UsageError, match=re.escape(expected)):
        backends()
    assert graph_judge().label == "onnxruntime (cpu)"


@pytest.mark.parametrize("source", ["", "BACKEND = 'toy'", "BACKENDS = (1, 2)"])
def test_a_plug_without_a_backend_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    install_plug(tmp_path, "backends", "toy", source, monkeypatch)
    with pytest.raises(UsageError, match=r"plugged_toy defines no BACKEND\na plug-in of deploykit"):
        backends()


def test_a_broken_package_does_not_stop_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_plug(tmp_path, "backends", "toy", "1 / 0", monkeypatch)
    assert find_backend("ort") is graph_judge() is graph_backend_on("cpu")
    with pytest.raises(MissingDependencyError, match="the plug-in 'toy' of"):
        backends()


def test_the_judges_are_onnxruntime_and_torch() -> None:
    assert graph_judge().name == "ort"
    assert module_judge().name == "eager"


def test_each_backend_is_of_the_kind_of_what_it_opens() -> None:
    kinds = {backend.name: type(backend) for backend in backends()}
    assert kinds == {
        "tensorrt": EngineBackend,
        "tensorrt-rtx": EngineBackend,
        "ort-cuda": GraphBackend,
        "ort": GraphBackend,
        "eager-cuda": ModuleBackend,
        "compile-cuda": ModuleBackend,
        "eager": ModuleBackend,
    }


def test_devices_of_load_are_those_of_graphs() -> None:
    assert load_devices() == ("cpu", "ort-cuda")
    assert graph_backend_on("ort-cuda") is find_backend("ort-cuda")
    assert graph_backend_on("cuda") is None


def has(monkeypatch: pytest.MonkeyPatch, **modules: bool) -> None:
    """Let a module be importable with a version, or not at all."""
    for name, installed in modules.items():
        module = ModuleType(name) if installed else None
        if module is not None:
            module.__dict__["__version__"] = "11.7.1"
        # None in sys.modules is as if the package were not installed.
        monkeypatch.setitem(sys.modules, name, module)


def test_without_a_gpu_only_the_cpu_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, tensorrt=True, tensorrt_rtx=True, torch=False)
    found = unavailable_backends(())
    assert {backend.name for backend in backends()} - set(found) == {"ort"}
    assert found["tensorrt"] == found["ort-cuda"] == "no GPU on this machine"
    line = "pip install torch torchvision onnx onnx-ir onnxscript safetensors"
    assert found["eager"] == f"torch is not installed: {line}"


def test_with_a_gpu_the_compiler_and_its_generation_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, tensorrt=False, tensorrt_rtx=True)
    found = unavailable_backends((L4,))
    assert list(found) == ["tensorrt"]
    assert found["tensorrt"] == (
        "this step needs the Python module tensorrt, which is not installed; "
        "install it: pip install tensorrt cuda-core nvidia-ml-py"
    )
    found = unavailable_backends((H100,))
    assert found["tensorrt-rtx"].startswith("compute capability 9.0 is not one of 8.0, 8.6")


def test_without_onnxruntime_neither_of_its_devices_works(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, tensorrt=True, tensorrt_rtx=True, onnxruntime=False)
    found = unavailable_backends((L4,))
    assert (
        found["ort"]
        == found["ort-cuda"]
        == ("onnxruntime is not installed: pip install onnxruntime-gpu")
    )


def test_this_machine_has_onnxruntime() -> None:
    assert "ort" not in unavailable_backends(())


def test_a_backend_says_in_a_row_of_doctor_whether_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch)
    command = "deploykit bench TARGET --backend toy"
    expected = Ability("run models on Toy", works=True, how=command)
    assert find_backend("toy").abilities_on(()) == (expected,)


def test_a_backend_says_in_a_row_of_doctor_why_it_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, problem="no licence")
    assert unavailable_backends(())["toy"] == "no licence"
    expected = Ability("run models on Toy", works=False, how="no licence")
    assert find_backend("toy").abilities_on(()) == (expected,)


COVERED = "8.0, 8.6, 8.9, 12.0, 12.1 (A100, RTX 30, L4 and RTX 40, RTX 50)"


@pytest.mark.parametrize(
    ("gpu", "works", "how"),
    [
        (None, False, f"needs a GPU of compute capability {COVERED} and its driver"),
        (H100, False, f"compute capability 9.0 is not one of {COVERED}"),
        (L4, True, "their .engine files fit this GPU"),
    ],
)
def test_doctor_tells_which_gpus_rtx_runs_on(
    monkeypatch: pytest.MonkeyPatch, gpu: Gpu | None, works: bool, how: str
) -> None:
    has(monkeypatch, tensorrt_rtx=True)
    build, run = find_backend("tensorrt-rtx").abilities_on(() if gpu is None else (gpu,))
    assert build.works
    assert run == Ability("run engines of TensorRT for RTX", works, how)


def test_a_gpu_that_is_too_old_is_no_place_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, tensorrt=True)
    found = unavailable_backends((Gpu("Tesla V100", "7.0", 1),))
    assert found["tensorrt"] == "compute capability 7.0 is below 7.5 (T4, RTX 20)"


def test_doctor_tells_what_tensorrt_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, tensorrt=True)
    tensorrt = find_backend("tensorrt")
    assert {each.how for each in tensorrt.abilities_on(())} == {
        "needs a GPU of compute capability 7.5 (T4, RTX 20) or later and its driver"
    }
    build, run = tensorrt.abilities_on((H100,))
    assert build.works
    assert run.works
    assert build.how == "deploykit build BUNDLE --backend tensorrt"


def test_the_header_of_an_unknown_compiler_is_not_judged() -> None:
    expected = EngineHeader("unknown", "no backend is called 'toy' here")
    assert read_header(b"junk", "toy") == expected


def test_backends_are_found_without_importing_what_they_run_on() -> None:
    import subprocess

    code = (
        "from deploykit.backends._registry import backends\nassert len(backends()) == 7\n"
        "import sys\nprint(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "onnxruntime", "onnx", "tensorrt_rtx", "cuda"}.isdisjoint(done.stdout.split())


def test_an_engine_runner_is_told_from_others() -> None:
    assert not isinstance(object(), EngineRunner)
