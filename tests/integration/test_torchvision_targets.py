"""`torchvision:NAME` as a user gives it to `export` and `inspect`."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
import torchvision

from deploykit.bundle.manifest import Bundle
from tests.cli import deploykit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_goes_through_every_stage_in_fp16_and_compiles_for_rtx(
    page_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """The bundle that a page of the documents makes with --input-size 64."""
    folder = tmp_path / "bundle"
    made = page_folder("docs/routes/torchvision.md") / "engines" / "torchvision-squeezenet1_1-fp16"
    shutil.copytree(made, folder)
    manifest = Bundle.open(folder).manifest
    assert [report["passed"] for report in manifest.validation] == [True, True]
    assert manifest.weights["source"] == "untrained, seed 0"
    assert manifest.conversion["exporter"] == "torch.export"
    assert manifest.name == "torchvision-squeezenet1_1-fp16"
    assert manifest.model["image_size"] == [64, 64]
    assert manifest.model["year"] is None
    assert manifest.preprocessing.resize == 73
    assert (Bundle.open(folder).labels or ())[:2] == ("tench", "goldfish")
    if find_spec("tensorrt_rtx") is None:
        return
    rtx = ("--backend", "tensorrt-rtx", "--compute-capability", "8.9", "--json")
    called = deploykit("build", folder, *rtx)
    assert called.code == 0, called.err
    (engine,) = called.data["engines"]
    assert engine["precision_census"]["CONVOLUTION HALF"] == 26


def test_computes_what_torchvision_computes_with_the_users_weights(tmp_path: Path) -> None:
    torch.manual_seed(5)
    theirs = torchvision.models.squeezenet1_1(weights=None, num_classes=6).eval()
    torch.save(theirs.state_dict(), tmp_path / "mine.pth")
    called = deploykit(
        "export", "torchvision:squeezenet1_1", "--num-classes", 6, "--input-size", 64,
        "--weights", tmp_path / "mine.pth", "--backend", "none", "-o", tmp_path / "bundle",
    )  # fmt: skip
    assert called.code == 0, called.err
    with np.load(tmp_path / "bundle" / "golden.npz") as archive:
        golden = dict(archive)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(golden["input"])).numpy()
    np.testing.assert_allclose(golden["logits"], expected, atol=1e-5)
    assert Bundle.open(tmp_path / "bundle").manifest.weights["source"] == "mine.pth"


WINDOWS = """
from torchvision.models.maxvit import MaxVit
from torchvision.models.swin_transformer import SwinTransformer

def maxvit():
    return MaxVit(
        input_size=(32, 32), stem_channels=8, partition_size=2, block_channels=[16],
        block_layers=[1], head_dim=8, stochastic_depth_prob=0.1, num_classes=5,
    )

def swin():
    return SwinTransformer(
        patch_size=[4, 4], embed_dim=16, depths=[2], num_heads=[2], window_size=[4, 4],
        stochastic_depth_prob=0.1, num_classes=5,
    )
"""


@pytest.mark.parametrize("name", ["maxvit", "swin"])
def test_attention_in_windows_goes_through_every_stage_in_fp16(name: str, tmp_path: Path) -> None:
    """Torchvision's own classes with one small block of each kind: whole networks take a minute."""
    (tmp_path / "small.py").write_text(WINDOWS)
    called = deploykit(
        "export", f"{tmp_path / 'small.py'}:{name}", "--fp16", "--input-size", 32, "--backend",
        "none", "-o", tmp_path / "bundle", "--json",
    )  # fmt: skip
    assert called.code == 0, called.err
    assert [report["passed"] for report in called.data["validation"]] == [True, True]
    # Untrained blocks may leave numbers that FP16 nearly loses: nothing else keeps a layer in FP32.
    conversion = called.data["conversion"]
    reasons = list(conversion["kept_fp32"].values())
    vanishing = [reason for reason in reasons if reason.endswith("which FP16 loses")]
    assert conversion["kept_heavy"] <= len(vanishing)
    assert conversion["halved"] > 4 * len(reasons)
    operators = {node.op_type for node in onnx.load(tmp_path / "bundle" / "model.onnx").graph.node}
    assert "MatMul" in operators
    assert "Einsum" not in operators  # MaxViT's attention is written as one


def test_inspect_counts_what_torchvision_counts() -> None:
    data = deploykit("inspect", "torchvision:squeezenet1_1", "--json").data
    meta = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.meta
    assert data["parameters"] == meta["num_params"]
    assert data["multiply_adds"] == pytest.approx(meta["_ops"] * 1e9, rel=0.005)


@pytest.mark.parametrize("command", ["export", "inspect"])
def test_unknown_name_suggests_close_ones(command: str) -> None:
    called = deploykit(command, "torchvision:mobilenet_v3_smal")
    assert called.code == 2
    assert "did you mean: mobilenet_v3_small" in called.err


def test_a_size_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    called = deploykit(
        "export", "torchvision:vit_b_16", "--input-size", 100, "-o", tmp_path / "out" / "bundle"
    )  # fmt: skip
    assert called.code == 2
    assert "torchvision:vit_b_16 does not take an input of 100x100" in called.err
    assert not (tmp_path / "out").exists()
