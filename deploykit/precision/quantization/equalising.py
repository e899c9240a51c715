"""Equalisation of an FP32 graph for INT8 or FP8: how strong for each value, by its noise on images.

The scale of a channel is range^a / weight^(1 - a), with its own range and that of the weights that
read it (Xiao et al. 2022, SmoothQuant, https://arxiv.org/abs/2211.10438, equation 4); the shift is
the middle of its range. From the best strength a on each channel's scale is moved to where the
expected noise is least (`least_noise`). Which of these scales, and whether to shift, is decided by
the noise in the outputs of the layers, computed on rows of other images.

The steps of FP8 are relative, so that scales change little: what helps is to take off what is
common to all rows, the mean of a channel, as the rest is smaller.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.comparison.validation import outputs_of, validate
from deploykit.core.errors import ValidationError
from deploykit.core.precision import Precision
from deploykit.graph import qdq, write_graph
from deploykit.graph.activations import expose_named
from deploykit.graph.qdq.plan import INT8
from deploykit.precision.calibration.collection import calibrate
from deploykit.precision.quantization.least_noise import Channels

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.comparison.reference import Reference
    from deploykit.core.progress import ProgressTask
    from deploykit.core.specs import Runner
    from deploykit.graph import LoadedGraph
    from deploykit.graph.qdq import LinearGroup, QdqPlan, Scaling
    from deploykit.graph.qdq.plan import QdqFormat
    from deploykit.precision.calibration.data import CalibrationData
    from deploykit.precision.calibration.table import CalibrationTable

    Floats = NDArray[np.float32]
    Batches = Sequence[Floats]


STRENGTHS: Final = (0.35, 0.5, 0.65, 0.8)
"""Shares of a channel's range that its scale takes up; the rest goes to the weights."""

PAYS: Final = 0.8
"""Noise that must be left at most, of that without: a Mul for less is not worth its reading."""

PAYS_FOLDED: Final = 0.97
"""The same where other constants compute the equalised value: that it is no accident is enough."""

ROWS: Final = 320
"""Rows of a value that a strength is judged on, of all images together."""

OUTLIERS: Final = 1 / 4
"""Share of the rows that are the largest of their image: they decide what a range must hold."""

CLIPPINGS: Final = (1.0, 0.8, 0.6)
"""Ranges that are tried, as shares of the largest value."""

NARROWEST: Final = 3 / 2
"""Least range of a channel, of the median: one that was at rest may wake on another image.

Behind a GELU, channels that showed 0.2 on some photographs reached twice the median on others.
"""

_EVERY: Final = 3
"""Of so many images one is held out of the ranges of channels."""

_LEAST: Final = np.float32(1e-6)
"""Range of a channel that is always zero."""

RANGE_IMAGES: Final = 128
"""Images that the ranges of equalised values come from; 100 million numbers each."""


@dataclass(frozen=True)
class Equalised:
    """The graph with equalised values, its ranges, and the strength of each by the value's name.

    A strength of 0 shifts alone; refined scales have that which they began with. ``roomy`` is
    ``table`` with room for other images in the ranges of INT8 values, see `with_room`.
    ``left_out`` says why there is no such graph.
    """

    graph: LoadedGraph | None = None
    table: CalibrationTable | None = None
    roomy: CalibrationTable | None = None
    strengths: Mapping[str, float] = field(default_factory=dict)
    left_out: str | None = None


