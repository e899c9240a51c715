"""Environment: packages, processor, memory, GPUs and their driver.

Nothing here needs a GPU or a heavy package. The driver is asked through its C interface, so that
neither torch nor a CUDA toolkit has to be installed to know what the machine can run.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import logging
import os
import platform
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from deploykit._version import __version__
from deploykit.core.errors import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import ModuleType

# By the packages' own names: "deploykit" on the public index is another project.
_EXPORT: Final = "pip install torch torchvision onnx onnx-ir onnxscript safetensors"
_INSTALL_LINES: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("torch", "torchvision", "onnx", "onnx_ir", "onnxscript", "safetensors"), _EXPORT
    ),
    "timm": "pip install timm",
    "transformers": "pip install transformers",
    "tensorrt_rtx": "pip install tensorrt-rtx-cu13",
    "tensorrt": "pip install tensorrt cuda-core nvidia-ml-py",
    "cuda.core": "pip install cuda-core",
    "onnxruntime": "pip install onnxruntime-gpu",
    "PIL": "pip install pillow",
    "pynvml": "pip install nvidia-ml-py",
    **dict.fromkeys(("ray", "pyarrow", "fsspec"), "pip install ray pandas pyarrow fsspec"),
    **dict.fromkeys(
        ("model_signing", "cryptography", "requests", "sigstore"),
        "pip install model-signing pyopenssl",
    ),
    **dict.fromkeys(
        ("starlette", "uvicorn", "grpc", "google", "prometheus_client"),
        "pip install starlette uvicorn grpcio protobuf prometheus-client",
    ),
}

RECORDED_PACKAGES: Final = (
    "numpy",
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "onnx",
    "onnxscript",
    "onnxruntime-gpu",
    "onnxruntime",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "cuda-core",
)
"""Distributions whose versions decide what a build or a measurement means."""

_CUDA_SUCCESS: Final = 0
_NAME_BYTES: Final = 256
_BUS_ID_BYTES: Final = 32
_UUID_BYTES: Final = 16
# CUdevice_attribute values of cuda.h: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
_CC_MAJOR: Final = 75
_CC_MINOR: Final = 76


def package_version(distribution: str) -> str | None:
    """Version of an installed distribution, ``None`` when it is not installed."""
    # Imported here because it costs more time than all the rest of this file.
    from importlib import metadata

    try:
        return _version_read_once(distribution)
    except metadata.PackageNotFoundError:
        return None


@cache
def _version_read_once(distribution: str) -> str:
    """A package's metadata take milliseconds; one that is not installed is looked for again."""
    from importlib import metadata

    return metadata.version(distribution)


def install_line(module: str) -> str:
    """The command that installs ``module``.

    >>> install_line("tensorrt_rtx")
    'pip install tensorrt-rtx-cu13'
    """
    package = module.partition(".")[0]
    return _INSTALL_LINES.get(module) or _INSTALL_LINES.get(package, f"pip install {package}")


