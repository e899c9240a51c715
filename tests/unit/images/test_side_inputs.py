"""What a model takes beside images: values from a file, and the runner that adds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.core.errors import DataError, ModelFileError, UsageError
from deploykit.core.specs import Closing, StepTimes, TensorSpec
from deploykit.images.side_inputs import (
    NOISE,
    SideInputs,
    WithSideInputs,
    all_inputs,
    require_per_image,
    with_side_inputs,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from deploykit.core.specs import Array

IMAGE = TensorSpec("x", "float32", ("n", 3, 2, 2))
AGE = TensorSpec("age", "float32", ("n", 2))
WARD = TensorSpec("ward", "int32", ("n",))
KNOWN = TensorSpec("known", "bool", ("n",))
INPUTS = (AGE, IMAGE, WARD)


def images(count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(1).normal(size=(count, 3, 2, 2)).astype(np.float32)


def write(folder: Path, **arrays: Any) -> Path:
    path = folder / "values.npz"
    np.savez(path, **arrays)
    return path


def given(folder: Path, rows: int = 7) -> SideInputs:
    age = np.arange(2.0 * rows).reshape(rows, 2)
    return SideInputs.read(write(folder, age=age, ward=np.arange(rows)), INPUTS, IMAGE)


class Echo(Closing):
    """Answers with what it was fed."""

    inputs = INPUTS
    outputs = (TensorSpec("y", "float32", ("n", 2)),)
    closed = False

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": np.column_stack([feeds["age"][:, 0], feeds["ward"]])}

    def run_timed(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], StepTimes]:
        return self.run(feeds), StepTimes(1.0)

    def close(self) -> None:
        self.closed = True


def test_values_take_the_types_of_the_model(tmp_path: Path) -> None:
    side = given(tmp_path)
    assert {name: str(rows.dtype) for name, rows in side.rows.items()} == {
        "age": "float32",
        "ward": "int32",
    }
    assert side.source == "values.npz"
    assert not side.is_noise
    assert side.notes() == []


def test_an_image_has_the_same_row_in_every_batch(tmp_path: Path) -> None:
    side, batch = given(tmp_path), images(20)
    whole = side.beside(batch)
    for at in range(20):
        alone = side.beside(batch[at : at + 1])
        np.testing.assert_array_equal(alone["age"][0], whole["age"][at])
    # One row for all inputs: age is (2 w, 2 w + 1) for ward w.
    np.testing.assert_array_equal(whole["age"][:, 0], 2 * whole["ward"])
    assert len(set(whole["ward"].tolist())) > 3


def test_saved_values_are_read_again(tmp_path: Path) -> None:
    side = given(tmp_path)
    side.save(tmp_path / "again.npz")
    again = SideInputs.read(tmp_path / "again.npz", INPUTS, IMAGE)
    assert again.digest == side.digest
    assert given(tmp_path, rows=8).digest != side.digest


def test_noise_is_always_the_same_and_says_so() -> None:
    side = SideInputs.noise((IMAGE, AGE), IMAGE)
    assert side.rows["age"].shape == (64, 2)
    assert side.is_noise
    assert side.digest == SideInputs.noise((AGE, IMAGE), IMAGE).digest
    assert side.notes() == [
        f"'age' beside the images: {NOISE} were taken; real ones: --side-inputs FILE.npz"
    ]


def test_a_model_of_images_alone_has_none() -> None:
    side = SideInputs.noise((IMAGE,), IMAGE)
    assert side.rows == {}
    assert side.beside(images(2)) == {}
    assert not side.is_noise
    runner = Echo()
    assert with_side_inputs(runner, side) is runner
    assert list(all_inputs(runner, images(1))) == ["age"]


def test_the_runner_is_fed_images_alone(tmp_path: Path) -> None:
    side, echo, batch = given(tmp_path), Echo(), images(4)
    with with_side_inputs(echo, side) as runner:
        assert isinstance(runner, WithSideInputs)
        assert runner.inputs == (IMAGE,)
        assert runner.outputs == echo.outputs
        expected = side.beside(batch)
        got = runner.run({"x": batch})["y"]
        np.testing.assert_array_equal(got[:, 1], expected["ward"])
        timed, times = runner.run_timed({"x": batch})
        np.testing.assert_array_equal(timed["y"], got)
        assert times.wall_ms == 1.0
        assert list(all_inputs(runner, batch)) == ["x", "age", "ward"]
    assert echo.closed


def test_whole_numbers_are_not_guessed() -> None:
    words = r"input 'ward' beside the images is int32 \(n,\): which values it takes, nobody"
    with pytest.raises(UsageError, match=words):
        SideInputs.noise(INPUTS, IMAGE)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((), r"input 'odd' \(\) beside the images .* has no batch: it is the same for all images"),
        ((4, 2), r"input 'odd' \(4, 2\) beside the images .* has no batch"),
        (("n", "k"), r"input 'odd' \(n, k\) has open dimensions beside the batch"),
    ],
)
def test_inputs_that_do_not_go_with_the_images(shape: tuple[int | str, ...], words: str) -> None:
    with pytest.raises(ModelFileError, match=words):
        require_per_image((IMAGE, TensorSpec("odd", "float32", shape)), IMAGE)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "complex64"])
def test_types_that_no_engine_takes(dtype: str) -> None:
    words = f"input 'odd' beside the images is {dtype}, which no engine takes\npossible are bool, "
    with pytest.raises(ModelFileError, match=words):
        require_per_image((IMAGE, TensorSpec("odd", dtype, ("n",))), IMAGE)


def test_a_fixed_batch_goes_with_the_images() -> None:
    image = TensorSpec("x", "float32", (4, 3, 2, 2))
    require_per_image((image, TensorSpec("age", "float32", (4, 2))), image)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"age": np.zeros((3, 2))}, r"has \['age'\], beside the images the model takes \['age', "),
        (
            {"age": np.zeros((3, 2)), "ward": np.zeros(2, int)},
            "has not as many rows for each input, age: 3, ward: 2",
        ),
        (
            {"age": np.zeros((3, 4)), "ward": np.zeros(3, int)},
            r"'age' of values.npz is float64 \(3, 4\)\nexpected float32 \('rows', 2\)",
        ),
        ({"age": np.zeros((0, 2)), "ward": np.zeros(0, int)}, r"is float64 \(0, 2\)"),
        ({"age": np.float64(1), "ward": np.zeros(1, int)}, r"'age' of values.npz is float64 \(\)"),
        (
            {"age": np.zeros((1, 2)), "ward": np.array([0.5])},
            "'ward' of values.npz is float64, the model takes int32\nits values do not go",
        ),
        (
            {"age": np.zeros((1, 2)), "ward": np.array([2**40])},
            "'ward' of values.npz is int64, the model takes int32",
        ),
        (
            {"age": np.array([[1, np.nan]]), "ward": np.zeros(1, int)},
            "'age' of values.npz has values that are NaN or infinite",
        ),
    ],
)
def test_values_that_do_not_fit(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        SideInputs.read(write(tmp_path, **arrays), INPUTS, IMAGE)


def test_yes_and_no_take_nothing_else(tmp_path: Path) -> None:
    inputs = (IMAGE, KNOWN)
    read = SideInputs.read(write(tmp_path, known=np.array([True, False])), inputs, IMAGE)
    assert read.rows["known"].tolist() == [True, False]
    with pytest.raises(DataError, match=r"'known' of values.npz is int64, the model takes bool"):
        SideInputs.read(write(tmp_path, known=np.array([1, 0])), inputs, IMAGE)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"no archive"])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "values.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read .*values.npz: \w+: .*\nexpected an .npz"):
        SideInputs.read(path, INPUTS, IMAGE)
