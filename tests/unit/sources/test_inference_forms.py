"""What an export makes of networks that are trained with more than they run with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch
from timm.layers import StdConv2d
from timm.models import byobnet
from torch import nn

from deploykit.core.progress import Journal, SilentProgress
from deploykit.core.specs import BATCH, ModelSpec, Preprocessing, TensorSpec
from deploykit.sources import torch_export
from deploykit.sources.definition import SourceOptions, from_definition
from deploykit.sources.untrained import draw_values

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest
    from numpy.typing import NDArray

    from deploykit.comparison.reference import Reference

    Logits = NDArray[np.float32]

SIDE = 32


def rep_vgg() -> nn.Module:
    """Stem and two blocks: three convolutions once it is fused, six and a skip before."""
    blocks = tuple(byobnet.ByoBlockCfg(type="rep", d=1, c=8, s=stride) for stride in (2, 1))
    config = byobnet.ByoModelCfg(blocks=blocks, stem_type="rep", stem_chs=8, stem_pool=None)
    network: nn.Module = byobnet.ByobNet(config, num_classes=5).eval()
    draw_values(network, (SIDE, SIDE))
    return network


def standardising() -> nn.Module:
    network = nn.Sequential(
        StdConv2d(3, 48, 3, stride=4),
        nn.ReLU(),
        StdConv2d(48, 48, 3, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(48, 5),
    )
    return network.eval()


def exported(
    folder: Path, builder: Callable[[], nn.Module] = rep_vgg
) -> tuple[Reference, list[str], int]:
    """The reference, the notes, and how many convolutions its graph has."""
    spec = ModelSpec(
        name="tiny",
        title="a few layers",
        paper=None,
        year=None,
        inputs=(TensorSpec("input", "float32", (BATCH, 3, SIDE, SIDE)),),
        outputs=(TensorSpec("logits", "float32", (BATCH, 5)),),
        preprocessing=Preprocessing(crop=(SIDE, SIDE), resize=SIDE),
        parameters=None,
        multiply_adds=None,
        labels=None,
        torchvision=None,
        builder=builder,
    )
    journal, path = Journal(SilentProgress()), folder / "model.onnx"
    found = from_definition(spec, path, journal, SourceOptions())
    heavy = [node for node in onnx.load(path).graph.node if node.op_type == "Conv"]
    return found, journal.notes, len(heavy)


def as_trained(batches: list[Logits]) -> list[Logits]:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = rep_vgg()
        return [network(torch.from_numpy(batch)).numpy() for batch in batches]


def test_the_graph_is_fused_and_judged_by_the_network_as_trained(tmp_path: Path) -> None:
    found, notes, convolutions = exported(tmp_path)
    assert convolutions == 3
    assert found.conversion == {"exporter": "torch.export", "inference_form": True}
    assert sum(note.startswith("timm fused it for inference: ") for note in notes) == 1
    for logits, expected in zip(found.outputs, as_trained(found.batches), strict=True):
        np.testing.assert_array_equal(logits, expected)
    assert found.report.passed
    # Summed in another order: equal figures would mean that the reference was fused as well.
    assert max(batch.max_relative for batch in found.report.batches) > 0


def test_a_wrong_fusion_is_not_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_export, "EXPORTERS", ("torchscript",))  # the quicker one
    right = byobnet.RepVggBlock._get_kernel_bias

    def wrong(block: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        kernel, bias = right(block)
        return kernel * 1.1, bias

    monkeypatch.setattr(byobnet.RepVggBlock, "_get_kernel_bias", wrong)
    found, notes, convolutions = exported(tmp_path)
    assert convolutions == 6
    assert found.conversion["inference_form"] is False
    reason = (
        "it is exported as it was trained: "
        "its form for inference does not compute what torch eager computes: largest error is "
    )
    assert [note[: len(reason)] for note in notes if "form" in note] == [reason]


def test_a_fusion_that_fails_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_export, "EXPORTERS", ("torchscript",))

    def fail(block: nn.Module) -> None:
        raise AttributeError("no conv_kxk")

    monkeypatch.setattr(byobnet.RepVggBlock, "reparameterize", fail)
    found, notes, convolutions = exported(tmp_path)
    assert convolutions == 6
    assert found.report.passed
    assert (
        "it is exported as it was trained: "
        "ByobNet cannot be fused for inference AttributeError: no conv_kxk"
    ) in notes


def test_weights_are_standardised_before_the_export(tmp_path: Path) -> None:
    found, notes, convolutions = exported(tmp_path, standardising)
    assert convolutions == 2
    assert found.conversion["inference_form"] is True
    assert not any("trained: " in note for note in notes)
    content = onnx.load(tmp_path / "model.onnx").graph
    weights = {tensor.name for tensor in content.initializer}
    assert all(node.input[1] in weights for node in content.node if node.op_type == "Conv")
    assert "BatchNormalization" not in {node.op_type for node in content.node}
