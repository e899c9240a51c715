"""An architecture from outside the package, through the commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deploykit.benchmarking.matrix.preparing import prepare_graph
from deploykit.bundle.manifest import Bundle
from deploykit.core.plugs import plugs
from deploykit.core.precision import Precision
from deploykit.models._registry import families, names
from tests.cli import deploykit
from tests.plugins import install_plug

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TINY = '''
"""A pooled image and one linear layer: https://example.org/tiny."""

import torch
from torch import nn

CARD: "Final[FamilyCard]" = {
    "title": "Tiny",
    "paper": "https://example.org/tiny",
    "year": 2020,
    "image_size": 8,
    "min_image_size": 1,
    "num_classes": 10,
    "preprocessing": {
        "resize": None,
        "interpolation": "bilinear",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
    },
    "labels": None,
    "variants": {
        "tinynet": {"parameters": 40, "multiply_adds": 30, "torchvision": None},
    },
}


def build(name, *, num_classes, image_size):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))
'''


@pytest.fixture(autouse=True)
def tiny(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    install_plug(tmp_path_factory.mktemp("installed"), "models", "tiny", TINY, monkeypatch)
    yield
    plugs.cache_clear()


def test_it_is_listed_from_its_card() -> None:
    assert "tinynet" in names()
    assert families()["tiny"] == ("tinynet",)
    listed = deploykit("list", "--json").data["models"]
    (found,) = [model for model in listed if model["name"] == "tinynet"]
    assert (found["year"], found["parameters"], found["num_classes"]) == (2020, 40, 10)


def test_it_is_exported_and_said_to_be_untrained(tmp_path: Path) -> None:
    called = deploykit("export", "tinynet", "--backend", "none", "-o", tmp_path / "tiny")
    assert called.code == 0, called.err
    manifest = Bundle.open(tmp_path / "tiny").manifest
    assert (manifest.model["name"], manifest.model["num_classes"]) == ("tinynet", 10)
    assert "untrained, seed 0" in called.out
    assert manifest.weights["trained"] is False


def test_it_is_measured_in_a_process_of_its_own(tmp_path: Path, known_peak: None) -> None:
    # Exported here: in a process that only now imports torch it takes ten seconds.
    prepare_graph("tinynet", Precision.FP32, tmp_path / "work", batches=(1,), peaks={})
    called = deploykit(
        "bench", "tinynet", "--backend", "eager", "--fp32", "--batch", 1, "--warmup", 0,
        "--duration", 0.1, "--min-samples", 20, "--work", tmp_path / "work",
        "-o", tmp_path / "run.json", "--json",
    )  # fmt: skip
    assert called.code == 0, called.err
    (result,) = called.data["results"]
    assert result["model"] == "tinynet"


def test_a_name_that_we_have_already_is_refused(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = TINY.replace("tinynet", "resnet50")
    install_plug(tmp_path_factory.mktemp("other"), "models", "zebra", source, monkeypatch)
    with pytest.raises(ValueError, match=r"'resnet50' is claimed by resnet\.py and by plugged_zeb"):
        names()
