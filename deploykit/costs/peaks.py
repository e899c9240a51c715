"""Peak rates of a device: of GPUs from a table, of this machine's CPU by a trial.

The table gives dense rates, never those with 2:4 sparsity. Its column ``checked`` says how a row
was verified: ``clock`` where SMs x clock x operations per SM and clock agrees with the printed
figure, ``conflict`` where it gives more: the larger is taken then, so that the limit stays one.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from deploykit.core.environment import cpu_model
from deploykit.core.errors import DeviceError, UsageError
from deploykit.core.precision import Precision
from deploykit.core.serialization import to_plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WINOGRAD_SAVING: Final = 2.25
"""Multiplications of F(2x2, 3x3): 36 become 16 (Lavin and Gray, arXiv:1509.09308, section 4.1)."""

_TERA: Final = 1e12
_GIGA: Final = 1e9
_MEGA: Final = 1e6
_MIB: Final = 2**20
_RATES: Final = ("fp32", "fp16", "int8")
"""From the widest to the narrowest arithmetic, as the facts of a precision name it."""

_AMPERE: Final = 8
_VOLTA: Final = "7.0"
"""Its matrix units have no INT8; those of Xavier, 7.2, have."""

_VENDOR_WORDS: Final = frozenset({"nvidia", "tesla", "geforce"})
# One for each BLAS that numpy may be built with.
_THREAD_VARIABLES: Final = (
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_TRIAL_START_S: Final = 60
"""Time for the interpreter, numpy and the memory of a trial, on a machine that is busy."""


@dataclass(frozen=True, slots=True)
class DevicePeak:
    """Best rates of one device; ``None`` where nothing is known.

    ``fp32_flop_per_s`` is of the vector units (CUDA cores), ``tf32_flop_per_s`` of the matrix
    units, which compilers use for FP32 networks from Ampere on. ``winograd`` names the precisions
    whose 3x3 convolutions run on vector units by Winograd's algorithm, with 2.25 times fewer
    multiplications. ``measured`` is the time of the trial (ISO 8601), ``None`` for printed rates.
    ``compute_capability`` is a GPU's, as "8.9" (https://developer.nvidia.com/cuda-gpus).
    """

    name: str
    fp32_flop_per_s: float
    tf32_flop_per_s: float | None
    fp16_flop_per_s: float | None
    int8_op_per_s: float | None
    bytes_per_s: float
    cache_bytes: int
    winograd: frozenset[Precision]
    source: str
    threads: int | None = None
    measured: str | None = None
    compute_capability: str | None = None

    def flop_per_s(self, precision: Precision, *, winograd: bool = False) -> float | None:
        """Highest rate for ``precision``, or that of a wider one where it is higher.

        A rate with ``winograd`` counts the multiplications of the plain algorithm. ``None`` when
        the rate of ``precision`` is not known.

        >>> peak = gpu_peak("Tesla T4").peak
        >>> [peak.flop_per_s(Precision(name)) / 1e12 for name in ("fp32", "fp16", "int8")]
        [8.1, 65.0, 130.0]
        >>> round(peak.flop_per_s(Precision.FP32, winograd=True) / 1e12, 3)
        18.225
        """
        if self._own_rates()[precision.facts.rate] is None:
            return None
        usable = _RATES[: _RATES.index(precision.facts.rate) + 1]
        rates = [self.tf32_flop_per_s or 0.0]
        for each in usable:
            saving = WINOGRAD_SAVING if winograd and each in self.winograd else 1.0
            rates.append((self._own_rates()[each] or 0.0) * saving)
        return max(rates)

    def _own_rates(self) -> Mapping[str, float | None]:
        own = (self.fp32_flop_per_s, self.fp16_flop_per_s, self.int8_op_per_s)
        return dict(zip(_RATES, own, strict=True))


def peak_to_plain(peak: DevicePeak) -> dict[str, Any]:
    """Plain data for a result file, the same in each process: a set has another order in each."""
    return {**to_plain(peak), "winograd": sorted(map(str, peak.winograd))}


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """What beside its rates decides how well a kernel fills a GPU.

    ``matrix_int8`` is whether its matrix units multiply INT8: Volta's multiply FP16 alone.
    ``embedded`` GPUs share the memory of a small CPU. ``asynchronous``: copies into shared memory
    run beside the arithmetic, from Ampere on.
    """

    multiprocessors: int
    clock_hz: float
    matrix_units: bool
    matrix_int8: bool
    embedded: bool
    asynchronous: bool


@dataclass(frozen=True, slots=True)
class PeakLookup:
    """Result of a search by name: one row of the table, or the names of candidates."""

    peak: DevicePeak | None
    candidates: tuple[str, ...] = ()


def gpu_peak(device_name: str) -> PeakLookup:
    """Find a GPU by the name that its driver gives, or by the table's own name.

    A name that fits exactly wins; otherwise capital letters, punctuation and the words NVIDIA,
    Tesla and GeForce do not count. A name that several rows have (all Jetson Orin say "Orin"), or
    that only resembles some, gives candidates and no peak; so does one whose spaces are elsewhere.

    >>> gpu_peak("NVIDIA A100-SXM4-80GB").peak.name
    'A100 SXM 80GB'
    >>> gpu_peak("A100").candidates
    ('A100 SXM 40GB', 'A100 PCIe 40GB', 'A100 SXM 80GB', 'A100 PCIe 80GB')
    """
    table = _gpu_table()
    exact = [peak for names, peak in table if device_name in names]
    if len(exact) == 1:
        return PeakLookup(exact[0])
    wanted = _words(device_name)
    alike = [peak for names, peak in table if any(_words(name) == wanted for name in names)]
    if len(alike) == 1 and not exact:
        return PeakLookup(alike[0])
    near = exact or alike or _spaced_otherwise(wanted, table)
    near = near or [peak for names, peak in table if _resembles(wanted, names)]
    return PeakLookup(None, tuple(peak.name for peak in near))


def measure_cpu_peaks(
    threads: int,
    *,
    seconds: float = 0.5,
    products: Sequence[tuple[str, ...]] = (),
    python: str = sys.executable,
) -> DevicePeak:
    """Time matrix products, a copy and a maximum; each for about ``seconds``.

    numpy's product is timed, and those of ``products``: modules to run, each with its arguments,
    that take the threads and the seconds besides and print ``label`` and ``fp32_flop_per_s`` as
    JSON. The fastest counts: a row must not be above the peak because its library is faster than
    that of the trial. One that fails is left out; the source names those that were timed.

    Each runs in an interpreter of its own, because a BLAS takes its number of threads from the
    start of the process. FP16 and INT8 stay unknown: numpy has no kernels for them, and those of
    onnxruntime may be several times as fast as FP32. The best of many repetitions counts, so that a
    short disturbance does not lower the peak; a machine that is busy all the time does.

    Raises:
        UsageError: fewer than one thread, or no time.
        DeviceError: numpy's trial did not end, for want of memory for example.
    """
    if threads < 1 or seconds <= 0:
        raise UsageError(
            f"cannot measure a CPU with {threads} threads for {seconds:g} s\n"
            "expected at least one thread and a time above 0"
        )
    report = _numpy_trial(threads, seconds, python)
    rates = {f"numpy {report['numpy']}": float(report["fp32_flop_per_s"])}
    for program in products:
        rates |= _product_trial(program, threads, seconds, python)
    fastest = max(rates, key=lambda label: rates[label])
    others = [label for label in rates if label != fastest]
    than = f", faster than {' and '.join(others)}" if others else ""
    return DevicePeak(
        name=cpu_model(),
        fp32_flop_per_s=rates[fastest],
        tf32_flop_per_s=None,
        fp16_flop_per_s=None,
        int8_op_per_s=None,
        bytes_per_s=float(report["bytes_per_s"]),
        cache_bytes=int(report["cache_bytes"]),
        winograd=frozenset(),  # onnxruntime's CPU kernels have none: microsoft/onnxruntime#12834
        source=f"measured: FP32 matrix product by {fastest}{than}; copy, maximum",
        threads=threads,
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def faster_of(one: DevicePeak, other: DevicePeak) -> DevicePeak:
    """The best rates of two trials of one CPU."""
    best = max(one, other, key=lambda peak: peak.fp32_flop_per_s)
    bytes_per_s = max(one.bytes_per_s, other.bytes_per_s)
    return replace(best, bytes_per_s=bytes_per_s)


_NO_SPEED: Final = "the speed of this CPU could not be measured"


def _numpy_trial(threads: int, seconds: float, python: str) -> Mapping[str, Any]:
    try:
        return _run_trial(("deploykit.costs.cpu_trial",), threads, seconds, python)
    except (OSError, subprocess.SubprocessError, ValueError) as exc:
        own_words = exc.stderr if isinstance(exc, subprocess.CalledProcessError) else None
        said = (own_words or str(exc)).strip().splitlines()
        raise DeviceError(
            f"{_NO_SPEED}\n"
            f"reason: {said[-1] if said else type(exc).__name__}\n"
            "it needs 0.6 GiB of free memory; try again when the machine is idle"
        ) from exc


def _product_trial(
    program: tuple[str, ...], threads: int, seconds: float, python: str
) -> dict[str, float]:
    """The rate of a product by its label; nothing where the program fails."""
    try:
        report = _run_trial(program, threads, seconds, python)
        return {str(report["label"]): float(report["fp32_flop_per_s"])}
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
        return {}


def _run_trial(
    program: tuple[str, ...], threads: int, seconds: float, python: str
) -> Mapping[str, Any]:
    command = [python, "-m", *program, str(threads), str(seconds)]
    # The variables are set for the child only; this process has its threads already.
    limited = dict.fromkeys(_THREAD_VARIABLES, str(threads))
    done = subprocess.run(
        command,
        env=os.environ | limited,
        capture_output=True,
        text=True,
        # Three trials of about ``seconds`` each; ten leave room for repetitions that take longer.
        timeout=_TRIAL_START_S + 10 * seconds,
        check=True,
    )
    report: Mapping[str, Any] = json.loads(done.stdout)
    return report


def gpu_names() -> tuple[str, ...]:
    """The GPUs of the table, by its own names."""
    return tuple(peak.name for _, peak in _gpu_table())


def gpu_facts(name: str) -> GpuFacts | None:
    """The facts of the GPU that the table calls ``name``; ``None`` for any other device.

    >>> gpu_facts("L4").multiprocessors, gpu_facts("Xeon")
    (58, None)
    """
    return _facts_table().get(name)


@cache
def _facts_table() -> Mapping[str, GpuFacts]:
    return {row["name"]: _facts(row) for row in _rows()}


def _facts(row: Mapping[str, str]) -> GpuFacts:
    matrix = row["matrix_units"] == "yes"
    return GpuFacts(
        multiprocessors=int(row["sms"]),
        clock_hz=float(row["clock_mhz"]) * _MEGA,
        matrix_units=matrix,
        matrix_int8=matrix and row["compute_capability"] != _VOLTA,
        embedded=row["name"].startswith("Jetson"),
        asynchronous=int(row["compute_capability"].partition(".")[0]) >= _AMPERE,
    )


def _rows() -> list[dict[str, str]]:
    text = resources.files(__package__).joinpath("gpu_peaks.csv").read_text("utf-8")
    return list(csv.DictReader(text.splitlines()))


@cache
def _gpu_table() -> tuple[tuple[tuple[str, ...], DevicePeak], ...]:
    """Rows of the table, each with all names of its GPU."""
    return tuple(((row["name"], *row["driver_names"].split(";")), _peak(row)) for row in _rows())


def _peak(row: Mapping[str, str]) -> DevicePeak:
    # Without matrix units FP16, too, is computed where Winograd's algorithm pays.
    fp16_vector = row["matrix_units"] == "no"
    return DevicePeak(
        name=row["name"],
        fp32_flop_per_s=float(row["fp32_tflops"]) * _TERA,
        tf32_flop_per_s=_tera(row["tf32_tflops"]),
        fp16_flop_per_s=_tera(row["fp16_tflops"]),
        int8_op_per_s=_tera(row["int8_tops"]),
        bytes_per_s=float(row["bandwidth_gb_s"]) * _GIGA,
        cache_bytes=int(float(row["l2_mib"]) * _MIB),
        winograd=frozenset(map(Precision, _RATES[: 2 if fp16_vector else 1])),
        source=row["source"],
        compute_capability=row["compute_capability"],
    )


def _tera(text: str) -> float | None:
    return float(text) * _TERA if text else None


def _words(name: str) -> tuple[str, ...]:
    found = re.findall(r"[a-z0-9]+", name.casefold())
    return tuple(word for word in found if word not in _VENDOR_WORDS)


def _spaced_otherwise(
    wanted: tuple[str, ...], table: Sequence[tuple[tuple[str, ...], DevicePeak]]
) -> list[DevicePeak]:
    """GPUs one of whose names has the same letters and digits in a row: L40 S is no L40."""
    joined = "".join(wanted)
    return [
        peak for names, peak in table if joined and joined in {"".join(_words(n)) for n in names}
    ]


def _resembles(wanted: tuple[str, ...], names: tuple[str, ...]) -> bool:
    """True if one name has all words of the other."""
    asked = set(wanted)
    known = [set(_words(name)) for name in names]
    return bool(asked) and any(asked <= words or words <= asked for words in known if words)
