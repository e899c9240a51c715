"""Reading state dicts: every kind of file, and every way in which one can be unusable."""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from deploykit.core.errors import WeightsError
from deploykit.sources.state_dict import misfits, read_state_dict

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".th")


def a_state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "conv.bias": torch.randn(4, generator=generator),
        "norm.num_batches_tracked": torch.tensor(7),
    }


def save(state: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    elif path.suffix == ".npz":
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
        np.savez(path, **arrays)  # type: ignore[arg-type]  # names may not be "allow_pickle"
    else:
        torch.save(state, path)
    return path


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(actual) == list(expected) or sorted(actual) == sorted(expected)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_was_saved_is_read(suffix: str, tmp_path: Path) -> None:
    assert_same(read_state_dict(save(a_state(), tmp_path / f"w{suffix}")), a_state())


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_checkpoint_is_unwrapped(key: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"epoch": 3, key: a_state(), "optimizer": {"lr": 0.1}}, path)
    assert_same(read_state_dict(path), a_state())


def test_the_prefix_of_data_parallel_is_taken_off(tmp_path: Path) -> None:
    path = tmp_path / "w.th"
    state = {f"module.{name}": tensor for name, tensor in a_state().items()}
    torch.save({"state_dict": state, "best_prec1": 91.7}, path)
    assert_same(read_state_dict(path), a_state())


def test_a_submodule_that_is_called_module_keeps_its_name(tmp_path: Path) -> None:
    state = a_state() | {"module.weight": torch.ones(2)}
    assert "module.weight" in read_state_dict(save(state, tmp_path / "w.pt"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_types_become_fp32(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {name: value.to(dtype) for name, value in a_state().items() if value.ndim}
    actual = read_state_dict(save(state, tmp_path / "w.safetensors"))
    assert all(tensor.dtype == torch.float32 for tensor in actual.values())
    assert_same(actual, {name: tensor.float() for name, tensor in state.items()})


def test_an_unknown_kind_of_file_is_refused(tmp_path: Path) -> None:
    message = r"weights from w\.h5: unknown kind '\.h5'\npossible: \.safetensors, \.npz, \.pth"
    with pytest.raises(WeightsError, match=message):
        read_state_dict(tmp_path / "w.h5")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no weights file .*lost\.pth\ngive a file of"):
        read_state_dict(tmp_path / "lost.pth")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.97])
def test_a_truncated_file_is_refused(suffix: str, kept: float, tmp_path: Path) -> None:
    path = save(a_state(), tmp_path / f"w{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(WeightsError, match=rf"cannot read w{suffix} \(.*\)\nit is damaged"):
        read_state_dict(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_something_else_under_the_name_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(b"<!DOCTYPE html><html>404 not found</html>" * 20)
    with pytest.raises(WeightsError, match="cannot read w"):
        read_state_dict(path)


def test_a_plain_array_under_the_name_npz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(WeightsError, match=r"cannot read w\.npz"):
        read_state_dict(path)


@pytest.mark.parametrize("entry", [np.array([{}], dtype=object), np.array(["text"])])
def test_arrays_of_objects_and_text_are_refused(entry: object, tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    np.savez(path, weight=np.asarray(entry))
    with pytest.raises(WeightsError, match=r"cannot read w\.npz"):
        read_state_dict(path)


class Attack:
    """Unpickling it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    content = {"weight": Attack(tmp_path / "attacked")}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"w\.pth is refused: .* wants posix\.mkdir, which"):
        read_state_dict(path)
    assert not (tmp_path / "attacked").exists()


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(nn.Linear(2, 2), path)
    message = r"wants torch\.nn\.modules\.linear\.Linear.*\nsave the state dict alone"
    with pytest.raises(WeightsError, match=message):
        read_state_dict(path)


def test_a_pickle_without_torch_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(pickle.dumps({"weight": [1.0, 2.0]}, protocol=2))
    with pytest.raises(WeightsError, match=r"cannot read w\.pt|w\.pt holds"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("content", "found"), [(torch.zeros(3), "a Tensor"), ([1, 2], "a list"), ({}, "an empty dict")]
)
def test_something_else_than_a_dict_is_refused(content: object, found: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(content, path)
    with pytest.raises(WeightsError, match=rf"w\.pth holds {found}, not a state dict\nexpected"):
        read_state_dict(path)


def test_entries_that_are_not_tensors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(2), **{f"n{i}": i for i in range(6)}}, path)
    message = r"w\.pth: 6 of 7 entries are not dense tensors: n0, n1, n2, n3, n4, \.\.\.\nexpected"
    with pytest.raises(WeightsError, match=message):
        read_state_dict(path)


# torch says that it checks the indices, which is what we want.
@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
def test_sparse_tensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": torch.eye(3).to_sparse()}, path)
    with pytest.raises(WeightsError, match="1 of 1 entries are not dense tensors: a"):
        read_state_dict(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_counted(value: float, tmp_path: Path) -> None:
    state = a_state()
    state["conv.weight"][0, 0, 0, :2] = value
    path = save(state, tmp_path / "w.safetensors")
    message = r"w\.safetensors: 2 of 108 values of conv\.weight are NaN or infinite\nthe training"
    with pytest.raises(WeightsError, match=message):
        read_state_dict(path)


def test_a_mask_that_is_added_to_scores_is_no_fault(tmp_path: Path) -> None:
    mask = torch.full((4, 4), -torch.inf).triu(1)
    found = read_state_dict(save(a_state() | {"mask": mask}, tmp_path / "w.safetensors"))
    assert torch.equal(found["mask"], mask)
    for wrong in (-mask, mask + torch.eye(4), torch.full((4, 4), -torch.inf)):
        with pytest.raises(WeightsError, match="values of mask are NaN or infinite"):
            read_state_dict(save(a_state() | {"mask": wrong}, tmp_path / "w.safetensors"))


def test_a_double_beyond_fp32_is_not_finite(tmp_path: Path) -> None:
    path = save({"w": torch.tensor([1e300], dtype=torch.float64)}, tmp_path / "w.npz")
    with pytest.raises(WeightsError, match="1 of 1 values of w are NaN or infinite"):
        read_state_dict(path)


def test_a_fitting_state_dict_has_no_misfits() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    assert misfits(network.state_dict(), network.state_dict()) == []


def test_torchs_own_counter_may_be_missing() -> None:
    expected = nn.BatchNorm2d(4).state_dict()
    found = {name: value for name, value in expected.items() if "tracked" not in name}
    assert misfits(expected, found) == []


def test_misfits_name_the_first_five_of_each_kind() -> None:
    expected = {f"e{i}": torch.zeros(2) for i in range(7)} | {"w": torch.zeros(10, 64)}
    found = {"x": torch.zeros(1), "w": torch.zeros(100, 64)}
    assert misfits(expected, found) == [
        "7 missing: e0, e1, e2, e3, e4, ...",
        "1 unexpected: x",
        "1 of another shape: w (100, 64) for (10, 64)",
    ]


def test_integers_do_not_pass_for_weights() -> None:
    found = {"w": torch.zeros(2, dtype=torch.int8)}
    assert misfits({"w": torch.zeros(2)}, found) == ["1 of another shape: w int8 (2,) for (2,)"]
