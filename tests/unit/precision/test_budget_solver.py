"""The choice of formats against trying every one, on tables of six groups."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest

from deploykit.precision.budget import solver
from deploykit.precision.budget.solver import Assignment, GroupTable, pareto, spread

GROUPS, FORMATS = 6, 4


def table_of(seed: int, *, edges: int) -> GroupTable:
    """Narrow formats are faster and noisier, by chance; neighbours of another format cost time."""
    random = np.random.default_rng(seed)
    ms = np.cumsum(random.uniform(0.1, 2, (GROUPS, FORMATS)), axis=1)
    noise = np.sort(random.lognormal(0, 2, (GROUPS, FORMATS)), axis=1)[:, ::-1]
    pairs = list(combinations(range(GROUPS), 2))
    chosen = random.permutation(len(pairs))[:edges]
    differs = 1 - np.eye(FORMATS)
    costs = {pairs[at]: (differs * random.uniform(0, 1)).tolist() for at in chosen}
    return GroupTable(ms.tolist(), noise.tolist(), costs, base_ms=1.5)


def by_trying_all(table: GroupTable) -> list[tuple[float, float]]:
    """Time and noise of every choice that no other beats, the slowest first, by numpy."""
    found = []
    for formats in product(range(FORMATS), repeat=GROUPS):
        ms = 1.5 + sum(table.ms[group][at] for group, at in enumerate(formats))
        ms += sum(cost[formats[a]][formats[b]] for (a, b), cost in table.edges.items())
        found.append((ms, sum(table.noise[group][at] for group, at in enumerate(formats))))
    found.sort()
    quietest = np.minimum.accumulate([noise for _, noise in found])
    first = [at for at in range(len(found)) if at == 0 or quietest[at] < quietest[at - 1]]
    return [found[at] for at in reversed(first)]


@pytest.mark.parametrize("edges", [0, 5, 15])
@pytest.mark.parametrize("seed", range(4))
def test_the_frontier_is_that_of_all_choices(seed: int, edges: int) -> None:
    table = table_of(seed, edges=edges)
    got = [(choice.ms, choice.noise) for choice in pareto(table)]
    assert got == [pytest.approx(pair) for pair in by_trying_all(table)]


@pytest.mark.parametrize("seed", range(4))
def test_under_each_budget_nothing_is_faster(seed: int) -> None:
    table = table_of(seed, edges=5)
    everything = [table.evaluated(formats) for formats in product(range(FORMATS), repeat=GROUPS)]
    for budget in np.quantile([each.noise for each in everything], [0.02, 0.2, 0.5, 0.9]):
        best = min(each.ms for each in everything if each.noise <= budget)
        got = [each for each in pareto(table) if each.noise <= budget]
        assert got[-1].ms == pytest.approx(best)


def test_what_cannot_be_is_not_chosen() -> None:
    table = GroupTable([[1.0, 2.0], [float("inf"), 2.0]], [[1.0, 0.0], [1.0, 0.0]])
    assert {choice.formats[1] for choice in pareto(table)} == {1}


def test_thinned_out_it_keeps_both_ends_and_is_close(monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(7, edges=5)
    exact = pareto(table)
    monkeypatch.setattr(solver, "KEPT", 12)
    monkeypatch.setattr(solver, "STATES", 32)
    thin = pareto(table)
    assert len(thin) < len(exact)
    assert thin[0].noise == pytest.approx(exact[0].noise)
    for choice in thin:
        best = min(each.ms for each in exact if each.noise <= choice.noise + 1e-12)
        assert best - 1e-9 <= choice.ms <= 1.3 * best


def test_a_hundred_groups_in_a_row() -> None:
    random = np.random.default_rng(0)
    ms = np.cumsum(random.uniform(0.1, 2, (100, 3)), axis=1).tolist()
    noise = np.sort(random.lognormal(0, 2, (100, 3)), axis=1)[:, ::-1].tolist()
    edges = {(at, at + 1): (0.3 * (1 - np.eye(3))).tolist() for at in range(99)}
    found = pareto(GroupTable(ms, noise, edges))
    assert len({len(choice.formats) for choice in found} | {100}) == 1
    assert found[-1].ms < found[0].ms


def test_points_are_spread_over_the_time() -> None:
    choices = [Assignment(float(ms), 1.0, (ms,)) for ms in range(100, 0, -1)]
    assert [point.ms for point in spread(choices, 12)] == list(range(100, 0, -9))
    assert spread(choices[:3], 12) == tuple(choices[:3])
    assert spread(choices, 1) == (choices[0],)


def test_of_choices_that_lose_nothing_the_fastest_is_enough() -> None:
    noises = (0.0, 1e-7, 1e-6, 1e-4, 1e-3)
    choices = [Assignment(9.0 - at, noise, (at,)) for at, noise in enumerate(noises)]
    assert [point.noise for point in spread(choices, 12)] == [1e-6, 1e-4, 1e-3]
