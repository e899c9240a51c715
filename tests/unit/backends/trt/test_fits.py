from __future__ import annotations

from dataclasses import replace

import pytest

from deploykit.backends import engine_fits
from deploykit.core.artifacts import EngineRecord
from deploykit.core.environment import Gpu
from deploykit.core.precision import Precision
from deploykit.core.sizes import ShapeProfile

RTX = EngineRecord(
    file="tensorrt-rtx-1.7.1.116.engine",
    sha256="0" * 64,
    bytes=1,
    compiler="tensorrt-rtx",
    compiler_version="1.7.1.116",
    compute_capabilities=("8.6", "8.9"),
    profile=ShapeProfile(),
    precision=Precision.FP16,
    precision_census={"CONVOLUTION HALF": 1},
    build_s=1.0,
)
TENSORRT = replace(
    RTX, compiler="tensorrt", compiler_version="11.4.0.106", compute_capabilities=("9.0",)
)
ADA, HOPPER = Gpu("Ada", "8.9", 1), Gpu("Hopper", "9.0", 1)
BOTH = {"tensorrt": "11.4.0.106", "tensorrt-rtx": "1.7.1.116"}


@pytest.mark.parametrize(("record", "gpu"), [(RTX, ADA), (TENSORRT, HOPPER)])
def test_an_engine_fits_its_own_version_and_gpu(record: EngineRecord, gpu: Gpu) -> None:
    assert engine_fits(record, [gpu], BOTH) == (True, "")


AMPERE = replace(TENSORRT, compute_capabilities=("8.6",), hardware_compatibility="ampere+")
SAME = replace(TENSORRT, compute_capabilities=("8.6",), hardware_compatibility="same-cc")


@pytest.mark.parametrize(
    ("record", "capability", "fits"),
    [
        (AMPERE, "8.0", True),
        (AMPERE, "8.6", True),
        (AMPERE, "9.0", True),
        (AMPERE, "12.1", True),
        (AMPERE, "7.5", False),
        (SAME, "8.6", True),
        (SAME, "8.0", False),
        (SAME, "8.9", False),
    ],
)
def test_hardware_compatibility_decides_on_other_gpus(
    record: EngineRecord, capability: str, *, fits: bool
) -> None:
    assert engine_fits(record, [Gpu("a GPU", capability, 1)], BOTH)[0] is fits


@pytest.mark.parametrize(
    ("record", "gpus", "compilers", "reason"),
    [
        (
            AMPERE,
            [Gpu("Turing", "7.5", 1)],
            BOTH,
            "compiled for compute capability 8.0 and later, this GPU has 7.5",
        ),
        (SAME, [ADA], BOTH, "compiled for compute capability 8.6, this GPU has 8.9"),
        (
            replace(TENSORRT, hardware_compatibility="rubin+"),
            [HOPPER],
            BOTH,
            "compiled for GPUs that are unknown here: 'rubin+'",
        ),
        (RTX, [HOPPER], BOTH, "compiled for compute capability 8.6, 8.9, this GPU has 9.0"),
        (TENSORRT, [ADA], BOTH, "compiled for compute capability 9.0, this GPU has 8.9"),
        (RTX, [HOPPER, ADA], BOTH, "compiled for compute capability 8.6, 8.9, this GPU has 9.0"),
        (RTX, [], BOTH, "no GPU on this machine"),
        (RTX, [ADA], {"tensorrt": "11.4.0.106"}, "tensorrt-rtx is not installed"),
        (
            TENSORRT,
            [HOPPER],
            {"tensorrt": "11.5.0.1"},
            "compiled by tensorrt 11.4.0.106, installed is 11.5.0.1",
        ),
        (
            RTX,
            [ADA],
            {"tensorrt-rtx": "1.8.0.1"},
            "compiled by tensorrt-rtx 1.7.1.116, installed is 1.8.0.1",
        ),
    ],
)
def test_a_misfit_says_why(
    record: EngineRecord, gpus: list[Gpu], compilers: dict[str, str], reason: str
) -> None:
    assert engine_fits(record, gpus, compilers) == (False, reason)
