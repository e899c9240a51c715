"""Fixtures that several groups of tests share."""

from __future__ import annotations

import functools
import gc
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock

from deploykit.cli import COLLECT_AFTER
from tests.digits import Digits, make_digits

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("deploykit")
    group.addoption("--shared", metavar="DIR", help="folder with data/: real images and weights")
    group.addoption("--tensorrt-stubs", metavar="DIR", help="folder with tensorrt-stubs")
    group.addoption("--cuda-stand-in", metavar="DIR", help="folder with a stand-in libcuda.so.1")


def pytest_configure() -> None:
    """One thread of OpenMP for each worker, and for the processes that it starts.

    Threads of torch and numpy wait for one another in a loop: as many for each worker as there are
    cores take twice the time of one. They read the variable when they are imported, so that this
    file may import neither. Cycles are looked for as seldom as in the command line's own process.
    Interrupts are raised also where a shell started the tests in the background, which ignores
    them: what a test interrupts would go on for the minutes that it was asked for.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.set_threshold(*COLLECT_AFTER)
    if _is_worker():
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def _is_worker() -> bool:
    """One of several processes that run tests beside one another."""
    return "PYTEST_XDIST_WORKER" in os.environ


LONGEST = (
    "test_ray.py", "test_auto.py", "test_on_stand_in.py", "test_documents.py", "test_int8.py",
    "test_bench.py", "test_bench_heads.py", "test_timm_targets.py", "test_torchvision_targets.py",
    "test_proof.py", "test_toy_architecture.py", "test_toy_target.py", "test_commands.py",
    "test_torch_export.py", "test_visualize.py",
)  # fmt: skip
"""Files with tests of more than ten seconds, in their order.

What is first stays with the worker that begins it, to the end of its file. Those behind may be
taken by others when these have nothing left to do, and each would start Ray, for 15 seconds.
"""


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The second worker reads the folders from their end.

    A test file that is new has to be rewritten for its assertions, which is half of the collection.
    Workers that begin at the two ends each do half of the files, and find the other half done.
    There is one worker more than CI has cores, as many tests wait for a browser or a process.
    """
    report = yield
    of_folder = isinstance(collector, pytest.Directory | pytest.Session)
    if of_folder and os.environ.get("PYTEST_XDIST_WORKER") == "gw1":
        report.result.reverse()
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: one of them that begins last would leave the other worker idle.

    All workers must have the same order, in whichever they read the folders.
    """
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (places.get(item.path.name, len(places)), item.path))


def pytest_sessionfinish() -> None:
    """What is left is looked through once: pytest does so five times, a second and more each."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup() -> None:
    if _is_worker():
        _one_thread_of_onnxruntime()
    _find_operators_once()


def _one_thread_of_onnxruntime() -> None:
    """As of OpenMP, which it does not use: its threads wait for one another in a loop, too."""
    runtime: Any = sys.modules.get("onnxruntime")
    if runtime is None or hasattr(runtime, "options_of_all_threads"):
        return
    runtime.options_of_all_threads = runtime.SessionOptions

    def of_one_thread() -> Any:
        options = runtime.options_of_all_threads()
        options.intra_op_num_threads = 1
        return options

    runtime.SessionOptions = of_one_thread
    without_options: Any = sys.modules["onnxruntime.capi._pybind_state"]
    without_options.get_default_session_options = of_one_thread


def _find_operators_once() -> None:
    """Let torch's exporter find out once, not anew for each export, what does not change.

    The source of its 500 operators, their signatures, and the operators that C++ decomposes: more
    than half of the time of a small network's export.
    """
    registration = sys.modules.get("torch.onnx._internal.exporter._registration")
    if registration is None or hasattr(registration.onnxscript_apis.get_torchlib_ops, "cache_info"):
        return
    apis, schemas = registration.onnxscript_apis, registration._schemas
    apis.get_torchlib_ops = functools.cache(apis.get_torchlib_ops)
    schemas.op_signature_from_function = functools.cache(schemas.op_signature_from_function)
    utils: Any = sys.modules["torch._export.utils"]
    utils._materialize_cpp_cia_ops = _once_for_operators(utils._materialize_cpp_cia_ops)


def _once_for_operators(materialize: Callable[[], None]) -> Callable[[], None]:
    """The list of operators is all that ``materialize`` reads; it is called 60 times an export."""
    import torch

    done: list[str] = []

    def wanted() -> None:
        found = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
        if found != done:
            materialize()
            done[:] = found

    return wanted


@pytest.fixture(scope="session")
def shared_data(request: pytest.FixtureRequest) -> Path:
    folder = request.config.getoption("--shared")
    if folder is None:
        pytest.skip("needs the project's shared data: run pytest with --shared DIR")
    return Path(folder).resolve() / "data"


@pytest.fixture(scope="session")
def cuda_stand_in(request: pytest.FixtureRequest) -> Path:
    folder = request.config.getoption("--cuda-stand-in")
    if folder is None:
        pytest.skip("needs a stand-in CUDA driver: run pytest with --cuda-stand-in DIR")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def made_once(
    tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> Callable[[str, Callable[[Path], object]], Path]:
    """Makes a folder once for all workers: the folder above a worker's own is shared by them."""
    own = tmp_path_factory.getbasetemp()
    shared = own if worker_id == "master" else own.parent

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():  # a worker that failed half-way has left a part
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def digits(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Digits:
    """Trained once for all workers."""
    return make_digits(made_once("digits", make_digits))


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that calibrate: in a project like this one, tables go to its folder for them."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def known_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of `bench`: the peak of this CPU need not be measured."""
    from deploykit.costs.peaks import gpu_peak
    from deploykit.verbs import bench

    peak = gpu_peak("NVIDIA L4").peak
    assert peak is not None
    known = replace(peak, name="a CPU", measured="2026-11-22T00:00:00+00:00")
    monkeypatch.setattr(bench, "measure_cpu_peaks", lambda _threads, **_: known)
