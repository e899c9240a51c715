"""Noise of groups, and the step back where they act on each other."""

from __future__ import annotations

from math import inf, nan
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.core.precision import Precision
from deploykit.core.progress import SilentProgress
from deploykit.core.specs import TensorSpec
from deploykit.graph import qdq
from deploykit.precision.budget.sensitivity import Noise, noise_table, repaired
from deploykit.precision.budget.solver import GroupTable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.core.specs import Array

FP32, FP16, INT8 = Precision.FP32, Precision.FP16, Precision.INT8
FORMATS = (INT8, FP16, FP32)
GROUPS = (("a",), ("b",), ("c",))


class Network:
    """Answers 100 numbers of 1, with an error that the levels give; ``together`` is of a and b."""

    inputs = (TensorSpec("x", "float32", (1, 1)), TensorSpec(qdq.LEVELS, "int64", (3,)))

    def __init__(self, together: float = 0.0) -> None:
        self.together = together

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        levels = feeds[qdq.LEVELS].tolist()
        sizes = {qdq.EXACT: 0.0, qdq.HALF: 1e-3, qdq.NARROW: 0.1}
        errors = np.zeros(100, np.float32)
        for at, level in enumerate(levels):
            errors[at::3] = sizes[level] * (at + 1)
        if levels[0] == levels[1] == qdq.NARROW:
            errors += np.float32(self.together)
        return {"y": np.ones(100, np.float32) + errors}


def noise_of(network: Any) -> Noise:
    images = np.zeros((1, 1), np.float32)
    return Noise(network, [images], [{"y": np.ones(100, np.float32)}])


def table_of(noise: Noise) -> GroupTable:
    with SilentProgress().step("noise") as task:
        rows = noise_table(noise, GROUPS, FORMATS, frozenset({"a", "b"}), task)
    return GroupTable([[1.0, 2.0, 4.0]] * 3, rows)


def test_each_group_is_measured_alone_in_each_format() -> None:
    rows = table_of(noise_of(Network())).noise
    thirds = np.array([34, 33, 33]) / 100  # of the numbers belong to each group
    assert rows[0] == pytest.approx([0.1**2 * thirds[0], 1e-6 * thirds[0], 0.0], rel=1e-3)
    assert rows[1] == pytest.approx([0.2**2 * thirds[1], 4e-6 * thirds[1], 0.0], rel=1e-3)
    assert rows[2][0] == inf  # it has no narrow form
    assert rows[2][1:] == pytest.approx([9e-6 * thirds[2], 0.0], rel=1e-3)


def test_what_overflows_has_no_end_of_noise() -> None:
    class Overflowing(Network):
        def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
            return {"y": np.full(100, nan, np.float32)}

    assert noise_of(Overflowing()).of((FP16, FP32, FP32)) == inf


def test_a_choice_that_is_as_its_groups_stays() -> None:
    noise = noise_of(Network())
    table = table_of(noise)
    choice = table.evaluated((0, 0, 1))
    same, measured = repaired(noise, table, choice, FORMATS)
    assert same == choice
    assert measured == pytest.approx(choice.noise, rel=1e-3)


def test_groups_that_act_on_each_other_step_back() -> None:
    noise = noise_of(Network(together=0.5))
    table = table_of(noise)
    choice = table.evaluated((0, 0, 1))
    assert noise.of((INT8, INT8, FP16)) > 10 * choice.noise
    back, measured = repaired(noise, table, choice, FORMATS)
    assert back.formats == (0, 1, 1)  # b makes four times the noise of a, at the same time
    assert measured <= 1.26 * choice.noise
    assert back.ms > choice.ms


def test_it_steps_back_no_further_than_there_are_formats() -> None:
    class Noisy(Network):
        def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
            return {"y": np.full(100, 2.0, np.float32)}

    quiet = table_of(noise_of(Network()))
    back, measured = repaired(noise_of(Noisy()), quiet, quiet.evaluated((0, 0, 1)), FORMATS)
    assert back.formats == (2, 2, 2)
    assert measured == pytest.approx(1.0)
