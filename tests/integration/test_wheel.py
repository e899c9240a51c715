"""The wheel that `python -m build` makes: what is in it, and that it works on its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]


def run(*command: str, folder: Path | None = None, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(folder: Path) -> None:
    source = folder / "source"
    source.mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "deploykit", source / "deploykit", ignore=ignored)
    # Without isolation: what builds it is installed, and nothing is fetched.
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source))


@pytest.fixture(scope="module")
def wheel(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    (found,) = made_once("wheel", build).glob("*.whl")
    return found


def test_it_has_what_estimates_are_made_of(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    for name in ("gpu_peaks.csv", "latency_model.json", "published_latency.csv"):
        assert f"deploykit/costs/{name}" in names


def test_it_is_named_after_our_distribution(wheel: Path) -> None:
    assert wheel.name.startswith("deploykit_vision-")
    with zipfile.ZipFile(wheel) as opened:
        (metadata,) = [name for name in opened.namelist() if name.endswith("/METADATA")]
        lines = opened.read(metadata).decode().splitlines()
    assert "Name: deploykit-vision" in lines
    assert "Provides-Extra: rtx" in lines
    assert not [line for line in lines if line.startswith("Requires-Dist: deploykit[")]


def test_every_file_of_the_package_is_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        packed = {name for name in opened.namelist() if name.startswith("deploykit/")}
    ours = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "deploykit").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == ours


def test_it_runs_where_there_is_no_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(site)
    code = "import deploykit; print(deploykit.__file__)"
    # Python looks into the current folder first, which may be a checkout.
    found = run("-c", code, folder=tmp_path, PYTHONPATH=str(site))
    assert Path(found.strip()).is_relative_to(site)
    shown = run("-m", "deploykit", "list", folder=tmp_path, PYTHONPATH=str(site))
    assert "resnet50" in shown
