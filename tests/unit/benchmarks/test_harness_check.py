"""What the check of the harness makes of its rounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks.harness_check import (
    BARE,
    HARNESS,
    TOOLS,
    Block,
    bare_loop,
    feeds_of,
    harness,
    measure,
    ratio_to_bare,
    switches_of,
    table,
    tools_of,
    within_goal,
)
from deploykit.backends import GraphOptions
from deploykit.backends.ort import OrtRunner
from tests.graphs import graph

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS = 20


def blocks(ours: float, model: str = "resnet20") -> list[Block]:
    """Every tool as fast as the bare loop but the harness; the machine's speed varies."""
    levels = np.random.default_rng(0).uniform(1, 2, ROUNDS)
    return [
        Block(model, at, place, tool, level * (ours if tool == HARNESS else 1.0), 10)
        for at, level in enumerate(levels)
        for place, tool in enumerate(TOOLS)
    ]


@pytest.fixture
def runner() -> Iterator[OrtRunner]:
    text = "g (float[batch, 3, 2, 2] x) => (float[batch, 3, 2, 2] y) { y = Relu(x) }"
    with OrtRunner(graph(text, {}).SerializeToString(), GraphOptions(threads=1)) as opened:
        yield opened


@pytest.mark.parametrize("ours", [0.99, 1.0, 1.01])
def test_a_tool_is_compared_with_the_bare_loop_of_the_same_round(ours: float) -> None:
    found = ratio_to_bare(blocks(ours), "resnet20", HARNESS)
    assert (found.value, found.low, found.high) == pytest.approx((ours, ours, ours))
    assert within_goal(blocks(ours))


@pytest.mark.parametrize("ours", [0.97, 1.03])
def test_more_than_two_percent_misses_the_goal_for_any_model(ours: float) -> None:
    assert not within_goal(blocks(ours))
    assert not within_goal([*blocks(1.0), *blocks(ours, "resnet18")])


def test_the_table_has_a_line_for_each_tool_and_model() -> None:
    lines = table([*blocks(1.01, "resnet18"), *blocks(1.0)]).splitlines()
    assert len(lines) == 2 + 2 * len(TOOLS)
    assert lines[2].startswith("| resnet18 | bare loop | 1.")
    assert lines[2].endswith(" | |")
    assert lines[3].endswith("| +1.00% | +1.00% to +1.00% |")


def test_every_tool_measures_the_same_session(runner: OrtRunner) -> None:
    tools = tools_of(runner, 0.001)
    assert tuple(tools) == TOOLS
    for tool in tools.values():
        median_ms, queries = tool()
        assert median_ms > 0
        assert queries >= 1


def test_a_round_has_every_tool_once_in_another_order() -> None:
    calls: list[str] = []

    def tool(name: str) -> tuple[float, int]:
        calls.append(name)
        return float(len(calls)), 1

    tools = {name: lambda name=name: tool(name) for name in ("one", "two", "three")}
    found = measure("net", tools, 20)
    assert len(calls) == 3 * 21
    assert [block.tool for block in found] == calls[3:]
    assert [block.median_ms for block in found] == list(range(4, 64))
    orders = {tuple(calls[at : at + 3]) for at in range(0, 63, 3)}
    assert all(sorted(order) == ["one", "three", "two"] for order in orders)
    assert len(orders) > 1


def test_queries_are_all_counted(runner: OrtRunner) -> None:
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1

    _, queries = bare_loop(call, 0.001)
    assert queries == calls >= 1
    _, queries = harness(runner, feeds_of(runner), 0.001, "compute_ms")
    assert queries >= 1


def test_feeds_have_the_shape_and_type_of_the_model(runner: OrtRunner) -> None:
    (feed,) = feeds_of(runner, batch=4).values()
    assert feed.shape == (4, 3, 2, 2)
    assert feed.dtype == np.dtype("float32")
    np.testing.assert_array_equal(feed, feeds_of(runner, batch=4)["x"])


def test_the_switches_say_one_thread() -> None:
    switches = switches_of(1.5, 0.5, seed=3)
    assert (switches.threads, switches.streams, switches.scenario) == (1, 1, "single-stream")
    assert (switches.duration_s, switches.warmup_s, switches.seed) == (1.5, 0.5, 3)
    assert TOOLS[0] == BARE