@dataclass
class SeenChannels:
    """What images showed of a value: ranges and means of channels (K,), and some rows (n, K)."""

    low: Floats | None = None
    high: Floats | None = None
    rows: list[Floats] = field(default_factory=list)
    total: NDArray[np.float64] | float = 0.0
    squares: NDArray[np.float64] | float = 0.0
    count: int = 0
    within: NDArray[np.float64] | float = 0.0

    def widen(self, rows: Floats, images: int = 1) -> None:
        """Let the ranges hold ``rows``, as many of each of ``images``, one after another."""
        low, high = rows.min(axis=0), rows.max(axis=0)
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)
        self.total = self.total + rows.sum(axis=0, dtype=np.float64)
        self.squares = self.squares + np.square(rows).sum(axis=0, dtype=np.float64)
        self.count += len(rows)
        each = len(rows) // images
        spread = rows.reshape(images, each, -1).var(axis=1, dtype=np.float64)
        self.within = self.within + spread.sum(axis=0) * each

    @property
    def between_images(self) -> float:
        """Share of a channel's variance that lies between images: the median of the channels.

        The intraclass correlation: 0 where the rows of an image are as different as those of all,
        1 where they are alike, so that a range is that of as many samples as there are images.
        """
        count = max(self.count, 1)
        total = np.asarray(self.squares / count - np.square(np.asarray(self.total / count)))
        varies = total > 0
        if not varies.any():
            return 0.0
        within = np.broadcast_to(np.asarray(self.within / count), total.shape)[varies]
        return float(np.clip(np.median(1.0 - within / total[varies]), 0.0, 1.0))

    @property
    def mean(self) -> Floats:
        """Of each channel, over the rows that the ranges hold."""
        return np.asarray(self.total / max(self.count, 1), np.float32)

    def power_around(self, shift: Floats) -> Floats:
        """Mean square of each channel less ``shift``, over the same rows."""
        squares = np.asarray(self.squares / max(self.count, 1))
        power = squares - 2.0 * shift * self.mean + np.square(shift.astype(np.float64))
        found: Floats = np.maximum(power, 0).astype(np.float32)
        return found


@dataclass(frozen=True)
class FoundScaling:
    """The best way to equalise one value, and the noise that it leaves of that without."""

    scaling: Scaling
    strength: float
    left: float


@dataclass(frozen=True)
class EqualisationImages:
    """Images (N, C, H, W) for each part of an equalisation.

    Strengths are found on ``seen``; ``held_out`` are others with their FP32 answers, which the new
    graph must give as well. Ranges of the new values come from ``data``, and are added to
    ``table``.
    """

    seen: Batches
    held_out: tuple[Batches, Batches]
    data: CalibrationData
    table: CalibrationTable


def equalise_channels(
    reference: Reference, plan: QdqPlan, given: EqualisationImages, path: Path, task: ProgressTask
) -> Equalised:
    """Equalise what `qdq.linear_groups` finds and write the graph to ``path``.

    Raises:
        DataError: an image gives NaN.
        ModelFileError: the graph is too large without its weights.
    """
    graph = reference.graph
    groups = _with_channels(reference, qdq.linear_groups(graph.model, plan), given.seen)
    keys = qdq.find_keys(graph.model, plan)
    values = [*(group.value for group in groups), *keys]
    if not values:
        return Equalised()
    with reference.runners.open(expose_named(graph.model, values)) as runner:
        seen = observe(runner, values, given.seen, task)
    chosen = _chosen(groups, seen, plan.format)
    shifts = [(source, seen[name].mean) for name, source in keys.items()]
    if not chosen and not shifts:
        return Equalised()
    pairs = [(group, one.scaling) for group, one in chosen]
    model, changed = qdq.equalise(graph.model, pairs, shifts)
    parents = (graph.artifact.sha256, *graph.artifact.parents)
    written = write_graph(model, path, Precision.FP32, parents)
    try:
        _prove(reference, written, given.held_out)
    except ValidationError as exc:
        reason = " ".join(str(exc).splitlines())
        return Equalised(left_out=f"channel equalisation was left out: {reason}")
    names = tuple(changed[name] for name in changed if name in plan.activations)
    table = _with_ranges(reference, written, names, given, task)
    strengths = {group.value: one.strength for group, one in chosen}
    roomy = None
    if not plan.format.dtype.is_floating_point():  # whose steps at the outer end are wide anyway
        shares = {changed[group.value]: seen[group.value].between_images for group, _ in chosen}
        roomy = with_room(table, shares)
    return Equalised(written, table, roomy, {**dict.fromkeys(keys, 0.0), **strengths})


