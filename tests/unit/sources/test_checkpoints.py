"""Checkpoints as training scripts leave them: other names, several sets, options beside them."""

from __future__ import annotations

import argparse
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from deploykit.core.errors import UsageError, WeightsError
from deploykit.models import get
from deploykit.sources.state_dict import is_torchscript, read_state_dict
from deploykit.sources.targets import find_definition
from deploykit.sources.weights import build_with_weights
from tests.cli import deploykit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NETWORK = "resnet20"


def trained(seed: int) -> dict[str, Tensor]:
    """The state dict of a network that has other weights than an untrained one of seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state: dict[str, Tensor] = get(NETWORK).build().state_dict()
    return state


def loaded(weights: str | Path) -> Mapping[str, Tensor]:
    return build_with_weights(get(NETWORK), str(weights), 0)[0].state_dict()


def assert_loaded(weights: str | Path, expected: Mapping[str, Tensor]) -> None:
    found = loaded(weights)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("suffix", [".pth.tar", ".ckpt", ".bin", ".pt", ".pt.tar", ".PTH.TAR"])
def test_suffixes(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    torch.save({"epoch": 90, "state_dict": trained(5)}, path)
    assert_loaded(path, trained(5))


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "model.",
        "_orig_mod.",
        "net.",
        "backbone.",
        "module._orig_mod.",
        "model.net.",
        "_orig_mod.module.model.backbone.",
        "module.module.",
    ],
)
def test_prefixes(tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "w.ckpt"
    state = {prefix + name: tensor for name, tensor in trained(6).items()}
    torch.save({"state_dict": state, "pytorch-lightning_version": "2.4"}, path)
    assert_loaded(path, trained(6))


FACTORY = """
import torch
from torch import nn

class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.ModuleDict({"net": nn.Conv2d(3, 4, 3)})

    def forward(self, x):
        return self.model["net"](x).mean((2, 3))
"""


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_a_network_that_has_such_a_name_itself(tmp_path: Path, prefix: str) -> None:
    (tmp_path / "nets.py").write_text(FACTORY, encoding="utf-8")
    conv = nn.Conv2d(3, 4, 3)
    expected = {f"model.net.{name}": tensor for name, tensor in conv.state_dict().items()}
    torch.save({prefix + name: t for name, t in expected.items()}, tmp_path / "w.pth")
    spec = find_definition(f"{tmp_path / 'nets.py'}:Wrapped")
    found = build_with_weights(spec, str(tmp_path / "w.pth"), 0)[0].state_dict()
    values = [tensor for name, tensor in found.items() if name.endswith(("net.weight", "net.bias"))]
    assert [torch.equal(a, b) for a, b in zip(values, expected.values(), strict=True)] == [True] * 2


def test_a_prefix_that_only_some_names_have_is_a_misfit(tmp_path: Path) -> None:
    state = {f"backbone.{name}": tensor for name, tensor in trained(6).items()}
    torch.save({**state, "head.weight": torch.ones(3)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth does not fit resnet20"):
        loaded(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("raw", "average"),
    [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("model", "ema"), ("net", "shadow")],
)
def test_weights_and_their_moving_average(tmp_path: Path, raw: str, average: str) -> None:
    path = tmp_path / "w.pth.tar"
    torch.save({"epoch": 3, raw: trained(1), average: trained(2)}, path)
    sets = rf"{raw} \(\d+ tensors\), {average} \(\d+ tensors\)"
    words = (
        rf"w.pth.tar holds several sets of weights: {sets}"
        rf"\nsay which: --weights w.pth.tar#{raw} or --weights w.pth.tar#{average}\n.*EMA"
    )
    with pytest.raises(WeightsError, match=words):
        loaded(path)
    assert_loaded(f"{path}#{raw}", trained(1))
    assert_loaded(f"{path}#{average}", trained(2))
    record = build_with_weights(get(NETWORK), f"{path}#{average}", 0)[1]
    assert record.source == f"w.pth.tar#{average}"


def test_an_average_one_level_deeper(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"model": trained(1), "ema": {"module": trained(2), "updates": 7}}, path)
    with pytest.raises(WeightsError, match=r"--weights w.pth#model or --weights w.pth#ema\.module"):
        loaded(path)
    assert_loaded(f"{path}#ema.module", trained(2))


def averaged(seed: int, *, ema: bool = False) -> nn.Module:
    """What torch's own average of one network is: its weights, behind a counter."""
    network = get(NETWORK).build()
    network.load_state_dict(trained(seed))
    function = get_ema_multi_avg_fn(0.999) if ema else None  # type: ignore[no-untyped-call]
    average = AveragedModel(network, multi_avg_fn=function, use_buffers=True)
    average.update_parameters(network)
    return average


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("wrap", ["", "module.", "_orig_mod."])
def test_an_averaged_model(tmp_path: Path, *, ema: bool, wrap: str) -> None:
    path = tmp_path / "w.pth"
    state = averaged(8, ema=ema).state_dict()
    assert "n_averaged" in state
    torch.save({wrap + name: tensor for name, tensor in state.items()}, path)
    assert_loaded(path, trained(8))


