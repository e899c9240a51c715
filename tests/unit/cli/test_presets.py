"""Which switches of a measurement follow from a preset, a scenario and an option."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pytest

from deploykit.benchmarking.report.facts import switch_facts
from deploykit.benchmarking.results import PRESETS as KNOWN
from deploykit.cli._bench_options import PRESETS, Asked, read_switches
from deploykit.core.errors import UsageError

if TYPE_CHECKING:
    from deploykit.benchmarking.results import Switches


def switches(**given: Any) -> Switches:
    left_out: dict[str, Any] = {field.name: None for field in fields(Asked)}
    usual = {"scenario": "single-stream", "seed": 0, "quick": False}
    return read_switches(Asked(**{**left_out, **usual, **given}))


def test_every_preset_is_known_to_results() -> None:
    assert tuple(PRESETS) == KNOWN


@pytest.mark.parametrize(
    ("preset", "cuda_graph", "transfers", "spin", "queue"),
    [
        # trtexec --help of 10.x and 11.x: what it does without a switch, and with --exposeDMA.
        ("trtexec10", False, True, False, 2),
        ("trtexec10-exposedma", False, True, False, 1),
        ("trtexec11", True, False, True, 2),
        ("trtexec11-exposedma", True, False, True, 1),
        (None, True, True, True, 1),
    ],
)
def test_what_a_preset_sets(
    preset: str | None, *, cuda_graph: bool, transfers: bool, spin: bool, queue: int
) -> None:
    found = switches(preset=preset)
    assert (found.cuda_graph, found.transfers, found.spin) == (cuda_graph, transfers, spin)
    assert (found.queue, found.preset) == (queue, preset)
    said = switch_facts(found).get("Queue")
    assert said == (None if queue == 1 else "2 queries under way")


def test_overlap_without_a_preset() -> None:
    assert switches(overlap=True).queue == 2
    assert switches(overlap=False).queue == 1


def test_a_preset_leaves_other_scenarios_without_a_queue() -> None:
    assert switches(preset="trtexec10", scenario="offline").queue == 1
    assert switches(preset="trtexec11", scenario="server", rate_per_s=5.0).queue == 1


def test_what_contradicts_a_preset_or_a_scenario() -> None:
    with pytest.raises(UsageError, match="--preset trtexec11 has overlap on\nleave out"):
        switches(preset="trtexec11", overlap=False)
    with pytest.raises(UsageError, match="overlapped queries in the offline scenario"):
        switches(scenario="offline", overlap=True)
