"""How far `deploykit estimate` is from published TensorRT latencies, and its constants.

    python -m benchmarks.estimate            # cross-validates, fits, writes the results
    python -m benchmarks.estimate --rows FILE.csv   # judges the constants as they are on other rows
    python -m benchmarks.estimate --intervals       # the intervals again, without fitting

Every row of ``deploykit/costs/published_latency.csv`` is estimated by constants that were fitted
without it: without all rows of its GPU, without all rows of its family of networks, and without
both at once. Beside it stand FLOP over the peak rate, and a roofline without efficiencies. The
intervals are made of the errors of the third kind, and counted on errors that had no part in them.

The loss is the mean of |log ratio|, smoothed below 5 %; a source weighs the root of its rows, so
that one with 410 rows does not decide alone. Fitting begins at the same constants in each fold.

Results: ``results/estimate.json`` and ``.md``; the constants:
``deploykit/costs/latency_model.json``.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.core.atomic import write_whole
from deploykit.core.precision import Precision
from deploykit.costs.intervals import half_width
from deploykit.costs.kernels import Kernels, for_batch, in_precision
from deploykit.costs.latency import (
    CONSTANTS_FILE,
    PINNED_BYTES_PER_S,
    Constants,
    GpuModel,
    constants_to_plain,
    fitted,
    fitted_constants,
    kernel_times,
    network_s,
    work_on,
)
from deploykit.costs.limits import physical_limit
from deploykit.costs.network import LayerCost, NetworkCost, Product
from deploykit.costs.peaks import gpu_facts, gpu_peak

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.costs.peaks import DevicePeak

    Floats = NDArray[np.float64]
    Mask = NDArray[np.bool_]

HERE: Final = Path(__file__).parent
NETWORKS: Final = HERE / "published_networks.json"
PUBLISHED: Final = "published_latency.csv"
RESULTS: Final = HERE / "results" / "estimate.json"
CONSTANTS: Final = HERE.parent / "deploykit" / "costs" / CONSTANTS_FILE

PRECISIONS: Final = {
    "FP32": Precision.FP32,
    "TF32": Precision.FP32,
    "FP16": Precision.FP16,
    "INT8": Precision.INT8,
}
"""TensorRT's FP32 is TF32 on GPUs that have it."""

FAMILY: Final = re.compile(
    r"se_resnext|resnext|res2net|resnest|resnet|efficientnet|mobilenet|mnasnet|shufflenet|squeezenet"
    r"|densenet|dpn|vgg|alexnet|googlenet|inception|hrnet|xception|darknet|ghostnet|regnet"
)


@dataclass(frozen=True)
class Row:
    """One published figure."""

    source: str
    gpu: str
    model: str
    input: str
    precision: str
    batch: int
    latency_ms: float
    meas: str
    notes: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        sides = [int(side) for side in self.input.split("x")]
        return sides[0], sides[-1]

    @property
    def family(self) -> str:
        """What the network is a variant of."""
        found = FAMILY.match(self.model.lower())
        return self.model.lower() if found is None else found[0]

    @property
    def is_graph_timed(self) -> bool:
        """Whether a CUDA graph was replayed, or the device kept busy by throughput."""
        return self.meas == "offline" or (
            "CUDA graph" in self.notes and "no CUDA graph" not in self.notes
        )

    @property
    def copied_bytes_per_s(self) -> float | str | None:
        """Rate of the copy of the input that was timed too; ``"pageable"`` is fitted."""
        if "H2D of INT8" in self.notes and "start_from_device" not in self.notes:
            return PINNED_BYTES_PER_S * 4  # its images have a byte where ours have four
        here = ("resident", "no data transfer", "start_from_device")
        if self.meas != "host-sync" or any(each in self.notes for each in here):
            return None
        return "pageable"


def read_rows(path: Path | None = None) -> list[Row]:
    """The rows of a file like ``published_latency.csv``; that of the package if not given."""
    if path is None:
        text = resources.files("deploykit.costs").joinpath(PUBLISHED).read_text("utf-8")
    else:
        text = path.read_text("utf-8")
    return [
        Row(
            source=row["source_id"],
            gpu=row["gpu"],
            model=row["model"],
            input=row["input"],
            precision=row["precision"],
            batch=int(row["batch"]),
            latency_ms=float(row["latency_ms"]),
            meas=row["meas"],
            notes=row["notes"],
        )
        for row in csv.DictReader(text.splitlines())
    ]


