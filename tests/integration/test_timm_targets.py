"""`timm:NAME` as a user gives it to `export` and `inspect`."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import timm
import torch

from deploykit.bundle.manifest import Bundle
from tests.cli import deploykit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_goes_through_every_stage_in_fp16(page_folder: Callable[[str], Path]) -> None:
    """The bundle that a page of the documents makes with --input-size 64."""
    bundle = Bundle.open(page_folder("docs/routes/timm.md") / "engines" / "timm-test_resnet-fp16")
    assert [report["passed"] for report in bundle.manifest.validation] == [True, True]
    assert bundle.manifest.weights["source"] == "untrained, seed 0"
    assert bundle.manifest.conversion["exporter"] == "torch.export"
    assert bundle.manifest.name == "timm-test_resnet-fp16"
    assert bundle.manifest.model["image_size"] == [64, 64]
    assert bundle.manifest.preprocessing.mean == (0.5, 0.5, 0.5)
    assert "timm" in bundle.manifest.packages
    assert (bundle.labels or ())[:2] == ("tench, Tinca tinca", "goldfish, Carassius auratus")


def test_inspect_counts_parameters() -> None:
    data = deploykit("inspect", "timm:resnet18d", "--json").data
    with torch.device("meta"):
        network = timm.create_model("resnet18d")
    assert data["parameters"] == sum(value.numel() for value in network.parameters())


@pytest.mark.parametrize("command", ["export", "inspect"])
def test_unknown_name_suggests_close_ones(command: str) -> None:
    called = deploykit(command, "timm:resnet18x")
    assert called.code == 2
    assert "did you mean: resnet18, resnet18d" in called.err


def test_a_size_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    called = deploykit(
        "export", "timm:test_vit", "--input-size", 8, "-o", tmp_path / "out" / "bundle"
    )  # fmt: skip
    assert called.code == 2
    assert "does not turn 8x8 pixels into 1000 classes" in called.err
    assert not (tmp_path / "out").exists()


def test_the_command_line_starts_without_timm() -> None:
    code = "import sys, deploykit.cli, deploykit.sources.targets; print('timm' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
