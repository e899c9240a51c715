"""A folder of the Hugging Face hub as a user gives it to the commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageClassification

from deploykit.bundle.manifest import Bundle
from deploykit.sources.hugging_face_networks import quietly
from tests.cli import deploykit
from tests.hugging_face import CLASSES, VIT_PROCESSOR, make_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("hub") / "my-vit", processor=VIT_PROCESSOR)


def test_export_keeps_what_the_folder_says(page_folder: Callable[[str], Path]) -> None:
    """The bundle that a page of the documents makes."""
    desk = page_folder("docs/routes/hugging-face.md")
    folder, place = desk / "my-vit", desk / "engines" / "my-vit-fp16"
    bundle = Bundle.open(place)
    assert [report["passed"] for report in bundle.manifest.validation] == [True, True]
    assert bundle.labels == CLASSES
    assert bundle.manifest.name == "my-vit-fp16"
    assert bundle.manifest.weights["source"] == "model.safetensors"
    assert bundle.manifest.weights["trained"] is True
    assert bundle.manifest.preprocessing.mean == (0.5, 0.5, 0.5)
    assert str(folder.parent) not in (place / "manifest.json").read_text(encoding="utf-8")
    with np.load(place / "golden.npz") as archive:
        golden = dict(archive)
    with quietly(), torch.no_grad():
        theirs = AutoModelForImageClassification.from_pretrained(folder).eval()
        expected = theirs(torch.from_numpy(golden["input"])).logits.numpy()
    np.testing.assert_allclose(golden["logits"], expected, atol=1e-5)


def test_inspect_counts_its_parameters_and_prints_nothing_else(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    called = deploykit("inspect", folder, "--json")
    assert (called.code, called.err) == (0, "")
    assert called.data["parameters"] == 24_036
    assert called.data["multiply_adds"] > 0
    assert capfd.readouterr() == ("", "")


def test_a_refusal_is_one_message(folder: Path, tmp_path: Path) -> None:
    called = deploykit("export", folder, "--num-classes", 7, "-o", tmp_path / "bundle")
    assert called.code == 2
    assert "--num-classes is not for my-vit: the folder has its own classes" in called.err
    assert not (tmp_path / "bundle").exists()