def network_key(row: Row) -> str:
    """Where the network of a row is in `published_networks.json`."""
    return f"{row.model.lower().replace('_bn', '')}@{row.input}"


@cache
def networks() -> Mapping[str, Any]:
    """The tables of costs."""
    found: Mapping[str, Any] = json.loads(NETWORKS.read_text("utf-8"))
    return found


@cache
def network(key: str) -> tuple[NetworkCost, tuple[int, ...]]:
    """The FP32 cost of one image, each kernel once, and how often each is there."""
    entry = networks()[key]
    layers = tuple(
        LayerCost(
            name=kinds,
            kinds=tuple(kinds.split("+")),
            precision=Precision.FP32,
            multiply_adds=0 if product is None else Product(*product).multiply_adds,
            weight_bytes=4 * weights,
            input_bytes=4 * given,
            output_bytes=4 * made,
            winograd=winograd,
            product=None if product is None else Product(*product),
        )
        for _, kinds, product, winograd, weights, given, made in entry["kernels"]
    )
    sizes = (4 * entry[name] for name in ("weights", "input", "output"))
    return NetworkCost(1, layers, *sizes), tuple(kernel[0] for kernel in entry["kernels"])


@cache
def work_of(key: str, precision: Precision, batch: int) -> tuple[Kernels, Floats, NetworkCost]:
    """Kernels of a published row, how often each is there, and the cost with all of them."""
    cost, counts = network(key)
    found = in_precision(for_batch(cost, batch), precision)
    every = tuple(
        layer for layer, count in zip(found.layers, counts, strict=True) for _ in range(count)
    )
    return Kernels.of(found.layers), np.array(counts, float), replace(found, layers=every)


def peak_named(name: str) -> DevicePeak:
    """The rates of a GPU by the table's name."""
    found = gpu_peak(name).peak
    if found is None:
        raise SystemExit(f"{name} is not in the table of GPUs")
    return found


