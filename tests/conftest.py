"""Fixtures that several groups of tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from tests.digits import Digits, make_digits


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("deploykit")
    group.addoption("--shared", metavar="DIR", help="folder with data/: real images and weights")
    group.addoption("--tensorrt-stubs", metavar="DIR", help="folder with tensorrt-stubs")
    group.addoption("--cuda-stand-in", metavar="DIR", help="folder with a stand-in libcuda.so.1")


@pytest.fixture(scope="session")
def shared_data(request: pytest.FixtureRequest) -> Path:
    folder = request.config.getoption("--shared")
    if folder is None:
        pytest.skip("needs the project's shared data: run pytest with --shared DIR")
    return Path(folder).resolve() / "data"


@pytest.fixture(scope="session")
def cuda_stand_in(request: pytest.FixtureRequest) -> Path:
    folder = request.config.getoption("--cuda-stand-in")
    if folder is None:
        pytest.skip("needs a stand-in CUDA driver: run pytest with --cuda-stand-in DIR")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Digits:
    """Trained once for all workers: the folder above a worker's own is shared by them."""
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / "digits"
    with FileLock(f"{folder}.lock"):
        return make_digits(folder)
