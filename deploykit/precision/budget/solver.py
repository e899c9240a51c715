"""The choice of a format for each group: least time for each amount of noise, all at once.

A knapsack with a choice of several, whose times also depend on neighbours. Groups are decided in
their order; a state is what formats the groups have that a later neighbour still looks at, and of
each state only those choices are kept that no other beats in both time and noise. So the result is
exact as long as nothing is thinned out, which begins at `KEPT` choices of a state, fewer where
there are many states.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite, log
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

KEPT: Final = 128
"""Choices of one state that are kept, spread evenly over the logarithm of the noise."""

STATES: Final = 1024
"""States that are kept, those with the fastest and the least noisy choices; more are of dense
networks only."""

PARTIALS: Final = 8192
"""Choices that all states have together, but for `FEWEST` of each: some seconds for 100 groups."""

FEWEST: Final = 8

SILENT: Final = 1e-5
"""Noise of 50 dB: a hundred layers of FP16 leave 53, and change one answer in thousands."""


class Assignment(NamedTuple):
    """A format for each group, by its place in the table, with the time and noise it comes to."""

    ms: float
    noise: float
    formats: tuple[int, ...]


@dataclass(frozen=True)
class GroupTable:
    """Time and noise of each group (G) in each format (F), and of its edges to other groups.

    Noise is additive: power of the error of the output over power of the output. ``edges`` are of
    pairs of groups, the lower first, each a matrix (F, F) of milliseconds by the formats of both.
    What cannot be is infinite. ``base_ms`` is what no choice changes.
    """

    ms: Sequence[Sequence[float]]
    noise: Sequence[Sequence[float]]
    edges: Mapping[tuple[int, int], Sequence[Sequence[float]]] = field(default_factory=dict)
    base_ms: float = 0.0

    def evaluated(self, formats: Sequence[int]) -> Assignment:
        """The time and noise of a choice.

        >>> table = GroupTable([[1, 2], [1, 2]], [[3, 0], [4, 0]], {(0, 1): [[0, 5], [5, 0]]}, 10)
        >>> table.evaluated([0, 1])
        Assignment(ms=18, noise=3, formats=(0, 1))
        """
        ms = sum(row[at] for row, at in zip(self.ms, formats, strict=True))
        ms += sum(cost[formats[a]][formats[b]] for (a, b), cost in self.edges.items())
        noise = sum(row[at] for row, at in zip(self.noise, formats, strict=True))
        return Assignment(ms + self.base_ms, noise, tuple(formats))


@dataclass(frozen=True, slots=True)
class _Partial:
    """A choice of the first groups; ``before`` is that of all but the last of them."""

    ms: float
    noise: float
    last: int
    before: _Partial | None


def pareto(table: GroupTable) -> tuple[Assignment, ...]:
    """The choices that no other beats in both time and noise, the slowest first.

    >>> table = GroupTable([[1, 2], [1, 2]], [[3, 0], [4, 0]], {(0, 1): [[0, 5], [5, 0]]})
    >>> [choice.formats for choice in pareto(table)]
    [(1, 1), (0, 0)]
    """
    groups = len(table.ms)
    last_look = [max((b for a, b in table.edges if a == at), default=at) for at in range(groups)]
    states: dict[tuple[tuple[int, int], ...], list[_Partial]] = {(): [_Partial(0, 0, -1, None)]}
    for group in range(groups):
        grown: dict[tuple[tuple[int, int], ...], list[_Partial]] = {}
        for seen, partials in states.items():
            for place, own in enumerate(table.ms[group]):
                noise = table.noise[group][place]
                ms = own + sum(
                    table.edges[other, group][there][place]
                    for other, there in seen
                    if (other, group) in table.edges
                )
                if not (isfinite(ms) and isfinite(noise)):
                    continue
                still = tuple(
                    pair for pair in (*seen, (group, place)) if last_look[pair[0]] > group
                )
                grown.setdefault(still, []).extend(
                    _Partial(each.ms + ms, each.noise + noise, place, each) for each in partials
                )
        states = _fewer({still: _best(found) for still, found in grown.items()})
        room = min(KEPT, max(FEWEST, PARTIALS // len(states)))
        states = {still: _thinned(found, room) for still, found in states.items()}
    ended = _best(partial for found in states.values() for partial in found)
    return tuple(table.evaluated(_formats(partial)) for partial in reversed(ended))


def _best(partials: Iterable[_Partial]) -> list[_Partial]:
    """Those that no other beats in both, the fastest first."""
    kept: list[_Partial] = []
    for each in sorted(partials, key=lambda partial: (partial.ms, partial.noise)):
        if not kept or each.noise < kept[-1].noise:
            kept.append(each)
    return kept


def _thinned(partials: list[_Partial], room: int) -> list[_Partial]:
    """The fastest in each of ``room`` steps of noise, and the least noisy of all."""
    if len(partials) <= room:
        return partials
    noises = [each.noise for each in partials if each.noise > 0]
    low, high = log(min(noises)), log(max(noises))
    width = (high - low) / (room - 2) or 1.0
    steps: dict[int, _Partial] = {}
    for each in partials:
        step = -1 if each.noise <= 0 else int((log(each.noise) - low) / width)
        steps.setdefault(step, each)  # the fastest comes first
    return list(dict.fromkeys([*steps.values(), partials[-1]]))


def _fewer(
    states: dict[tuple[tuple[int, int], ...], list[_Partial]],
) -> dict[tuple[tuple[int, int], ...], list[_Partial]]:
    """The states with the fastest choices, and those with the least noisy ones, half each."""
    if len(states) <= STATES:
        return states
    fast = sorted(states, key=lambda each: states[each][0].ms)[: STATES // 2]
    quiet = sorted(states, key=lambda each: states[each][-1].noise)[: STATES // 2]
    return {each: states[each] for each in dict.fromkeys([*fast, *quiet])}


def _formats(partial: _Partial) -> list[int]:
    found = []
    current: _Partial | None = partial
    while current is not None and current.last >= 0:
        found.append(current.last)
        current = current.before
    return found[::-1]


def spread(choices: Sequence[Assignment], count: int) -> tuple[Assignment, ...]:
    """At most ``count`` of the choices, the slowest first: both ends, and others evenly in time.

    Of those with less noise than `SILENT` only the fastest is looked at: the others lose as little.

    >>> points = [Assignment(ms, 10 - ms, ()) for ms in (9, 8.9, 8.8, 5, 1)]
    >>> [point.ms for point in spread(points, 3)]
    [9, 5, 1]
    """
    silent = sum(each.noise <= SILENT for each in choices)
    choices = choices[max(0, silent - 1) :]
    if len(choices) <= count:
        return tuple(choices)
    if count == 1:
        return (choices[0],)
    slow, fast = choices[0].ms, choices[-1].ms
    wanted = [slow + (fast - slow) * at / (count - 1) for at in range(count)]
    nearest = [min(choices, key=lambda each, ms=ms: abs(each.ms - ms)) for ms in wanted]  # type: ignore[misc]  # a default binds the loop's value
    return tuple(dict.fromkeys(nearest))
