"""State dicts in several files, as transformers saves large ones."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from deploykit.core.errors import WeightsError
from deploykit.sources.state_dict import read_state_dict, shards_of, weights_sha256

if TYPE_CHECKING:
    from pathlib import Path


def write_shards(folder: Path) -> Path:
    save_file({"a": torch.ones(2)}, folder / "part-1.safetensors")
    save_file({"b": torch.zeros(3, dtype=torch.float16)}, folder / "part-2.safetensors")
    index = folder / "model.safetensors.index.json"
    places = {"a": "part-1.safetensors", "b": "part-2.safetensors"}
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8")
    return index


def test_all_files_of_an_index_are_read(tmp_path: Path) -> None:
    state = read_state_dict(write_shards(tmp_path))
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {"a": (2,), "b": (3,)}
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_the_digest_is_over_every_file(tmp_path: Path) -> None:
    index = write_shards(tmp_path)
    before = weights_sha256(index)
    assert weights_sha256(index) == before
    save_file({"b": torch.ones(3)}, tmp_path / "part-2.safetensors")
    assert weights_sha256(index) != before


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    index = write_shards(tmp_path)
    (tmp_path / "part-2.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"^no weights file .*part-2\.safetensors"):
        read_state_dict(index)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "JSONDecodeError: Expecting property name"),
        ("[1]", "it has no weight_map"),
        ('{"weight_map": {}}', "it has no weight_map"),
        ('{"weight_map": {"a": "../other.safetensors"}}', r"'\.\./other\.safetensors' is no file"),
        ('{"weight_map": {"a": "/etc/other.pth"}}', "'/etc/other.pth' is no file beside it"),
        ('{"weight_map": {"a": "w.index.json"}}', "'w.index.json' is no file beside it"),
        ('{"weight_map": {"a": "other.index.json"}}', "'other.index.json' is no file beside it"),
    ],
)
def test_what_is_no_index_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    index = tmp_path / "w.index.json"
    index.write_text(content, encoding="utf-8")
    with pytest.raises(WeightsError) as caught:
        shards_of(index)
    caught.match(f"^w.index.json is not the index of a sharded state dict: {reason}")
    caught.match("\nexpected weight_map, names of tensors to names of the files beside it$")


def test_the_pickle_of_transformers_is_read_without_running_it(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    assert read_state_dict(tmp_path / "pytorch_model.bin")["a"].tolist() == [1, 1]
