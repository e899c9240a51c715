"""Options of `deploykit bench`, and what they ask for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from deploykit.bundle.folders import DEFAULT_FOLDER
from deploykit.cli import _options
from deploykit.cli._options import NamesBackends
from deploykit.core.precision import OWN

if TYPE_CHECKING:
    from deploykit.benchmarking.matrix.cells import Matrix
    from deploykit.benchmarking.results import Switches
    from deploykit.core.choices import DefinitionChoices
    from deploykit.core.precision import Precision
    from deploykit.core.sizes import ShapeProfile


_MIB: Final = 2**20
_QUEUE: Final = 2
"""Queries under way where they overlap: as many as trtexec has, and the queue of an engine."""

_STREAMS: Final = 4
"""Queries at the same time where there is more than one: as many as an engine serves at once."""

PRESETS: Final = {
    # trtexec's defaults: warm-up, duration and iterations are the same in both; what changed in
    # 11 are CUDA graph (on), transfers between host and GPU (off) and waiting by spinning (on).
    # Both keep two queries under way; --exposeDMA waits for each before the next.
    "trtexec10": {"cuda_graph": False, "transfers": True, "spin": False, "overlap": True},
    "trtexec10-exposedma": {
        "cuda_graph": False,
        "transfers": True,
        "spin": False,
        "overlap": False,
    },
    "trtexec11": {"cuda_graph": True, "transfers": False, "spin": True, "overlap": True},
    "trtexec11-exposedma": {
        "cuda_graph": True,
        "transfers": False,
        "spin": True,
        "overlap": False,
    },
}
_TRTEXEC_EXTENT: Final = (0.2, 3.0, 10)
"""Warm-up in s, duration in s, queries: each at least."""


@dataclass(frozen=True)
class Asked:
    """The options of a measurement, as click gives them."""

    targets: tuple[str, ...]
    everything: bool
    models: str | None
    batch: str | None
    precision: str | None
    flagged: tuple[Precision, ...]
    backend: str | None
    device: str
    filters: tuple[str, ...]
    quick: bool
    preset: str | None
    scenario: str
    streams: int | None
    rate_per_s: float | None
    bound_ms: float | None
    warmup_s: float | None
    duration_s: float | None
    min_samples: int | None
    threads: int | None
    cuda_graph: bool | None
    transfers: bool | None
    spin: bool | None
    overlap: bool | None
    seed: int
    head: str | None
    head_output: str | None
    sizes: ShapeProfile
    time_limit: float | None
    memory_limit: int | None
    work: Path
    fresh: bool
    output: Path | None

    @property
    def cell_s(self) -> float:
        """Time for one cell."""
        from deploykit.verbs.bench import cell_s

        return self.time_limit or cell_s(quick=self.quick)

    @property
    def choices(self) -> DefinitionChoices:
        """What is said of the targets that are exported to be measured."""
        from deploykit.core.choices import DefinitionChoices

        return DefinitionChoices(head=self.head, head_output=self.head_output)

    @property
    def memory_bytes(self) -> int | None:
        """Memory for one cell."""
        return None if self.memory_limit is None else self.memory_limit * _MIB


def read_matrix(asked: Asked) -> Matrix:
    """What is to be measured.

    Raises:
        UsageError: nothing was named, or an option is not what it should be.
    """
    from deploykit.benchmarking.matrix.cells import Matrix, parse_batches

    batches = parse_batches(asked.batch or ("1" if asked.quick else "1,8,32"))
    backends = tuple(_parts(asked.backend))
    return Matrix(
        targets=_targets(asked),
        batches=batches,
        precisions=_precisions(asked) or None,
        backends=backends or None,
        filters=asked.filters,
        only_best=asked.quick and not backends,
        fp32_unasked=asked.quick,
    )


def read_one_cell(asked: Asked) -> tuple[int, Precision | None, str | None]:
    """Batch, precision and backend of ``--ab``, which measures one cell of each target.

    Raises:
        UsageError: more than one of them, or options that only a matrix has.
    """
    from deploykit.benchmarking.matrix.cells import parse_batches
    from deploykit.core.errors import UsageError

    batches, precisions = parse_batches(asked.batch or "1"), _precisions(asked)
    backends = _parts(asked.backend)
    many = max(map(len, (batches, precisions, backends))) > 1
    if many or asked.targets or asked.models or asked.everything or asked.filters:
        raise UsageError(
            "--ab measures two targets with one batch, precision and backend\nas in: "
            "deploykit bench --ab engines/old engines/new --batch 8 --backend ort"
        )
    return batches[0], next(iter(precisions), None), next(iter(backends), None)


def read_switches(asked: Asked) -> Switches:
    """How it is to be measured.

    Raises:
        UsageError: options that do not go together.
    """
    from deploykit.benchmarking.harness.scenarios import check_switches
    from deploykit.benchmarking.results import Switches

    warmup_s, duration_s, min_samples = _extent(asked)
    way = _gpu_switches(asked)
    single = asked.scenario == "single-stream"
    usual = 1 if single else _STREAMS
    switches = Switches(
        scenario=asked.scenario,
        streams=asked.streams or usual,
        warmup_s=warmup_s if asked.warmup_s is None else asked.warmup_s,
        duration_s=duration_s if asked.duration_s is None else asked.duration_s,
        min_samples=asked.min_samples or min_samples,
        seed=asked.seed,
        preset=asked.preset,
        threads=asked.threads,
        rate_per_s=asked.rate_per_s,
        bound_ms=asked.bound_ms,
        cuda_graph=way["cuda_graph"],
        transfers=way["transfers"],
        spin=way["spin"],
        # A preset's queue is of the single stream; the other scenarios overlap by themselves.
        queue=_QUEUE if way["overlap"] and (single or asked.preset is None) else 1,
    )
    check_switches(switches)
    return switches


def _extent(asked: Asked) -> tuple[float, float, int]:
    if asked.preset is not None:
        return _TRTEXEC_EXTENT
    from deploykit.verbs.bench import extent

    return extent(quick=asked.quick)


def _gpu_switches(asked: Asked) -> dict[str, bool]:
    from deploykit.core.errors import UsageError
    from deploykit.verbs.bench import OUR_WAY

    given = {"cuda_graph": asked.cuda_graph, "transfers": asked.transfers, "spin": asked.spin}
    given["overlap"] = asked.overlap
    if asked.preset is None:
        return {name: OUR_WAY[name] if on is None else on for name, on in given.items()}
    preset = PRESETS[asked.preset]
    for name, on in given.items():
        if on is not None and on is not preset[name]:
            raise UsageError(
                f"--preset {asked.preset} has {name} {'on' if preset[name] else 'off'}\n"
                "leave out the preset, or the option that contradicts it"
            )
    return preset


def _targets(asked: Asked) -> tuple[str, ...]:
    from deploykit.benchmarking.matrix.cells import first_look
    from deploykit.models import names
    from deploykit.verbs.bench import require_targets

    named = (*asked.targets, *_parts(asked.models))
    if asked.everything:
        named = (*(first_look() if asked.quick else names()), *named)
    return require_targets(named)


def _precisions(asked: Asked) -> tuple[Precision, ...]:
    from deploykit.benchmarking.matrix.cells import in_order

    return in_order([*asked.flagged, *_parts(asked.precision)])


def _parts(text: str | None) -> list[str]:
    return [] if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _help(precision: Precision) -> str:
    noise = "; architectures get ranges from noise" if precision.facts.needs_calibration else ""
    return f"As --precision {precision}; may be combined{noise}."


_MATRIX = (
    click.option("--all", "everything", is_flag=True, help="Every architecture of `list`."),
    click.option("--models", metavar="A,B", help="Architectures, instead of TARGETs."),
    click.option("--batch", metavar="1,8,32", help="Batches.  [default: 1,8,32; with --quick 1]"),
    click.option(
        "--precision",
        metavar="fp32,fp16,int8",
        help="Precisions.  [default: all on engines, FP32 on CPUs]",
    ),
    _options.precision_flags({each: _help(each) for each in OWN}),
    click.option(
        "--backend", cls=NamesBackends, metavar="A,B", help="BACKENDS.  [default: what works here]"
    ),
    _options.gpu,
    click.option(
        "--filter",
        "filters",
        multiple=True,
        metavar="TEXT",
        help="Only cells whose name (resnet50/ort/fp32/b1) has it, or fits: 'resnet*/b1'.",
    ),
    click.option(
        "--quick",
        is_flag=True,
        help="A first look: short, batch 1, FP32, the best backend; of --all one per family.",
    ),
    *_options.head,
    _options.sizes,
)
_HOW = (
    click.option(
        "--preset",
        type=click.Choice(list(PRESETS)),
        help="Measure as NVIDIA's trtexec of that version does; -exposedma: with --exposeDMA.",
    ),
    click.option(
        "--scenario",
        type=click.Choice(["single-stream", "offline", "server"]),
        default="single-stream",
        show_default=True,
        help="One query after the other, several at a time, or queries that arrive at random.",
    ),
    click.option("--streams", type=click.IntRange(min=1), metavar="N", help="Queries at a time."),
    click.option(
        "--rate", "rate_per_s", type=float, metavar="N", help="Server: queries per second."
    ),
    click.option(
        "--bound",
        "bound_ms",
        type=float,
        metavar="MS",
        help="Server: find the highest rate with 99 % of the latencies within this.",
    ),
    click.option("--warmup", "warmup_s", type=float, metavar="S", help="At least, until stable."),
    click.option("--duration", "duration_s", type=float, metavar="S", help="At least."),
    click.option("--min-samples", type=click.IntRange(min=1), metavar="N", help="At least."),
    click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Of CPU backends."),
    click.option("--graph/--no-graph", "cuda_graph", default=None, help="CUDA graphs."),
    click.option(
        "--transfers/--no-transfers", default=None, help="Copies to and from the GPU count."
    ),
    click.option("--spin/--no-spin", default=None, help="Wait by asking, or asleep."),
    click.option(
        "--overlap/--no-overlap",
        default=None,
        help="On engines: queue the next query while one computes.",
    ),
    click.option("--seed", default=0, show_default=True, metavar="N", help="Of inputs, arrivals."),
)
_LIMITS = (
    click.option(
        "--time-limit",
        type=click.FloatRange(min=0, min_open=True),
        metavar="S",
        help="Per cell.  [default: 600; with --quick 90]",
    ),
    click.option(
        "--memory-limit",
        type=click.IntRange(min=1),
        metavar="MIB",
        help="Per cell.  [default: 90 % of the machine's]",
    ),
    click.option(
        "--work",
        type=click.Path(path_type=Path),
        default=DEFAULT_FOLDER / "bench",
        show_default=True,
        metavar="FOLDER",
        help="Keeps graphs and engines for the next run.",
    ),
    click.option("--fresh", is_flag=True, help="Do not go on with an interrupted run."),
    click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Results, with reports beside it.  [default: benchmarks/results/bench-TIME.json]",
    ),
)

options = _options.all_of((*_MATRIX, *_HOW, *_LIMITS))
"""All options of a measurement."""