class Problem:
    """All rows as arrays: one for each kernel of each row, and one for each row."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.work = [
            work_of(network_key(row), PRECISIONS[row.precision], row.batch) for row in rows
        ]
        lengths = [len(counts) for _, counts, _ in self.work]
        self.starts = np.cumsum([0, *lengths[:-1]])
        of_kernel = np.repeat(np.arange(len(rows)), lengths)
        names = list(asdict(Kernels.of(())))
        self.kernels = Kernels(
            *(np.concatenate([getattr(each[0], name) for each in self.work]) for name in names)
        )
        self.counts = np.concatenate([counts for _, counts, _ in self.work])
        facts = [gpu_facts(peak_named(row.gpu).name) for row in rows]
        gpus = [
            GpuModel.of(peak_named(row.gpu), fact)
            for row, fact in zip(rows, facts, strict=True)
            if fact is not None
        ]
        gpu = GpuModel(
            **{
                name: np.array([getattr(gpu, name) for gpu in gpus])[of_kernel]
                for name in asdict(gpus[0])
            }
        )
        self.on_gpu = work_on(self.kernels, gpu)
        self.clock_hz = np.array([fact.clock_hz for fact in facts if fact is not None])
        self.embedded = np.array([fact.embedded for fact in facts if fact is not None])
        self.graph = np.array([row.is_graph_timed for row in rows])
        self.host = np.array([row.meas == "host-sync" for row in rows])
        self.input_bytes = np.array([cost.input_bytes for _, _, cost in self.work], float)
        self.measured_ms = np.array([row.latency_ms for row in rows])

    def labels(self, name: str) -> NDArray[np.str_]:
        """A property of each row."""
        return np.array([getattr(row, name) for row in self.rows])

    @cached_property
    def limit_ms(self) -> Floats:
        """The physical limit of each row."""
        return np.array(
            [
                physical_limit(cost, peak_named(row.gpu)).limit_ms
                for row, (_, _, cost) in zip(self.rows, self.work, strict=True)
            ]
        )

    @cached_property
    def compute_ms(self) -> Floats:
        """FLOP over the peak rate."""
        found = (
            physical_limit(cost, peak_named(row.gpu)).compute_ms
            for row, (_, _, cost) in zip(self.rows, self.work, strict=True)
        )
        return np.array([each or 0.0 for each in found])

    def roofline_ms(self) -> Floats:
        """A roofline of each kernel, without efficiencies, launches and caches."""
        ones = dict.fromkeys(asdict(START), 1.0)
        plain = Constants(**{**ones, "work0": 0.0, "winograd": 1.0})
        times = kernel_times(self.on_gpu, plain)
        found: Floats = np.add.reduceat(times.busy_s * self.counts, self.starts) * 1e3
        return found

    def estimated_ms(self, constants: Constants) -> Floats:
        """Each row by these constants, never below its limit."""
        times = kernel_times(self.on_gpu, constants)
        busy_s = np.add.reduceat(times.busy_s * self.counts, self.starts)
        launches = np.add.reduceat(times.launches * self.counts, self.starts)
        found = network_s(
            busy_s,
            launches,
            self._copied_s(constants),
            (self.clock_hz, self.embedded),
            (self.graph, self.host),
            constants,
        )
        return np.maximum(found * 1e3, self.limit_ms)

    def _copied_s(self, constants: Constants) -> Floats:
        pageable, rate = self.copies
        found = self.input_bytes * np.where(pageable, 1e-9 / constants.copy_gb_per_s, rate)
        return np.where(self.embedded, 0.0, found)

    @cached_property
    def copies(self) -> tuple[Mask, Floats]:
        """Whether the copy of a row is from pageable memory, and seconds per byte of the others."""
        rates = [row.copied_bytes_per_s for row in self.rows]
        pageable = np.array([isinstance(rate, str) for rate in rates])
        return pageable, np.array([1 / rate if isinstance(rate, float) else 0.0 for rate in rates])


START: Final = Constants(
    int8=0.7,
    fp16=0.6,
    tf32=0.7,
    vector=0.7,
    grouped=0.4,
    depthwise=0.1,
    winograd=1.7,
    work0=2000.0,
    synchronous=3.0,
    bandwidth=0.7,
    pointwise=0.6,
    cache_bytes=20.0,
    launch_us=6.0,
    launch_unreplayed_us=12.0,
    host_us=12.0,
    embedded_host=3.0,
    pointwise_launches=1.5,
    copied=0.2,
    copy_gb_per_s=2.0,
)
"""Where every fit begins: round numbers, by hand.

``cache_bytes`` is about what Jia and others measured of the L2 caches of T4 and V100
(arXiv:1903.07486).
"""

HIGHEST: Final = {
    **dict.fromkeys(
        ("int8", "fp16", "tf32", "vector", "grouped", "depthwise", "bandwidth", "pointwise"), 0.95
    ),
    "winograd": 2.25,
    "copied": 1.0,
}
"""What a share of a peak, and Winograd's saving, cannot pass."""

SMOOTH: Final = 0.05
PRIOR: Final = 0.08
"""Pull of the constants to where they began, so that what no row decides stays there."""

_FOLD_EVALUATIONS: Final = 8


def fit(problem: Problem, used: Mask, evaluations: int = _FOLD_EVALUATIONS) -> Constants:
    """Constants with the least robust error on the rows ``used``."""
    from scipy.optimize import least_squares

    names = list(asdict(START))
    begin = np.log(list(asdict(START).values()))
    highest = np.log([HIGHEST.get(name, 1e6) for name in names])
    sources = problem.labels("source")[used]
    weights = np.array([1 / np.sqrt(np.sum(sources == each)) for each in sources])
    weights = np.sqrt(weights / weights.sum())

    def residuals(at: Floats) -> Floats:
        found = problem.estimated_ms(Constants(**dict(zip(names, np.exp(at), strict=True))))
        error = np.log(found / problem.measured_ms)[used]
        smooth = np.sqrt(np.maximum(np.sqrt(error**2 + SMOOTH**2) - SMOOTH, 1e-12))
        return np.concatenate([smooth * weights, PRIOR * (at - begin)])

    found = least_squares(
        residuals, begin, bounds=(-np.inf, highest), diff_step=1e-3, max_nfev=evaluations
    )
    return Constants(**dict(zip(names, map(float, np.exp(found.x)), strict=True)))


