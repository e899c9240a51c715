"""A kind of output from outside the package: one value per image, through the commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

import deploykit
from deploykit.bundle.manifest import Bundle
from deploykit.core.errors import MissingDependencyError, UnknownNameError
from deploykit.core.plugs import plugs
from deploykit.core.specs import HeadRecord
from deploykit.heads import head_named
from tests import cli
from tests.bundles import write_bundle
from tests.graphs import graph, save
from tests.plugins import install_plug

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REGRESSION = '''
"""One number per image."""

from dataclasses import dataclass

from deploykit.heads import Head, require_finite


@dataclass(frozen=True)
class Value:
    value: float


class Regression(Head):
    name = "toy"
    noun = "values"
    layout = "(batch,)"
    form = "1-dimensional"
    answer_columns = ("value",)

    def fits(self, shape):
        return len(shape) == 1

    def problems_of(self, figures, limits):
        if figures.non_finite or figures.max_abs > limits.max_relative:
            return [f"an absolute error of {figures.max_abs}, limit {limits.max_relative}"]
        return []

    def answers(self, outputs, labels, top_k):
        require_finite(outputs, self.noun)
        return [[Value(float(value))] for value in outputs]

    def answer_row(self, answer):
        return (f"{answer.value:.3f} units",)


HEAD = Regression()
'''

BRIGHTNESS = """brightness (float[N, 3, 8, 8] input) => (float[N] value)
{ axes = Constant <value_ints = [1, 2, 3]> ()
  value = ReduceMean <keepdims = 0> (input, axes) }"""


@pytest.fixture(autouse=True)
def toy_head(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("installed")
    install_plug(folder, "heads", "toy", REGRESSION, monkeypatch)
    yield
    plugs.cache_clear()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Pixels from 0 to 1 as the model gets them, so that its value is the brightness."""
    model = save(graph(BRIGHTNESS), tmp_path / "brightness.onnx")
    called = cli.deploykit(
        "export", model, "--head", "toy", "--fp16", "--backend", "none", "-o", tmp_path / "out",
        "--mean", "0,0,0", "--std", "1,1,1", "--json",
    )  # fmt: skip
    assert called.code == 0, called.err
    fp32, fp16 = called.data["validation"]
    assert (fp32["head"], fp16["head"]) == ("toy", "toy")
    assert "max_kl" not in fp16["batches"][0]
    return tmp_path / "out"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "half.png"
    Image.new("RGB", (8, 8), (51, 51, 51)).save(path)
    return path


def test_the_manifest_names_the_head(bundle: Path) -> None:
    assert Bundle.open(bundle).manifest.head == HeadRecord("toy", "value", "none")
    assert cli.deploykit("check", bundle).code == 0
    validated = cli.deploykit("validate", bundle)
    assert validated.code == 0
    assert "the values are within the limits of fp16" in validated.out
    assert "KL" not in validated.out


def test_predict_shows_the_value(bundle: Path, image: Path) -> None:
    shown = cli.deploykit("predict", bundle, image, "--device", "cpu").out.splitlines()
    assert shown[0].split() == ["image", "value"]
    assert shown[1].endswith("0.200 units")
    (found,) = cli.deploykit("predict", bundle, image, "--json").data["predictions"]
    assert found["top"] == [{"value": pytest.approx(0.2, abs=1e-3)}]


def test_the_library_gives_the_heads_answers(bundle: Path) -> None:
    with deploykit.load(bundle, device="cpu") as model:
        assert model.head.name == "toy"
        assert model.run(np.ones((2, 3, 8, 8), np.float32)).tolist() == [1.0, 1.0]
        assert model.self_test().max_abs < 0.01


def test_classes_say_nothing_about_values(bundle: Path, image: Path) -> None:
    folder = image.parent / "data" / "0"
    folder.mkdir(parents=True)
    image.rename(folder / "a.png")
    called = cli.deploykit("eval", bundle, "--data", folder.parent)
    assert called.code == 2
    assert "toy outputs cannot be judged by the classes of images" in called.err


def test_labels_are_refused(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a\n")
    called = cli.deploykit(
        "export", tmp_path / "brightness.onnx", "--head", "toy", "--backend", "none",
        "--labels", tmp_path / "names.txt", "-o", tmp_path / "named",
    )  # fmt: skip
    assert called.code == 1
    assert "toy outputs have no classes to name, 1 labels were given" in called.err
    assert bundle.is_dir()


def test_without_the_head_the_file_is_no_classifier(tmp_path: Path) -> None:
    model = save(graph(BRIGHTNESS), tmp_path / "brightness.onnx")
    args = ("export", model, "--backend", "none", "-o", tmp_path / "none")
    assert cli.deploykit(*args, "--json").data["head"]["kind"] == "raw"
    called = cli.deploykit(*args, "--head", "multiclass")
    assert called.code == 1
    assert "expected a float32 output (batch, classes), the logits" in called.err


def test_a_head_that_does_not_fit_says_its_shape(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "colours")
    called = cli.deploykit("export", folder / "model.onnx", "--head", "toy", "--backend", "none")
    assert called.code == 1
    assert "expected a float32 output (batch,), the values\nend the graph in (batch,)" in called.err


def test_a_bundle_keeps_its_head(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "colours")
    called = cli.deploykit("inspect", folder, "--fp16", "--head", "toy")
    assert called.code == 2
    assert f"--head is for an export, {folder} is a bundle" in called.err


def test_a_head_that_is_not_installed(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "colours", head=HeadRecord("segments"))
    words = r"unknown head 'segments'\nall .*: binary, multiclass, multilabel, raw, toy"
    with pytest.raises(UnknownNameError, match=words):
        deploykit.load(folder, device="cpu")


def test_a_plug_without_a_head(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_plug(tmp_path_factory.mktemp("empty"), "heads", "empty", "", monkeypatch)
    with pytest.raises(MissingDependencyError, match=r"'empty' of deploykit.heads has no HEAD"):
        head_named("empty")
