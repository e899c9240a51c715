"""`deploykit eval --threshold`: a yes from that probability up; right answers, by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import deploykit
from deploykit.core.errors import UsageError
from deploykit.core.specs import HeadRecord
from tests import cli
from tests.bundles import SIZE, write_bundle

if TYPE_CHECKING:
    from pathlib import Path

RED = """red (float[{batch}, 3, {image}] input) => (float[{batch}, 1] chance)
<int64[1] first = {{0}}> {{
mean = GlobalAveragePool(input)  colours = Flatten(mean)
chance = Gather <axis = 1> (colours, first)
}}"""
CHANCES = (25, 76, 102, 153, 204)
"""Of the positive class, in 255ths: 0.1, 0.3, 0.4, 0.6 and 0.8."""
LABELS = (0, 1, 0, 1, 1)


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    return write_bundle(
        tmp_path / "red",
        source=RED,
        answers=lambda batch: batch.mean(axis=(2, 3), dtype=np.float32)[:, :1],
        head=HeadRecord("binary", None, "sigmoid"),
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    pixels = np.zeros((len(CHANCES), SIZE, SIZE, 3), np.uint8)
    pixels[..., 0] = np.array(CHANCES)[:, None, None]
    np.savez(tmp_path / "data.npz", images=pixels, labels=np.array(LABELS))
    return tmp_path / "data.npz"


@pytest.mark.parametrize(
    ("options", "threshold", "right"),
    [((), 0.5, 4), (("--threshold", "0.25"), 0.25, 4), (("--threshold", "0.35"), 0.35, 3),
     (("--threshold", "0.7"), 0.7, 3), (("--threshold", "0.05"), 0.05, 3)],
)  # fmt: skip
def test_it_decides_what_is_right(
    binary: Path, data: Path, options: tuple[str, ...], threshold: float, right: int
) -> None:
    called = cli.deploykit("eval", binary, "--data", data, *options, "--json")
    assert called.code == 0, called.err
    assert (called.data["threshold"], called.data["top1"]) == (threshold, right / 5)
    shown = cli.deploykit("eval", binary, "--data", data, *options).out
    assert f"a yes is a probability of {threshold} or more" in shown
    found = deploykit.evaluate(binary, data, threshold=threshold, quiet=True)
    assert (found.threshold, found.evaluation.to_dict()["top1"]) == (threshold, right / 5)


def test_both_models_decide_by_it(binary: Path, data: Path) -> None:
    called = cli.deploykit(
        "eval", binary, "--data", data, "--compare", binary, "--threshold", "0.7", "--json"
    )
    assert called.data["agreement"] == 1.0
    assert called.data["comparison"]["other"]["top1"] == 3 / 5


def test_a_head_without_a_threshold_refuses_it(tmp_path: Path, data: Path) -> None:
    colours = write_bundle(tmp_path / "colours")
    called = cli.deploykit("eval", colours, "--data", data, "--threshold", "0.3")
    assert (called.code, called.out) == (2, "")
    assert (
        "--threshold 0.3 is for binary and multilabel heads, this one is multiclass" in called.err
    )
    assert "threshold" in cli.deploykit("eval", colours, "--data", data, "--json").data
    with pytest.raises(UsageError, match="threshold"):
        deploykit.evaluate(colours, data, threshold=0.3, quiet=True)


def test_a_threshold_is_refused_before_the_model_is_opened(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_nothing(*_: object, **__: object) -> None:
        raise AssertionError("the model was opened")

    colours = write_bundle(tmp_path / "colours")
    monkeypatch.setattr("deploykit.verbs.evaluate._open_model", open_nothing)
    called = cli.deploykit("eval", colours, "--data", data, "--threshold", "0.3")
    assert called.code == 2


def test_what_is_no_probability(binary: Path, data: Path) -> None:
    called = cli.deploykit("eval", binary, "--data", data, "--threshold", "50")
    assert called.code == 2
    assert "--threshold is 50\nexpected a probability between 0 and 1" in called.err
