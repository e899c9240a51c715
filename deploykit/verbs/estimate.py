"""`deploykit estimate`: the latency of a network on GPUs that are not here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from deploykit.core.choices import DefinitionChoices
from deploykit.core.errors import ControlFlowError, ExportError, ModelFileError, UsageError
from deploykit.core.html_tables import html_table
from deploykit.core.precision import Precision
from deploykit.core.progress import SilentProgress
from deploykit.core.serialization import to_plain
from deploykit.costs.estimates import basis, estimate, known_gpu, runs
from deploykit.costs.intervals import Interval
from deploykit.costs.kernels import in_precision
from deploykit.costs.latency import GRAPH, Timing
from deploykit.costs.peaks import gpu_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import onnx_ir as ir

    from deploykit.bundle.manifest import Bundle
    from deploykit.core.progress import Progress
    from deploykit.core.specs import ModelSpec
    from deploykit.costs.network import NetworkCost
    from deploykit.costs.peaks import DevicePeak

BATCHES: Final = (1, 8, 32)
NO_GRAPH: Final = Timing(graph=False, host=True)
"""Launched kernel by kernel by a host that waits for each batch; the input lies on the GPU."""

_SECONDS: Final = 3600
_MILLION: Final = 1_000_000


@dataclass(frozen=True)
class EstimateCall:
    """What is asked for.

    ``gpus`` are names as `costs.peaks.gpu_peak` takes them, ``None`` all that are known.
    ``precisions`` is empty for FP32, FP16 and INT8 of an FP32 network, and for what a converted
    graph has. ``batches`` are ``None`` for 1, 8 and 32, and for the one of a graph that has a fixed
    one. ``prices`` are per hour, by the table's name of the GPU, in whatever currency.
    """

    gpus: tuple[str, ...] | None
    precisions: tuple[Precision, ...] = ()
    batches: tuple[int, ...] | None = None
    prices: Mapping[str, float] = field(default_factory=dict)
    graph: bool = True
    choices: DefinitionChoices = field(default_factory=DefinitionChoices)

    def __post_init__(self) -> None:
        if not self.peaks:
            raise UsageError("no GPU is named\ngive one, as --gpu L4")
        if self.batches is not None and min(self.batches, default=0) < 1:
            wrong = min(self.batches, default="empty")
            raise UsageError(f"--batch is {wrong}\nexpected whole numbers from 1 up, as 1,8,32")

    @property
    def peaks(self) -> tuple[DevicePeak, ...]:
        """The GPUs, each once.

        Raises:
            UnknownNameError: one is not in the table.
            UsageError: one may be several of the table.
        """
        names = gpu_names() if self.gpus is None else self.gpus
        return tuple({peak.name: peak for peak in map(known_gpu, names)}.values())


@dataclass(frozen=True)
class EstimateRow:
    """One GPU, precision and batch; the price of a million images where one of the GPU is known."""

    gpu: str
    precision: Precision
    batch: int
    latency_ms: Interval
    throughput_per_s: Interval
    limit_ms: float
    published_rows: int
    price_per_million: Interval | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class EstimateReport:
    """The rows, the fastest GPU first within a precision and batch, and what to know of them."""

    target: str
    rows: tuple[EstimateRow, ...]
    left_out: Mapping[str, str]
    notes: tuple[str, ...]

    def _repr_html_(self) -> str:
        """The rows, as notebooks show them."""
        columns = ("GPU", "precision", "batch", "ms", "90 % low", "high", "images/s")
        rows = [
            (
                row.gpu,
                str(row.precision),
                str(row.batch),
                f"{row.latency_ms.value:.3g}",
                f"{row.latency_ms.low:.3g}",
                f"{row.latency_ms.high:.3g}",
                f"{row.throughput_per_s.value:,.0f}",
            )
            for row in self.rows
        ]
        return html_table(columns, rows, title=self.target, right=columns[2:], notes=self.notes)


def estimate_to_plain(report: EstimateReport) -> dict[str, Any]:
    """Plain data for ``--json``."""
    return {
        "target": report.target,
        "rows": to_plain(report.rows),
        "left_out": dict(report.left_out),
        "fitted_on": basis(),
        "notes": list(report.notes),
    }


def gpus_of(texts: Sequence[str]) -> tuple[str, ...]:
    """The names in ``texts``, each one or several with commas between: no GPU's name has one.

    >>> gpus_of(["L4,T4", "A10"])
    ('L4', 'T4', 'A10')
    """
    return tuple(name for text in texts for part in text.split(",") if (name := part.strip()))


def parse_price(text: str) -> tuple[str | None, float]:
    """A price per hour, of a GPU that is named or of the only one.

    >>> parse_price("L4=0.8"), parse_price("2")
    (('L4', 0.8), (None, 2.0))

    Raises:
        UsageError: there is no number.
    """
    name, _, number = text.rpartition("=")
    try:
        return name or None, float(number)
    except ValueError:
        raise UsageError(f"--price-per-hour is {text!r}\n{_EXPECTED_PRICE}") from None


_EXPECTED_PRICE: Final = (
    "expected a number above 0: --price-per-hour 0.8 of the one GPU, --price-per-hour L4=0.8 of "
    "several"
)


def prices_of(
    given: Iterable[tuple[str | None, float]], gpus: tuple[str, ...] | None
) -> dict[str, float]:
    """Prices by the table's name of their GPU.

    Raises:
        UsageError: one is not above 0, names no GPU where there are several, or names one that is
            not estimated.
        UnknownNameError: it names a GPU that is not in the table.
    """
    asked = None if gpus is None else {known_gpu(name).name for name in gpus}
    found: dict[str, float] = {}
    for name, price in given:
        if not 0 < price < inf:
            raise UsageError(f"--price-per-hour is {price:g}\n{_EXPECTED_PRICE}")
        if name is None and (asked is None or len(asked) != 1):
            raise UsageError(
                f"a price of {price:g} is for one GPU, and several are estimated\n"
                "say of which it is, as --price-per-hour L4=0.8"
            )
        gpu = next(iter(asked or ())) if name is None else known_gpu(name).name
        if asked is not None and gpu not in asked:
            raise UsageError(
                f"the price of {name} is for a GPU that is not estimated\n"
                "add it to --gpu, or leave out its price"
            )
        found[gpu] = price
    return found


def estimate_target(
    target: str | ModelSpec, call: EstimateCall, progress: Progress | None = None
) -> EstimateReport:
    """Estimate every GPU in every precision and batch.

    ``progress`` shows the steps: of a definition most of the time is its export.

    Raises:
        UsageError: the target does not take these choices, or has another precision.
        DeploykitError: the target cannot be read or exported.
    """
    progress = progress or SilentProgress()
    _require_rates(call)  # before an export
    source = _read(target, call.choices, progress)
    precisions = _precisions(source, call.precisions)
    batches = call.batches or _usual_batches(source.model)
    costs = _costs(source.model, batches, progress)
    rows: list[EstimateRow] = []
    left_out: dict[str, str] = {}
    for precision in precisions:
        for cost in costs.values():
            wanted = in_precision(cost, precision) if source.own is Precision.FP32 else cost
            here = [_row(wanted, peak, precision, call) for peak in call.peaks]
            known = [row for row in here if row is not None]
            rows += sorted(known, key=lambda row: row.latency_ms.value)
            left_out |= {
                f"{peak.name}, {precision}": _has_none(peak, precision)
                for peak, row in zip(call.peaks, here, strict=True)
                if row is None
            }
    if not rows:
        raise _nothing(left_out.values())
    notes = dict.fromkeys((*source.notes, *(note for row in rows for note in row.notes)))
    return EstimateReport(source.name, tuple(rows), left_out, tuple(notes))


def _require_rates(call: EstimateCall) -> None:
    """Refuse a call of precisions that none of its GPUs has."""
    cells = [(peak, precision) for precision in call.precisions for peak in call.peaks]
    if cells and not any(runs(*cell) for cell in cells):
        raise _nothing(_has_none(*cell) for cell in cells)


def _has_none(peak: DevicePeak, precision: Precision) -> str:
    return f"{peak.name} has no {precision.upper()}"


def _nothing(reasons: Iterable[str]) -> UsageError:
    return UsageError(f"{'; '.join(reasons)}\nask for another precision or GPU: --precision fp16")


def _row(
    cost: NetworkCost, peak: DevicePeak, precision: Precision, call: EstimateCall
) -> EstimateRow | None:
    found = estimate(cost, peak, precision, GRAPH if call.graph else NO_GRAPH)
    if found is None:
        return None
    latency, price = found.latency_ms, call.prices.get(peak.name)
    per_s = Interval(*(cost.batch / ms * 1e3 for ms in (latency.value, latency.high, latency.low)))
    million = None
    if price is not None:
        each_ms = price / _SECONDS / 1e3 * _MILLION / cost.batch
        million = Interval(*(each_ms * ms for ms in (latency.value, latency.low, latency.high)))
    return EstimateRow(
        gpu=peak.name,
        precision=precision,
        batch=cost.batch,
        latency_ms=latency,
        throughput_per_s=per_s,
        limit_ms=found.limit_ms,
        published_rows=found.published,
        price_per_million=million,
        notes=found.notes,
    )


@dataclass(frozen=True)
class _Source:
    """A graph that can be counted, and the precision that it has."""

    name: str
    model: ir.Model
    own: Precision
    notes: tuple[str, ...] = ()


def _precisions(source: _Source, asked: tuple[Precision, ...]) -> tuple[Precision, ...]:
    if source.own.facts.is_source:
        return asked or (Precision.FP32, Precision.FP16, Precision.INT8)
    other = next((each for each in asked if each is not source.own), None)
    if other is not None:
        raise UsageError(
            f"{source.name} is {source.own} already, and is estimated as it is\n"
            f"leave out --precision {other}, or give its FP32 network"
        )
    return (source.own,)


def _usual_batches(model: ir.Model) -> tuple[int, ...]:
    from deploykit.graph.shapes import fixed_batch

    only = fixed_batch(model)
    return BATCHES if only is None else (only,)


def _costs(model: ir.Model, batches: tuple[int, ...], progress: Progress) -> dict[int, NetworkCost]:
    found: dict[int, NetworkCost] = {}
    with progress.step("count kernels") as task:
        for batch in batches:
            task.update(len(found), len(batches), f"batch {batch}")
            found[batch] = _cost(model, batch)
    return found


def _cost(model: ir.Model, batch: int) -> NetworkCost:
    from deploykit.backends._registry import graph_judge
    from deploykit.graph.kernel_costs import network_cost

    return network_cost(model, batch, graph_judge().run_once)


def _read(target: str | ModelSpec, choices: DefinitionChoices, progress: Progress) -> _Source:
    from deploykit.bundle.reading import read_bundle
    from deploykit.sources.targets import Kind, find_definition, kind_of

    if not isinstance(target, str):
        return _of_definition(target, progress)
    kind = kind_of(target)
    if kind is Kind.DEFINITION:
        with progress.step("definition"):  # which refuses a size that it does not take
            spec = find_definition(target, choices)
        return _of_definition(spec, progress)
    if kind is Kind.ONNX:
        return _of_file(target, Path(target), choices, None)

    def read(bundle: Bundle) -> _Source:
        bundle.require_unchanged(bundle.model_path.name)
        crop = bundle.manifest.preprocessing.crop
        return _of_file(target, bundle.model_path, choices, crop)

    return read_bundle(Path(target), read)


def _of_file(
    target: str, path: Path, choices: DefinitionChoices, crop: tuple[int, int] | None
) -> _Source:
    from deploykit.graph import read_graph, tidy
    from deploykit.graph.foreign import mended_of
    from deploykit.graph.shapes import fix_image_size
    from deploykit.sources.targets import refuse_definition_options

    read, size = read_graph(path), choices.size_of_file or crop
    was_open = size is not None and fix_image_size(read.model, size)
    fixed = replace(choices, image_size=None, open_size=None) if was_open else choices
    refuse_definition_options(target, fixed)
    tidy(read.model, rename=False)
    return _Source(target, read.model, read.artifact.precision, mended_of(read.model).notes)


def _of_definition(spec: ModelSpec, progress: Progress) -> _Source:
    """The graph of a definition whose values nobody drew: what it costs does not depend on them."""
    from deploykit.models._initialise import nothing_drawn
    from deploykit.sources.torch_export import EXPORTERS, export_module

    with progress.step("build"), nothing_drawn():
        module = spec.build().eval()
    refused: ExportError | ModelFileError | None = None
    for exporter in EXPORTERS:
        with progress.step(f"export by {exporter}"), TemporaryDirectory() as folder:
            try:
                graph = export_module(spec, module, Path(folder) / "model.onnx", exporter)
                return _Source(spec.name, graph.model, Precision.FP32)
            except ControlFlowError:
                raise
            except (ExportError, ModelFileError) as error:
                refused = refused or error
    raise refused or ExportError(f"no exporter takes {spec.name}")
