"""The import rules of the package, in a bare process and over the whole source."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.bundles import write_bundle

if TYPE_CHECKING:
    from pathlib import Path

HEAVY = ("torch", "torchvision", "onnx", "onnx_ir", "onnxruntime", "tensorrt_rtx", "PIL")


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize(
    "statement",
    [
        "import deploykit",
        "import deploykit.cli",
        (
            "from click.testing import CliRunner; from deploykit.cli import main\n"
            "assert CliRunner().invoke(main, ['--help']).exit_code == 0"
        ),
        (
            "from click.testing import CliRunner; from deploykit.cli import main\n"
            "assert CliRunner().invoke(main, ['list', '--json']).exit_code == 0"
        ),
    ],
    ids=["package", "cli", "help", "list"],
)
def test_loads_no_heavy_package(statement: str) -> None:
    assert modules_after(statement).isdisjoint((*HEAVY, "numpy"))


def test_help_does_without_rich() -> None:
    help_page = (
        "from click.testing import CliRunner; from deploykit.cli import main\n"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0"
    )
    assert "rich" not in modules_after(help_page)


PUBLIC = """import deploykit
for name in ("Classifier", "Prediction", "MicroBatcher", "BatchSplitWarning", "DeploykitError"):
    getattr(deploykit, name)
"""


def test_the_package_itself_is_light() -> None:
    """Names are looked up on first use."""
    code = """import sys, importlib, typing
before = set(sys.modules)
import deploykit
print(*sorted(set(sys.modules) - before))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["deploykit", "deploykit._version"]


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_loading_and_predicting_on_the_cpu_needs_no_tool_chain(tmp_path: Path, device: str) -> None:
    folder = write_bundle(tmp_path / "colours")
    code = f"""{PUBLIC}
import numpy as np
with deploykit.load({str(folder)!r}, device={device!r}) as model:
    model.self_test()
    assert len(model.predict([np.zeros((8, 8, 3), np.uint8)])) == 1
"""
    heavy = {"torch", "torchvision", "onnx", "onnx_ir", "onnxscript", "click", "rich"}
    assert modules_after(code).isdisjoint({*heavy, "tensorrt_rtx", "cuda"})


def test_check_needs_no_export_tools() -> None:
    loaded = modules_after("import deploykit.verbs.check")
    assert loaded.isdisjoint({"torch", "torchvision", "onnx", "onnx_ir", "click"})


def test_layers_are_kept() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
