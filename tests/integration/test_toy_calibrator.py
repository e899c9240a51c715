"""A calibrator from outside the package, through ``export --int8``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deploykit.bundle.manifest import Bundle
from deploykit.core.errors import MissingDependencyError
from deploykit.core.plugs import plugs
from deploykit.precision.calibration.calibrators import METHODS
from tests.bundles import write_classifier
from tests.cli import deploykit
from tests.plugins import install_plug

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("own_folder")

HALF = """
from deploykit.precision.calibration.calibrators import calibrator


@calibrator("half")
def half(histogram):
    return histogram.amax / 2
"""


@pytest.fixture
def half(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    install_plug(tmp_path_factory.mktemp("installed"), "calibrators", "half", HALF, monkeypatch)
    yield
    plugs.cache_clear()


@pytest.mark.usefixtures("half")
def test_ranges_of_an_export_are_the_calibrators(tmp_path: Path) -> None:
    assert tuple(METHODS) == ("max", "percentile", "entropy", "mse", "half")
    model = write_classifier(tmp_path / "small.onnx")
    called = deploykit(
        "export", model, "--int8", "--calib", "random", "--calib-count", 16, "--method", "half",
        "--backend", "none", "-o", tmp_path / "out", "--json",
    )  # fmt: skip
    assert called.code == 0, called.err
    calibration = Bundle.open(tmp_path / "out").manifest.calibration
    assert calibration is not None
    assert calibration["method"] == "half"


@pytest.mark.usefixtures("half")
def test_the_wrong_name_lists_it(tmp_path: Path) -> None:
    model = write_classifier(tmp_path / "small.onnx")
    called = deploykit("export", model, "--int8", "--calib", "random", "--method", "third")
    assert called.code == 2
    assert "all of them: auto, max, percentile, entropy, mse, half" in called.err


def test_one_that_is_not_installed_any_more_does_not_count() -> None:
    assert tuple(METHODS) == ("max", "percentile", "entropy", "mse")


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("quarter", "", "'quarter' of deploykit.calibrators registers no calibrator of this name"),
        ("mse", HALF.replace('"half"', '"mse"'), "two calibrators are called 'mse'"),
    ],
)
def test_a_plug_that_cannot_be_used(
    name: str,
    source: str,
    message: str,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path_factory.mktemp("broken")
    install_plug(folder, "calibrators", name, source, monkeypatch)
    with pytest.raises(MissingDependencyError, match=message):
        list(METHODS)
    plugs.cache_clear()
