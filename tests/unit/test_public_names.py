from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import deploykit


def test_every_name_is_there_and_no_other() -> None:
    assert dir(deploykit) == sorted(deploykit.__all__)
    assert set(deploykit._HOMES) | {"__version__"} == set(deploykit.__all__)


@pytest.mark.parametrize("name", deploykit._HOMES)
def test_a_name_is_what_its_home_has(name: str) -> None:
    assert getattr(deploykit, name) is getattr(import_module(deploykit._HOMES[name]), name)
    assert getattr(deploykit, name) is vars(deploykit)[name]


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'deploykit' has no attribute 'laod'"):
        _ = deploykit.laod  # type: ignore[attr-defined]  # the mistake
    with pytest.raises(ImportError, match="cannot import name 'laod' from 'deploykit'"):
        from deploykit import laod  # type: ignore[attr-defined]  # noqa: F401 - the mistake


def test_the_names_import_in_a_bare_process() -> None:
    code = "from deploykit import *\nprint(load.__module__, MicroBatcher.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "deploykit.runtime.loading deploykit.serving.micro_batcher\n"
