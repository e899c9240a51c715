"""`deploykit list`: architectures, bundles of a folder, targets of other packages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
from torchvision import models

from deploykit.cli import _show
from tests.bundles import write_bundle
from tests.cli import deploykit


def test_architectures() -> None:
    called = deploykit("list", "--json")
    assert "resnet50" in [one["name"] for one in json.loads(called.out)["models"]]


def test_bundles(tmp_path: Path) -> None:
    (tmp_path / "engines" / "broken").mkdir(parents=True)
    folder = write_bundle(tmp_path / "engines" / "[red]colours")
    (tmp_path / "engines" / "broken" / "manifest.json").write_text("{", encoding="utf-8")
    called = deploykit("list", tmp_path / "engines")
    assert called.code == 0
    assert "[red]colours" in called.out
    assert "cannot be read" in called.out
    assert max(map(len, called.out.splitlines()[:3])) <= 80
    found = json.loads(deploykit("list", tmp_path / "engines", "--json").out)["bundles"]
    assert [Path(one["bundle"]).name for one in found] == ["[red]colours", "broken"]
    assert found[0]["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert found[1]["problem"]


def test_a_folder_without_any(tmp_path: Path) -> None:
    called = deploykit("list", tmp_path)
    assert called.code == 1
    assert f"there are no bundles in {tmp_path}" in called.err


def test_networks_of_torchvision() -> None:
    called = deploykit("list", "--torchvision")
    named = {f"torchvision:{name}" for name in models.list_models(module=models)}
    assert set(called.out.split()) == named


def test_networks_of_timm() -> None:
    found = json.loads(deploykit("list", "--timm", "--json").out)["targets"]
    assert found == [f"timm:{name}" for name in timm.list_models()]


def test_one_kind_at_a_time(tmp_path: Path) -> None:
    called = deploykit("list", tmp_path, "--timm")
    assert called.code == 2
    assert "a list is of one kind" in called.err


@pytest.mark.parametrize(
    ("seconds", "shown"), [(-3, "0 min"), (3599, "59 min"), (3600, "1 h"), (200_000, "2 d")]
)
def test_ages(seconds: float, shown: str) -> None:
    assert _show._age(seconds) == shown


def test_check_of_a_folder_says_what_there_is_to_check(tmp_path: Path) -> None:
    (tmp_path / "engines").mkdir()
    write_bundle(tmp_path / "engines" / "good")
    listed = deploykit("list", tmp_path / "engines").out
    called = deploykit("check", tmp_path / "engines")
    assert (called.code, called.out) == (1, listed)
    assert "it holds bundles, give one" in " ".join(called.err.split())
    for word in ("--json", "-q"):
        assert "model" not in deploykit("check", tmp_path / "engines", word).out.split()
    assert deploykit("check", tmp_path).out == ""