HELD_OUT: Final[Mapping[str, tuple[str, ...]]] = {
    "GPU": ("gpu",),
    "family": ("family",),
    "GPU and family": ("gpu", "family"),
}
"""What is left out, by the properties that rows have in common with the ones that judge."""


def held_out(problem: Problem, kind: str) -> Floats:
    """Each row by constants that were fitted without everything that is like it (rows,)."""
    labels = [problem.labels(name) for name in HELD_OUT[kind]]
    found = np.zeros(len(problem.rows))
    for combination in sorted(set(zip(*labels, strict=True))):
        like = [each == value for each, value in zip(labels, combination, strict=True)]
        judged = np.logical_and.reduce(like)
        constants = fit(problem, ~np.logical_or.reduce(like))
        found[judged] = problem.estimated_ms(constants)[judged]
        sys.stderr.write(f"without {' and '.join(combination)}: {judged.sum()} rows\n")
    return found


def relative_error(estimated_ms: Floats, measured_ms: Floats) -> Floats:
    """|estimated / measured - 1| of each row."""
    return np.abs(estimated_ms / measured_ms - 1)


def medians(problem: Problem, estimated_ms: Floats) -> dict[str, float]:
    """Median error on all rows, and on those that were timed by a CUDA graph."""
    errors = relative_error(estimated_ms, problem.measured_ms)
    return {"all": float(np.median(errors)), "graph": float(np.median(errors[problem.graph]))}


def by_label(problem: Problem, name: str, columns: Mapping[str, Floats]) -> dict[str, Any]:
    """For each value of a property: its rows and the median error of each column."""
    labels = problem.labels(name)
    return {
        value: {
            "rows": int((labels == value).sum()),
            **{
                column: float(
                    np.median(relative_error(found, problem.measured_ms)[labels == value])
                )
                for column, found in columns.items()
            },
        }
        for value in sorted(set(labels.tolist()))
    }


def groups_of(problem: Problem, errors: Floats) -> dict[tuple[str, str], list[float]]:
    """|log ratio| of held-out rows by GPU and precision."""
    found: dict[tuple[str, str], list[float]] = {}
    for row, error in zip(problem.rows, errors, strict=True):
        key = (row.gpu, str(PRECISIONS[row.precision]))
        found.setdefault(key, []).append(float(error))
    return found


def coverage(
    groups: Mapping[tuple[str, str], Sequence[float]], gpu: str | None = None
) -> dict[str, float]:
    """Share of held-out errors, of all GPUs or one, within an interval that was made without them.

    Without all rows of the GPU, and without the row itself.
    """
    found: dict[str, list[bool]] = {_UNSEEN: [], _SEEN: []}
    for group, errors in groups.items():
        if gpu not in {None, group[0]}:
            continue
        others = {each: found for each, found in groups.items() if each[0] != group[0]}
        unseen = half_width(group, others)
        found[_UNSEEN] += [error <= unseen for error in errors]
        for at, error in enumerate(errors):
            rest = [*errors[:at], *errors[at + 1 :]]
            found[_SEEN].append(error <= half_width(group, {**groups, group: rest}))
    return {name: float(np.mean(held)) for name, held in found.items()}


_UNSEEN: Final = "made without all rows of the GPU"
_SEEN: Final = "made without the row itself"


def intervals_of(groups: Mapping[tuple[str, str], Sequence[float]]) -> dict[str, Any]:
    """Coverage, and half of the interval of each group, and of one that was never seen."""
    widths = {f"{gpu}, {each}": half_width((gpu, each), groups) for gpu, each in sorted(groups)}
    widths["any other"] = half_width(("", ""), groups)
    gpus = sorted({gpu for gpu, _ in groups})
    return {
        "coverage": coverage(groups),
        "coverage by GPU": {gpu: coverage(groups, gpu)[_SEEN] for gpu in gpus},
        "half-width": widths,
    }


def judge(problem: Problem, estimated: Mapping[str, Floats]) -> dict[str, Any]:
    """Median errors of each column, by everything that rows are told apart by."""
    return {
        "median error": {name: medians(problem, found) for name, found in estimated.items()},
        **{
            name: by_label(problem, name, estimated)
            for name in ("gpu", "family", "precision", "source")
        },
    }


