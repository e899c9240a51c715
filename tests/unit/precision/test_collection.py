"""Counting what streams through a model."""

from __future__ import annotations

import threading
from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.core.errors import DataError
from deploykit.core.specs import TensorSpec
from deploykit.precision.calibration.collection import COUNTED, collect, spacing
from tests.graphs import normal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Images = NDArray[np.float32]


class Steps:
    """Nobody watches."""

    def update(self, done: float, total: float | None = None, detail: str = "") -> None: ...


class Scripted:
    """Gives the outputs that each image number asks for: ``values`` (N, K) by image."""

    def __init__(self, values: Images, batch: int | str = "N") -> None:
        self.inputs = (TensorSpec("x", "float32", (batch, 1)),)
        self.outputs = (TensorSpec("y", "float32", (batch, values.shape[1])),)
        self.threads: set[int] = set()
        self._values = values

    def run(self, feeds: Any) -> dict[str, Any]:
        self.threads.add(threading.get_ident())
        rows = self._values[feeds["x"][:, 0].astype(int)]
        return {"y": rows, "whole": rows.reshape(-1)}

    def run_timed(self, feeds: Any) -> Any:
        raise NotImplementedError

    def close(self) -> None: ...

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None: ...


def numbered(count: int, batch: int) -> Iterator[tuple[Images, list[int]]]:
    for start in range(0, count, batch):
        indices = list(range(start, min(start + batch, count)))
        yield np.array(indices, np.float32)[:, None], indices


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("batch", [1, 4, 16])
@pytest.mark.parametrize("place", [0, 6, 9])
def test_values_that_are_not_finite_name_tensor_and_image(
    broken: float, batch: int, place: int
) -> None:
    values = normal(10, 7)
    values[place, 3] = broken
    with pytest.raises(
        DataError, match=rf"^y is NaN or infinite for image {place}\ncheck the weights, and that"
    ):
        collect(Scripted(values), ["x", "y"], numbered(10, batch), steps=Steps())


def test_a_tensor_that_does_not_lie_image_by_image() -> None:
    values = normal(3, 7)
    values[1, 0] = np.nan
    with pytest.raises(DataError, match=r"^whole is NaN or infinite for one of image 0, image 1, "):
        collect(Scripted(values), ["whole"], numbered(3, 3), steps=Steps())


def test_images_are_named_as_the_caller_names_them() -> None:
    values = np.full((1, 2), np.nan, np.float32)
    with pytest.raises(DataError, match=r"for photographs/0.jpg\n"):
        collect(
            Scripted(values),
            ["y"],
            numbered(1, 1),
            steps=Steps(),
            name_of="photographs/{}.jpg".format,
        )


@pytest.mark.parametrize("batch", [1, 3, 10])
def test_every_value_is_counted_once(batch: int) -> None:
    values = normal(10, 7, scale=40)
    found = collect(Scripted(values), ["y", "x"], numbered(10, batch), steps=Steps())
    assert tuple(found) == ("y", "x")
    assert (found["y"].freeze().total, found["y"].freeze().amax) == (
        70,
        float(np.abs(values).max()),
    )
    assert (found["x"].freeze().total, found["x"].freeze().amax) == (10, 9.0)


def test_the_filling_of_a_fixed_batch_is_not_counted() -> None:
    values = normal(10, 7)
    found = collect(Scripted(values, 4), ["y"], numbered(10, 4), steps=Steps())
    assert found["y"].freeze().total == 70


def test_the_model_runs_in_the_callers_thread() -> None:
    runner = Scripted(normal(5, 2))
    collect(runner, ["y"], numbered(5, 1), steps=Steps())
    assert runner.threads == {threading.get_ident()}
    assert not [t for t in threading.enumerate() if t.name.startswith("deploykit-histograms")]


def test_nothing_to_collect_from() -> None:
    found = collect(Scripted(normal(1, 2)), ["y"], iter([]), steps=Steps())
    assert found["y"].freeze().total == 0


def test_batches_are_let_go() -> None:
    """However many come, no more than the one being counted and the one being made are held."""
    alive: list[int] = []
    values = normal(30, 2)

    class Counted(Scripted):
        def run(self, feeds: Any) -> dict[str, Any]:
            found = super().run(feeds)
            owner = _Counted(found["y"], alive)
            return {"y": owner}

    collect(Counted(values), ["y"], numbered(30, 1), steps=Steps())
    assert max(alive) <= 3


class _Counted(np.ndarray[Any, Any]):
    """An array that keeps count of its kind."""

    _living = 0

    def __new__(cls, values: Images, log: list[int]) -> _Counted:
        made = values.copy().view(cls)
        cls._living += 1
        made.log = log  # type: ignore[attr-defined]  # only those made here have one
        log.append(cls._living)
        return made

    def __del__(self) -> None:
        if hasattr(self, "log"):
            type(self)._living -= 1


@pytest.mark.parametrize(
    "shape", [(64, 112, 112), (256, 56, 56), (512, 28, 28), (2048, 7, 7), (1000,), (), (3, 0, 5)]
)
def test_of_large_tensors_every_so_manieth_value_of_every_column_is_counted(
    shape: tuple[int, ...],
) -> None:
    every = spacing(shape)
    size = int(np.prod(shape))
    assert -(-size // every) <= COUNTED
    assert every == 1 or size > COUNTED
    if shape:
        assert gcd(every, shape[-1]) == 1 or every == 1


def test_a_large_tensor_is_sampled_and_its_maximum_is_exact() -> None:
    values = normal(2, 3 * COUNTED)
    values[0, 1], values[1, -1] = -40.0, 60.0  # neither place is counted
    found = collect(Scripted(values), ["y"], numbered(2, 2), steps=Steps())["y"].freeze()
    every = spacing((3 * COUNTED,))
    assert every == 5  # 3 and 4 share a factor with the length
    assert found.total == 2 * -(-3 * COUNTED // every)
    assert found.amax == 60.0
    counted = np.abs(values[:, ::every]).reshape(-1)
    expected, _ = np.histogram(counted, len(found.counts), (0.0, found.limit))
    np.testing.assert_array_equal(found.counts, expected)


def test_batches_do_not_change_what_is_sampled() -> None:
    values = normal(6, COUNTED + 11)
    one = collect(Scripted(values), ["y"], numbered(6, 1), steps=Steps())["y"].freeze()
    all_at_once = collect(Scripted(values), ["y"], numbered(6, 6), steps=Steps())["y"].freeze()
    np.testing.assert_array_equal(one.counts, all_at_once.counts)