def with_room(table: CalibrationTable, shares: Mapping[str, float]) -> CalibrationTable:
    """The table with ranges for images of other subjects, by the share of variance between images.

    Equalised channels all reach the end of their value's range, so that an image that is beyond in
    any of them clips. Where ``shares`` of a value is 1, all rows of that image do: in the last
    attention of an untrained Swin-T that took 10 dB from images of a subject never seen. The range
    is the largest magnitude times 1 + share, by every method: to clip is what it must not do.
    """

    def widened(amax: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
        found = dict(amax)
        for name in shares.keys() & amax.keys():
            ranges = amax[name]
            found[name] = dict.fromkeys(ranges, max(ranges.values()) * (1.0 + shares[name]))
        return found

    return replace(table, amax=widened(table.amax), trial_amax=widened(table.trial_amax))


def _with_channels(
    reference: Reference, groups: Sequence[LinearGroup], seen: Batches
) -> list[LinearGroup]:
    """The groups; those of an attention with the channels of their source, if these are found."""
    model = reference.graph.model
    sources = {group.value: group.source for group in groups if group.source is not None}
    if not sources or not seen:
        return [group for group in groups if group.source is None]
    graph = expose_named(qdq.number_channels(model, list(sources.values())), list(sources))
    with reference.runners.open(graph) as runner:
        numbered = runner.run({runner.inputs[0].name: seen[0]})
    found = []
    for group in groups:
        if group.source is None:
            found.append(group)
        elif channels := qdq.channels_of(np.asarray(numbered[group.value], np.float32)):
            found.append(replace(group, source=replace(group.source, channels=channels)))
    return found


def _chosen(
    groups: Sequence[LinearGroup], seen: Mapping[str, SeenChannels], wanted: QdqFormat
) -> list[tuple[LinearGroup, FoundScaling]]:
    """The groups whose noise falls to a share of what it was that pays, and how."""
    found = [(group, best_scaling(group, seen[group.value], wanted)) for group in groups]
    return [
        (group, one)
        for group, one in found
        if one is not None and one.left <= (PAYS_FOLDED if group.folds else PAYS)
    ]


def _with_ranges(
    reference: Reference,
    graph: LoadedGraph,
    names: tuple[str, ...],
    given: EqualisationImages,
    task: ProgressTask,
) -> CalibrationTable:
    """The table with the ranges of the equalised values."""
    data, table = given.data, given.table
    held_out = data.held_out[: RANGE_IMAGES // 4]
    few = replace(data, indices=data.indices[:RANGE_IMAGES], held_out=held_out)
    more = calibrate(graph, names, few, open_runner=reference.runners.open, task=task)
    trial = {**table.trial_amax, **more.trial_amax} if table.trial_amax else {}
    return replace(table, amax={**table.amax, **more.amax}, trial_amax=trial)


def _prove(reference: Reference, graph: LoadedGraph, held_out: tuple[Batches, Batches]) -> None:
    """Hold the graph against the FP32 answers of the one that it was made from.

    Raises:
        ValidationError: it computes something else.
    """
    batches, expected = (each[:2] for each in held_out)
    with reference.runners.open(graph.split()) as runner:
        found = outputs_of(runner, batches)
    names = ("the equalised graph", "the fp32 graph")
    validate(
        found, expected, precision=Precision.FP32, names=names, head=reference.head
    ).require_pass()


def observe(
    runner: Runner, names: Sequence[str], batches: Batches, task: ProgressTask
) -> dict[str, SeenChannels]:
    """Ranges of the values ``names``, and rows of every third image, which are in no range.

    A strength that fits the images of the ranges alone is found out by the others.
    """
    feed = runner.inputs[0].name
    total = sum(map(len, batches))
    each, done = max(1, ROWS * _EVERY // total), 0
    random = np.random.default_rng(0)  # the same images give the same graph
    found: dict[str, SeenChannels] = {}
    for batch in batches:
        values = runner.run({feed: batch})
        held_out = np.arange(done, done + len(batch)) % _EVERY == _EVERY - 1
        for name in names:
            seen = found.setdefault(name, SeenChannels())
            value = values[name]
            # Attention in windows has those of an image one after another on the first axis.
            is_held = np.repeat(held_out, -(-len(value) // len(batch)))[: len(value)]
            if not is_held.all():
                # Rows that are shared out unevenly are those of nobody: no share between images.
                images = 1 if len(value) % len(batch) else int((~held_out).sum())
                seen.widen(_rows(value[~is_held]), images)
            if is_held.any():
                kept = _some(_rows(value[is_held]), each * int(held_out.sum()), random)
                seen.rows.append(kept)
        done += len(batch)
        task.update(done, total, "ranges of channels")
    return found


def _rows(value: Floats) -> Floats:
    return value.reshape(-1, value.shape[-1])


def _some(rows: Floats, count: int, random: np.random.Generator) -> Floats:
    """Rows by chance, with the largest among them."""
    largest = np.argsort(np.abs(rows).max(axis=1))[-max(1, round(count * OUTLIERS)) :]
    others = random.choice(len(rows), min(len(rows), count), replace=False)
    kept: Floats = rows[np.unique([*largest, *others])]
    return kept


def best_scaling(
    group: LinearGroup, seen: SeenChannels, wanted: QdqFormat = INT8
) -> FoundScaling | None:
    """The shift and scale with the least noise in what the layers of a group compute.

    ``None`` where there were too few images to tell.
    """
    if seen.low is None or seen.high is None or not seen.rows:
        return None
    rows, ends = np.concatenate(seen.rows), np.stack([seen.low, seen.high])
    weight = np.concatenate(group.weights, axis=1)
    exact = rows @ weight

    def noise(scaling: Scaling) -> float:
        # Of the other images alone: a channel that they show too narrow clips these rows.
        largest = np.abs((ends - scaling.shift) / scaling.scale).max()
        return _noise(rows, weight, exact, scaling, float(largest), wanted)

    before = noise(qdq.Scaling(np.zeros_like(seen.low), np.ones_like(seen.low)))
    found = [
        FoundScaling(scaling, strength, noise(scaling))
        for strength, scaling in _candidates(ends, seen, weight, wanted)
    ]
    best = min(found, key=lambda one: one.left)
    return replace(best, left=best.left / before if before else 1.0)


def _candidates(
    ends: Floats, seen: SeenChannels, weight: Floats, wanted: QdqFormat
) -> Iterator[tuple[float, Scaling]]:
    """Scalings by the ``ends`` (2, K) of the channels' ranges, for a weight (K, N)."""
    if wanted.dtype.is_floating_point():
        yield 0.0, qdq.Scaling(seen.mean, np.ones_like(seen.mean))
        return
    reach = np.maximum(np.abs(weight).max(axis=1), _LEAST)
    for shift in (np.zeros_like(ends[0]), ends.mean(axis=0)):
        width = np.abs(ends - shift).max(axis=0)
        width = np.maximum(width, max(_LEAST, np.median(width) * NARROWEST))
        channels = Channels(width, seen.power_around(shift), weight)
        powers = {a: width**a / reach ** (1 - a) for a in STRENGTHS}
        for strength, scale in powers.items():
            yield strength, qdq.Scaling(shift, _centred(scale))
        nearest = min(STRENGTHS, key=lambda strength: channels.noise_of(powers[strength]))
        yield nearest, qdq.Scaling(shift, _centred(channels.refine(powers[nearest])))


def _centred(scale: Floats) -> Floats:
    """The same scales with a geometric mean of 1."""
    found: Floats = (scale / np.exp(np.log(scale).mean())).astype(np.float32)
    return found


def _noise(
    rows: Floats,
    weight: Floats,
    exact: Floats,
    scaling: Scaling,
    largest: float,
    wanted: QdqFormat,
) -> float:
    """Sum of squares of what eight bits change in ``exact``, by the best of a few ranges."""
    equalised = (rows - scaling.shift) / scaling.scale
    scaled = weight * scaling.scale[:, None]
    rounded = qdq.round_to(scaled, qdq.channel_scales(scaled, 1, wanted), wanted)
    target = exact - scaling.shift @ weight
    shares = (1.0,) if wanted.dtype.is_floating_point() else CLIPPINGS
    tried = [
        qdq.round_to(equalised, qdq.scale_of(largest * share, wanted), wanted) for share in shares
    ]
    nearest = min(tried, key=lambda values: float(np.square(equalised - values).sum()))
    return float(np.square(target - nearest @ rounded).sum())
