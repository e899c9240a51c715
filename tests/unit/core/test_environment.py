from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from deploykit.core import environment
from deploykit.core.environment import Gpu
from deploykit.core.errors import MissingDependencyError
from deploykit.core.serialization import to_plain

if TYPE_CHECKING:
    from pathlib import Path

UUID_OF_HOPPER = "8f9a41c7-03e1-4d1c-9d6e-5a2b7c1d0e3f"
HOPPER = Gpu("NVIDIA H100", "9.0", 80 << 30, 0, "0000:3B:00.0", f"GPU-{UUID_OF_HOPPER}")
ADA = Gpu(
    "NVIDIA L4", "8.9", 24 << 30, 1, "0000:AF:00.0", "GPU-11111111-2222-3333-4444-555555555555"
)


class FakeDriver:
    """The driver's C interface over a list of devices; ``failing`` functions return an error."""

    def __init__(self, *devices: Gpu, version: int = 13000, failing: str = "") -> None:
        self._devices = devices
        self._version = version
        self._failing = failing

    def _result(self, function: str) -> int:
        return 999 if function == self._failing else 0

    def cuInit(self, flags: int, /) -> int:  # noqa: N802  (here and below: the driver's names)
        return self._result("cuInit")

    def cuDriverGetVersion(self, version: Any, /) -> int:  # noqa: N802
        version._obj.value = self._version
        return self._result("cuDriverGetVersion")

    def cuDeviceGetCount(self, count: Any, /) -> int:  # noqa: N802
        count._obj.value = len(self._devices)
        return self._result("cuDeviceGetCount")

    def cuDeviceGetName(self, name: Any, size: int, device: int, /) -> int:  # noqa: N802
        text = self._devices[device].name.encode()
        ctypes.memmove(name, text + b"\0", min(size, len(text) + 1))
        return self._result("cuDeviceGetName")

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: int, /) -> int:  # noqa: N802
        major, minor = self._devices[device].compute_capability.split(".")
        value._obj.value = int({75: major, 76: minor}[attribute])
        return self._result("cuDeviceGetAttribute")

    def cuDeviceTotalMem_v2(self, size: Any, device: int, /) -> int:  # noqa: N802
        size._obj.value = self._devices[device].memory_bytes
        return self._result("cuDeviceTotalMem_v2")

    def cuDeviceGetPCIBusId(self, text: Any, size: int, device: int, /) -> int:  # noqa: N802
        known = self._devices[device].bus_id.encode()
        ctypes.memmove(text, known + b"\0", min(size, len(known) + 1))
        return self._result("cuDeviceGetPCIBusId")

    def cuDeviceGetUuid_v2(self, uuid: Any, device: int, /) -> int:  # noqa: N802
        known = self._devices[device].uuid.partition("-")[2].replace("-", "")
        ctypes.memmove(uuid, bytes.fromhex(known).ljust(16, b"\0"), 16)
        return self._result("cuDeviceGetUuid_v2")


def test_package_version() -> None:
    assert environment.package_version("numpy") == metadata.version("numpy")
    assert environment.package_version("no-such-distribution") is None