def require(module: str) -> ModuleType:
    """Import a package that not every installation has.

    Raises:
        MissingDependencyError: it is not installed, or it is and one of its native libraries or
            own dependencies does not load; the message holds the install line.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if _is_part_of(module, error.name):
            raise _not_installed(module) from error
        raise _does_not_load(module, error) from error
    except (ImportError, OSError) as error:
        raise _does_not_load(module, error) from error


def require_installed(module: str) -> None:
    """Look whether a top-level module is there, without importing it.

    Raises:
        MissingDependencyError: it is not; the message holds the install line.
    """
    if importlib.util.find_spec(module) is None:
        raise _not_installed(module)


@contextmanager
def silenced(module: str) -> Iterator[None]:
    """Keep what the package ``module`` logs from being shown."""
    logger = logging.getLogger(module)
    handlers, propagate = logger.handlers[:], logger.propagate
    logger.handlers[:], logger.propagate = [logging.NullHandler()], False
    try:
        yield
    finally:
        logger.handlers[:], logger.propagate = handlers, propagate


def missing_dependency(error: ModuleNotFoundError) -> MissingDependencyError | None:
    """What to tell of an import that failed; ``None`` where the missing module is our own."""
    module = error.name or ""
    if not module or module.partition(".")[0] == "deploykit":
        return None
    return _not_installed(module)


def _not_installed(module: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"this step needs the Python module {module}, which is not installed\n"
        f"install it: {install_line(module)}"
    )


def _is_part_of(module: str, missing: str | None) -> bool:
    """Whether the module that was not found is ``module`` itself or one of its parents."""
    return missing is not None and f"{module}.".startswith(f"{missing}.")


def _does_not_load(module: str, error: Exception) -> MissingDependencyError:
    reason = " ".join(str(error).split())
    return MissingDependencyError(
        f"the Python module {module} is installed but does not load\n"
        f"reason: {type(error).__name__}: {reason}\n"
        f"repair what it names, or install again: {install_line(module)}"
    )


class CudaDriver(Protocol):
    """The few functions of the CUDA driver that are asked here; each returns a ``CUresult``.

    Arguments are ``ctypes`` pointers and plain numbers, as ``cuda.h`` lists them.
    """

    def cuInit(self, flags: int, /) -> int: ...  # noqa: N802, D102  (the driver's own names)
    def cuDriverGetVersion(self, version: Any, /) -> int: ...  # noqa: N802, D102
    def cuDeviceGetCount(self, count: Any, /) -> int: ...  # noqa: N802, D102
    def cuDeviceGetName(self, name: Any, size: int, device: int, /) -> int: ...  # noqa: N802, D102
    def cuDeviceGetAttribute(  # noqa: N802, D102
        self, value: Any, attribute: int, device: int, /
    ) -> int: ...
    def cuDeviceTotalMem_v2(self, size: Any, device: int, /) -> int: ...  # noqa: N802, D102
    def cuDeviceGetPCIBusId(  # noqa: N802, D102
        self, text: Any, size: int, device: int, /
    ) -> int: ...
    def cuDeviceGetUuid_v2(self, uuid: Any, device: int, /) -> int: ...  # noqa: N802, D102


def open_driver() -> CudaDriver | None:
    """The CUDA driver's library, ``None`` on a machine without one."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device of the CUDA driver; ``compute_capability`` as "8.9".

    ``index`` is the driver's number of it, among those that ``CUDA_VISIBLE_DEVICES`` shows.
    ``bus_id``, as "0000:3B:00.0", and ``uuid``, as "GPU-8f9a41c7-...", are empty where the driver
    does not tell. A part of a GPU, an instance of MIG, has the bus id of the whole and a UUID of
    its own, "MIG-...".
    """

    name: str
    compute_capability: str
    memory_bytes: int
    index: int = 0
    bus_id: str = ""
    uuid: str = ""


def gpus(load: Callable[[], CudaDriver | None] = open_driver) -> tuple[Gpu, ...]:
    """Every GPU that the driver shows, none without a driver or when it does not start.

    The first is the one that is used unless another is named (`gpu_choice.with_first`).
    ``CUDA_VISIBLE_DEVICES`` is the driver's own way to choose and to order them.
    """
    driver = load()
    if driver is None or driver.cuInit(0) != _CUDA_SUCCESS:
        return ()
    count = ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) != _CUDA_SUCCESS:
        return ()
    found = (_gpu(driver, index) for index in range(count.value))
    return tuple(gpu for gpu in found if gpu is not None)


def driver_version(load: Callable[[], CudaDriver | None] = open_driver) -> str | None:
    """Newest CUDA version that the driver supports, as "13.0"; ``None`` without a driver."""
    driver = load()
    version = ctypes.c_int()
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(version)) != _CUDA_SUCCESS:
        return None
    # cuda.h: 1000 * major + 10 * minor; a driver stub without a driver behind it answers 0.
    return f"{version.value // 1000}.{version.value % 1000 // 10}" if version.value else None


def _gpu(driver: CudaDriver, index: int) -> Gpu | None:
    """One device, ``None`` when the driver refuses any of the questions about it."""
    # A device handle is the device's index: cuDeviceGet only copies the number.
    name = ctypes.create_string_buffer(_NAME_BYTES)
    major, minor, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    results = (
        driver.cuDeviceGetName(name, _NAME_BYTES, index),
        driver.cuDeviceGetAttribute(ctypes.byref(major), _CC_MAJOR, index),
        driver.cuDeviceGetAttribute(ctypes.byref(minor), _CC_MINOR, index),
        driver.cuDeviceTotalMem_v2(ctypes.byref(memory), index),
    )
    if any(result != _CUDA_SUCCESS for result in results):
        return None
    text = name.value.decode("utf-8", "replace")
    return Gpu(
        name=text,
        compute_capability=f"{major.value}.{minor.value}",
        memory_bytes=memory.value,
        index=index,
        bus_id=_bus_id(driver, index),
        uuid=_uuid(driver, index, is_part=_MIG in f" {text} "),
    )


_MIG: Final = " MIG "
"""In the name of a part of a GPU, as "NVIDIA A100-SXM4-40GB MIG 1g.5gb"."""


def _bus_id(driver: CudaDriver, index: int) -> str:
    text = ctypes.create_string_buffer(_BUS_ID_BYTES)
    status = driver.cuDeviceGetPCIBusId(text, _BUS_ID_BYTES, index)
    return text.value.decode("ascii", "replace") if status == _CUDA_SUCCESS else ""


def _uuid(driver: CudaDriver, index: int, *, is_part: bool) -> str:
    """As ``nvidia-smi -L`` and ``CUDA_VISIBLE_DEVICES`` write it."""
    from uuid import UUID  # it asks what system this is, which costs time

    # Its second version gives a part of a GPU its own; drivers before 11.4 have none of it.
    ask = getattr(driver, "cuDeviceGetUuid_v2", None)
    raw = ctypes.create_string_buffer(_UUID_BYTES)
    if ask is None or ask(raw, index) != _CUDA_SUCCESS:
        return ""
    return f"{'MIG' if is_part else 'GPU'}-{UUID(bytes=raw.raw)}"


@dataclass(frozen=True)
class Environment:
    """What a build or a measurement ran on.

    ``packages`` has an entry for every distribution of `RECORDED_PACKAGES` that is installed.
    ``driver`` is the newest CUDA version that the driver supports.
    """

    deploykit: str
    python: str
    platform: str
    cpu: str
    logical_cores: int
    memory_bytes: int | None
    packages: Mapping[str, str]
    gpus: tuple[Gpu, ...]
    driver: str | None


def describe() -> Environment:
    """This machine, as it is now; nothing heavy is imported to find out."""
    versions = {name: package_version(name) for name in RECORDED_PACKAGES}
    return Environment(
        deploykit=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=cpu_model(),
        logical_cores=os.cpu_count() or 1,
        memory_bytes=memory_bytes(),
        packages={name: version for name, version in versions.items() if version is not None},
        gpus=gpus(),
        driver=driver_version(),
    )


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Marketing name of the processor where the system gives one, otherwise its architecture."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def memory_bytes() -> int | None:
    """Physical memory, ``None`` where the system does not tell."""
    import psutil

    try:
        return int(psutil.virtual_memory().total)
    except (psutil.Error, OSError):
        return None
