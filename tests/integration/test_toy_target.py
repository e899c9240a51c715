"""A kind of TARGET from outside the package, through the commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deploykit.benchmarking.matrix.preparing import prepare_graph
from deploykit.bundle.manifest import Bundle
from deploykit.core.artifacts import sha256_of
from deploykit.core.errors import MissingDependencyError
from deploykit.core.plugs import plugs
from deploykit.core.precision import Precision
from deploykit.sources.kinds import kind_for
from deploykit.sources.targets import Kind, kind_of, name_of
from tests.cli import deploykit
from tests.plugins import install_plug

if TYPE_CHECKING:
    from collections.abc import Iterator

TOY = '''
"""``toy:NAME``: a pooled image and one linear layer."""

from functools import partial

from deploykit.core.specs import BATCH, ModelSpec, Preprocessing, TensorSpec
from deploykit.sources.kinds import TargetKind


def build(classes):
    from torch import nn

    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, classes))


def fetch(spec):
    import torch

    from deploykit.sources.state_dict import WeightsRecord

    values = {"2.weight": torch.eye(3), "2.bias": torch.zeros(3)}
    return values, WeightsRecord("the toy shop", None, trained=True, labels=None)


class Toy(TargetKind):
    def takes(self, target):
        return target.startswith("toy:")

    def short_name(self, target):
        return target.replace(":", "-")

    def spec(self, target, choices):
        classes = choices.num_classes or 3
        return ModelSpec(
            name=self.short_name(target),
            title="a toy",
            paper=None,
            year=None,
            inputs=(TensorSpec("input", "float32", (BATCH, 3, 8, 8)),),
            outputs=(TensorSpec("logits", "float32", (BATCH, classes)),),
            preprocessing=Preprocessing(crop=(8, 8), resize=8),
            parameters=None,
            multiply_adds=None,
            labels=None,
            torchvision=None,
            builder=partial(build, classes),
            published=fetch,
        )


KIND = Toy()
'''


@pytest.fixture(autouse=True)
def toy_kind(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    install_plug(tmp_path_factory.mktemp("installed"), "sources.kinds", "toy", TOY, monkeypatch)
    yield
    plugs.cache_clear()


def test_the_target_is_a_definition_of_its_own_name() -> None:
    assert kind_of("toy:x") is Kind.DEFINITION
    assert name_of("toy:x") == "toy-x"
    assert deploykit("inspect", "toy:x", "--json").code == 0


def test_export_with_the_weights_that_the_kind_publishes(tmp_path: Path) -> None:
    called = deploykit(
        "export", "toy:x", "--backend", "none", "--weights", "imagenet", "-o", tmp_path / "toy",
        "--json",
    )  # fmt: skip
    assert called.code == 0, called.err
    manifest = Bundle.open(tmp_path / "toy").manifest
    assert manifest.name == "toy-x-fp32"
    assert manifest.weights == {"source": "the toy shop", "sha256": None, "trained": True}


def test_bench_takes_it(tmp_path: Path) -> None:
    """Its own process finds a plug as that of `test_toy_architecture.py` does."""
    asked = ("--backend", "ort", "--fp32", "--batch", 1, "--filter", "none")
    called = deploykit("bench", "toy:x", *asked)
    assert called.code == 2
    assert "the cells are toy-x/ort/fp32/b1" in called.err
    found = prepare_graph("toy:x", Precision.FP32, tmp_path / "work", batches=(1,), peaks={})
    assert Bundle.open(Path(found.path).parent).manifest.name == "toy-x-fp32"
    assert found.sha256 == sha256_of(Path(found.path))


def test_a_plug_without_a_kind(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_plug(tmp_path_factory.mktemp("empty"), "sources.kinds", "empty", "", monkeypatch)
    with pytest.raises(MissingDependencyError, match=r"'empty' of deploykit.sources.kinds has no"):
        kind_for("other")