def test_require_imports() -> None:
    assert environment.require("json") is json


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("torch", "pip install torch torchvision onnx onnx-ir onnxscript safetensors"),
        ("torchvision", "pip install torch torchvision onnx onnx-ir onnxscript safetensors"),
        ("onnx", "pip install torch torchvision onnx onnx-ir onnxscript safetensors"),
        ("onnxscript", "pip install torch torchvision onnx onnx-ir onnxscript safetensors"),
        ("safetensors", "pip install torch torchvision onnx onnx-ir onnxscript safetensors"),
        ("tensorrt_rtx", "pip install tensorrt-rtx-cu13"),
        ("tensorrt", "pip install tensorrt cuda-core nvidia-ml-py"),
        ("cuda.core", "pip install cuda-core"),
        ("onnxruntime", "pip install onnxruntime-gpu"),
        ("PIL", "pip install pillow"),
        ("timm", "pip install timm"),
        ("transformers.models", "pip install transformers"),
        ("some_package.part", "pip install some_package"),
    ],
)
def test_a_missing_module_gives_its_install_line(
    monkeypatch: pytest.MonkeyPatch, module: str, line: str
) -> None:
    # None in sys.modules makes the import fail as for a package that is not installed.
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match="is not installed") as caught:
        environment.require(module)
    assert str(caught.value).splitlines()[-1] == f"install it: {line}"
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise ImportError('libnvinfer.so.11: no such file')", "libnvinfer.so.11: no such file"),
        ("raise OSError('libcudart.so.13: bad ELF')", "OSError: libcudart.so.13: bad ELF"),
        ("import missing_part_of_it", "No module named 'missing_part_of_it'"),
    ],
)
def test_an_installed_module_that_does_not_load_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, reason: str
) -> None:
    (tmp_path / "broken_native.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependencyError, match="installed but does not load") as caught:
        environment.require("broken_native")
    text = str(caught.value)
    assert reason in text
    assert "pip install broken_native" in text
    assert len(text.splitlines()) == 3


def test_gpus_in_the_drivers_order() -> None:
    assert environment.gpus(lambda: FakeDriver(HOPPER, ADA)) == (HOPPER, ADA)


@pytest.mark.parametrize(
    ("function", "field"), [("cuDeviceGetPCIBusId", "bus_id"), ("cuDeviceGetUuid_v2", "uuid")]
)
def test_a_gpu_is_one_without_a_name_to_choose_it_by(function: str, field: str) -> None:
    (found,) = environment.gpus(lambda: FakeDriver(HOPPER, failing=function))
    assert {**asdict(HOPPER), field: ""} == asdict(found)


def test_a_driver_of_before_uuids(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver(HOPPER)
    monkeypatch.delattr(FakeDriver, "cuDeviceGetUuid_v2")
    assert environment.gpus(lambda: driver) == (replace(HOPPER, uuid=""),)


def test_a_part_of_a_gpu_has_a_uuid_of_its_own() -> None:
    part = replace(HOPPER, name="NVIDIA H100 MIG 1g.10gb", uuid=f"MIG-{UUID_OF_HOPPER}")
    assert environment.gpus(lambda: FakeDriver(part)) == (part,)


def test_a_name_that_is_not_utf8_is_still_a_name() -> None:
    class Odd(FakeDriver):
        def cuDeviceGetName(self, name: Any, size: int, device: int, /) -> int:  # noqa: N802
            ctypes.memmove(name, b"G\xff\0", 3)
            return 0

    assert environment.gpus(lambda: Odd(HOPPER))[0].name == "G\ufffd"


def test_no_driver() -> None:
    assert environment.gpus(lambda: None) == ()
    assert environment.driver_version(lambda: None) is None


@pytest.mark.parametrize(
    "function",
    [
        "cuInit",
        "cuDeviceGetCount",
        "cuDeviceGetName",
        "cuDeviceGetAttribute",
        "cuDeviceTotalMem_v2",
    ],
)
def test_a_driver_that_refuses_shows_no_gpu(function: str) -> None:
    assert environment.gpus(lambda: FakeDriver(ADA, failing=function)) == ()


@pytest.mark.parametrize(
    ("driver", "expected"),
    [
        (FakeDriver(version=13000), "13.0"),
        (FakeDriver(version=12090), "12.9"),
        (FakeDriver(version=0), None),
        (FakeDriver(failing="cuDriverGetVersion"), None),
    ],
)
def test_driver_version(driver: FakeDriver, expected: str | None) -> None:
    assert environment.driver_version(lambda: driver) == expected


@pytest.mark.parametrize("devices", [0, 2])
def test_on_the_stand_in_driver(cuda_stand_in: Path, devices: int) -> None:
    code = (
        "import json; from deploykit.core import environment as e, serialization as s;"
        "print(json.dumps([e.driver_version(), s.to_plain(e.describe())['gpus']]))"
    )
    variables = {
        **os.environ,
        "LD_LIBRARY_PATH": str(cuda_stand_in),
        "NULLCUDA_DEVICES": str(devices),
        "NULLCUDA_CC": "86",
        "NULLCUDA_MEM_MB": "1024",
        "NULLCUDA_VERSION": "12080",
    }
    answer = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True
    )
    version, gpus = json.loads(answer.stdout)
    assert version == "12.8"
    assert [gpu["compute_capability"] for gpu in gpus] == ["8.6"] * devices
    assert [gpu["memory_bytes"] for gpu in gpus] == [1 << 30] * devices
    assert [gpu["index"] for gpu in gpus] == list(range(devices))
    assert len({gpu["uuid"] for gpu in gpus}) == devices
    assert len({gpu["bus_id"] for gpu in gpus}) == devices


def test_describe_names_this_machine() -> None:
    found = environment.describe()
    assert found.packages["numpy"] == metadata.version("numpy")
    assert "no-such-distribution" not in found.packages
    assert set(found.packages) <= set(environment.RECORDED_PACKAGES)
    assert found.logical_cores == os.cpu_count()
    assert found.cpu
    assert found.gpus == environment.gpus()


def test_to_dict_survives_json() -> None:
    described = replace(environment.describe(), gpus=(HOPPER,), driver="13.0")
    data = json.loads(json.dumps(to_plain(described)))
    assert data["gpus"] == [
        {
            "name": "NVIDIA H100",
            "compute_capability": "9.0",
            "memory_bytes": 80 << 30,
            "index": 0,
            "bus_id": "0000:3B:00.0",
            "uuid": f"GPU-{UUID_OF_HOPPER}",
        }
    ]
    assert data["driver"] == "13.0"
    assert data["packages"] == dict(described.packages)


def test_cpu_model(tmp_path: Path) -> None:
    listing = tmp_path / "cpuinfo"
    listing.write_text("processor\t: 0\nmodel name\t: Some CPU @ 3 GHz: x\nmodel name\t: other\n")
    assert environment.cpu_model(listing) == "Some CPU @ 3 GHz: x"
    assert environment.cpu_model(tmp_path / "missing")


def test_memory_where_the_system_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (environment.memory_bytes() or 0) > 1 << 20

    def refused() -> None:
        raise OSError(2, "No such file or directory")

    monkeypatch.setattr(psutil, "virtual_memory", refused)
    assert environment.memory_bytes() is None


def test_importing_it_loads_no_heavy_package() -> None:
    code = (
        "import sys; import deploykit.core.environment as e; e.describe();"
        "print(sorted({'numpy', 'torch', 'onnx', 'tensorrt_rtx'} & set(sys.modules)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"
