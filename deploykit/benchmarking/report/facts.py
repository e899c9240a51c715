"""Machine, switches and time of a run as text for reports.

An environment is plain data from a file, so nothing is taken for granted about what it holds.
"""

from __future__ import annotations

from datetime import datetime
from math import isfinite
from typing import TYPE_CHECKING, Any, Final

from deploykit.core.errors import DataError
from deploykit.core.serialization import Source, from_plain
from deploykit.costs.peaks import DevicePeak

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from deploykit.benchmarking.results import BenchmarkResult, BenchmarkRun, Switches

    Facts = dict[str, str]

_GIB: Final = 2**30
_PLAIN: Final = 1e3
_LONG: Final = 1e9
_PREFIXES: Final = {"P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3}


def figure(number: float) -> str:
    """A number for people: four digits, and no power of ten before it is needed.

    >>> figure(0.123456), figure(98765.4), figure(3e12)
    ('0.1235', '98,765', '3e+12')
    """
    return f"{number:,.0f}" if _PLAIN <= abs(number) < _LONG else f"{number:.4g}"


def tail_text(found: float | None, bare: float | None) -> str:
    """A percentile, in brackets where it has no interval; empty where it is not known.

    >>> tail_text(1.5, 1.5), tail_text(None, 1.5), tail_text(None, None)
    ('1.5', '(1.5)', '')
    """
    if found is not None:
        return figure(found)
    return "" if bare is None else f"({figure(bare)})"


def rate_text(rate: float, unit: str) -> str:
    """A rate in three digits, with the prefix that fits it.

    >>> rate_text(72.54e9, "FLOP/s"), rate_text(3.35e12, "B/s"), rate_text(999.9e9, "OP/s")
    ('72.5 GFLOP/s', '3.35 TB/s', '1 TOP/s')
    """
    # Rounded first, so that nothing becomes a thousand of the smaller unit.
    rounded = float(f"{rate:.3g}")
    fitting = ((prefix, scale) for prefix, scale in _PREFIXES.items() if rounded >= scale)
    prefix, scale = next(fitting, ("", 1.0))
    return f"{figure(rounded / scale)} {prefix}{unit}"


def machine_name(environment: Mapping[str, Any]) -> str:
    """The GPU's name, otherwise the processor's.

    >>> machine_name({"gpus": [{"name": "NVIDIA L4"}], "cpu": "Some CPU"})
    'NVIDIA L4'
    """
    names = [gpu["name"] for gpu in _gpus(environment) if gpu.get("name")]
    return str((names or [environment.get("cpu") or "unknown machine"])[0])


def machine_facts(environment: Mapping[str, Any]) -> Facts:
    """Facts about the machine by label; unknown ones are left out."""
    cores = environment.get("logical_cores")
    packages = environment.get("packages")
    versions = packages.items() if isinstance(packages, dict) else ()
    given = {
        "GPU": "; ".join(map(_gpu_text, _gpus(environment))),
        "Driver": f"CUDA {environment['driver']}" if environment.get("driver") else "",
        "CPU": str(environment.get("cpu") or ""),
        "Logical cores": str(cores or ""),
        "Memory": _gib(environment.get("memory_bytes")),
        "System": str(environment.get("platform") or ""),
        "Python": str(environment.get("python") or ""),
        "Packages": ", ".join(f"{name} {version}" for name, version in versions),
    }
    return {label: text for label, text in given.items() if text}


def machines_of(run: BenchmarkRun) -> list[Facts]:
    """The facts of each machine of a run, without repetition; one as a rule."""
    found: list[Facts] = []
    for result in run.results:
        facts = machine_facts(result.environment)
        if facts not in found:
            found.append(facts)
    return found


def peak_of(environment: Mapping[str, Any]) -> DevicePeak | None:
    """The peaks that were kept with a result, ``None`` where there are none to be read."""
    kept = environment.get("peak")
    if not isinstance(kept, dict):
        return None
    later = {"threads": None, "measured": None, "compute_capability": None}
    try:
        peak = from_plain(DevicePeak, {**later, **kept}, Source("the peak"))
    except DataError:
        return None
    return peak if _is_possible(peak) else None


def peaks_of(run: BenchmarkRun) -> list[DevicePeak]:
    """The peaks of all devices that measured something, without repetition."""
    given = (peak_of(result.environment) for result in run.results)
    return list(dict.fromkeys(peak for peak in given if peak is not None))


def peak_text(peak: DevicePeak) -> str:
    """The best rates of a device with where they are from."""
    rates = {
        "FP32": peak.fp32_flop_per_s,
        "TF32": peak.tf32_flop_per_s,
        "FP16": peak.fp16_flop_per_s,
        "INT8": peak.int8_op_per_s,
    }
    known = [
        f"{name} {rate_text(rate, 'OP/s' if name == 'INT8' else 'FLOP/s')}"
        for name, rate in rates.items()
        if rate is not None
    ]
    threads = "" if peak.threads is None else f", {peak.threads} threads"
    memory = f"memory {rate_text(peak.bytes_per_s, 'B/s')}"
    return f"{peak.name}: {', '.join((*known, memory))} ({peak.source}{threads})"


def switch_facts(switches: Switches) -> Facts:
    """The switches of a measurement by label, as text."""
    given = {
        "Scenario": switches.scenario,
        "Preset": switches.preset,
        "CUDA graph": "on" if switches.cuda_graph else "off",
        "Transfers": "inside each query" if switches.transfers else "left out",
        "Streams": str(switches.streams),
        "Queue": None if switches.queue == 1 else f"{switches.queue} queries under way",
        "Waiting": "spinning" if switches.spin else "sleeping",
        "Threads": None if switches.threads is None else str(switches.threads),
        "Warm-up": f"at least {switches.warmup_s:g} s",
        "Measured": f"at least {switches.duration_s:g} s and {switches.min_samples:,} samples",
        "Rate": None if switches.rate_per_s is None else f"{switches.rate_per_s:g} queries/s",
        "Bound": None if switches.bound_ms is None else f"p99 within {switches.bound_ms:g} ms",
        "Seed": str(switches.seed),
    }
    return {label: text for label, text in given.items() if text is not None}


def common_switches(results: Iterable[BenchmarkResult]) -> Facts:
    """The switches that have one value in all results."""
    given = [switch_facts(result.switches) for result in results]
    if not given:
        return {}
    first, *others = given
    return {
        label: text
        for label, text in first.items()
        if all(other.get(label) == text for other in others)
    }


def versions_of(run: BenchmarkRun) -> list[str]:
    """Every version of deploykit that measured something, without repetition."""
    given = (result.environment.get("deploykit") for result in run.results)
    return list(dict.fromkeys(str(version) for version in given if version))


def period_of(run: BenchmarkRun) -> str:
    """Period in which the run was measured, to the minute.

    A moment that is no ISO 8601 is shown as it is.
    """
    moments = sorted({result.created for result in run.results})
    if not moments:
        return ""
    first, last = _moment(moments[0]), _moment(moments[-1])
    if first == last:
        return first
    # 11 characters: the date and the space behind it.
    day = first[:11]
    return f"{first} to {last.removeprefix(day)}"


def _moment(text: str) -> str:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{moment:%Y-%m-%d %H:%M %Z}".strip()


def _is_possible(peak: DevicePeak) -> bool:
    others = (peak.tf32_flop_per_s, peak.fp16_flop_per_s, peak.int8_op_per_s)
    rates = (peak.fp32_flop_per_s, peak.bytes_per_s, *(rate for rate in others if rate is not None))
    return all(isfinite(rate) and rate > 0 for rate in rates)


def _gpus(environment: Mapping[str, Any]) -> list[dict[str, Any]]:
    given = environment.get("gpus")
    return [gpu for gpu in given if isinstance(gpu, dict)] if isinstance(given, list) else []


def _gpu_text(gpu: Mapping[str, Any]) -> str:
    text = str(gpu.get("name") or "unknown GPU")
    if gpu.get("compute_capability"):
        text += f", compute capability {gpu['compute_capability']}"
    memory = _gib(gpu.get("memory_bytes"))
    return f"{text}, {memory}" if memory else text


def _gib(size_bytes: Any) -> str:
    return f"{size_bytes / _GIB:.1f} GiB" if _is_number(size_bytes) else ""


def _is_number(value: Any) -> bool:
    # In Python a bool is an int.
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