@pytest.mark.parametrize("before", ["", "model_ema.", "model_ema.module.", "ema.", "ema_model."])
def test_an_average_behind_its_own_name(tmp_path: Path, before: str) -> None:
    path = tmp_path / "w.pth"
    average = {before + name: tensor for name, tensor in averaged(9).state_dict().items()}
    torch.save({"model": trained(1), "model_ema": average}, path)
    assert_loaded(f"{path}#model_ema", trained(9))
    torch.save({"model_ema": average, "epoch": 3}, path)
    assert_loaded(path, trained(9))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("raw", "average"),
    [("model", "model_ema"), ("net", "ema_model"), ("backbone", "ema"), ("module", "swa_model")],
)
def test_both_sets_in_one_state_dict(
    tmp_path: Path, raw: str, average: str, *, nested: bool
) -> None:
    """As a Lightning module saves itself that has an average as a submodule."""
    path = tmp_path / "w.ckpt"
    state = {f"{raw}.{name}": tensor for name, tensor in trained(1).items()}
    state |= {f"{average}.{name}": tensor for name, tensor in averaged(2).state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3} if nested else state, path)
    with pytest.raises(
        WeightsError, match=rf"--weights w.ckpt#{raw} or --weights w.ckpt#{average}"
    ):
        loaded(path)
    assert_loaded(f"{path}#{raw}", trained(1))
    assert_loaded(f"{path}#{average}", trained(2))


def test_two_branches_of_one_network_are_no_two_sets(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    pair = nn.ModuleDict({"left": nn.Linear(2, 2), "right": nn.Linear(2, 2)})
    torch.save(pair.state_dict(), path)
    assert read_state_dict(path).keys() == pair.state_dict().keys()


def test_a_networks_own_counter_of_that_name_stays(tmp_path: Path) -> None:
    state = {"n_averaged": torch.tensor(3), "module.weight": torch.ones(2), "bias": torch.ones(2)}
    torch.save(state, tmp_path / "w.pth")
    assert read_state_dict(tmp_path / "w.pth").keys() == state.keys()


def test_what_belongs_to_the_training_is_no_second_set(tmp_path: Path) -> None:
    network = get(NETWORK).build()
    network.load_state_dict(trained(4))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    content = {
        "model": trained(4),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": {"last": torch.ones(3)},
        "metrics": {"best": torch.tensor(0.9)},
        "args": argparse.Namespace(lr=0.1, data="/data"),
        "best_acc": np.float64(91.3),
        "best": np.float32(0.9),
    }
    torch.save(content, tmp_path / "w.ckpt")
    assert_loaded(tmp_path / "w.ckpt", trained(4))


def test_an_entry_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"model": trained(1), "ema": trained(2)}, path)
    with pytest.raises(WeightsError, match=r"no weights under 'emma'\npossible: model, ema"):
        loaded(f"{path}#emma")
    torch.save(trained(1), path)
    with pytest.raises(WeightsError, match="it holds one state dict: leave out the #"):
        loaded(f"{path}#model")


def test_a_file_with_the_mark_in_its_name(tmp_path: Path) -> None:
    path = tmp_path / "run#3.pth"
    torch.save(trained(1), path)
    assert_loaded(path, trained(1))
    torch.save({"a": trained(1), "b": trained(2)}, path)
    assert_loaded(f"{path}#b", trained(2))


# TorchScript


def scripted(path: Path) -> Path:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and its files live on
        program: Any = torch.jit.trace(module, torch.zeros(1, 3, 8, 8))  # type: ignore[no-untyped-call]
        torch.jit.save(program, path)
    return path


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_a_torchscript_program_is_named(tmp_path: Path, suffix: str) -> None:
    path = scripted(tmp_path / f"net{suffix}")
    assert is_torchscript(path)
    words = (
        r"is a TorchScript program of torch.jit.save, not a state dict\nexport it: torch.onnx.ex"
    )
    with pytest.raises(WeightsError, match=words):
        read_state_dict(path)


def test_a_torchscript_program_as_the_target(tmp_path: Path) -> None:
    path = scripted(tmp_path / "net.pt")
    for command in ("export", "inspect"):
        called = deploykit(command, path)
        assert called.code == 2
        assert "is a TorchScript program" in called.err
        assert "torch.onnx.export(torch.jit.load('net.pt')" in called.err
    with pytest.raises(UsageError, match=r"make an \.onnx file of it"):
        find_definition(str(path))


def test_weights_as_the_target(tmp_path: Path) -> None:
    torch.save(trained(1), tmp_path / "w.pth")
    assert not is_torchscript(tmp_path / "w.pth")
    with pytest.raises(
        UsageError, match=r"w\.pth is a file, and no kind of file .*\n.*\n.*--weights"
    ):
        find_definition(str(tmp_path / "w.pth"))