def results(problem: Problem) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is written: the judgement, and the file of constants."""
    estimated = {f"without {kind}": held_out(problem, kind) for kind in HELD_OUT}
    errors = np.abs(np.log(estimated["without GPU and family"] / problem.measured_ms))
    beside = {"FLOP / peak": problem.compute_ms, "roofline": problem.roofline_ms()}
    constants = fit(problem, np.ones(len(problem.rows), bool), 2 * _FOLD_EVALUATIONS)
    fitted = problem.estimated_ms(constants)
    found = {
        "rows": len(problem.rows),
        "graph-timed rows": int(problem.graph.sum()),
        **judge(problem, {**estimated, "fitted on all": fitted, **beside}),
        **intervals_of(groups_of(problem, errors)),
        "constants": constants_to_plain(constants),
        "estimated_ms": {
            name: [float(f"{each:.4g}") for each in column] for name, column in estimated.items()
        },
    }
    groups = groups_of(problem, errors)
    model = {
        "constants": constants_to_plain(constants),
        "rows": len(problem.rows),
        "sources": len(set(problem.labels("source").tolist())),
        "latency_ms": [float(problem.measured_ms.min()), float(problem.measured_ms.max())],
        "median_error": medians(problem, estimated["without GPU and family"]),
        "operators": sorted(
            {kind for _, _, cost in problem.work for each in cost.layers for kind in each.kinds}
        ),
        "errors": [
            [gpu, precision, [round(error, 3) for error in sorted(found)]]
            for (gpu, precision), found in sorted(groups.items())
        ],
    }
    return found, model


def page(found: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# Estimates beside published latencies",
        "",
        (
            f"`python -m benchmarks.estimate`: {found['rows']} rows, of which "
            f"{found['graph-timed rows']} were timed by a CUDA graph."
        ),
        "Each figure is a median of |estimate / published - 1|.",
        "",
        "| | all rows | graph-timed |",
        "|---|---|---|",
    ]
    for name, error in found["median error"].items():
        lines.append(f"| {name} | {error['all']:.1%} | {error['graph']:.1%} |")
    for name, share in found["coverage"].items():
        lines += ["", f"Intervals of 90 % hold {share:.1%} of the rows, {name}."]
    for name in ("gpu", "family", "precision", "source"):
        columns = [each for each in next(iter(found[name].values())) if each != "rows"]
        lines += ["", f"## By {name}", "", f"| {name} | rows | {' | '.join(columns)} |"]
        lines.append("|---|---|" + "---|" * len(columns))
        for value, row in found[name].items():
            figures = " | ".join(f"{row[column]:.1%}" for column in columns)
            lines.append(f"| {value} | {row['rows']} | {figures} |")
    lines += ["", f"Intervals that hold a row, {_SEEN}:", "", "| GPU | share |", "|---|---|"]
    lines += [f"| {gpu} | {share:.0%} |" for gpu, share in found["coverage by GPU"].items()]
    lines += [
        "",
        "## Half of an interval, as a factor",
        "",
        "| GPU, precision | factor |",
        "|---|---|",
    ]
    lines += [f"| {name} | {np.exp(width):.2f} |" for name, width in found["half-width"].items()]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> None:
    """Judge, fit and write; or judge the constants of the package on other rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, help="other rows, which nothing is fitted on")
    parser.add_argument("--intervals", action="store_true", help="the intervals alone, again")
    asked = parser.parse_args(arguments)
    if asked.intervals:
        groups = {(gpu, each): errors for gpu, each, errors in fitted()["errors"]}
        found = json.loads(RESULTS.read_text("utf-8")) | intervals_of(groups)
        _write(found)
        return
    rows = [row for row in read_rows(asked.rows) if network_key(row) in networks()]
    problem = Problem(rows)
    if asked.rows is not None:
        found = judge(problem, {"estimate": problem.estimated_ms(fitted_constants())})
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return
    found, model = results(problem)
    write_whole(CONSTANTS, json.dumps(model) + "\n")
    _write(found)


def _write(found: Mapping[str, Any]) -> None:
    write_whole(RESULTS, json.dumps(found, indent=1) + "\n")
    write_whole(RESULTS.with_suffix(".md"), page(found))
    sys.stdout.write(page(found))


if __name__ == "__main__":
    main(sys.argv[1:])
